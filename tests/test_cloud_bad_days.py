"""Bad days of EC2's interface: it refuses, is too busy, forgets who we are; nothing is left, or it is said.

moto imitates it on loopback; nothing boots, but consoles say what a machine that has booted says.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest

from envsync.errors import CapacityError, CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.provider import MachineRequest, Tags
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.options import run_name
from envsync.runner.records import Record, Records
from envsync.runner.stopping import Clusters, Reaped, Reaper
from envsync.stores import open_store
from tests.lab.ec2_api import EC2Api

REGION = "eu-west-1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"


class Saying(EC2Api):
    """Every machine has booted, and has said its host key."""

    def console(self, instance: Any) -> str:
        return f"-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@a\n-----END SSH HOST KEY KEYS-----\n"


@pytest.fixture(scope="module")
def whole() -> Iterator[EC2Api]:
    with Saying() as api, api.used():
        yield api


@pytest.fixture
def api(whole: EC2Api) -> Iterator[EC2Api]:
    yield whole
    whole._faults.clear()
    assert whole.left() == {}


def plan(**more: Any) -> Plan:
    tags = Tags(cluster=f"ada-{secrets.token_hex(3)}", owner="ada@laptop")
    return Plan(**{"type": "m7i.large", "count": 2, "tags": tags, "poll": 0.01, **more})


def rented(**more: Any) -> Rented:
    return Rented(EC2Provider((REGION,)), plan(**more))


@pytest.mark.slow
async def test_an_interface_that_is_too_busy_is_asked_again(api: EC2Api) -> None:
    for action in ("RunInstances", "DescribeInstances", "TerminateInstances", "DeleteSecurityGroup"):
        api.fail(action, "RequestLimitExceeded", times=2)
    machines = rented()
    await machines.start()
    await machines.close()
    assert all(not faults for faults in api._faults.values()), "each of them was met"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("VcpuLimitExceeded", "more than the vCPUs that you may have"),
        ("InstanceLimitExceeded", "more than the instances that you may have"),
        ("MaxSpotInstanceCountExceeded", "more than the spot instances that you may have"),
    ],
)
async def test_a_quota_that_is_reached_is_said(api: EC2Api, code: str, words: str) -> None:
    api.fail("RunInstances", code, words, times=9, where=lambda asked: True)
    with pytest.raises(CapacityError, match=words) as told:
        await rented(spot="prefer").start()
    assert told.value.hint is not None
    assert "quota" in told.value.hint


@pytest.mark.slow
async def test_no_zone_has_room(api: EC2Api) -> None:
    api.fail("RunInstances", "InsufficientInstanceCapacity", "no room here", times=99)
    with pytest.raises(CapacityError, match=r"2 x m7i\.large could not be had anywhere: .*no room here"):
        await rented(spot="prefer").start()
    asked = [asked for action, asked in api.asked if action == "RunInstances"]
    assert len({each.get("Placement.AvailabilityZone") for each in asked}) >= 3


@pytest.mark.slow
async def test_a_type_that_nobody_knows(api: EC2Api) -> None:
    with pytest.raises(CapacityError, match=r"has no m99\.large"):
        await rented(type="m99.large").start()


@pytest.mark.slow
async def test_credentials_that_expire_half_way(api: EC2Api) -> None:
    machines = rented()
    await machines.start()
    found = api.left()["instances"]
    for action in ("DescribeInstances", "TerminateInstances", "DescribeKeyPairs"):
        api.fail(action, "ExpiredToken", "The security token included in the request is expired", times=99)
    with pytest.raises(CloudError, match="token included in the request is expired") as told:
        await machines.close()
    assert told.value.hint == "The credentials have expired: log in again, then start again."
    api._faults.clear()
    assert api.left()["instances"] == found, "they end themselves: tests that boot them show it"
    # logged in again: what is left is found by its tag, and goes
    provider = EC2Provider((REGION,))
    provider.terminate(REGION, found)
    assert provider.close(REGION, machines.plan.tags.cluster) == ()


async def test_a_group_of_an_earlier_try_is_taken(api: EC2Api) -> None:
    tags = plan().tags
    provider = EC2Provider((REGION,))
    first = provider.open(REGION, "m7i.large", tags, KEY)
    again = provider.open(REGION, "m7i.large", tags, KEY)
    assert (first.group, first.key) == (again.group, again.key)
    assert provider.close(REGION, tags.cluster) == ()


async def test_a_group_of_that_name_that_is_somebody_elses_is_left_alone(api: EC2Api) -> None:
    wanted = plan()
    client = api.client()
    (network,) = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    theirs = client.create_security_group(
        GroupName=f"envsync-{wanted.tags.cluster}", Description="theirs", VpcId=network["VpcId"]
    )["GroupId"]
    with pytest.raises(CloudError, match="already exists"):
        await Rented(EC2Provider((REGION,)), wanted).start()
    (group,) = client.describe_security_groups(GroupIds=[theirs])["SecurityGroups"]
    assert group["IpPermissions"] == [], "nothing was opened in it"
    client.delete_security_group(GroupId=theirs)


async def test_a_machine_that_somebody_ends_while_it_boots_is_not_replaced(api: EC2Api) -> None:
    """It was told to stop from elsewhere, and cannot read that: the store does not answer."""

    class Stopped(EC2Provider):
        def console(self, region: str, identity: str) -> str:
            self.terminate(region, [identity])
            return ""

    api.asked.clear()
    with pytest.raises(CloudError, match=r"somebody has ended i-.* Client\.UserInitiatedShutdown"):
        await Rented(Stopped((REGION,)), plan(count=1)).start()
    assert [action for action, _ in api.asked].count("RunInstances") == 1


async def test_two_clients_with_one_name_have_two_clusters(api: EC2Api) -> None:
    first, second = (
        rented(tags=Tags(cluster=run_name("study"), owner="ada@laptop"), count=1) for _ in range(2)
    )
    await asyncio.gather(first.start(), second.start())
    await first.close()
    left = api.left()
    assert left["instances"] == [one.id for one in second.machines]
    assert (len(left["groups"]), len(left["keys"])) == (1, 1)
    await second.close()


@pytest.mark.slow
async def test_what_a_dead_client_left_and_never_had_a_switch_is_reaped(api: EC2Api, tmp_path: Path) -> None:
    """Nothing boots here, so nothing ends itself. The client's clock was a day wrong, either way."""
    machines = rented()
    await machines.start()
    assert machines._watching is not None
    machines._watching.cancel()  # it is dead
    machines._introduced.close()
    cluster, provider = machines.plan.tags.cluster, machines.provider
    records = Records(open_store(tmp_path.as_uri()))

    def look() -> tuple[Reaper, Reaped]:
        reaper = Reaper(Clusters(tmp_path.as_uri()), Hooks())
        return reaper, reaper.look(provider, [REGION])

    with dask.config.set({"envsync.owner": "ada@laptop"}):
        for wrong in (-86400.0, 86400.0):
            seen = time.time() + wrong
            record = Record(
                cluster=cluster, name="ada", owner="ada@laptop", backend="ec2", regions=(REGION,),
                begun=seen - 60, seen=seen, patience=300.0, bill=machines.bill(),
            )  # fmt: skip
            records.keep(record)
            assert [(one.ends, one.why[:15]) for one in look()[1].verdicts] == [(False, "its client live")]
        os.utime(tmp_path / f"clusters/alive/{cluster}.json", (time.time() - 400,) * 2)
        reaper, found = look()
        (verdict,) = found.verdicts
        assert (verdict.ends, verdict.counted.partition(",")[0]) == (True, "2 machines")
        reaper.end(found)
        assert api.left() == {}
        (lost,) = reaper.lost([found])
        reaper.close(lost, {cluster})
    assert records.alive() == []
    assert [one.ended is not None for one in records.ended()[0].bill.hired] == [True, True]


