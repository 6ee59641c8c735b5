"""Google Compute Engine on an imitation of its interface: what is asked for, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import stamina

from envsync.errors import CapacityError, CloudError
from envsync.runner import GCE
from envsync.runner.ahead import facts_of
from envsync.runner.cloud.gce import GCEProvider
from envsync.runner.cloud.provider import MachineRequest, Market, Tags
from tests.gce_api import PROJECT, GCEApi, refusal

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
TAGS = Tags(cluster="Mine_1.x-" + "0123456789" * 6, owner="ada@laptop", deadline="2026-11-29T18:00:00Z")
UBUNTU = "projects/ubuntu-os-cloud/global"
REGION, ZONE, TYPE = "europe-west1", "europe-west1-b", "n2-standard-4"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[GCEApi]:
    with GCEApi(tmp_path) as api, api.used(), stamina.set_testing(True, attempts=8, cap=True):
        yield api


@pytest.fixture
def provider(api: GCEApi) -> GCEProvider:
    return GCEProvider([REGION], reached_from=["203.0.113.0/24", "2001:db8::/32"])


def request(
    provider: GCEProvider, number: int = 1, *, kind: str = TYPE, market: Market = "on-demand", disk: int = 0
) -> MachineRequest:
    return MachineRequest(
        shared=provider.open(REGION, kind, TAGS, KEY),
        type=kind,
        zone=ZONE,
        market=market,
        token=f"{number:064x}"[::-1],
        tags=TAGS,
        user_data="#!/bin/sh\n",
        disk=disk,
    )


def test_an_instance_is_asked_for_as_it_has_to_be(api: GCEApi, provider: GCEProvider) -> None:
    provider.create(request(provider, market="spot", disk=40))
    (asked,) = [call.body for call in api.asked if call.method == "POST" and call.path.endswith("/instances")]
    (disk,) = asked["disks"]
    assert disk["autoDelete"]
    assert disk["initializeParams"]["diskSizeGb"] == "40"
    assert disk["initializeParams"]["labels"] == asked["labels"]
    assert disk["initializeParams"]["sourceImage"].endswith("/family/ubuntu-2404-lts-amd64")
    assert asked["scheduling"] == {
        "automaticRestart": False,
        "provisioningModel": "SPOT",
        "onHostMaintenance": "TERMINATE",
        "instanceTerminationAction": "DELETE",
        "terminationTime": TAGS.deadline,
    }
    assert "serviceAccounts" not in asked  # no credentials on the machine
    metadata = {one["key"]: one["value"] for one in asked["metadata"]["items"]}
    assert metadata == {"user-data": "#!/bin/sh\n", "block-project-ssh-keys": "TRUE"}
    secret = json.loads(api._file.read_text())["private_key"].splitlines()[3]
    assert not any(secret in repr(call.body) for call in api.asked)


def test_only_ssh_comes_in_whatever_the_network_allows(api: GCEApi, provider: GCEProvider) -> None:
    made = provider.create(request(provider))
    rules = {name.rpartition("-")[2]: rule for name, rule in api.firewalls.items()}
    assert rules["ssh"]["sourceRanges"] == ["203.0.113.0/24"]
    assert rules["ssh6"]["sourceRanges"] == ["2001:db8::/32"]
    assert rules["ssh"]["allowed"] == [{"IPProtocol": "tcp", "ports": ["22"]}]
    (tag,) = rules["in"]["sourceTags"]
    assert {tuple(rule["targetTags"]) for rule in rules.values()} == {(tag,)}
    assert rules["none"]["denied"] == [{"IPProtocol": "all"}]
    assert rules["ssh"]["priority"] < rules["none"]["priority"] < 1000  # those of a network's own
    api.fail("DELETE .*-in$", refusal("backendError", status=503))
    provider.terminate(REGION, [made.id])
    assert provider.close(REGION, TAGS.cluster) == ()
    assert api.left() == {}


def test_images_fit_the_type(api: GCEApi, provider: GCEProvider) -> None:
    assert request(provider, kind="c4a-standard-4").shared.image.endswith("-arm64")
    wanted = request(provider, kind="g2-standard-4")
    assert wanted.shared.image.endswith("/ubuntu-accelerator-2404-amd64-with-nvidia-580-v20260901")
    provider.create(wanted)
    (made,) = api.instances.values()
    assert made.scheduling.on_host_maintenance == "TERMINATE"  # GPUs do not move
    own = "projects/mine/global/images/family/ours"
    assert GCEProvider([REGION], image=own).open(REGION, TYPE, TAGS, KEY).image == own
    assert GCEProvider([REGION], zones=["europe-west1-d", ZONE, "us-east1-b"]).zones(REGION, TYPE) == (
        "europe-west1-d",
        ZONE,
    )


@pytest.mark.parametrize(
    ("image", "kind", "machine", "libc", "gpus"),
    [
        ("", TYPE, "x86_64", ("glibc", "2.39"), 0),
        ("", "c4a-standard-4", "aarch64", ("glibc", "2.39"), 0),
        ("", "g2-standard-4", "x86_64", ("glibc", "2.39"), 1),
        (f"{UBUNTU}/images/ubuntu-2204-jammy-v20240426", TYPE, "x86_64", ("glibc", "2.35"), 0),
        ("projects/mine/global/images/family/ours", TYPE, "x86_64", None, 0),
    ],
)
def test_an_image_tells_what_an_instance_will_be(
    api: GCEApi, image: str, kind: str, machine: str, libc: tuple[str, str] | None, gpus: int
) -> None:
    found = GCEProvider([REGION], image=image).expected(REGION, kind)
    assert (found.machine, found.libc, found.gpus) == (machine, libc, gpus)
    # of the driver its branch is known, which is too little to lock for
    assert (facts_of(found) is None) == (gpus > 0 or libc is None)


def test_lost_answers_and_busy_moments_make_one_instance(api: GCEApi, provider: GCEProvider) -> None:
    wanted = request(provider)
    api.fail("POST .*/instances$", refusal("rateLimitExceeded", "Quota exceeded for queries", status=403))
    api.fail("POST .*/instances$", None, after=True)
    made = provider.create(wanted)
    assert list(api.instances) == [made.id]
    api.fail("GET .*/aggregated/instances$", refusal("backendError", status=503))
    assert len(provider.describe(REGION, TAGS.cluster)) == 1
    api.fail("DELETE .*/instances/", None)
    GCEProvider([REGION]).terminate(REGION, [made.id])  # another process, which does not know the zone
    assert api.instances == {}


@pytest.mark.parametrize(
    ("code", "scope"), [("ZONE_RESOURCE_POOL_EXHAUSTED", "zone"), ("QUOTA_EXCEEDED", "region")]
)
def test_what_another_place_may_have_is_told_when_the_operation_ends(
    api: GCEApi, provider: GCEProvider, code: str, scope: str
) -> None:
    wanted = request(provider)
    api.shortages.append((code, "The zone does not have enough"))
    with pytest.raises(CapacityError, match=r"n2-standard-4.*does not have enough") as told:
        provider.create(wanted)
    assert told.value.scope == scope
    assert provider.create(replace(wanted, token="another")).zone == ZONE
    api.fail("POST .*/instances$", refusal("quotaExceeded", "Quota 'CPUS' exceeded", status=403))
    with pytest.raises(CapacityError, match="'CPUS'"):
        provider.create(request(provider, 3))


def test_what_is_said_on_the_serial_port_is_the_console(api: GCEApi, provider: GCEProvider) -> None:
    made = provider.create(request(provider))
    api.consoles[made.id] = "it boots"
    assert provider.console(REGION, made.id) == "it boots"


def test_a_disk_that_is_left_alone_is_found_and_one_that_shut_itself_down(
    api: GCEApi, provider: GCEProvider
) -> None:
    made = provider.create(request(provider))
    api.instances[made.id].status = "TERMINATED"
    labels = dict(api.instances[made.id].labels)
    common = {"zone": f"x/{ZONE}", "labels": labels, "status": "READY"}
    api.disks = {"left": {"name": "left", **common}, "used": {"name": "used", "users": ["x"], **common}}
    found = {(one.kind, one.state): one for one in provider.found(REGION)}
    assert set(found) == {("machine", "stopped"), ("disk", "READY"), ("group", "")}
    assert {one.cluster for one in found.values()} == {TAGS.cluster}
    assert provider.remove(REGION, found["disk", "READY"])
    assert list(api.disks) == ["used"]
    assert [one.state for one in provider.describe(REGION, TAGS.cluster)] == ["stopped"]


def test_bad_input_is_told(api: GCEApi, provider: GCEProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CloudError, match="no region"):
        GCEProvider([])
    with pytest.raises(CloudError, match="'projects/mine' was not found"):
        GCEProvider([REGION], project="mine").zones(REGION, TYPE)
    api.fail("aggregated/machineTypes", refusal("authError", "Invalid Credentials", 401), times=3)
    with pytest.raises(CloudError, match="Invalid Credentials") as told:
        provider.zones(REGION, TYPE)
    assert "gcloud auth" in told.value.hint
    api.fail("aggregated/machineTypes", refusal("forbidden", "Required 'compute.x' permission", 403))
    with pytest.raises(CloudError, match="permission") as told:
        provider.zones(REGION, TYPE)
    assert "howto-gce" in told.value.hint
    with pytest.raises(CloudError, match="no zone of europe-west1 is called mars-1a"):
        GCEProvider([REGION], zones=["mars-1a"])
    wanted = request(provider)
    with pytest.raises(CloudError, match="sourceImage") as told:
        provider.create(replace(wanted, shared=replace(wanted.shared, image="debian")))
    assert "projects/P" in told.value.hint
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(CloudError, match="credentials") as told:
        GCE(TYPE, region=REGION).provider()
    assert "application-default login" in told.value.hint
    assert api.instances == {}
    assert PROJECT not in str(told.value)


def test_a_record_leads_back_to_the_project(api: GCEApi, monkeypatch: pytest.MonkeyPatch) -> None:
    account = GCE(TYPE, region=REGION, project=PROJECT).account
    assert account == {"project": PROJECT}
    again = GCE.reopen(account, ())
    assert again.everywhere() == (REGION, "us-east1")
    assert [one for region in again.everywhere() for one in again.found(region)] == []
