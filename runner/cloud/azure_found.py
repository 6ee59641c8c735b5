"""What Azure's Resource Manager says of what there is, as values of ours. Pure: all of it is plain JSON."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.azure_messages import CREATED, region_name
from envsync.runner.cloud.provider import CLUSTER, DEADLINE, OWNER, Expected, Found, Machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envsync.runner.cloud.provider import State

__all__ = [
    "addresses_of",
    "expected_of",
    "failure_of",
    "found_as",
    "image_of",
    "is_ending",
    "machine_of",
    "may_be_spot",
    "place_of",
    "power_of",
    "read_tags",
    "state_of",
    "strangers",
    "zones_of",
]

_OURS = frozenset(
    {
        "microsoft.compute/disks",
        "microsoft.compute/virtualmachines",
        "microsoft.compute/virtualmachines/extensions",
        "microsoft.network/applicationsecuritygroups",
        "microsoft.network/networkinterfaces",
        "microsoft.network/networksecuritygroups",
        "microsoft.network/publicipaddresses",
        "microsoft.network/virtualnetworks",
    }
)
_SHUTDOWN = "microsoft.devtestlab/schedules"


def read_tags(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of something, ours by our names: Azure may write them in other letters."""
    ours = {key.lower(): key for key in (CLUSTER, OWNER, DEADLINE, CREATED)}
    return {ours.get(key.lower(), key): str(value) for key, value in (found.get("tags") or {}).items()}


# -- types of machines, as the list of SKUs has them


def zones_of(sku: Mapping[str, Any], region: str) -> tuple[str, ...]:
    """Return the zones of a region that this subscription may have a type in; the region, if it has none."""
    there: set[str] = set()
    for one in sku.get("locationInfo") or ():
        if region_name(one.get("location", "")) == region:
            there.update(one.get("zones") or ())
    zonal = bool(there)
    for one in sku.get("restrictions") or ():
        if one.get("type") == "Location":
            return ()
        there.difference_update((one.get("restrictionInfo") or {}).get("zones") or ())
    return tuple(f"{region}-{zone}" for zone in sorted(there)) if zonal else (region,)


def may_be_spot(sku: Mapping[str, Any]) -> bool:
    """Whether there are spot machines of a type; True where that is not said."""
    return _can(sku).get("LowPriorityCapable", "True") != "False"


def image_of(sku: Mapping[str, Any], machine_type: str, region: str) -> str:
    """Return the plain image for a type.

    Raises
    ------
    CloudError
        It has GPUs, and no image of Canonical's own has their driver.
    """
    can = _can(sku)
    if int(can.get("GPUs", "0") or 0):
        raise CloudError(
            f"{machine_type} has GPUs, and plain Ubuntu has no driver for them at Azure",
            where=f"azure {region}",
            hint="Name an image that has it, such as Azure's own for high performance computing: "
            "image='microsoft-dsvm:ubuntu-hpc:2204:latest', or yours.",
        )
    if can.get("CpuArchitectureType") == "Arm64":
        kind = "server-arm64"
    else:
        kind = "server" if "V2" in can.get("HyperVGenerations", "V2") else "server-gen1"
    return f"Canonical:ubuntu-24_04-lts:{kind}:latest"


def expected_of(sku: Mapping[str, Any], image: str) -> Expected:
    """Return what a machine with the plain image will be."""
    arm = _can(sku).get("CpuArchitectureType") == "Arm64"
    return Expected(
        image=image,
        name=image,
        machine="aarch64" if arm else "x86_64",
        libc=("glibc", "2.39"),
        python="3.12",
    )


def _can(sku: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: str(one.get("value", "")) for one in sku.get("capabilities") or ()}


# -- what there is


def place_of(identity: str) -> tuple[str, str]:
    """Return the resource group and the name in an id, in small letters: Azure writes them as it likes."""
    match = re.search(r"/resourcegroups/([^/]+)/.*/([^/]+)$", identity.lower())
    return (match[1], match[2]) if match else ("", "")


def power_of(found: Mapping[str, Any]) -> str:
    """Return what the instance view says of a machine: ``"running"``; empty if it says nothing."""
    for one in _statuses(found):
        if one.get("code", "").lower().startswith("powerstate/"):
            return str(one["code"]).partition("/")[2].lower()
    return ""