# -- what an identity has to be allowed to do

UNCHECKED = {"ec2:CreateTags", "ec2:DescribeSpotPriceHistory", "pricing:GetProducts"}


def documented(page: str = "howto-ec2.md", head: str = "Permissions needed") -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    found = re.search(rf"## {head}\n.*?```json\n(.*?)```", text, re.DOTALL)
    assert found is not None
    (statement,) = json.loads(found[1])["Statement"]
    return [str(action) for action in statement["Action"]]


def reap(provider: EC2Provider) -> None:
    for one in provider.found(REGION):
        assert provider.remove(REGION, one)


class Identity:
    """A user who may do what a policy says, and nothing else; requests are checked while it is used."""

    def __init__(self, api: EC2Api, patch: pytest.MonkeyPatch) -> None:
        self._iam = api.client(service="iam")
        self._iam.create_user(UserName="ada")
        key = self._iam.create_access_key(UserName="ada")["AccessKey"]
        self.strays = Strays(api)
        self.root = EC2Provider((REGION,))
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        self._clients = EC2Provider((REGION,))._clients  # a second each, again and again

    def may(self, actions: list[str]) -> None:
        statement = {"Effect": "Allow", "Resource": "*", "Action": actions}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self._iam.put_user_policy(UserName="ada", PolicyName="p", PolicyDocument=json.dumps(policy))

    def refused(self) -> CloudError | None:
        """Do it all; return what was refused."""
        try:
            self.rents_and_reaps()
        except CloudError as error:
            return error
        return None

    def rents_and_reaps(self) -> None:
        """Do all that there is to be done, and leave nothing; of every kind, something is there to reap."""
        from moto import settings

        plain, provider = EC2Provider((REGION,)), EC2Provider((REGION,), subnets=self.strays.subnets[:1])
        plain._clients = provider._clients = self._clients
        tags = plan().tags
        self.strays.make(tags)
        with pytest.MonkeyPatch.context() as checked:
            checked.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
            shared = provider.open(REGION, "m7i.large", tags, KEY)
            (zone, *_) = provider.zones(REGION, "m7i.large")
            plain.zones(REGION, "m7i.large")
            plain.open(REGION, "m7i.large", tags, KEY)
            request = MachineRequest(
                shared=shared,
                type="m7i.large",
                zone=zone,
                token=secrets.token_hex(8),
                tags=tags,
                user_data="#!",
            )
            made = provider.create(request)
            assert provider.describe(REGION, tags.cluster) != ()
            provider.console(REGION, made.id)
            provider.terminate(REGION, [made.id])
            assert provider.close(REGION, tags.cluster) == ()
            assert REGION in provider.everywhere()
            reap(provider)


