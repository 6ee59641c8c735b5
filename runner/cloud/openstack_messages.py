"""What OpenStack is asked for and what it says, as values. Pure.

A server's metadata are our tags as they are; nova's own tags, which are short, are what it is found by. What
neutron makes has a description of 255 letters, in which the tags are, without the user's own.
"""

from __future__ import annotations

import base64
import datetime
import json
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.labels import as_name
from envsync.runner.cloud.provider import CLUSTER, DEADLINE, OWNER, Found, Machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import MachineRequest, State, Tags

__all__ = [
    "OURS",
    "described",
    "description_of",
    "found_as",
    "group_name",
    "machine_of",
    "rules_of",
    "server_name",
    "server_of",
    "state_of",
    "tag_of",
]

OURS = "envsync"
"""The tag of nova's that all servers of ours have."""

_STATES: dict[str, State] = {
    "BUILD": "pending",
    "SHUTOFF": "stopped",
    "SUSPENDED": "stopped",
    "PAUSED": "stopped",
    "SHELVED": "stopped",
    "SHELVED_OFFLOADED": "stopped",
    "ERROR": "stopped",  # nothing comes of it any more, and it is there until it is deleted
    "SOFT_DELETED": "ended",
    "DELETED": "ended",
}
_DEFAULT_ZONE = "nova"  # what nova calls "no zone"; its guide says never to ask for that by name
_LONGEST = 255  # letters of a description
_KEYS = {"envsync": CLUSTER, "owner": OWNER, "deadline": DEADLINE, "server": "server"}


def tag_of(cluster: str) -> str:
    """Return the tag of nova's by which a cluster's servers are found: two clusters may share one."""
    return as_name(f"envsync-{cluster}", longest=60)


def group_name(cluster: str) -> str:
    """Return the name of a cluster's security group."""
    return as_name(f"envsync-{cluster}")


def server_name(request: MachineRequest) -> str:
    """Return a server's name, which is of its token."""
    return as_name(f"envsync-{request.tags.cluster}-{request.token[:12]}")


def description_of(tags: Tags, server: str = "") -> str:
    """Return a description that says whose something is.

    Parameters
    ----------
    tags : Tags
        Whose.
    server : str
        The id of the server that it is for.

    Raises
    ------
    CloudError
        The names are too long for that.
    """
    said = {"envsync": tags.cluster, "owner": tags.owner, "deadline": tags.deadline, "server": server}
    text = json.dumps({key: value for key, value in said.items() if value}, separators=(",", ":"))
    if len(text) > _LONGEST:
        raise CloudError(
            f"the names of the cluster and its owner are too long: {len(text)} letters of {_LONGEST}",
            where=tags.cluster,
            hint="Give the cluster a shorter name.",
        )
    return text


def described(description: str | None) -> dict[str, str]:
    """Return the tags in a description, and the ``server``; nothing if it is not ours."""
    try:
        said = json.loads(description or "")
    except ValueError:
        return {}
    if not isinstance(said, dict) or OURS not in said:
        return {}
    return {_KEYS[key]: str(value) for key, value in said.items() if key in _KEYS}


def rules_of(group: str, reached_from: Sequence[str]) -> list[dict[str, Any]]:
    """Return what may come in: ssh from where the user said, everything from the cluster's own servers."""
    common = {"security_group_id": group, "direction": "ingress", "protocol": "tcp"}
    ssh = [
        {
            "ether_type": "IPv6" if ":" in one else "IPv4",
            "port_range_min": 22,
            "port_range_max": 22,
            "remote_ip_prefix": one,
        }
        for one in reached_from
    ]
    among = [
        {"ether_type": kind, "port_range_min": 1, "port_range_max": 65535, "remote_group_id": group}
        for kind in ("IPv4", "IPv6")
    ]
    return [{**common, **one} for one in (*ssh, *among)]


def server_of(
    request: MachineRequest, *, flavor: str, network: str, config_drive: bool = False
) -> dict[str, Any]:
    """Return the server to ask for, in the SDK's words."""
    asked: dict[str, Any] = {
        "name": server_name(request),
        "flavor_id": flavor,
        "networks": [{"uuid": network}],
        "security_groups": [{"name": request.shared.group}],  # nova takes an id for that, too
        "metadata": request.tags.to_dict(),
        "tags": [OURS, tag_of(request.tags.cluster)],
        "user_data": base64.b64encode(request.user_data.encode()).decode(),
    }
    if request.zone and request.zone != _DEFAULT_ZONE:
        asked["availability_zone"] = request.zone
    if config_drive:
        asked["config_drive"] = True
    if request.disk:
        asked["block_device_mapping"] = [
            {
                "boot_index": 0,
                "uuid": request.shared.image,
                "source_type": "image",
                "destination_type": "volume",
                "volume_size": request.disk,
                "delete_on_termination": True,
            }
        ]
    else:
        asked["image_id"] = request.shared.image
    return asked


def state_of(server: Any) -> State:
    """Return how a server stands. What it does meanwhile, such as a reboot, is running."""
    if server.task_state in ("deleting", "soft-deleting"):
        return "ending"
    return _STATES.get(server.status, "running")


def machine_of(server: Any, region: str, outer: str | None = None) -> Machine:
    """Return a server as a value.

    Parameters
    ----------
    server : Server
        The SDK's.
    region : str
        Where it is.
    outer : str, optional
        Its floating address as neutron says it, empty if it has none yet; None: as nova says it, and without
        one its fixed address is what it is reached by.
    """
    addresses = [one for each in (server.addresses or {}).values() for one in each]
    addresses.sort(key=lambda one: one.get("version") != 4)
    fixed = [str(one["addr"]) for one in addresses if one.get("OS-EXT-IPS:type") != "floating"]
    floating = [str(one["addr"]) for one in addresses if one.get("OS-EXT-IPS:type") == "floating"]
    fault = (server.fault or {}).get("message", "")
    return Machine(
        id=str(server.id),
        region=region,
        zone=str(server.availability_zone or ""),
        type=str((server.flavor and (server.flavor.original_name or server.flavor.id)) or ""),
        state=state_of(server),
        public_address=next(iter([*floating, *fixed]), "") if outer is None else outer,
        private_address=next(iter(fixed), ""),
        reason=fault or f"it is {server.status}",
        tags=dict(server.metadata or {}),
    )


def found_as(kind: str, one: Any, tags: Mapping[str, str], state: str = "") -> Found:
    """Return something of ours as a value."""
    try:
        created = datetime.datetime.fromisoformat(str(one.created_at).replace("Z", "+00:00"))
    except ValueError:
        created = datetime.datetime.fromtimestamp(0, datetime.timezone.utc)
    if created.tzinfo is None:
        created = created.replace(tzinfo=datetime.timezone.utc)
    return Found.of(kind, str(one.id), tags, created.timestamp(), state)
