"""Azure on an imitation of its interface: what is asked for, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from envsync.errors import CapacityError, CloudError
from envsync.runner import Azure
from envsync.runner.cloud import azure, azure_messages
from envsync.runner.cloud.azure import AzureProvider
from envsync.runner.cloud.azure_errors import translated, worth_another_try
from envsync.runner.cloud.provider import CLUSTER, MachineRequest, Market, Tags
from envsync.runner.cloud.renting import Plan, Rented
from tests.azure_api import SECRET, SUBSCRIPTION, TOKEN, AzureApi, price
from tests.azure_refusal import refusal
from tests.http_cloud import Refused

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
TAGS = Tags(cluster="Mine_1.x-" + "0123456789" * 8, owner="ada@laptop", deadline="2026-11-29T18:00:00Z")
REGION, ZONE, TYPE = "westeurope", "westeurope-1", "Standard_D4s_v5"
SUBNET = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/theirs/providers/Microsoft.Network/virtualNetworks/n"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureApi]:
    monkeypatch.setattr(azure, "_LOOK", 0.0)
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path / "az"))
    with AzureApi(tmp_path) as api, api.used(), stamina.set_testing(True, attempts=8, cap=True):
        yield api
        assert api.leaks == []


@pytest.fixture
def provider(api: AzureApi) -> AzureProvider:
    return AzureProvider(["West Europe"], reached_from=["203.0.113.0/24", "2001:db8::/32"])


def request(
    provider: AzureProvider,
    number: int = 1,
    *,
    kind: str = TYPE,
    market: Market = "on-demand",
    disk: int = 0,
    tags: Tags = TAGS,
) -> MachineRequest:
    return MachineRequest(
        shared=provider.open(REGION, kind, tags, KEY),
        type=kind,
        zone=ZONE,
        market=market,
        token=f"{number:064x}"[::-1],
        tags=tags,
        user_data="#!/bin/sh\n",
        disk=disk,
    )


def sent(api: AzureApi, part: str) -> Any:
    """Return what the last call to make something had in it."""
    return [call.body for call in api.asked if call.method == "PUT" and part in call.path][-1]


def test_a_machine_is_asked_for_as_it_has_to_be(api: AzureApi, provider: AzureProvider) -> None:
    made = provider.create(request(provider, market="spot", disk=40))
    asked = sent(api, "/virtualMachines/")
    assert (asked["location"], asked["zones"]) == (REGION, ["1"])
    inner = asked["properties"]
    assert (inner["priority"], inner["evictionPolicy"]) == ("Spot", "Delete")
    assert inner["billingProfile"] == {"maxPrice": -1}
    disk = inner["storageProfile"]["osDisk"]
    assert (disk["diskSizeGB"], disk["deleteOption"]) == (40, "Delete")
    assert inner["storageProfile"]["imageReference"] == {
        "publisher": "Canonical",
        "offer": "ubuntu-24_04-lts",
        "sku": "server",
        "version": "latest",
    }
    assert base64.b64decode(inner["osProfile"]["customData"]) == b"#!/bin/sh\n"
    login = inner["osProfile"]["linuxConfiguration"]
    assert login["disablePasswordAuthentication"]
    assert [one["keyData"] for one in login["ssh"]["publicKeys"]] == [KEY]
    assert "identity" not in asked  # no credentials on the machine
    (interface,) = inner["networkProfile"]["networkInterfaceConfigurations"]
    public = interface["properties"]["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]
    assert {one["properties"]["deleteOption"] for one in (interface, public)} == {"Delete"}
    tagged = [call.body["tags"][CLUSTER] for call in api.asked if call.method == "PUT"]
    assert set(tagged) == {TAGS.cluster}
    assert interface["tags"] == public["tags"] == asked["tags"]
    assert len(asked["properties"]["osProfile"]["computerName"]) <= 64
    (found,) = provider.describe(REGION, TAGS.cluster)
    assert (found.id, found.public_address, found.private_address) == (made.id, "127.255.0.1", "10.89.0.4")
    for secret in (SECRET, TOKEN):
        assert not any(secret in repr((call.body, call.query, call.path)) for call in api.asked)


def test_only_ssh_and_the_clusters_own_machines_come_in(api: AzureApi, provider: AzureProvider) -> None:
    provider.create(request(provider))
    listed = sent(api, "/networkSecurityGroups/")["properties"]["securityRules"]
    rules = {one["name"]: one["properties"] for one in listed}
    assert rules["ssh"]["sourceAddressPrefixes"] == ["203.0.113.0/24"]
    assert rules["ssh6"]["sourceAddressPrefixes"] == ["2001:db8::/32"]
    assert {rules[name]["destinationPortRange"] for name in ("ssh", "ssh6")} == {"22"}
    (source,) = rules["themselves"]["sourceApplicationSecurityGroups"]
    assert source["id"] in api.resources
    assert (rules["none"]["access"], rules["none"]["sourceAddressPrefix"]) == ("Deny", "*")
    AzureProvider([REGION]).open(REGION, TYPE, TAGS, KEY)
    (ssh, *_) = sent(api, "/networkSecurityGroups/")["properties"]["securityRules"]
    assert (ssh["name"], ssh["properties"]["sourceAddressPrefix"]) == ("ssh", "*")
    # before Azure's own rule, by which all of a network comes in
    assert max(rule["priority"] for rule in rules.values()) == rules["none"]["priority"] < 65000


def test_a_subnet_of_the_users_and_no_public_address(api: AzureApi) -> None:
    api.resources[SUBNET] = {"id": SUBNET, "name": "n", "type": "Microsoft.Network/virtualNetworks"}
    backend = Azure(TYPE, region=REGION, subnet=f"{SUBNET}/subnets/s", private=True)
    provider = backend.provider()
    assert isinstance(provider, AzureProvider)
    made = provider.create(request(provider))
    assert not any("/virtualNetworks/" in call.path for call in api.asked)
    assert not any("/publicIPAddresses/" in one for one in api.resources)
    (found,) = provider.describe(REGION, TAGS.cluster)
    assert (found.id, found.public_address, found.private_address) == (made.id, "", "10.89.0.4")
    provider.terminate(REGION, [made.id])
    assert provider.close(REGION, TAGS.cluster) == ()
    assert api.left() == [SUBNET]


def test_images_and_zones_fit_the_type(api: AzureApi, provider: AzureProvider) -> None:
    assert request(provider, kind="Standard_D4ps_v6").shared.image.endswith(":server-arm64:latest")
    assert request(provider, kind="Standard_D2_v2").shared.image.endswith(":server-gen1:latest")
    expected = provider.expected(REGION, "Standard_D4ps_v6")
    assert expected is not None
    assert (expected.machine, expected.libc, expected.python) == ("aarch64", ("glibc", "2.39"), "3.12")
    with pytest.raises(CloudError, match="has GPUs") as told:
        provider.open(REGION, "Standard_NC4as_T4_v3", TAGS, KEY)
    assert "image=" in told.value.hint
    for own, key in (
        (f"{SUBNET.replace('Network', 'Compute')}/images/mine", "id"),
        ("/communityGalleries/x/images/y/versions/latest", "communityGalleryImageId"),
    ):
        custom = AzureProvider([REGION], image=own, identity="/subscriptions/x/id")
        custom.create(request(custom, kind="Standard_NC4as_T4_v3"))
        asked = sent(api, "/virtualMachines/")
        assert asked["properties"]["storageProfile"]["imageReference"] == {key: own}
        assert list(asked["identity"]["userAssignedIdentities"]) == ["/subscriptions/x/id"]
        custom.terminate(REGION, [one.id for one in custom.describe(REGION, TAGS.cluster)])
    assert AzureProvider([REGION], zones=["3", "westeurope-1", "7"]).zones(REGION, TYPE) == (
        "westeurope-3",
        ZONE,
    )
    assert provider.zones("northcentralus", TYPE) == ("northcentralus",)  # it has none
    api.restricted = [{"type": "Zone", "restrictionInfo": {"zones": ["1", "2"]}}]
    assert AzureProvider([REGION]).zones(REGION, TYPE) == ("westeurope-3",)
    api.restricted = [{"type": "Location", "reasonCode": "NotAvailableForSubscription"}]
    assert AzureProvider([REGION]).zones(REGION, TYPE) == ()


def test_lost_answers_and_busy_moments_make_one_machine(api: AzureApi, provider: AzureProvider) -> None:
    wanted = request(provider)
    api.fail("PUT .*/virtualMachines/", refusal("OperationNotAllowed", "too many requests", status=429))
    api.fail("PUT .*/virtualMachines/", refusal("RetryableError", "another operation is in progress"))
    api.fail("PUT .*/virtualMachines/", None, after=True)
    made = provider.create(wanted)
    assert list(api.machines()) == [made.id]
    assert len([one for one in api.resources if "/publicIPAddresses/" in one]) == 1
    api.fail("GET .*/virtualMachines$", refusal("InternalServerError", status=500))
    assert len(provider.describe(REGION, TAGS.cluster)) == 1
    api.fail("DELETE .*/virtualMachines/", refusal("TooManyRequests", status=429))
    AzureProvider([REGION]).terminate(REGION, [made.id])  # another process, which does not know where it is
    assert api.machines() == {}


def test_all_threads_share_a_token_until_it_is_about_to_end(api: AzureApi, provider: AzureProvider) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: provider.describe(REGION, TAGS.cluster), range(12)))
    assert [call.path for call in api.asked].count("/token") == 1


CAPACITY = [
    ("SkuNotAvailable", "is currently not available", "zone"),
    ("ZonalAllocationFailed", "Allocation failed.", "zone"),
    ("AllocationFailed", "Allocation failed.", "zone"),
    ("OverconstrainedAllocationRequest", "Allocation failed.", "zone"),
    ("OperationNotAllowed", "exceeding approved Total Regional Cores quota", "region"),
    ("QuotaExceeded", "exceeding approved LowPriorityCores", "region"),
]


@pytest.mark.parametrize(("code", "said", "scope"), CAPACITY)
def test_what_another_place_may_have_is_told_apart_whenever_azure_says_it(
    api: AzureApi, provider: AzureProvider, code: str, said: str, scope: str
) -> None:
    wanted = request(provider)
    api.fail("PUT .*/virtualMachines/", refusal(code, said))
    with pytest.raises(CapacityError, match=f"{TYPE}.*{said}") as told:
        provider.create(wanted)
    assert told.value.scope == scope
    api.shortages.append((code, said))  # it has begun, and fails
    with pytest.raises(CapacityError, match=f"{TYPE}.*{said}") as told:
        provider.create(wanted)
    assert told.value.scope == scope
    # nothing of it is left
    assert not [one for one in api.left() if "virtualMachines" in one or "publicIPAddresses" in one]
    assert provider.create(replace(wanted, zone="westeurope-2", token="another")).zone == "westeurope-2"


def test_a_fault_of_azures_own_is_no_reason_to_give_up(api: AzureApi, provider: AzureProvider) -> None:
    wanted = request(provider)
    api.shortages.append(("NetworkingInternalOperationError", "An unexpected error occurred."))
    with pytest.raises(CapacityError, match=r"could not make .*unexpected error") as told:
        provider.create(wanted)
    assert told.value.scope == "zone"
    assert api.machines() == {}
    assert provider.create(replace(wanted, zone="westeurope-2", token="another")).zone == "westeurope-2"


def test_what_the_serial_port_says_is_the_console(api: AzureApi, provider: AzureProvider) -> None:
    made = provider.create(request(provider))
    assert provider.console(REGION, made.id) == ""
    api.consoles[made.id] = "it boots"
    api.fail("POST .*/retrieveBootDiagnosticsData", refusal("TooManyRequests", status=429))
    api.fail("GET /console/", Refused(503, ""))
    assert provider.console(REGION, made.id) == "it boots"
    api.fail("POST .*/retrieveBootDiagnosticsData", refusal("Conflict", "the machine is not running"))
    assert provider.console(REGION, made.id) == ""
    api.fail("GET /console/", None, times=8)
    with pytest.raises(CloudError, match="could not be asked") as told:
        provider.console(REGION, made.id)
    assert "signature" not in "".join(traceback.format_exception(told.value))  # who has the link reads it


def test_a_machine_that_shut_itself_down_is_there_until_it_is_deleted(
    api: AzureApi, provider: AzureProvider
) -> None:
    made = provider.create(request(provider))
    api.machines()[made.id]["power"] = "stopped"
    assert [one.state for one in provider.describe(REGION, TAGS.cluster)] == ["stopped"]
    there = {one.kind: one for one in provider.found(REGION)}
    assert (there["machine"].state, there["machine"].created) == ("stopped", 1795932000.0)
    assert abs(there["group"].created - 1795932000.0) < 10 * 365 * 86400  # by the clock of who made it
    api.lingers = True
    assert provider.remove(REGION, there["machine"])
    assert [one.state for one in provider.describe(REGION, TAGS.cluster)] == ["ending"]
    assert provider.describe(REGION, TAGS.cluster) == ()
    assert provider.remove(REGION, there["group"])
    assert api.left() == []


def test_a_machine_that_cannot_be_looked_at_is_not_left(
    api: AzureApi, provider: AzureProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(provider)

    def refused(*_: Any, **__: Any) -> Any:
        raise CloudError("it may not be read any more")

    monkeypatch.setattr(provider, "_made", refused)
    with pytest.raises(CloudError, match="it may not be read any more"):
        provider.create(asked)
    assert [one for one in api.machines().values() if not one.get("deleted")] == []


def test_a_group_that_takes_long_to_go_is_still_in_use(
    api: AzureApi, provider: AzureProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    request(provider)
    monkeypatch.setattr(azure, "_GONE", 0.0)
    api.lingers = True
    assert provider.close(REGION, TAGS.cluster) != ()
    assert provider.close(REGION, TAGS.cluster) == ()
    assert len([call for call in api.asked if call.method == "DELETE"]) == 1
    assert api.left() == []


def test_what_others_have_put_into_the_group_keeps_it(api: AzureApi, provider: AzureProvider) -> None:
    wanted = request(provider)
    path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{wanted.shared.group}/theirs"
    for kind, name in (
        ("Microsoft.Storage/storageAccounts", "data"),
        ("Microsoft.DevTestLab/schedules", "shutdown-computevm-envsync-1"),  # which goes with ours
    ):
        api.resources[path + name] = {"id": path + name, "name": name, "type": kind}
    with pytest.raises(CloudError, match=r": Microsoft\.Storage/storageAccounts data\n"):
        provider.close(REGION, TAGS.cluster)
    assert wanted.shared.group in api.groups
    del api.resources[f"{path}data"]
    assert provider.close(REGION, TAGS.cluster) == ()


def test_somebody_elses_group_of_that_name_is_left_alone(api: AzureApi, provider: AzureProvider) -> None:
    group = request(provider).shared.group
    for tags in ({}, {CLUSTER: "another"}):
        api.groups[group]["tags"] = tags
        with pytest.raises(CloudError, match=f"somebody else has a resource group called {group}"):
            provider.open(REGION, TYPE, TAGS, KEY)
        assert provider.close(REGION, TAGS.cluster) == ()
        assert provider.found(REGION) == ()  # a tag that was copied does not make it ours
    assert group in api.groups


def test_tags_that_azure_does_not_take_are_refused_before_anything_is_made(
    api: AzureApi, provider: AzureProvider
) -> None:
    long, twice = ("x", "y" * 300), (("Team", "a"), ("team", "b"))
    for more in ((("cost/center", "7"),), (("azureX", ""),), (long,), twice):
        with pytest.raises(CloudError, match="at Azure"):
            provider.open(REGION, TYPE, replace(TAGS, more=more), KEY)
    assert api.groups == {}
    wanted = request(provider, tags=replace(TAGS, more=(("cost center", "a/b?"),)))
    assert provider.create(wanted).tags["cost center"] == "a/b?"


def test_prices_are_those_of_the_list(api: AzureApi, provider: AzureProvider) -> None:
    assert provider.price(REGION, TYPE, "on-demand") is None
    linux, disks = "Virtual Machines Dsv5 Series", "Standard SSD Managed Disks"
    machines = [
        ("D4s v5", 0.23, linux),
        ("D4s v5", 0.41, f"{linux} Windows"),
        ("D4s v5 Spot", 0.04, linux),
        ("D4s v5 Low Priority", 0.05, linux),
    ]
    api.prices = [price("Virtual Machines", *one, armSkuName=TYPE) for one in machines]
    api.prices += [
        price("Storage", "E4 LRS", amount, disks, meterName=f"E4 LRS Disk{more}", unitOfMeasure="1/Month")
        for amount, more in ((2.4, ""), (9.0, " Mount"))
    ]
    markets: tuple[Market, ...] = ("on-demand", "spot")
    found = {market: provider.price(REGION, TYPE, market) for market in markets}
    assert {market: one.amount for market, one in found.items() if one} == {"on-demand": 0.23, "spot": 0.04}
    one = found["spot"]
    assert one is not None
    assert (one.currency, one.date) == ("USD", "2026-10-01")
    shared = request(provider).shared
    disk = provider.disk_price(shared, 0)
    assert disk is not None
    assert disk.amount == pytest.approx(2.4 / 730)
    assert provider.price(REGION, TYPE.lower(), "spot") == one
    assert provider.disk_price(shared, 33) is None  # that is the next size
    api.fail("GET /prices", Refused(500, ""))
    assert provider.price(REGION, TYPE, "spot") is None


def test_the_role_that_the_docs_give_is_enough_and_no_more(api: AzureApi, provider: AzureProvider) -> None:
    page = (Path(__file__).parent.parent / "docs/howto-azure.md").read_text()
    role = json.loads(page.partition("```json\n")[2].partition("```")[0])

    def everything() -> None:
        made = provider.create(request(provider))
        provider.console(REGION, made.id)
        assert len(provider.describe(REGION, TAGS.cluster)) == 1
        other = provider.create(replace(request(provider), token="other"))
        provider.terminate(REGION, [other.id])
        provider.renew(REGION, [made.id], TAGS, 120.0)
        (*_, group) = [one for place in provider.everywhere() for one in provider.found(place)]
        AzureProvider([REGION]).terminate(REGION, [made.id])
        assert provider.remove(REGION, group)

    api.role = frozenset(role["Actions"])
    everything()
    assert api.left() == []
    registering = {one for one in api.role if one.endswith("/register/action")}
    assert len(registering) == 2
    for one in api.role - registering - api.authorised:
        raise AssertionError(f"nothing needs {one}")


def test_the_imitation_knows_the_fields_that_there_are(api: AzureApi, provider: AzureProvider) -> None:
    wanted = request(provider)
    call = azure_messages.machine_to_make

    def misspelt(*rest: Any, **more: Any) -> dict[str, Any]:
        made = call(*rest, **more)
        (interface,) = made["properties"]["networkProfile"]["networkInterfaceConfigurations"]
        interface["properties"]["deleteOptions"] = interface["properties"].pop("deleteOption")
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(azure_messages, "machine_to_make", misspelt)
        with pytest.raises(CloudError, match=r"networkInterfaceConfigurations\.properties\.deleteOptions"):
            provider.create(wanted)


async def test_machines_of_a_cluster_come_up_wherever_there_is_room_and_leave_nothing(
    api: AzureApi, provider: AzureProvider
) -> None:
    keys = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
    api.says = f"it boots\n{keys[0]}\n{KEY} root@a\n{keys[1]}\n"
    api.prices = [price("Virtual Machines", "D4s v5", 0.23, "Virtual Machines Dsv5 Series", armSkuName=TYPE)]
    api.shortages = [("ZonalAllocationFailed", "Allocation failed.")]
    api.fail("GET /console/", None)
    plan = Plan(type=TYPE, count=3, tags=TAGS, poll=0.01, spot="prefer")
    rented = Rented(provider, plan)
    first = await rented.start()
    others = await asyncio.gather(rented.another(), rented.another())
    assert (first.market, {one.market for one in others}) == ("on-demand", {"spot"})
    assert sorted(one.zone for one in (first, *others)) == [ZONE, ZONE, "westeurope-2"]
    assert set(api.machines()) == {one.id for one in rented.machines}
    api.machines()[first.id]["power"] = "stopped"
    assert await rented.why(first) == "it is stopped"
    api.lingers = True
    api.fail("DELETE .*/virtualMachines/", refusal("TooManyRequests", status=429))
    await rented.close()
    assert api.left() == []
    assert {one.price.amount for one in rented.bill().hired if one.price} == {0.23}


async def test_a_type_that_is_never_a_spot_machine_is_rented_otherwise_where_that_may_be(
    api: AzureApi, provider: AzureProvider
) -> None:
    keys = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
    api.says = f"{keys[0]}\n{KEY} root@a\n{keys[1]}\n"
    with pytest.raises(CapacityError, match="no spot machines of standard_b2s"):
        await Rented(provider, Plan(type="standard_b2s", count=1, tags=TAGS, poll=0.01, spot="only")).start()
    assert api.left() == []
    rented = Rented(provider, Plan(type="standard_b2s", count=2, tags=TAGS, poll=0.01, spot="prefer"))
    found = [await rented.start(), await rented.another()]
    assert [(one.type, one.market) for one in found] == [("Standard_B2s", "on-demand")] * 2
    await rented.close()
    assert api.left() == []


@pytest.mark.parametrize("name", ["Größe-名前", "名前", "a/b?c&d=e%20", "x" * 300, "a_b.c", "..", "con"])
def test_clusters_may_have_any_name_of_text(api: AzureApi, provider: AzureProvider, name: str) -> None:
    """Of those that go into a tag's value: names of Azure's are made of what is left."""
    tags = replace(TAGS, cluster=name, owner="Ünal <u@x>; drop", more=(("", "x"),))
    with pytest.raises(CloudError, match="at Azure"):
        provider.open(REGION, TYPE, tags, KEY)
    tags = replace(tags, more=())
    if len(name) > 256:
        with pytest.raises(CloudError, match="envsync:cluster cannot be a tag at Azure"):
            provider.open(REGION, TYPE, tags, KEY)
        return
    made = provider.create(request(provider, tags=tags))
    provider.renew(REGION, [made.id], tags, 120.0)
    assert [one.id for one in provider.describe(REGION, name)] == [made.id]
    assert {one.cluster for one in provider.found(REGION)} == {name}
    provider.terminate(REGION, [made.id])
    assert provider.close(REGION, name) == ()
    assert api.left() == []


@pytest.mark.parametrize(
    ("said", "wait"),
    [("7", 7.0), ("3600", 120.0), ("-1", True), ("nan", True), ("Sun, 29 Nov 2026 06:00:30 GMT", True)],
)
def test_azure_is_asked_again_when_it_says_so_and_no_later_than_makes_sense(said: str, wait: float) -> None:
    response = SimpleNamespace(status_code=429, reason="", headers={"Retry-After": said})
    error = HttpResponseError("too many requests")
    error.status_code, error.response = 429, response
    assert worth_another_try(error) == wait


REFUSED = [
    (refusal("InvalidAuthenticationToken", "The token has expired", 401), "has expired", "az login"),
    (refusal("AuthorizationFailed", "does not have authorization", 403), "authorization", "howto-azure"),
    (refusal("RequestDisallowedByPolicy", "was disallowed", 403), "disallowed", "howto-azure"),
    (refusal("OperationNotAllowed", "while it is deleted"), "while it is deleted", "documentation"),
    (refusal("InvalidParameter", "The image is not there", 400), "image", "publisher:offer"),
    (refusal("VMMarketplaceInvalidInput", "image requires Plan information", 400), "Plan", "not supported"),
    (
        refusal("MissingSubscriptionRegistration", "'Microsoft.Compute'."),
        "Compute",
        "--namespace Microsoft.Compute`",
    ),
]


@pytest.mark.parametrize(("refused", "said", "hint"), REFUSED)
def test_refusals_say_what_to_do(
    api: AzureApi, provider: AzureProvider, refused: Refused, said: str, hint: str
) -> None:
    wanted = request(provider)
    api.fail("PUT .*/virtualMachines/", refused)
    with pytest.raises(CloudError, match=said) as told:
        provider.create(wanted)
    assert not isinstance(told.value, CapacityError)
    assert hint in told.value.hint


def test_what_azure_finds_wrong_with_arguments_names_them(api: AzureApi) -> None:
    provider = AzureProvider([REGION], reached_from=["laptop.example.org"])
    with pytest.raises(CloudError, match="laptop") as told:
        provider.open(REGION, TYPE, TAGS, KEY)
    assert "reached_from" in told.value.hint
    provider = AzureProvider([REGION])
    with pytest.raises(CloudError, match="smaller") as told:
        provider.create(request(provider, disk=10))
    assert "disk=" in told.value.hint


def test_bad_input_is_told(api: AzureApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CloudError, match="no region"):
        AzureProvider([])
    with pytest.raises(CloudError, match="no region"):
        Azure(TYPE, region="").provider()
    with pytest.raises(CloudError, match=r"west'europe. is no region") as told:
        AzureProvider(["west'europe"])
    assert "az account list-locations" in told.value.hint
    assert Azure(TYPE, region=REGION, tags={"cost center": 7}).tags == {"cost center": "7"}
    for image in ("ubuntu", "a:b:c:", "a b:c:d:e", "/"):
        with pytest.raises(CloudError, match="is no image"):
            AzureProvider([REGION], image=image)
    assert AzureProvider(["middleofnowhere"]).zones("middleofnowhere", TYPE) == ()
    with pytest.raises(CloudError, match="is no subnet's id"):
        AzureProvider([REGION], subnet="default")
    with pytest.raises(CloudError, match="'mine' is no identity's id"):
        AzureProvider([REGION], identity="mine")
    with pytest.raises(CloudError, match="cannot be reached"):
        Azure(TYPE, region=REGION, private=True).provider()
    with pytest.raises(CloudError, match="subscription could not be found") as told:
        AzureProvider([REGION], subscription="1-2").zones(REGION, TYPE)
    assert "az account list" in told.value.hint
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(CloudError, match="credentials") as told:
        AzureProvider([REGION]).zones(REGION, TYPE)
    assert "az login" in told.value.hint
    monkeypatch.setenv("AZURE_RESOURCE_MANAGER_ENDPOINT", "http://management.example.org")
    with pytest.raises(CloudError, match="https"):
        AzureProvider([REGION])
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")
    with pytest.raises(CloudError, match="no subscription") as told:
        Azure(TYPE, region=REGION).provider()
    assert "az account list" in told.value.hint
    assert api.left() == []


async def test_a_record_leads_back_to_the_subscription(
    api: AzureApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")
    (tmp_path / "az").mkdir()
    chosen = {"subscriptions": [{"id": "other"}, {"id": SUBSCRIPTION, "isDefault": True}]}
    (tmp_path / "az/azureProfile.json").write_text("\ufeff" + json.dumps(chosen))  # as `az` writes it
    described = await Azure(TYPE, region=REGION).described()
    assert described is not None
    assert (described["backend"], described["account"]) == ("azure", {"subscription": SUBSCRIPTION})
    (tmp_path / "az/azureProfile.json").unlink()
    again = Azure.reopen(described["account"], ())
    assert again.everywhere() == ("northcentralus", REGION)
    assert [one for region in again.everywhere() for one in again.found(region)] == []


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("login.example.org: Failed to resolve 'login.example.org' ([Errno -3] ...)", "Is there a network?"),
        ("AzureCliCredential: Azure CLI not found on path", "Log in: `az login`"),
    ],
)
def test_without_a_network_nobody_is_told_to_log_in(said: str, hint: str) -> None:
    """azure-identity has one error for both."""
    with pytest.raises(CloudError) as told, translated("account"):
        raise ClientAuthenticationError(f"DefaultAzureCredential failed.\nAttempted credentials:\n\t{said}")
    assert told.value.hint.startswith(hint)
