"""Which worker goes where: the hosts, how many each has room for, and who sits on what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError
from envsync.runner.gpus import demand_one_each
from envsync.runner.layout import WorkerSpec, layout, local_layout, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.options import Options
    from envsync.runner.places import Place

__all__ = ["Seats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """The workers that a cluster's hosts have room for.

    Attributes
    ----------
    places : tuple of Place
        The hosts that run workers.
    layouts : tuple of tuple of WorkerSpec
        The workers that each has room for, at least one; beyond that they repeat.
    initial : int
        How many there are at the start.
    local : bool
        Whether workers have plain numbers for names, as LocalCluster's have.
    """

    places: tuple[Place, ...]
    layouts: tuple[tuple[WorkerSpec, ...], ...]
    initial: int
    local: bool

    @classmethod
    def of(cls, options: Options, places: Sequence[Place], *, workers_on_first: bool) -> Seats:
        """Lay out the hosts of a cluster.

        Parameters
        ----------
        options : Options
            What the user asked for.
        places : sequence of Place
            The scheduler's host first.
        workers_on_first : bool
            Whether that host runs workers too.
        """
        if options.local and options.gpu_worker is None:
            from dask.system import CPU_COUNT
            from distributed.system import MEMORY_LIMIT

            specs, form = local_layout(
                n_workers=options.n_workers,
                threads_per_worker=options.threads_per_worker,
                memory_limit=options.memory_limit,
                cores=CPU_COUNT,
                memory=MEMORY_LIMIT,
            )
            return cls(places=tuple(places[:1]), layouts=((form,),), initial=len(specs), local=True)
        ours = list(places) if workers_on_first else list(places[1:])
        counts: list[int | None] = [None] * len(ours)
        if options.n_workers is not None and options.gpu_worker is None:
            counts = [max(1, count) for count in spread(options.n_workers, len(ours))]
        layouts = [
            layout(
                place.session.facts,
                n_workers=count,
                threads_per_worker=options.threads_per_worker,
                memory_limit=options.memory_limit,
            )
            for place, count in zip(ours, counts, strict=True)
        ]
        if options.gpu_worker is not None:
            for place, specs in zip(ours, layouts, strict=True):
                demand_one_each(specs, place.session.facts, place.name)
        total = sum(map(len, layouts)) if options.n_workers is None else options.n_workers
        return cls(places=tuple(ours), layouts=tuple(layouts), initial=total, local=options.local)

    def form(self) -> tuple[Place, WorkerSpec]:
        """Return what a worker looks like in general."""
        return self.places[0], self.layouts[0][0]

    def take(self, taken: Mapping[Any, Mapping[str, Any]]) -> tuple[str | int, Place, WorkerSpec]:
        """Return the name, host and form of the next worker.

        Parameters
        ----------
        taken : mapping
            SpecCluster's specifications of the workers that there are.

        Raises
        ------
        AgentError
            Every host was lost.
        """
        live = [index for index, place in enumerate(self.places) if place.session.ended is None]
        if not live:
            raise AgentError("every host of the cluster was lost", hint="Start a new cluster.")
        names = [self._names(index, taken) for index in range(len(self.places))]
        host = min(live, key=lambda index: (len(names[index]) / len(self.layouts[index]), index))
        seat = next(seat for seat in range(len(taken) + 1) if self._name(host, seat) not in taken)
        specs = self.layouts[host]
        return self._name(host, seat), self.places[host], specs[seat % len(specs)]

    def _names(self, host: int, taken: Mapping[Any, Mapping[str, Any]]) -> list[Any]:
        place = self.places[host]
        return [name for name, spec in taken.items() if spec["options"]["place"] is place]

    def _name(self, host: int, seat: int) -> str | int:
        if self.local:
            return seat
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.places[host].name)[:60]}-{seat}"
