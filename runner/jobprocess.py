"""One job of a cluster, as SpecCluster wants it: from the queue to workers, and again if it is run again."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from envsync.errors import AgentError, EnvsyncError, HostError, ProcessDied
from envsync.runner.jobs import let_go
from envsync.runner.layout import layout
from envsync.runner.places import Place
from envsync.runner.processes import WorkerProcess
from envsync.runner.verification import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.batch import Job
    from envsync.runner.groups import Group
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.jobrows import Row
    from envsync.runner.jobs import Jobs
    from envsync.runner.provision import Prepared

__all__ = ["JobProcess"]

_MARGIN = 60.0  # seconds before a job's end at which its workers retire, or
_PART = 0.05  # of its time, if that is more; and over how much of that they do so, one after another
_CLOSE = 20.0  # seconds that a job has to end when it is asked to


class JobProcess(ProcessInterface):  # type: ignore[misc]
    """One job, as SpecCluster wants it: a group of workers.

    It is started once it is submitted: nobody waits for a queue. What becomes of it comes later.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as nodes reach it.
    jobs : Jobs
        What it shares with the others.
    group : Group
        What it asks for.
    name : str
        Its workers are called by it.
    """

    def __init__(self, scheduler: str, *, jobs: Jobs, group: Group, name: str) -> None:
        super().__init__()
        self.scheduler_address = scheduler
        self.jobs = jobs
        self.group = group
        self.name = name
        self.id = ""
        self.workers: list[WorkerProcess] = []
        self.trouble = ""
        self._host: CarriedHost | None = None
        self._prepared: Prepared | None = None
        self._life: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Submit it."""
        try:
            self.id = await self.jobs.submit(self)
        except BaseException:
            self.status = Status.failed
            raise
        await super().start()
        if not self.id:  # nobody wants it any more
            return
        self._life = asyncio.ensure_future(self._live())

    def heard(self, job: Job) -> None:
        """Hear from the batch system how it stands."""
        if self.status != Status.running:
            return
        if job.ended:
            self._ended.set()
        elif self.jobs.backend.system.never(job):
            self.trouble = f"it will never start: {job.reason}"
            self._ended.set()

    def row(self) -> Row:
        """Return it for people."""
        running = sum(worker.status == Status.running for worker in self.workers)
        return self.jobs.row(self.id, self.name, running)

    async def close(self) -> None:
        """End it, its workers first; silent if it has ended."""
        if self.status in (Status.closing, Status.closed):
            return
        self.status = Status.closing
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        await self._drop_workers()
        if self.id and not self.jobs.job(self.id).ended:
            with contextlib.suppress(EnvsyncError):
                await asyncio.wait_for(self.jobs.driver.cancel([self.id]), _CLOSE)
        await super().close()

    async def _live(self) -> None:
        """From the queue to workers, and again if the job is run again; until it has ended."""
        ended = asyncio.ensure_future(self._ended.wait())
        up: asyncio.Task[asyncio.Event] | None = None
        try:
            while not ended.done():
                up = asyncio.ensure_future(self._come_up())
                await asyncio.wait({up, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not up.done():
                    up.cancel()
                    await asyncio.wait({up})
                    break
                lost = asyncio.ensure_future(up.result().wait())
                await asyncio.wait({lost, ended}, return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
                await self._drop_workers()
            why = await self.jobs.why(self.id)
        except EnvsyncError as error:
            found = in_words(getattr(error, "differences", ()))
            words = f" ({'; '.join(found)})" if found else ""
            why = f"{error.where or self.id}: {error.message}{words}"
            if isinstance(error, (HostError, AgentError, ProcessDied)):  # it may be that the job was ended
                why = f"{why}; {await self.jobs.why(self.id)}"
        finally:
            ended.cancel()
            if up is not None:
                up.cancel()  # nothing comes up in a job that is closed
        if self.status == Status.running:
            self.status = Status.closed
            self._event_finished.set()
            await self._drop_workers()
            with contextlib.suppress(EnvsyncError):
                await self.jobs.driver.cancel([self.id])
            self.jobs.lost(self, f"{self.trouble}; {why}" if self.trouble else why)

    async def _come_up(self) -> asyncio.Event:
        """Wait for its call, make the environment there, start its workers; return what tells of its loss."""
        jobs, lost = self.jobs, asyncio.Event()
        host = await jobs.board.answer(self.id, noticed=self._noticed, lost=lambda _: lost.set())
        self._host = host
        prepared = await jobs.prepare(host, self.id)
        self._prepared = prepared
        place = Place.of(prepared)
        specs = zip(self.group.suffixes, self._layout(prepared), strict=True)
        self.workers = [self._worker(place, self.name + suffix, spec) for suffix, spec in specs]
        await asyncio.gather(*(worker.start() for worker in self.workers))
        return lost

    def _layout(self, prepared: Prepared) -> Sequence[Any]:
        """Lay out what the job was given of its node."""
        facts = dict(prepared.session.facts)
        request = self.group.request
        for key, asked in (("cores", request.cores), ("memory", request.memory)):
            if asked:
                facts[key] = min(int(facts.get(key) or asked), asked)
        return layout(
            facts,
            n_workers=self.group.workers_per_job,
            threads_per_worker=self.jobs.options.threads_per_worker,
            memory_limit=self.jobs.options.memory_limit,
        )

    def _worker(self, place: Place, name: str, spec: Any) -> WorkerProcess:
        jobs = self.jobs
        config = jobs.options.worker(spec, encrypted=jobs.encrypted)
        offered = dict(self.group.resources)
        if self.group.resource:
            offered[self.group.resource] = spec.nthreads  # whoever asks for one has a thread
        config["options"]["resources"] = {**offered, **(config["options"]["resources"] or {})} or None
        walltime = self.group.request.walltime
        if walltime is not None and "lifetime" not in jobs.options.worker_kwargs:
            life = max(walltime / 2, walltime - max(_MARGIN, _PART * walltime))
            config["options"].update(lifetime=f"{life:.0f} s", lifetime_stagger=f"{_PART * life:.0f} s")
        return WorkerProcess(
            self.scheduler_address,
            launch=jobs.launch,
            place=place,
            name=name,
            config=config,
            nthreads=spec.nthreads,
            memory_limit=spec.memory_limit,
        )

    def _noticed(self, number: int) -> None:
        """The job was sent a signal: its end is near, and what only its workers hold has to go."""
        self.jobs.launch.hooks.warning(
            str(self._host.name if self._host else self.id), f"the job got signal {number}"
        )

    async def _drop_workers(self) -> None:
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True)
        prepared, self._prepared = self._prepared, None
        host, self._host = self._host, None
        await let_go(prepared, host)
