"""One rented machine of a cluster, as SpecCluster wants it: from the cloud to workers, until it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from envsync.errors import AgentError, CapacityError, EnvsyncError, HostError, ProcessDied, UnfitHostError
from envsync.runner.gpus import demand_one_each, tell_missing
from envsync.runner.layout import layout
from envsync.runner.places import Place
from envsync.runner.processes import WorkerProcess
from envsync.runner.timeouts import wait_for
from envsync.runner.workergroup import WorkerGroup, all_finished, with_code_of

if TYPE_CHECKING:
    from envsync.runner.cloud.provider import Machine
    from envsync.runner.groups import Group
    from envsync.runner.jobends import End
    from envsync.runner.machines import Machines
    from envsync.runner.provision import Prepared

__all__ = ["MachineProcess"]

_LOST = (HostError, AgentError, ProcessDied)  # it may be that the machine was ended
_MOMENT = 10.0  # seconds for what may have no answer
_GOODBYE = 1.0  # seconds for letting go of a machine that is gone
_LAST = 10.0  # seconds before a machine is taken back at which nothing is moved any more


class MachineProcess(WorkerGroup):
    """One machine: a group of workers.

    On the scheduler's machine it is started once its workers are there. On any other it is started at once,
    and its workers join when it is up.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as machines reach it.
    jobs : Machines
        What it shares with the others.
    group : Group
        How many workers it has.
    name : str
        Its workers are called by it.
    """

    def __init__(self, scheduler: str, *, jobs: Machines, group: Group, name: str) -> None:
        super().__init__(scheduler, name=name, group=group, launch=jobs.launch)
        self.machines = jobs
        self.machine: Machine | None = None
        self.came_up = False
        self.up_since = 0.0
        self.on_first = False
        self._prepared: Prepared | None = None
        self._life: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._notice = asyncio.Event()
        self._dead = False
        self._why = ""  # it is gone, or will be
        self._seconds = 0.0  # until then, when it was told

    async def start(self) -> None:
        """Ask for it."""
        self.on_first = self.machines.began(self)
        if self.on_first:
            try:
                self.machines.demand_first()
                self.machine = self.machines.scheduler_machine
                await self._work(self.machines.first)
            except BaseException:
                self.status = Status.failed
                await asyncio.shield(self.close_workers())
                raise
        await super().start()
        self._life = asyncio.ensure_future(self._live())

    @property
    def over(self) -> bool:
        """Whether nothing is asked of it any more."""
        return self.status in (Status.closing, Status.closed, Status.failed)

    @property
    def working(self) -> int:
        """How many of its workers run."""
        return sum(worker.status == Status.running for worker in self.workers)

    def lost(self, why: str) -> None:
        """Hear from the cloud that it has ended."""
        self._why = why
        self._gone.set()

    def noticed(self, event: dict[str, Any]) -> None:
        """Hear from its agent that the cloud takes it back."""
        if self._notice.is_set() or self.status != Status.running:
            return
        self._seconds = float(event["seconds"])
        self._why = str(event["text"])
        where = self.machine.id if self.machine is not None else self.name
        self.launch.hooks.warning(where, f"{self._why}: its workers retire")
        self._notice.set()

    async def close(self) -> None:
        """End its workers, and itself if it is not the scheduler's; silent if it has ended."""
        if self.over:
            return
        self.status = Status.closing
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        await self._let_go()
        await super().close()

    async def _live(self) -> None:
        """From the cloud to workers, and until they end."""
        end: End = "failed"
        try:
            if not self.on_first:
                await self._come_up()
            end, why = await self._stay()
        except EnvsyncError as error:
            end, why = await self._failed(error)
        except Exception as error:  # noqa: BLE001 - nobody else hears of it, and it would cost for nothing
            why = f"{type(error).__name__}: {error}"
        if self.status == Status.running:
            self.status = Status.closed
            self._event_finished.set()
            await self._let_go()
            self.machines.left(self, why, end)

    async def _failed(self, error: EnvsyncError) -> tuple[End, str]:
        """Return how it ended before its workers were there: one that the cloud has ended was lost."""
        ended = self._why if self._gone.is_set() else ""
        if not ended and self.machine is not None and isinstance(error, _LOST):
            ended = await self.machines.rented.why(self.machine)
        if ended:
            self._dead = True
            return "taken", f"{self._id} was lost before its workers were there: {ended}"
        if isinstance(error, CapacityError):
            self.machines.lacks_room()
        why = f"{error.where or self._id}: {error.message}"
        tail = getattr(error, "tail", ())
        if self.machine is not None and isinstance(error, UnfitHostError):
            tail = await self.machines.rented.tail(self.machine.id)  # cloud-init may not have done its part
        why = f"{why}; {error.hint}" if error.hint else why
        return "failed", "\n  | ".join([why, *tail])

    @property
    def _id(self) -> str:
        return self.machine.id if self.machine is not None else self.name

    async def _come_up(self) -> None:
        """Have a machine with the environment, and its workers."""
        self.machine = machine = await self.machines.rented.another()
        self._prepared = await self.machines.prepare(machine)
        tell_missing(machine.id, self._prepared.session.facts, self.launch.hooks)
        await self._work(self._prepared)

    async def _work(self, prepared: Prepared) -> None:
        """Start its workers."""
        machines, options = self.machines, self.machines.options
        async with machines.turnstile.through():
            place = (
                machines.place if self.on_first else Place.of(await with_code_of(machines.first, prepared))
            )
            specs = layout(
                prepared.session.facts,
                n_workers=self.group.workers_per_job,
                threads_per_worker=options.threads_per_worker,
                memory_limit=options.memory_limit,
            )
            if options.gpu_worker is not None:
                demand_one_each(specs, prepared.session.facts, prepared.session.host.name)
            self.workers = [
                WorkerProcess(
                    self.scheduler_address,
                    launch=self.launch,
                    place=place,
                    name=self.name + suffix,
                    config=options.worker(spec, encrypted=machines.encrypted),
                    nthreads=spec.nthreads,
                    memory_limit=spec.memory_limit,
                )
                for suffix, spec in zip(self.group.suffixes, specs, strict=True)
            ]
            await asyncio.gather(*(worker.start() for worker in self.workers))
        self._is_up()
        if self.machine is not None and self.machine.market == "spot":
            prepared.session.noticed = self.noticed
            await prepared.session.request("heed", cloud=machines.rented.provider.name)

    def _is_up(self) -> None:
        self.came_up, self.up_since = True, time.monotonic()
        self.machines.failures_in_a_row = 0

    async def _stay(self) -> tuple[End, str]:
        """Wait while its workers work; return how that ended, and why."""
        events = [asyncio.ensure_future(event.wait()) for event in (self._gone, self._notice)]
        alone = asyncio.ensure_future(all_finished(self.workers))
        try:
            await asyncio.wait({*events, alone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (*events, alone):
                one.cancel()
        if self._gone.is_set():
            self._dead = True
            return "taken", f"{self._id} was lost: {self._why}"
        if self._notice.is_set():
            self.machines.left(self, f"{self._id}: {self._why}: its workers retire", "retired")
            await self.retire(max(self._seconds - _LAST, 2.0), self._id)
            return "retired", self._why
        remotes = [worker.remote for worker in self.workers if worker.remote is not None]
        lost = next((remote.lost for remote in remotes if remote.lost is not None), None)
        if lost is not None:
            assert self.machine is not None
            self._dead = True
            ended = await self.machines.rented.why(self.machine)
            return "taken", f"{self._id} was lost: {ended or f'{lost.message}; the cloud says that it runs'}"
        codes = {remote.returncode for remote in remotes if remote.returncode}
        if codes:
            return "failed", f"its workers ended with exit status {', '.join(map(str, sorted(codes)))}"
        return "closed", "its workers have closed"

    async def _let_go(self) -> None:
        """End its workers, and begin to end the machine."""
        prepared, self._prepared = self._prepared, None
        names = [worker.name for worker in self.workers]
        if prepared is not None and self._dead:
            # a machine without power says nothing: its connection stands until somebody has waited in vain
            prepared.session.give_up(AgentError(self._why or "the machine is lost", where=self._id))
            with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
                await wait_for(self.launch.remove(names), _MOMENT)
        await self.close_workers()
        if prepared is not None:
            self.machines.forget(prepared)
            await self._part(prepared)
        if self.machine is not None and not self.on_first:
            self.machines.rented.end(self.machine)

    async def _part(self, prepared: Prepared) -> None:
        """Let go of its agent, and of the connection; silent if that is done."""

        async def part() -> None:
            await prepared.session.close(patience=_MOMENT)
            await prepared.session.host.close()

        with contextlib.suppress(EnvsyncError, OSError, asyncio.TimeoutError, TimeoutError):
            await wait_for(part(), _GOODBYE if self._dead else 2 * _MOMENT)
