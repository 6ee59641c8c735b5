"""Hetzner on an imitation of its interface: what is asked for, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import stamina

from envsync.errors import CapacityError, CloudError
from envsync.runner import Hetzner
from envsync.runner.cloud.hetzner import HetznerProvider
from envsync.runner.cloud.provider import MachineRequest, Shared, Tags
from tests.hetzner_api import TOKEN, HetznerApi, refusal

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
TAGS = Tags(cluster="Mine_1.x-" + "0123456789" * 6, owner="ada@laptop")


@pytest.fixture
def api() -> Iterator[HetznerApi]:
    with HetznerApi() as api, api.used(), stamina.set_testing(True, attempts=6, cap=True):
        yield api


@pytest.fixture
def provider(api: HetznerApi) -> HetznerProvider:
    return HetznerProvider(["fsn1", "nbg1"], reached_from=["203.0.113.0/24"])


def request(provider: HetznerProvider, number: int = 1) -> MachineRequest:
    shared = provider.open("fsn1", "cx33", TAGS, KEY)
    return MachineRequest(
        shared=shared,
        type="cx33",
        zone="fsn1",
        token=f"{number:064x}"[::-1],
        tags=TAGS,
        user_data="#!/bin/sh\n",
    )


def test_a_server_is_asked_for_as_it_has_to_be(api: HetznerApi, provider: HetznerProvider) -> None:
    first, second = (provider.create(request(provider, number)) for number in (1, 2))
    asked = [call.body for call in api.asked if (call.method, call.path) == ("POST", "/servers")]
    (firewall,), (key,) = api.kept["firewalls"].values(), api.kept["ssh_keys"].values()
    assert asked[0]["firewalls"] == [{"firewall": firewall["id"]}]  # there from the first moment on
    assert asked[0]["ssh_keys"] == [key["id"]]
    assert asked[0]["image"] == 101
    ssh, among = firewall["rules"]
    assert (ssh["port"], ssh["source_ips"]) == ("22", ["203.0.113.0/24"])
    peers = sorted(f"{one.public_address}/32" for one in (first, second))
    assert (among["port"], among["source_ips"]) == ("any", peers)
    assert TOKEN not in repr(asked)
    assert provider.describe("fsn1", TAGS.cluster)[0].tags["envsync:cluster"] == TAGS.cluster
    assert provider.describe("nbg1", TAGS.cluster) == ()
    provider.terminate("fsn1", [first.id, second.id])
    assert provider.close("fsn1", TAGS.cluster) == ()
    assert api.left() == {}


def test_a_server_that_is_not_of_a_cluster_is_not_ended(api: HetznerApi, provider: HetznerProvider) -> None:
    made = provider.create(request(provider))
    (server,) = api.kept["servers"].values()
    server["labels"] = {}
    provider.terminate("fsn1", [made.id])
    assert "servers" in api.left()
    with pytest.raises(CloudError, match="somebody else"):
        provider.create(request(provider))


def test_lost_answers_and_busy_moments_make_one_server(api: HetznerApi, provider: HetznerProvider) -> None:
    wanted = request(provider)
    api.fail("POST /servers$", refusal("unavailable", status=503))
    api.fail("POST /servers$", None, after=True)
    made = provider.create(wanted)
    assert [one["name"] for one in api.kept["servers"].values()] == [made.id]
    api.fail("GET /servers$", None)
    assert len(provider.describe("fsn1", TAGS.cluster)) == 1
    api.fail("DELETE /servers", refusal("locked", status=423))
    provider.terminate("fsn1", [made.id])
    assert api.kept["servers"] == {}


@pytest.mark.parametrize(
    ("code", "status", "scope"),
    [
        ("resource_unavailable", 422, "zone"),
        ("placement_error", 422, "zone"),
        ("resource_limit_exceeded", 403, "region"),
    ],
)
def test_what_another_place_may_have_is_told_apart(
    api: HetznerApi, provider: HetznerProvider, code: str, status: int, scope: str
) -> None:
    wanted = request(provider)
    api.fail("POST /servers$", refusal(code, "We are out of those", status))
    with pytest.raises(CapacityError, match=rf"cx33.*We are out of those \({code}\)") as told:
        provider.create(wanted)
    assert told.value.scope == scope
    assert provider.zones("ash", "cx33") == ()


def test_throttling_that_goes_on_is_an_error(
    api: HetznerApi, provider: HetznerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcloud._client.time.sleep", lambda seconds: None)
    wanted = request(provider)
    api.fail("POST /servers$", refusal("rate_limit_exceeded", "limit of 3600 requests", 429), times=6)
    with pytest.raises(CloudError, match="limit of 3600") as told:
        provider.create(wanted)
    assert "wait" in told.value.hint
    assert provider.create(wanted).id


def test_bad_input_is_told_before_anything_is_made(
    api: HetznerApi, provider: HetznerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CloudError, match="80 GB of disk"):
        provider.create(replace(request(provider), disk=100))
    with pytest.raises(CloudError, match="no image called 'plan9' for x86"):
        HetznerProvider(["fsn1"], image="plan9").open("fsn1", "cx33", TAGS, KEY)
    assert HetznerProvider(["fsn1"], image="mine").open("fsn1", "cx33", TAGS, KEY).image == "103"
    assert provider.open("fsn1", "cax21", TAGS, KEY).image == "102"
    with pytest.raises(CloudError, match="no network called inner"):
        HetznerProvider(["fsn1"], network="inner").create(request(provider))
    with pytest.raises(CloudError, match="no location"):
        HetznerProvider([])
    monkeypatch.setenv("HCLOUD_TOKEN", "wrong")
    with pytest.raises(CloudError, match="the token you are using is invalid") as told:
        HetznerProvider(["fsn1"]).zones("fsn1", "cx33")
    assert "HCLOUD_TOKEN" in told.value.hint
    for text in ("", "tw\no"):
        monkeypatch.setenv("HCLOUD_TOKEN", text)
        with pytest.raises(CloudError, match="no token") as told:
            Hetzner("cx33", location="fsn1").provider()
        assert "tw" not in str(told.value)
    assert api.kept["servers"] == {}


@pytest.mark.parametrize(
    ("image", "kind", "machine", "libc", "python"),
    [
        ("debian-12", "cx33", "x86_64", ("glibc", "2.36"), "3.11"),
        ("debian-12", "cax21", "aarch64", ("glibc", "2.36"), "3.11"),
        ("mine", "cx33", "x86_64", ("glibc", "2.39"), "3.12"),
        ("103", "cx33", "x86_64", ("glibc", "2.39"), "3.12"),
        ("made elsewhere", "cx33", "x86_64", None, ""),
    ],
)
def test_an_image_tells_what_a_server_will_be(
    api: HetznerApi, image: str, kind: str, machine: str, libc: tuple[str, str] | None, python: str
) -> None:
    found = HetznerProvider(["fsn1"], image=image).expected("fsn1", kind)
    assert found is not None
    assert (found.machine, found.libc, found.python) == (machine, libc, python)
    with pytest.raises(CloudError, match="'999' not found"):
        HetznerProvider(["fsn1"], image="999").expected("fsn1", kind)


def test_prices_are_hetzners_own(api: HetznerApi, provider: HetznerProvider) -> None:
    shared = Shared(region="fsn1", key="", group="", image="")
    api.fail("GET /pricing", refusal("service_error", "not now", 500), times=12)
    assert provider.price("fsn1", "cx33", "on-demand") is None
    assert provider.disk_price(shared, 0) is None
    disk = provider.disk_price(shared, 0)
    assert disk is not None
    assert (disk.amount, disk.currency) == (0.0, "EUR")
    price = provider.price("fsn1", "cx33", "on-demand")
    assert price is not None
    assert (price.amount, price.currency) == (0.0096, "EUR")  # the server's and its address's
    assert provider.price("ash", "cx33", "on-demand") is None
    assert provider.price("fsn1", "cx33", "spot") is None


def test_what_a_killed_process_left_is_found_and_removed(api: HetznerApi, provider: HetznerProvider) -> None:
    made = provider.create(request(provider))
    api.kept["servers"][next(iter(api.kept["servers"]))]["status"] = "off"  # its lease was over
    again = Hetzner.reopen(Hetzner("cx33", location="nbg1").account, ())
    found = {one.kind: one for one in again.found("fsn1")}
    assert (found["machine"].id, found["machine"].state) == (made.id, "stopped")
    assert {one.cluster for one in found.values()} == {TAGS.cluster}
    assert not again.remove("fsn1", found["group"])
    for kind in ("machine", "key", "group"):
        assert again.remove("fsn1", found[kind])
    assert api.left() == {}
