"""OpenStack on an imitation of its interfaces: what is asked for, and what is refused."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.config
import pytest
import stamina
from click.testing import CliRunner

from envsync.cli import cli
from envsync.errors import CapacityError, CloudError
from envsync.runner import OpenStack
from envsync.runner.cloud.openstack import OpenStackProvider
from envsync.runner.cloud.provider import MachineRequest, Tags
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.clouds import open_account
from envsync.runner.profiles import read_profile
from tests.openstack_api import (
    ELSEWHERE,
    IMAGE,
    IMAGES,
    INNER,
    PASSWORD,
    PUBLIC,
    TOKEN,
    OpenStackApi,
    neutron_refusal,
    nova_refusal,
)

TAGS = Tags(
    cluster="Mine_1.x-" + "0123456789" * 6,
    owner="ada@laptop",
    deadline="2026-11-29T18:00:00Z",
    more=(("team", "x"),),
)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenStackApi]:
    monkeypatch.delenv("OS_CLOUD", raising=False)
    with OpenStackApi() as api, api.used(), stamina.set_testing(True, attempts=8, cap=True):
        yield api


@pytest.fixture
def provider(api: OpenStackApi) -> OpenStackProvider:
    return OpenStackProvider(["R1"], reached_from=["203.0.113.0/24", "2001:db8::/32"])


def request(provider: OpenStackProvider, number: int = 1, tags: Tags = TAGS) -> MachineRequest:
    return MachineRequest(
        shared=provider.open("R1", "m1.small", tags, "ssh-ed25519 AAAA"),
        type="m1.small",
        zone="az2",
        token=f"{number:064x}"[::-1],
        tags=tags,
        user_data="#!/bin/sh\n",
    )


def asked_for(api: OpenStackApi, path: str) -> list[Any]:
    return [next(iter(one.body.values())) for one in api.asked if (one.method, one.path) == ("POST", path)]


def test_a_server_is_asked_for_as_it_has_to_be(api: OpenStackApi, provider: OpenStackProvider) -> None:
    made = provider.create(request(provider))
    (asked,), (group,) = asked_for(api, "/compute/v2.1/servers"), api.kept["security-groups"].values()
    assert (asked["flavorRef"], asked["imageRef"], asked["availability_zone"]) == ("m1.small", IMAGE, "az2")
    assert asked["networks"] == [{"uuid": INNER}]
    assert asked["security_groups"] == [{"name": group["id"]}]  # there from the first moment on
    assert base64.b64decode(asked["user_data"]) == b"#!/bin/sh\n"
    assert asked["metadata"] == TAGS.to_dict()
    assert not {"block_device_mapping_v2", "config_drive", "key_name", "adminPass"} & set(asked)
    assert json.loads(group["description"])["envsync"] == TAGS.cluster
    rules = [
        (one["ethertype"], one["port_range_max"], one.get("remote_ip_prefix") or one["remote_group_id"])
        for one in group["security_group_rules"]
    ]
    assert rules == [
        ("IPv4", 22, "203.0.113.0/24"),
        ("IPv6", 22, "2001:db8::/32"),
        ("IPv4", 65535, group["id"]),
        ("IPv6", 65535, group["id"]),
    ]
    assert made.public_address == made.private_address == "10.0.0.10"
    assert PASSWORD not in repr([one for one in api.asked if "/auth/" not in one.path])
    assert provider.describe("R1", TAGS.cluster) == (made,)
    assert provider.describe("R1", "mine-1-x-" + "0123456789" * 6) == ()  # of the same tag, and another's
    provider.terminate("R1", [made.id])
    assert provider.close("R1", TAGS.cluster) == ()
    assert api.left() == {}


def test_a_volume_and_a_drive_where_they_are_asked_for(api: OpenStackApi) -> None:
    provider = OpenStackProvider(["R1"], config_drive=True, image="noble")
    provider.create(replace(request(provider), disk=40))
    (asked,) = asked_for(api, "/compute/v2.1/servers")
    (disk,) = asked["block_device_mapping_v2"]
    assert (disk["uuid"], disk["volume_size"], disk["delete_on_termination"]) == ("noble", 40, True)
    assert "imageRef" not in asked
    assert asked["config_drive"] is True


def test_lost_answers_and_busy_moments_make_one_of_each(
    api: OpenStackApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OS_CONNECT_RETRIES", "OS_STATUS_CODE_RETRIES"):  # the SDK's own would look for nothing
        monkeypatch.setenv(name, "3")
    provider = OpenStackProvider(["R1"], floating_network="public")
    api.fail("POST /network/v2.0/security-groups$", None, after=True)
    wanted = request(provider)
    api.fail("POST /compute/v2.1/servers$", nova_refusal(503, "Service Unavailable"))
    api.fail("POST /compute/v2.1/servers$", nova_refusal(429, "Too many requests"))
    api.fail("POST /compute/v2.1/servers$", None, after=True)
    api.fail("POST /network/v2.0/floatingips$", None, after=True)
    made = provider.create(wanted)
    assert [len(api.left()[kind]) for kind in ("servers", "security-groups", "floatingips")] == [1, 1, 1]
    api.fail("GET /compute/v2.1/servers/detail$", None)
    assert provider.describe("R1", TAGS.cluster) == (made,)
    api.fail("DELETE /compute", nova_refusal(503, "Service Unavailable"))
    provider.terminate("R1", [made.id])
    assert set(api.left()) == {"security-groups"}


def test_floating_addresses_come_and_go_with_their_servers(api: OpenStackApi) -> None:
    provider = OpenStackProvider(["R1"], floating_network=PUBLIC)
    made = provider.create(request(provider))
    assert made.public_address.startswith("203.0.113.")
    assert made.private_address.startswith("10.0.0.")
    (address,) = api.kept["floatingips"].values()
    assert (address["floating_network_id"], address["status"]) == (PUBLIC, "ACTIVE")
    assert json.loads(address["description"]).items() >= {"server": made.id, "owner": "ada@laptop"}.items()
    other = provider.create(request(provider, 2))
    provider.terminate("R1", [made.id])
    (address,) = api.kept["floatingips"].values()
    assert address["floating_ip_address"] == other.public_address
    # one that nova has not given a port yet is not to be reached; it is no machine that is up
    api.kept["floatingips"].clear()
    (waiting,) = provider.describe("R1", TAGS.cluster)
    assert (waiting.state, waiting.public_address) == ("running", "")
    api.fail(
        "POST /network/v2.0/floatingips$", neutron_refusal(409, "OverQuota", "Quota exceeded for resources")
    )
    with pytest.raises(CapacityError, match="Quota exceeded for resources") as told:
        provider.create(request(provider, 3))
    assert told.value.scope == "region"
    assert api.left()["servers"] == [other.id]  # one that nobody can reach is not kept


def test_what_another_place_may_have_is_told_apart(api: OpenStackApi, provider: OpenStackProvider) -> None:
    wanted = request(provider)
    api.lacking.add("az2")
    with pytest.raises(CapacityError, match=r"no m1\.small is to be had: No valid host was found") as told:
        provider.create(wanted)
    assert told.value.scope == "zone"
    assert "servers" not in api.left()  # what came to nothing counts in the quota
    assert provider.create(replace(wanted, zone="az1", token="other")).zone == "az1"
    api.fail(
        "POST /compute/v2.1/servers$",
        nova_refusal(403, "Quota exceeded for cores: Requested 1, but already used 20"),
    )
    with pytest.raises(CapacityError, match="Quota exceeded for cores") as told:
        provider.create(replace(wanted, zone="az1", token="third"))
    assert told.value.scope == "region"
    assert provider.zones("R1", "m1.small") == ("az1", "az2")  # one is down
    assert OpenStackProvider(["R1"], zones=["az2", "off", "az1"]).zones("R1", "m1.small") == ("az2", "az1")


def test_throttling_that_goes_on_is_an_error(api: OpenStackApi, provider: OpenStackProvider) -> None:
    wanted = request(provider)
    api.fail("POST /compute/v2.1/servers$", nova_refusal(429, "This request was rate-limited."), times=8)
    with pytest.raises(CloudError, match="rate-limited") as told:
        provider.create(wanted)
    assert "try again" in told.value.hint
    assert provider.create(wanted).id


def test_images_are_chosen_by_what_their_names_say(api: OpenStackApi) -> None:
    def image(wanted: str = "") -> str:
        return OpenStackProvider(["R1"], image=wanted).open("R1", "m1.small", TAGS, "k").image

    assert image() == IMAGE  # neither Arm's, nor one with Docker, nor what a stranger calls Debian 12
    assert image("noble") == image("Ubuntu 24.04 LTS") == "noble"
    with pytest.raises(CloudError, match=r"2 images are called 'mine': mine2.*mine1"):
        image("mine")
    with pytest.raises(CloudError, match="no image 'plan9'") as told:
        image("plan9")
    assert "Ubuntu 24.04 LTS" in told.value.hint
    api.images = tuple(one for one in IMAGES if "ebian 12" not in one[1] and "debian" not in one[1])
    assert image() == "noble"
    api.images = tuple(one for one in IMAGES if one[1] == "mine")
    with pytest.raises(CloudError, match="no image is known as plain") as told:
        image()
    assert "There are: mine." in told.value.hint
    assert OpenStackProvider(["R1"], image="mine1").expected("R1", "m1.small") is None


def test_what_a_machine_will_be_is_known_from_its_image(provider: OpenStackProvider) -> None:
    expected = provider.expected("R1", "m1.small")
    assert expected is not None
    assert (expected.machine, expected.libc, expected.python) == ("x86_64", ("glibc", "2.36"), "3.11")
    assert provider.expected("R1", "g1.large") is None  # nothing says what its GPU is


def test_the_network_is_the_projects_own_or_has_to_be_named(api: OpenStackApi) -> None:
    def network(**options: Any) -> str:
        api.servers.clear()
        provider = OpenStackProvider(["R1"], **options)
        provider.create(request(provider))
        (asked,) = asked_for(api, "/compute/v2.1/servers")[-1]["networks"]
        return str(asked["uuid"])

    assert network() == INNER
    other = {"id": "other", "name": "inner", "project_id": ELSEWHERE, "router:external": False}
    api.networks.append(other)
    with pytest.raises(CloudError, match="there are 2 networks 'inner'") as told:
        network(network="inner")
    assert "inner (other)" in told.value.hint
    other["project_id"] = api.networks[0]["project_id"]
    with pytest.raises(CloudError, match="there are 2 networks"):
        network()
    with pytest.raises(CloudError, match="there is no network 'outer'") as told:
        network(floating_network="outer", network=INNER)
    assert "floating_network='...'" in told.value.hint
    del api.networks[2], api.networks[0]
    assert network() == PUBLIC  # clouds in which servers are outside from the beginning


def test_bad_input_is_told_before_anything_is_made(
    api: OpenStackApi, provider: OpenStackProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CloudError, match="too long"):
        request(provider, tags=replace(TAGS, cluster="x" * 250))
    with pytest.raises(CapacityError, match="no spot machines"):
        provider.create(replace(request(provider), market="spot"))
    wanted = request(provider)
    with pytest.raises(CloudError, match="Can not find requested image") as told:
        provider.create(replace(wanted, shared=replace(wanted.shared, image="gone")))
    assert told.value.hint
    with pytest.raises(CloudError, match="mars"):
        OpenStackProvider(["mars"]).zones("mars", "m1.small")
    monkeypatch.delenv("OS_REGION_NAME")
    with pytest.raises(CloudError, match="no region is given, and there are R1, R2"):
        OpenStackProvider()
    monkeypatch.setenv("OS_PASSWORD", "wr0ng")
    with pytest.raises(CloudError, match="requires authentication") as told:
        OpenStackProvider(["R1"]).zones("R1", "m1.small")
    assert "clouds.yaml" in told.value.hint
    assert "wr0ng" not in str(told.value)
    with pytest.raises(CloudError, match=r"nobody") as told:
        OpenStack("m1.small", cloud="nobody").provider()
    assert "clouds.yaml" in told.value.hint
    monkeypatch.setenv("OS_AUTH_URL", "http://127.0.0.1:9/v3")
    with pytest.raises(CloudError, match="could not be asked"):
        OpenStackProvider(["R1"]).zones("R1", "m1.small")
    monkeypatch.delenv("OS_PASSWORD")
    with pytest.raises(CloudError, match="not configured: password is a required"):
        OpenStackProvider(["R1"]).zones("R1", "m1.small")
    for name in [one for one in api.variables() if one != "OS_CLIENT_CONFIG_FILE"]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CloudError, match=r"auth_url|no credentials"):
        OpenStackProvider(["R1"]).zones("R1", "m1.small")
    monkeypatch.setitem(sys.modules, "openstack", None)
    with pytest.raises(CloudError, match="openstacksdk, which is not installed"):
        OpenStackProvider(["R1"])
    assert api.servers == {}


def test_a_console_is_read_where_the_cloud_shows_it(api: OpenStackApi, provider: OpenStackProvider) -> None:
    made = provider.create(request(provider))
    api.servers[made.id]["console"] = "-----BEGIN"
    assert provider.console("R1", made.id) == "-----BEGIN"
    api.fail("POST .*/action$", nova_refusal(409, "Instance is not ready"))
    assert provider.console("R1", made.id) == ""
    api.fail("POST .*/action$", nova_refusal(501, "The requested functionality is not supported."))
    with pytest.raises(CloudError, match="does not show") as told:
        provider.console("R1", made.id)
    assert "host_keys='first'" in told.value.hint


async def test_what_a_killed_process_left_is_found_by_its_record_alone(
    api: OpenStackApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {key.removeprefix("OS_").lower(): value for key, value in api.variables().items()}
    variables.pop("client_config_file")
    region = variables.pop("region_name")
    for name in api.variables():
        monkeypatch.delenv(name)
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(json.dumps({"clouds": {"mine": {"region_name": region, "auth": variables}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    backend = OpenStack("m1.small", cloud="mine", floating_network="public")
    record = await backend.described()
    assert record is not None
    assert (record["account"], record["regions"]) == ({"cloud": "mine"}, ("R1",))
    assert PASSWORD not in repr(record)
    provider = backend.provider()
    assert isinstance(provider, OpenStackProvider)
    made = provider.create(request(provider))
    api.servers[made.id]["status"] = "SHUTOFF"  # its lease was over
    again = open_account("openstack", {"cloud": "other", "profile": "mine"}, record["regions"])
    assert again.everywhere() == ("R1", "R2")
    found = {one.kind: one for one in again.found("R1")}
    assert {one.cluster for one in found.values()} == {TAGS.cluster}
    assert {one.owner for one in found.values()} == {"ada@laptop"}
    assert (found["machine"].id, found["machine"].state) == (made.id, "stopped")
    assert not again.remove("R1", found["group"])
    for kind in ("machine", "address", "group"):
        assert again.remove("R1", found[kind])
        assert again.remove("R1", found[kind])
    assert api.left() == {}
    monkeypatch.setenv("OS_CLOUD", "mine")
    assert OpenStack("m1.small").account == {"cloud": "mine"}


async def test_a_clusters_machines_come_up_and_leave_nothing(api: OpenStackApi) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
    api.console = f"-----BEGIN SSH HOST KEY KEYS-----\n{key}\n-----END SSH HOST KEY KEYS-----\n"
    api.lacking.add("az1")
    provider = OpenStackProvider(["R1"], floating_network="public")
    rented = Rented(provider, Plan(type="m1.small", count=3, tags=TAGS, poll=0.01))
    machines = [await rented.start(), await rented.another(), await rented.another()]
    assert {one.zone for one in machines} == {"az2"}
    addresses = {one["floating_ip_address"] for one in api.kept["floatingips"].values()}
    assert {one.public_address for one in machines} == addresses
    assert len(api.left()["servers"]) == 3  # those that found no host in az1 are not kept
    assert key in rented.config.with_name("known_hosts").read_text()
    await rented.close()
    assert api.left() == {}


def test_the_command_line_and_profiles_know_it(api: OpenStackApi) -> None:
    words = ["run", "--on", "openstack", "--instance-type", "m1.small", "--region", "R1", "-n", "2"]
    prices = {"openstack": {"date": "2026-11-01", "source": "our contract", "m1.small": 0.05}}
    with dask.config.set({"envsync.cloud.prices": prices}):
        options = ("--cloud-option", "floating-network=public", "--cloud-option", "config-drive=true")
        done = CliRunner().invoke(cli, [*words, *options, "--dry-run", "--", "true"])
    assert done.exit_code == 0, done.output
    assert "2 x m1.small of openstack in R1: az1, az2" in done.output
    assert "0.10 USD in all" in done.output
    assert TOKEN not in done.output
    profile = {"backend": "openstack", "type": "m1.small", "cloud": "mine", "config-drive": True}
    with dask.config.set({"envsync.profiles": {"cheap": profile}}):
        backend = read_profile("cheap").backend
    assert isinstance(backend, OpenStack)
    assert backend.account == {"cloud": "mine"}