def failure_of(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a machine could not be made: a code and Azure's words."""
    for one in _statuses(found):
        parts = one.get("code", "").split("/")
        if parts[0].lower() == "provisioningstate" and len(parts) > 2:
            return parts[2], str(one.get("message") or one.get("displayStatus") or parts[2])
    return "ProvisioningFailed", "Azure does not say why"


def _statuses(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    view = found.get("properties", {}).get("instanceView") or {}
    return view.get("statuses") or ()


def state_of(found: Mapping[str, Any], power: str) -> State:
    """Return how a machine stands.

    Parameters
    ----------
    found : mapping
        The machine.
    power : str
        As `power_of` has it, of the same machine or of a view of it that is as new.
    """
    made = found.get("properties", {}).get("provisioningState", "").lower()
    if made == "deleting":
        return "ending"
    if power in ("stopped", "stopping", "deallocated", "deallocating"):
        return "stopped"
    if power == "running":
        return "running"
    if made == "failed":
        return "stopped"
    return "running" if made == "succeeded" and not power else "pending"


def machine_of(
    found: Mapping[str, Any], region: str, power: str, addresses: tuple[str, str] = ("", "")
) -> Machine:
    """Return a virtual machine as a value.

    Parameters
    ----------
    found : mapping
        The machine.
    region : str
        Where it is.
    power : str
        See `state_of`.
    addresses : (str, str)
        The public one and the private one.
    """
    inner = found.get("properties", {})
    zones = found.get("zones") or ()
    said = f"it is {power or inner.get('provisioningState', '')}"
    if inner.get("provisioningState") == "Failed":
        said = ": ".join(failure_of(found))
    return Machine(
        id=str(found["name"]),
        region=region,
        zone=f"{region}-{zones[0]}" if zones else region,
        type=str(inner.get("hardwareProfile", {}).get("vmSize", "")),
        state=state_of(found, power),
        market="spot" if inner.get("priority") == "Spot" else "on-demand",
        public_address=addresses[0],
        private_address=addresses[1],
        reason=said,
        tags=read_tags(found),
    )


def addresses_of(
    interfaces: Iterable[Mapping[str, Any]], addresses: Iterable[Mapping[str, Any]], *, public: bool
) -> dict[str, tuple[str, str]]:
    """Return the public and the private address of each machine that has them by now, by its name.

    Parameters
    ----------
    interfaces, addresses : iterable of mapping
        The interfaces, and the public addresses.
    public : bool
        Whether machines have public ones.
    """
    known = {one["id"].lower(): one.get("properties", {}).get("ipAddress") or "" for one in addresses}
    found = {}
    for one in interfaces:
        inner = one.get("properties", {})
        _, name = place_of((inner.get("virtualMachine") or {}).get("id", ""))
        for address in inner.get("ipConfigurations") or ():
            said = address.get("properties", {})
            outer = known.get((said.get("publicIPAddress") or {}).get("id", "").lower(), "")
            if name and said.get("privateIPAddress") and (outer or not public):
                found[name] = (outer, str(said["privateIPAddress"]))
    return found


def found_as(kind: str, found: Mapping[str, Any], created: str, state: str) -> Found:
    """Return something of ours as a value.

    Parameters
    ----------
    kind : str
        As `Found.kind`.
    found : mapping
        With its name and its tags.
    created : str
        When it was made; empty if that is not known.
    state : str
        How it stands.
    """
    tags = read_tags(found)
    try:
        # digits beyond microseconds are Azure's own, and older Pythons read none of them
        plain = re.sub(r"\.\d+", "", created).replace("Z", "+00:00")
        seconds = datetime.datetime.fromisoformat(plain).timestamp()
    except ValueError:
        seconds = 0.0
    return Found.of(kind, str(found["name"]), tags, seconds, state)


def strangers(resources: Iterable[Mapping[str, Any]], cluster: str) -> tuple[str, ...]:
    """Return what is in a cluster's resource group and not the cluster's: with the group it would go."""

    def is_ours(kind: str, name: str, tags: Mapping[str, str]) -> bool:
        if kind == _SHUTDOWN:  # somebody has seen to it that a machine of ours is switched off
            return "envsync-" in name
        return kind in _OURS and (tags.get(CLUSTER) == cluster or name.startswith("envsync-"))

    return tuple(
        sorted(
            f"{one['type']} {one['name']}"
            for one in resources
            if not is_ours(one["type"].lower(), one["name"].lower(), read_tags(one))
        )
    )


def is_ending(group: Mapping[str, Any]) -> bool:
    """Whether a resource group is being deleted."""
    return bool((group.get("properties") or {}).get("provisioningState") == "Deleting")
