"""A cloud of one page, for what does not need a real one's words. The contract suite keeps it honest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from envsync.errors import CapacityError, CloudError
from envsync.runner.cloud.provider import (
    CLUSTER,
    DEADLINE,
    OWNER,
    Found,
    Machine,
    MachineRequest,
    Market,
    Price,
    Provider,
    Shared,
    Tags,
)

TYPES = ("small", "large")


class FakeProvider(Provider):
    """Machines that are values.

    Parameters
    ----------
    regions : sequence of str
        Each has the zones ``a`` and ``b``.
    room : mapping of (zone, market) to int, optional
        How many machines there are to be had; any number where it does not say.
    """

    name = "fake"

    def __init__(
        self, regions: Sequence[str] = ("north", "south"), room: dict[tuple[str, Market], int] | None = None
    ):
        self.regions = tuple(regions)
        self.room = {} if room is None else room
        self.machines: dict[str, Machine] = {}
        self.shared: dict[str, Shared] = {}
        self.tags: dict[str, Tags] = {}
        self.tokens: dict[str, str] = {}
        self.consoles: dict[str, str] = {}
        self.numbers = itertools.count(1)

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        return (f"{region}-a", f"{region}-b") if machine_type in TYPES else ()

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:
        if machine_type not in TYPES:
            raise CloudError(f"there is no type {machine_type}", where=region, hint="Take another.")
        known = self.shared.get(f"{region}/{tags.cluster}")
        made = known or Shared(region=region, key=tags.cluster, group=tags.cluster, image="image")
        self.shared[f"{region}/{tags.cluster}"] = made
        self.tags[f"{region}/{tags.cluster}"] = tags
        return made

    def create(self, request: MachineRequest) -> Machine:
        if request.token in self.tokens:
            return self.machines[self.tokens[request.token]]
        place = (request.zone, request.market)
        if self.room.get(place, 1) < 1:
            raise CapacityError(f"no {request.type} there", where=request.zone, hint="Elsewhere, perhaps.")
        if place in self.room:
            self.room[place] -= 1
        number = next(self.numbers)
        made = Machine(
            id=f"m-{number}",
            region=request.shared.region,
            zone=request.zone,
            type=request.type,
            state="running",
            market=request.market,
            public_address=f"127.255.0.{number}",
            private_address=f"127.254.0.{number}",
            tags=request.tags.to_dict(),
        )
        self.machines[made.id] = made
        self.tokens[request.token] = made.id
        return made

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        return tuple(
            one for one in self.machines.values() if one.region == region and one.tags[CLUSTER] == cluster
        )

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        for one in ids:
            if one in self.machines and self.machines[one].region == region:
                self.machines[one] = replace(self.machines[one], state="ended", reason="asked for")

    def console(self, region: str, identity: str) -> str:
        return self.consoles.get(identity, "")

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        if any(one.state != "ended" for one in self.describe(region, cluster)):
            return (cluster,)
        self.shared.pop(f"{region}/{cluster}", None)
        return ()

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:
        if machine_type not in TYPES:
            return None
        return Price(amount=0.1, currency="USD", source="made up", date="2026-11-29")

    def disk_price(self, shared: Shared, size: int) -> Price | None:
        return Price(amount=0.0001 * (size or 8), currency="USD", source="made up", date="2026-11-29")

    def everywhere(self) -> tuple[str, ...]:
        return self.regions

    def found(self, region: str) -> tuple[Found, ...]:
        def tagged(kind: str, identity: str, tags: dict[str, str], state: str = "") -> Found:
            return Found(
                kind=kind,
                id=identity,
                cluster=tags[CLUSTER],
                owner=tags[OWNER],
                deadline=tags[DEADLINE],
                state=state,
            )

        there = [one for one in self.machines.values() if one.region == region and one.state != "ended"]
        shared = [self.tags[key] for key, one in self.shared.items() if one.region == region]
        return (
            *(tagged("machine", one.id, dict(one.tags), one.state) for one in there),
            *(tagged("group", tags.cluster, tags.to_dict()) for tags in shared),
        )

    def remove(self, region: str, found: Found) -> bool:
        if found.kind == "machine":
            self.terminate(region, [found.id])
            return True
        return self.close(region, found.cluster) == ()
