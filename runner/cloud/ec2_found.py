"""What a region has with envsync's tags, and how it is ended. A client of boto3 is given to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.ec2_errors import client_error, code_of
from envsync.runner.cloud.provider import CLUSTER, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["found", "remove"]

_STATES = {"shutting-down": "ending", "stopping": "stopped"}
# kind: what lists it, the list in its answer, its name, when it was made, its state
_REQUESTS = (
    "spot request",
    "describe_spot_instance_requests",
    "SpotInstanceRequests",
    "SpotInstanceRequestId",
    "CreateTime",
    "State",
)
_KINDS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("disk", "describe_volumes", "Volumes", "VolumeId", "CreateTime", "State"),
    ("interface", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId", "", "Status"),
    ("address", "describe_addresses", "Addresses", "AllocationId", "", ""),
    (
        "launch template",
        "describe_launch_templates",
        "LaunchTemplates",
        "LaunchTemplateId",
        "CreateTime",
        "",
    ),
    ("group", "describe_security_groups", "SecurityGroups", "GroupId", "", ""),
    ("key", "describe_key_pairs", "KeyPairs", "KeyName", "CreateTime", ""),
)
_UNPAGED = frozenset({"describe_addresses", "describe_key_pairs"})  # they have no pages
_OVER = frozenset({"cancelled", "closed", "failed", "deleting", "deleted"})
_ENDS: dict[str, tuple[str, str, bool]] = {  # what ends it, the parameter, whether that is a list
    "disk": ("delete_volume", "VolumeId", False),
    "interface": ("delete_network_interface", "NetworkInterfaceId", False),
    "address": ("release_address", "AllocationId", False),
    "spot request": ("cancel_spot_instance_requests", "SpotInstanceRequestIds", True),
    "launch template": ("delete_launch_template", "LaunchTemplateId", False),
    "group": ("delete_security_group", "GroupId", False),
    "key": ("delete_key_pair", "KeyName", False),
}
_IN_USE = frozenset(
    {
        "DependencyViolation",
        "InvalidGroup.InUse",
        "VolumeInUse",
        "InvalidIPAddress.InUse",
        "InvalidVolume.InUse",
    }
    | {"InvalidNetworkInterface.InUse", "InvalidParameterValue.InUse"}
)


def found(client: Any) -> tuple[Found, ...]:
    """Return everything that has the tag `CLUSTER`: requests, which make machines, first; keys last."""
    return (
        *_others(client, *_REQUESTS),
        *_machines(client),
        *(one for kind in _KINDS for one in _others(client, *kind)),
    )


def remove(client: Any, one: Found) -> bool:
    """End what is no machine; False if something uses it still."""
    call, parameter, several = _ENDS[one.kind]
    try:
        getattr(client, call)(**{parameter: [one.id] if several else one.id})
    except client_error() as error:
        code = code_of(error)
        if code in _IN_USE:
            return False
        if not code.endswith((".NotFound", ".NotFoundException", "IdNotFound")):
            raise
    return True


def _machines(client: Any) -> Iterator[Found]:
    states = ["pending", "running", "stopping", "stopped", "shutting-down"]
    asked = [_tagged(), {"Name": "instance-state-name", "Values": states}]
    for page in client.get_paginator("describe_instances").paginate(Filters=asked):
        for one in (one for reservation in page["Reservations"] for one in reservation["Instances"]):
            state = str(one["State"]["Name"])
            yield _found("machine", one, one["InstanceId"], one.get("LaunchTime"), _STATES.get(state, state))


def _others(
    client: Any, kind: str, call: str, listed: str, name: str, made: str, state: str
) -> Iterator[Found]:
    if call in _UNPAGED:
        pages = [getattr(client, call)(Filters=[_tagged()])]
    else:
        pages = client.get_paginator(call).paginate(Filters=[_tagged()])
    for page in pages:
        for one in page[listed]:
            stands = str(one.get(state, "")) if state else ""
            # a request that has its machine goes with it, unless it would make another
            if stands not in _OVER and not (stands == "active" and one.get("Type") == "one-time"):
                yield _found(kind, one, one[name], one.get(made), stands)


def _tagged() -> dict[str, Any]:
    return {"Name": "tag-key", "Values": [CLUSTER]}


def _found(kind: str, one: Any, identity: str, made: Any, state: str) -> Found:
    tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags") or one.get("TagSet") or ()}
    return Found.of(kind, identity, tags, made.timestamp() if hasattr(made, "timestamp") else 0.0, state)