class Strays:
    """What a cluster might leave, of every kind that machines do not take along."""

    def __init__(self, api: EC2Api) -> None:
        self._client = api.client()
        self.subnets = [one["SubnetId"] for one in self._client.describe_subnets()["Subnets"]]

    def make(self, tags: Tags) -> None:
        def tagged(kind: str) -> list[dict[str, Any]]:
            return [
                {
                    "ResourceType": kind,
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.to_dict().items()],
                }
            ]

        client = self._client
        client.create_volume(
            AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3", TagSpecifications=tagged("volume")
        )
        client.create_network_interface(
            SubnetId=self.subnets[0], TagSpecifications=tagged("network-interface")
        )
        client.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
        client.create_launch_template(
            LaunchTemplateName=tags.cluster,
            LaunchTemplateData={"InstanceType": "m7i.large"},
            TagSpecifications=tagged("launch-template"),
        )
        (request,) = client.request_spot_instances(
            Type="persistent",
            LaunchSpecification={"ImageId": "ami-0000000000000de12", "InstanceType": "m7i.large"},
            TagSpecifications=tagged("spot-instances-request"),
        )["SpotInstanceRequests"]
        client.terminate_instances(InstanceIds=[request["InstanceId"]])  # it would make another


@pytest.fixture
def identity(api: EC2Api) -> Iterator[Identity]:
    from moto import settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        yield Identity(api, patch)


def test_whoever_may_start_may_reap() -> None:
    assert set(documented("howto-cloud-costs.md", "Permissions for it on EC2")) <= set(documented())


@pytest.mark.slow
def test_the_documented_policy_is_enough_and_no_more(identity: Identity) -> None:
    needed = documented()
    identity.may(needed)
    identity.rents_and_reaps()
    not_needed = []
    for action in sorted(set(needed) - UNCHECKED):
        identity.may([one for one in needed if one != action])
        refused = identity.refused()
        if refused is None:
            not_needed.append(action)
        else:
            assert "not authorized" in refused.message, action
            assert "docs/howto-ec2.md" in str(refused.hint), action
        reap(identity.root)  # nobody checks this
    assert not_needed == []
