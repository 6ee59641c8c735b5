"""What every provider of machines does: EC2 on moto, others on imitations of what they call, and the fake.

OpenStack runs on an imitation, and on a real nova whose hypervisor is a fake.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from envsync.errors import CapacityError, CloudError
from envsync.runner import watchdog
from envsync.runner.cloud import azure, ec2_prices
from envsync.runner.cloud.azure import AzureProvider
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.gce import GCEProvider
from envsync.runner.cloud.hetzner import HetznerProvider
from envsync.runner.cloud.openstack import OpenStackProvider
from envsync.runner.cloud.provider import (
    CLUSTER,
    DEADLINE,
    OWNER,
    Found,
    Machine,
    MachineRequest,
    Market,
    Provider,
    Tags,
)
from tests.azure_api import AzureApi
from tests.cloud_fake import FakeProvider
from tests.gce_api import GCEApi
from tests.hetzner_api import HetznerApi
from tests.lab.ec2_api import EC2Api
from tests.lab.nova import INSTANCES
from tests.openstack_api import OpenStackApi, nova_refusal

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
TAGS = Tags(cluster="ada-1", owner="ada@laptop", deadline="2026-11-29T18:00:00Z", more=(("team", "x"),))


@pytest.fixture(scope="module")
def api() -> Iterator[EC2Api]:
    with EC2Api() as api, api.used():
        yield api


@dataclass
class Account:
    provider: Provider
    region: str
    type: str
    spot: bool = True
    says: str = ""  # on the console of a machine that has said nothing
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def request(
        self, tags: Tags = TAGS, *, token: str = "t1", market: Market = "on-demand"
    ) -> MachineRequest:
        shared = self.provider.open(self.region, self.type, tags, KEY)
        (zone, *_) = self.provider.zones(self.region, self.type)
        return MachineRequest(
            shared=shared,
            type=self.type,
            zone=zone,
            market=market,
            token=f"{self.run}-{token}",
            tags=tags,
            user_data="#!/bin/sh\n",
        )

    def find(self, identity: str) -> Machine:
        found = self.provider.describe(self.region, TAGS.cluster)  # those that ended are known for a while
        (one,) = [one for one in found if one.id == identity]
        return one

    def up(self, identity: str) -> Machine:
        """Return a machine when it runs."""
        deadline = time.monotonic() + 60
        while (found := self.find(identity)).state != "running":
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def alive(self, tags: Tags = TAGS) -> set[str]:
        found = self.provider.describe(self.region, tags.cluster)
        return {one.id for one in found if one.state not in ("ending", "ended")}

    def gone(self, tags: Tags = TAGS) -> None:
        """Wait until machines that were ended are."""
        deadline = time.monotonic() + 60
        while any(one.state != "ended" for one in self.provider.describe(self.region, tags.cluster)):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def cleared(self) -> None:
        """End what a test left."""
        for name in (TAGS.cluster, "bob-1"):
            tags = replace(TAGS, cluster=name)
            self.provider.terminate(self.region, [*self.alive(tags)])
            self.gone(tags)
            assert self.provider.close(self.region, name) == ()


@pytest.fixture(
    params=[
        *("ec2", "azure", "gce", "hetzner", "fake", "openstack"),
        pytest.param("nova", marks=[pytest.mark.lab, pytest.mark.slow]),
    ]
)
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    if request.param == "fake":
        yield Account(FakeProvider(), "north", "small")
        return
    if request.param == "gce":
        with GCEApi(request.getfixturevalue("tmp_path")) as gce, gce.used():
            yield Account(GCEProvider(["europe-west1"]), "europe-west1", "n2-standard-4")
        return
    if request.param == "azure":
        request.getfixturevalue("monkeypatch").setattr(azure, "_LOOK", 0.0)
        with AzureApi(request.getfixturevalue("tmp_path")) as rm, rm.used():
            yield Account(AzureProvider(["westeurope"]), "westeurope", "Standard_D4s_v5")
        return
    if request.param == "hetzner":
        with HetznerApi() as hetzner, hetzner.used():
            yield Account(HetznerProvider(["fsn1"]), "fsn1", "cx33", spot=False)
        return
    if request.param == "openstack":
        with OpenStackApi() as openstack, openstack.used():
            yield Account(OpenStackProvider(), "R1", "m1.small", spot=False)
        return
    if request.param == "nova":
        yield request.getfixturevalue("real")
        return
    request.getfixturevalue("api")
    account = Account(EC2Provider(["eu-west-1"]), "eu-west-1", "m7i.large")
    yield account
    account.cleared()


@pytest.fixture
def real(nova: OpenStackApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """OpenStack with a real nova."""
    monkeypatch.setattr("envsync.runner.cloud.openstack._POLL", 0.05)
    says = "FAKE CONSOLE OUTPUT\nANOTHER\nLAST LINE"
    account = Account(OpenStackProvider(), "R1", "m1.tiny", spot=False, says=says)
    nova.asked.clear()
    yield account
    account.cleared()
    assert nova.left() == {}


def test_a_machine_is_made_tagged_found_and_ended(account: Account) -> None:
    made = account.provider.create(account.request())
    assert made.state in ("pending", "running")
    assert made.type == account.type
    found = account.up(made.id)
    assert found.zone == account.provider.zones(account.region, account.type)[0]
    assert (
        found.tags.items()
        >= {CLUSTER: "ada-1", OWNER: "ada@laptop", DEADLINE: TAGS.deadline, "team": "x"}.items()
    )
    assert found.private_address or found.public_address
    for _ in range(2):  # silent: about one that is not there, too
        account.provider.renew(account.region, [made.id, "i-0123456789abcdef0"], TAGS, 120.0)
    account.provider.terminate(account.region, [made.id])
    assert account.alive() == set()
    account.provider.terminate(account.region, [made.id])  # silent: it is gone already


def test_a_token_makes_one_machine(account: Account) -> None:
    request = account.request()
    assert account.provider.create(request).id == account.provider.create(request).id
    other = account.provider.create(replace(request, token="t2"))
    assert len(account.alive()) == 2
    account.provider.terminate(account.region, [other.id])
    assert len(account.alive()) == 1


def test_what_is_shared_is_made_once_and_removed_when_nothing_uses_it(account: Account) -> None:
    request = account.request()
    assert account.provider.open(account.region, account.type, TAGS, KEY) == request.shared
    made = account.provider.create(request)
    assert account.provider.close(account.region, TAGS.cluster) != ()  # in use
    account.provider.terminate(account.region, [made.id])
    account.gone()
    assert account.provider.close(account.region, TAGS.cluster) == ()
    assert account.provider.close(account.region, TAGS.cluster) == ()


def test_clusters_are_apart(account: Account) -> None:
    bob = replace(TAGS, cluster="bob-1", owner="bob@desk")
    ours = account.provider.create(account.request())
    theirs = account.provider.create(account.request(bob, token="t2"))
    assert account.alive() == {ours.id}
    assert account.alive(bob) == {theirs.id}
    account.provider.terminate(account.region, [ours.id])
    account.provider.close(account.region, TAGS.cluster)
    assert account.alive(bob) == {theirs.id}


def test_ending_what_is_not_there_is_silent_and_ends_the_others(account: Account) -> None:
    made = account.provider.create(account.request())
    account.provider.terminate(account.region, ["i-0123456789abcdef0", made.id])
    assert account.alive() == set()
    account.provider.terminate(account.region, [])


def test_spot_machines_say_that_they_are(account: Account) -> None:
    if not account.spot:
        with pytest.raises(CapacityError, match="no spot machines"):
            account.provider.create(account.request(market="spot"))
        return
    made = account.provider.create(account.request(market="spot"))
    assert account.find(made.id).market == "spot"


def test_a_console_that_says_nothing_is_empty(account: Account) -> None:
    made = account.provider.create(account.request())
    assert account.provider.console(account.region, made.id) == account.says
    assert account.provider.console(account.region, "i-0123456789abcdef0") == ""


def test_a_type_that_is_not_there_is_an_error_that_says_so(account: Account) -> None:
    assert account.provider.zones(account.region, "m7i.huge") == ()
    with pytest.raises(CloudError, match=r"m7i\.huge") as told:
        account.provider.open(account.region, "m7i.huge", TAGS, KEY)
    assert told.value.hint


def test_what_a_machine_will_be_is_told_before_anything_is_made(account: Account) -> None:
    found = account.provider.expected(account.region, account.type)
    assert account.provider.found(account.region) == ()
    if account.provider.name == "fake":
        assert found is None  # it knows nothing of its machines
        return
    assert found is not None
    assert (found.machine, found.gpus, found.driver) == ("x86_64", 0, "")
    assert found.libc is not None
    assert (found.libc[0], found.python[:2]) == ("glibc", "3.")
    assert found.image == account.request().shared.image
    with contextlib.suppress(CloudError):  # or it says nothing: what is wrong is said when one is made
        assert account.provider.expected(account.region, "m7i.huge") is None


def test_what_has_our_tags_is_found_and_ended_one_by_one(account: Account) -> None:
    bob = replace(TAGS, cluster="bob-1", owner="bob@desk", deadline="")
    ours = account.provider.create(account.request())
    theirs = account.provider.create(account.request(bob, token="t2"))
    assert account.region in account.provider.everywhere()

    def found(cluster: str) -> list[Found]:
        return [one for one in account.provider.found(account.region) if one.cluster == cluster]

    there = found("ada-1")
    (machine,) = [one for one in there if one.kind == "machine"]
    assert (machine.id, machine.state in ("pending", "running")) == (ours.id, True)
    assert {(one.owner, one.deadline) for one in there} == {("ada@laptop", TAGS.deadline)}
    assert {one.kind for one in there} >= {"machine", "group"}
    (group,) = [one for one in there if one.kind == "group"]
    assert not account.provider.remove(account.region, group)  # in use
    assert account.provider.remove(account.region, machine)
    assert account.provider.remove(account.region, machine)  # gone already
    account.gone()
    for one in found("ada-1"):
        assert account.provider.remove(account.region, one)
        assert account.provider.remove(account.region, one)
    assert found("ada-1") == []
    assert theirs.id in {one.id for one in found("bob-1")}
    assert {(one.owner, one.deadline) for one in found("bob-1")} == {("bob@desk", "")}


def test_who_has_the_login_ends_what_a_client_that_died_has_made(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_POLL", 0.05)
    made = account.provider.create(account.request())
    account.up(made.id)
    bob = replace(TAGS, cluster="bob-1", owner="bob@desk")
    theirs = account.provider.create(account.request(bob, token="t2"))
    other = account.provider
    if other.name != "fake":  # it is all in there
        other = type(other)(other.regions)  # type: ignore[call-arg]
    for _ in range(2):  # silent: it is gone already
        watchdog._end_in(other, account.region, TAGS.cluster)
    left = account.provider.found(account.region)
    assert {one.cluster for one in left} == {"bob-1"}
    assert theirs.id in {one.id for one in left}


# -- a real nova alone


@pytest.mark.lab
@pytest.mark.slow
def test_nova_itself_refuses_and_says_so_late(nova: OpenStackApi, real: Account) -> None:
    huge = replace(real, type="m1.xlarge")
    request = huge.request()
    with pytest.raises(CapacityError, match="No valid host was found") as told:
        real.provider.create(request)
    assert told.value.scope == "zone"
    real.gone()  # what found no host is not kept
    with pytest.raises(CloudError, match=r"user_data.*too long"):
        real.provider.create(replace(real.request(token="long"), user_data="x" * 50_000))
    for number in range(INSTANCES):
        real.provider.create(real.request(token=f"n{number}"))
    with pytest.raises(CapacityError, match="Quota exceeded for instances") as told:
        real.provider.create(real.request(token="one more"))
    assert told.value.scope == "region"
    assert len(real.alive()) == INSTANCES


@pytest.mark.lab
@pytest.mark.slow
def test_a_lost_answer_of_novas_makes_one_server_and_one_that_stops_is_known(
    nova: OpenStackApi, real: Account
) -> None:
    nova.fail("POST /compute/v2.1/servers$", nova_refusal(503, "busy"))
    nova.fail("POST /compute/v2.1/servers$", None, after=True)
    made = real.provider.create(real.request())
    assert real.alive() == {made.id}
    (asked,) = [one for one in nova.asked if (one.method, one.path) == ("POST", "/compute/v2.1/servers")][-1:]
    (port,) = nova.kept["ports"].values()
    assert port["security_groups"] == [asked.body["server"]["security_groups"][0]["name"]]
    assert port["device_id"] == made.id
    real.up(made.id)
    client = real.provider._account.at("R1").compute  # type: ignore[attr-defined]
    client.stop_server(made.id)  # as a machine that shuts itself down does
    deadline = time.monotonic() + 60
    while real.find(made.id).state != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert real.find(made.id).reason == "it is SHUTOFF"


# -- EC2 alone


@pytest.fixture
def ec2(api: EC2Api) -> Iterator[Account]:
    account = Account(
        EC2Provider(["eu-west-1"], reached_from=["203.0.113.0/24", "2001:db8::/32"]), "eu-west-1", "m7i.large"
    )
    api.asked.clear()
    yield account
    account.provider.terminate(account.region, [*account.alive()])
    assert account.provider.close(account.region, TAGS.cluster) == ()
    assert api.left() == {}


def test_an_instance_is_asked_for_as_it_has_to_be(api: EC2Api, ec2: Account) -> None:
    request = replace(ec2.request(market="spot"), disk=40)
    ec2.provider.create(request)
    (asked,) = [asked for action, asked in api.asked if action == "RunInstances"]
    assert asked["ImageId"] == "ami-0000000000000de12"  # the newest of Debian's own, not of who calls his so
    assert asked["MetadataOptions.HttpTokens"] == "required"
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert asked["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert asked["BlockDeviceMapping.1.Ebs.VolumeSize"] == "40"
    assert asked["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    tagged = {asked[f"TagSpecification.{number}.ResourceType"] for number in (1, 2, 3, 4)}
    assert tagged == {"instance", "volume", "network-interface", "spot-instances-request"}
    made = [action for action, _ in api.asked if action.startswith(("Run", "Create", "Import"))]
    assert "CreateTags" not in made
    client = api.client()
    for found in (
        client.describe_volumes()["Volumes"],
        client.describe_key_pairs()["KeyPairs"],
        [one for one in client.describe_security_groups()["SecurityGroups"] if one["GroupName"] != "default"],
        [{"Tags": one["TagSet"]} for one in client.describe_network_interfaces()["NetworkInterfaces"]],
    ):
        (one,) = found
        assert {"Key": CLUSTER, "Value": TAGS.cluster} in one["Tags"]


def test_a_role_and_a_placement_group_go_along_in_that_call(api: EC2Api, ec2: Account) -> None:
    api.client(service="iam").create_instance_profile(InstanceProfileName="readers")
    provider = EC2Provider(["eu-west-1"], instance_profile="readers", placement_group="near")
    ec2.provider.create(ec2.request(token="without"))
    replace(ec2, provider=provider).provider.create(replace(ec2, provider=provider).request(token="with"))
    without, asked = [asked for action, asked in api.asked if action == "RunInstances"]
    assert (asked["IamInstanceProfile.Name"], asked["Placement.GroupName"]) == ("readers", "near")
    assert asked["Placement.AvailabilityZone"] == without["Placement.AvailabilityZone"] == "eu-west-1a"
    assert not any(key.startswith("Iam") or key == "Placement.GroupName" for key in without)


def test_the_security_group_lets_in_ssh_and_its_own_machines(api: EC2Api, ec2: Account) -> None:
    group = ec2.request().shared.group
    (found,) = api.client().describe_security_groups(GroupIds=[group])["SecurityGroups"]
    rules = {(rule["FromPort"], rule["ToPort"]): rule for rule in found["IpPermissions"]}
    assert set(rules) == {(22, 22), (0, 65535)}
    assert [one["CidrIp"] for one in rules[22, 22]["IpRanges"]] == ["203.0.113.0/24"]
    assert [one["CidrIpv6"] for one in rules[22, 22]["Ipv6Ranges"]] == ["2001:db8::/32"]
    assert [one["GroupId"] for one in rules[0, 65535]["UserIdGroupPairs"]] == [group]


@pytest.mark.slow
def test_throttled_calls_and_lost_answers_are_made_again_and_make_one_machine(
    api: EC2Api, ec2: Account
) -> None:
    request = ec2.request()
    api.fail("RunInstances", "RequestLimitExceeded")
    api.fail("RunInstances", "InternalError", after=True)
    made = ec2.provider.create(request)
    assert sum(action == "RunInstances" for action, _ in api.asked) == 3
    api.fail("DescribeInstances", "RequestLimitExceeded")
    assert ec2.alive() == {made.id}
    api.fail("TerminateInstances", "RequestLimitExceeded")
    ec2.provider.terminate(ec2.region, [made.id])
    assert ec2.alive() == set()


@pytest.mark.parametrize(
    ("code", "scope"),
    [("InsufficientInstanceCapacity", "zone"), ("VcpuLimitExceeded", "region"), ("Unsupported", "zone")],
)
def test_what_another_place_may_have_is_told_apart(api: EC2Api, ec2: Account, code: str, scope: str) -> None:
    api.fail("RunInstances", code, "You have requested more than there is")
    request = ec2.request()
    with pytest.raises(CapacityError, match="more than there is") as told:
        ec2.provider.create(request)
    assert told.value.scope == scope


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("UnauthorizedOperation", "permissions"),
        ("ExpiredToken", "log in again"),
        ("RequestExpired", "clock"),
        ("AuthFailure", "sts get-caller-identity"),
    ],
)
def test_refusals_say_what_to_do(api: EC2Api, ec2: Account, code: str, hint: str) -> None:
    request = ec2.request()
    api.fail("RunInstances", code, "Not today")
    with pytest.raises(CloudError, match="Not today") as told:
        ec2.provider.create(request)
    assert not isinstance(told.value, CapacityError)
    assert hint in told.value.hint
    assert api.variables["AWS_SECRET_ACCESS_KEY"] not in str(told.value)


def test_an_account_that_is_not_configured_is_an_error_before_anything_is_asked(
    api: EC2Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.asked.clear()
    with pytest.raises(CloudError, match="nobody") as told:
        EC2Provider(["eu-west-1"], profile="nobody")
    assert "AWS_PROFILE" in told.value.hint
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(CloudError, match="no region"):
        EC2Provider([])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(CloudError, match="credentials"):
        EC2Provider(["eu-west-1"]).zones("eu-west-1", "m7i.large")
    assert api.asked == []


def test_images_are_found_by_name_for_the_machine(api: EC2Api, ec2: Account) -> None:
    def image(machine_type: str, **options: str) -> str:
        provider = EC2Provider(["eu-west-1"], **options)
        return provider.open(ec2.region, machine_type, TAGS, KEY).image

    assert image("m7g.large") == "ami-0000000000000de1a"
    assert image("m7i.large", image="ami-0000000000000bad1") == "ami-0000000000000bad1"
    named = image("m7i.large", image="ubuntu/images/*24.04*", image_owner="099720109477")
    assert named == "ami-0000000000000ub24"
    with pytest.raises(CloudError, match=r"no image called 'suse-\*' for x86_64"):
        image("m7i.large", image="suse-*")


def test_zones_and_subnets_that_are_asked_for_are_taken_in_that_order(api: EC2Api, ec2: Account) -> None:
    asked = EC2Provider(["eu-west-1"], zones=["eu-west-1c", "eu-west-1a", "us-east-1a"])
    assert asked.zones("eu-west-1", "m7i.large") == ("eu-west-1c", "eu-west-1a")
    subnets = [one["SubnetId"] for one in api.client().describe_subnets()["Subnets"]][:2]
    within = Account(EC2Provider(["eu-west-1"], subnets=subnets[::-1]), "eu-west-1", "m7i.large")
    assert [zone.partition("/")[2] for zone in within.provider.zones("eu-west-1", "m7i.large")] == subnets[
        ::-1
    ]
    made = within.provider.create(within.request())
    (found,) = api.client().describe_instances(InstanceIds=[made.id])["Reservations"][0]["Instances"]
    assert found["SubnetId"] == subnets[1]
    client = api.client()
    other = client.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    theirs = client.create_subnet(VpcId=other, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    with pytest.raises(CloudError, match="the subnets are of 2 networks"):
        EC2Provider(["eu-west-1"], subnets=[subnets[0], theirs]).zones("eu-west-1", "m7i.large")
    client.delete_subnet(SubnetId=theirs)
    client.delete_vpc(VpcId=other)
    with pytest.raises(CloudError, match="no zone of eu-west-1 is called mars-1a"):
        EC2Provider(["eu-west-1"], zones=["mars-1a"])


def test_prices_are_those_of_the_cloud_or_none(api: EC2Api, ec2: Account) -> None:
    spot = ec2.provider.price("eu-west-1", "m7i.large", "spot")
    assert spot is not None
    assert spot.currency == "USD"
    assert ec2.provider.price("eu-west-1", "m7i.large", "on-demand") is None  # moto has no price list
    assert ec2.provider.disk_price(ec2.request().shared, 40) is None


def test_the_price_list_is_read(api: EC2Api) -> None:
    def product(unit: str, amount: str) -> str:
        dimension = {"unit": unit, "pricePerUnit": {"USD": amount}}
        offer = {"effectiveDate": "2026-11-01T00:00:00Z", "priceDimensions": {"A.B.C": dimension}}
        return json.dumps({"product": {"attributes": {}}, "terms": {"OnDemand": {"A.B": offer}}})

    class Pricing:
        def get_products(self, **asked: Any) -> dict[str, list[str]]:
            fields = {one["Field"]: one["Value"] for one in asked["Filters"]}
            asks = fields.get("instanceType") or fields["volumeApiName"]
            listed = {
                "m7i.large": [product("Hrs", "0.0"), product("Quantity", "9"), product("Hrs", "0.1121")],
                "gp3": [product("GB-Mo", "0.088")],
            }
            return {"PriceList": listed.get(asks, [])}

    found = ec2_prices.machine(Pricing(), "eu-west-1", "m7i.large")
    assert found is not None
    assert (found.amount, found.date) == (0.1121, "2026-11-01")
    assert ec2_prices.machine(Pricing(), "eu-west-1", "m7i.huge") is None
    disk = ec2_prices.volume(Pricing(), "eu-west-1", "gp3", 100)
    assert disk is not None
    assert disk.amount == pytest.approx(8.8 / 730)


@pytest.mark.slow
def test_all_that_belongs_to_clusters_is_found(api: EC2Api, ec2: Account) -> None:
    client = api.client()
    tags = [{"Key": CLUSTER, "Value": "ada-1"}, {"Key": OWNER, "Value": "ada@laptop"}]

    def tagged(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": tags}]

    ec2.provider.create(ec2.request(market="spot"))
    client.create_volume(AvailabilityZone="eu-west-1a", Size=1, TagSpecifications=tagged("volume"))
    client.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    client.create_launch_template(
        LaunchTemplateName="ours",
        LaunchTemplateData={"InstanceType": "m7i.large"},
        TagSpecifications=tagged("launch-template"),
    )
    # one would make another machine when this one ends; of the other, one-time, the machine has gone
    image = "ami-0000000000000de12"
    for kind in ("persistent", "one-time"):
        (made,) = client.request_spot_instances(
            InstanceCount=1,
            Type=kind,
            LaunchSpecification={"ImageId": image, "InstanceType": "m7i.large"},
            TagSpecifications=tagged("spot-instances-request"),
        )["SpotInstanceRequests"]
        machines = [made["InstanceId"]]
        if kind == "one-time":
            client.terminate_instances(InstanceIds=machines)
            continue
        (request,) = [one for one in ec2.provider.found(ec2.region) if one.kind == "spot request"]
        assert (request.id, request.state) == (made["SpotInstanceRequestId"], "active")
        client.terminate_instances(InstanceIds=machines)
    assert api.left()["requests"] == [request.id]
    there = ec2.provider.found(ec2.region)
    assert {one.kind for one in there} == {
        *("machine", "disk", "interface", "address", "launch template", "group", "key", "spot request")
    }
    assert (there[0].id, there[0].state) == (request.id, "open"), "before what it has made"
    assert all(one.cluster == "ada-1" and one.owner == "ada@laptop" for one in there)
    assert all(one.created > 1e9 for one in there if one.kind in ("machine", "disk"))
    for one in (*there, *ec2.provider.found(ec2.region)):
        assert ec2.provider.remove(ec2.region, one)
    assert ec2.provider.found(ec2.region) == ()
    assert api.left() == {}
    assert ec2.provider.remove(ec2.region, request), "it is gone already"
