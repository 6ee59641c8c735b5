"""Adaptive scaling in whole jobs, of one group; what waits in a queue is not asked for again and again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy import Adaptive
from distributed.protocol import pickle

from envsync.errors import ClusterError
from envsync.plugins.carried import Carried
from envsync.plugins.demand import demand

if TYPE_CHECKING:
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.groups import Group

__all__ = ["JobAdaptive"]

_PATIENCE = 60.0  # seconds for which jobs have to be too many before they go: a queue gives them up once


class JobAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's Adaptive for jobs: what it plans and closes are jobs, which are some workers each.

    A job goes only whole; what waits goes first, the youngest first, then jobs whose workers are all idle.

    Parameters
    ----------
    cluster : SyncedCluster
        On a batch system.
    group : Group
        Whose jobs it is about; others stay as they are.
    minimum, maximum : int, optional
        Workers.
    wait_count : int, optional
        How often in a row jobs have to be too many before they go; if not given, as often as takes a minute.
    **rest
        As distributed's.
    """

    def __init__(self, cluster: SyncedCluster, *, group: Group, **rest: Any) -> None:
        self.group = group
        if rest.get("wait_count") is None:
            given = rest.get("interval")
            interval = parse_timedelta(
                dask.config.get("distributed.adaptive.interval") if given is None else given, "seconds"
            )
            usual = dask.config.get("distributed.adaptive.wait-count")
            rest["wait_count"] = max(usual, math.ceil(_PATIENCE / interval)) if interval else usual
        super().__init__(cluster, **rest)

    @property
    def plan(self) -> set[str]:
        """Jobs that there should be."""
        return set(self._names())

    @property
    def requested(self) -> set[str]:
        """Jobs that were submitted."""
        return {name for name in self._names() if name in self.cluster.workers}

    @property
    def observed(self) -> set[str]:
        """Jobs whose workers the scheduler knows."""
        there = {str(name).rpartition("-")[0] for name in self.cluster.observed}
        return {name for name in self._names() if name in there}

    async def target(self) -> int:
        """Return how many workers there should be."""
        if not self.group.name:
            return int(await super().target())
        default = self.group is self.cluster.fleet.jobs.backend.group
        arguments = (sorted(self.plan), self.group.offers, default, self.target_duration)
        answer = await self.scheduler.run_function(
            function=pickle.dumps(Carried(demand)),
            args=pickle.dumps(arguments),
            kwargs=pickle.dumps({}),
            wait=True,
        )
        if answer["status"] != "OK":
            raise ClusterError(f"the scheduler cannot count tasks: {answer.get('exception_text') or answer}")
        return int(answer["result"])

    async def safe_target(self) -> int:
        """Return how many jobs there should be, between minimum and maximum."""
        return int(max(min(self.group.jobs_for(await self.target()), self._most), self._least))

    @property
    def _least(self) -> int:
        return self.group.jobs_for(self.minimum)

    @property
    def _most(self) -> float:
        return float(self.maximum // self.group.workers_per_job)  # infinite still, if it is

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Return what to do to have so many jobs."""
        names = self._names()
        surplus = len(names) - target
        if surplus <= 0:
            self.close_counts.clear()
            more = surplus < 0 and self.cluster.fleet.jobs.may_grow
            return {"status": "up", "n": target} if more else {"status": "same"}
        there = self.observed
        going = self.cluster.fleet.first_to_go(name for name in names if name not in there)[:surplus]
        if len(going) < surplus:
            idle = self.cluster.fleet.idle_to_go(await self._idle(there))
            going += idle[: surplus - len(going)]
        if (over := len(names) - len(going) - max(self._most, self._least)) > 0:  # busy or not
            rest = [name for name in names if name not in going]
            going += self.cluster.fleet.first_to_go(rest)[: int(over)]
        counts = {name: self.close_counts.get(name, 0) + 1 for name in going}
        self.close_counts.clear()
        self.close_counts.update(counts)
        if all(count < self.wait_count for count in counts.values()):
            return {"status": "same"}
        gone = [name for name, count in counts.items() if count >= self.wait_count]
        for name in gone:
            del self.close_counts[name]
        return {"status": "down", "workers": gone}

    async def scale_up(self, n: int) -> None:
        """Ask for jobs until there are so many."""
        self.cluster.have_jobs({self.group.name: n})

    async def scale_down(self, workers: list[str]) -> None:
        """End jobs, their workers retire first."""
        self.cluster.fleet.end(workers)
        if self.cluster.status == Status.running:
            await self.cluster

    async def _idle(self, there: set[str]) -> list[str]:
        """Return the jobs whose workers have nothing to do, and hold nothing that has no room elsewhere."""
        free = await self.scheduler.workers_to_close(
            key=pickle.dumps(_job_of), attribute="name", **self._workers_to_close_kwargs
        )
        return [name for name in dict.fromkeys(str(one).rpartition("-")[0] for one in free) if name in there]

    def _names(self) -> list[str]:
        fleet = self.cluster.fleet
        return list(fleet.names(self.group)) if fleet is not None else []


# a lambda: that is pickled by value, and schedulers have no envsync
_job_of = lambda worker: str(worker.name).rpartition("-")[0]  # noqa: E731
