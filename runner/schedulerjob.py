"""The job that a cluster's scheduler runs in: when it ends, so does the cluster."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envsync.errors import JobFailed
from envsync.runner.places import Place
from envsync.runner.silence import LOOKS, Silence
from envsync.runner.workergroup import let_go

if TYPE_CHECKING:
    from envsync.runner.batch import Job, JobRequest
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.jobrows import Row
    from envsync.runner.jobs import Jobs
    from envsync.runner.provision import Prepared
    from envsync.runner.queues import Batch

__all__ = ["SchedulerJob", "asked_for_scheduler"]

_SHORT = 300.0  # seconds before its end at which that is told


def asked_for_scheduler(backend: Batch, request: JobRequest) -> JobRequest:
    """Return what the scheduler's job asks for, of what the default group's jobs do: a little of a node."""
    return replace(
        request,
        cores=backend.scheduler_cores,
        memory=backend.scheduler_memory or request.memory,
        gpus=None,
        gres="",
        walltime=backend.scheduler_time or request.walltime,
        extra=backend.scheduler_extra,
    )


class SchedulerJob:
    """The job that the scheduler runs in. Made by `submit`."""

    name = "scheduler"
    over = False  # it is not forgotten

    def __init__(self, jobs: Jobs, id_: str) -> None:
        self.jobs = jobs
        self.id = id_
        self.has_called = False
        self.ended = asyncio.Event()
        self._host: CarriedHost | None = None
        self._prepared: Prepared | None = None
        self._warned = False
        self._telling: asyncio.Task[None] | None = None

    @classmethod
    async def submit(cls, jobs: Jobs) -> SchedulerJob:
        """Ask for it.

        Raises
        ------
        SubmitError, HostError
            As `Driver.submit`.
        """
        backend = jobs.backend
        jobs.launch.hooks.step("cluster", "waiting for the scheduler's job")
        request, (id_,) = await jobs.scripts.submit(asked_for_scheduler(backend, jobs.request(backend.group)))
        jobs.requests[id_] = request
        job = jobs.known[id_] = cls(jobs, id_)
        jobs.watching.begin()
        return job

    async def place(self) -> Place | None:
        """Wait until it has called, and return its node with the environment.

        None if another job is to be asked for: this one's node did not see what it needs.

        Raises
        ------
        JobFailed
            It ended first, or will never start.
        """
        jobs, id_ = self.jobs, self.id
        call = asyncio.ensure_future(
            jobs.board.answer(id_, noticed=self.noticed, again=lambda: jobs.scripts.was_run_again(id_))
        )
        end = asyncio.ensure_future(self.ended.wait())
        events: set[asyncio.Future[Any]] = {call, end}
        silence = Silence(jobs, "the scheduler's job")
        try:
            while not (await asyncio.wait(events, timeout=LOOKS, return_when=asyncio.FIRST_COMPLETED))[0]:
                silence.look(id_, heard=False)
            if not call.done():
                if await jobs.unseen(id_):
                    return None
                raise JobFailed(
                    f"the scheduler's job is of no use: {await jobs.ends.why(id_)}",
                    where=jobs.first.session.host.name,
                    hint="Ask for less, or for another queue; or run the scheduler elsewhere (scheduler=).",
                )
            self._host = call.result()
            self._prepared = await jobs.prepare(self._host, id_)
            self.has_called = True
            return Place.of(self._prepared)
        finally:
            call.cancel()
            end.cancel()

    def heard(self, job: Job) -> None:
        """Hear from the batch system how it stands."""
        if job.ended or self.jobs.backend.system.never(job):
            self.ended.set()
            if self.has_called and self._telling is None:
                self._telling = asyncio.ensure_future(self._tell_end())
        elif job.state == "running" and job.walltime_left is not None and job.walltime_left < _SHORT:
            self._warn(f"its time is over in {job.walltime_left:.0f} s")

    def noticed(self, number: int) -> None:
        """Hear from its carrier that it was sent a signal."""
        self._warn(f"it was sent {signal.Signals(number).name}")

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"the scheduler's job {self.id} is about to end, and the cluster with it: {why}"
            self.jobs.launch.hooks.warning("cluster", text)

    async def _tell_end(self) -> None:
        why = await self.jobs.ends.why(self.id)
        self.jobs.launch.hooks.failed("cluster", f"the scheduler's job ended, and the cluster with it: {why}")

    def row(self) -> Row:
        """Return it for people."""
        return self.jobs.row(self.id, self.name, 0)

    async def close(self) -> None:
        """Let go of its node; silent if that is gone."""
        await let_go(self._prepared, self._host)
