"""One job of a cluster, as SpecCluster wants it: from the queue to workers, and again if it is run again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

from distributed.comm.addressing import get_address_host
from distributed.core import Status

from envsync.errors import AgentError, EnvsyncError, HostError, ProcessDied, UnfitHostError
from envsync.runner.gpus import demand_one_each, with_gpus
from envsync.runner.groups import gpus_of
from envsync.runner.jobs import NOTICE
from envsync.runner.layout import layout
from envsync.runner.places import Place
from envsync.runner.processes import WorkerProcess
from envsync.runner.silence import LOOKS, Silence
from envsync.runner.timeouts import wait_for
from envsync.runner.verification import in_words
from envsync.runner.workergroup import WorkerGroup, all_finished, let_go

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.batch import Job
    from envsync.runner.groups import Group
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.jobends import End
    from envsync.runner.jobrows import Row
    from envsync.runner.jobs import Jobs
    from envsync.runner.layout import WorkerSpec
    from envsync.runner.provision import Prepared

__all__ = ["JobProcess", "leaves_at"]

MARGIN = 60.0  # seconds before a job's end at which its workers retire, or
_PART = 0.05  # of its time, if that is more; and over how much of it jobs that end together do so, in turn
_LAST = 10.0  # seconds before a job's end at which nothing is moved any more
_SILENT = 60.0  # seconds, beyond its grace, without news of a job that is said to run
_CLOSE = 20.0  # seconds that a job has to end when it is asked to
_LOST = (HostError, AgentError, ProcessDied)  # it may be that the job was ended
_TAKEN = ("preempted", "node-failed", "timeout")  # by the system, from a job that did well
_GO_ON = "import signal; [signal.signal(number, lambda *_: None) for number in (15, 10, 12, 24)]"
"""What the process below a nanny runs first: systems send TERM, USR1, USR2, XCPU to every process of a job,
and it has to go on while what it holds is moved. What it starts is not spared."""

_AHEAD = (signal.SIGUSR1, signal.SIGUSR2)  # that the end is near, with time to leave in order


class JobProcess(WorkerGroup):
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
        super().__init__(scheduler, name=name, group=group, launch=jobs.launch)
        self.jobs = jobs
        self.id = ""
        self.trouble = ""
        self.came_up = False
        self.up_since = 0.0  # by the loop's clock
        self._host: CarriedHost | None = None
        self._prepared: Prepared | None = None
        self._life: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self._leave = asyncio.Event()
        self._signal = 0
        self._time = self._over = 0.0  # how much it had, and when that is over; 0 if that is not known
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Submit it."""
        try:
            self.id = await self.jobs.submissions.submit(self)
        except BaseException:
            self.status = Status.failed
            raise
        await super().start()
        if not self.id:  # nobody wants it any more
            return
        self._life = asyncio.ensure_future(self._live())

    @property
    def has_called(self) -> bool:
        """Whether its node is known."""
        return self._host is not None

    def heard(self, job: Job) -> None:
        """Hear from the batch system how it stands."""
        if self.status != Status.running:
            return
        if job.ended:
            self.ended.set()
        elif self.jobs.backend.system.never(job):
            self.trouble = f"it will never start: {job.reason}"
            self.ended.set()
        elif job.state == "running" and job.walltime_left is not None:
            self._has(job.walltime_left)

    @property
    def over(self) -> bool:
        """Whether nothing is asked of it any more."""
        return bool(self.status == Status.closed)

    def row(self) -> Row:
        """Return it for people."""
        running = sum(worker.status == Status.running for worker in self.workers)
        node = str(self._host.hello["host"]) if self._host else ""
        return self.jobs.row(self.id, self.name, running, self.group.name, node)

    async def close(self) -> None:
        """End it, its workers first; silent if it has ended."""
        if self.status in (Status.closing, Status.closed):
            return
        self.status = Status.closing
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        await self._drop_workers()
        await self._cancel()
        await super().close()
        self.jobs.tidy()

    async def _live(self) -> None:
        """From the queue to workers; by another job, if this one's node does not see what it needs."""
        end, why = await self._run()
        while end is None and not why and self._host is None and await self.jobs.unseen(self.id):
            self.trouble = ""
            self.ended.clear()
            try:
                self.id = await self.jobs.submissions.submit(self)
                if not self.id:  # nobody wants it any more
                    return
                end, why = await self._run()
            except EnvsyncError as error:
                why = error.message
        if not why and end in (None, "failed"):
            why = await self.jobs.ends.why(self.id)
        if self.status == Status.running:
            self.status = Status.closed
            self._event_finished.set()
            await self._drop_workers()
            await self._cancel()
            if end is None:
                taken = self.came_up and self.jobs.job(self.id).state in _TAKEN
                end = "taken" if taken else "failed"
            text = "; ".join(part for part in (self.trouble, why) if part)
            self.jobs.left(self, text or "its workers have closed", end)

    async def _run(self) -> tuple[End | None, str]:
        """Have its workers, and again if the job is run again; return how that ended, and what went wrong."""
        ended = asyncio.ensure_future(self.ended.wait())
        up: asyncio.Task[asyncio.Event] | None = None
        end: End | None = None
        try:
            while end is None and not ended.done():
                self._begin()
                restarts = self.jobs.job(self.id).restarts
                up = asyncio.ensure_future(self._come_up())
                gone = await self._wait_for(up, ended)
                if not up.done():
                    end = "taken" if gone else None
                    up.cancel()
                    await asyncio.wait({up})
                    break
                lost = isinstance(up.exception(), _LOST) and not isinstance(up.exception(), UnfitHostError)
                away = self._host is not None and self._host.gone
                if lost and await self.jobs.ends.runs_again(self.id, restarts, lost=away):
                    await self._drop_workers()
                    continue
                end = await self._stay(up.result(), ended)
                await self._drop_workers()
            return end, ""
        except EnvsyncError as error:
            found = in_words(getattr(error, "differences", ()))
            words = f" ({'; '.join(found)})" if found else ""
            why = f"{error.where or self.id}: {error.message}{words}"
            if isinstance(error, _LOST) and not isinstance(error, UnfitHostError):
                return None, f"{why}; {await self.jobs.ends.why(self.id)}"
            return None, f"{why}; {error.hint}" if error.hint else why
        except Exception as error:  # noqa: BLE001 - nobody else hears of it, and the job would go on for nothing
            return None, f"{self.id}: {type(error).__name__}: {error}"
        finally:
            ended.cancel()
            self._begin()
            if up is not None:
                up.cancel()  # nothing comes up in a job that is closed

    async def _wait_for(self, up: asyncio.Future[Any], ended: asyncio.Future[Any]) -> bool:
        """Wait until it is up or has ended; return whether it was up, and is not heard of any more."""
        silence = Silence(self.jobs, self.name)
        while True:
            done, _ = await asyncio.wait({up, ended}, timeout=LOOKS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return False
            silent = silence.look(self.id, heard=self._host is not None, came_up=self.came_up)
            if self.came_up and silent > self.jobs.backend.grace + _SILENT:
                system = self.jobs.backend.system.name
                self.trouble = f"{system} says that it runs, and nothing is heard of it"
                return True

    async def _stay(self, lost: asyncio.Event, ended: asyncio.Future[Any]) -> End | None:
        """Wait while its workers work; return how that ended, None if only the job itself can tell."""
        events: list[asyncio.Future[bool]] = [
            asyncio.ensure_future(event.wait()) for event in (lost, self._leave)
        ]
        alone = asyncio.ensure_future(all_finished(self.workers))
        try:
            await asyncio.wait({*events, alone, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (*events, alone):
                one.cancel()
        remotes = [worker.remote for worker in self.workers if worker.remote is not None]
        if ended.done() or lost.is_set() or any(remote.lost for remote in remotes):
            return None
        if self._leave.is_set():
            return await self._retire()
        codes = {remote.returncode for remote in remotes if remote.returncode}
        if codes:
            self.trouble = f"its workers ended with exit status {', '.join(map(str, sorted(codes)))}"
        return "failed" if codes else "closed"

    async def _retire(self) -> End | None:
        """Have what only its workers hold moved to others in time; another job takes its place first."""
        left = self._over - asyncio.get_running_loop().time() if self._over else None
        end: End | None = None
        seconds = NOTICE - 2.0
        if not self._signal or self._signal in _AHEAD:
            end, seconds = "retired", max((left if left is not None else 2 * NOTICE) - _LAST, 2.0)
            why = f"its time is over in {left:.0f} s" if left is not None else "the system will end it"
            self.jobs.left(self, f"{why}: its workers retire", end)
        await self.retire(seconds, self._host.name if self._host else self.id)
        return end

    def _begin(self) -> None:
        """Know nothing of a run: it is its first, or the job is run again, or over."""
        self._leave.clear()
        self._signal = 0
        self._time = self._over = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has(self, left: float) -> None:
        """Know how many seconds it may still run."""
        loop = asyncio.get_running_loop()
        if "lifetime" in self.jobs.options.worker_kwargs:
            return  # its user sees to it
        self._time, self._over = max(self._time, left), loop.time() + left
        if self._timer is not None:
            self._timer.cancel()
        number = int(self.name.rpartition("-")[2])
        self._timer = loop.call_at(self._over - leaves_at(self._time, number), self._leave.set)

    async def _come_up(self) -> asyncio.Event:
        """Wait for its call, make the environment there, start its workers; return what tells of its loss."""
        jobs, lost = self.jobs, asyncio.Event()
        host = await jobs.board.answer(
            self.id,
            noticed=self._noticed,
            lost=lambda _: lost.set(),
            again=lambda: jobs.scripts.was_run_again(self.id),
        )
        self._host = host
        jobs.scripts.has_called(jobs.job(self.id))
        if self.group.request.walltime is not None and not self._over:
            self._has(self.group.request.walltime)
        self._prepared = await jobs.prepare(host, self.id)
        layout = await self._layout(self._prepared)
        async with jobs.turnstile.through():
            self._prepared = prepared = await jobs.with_code(self._prepared)
            place = Place.of(prepared)
            specs = zip(self.group.suffixes, layout, strict=True)
            self.workers = [self._worker(place, self.name + suffix, spec) for suffix, spec in specs]
            await asyncio.gather(*(worker.start() for worker in self.workers))
        self.came_up = True
        self.up_since = asyncio.get_running_loop().time()
        jobs.failures_in_a_row = 0
        return lost

    async def _layout(self, prepared: Prepared) -> Sequence[WorkerSpec]:
        """Lay out what the job was given of its node."""
        request, system = self.group.request, self.jobs.backend.system
        facts = await with_gpus(
            prepared.session,
            request.gpus or gpus_of(request.gres),
            told=bool(system.variables.gpus),
            name=f"job {self.id}",
        )
        for key, asked in (("cores", request.cores), ("memory", request.memory)):
            if asked:
                facts[key] = min(int(facts.get(key) or asked), asked)
        specs = layout(
            facts,
            n_workers=self.group.workers_per_job,
            threads_per_worker=self.jobs.options.threads_per_worker,
            memory_limit=self.jobs.options.memory_limit,
            scheduler=get_address_host(self.scheduler_address),
        )
        if self.jobs.options.gpu_worker is not None:
            demand_one_each(specs, facts, prepared.session.host.name)
        return specs

    def _worker(self, place: Place, name: str, spec: WorkerSpec) -> WorkerProcess:
        jobs = self.jobs
        config = jobs.options.worker(spec, encrypted=jobs.encrypted)
        offered = dict(self.group.resources)
        if self.group.resource:
            offered[self.group.resource] = spec.nthreads  # whoever asks for one has a thread
        config["options"]["resources"] = {**offered, **(config["options"]["resources"] or {})} or None
        preload = config["options"].get("preload") or []
        config["options"]["preload"] = [*([preload] if isinstance(preload, str) else preload), _GO_ON]
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
        if self._signal or self.status != Status.running:
            return
        self._signal = number
        name = signal.Signals(number).name
        where = str(self._host.name if self._host else self.id)
        self.jobs.launch.hooks.warning(where, f"the job was sent {name}: its workers retire")
        self._leave.set()

    async def _drop_workers(self) -> None:
        await self.close_workers()
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self.jobs.passing.forget(prepared.session)
        host, self._host = self._host, None
        await let_go(prepared, host)

    async def _cancel(self) -> None:
        if self.id and not self.jobs.job(self.id).ended:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await wait_for(self.jobs.submissions.cancel(self.id), _CLOSE)


def leaves_at(time: float, number: int) -> float:
    """Return how many seconds before its end a job's workers retire.

    Parameters
    ----------
    time : float
        Seconds that it has, or had when it began.
    number : int
        Of the job: those that end together go one after another, so that each finds others to take over.
    """
    margin = min(max(MARGIN, _PART * time), time / 2)
    turn = number * 0.618034 % 1  # some numbers in a row are far apart
    return margin + turn * min(_PART * time, time / 4)
