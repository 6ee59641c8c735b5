"""What is sent to Google Compute Engine, and what it says, as values of ours. Pure; the SDK is handed in."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.labels import as_labels, as_name, as_tags
from envsync.runner.cloud.provider import Found, Machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import MachineRequest, State, Tags

__all__ = [
    "SCOPE",
    "STATES",
    "described",
    "firewall_rules",
    "found_as",
    "group_of",
    "instance_of",
    "machine_of",
]

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
STATES: dict[str, State] = {
    "RUNNING": "running",
    "STOPPING": "ending",
    "DEPROVISIONING": "ending",
    "SUSPENDING": "stopped",
    "SUSPENDED": "stopped",
    "TERMINATED": "stopped",  # switched off: what is deleted is not listed
}
_LET_IN, _KEPT_OUT = 800, 900  # priorities: before a network's own rules, which may let everybody in


def firewall_rules(
    v1: Any, group: str, region: str, tags: Tags, *, network: str, reached_from: Sequence[str]
) -> list[Any]:
    """Return what may reach the machines: ssh from where the user said, themselves, and nothing else."""
    common: dict[str, Any] = {
        "network": f"global/networks/{network}",
        "target_tags": [group],
        "direction": "INGRESS",
        "description": json.dumps({**tags.to_dict(), "region": region}),
    }
    ssh = [v1.Allowed(I_p_protocol="tcp", ports=["22"])]
    every = [v1.Allowed(I_p_protocol="all")]
    old, new = (
        [one for one in reached_from if (":" in one) == six] for six in (False, True)
    )  # one rule takes addresses of one kind
    rules = [
        v1.Firewall(name=f"{group}-in", priority=_LET_IN, allowed=every, source_tags=[group], **common),
        v1.Firewall(
            name=f"{group}-none",
            priority=_KEPT_OUT,
            denied=[v1.Denied(I_p_protocol="all")],
            source_ranges=["0.0.0.0/0"],
            **common,
        ),
    ]
    rules += [
        v1.Firewall(name=f"{group}-{name}", priority=_LET_IN, allowed=ssh, source_ranges=ranges, **common)
        for name, ranges in (("ssh", old), ("ssh6", new))
        if ranges
    ]
    return rules


def instance_of(
    v1: Any,
    request: MachineRequest,
    *,
    network: str,
    subnetwork: str,
    service_account: str,
    accelerated: bool,
) -> Any:
    """Return the instance to insert."""
    zone = request.zone
    labels = as_labels(request.tags.to_dict())
    spot = request.market == "spot"
    scheduling = v1.Scheduling(
        automatic_restart=False,
        provisioning_model="SPOT" if spot else "STANDARD",
        on_host_maintenance="TERMINATE" if spot or accelerated else "MIGRATE",
    )
    if request.tags.deadline:  # Google itself deletes it then, whatever runs there
        scheduling.termination_time = request.tags.deadline
    if spot or request.tags.deadline:
        scheduling.instance_termination_action = "DELETE"
    disk = v1.AttachedDiskInitializeParams(
        source_image=request.shared.image,
        disk_type=f"zones/{zone}/diskTypes/pd-balanced",
        labels=labels,
    )
    if request.disk:
        disk.disk_size_gb = request.disk
    interface = v1.NetworkInterface(
        network=f"global/networks/{network}",
        access_configs=[v1.AccessConfig(name="External NAT", type_="ONE_TO_ONE_NAT")],
    )
    if subnetwork:
        interface.subnetwork = f"regions/{request.shared.region}/subnetworks/{subnetwork}"
    accounts = [v1.ServiceAccount(email=service_account, scopes=[SCOPE])]
    return v1.Instance(
        name=as_name(f"envsync-{request.tags.cluster}-{request.token[:12]}"),
        machine_type=f"zones/{zone}/machineTypes/{request.type}",
        labels=labels,
        disks=[v1.AttachedDisk(boot=True, auto_delete=True, initialize_params=disk)],
        network_interfaces=[interface],
        scheduling=scheduling,
        service_accounts=accounts if service_account else [],
        tags=v1.Tags(items=[request.shared.group]),
        metadata=v1.Metadata(
            items=[
                v1.Items(key="user-data", value=request.user_data),
                v1.Items(key="block-project-ssh-keys", value="TRUE"),
            ]
        ),
    )


def group_of(cluster: str, region: str) -> str:
    """Return the name that a cluster's rules begin with; it is a tag of its instances, too."""
    return as_name(f"envsync-{cluster}-{region}", longest=58)  # and "-ssh6"


def described(rule: Any) -> dict[str, str]:
    """Return the tags in a rule's description, and its region; nothing for what is not ours."""
    try:
        tags = json.loads(rule.description)
    except ValueError:
        return {}
    return tags if isinstance(tags, dict) else {}


def machine_of(found: Any, region: str) -> Machine:
    """Return an instance as a value."""
    inner = found.network_interfaces[0] if found.network_interfaces else None
    outer = inner.access_configs[0] if inner and inner.access_configs else None
    return Machine(
        id=str(found.name),
        region=region,
        zone=found.zone.rpartition("/")[2],
        type=found.machine_type.rpartition("/")[2],
        state=STATES.get(found.status, "pending"),
        market="spot" if found.scheduling.provisioning_model == "SPOT" else "on-demand",
        public_address=outer.nat_i_p if outer else "",
        private_address=inner.network_i_p if inner else "",
        reason=found.status_message or f"it is {found.status}",
        tags=as_tags(found.labels),
    )


def found_as(kind: str, identity: str, tags: Mapping[str, str], one: Any, state: str) -> Found:
    """Return something of ours as a value."""
    try:
        created = datetime.datetime.fromisoformat(one.creation_timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        created = 0.0
    return Found.of(kind, identity, tags, created, state)
