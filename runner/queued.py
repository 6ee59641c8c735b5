"""What differs for clusters whose workers are jobs: scaling in groups and jobs, and how these stand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import html
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.utils import NoOpAwaitable

from envsync.errors import EnvsyncError
from envsync.runner.jobrows import JobTable

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.runner.fleet import Fleet
    from envsync.runner.jobends import End
    from envsync.runner.jobs import Jobs
    from envsync.runner.machines import Machines
    from envsync.runner.workergroup import WorkerGroup

__all__ = ["QueuedCluster"]

_FAILURES = 10  # jobs in a row that end before their workers are there, after which no more are asked for


class QueuedCluster(SpecCluster):  # type: ignore[misc]
    """A SpecCluster whose workers may be jobs, or machines; any other SpecCluster while it has no queue.

    Attributes
    ----------
    queue : Jobs, Machines or None
        What its jobs, or machines, share.
    fleet : Fleet or None
        How many there should be.
    n_workers : int, mapping or None
        How many are wanted at the start.
    hooks : Hooks
        Told about jobs.
    """

    queue: Jobs | Machines | None = None
    fleet: Fleet | None = None
    n_workers: int | Mapping[str, int] | None = None
    hooks: Hooks
    worker_spec: dict[Any, Any]
    workers: dict[Any, Any]

    def _plan_jobs(self, fleet: Fleet) -> None:
        """Have the jobs that are wanted at the start."""
        self.fleet = fleet
        self.new_spec = fleet.spec(fleet.jobs.backend.group)
        fleet.have(fleet.wanted(self.n_workers))

    def _job_left(self, job: WorkerGroup, why: str, end: End) -> None:
        """Report a job that is over, forget it, and ask for another if the system took this one."""
        if self.status in (Status.closing, Status.closed, Status.failed):
            return
        text = f"{job.name}: {why}"
        tell = {"failed": self.hooks.failed, "taken": self.hooks.warning}.get(end, self.hooks.note)
        tell("cluster", text)
        self._cluster_manager_logs.append((datetime.datetime.now(), text))
        if self.workers.get(job.name) is not job:
            return
        del self.workers[job.name]
        spec = self.worker_spec.pop(job.name, None)
        self._adapt_no_more()
        if end in ("taken", "retired") and spec is not None and self.fleet is not None and not self._adapts:
            self.worker_spec.update(self.fleet.new(job.group))
            self.loop.add_callback(self._correct)

    def _adapt_no_more(self) -> None:
        """Ask for no more jobs by itself where many in a row have failed."""
        if self.queue is not None and self.queue.failures_in_a_row >= _FAILURES and self._adapts:
            self._adaptive.stop()
            what = f"{_FAILURES} {self.queue.noun} in a row failed: nothing adapts any more"
            self.hooks.failed("cluster", what)

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        """Wait as SpecCluster does, but not for those whose jobs have failed."""
        waiting = asyncio.ensure_future(super()._wait_for_workers(n_workers, timeout))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=0.2)
                expected = sum(len(spec.get("group", ("",))) for spec in self.worker_spec.values())
                if self.queue and self.queue.failures and expected < n_workers and not self._adapts:
                    raise self.queue.failure(
                        f"{n_workers} workers will not be there: {self.queue.failures[-1]}",
                        where="cluster",
                        hint="See to what it says, then scale() asks for what is missing.",
                    )
            waiting.result()
        finally:
            waiting.cancel()

    @property
    def _adapts(self) -> bool:
        """Whether `adapt` sees to how many workers there are."""
        return self._adaptive is not None and self._adaptive.periodic_callback is not None

    @property
    def jobs(self) -> JobTable:
        """The jobs of a batch system, as it says they stand, or the rented machines; none on other backends.

        A tuple of `Row` that prints as a table; ``to_dicts()`` is for pandas. Some of those that have ended
        are in it still.
        """
        return self.queue.rows() if self.queue is not None else JobTable()

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        status = (cluster_status or "") + self._jobs_html(colspan=2)
        return str(super()._repr_html_(cluster_status=status))

    def _scaling_status(self) -> str:
        return f"{super()._scaling_status()}<table>{self._jobs_html()}</table>"

    def _jobs_html(self, colspan: int = 1) -> str:
        """Return a row of a table that says how the jobs stand; nothing where there are none."""
        if self.queue is None:
            return ""
        jobs = self.jobs
        text, head = html.escape(jobs.summary), f"{jobs.noun.capitalize()}s"
        return (
            f"<tr><td colspan={colspan} style='text-align: left;'><strong>{head}:</strong> {text}</td></tr>"
        )

    def scale(
        self,
        n: int | Mapping[str, int] | None = None,
        memory: Any = None,
        cores: Any = None,
        *,
        jobs: int | Mapping[str, int] | None = None,
    ) -> Any:
        """Have so many workers; on a batch system as many jobs as that takes, and what waits goes first.

        Parameters
        ----------
        n : int or mapping
            How many. Where there are groups of jobs, a number is of the first, ``{"gpu": 4}`` of those that
            are named; the others stay as they are.
        memory, cores
            As for SpecCluster: of all together.
        jobs : int or mapping, optional
            On a batch system: how many jobs, whatever the number of workers in each.
        """
        if self.fleet is None:
            if jobs is not None or isinstance(n, Mapping):
                raise TypeError("jobs and groups of them are a batch system's: say how many workers")
            return super().scale(n or 0, memory=memory, cores=cores)
        if self.queue is not None:
            self.queue.failures.clear()  # who asks again has heard of them
        none = (n, memory, cores, jobs) == (None,) * 4
        self.have_jobs(self.fleet.wanted(0 if none else n, memory=memory, cores=cores, jobs=jobs))
        return None if not self.asynchronous else NoOpAwaitable()

    def have_jobs(self, wanted: Mapping[str, int]) -> None:
        """Have so many jobs of each group that is named; none of any, once the cluster closes."""
        assert self.fleet is not None
        closing = self.status in (Status.closing, Status.closed)
        self.fleet.have(dict.fromkeys(self.fleet.groups, 0) if closing else wanted)
        self.loop.add_callback(self._correct)

    async def _correct(self) -> None:
        """Have what should be there; what was refused has been told."""
        with contextlib.suppress(EnvsyncError):
            await self._correct_state()

    def adapt(self, *args: Any, group: str | None = None, **options: Any) -> Any:
        """Scale by itself, as there is work; on a batch system in whole jobs.

        Jobs go when they have been too many for a minute, or ``wait_count`` times in a row: one that is given
        up while it waits would have to queue again.

        Parameters
        ----------
        minimum, maximum : int
            Workers; or ``minimum_jobs``, ``maximum_jobs``, ``minimum_cores`` and so on.
        group : str, optional
            Whose jobs; the first group's if not given. One group adapts at a time: others stay as they are.
        **options
            As for SpecCluster: ``interval``, ``wait_count``, ``target_duration``, ...
        """
        if self.fleet is None:
            if group is not None:
                raise TypeError("groups of jobs are a batch system's")
            return super().adapt(*args, **options)
        from envsync.runner.adapting import JobAdaptive

        found = self.fleet.group(group)
        options.update(self.fleet.bounds(found, options))
        if self.queue is not None:
            self.queue.asked_again()
        return super().adapt(*(args or [partial(JobAdaptive, group=found)]), **options)
