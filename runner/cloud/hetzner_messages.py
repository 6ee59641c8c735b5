"""What Hetzner says, read: plain values of its library's objects, and nothing is asked."""

from __future__ import annotations

import base64
import datetime
import hashlib
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.labels import as_labels, as_tags
from envsync.runner.cloud.provider import CLUSTER, Found, Machine, Price

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.cloud.provider import State

__all__ = ["MACHINES", "STATES", "as_found", "as_machine", "as_price", "fingerprint", "of_cluster"]

MACHINES = {"x86": "x86_64", "arm": "aarch64"}
STATES: dict[str, State] = {
    "running": "running",
    "stopping": "stopped",
    "off": "stopped",
    "deleting": "ending",
}


def as_machine(server: Any) -> Machine:
    """Return a server as a machine."""
    public, private = server.public_net, server.private_net or ()
    return Machine(
        id=str(server.name),
        region=str(server.location.name),
        zone=str(server.location.name),
        type=str(server.server_type.name),
        state=STATES.get(server.status, "pending"),
        public_address=(public.ipv4.ip or "") if public and public.ipv4 else "",
        private_address=private[0].ip or "" if private else "",
        reason=f"it is {server.status}",
        tags=as_tags(server.labels),
    )


def as_found(kind: str, one: Any, identity: str, state: str = "") -> Found:
    """Return what has labels of ours, as something that was found."""
    tags = as_tags(one.labels)
    return Found.of(kind, identity, tags, one.created.timestamp() if one.created else 0.0, state)


def of_cluster(cluster: str) -> str:
    """Return what selects a cluster's things by their labels."""
    return ",".join(f"{key}=={value}" for key, value in as_labels({CLUSTER: cluster}).items())


def as_price(pricing: Mapping[str, Any], machine_type: str, location: str) -> Price | None:
    """Return the price of a server with its public address, from the price list; None if that has none."""
    servers = [one for one in pricing["server_types"] if one["name"] == machine_type]
    addresses = [one for one in pricing.get("primary_ips", ()) if one["type"] == "ipv4"]
    hourly = [_hourly(one, location) for one in (*servers, *addresses)]
    if not servers or hourly[0] is None:
        return None
    return Price(
        amount=round(sum(one for one in hourly if one is not None), 6),
        currency=str(pricing["currency"]),
        source="Hetzner's price list, with an IPv4 address, without VAT",
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    )


def _hourly(product: dict[str, Any], location: str) -> float | None:
    for one in product["prices"]:
        if one["location"] == location:
            return float(one["price_hourly"]["net"])
    return None


def fingerprint(public_key: str) -> str:
    """Return a key's MD5, as Hetzner names keys."""
    digest = hashlib.md5(base64.b64decode(public_key.split()[1]), usedforsecurity=False).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
