"""The rented machines of a cluster: what they share, which of them is the scheduler's, what replaces one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, CloudError
from envsync.runner.cloud.costs import duration
from envsync.runner.fleet import Fleet
from envsync.runner.jobrows import MachineTable, Row
from envsync.runner.losses import OFTEN, Losses
from envsync.runner.machineprocess import MachineProcess
from envsync.runner.passing import Passing
from envsync.runner.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from envsync.runner.cloud.provider import Machine
    from envsync.runner.cloud.renting import Rented
    from envsync.runner.clouds import Cloud
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.groups import Group
    from envsync.runner.jobends import End
    from envsync.runner.options import Options
    from envsync.runner.places import Place
    from envsync.runner.processes import Launch
    from envsync.runner.provision import Prepared
    from envsync.runner.taking import Giver

__all__ = ["MachineFleet", "Machines"]

_KEPT = 200  # failures that are remembered
_FULL = 60.0  # seconds after which is adapted again to more where there was no room


class Machines:
    """What all machines of a cluster share.

    Parameters
    ----------
    backend : Cloud
        What to rent.
    rented : Rented
        Where they come from.
    first : Prepared
        The scheduler's machine.
    place : Place
        The same, as its processes have it.
    launch : Launch
        What the processes of the cluster have in common.
    options : Options
        What the user asked for.
    encrypted : bool
        Whether its processes speak TLS.
    prepare : callable
        Makes the environment on hosts; see `envsync.runner.provision.prepare`.
    want : callable
        Told what a machine's processes should have.
    left : callable
        Told about a machine that is no longer one of the cluster's.
    adapts : callable
        Returns whether the cluster asks for more by itself.
    """

    failure = CloudError
    """What is raised where workers are waited for that will not come."""
    noun = "machines"

    def __init__(
        self,
        *,
        backend: Cloud,
        rented: Rented,
        first: Prepared,
        place: Place,
        launch: Launch,
        options: Options,
        encrypted: bool,
        prepare: Callable[..., Awaitable[list[Prepared]]],
        want: Callable[[Prepared], Awaitable[None]],
        left: Callable[[MachineProcess, str, End], None],
        adapts: Callable[[], bool],
    ) -> None:
        self.backend = backend
        self.rented = rented
        self.first = first
        self.place = place
        self.launch = launch
        self.options = options
        self.encrypted = encrypted
        self.turnstile = Turnstile()  # machines come up, or code is synced
        self.failures: deque[str] = deque(maxlen=_KEPT)
        self.failures_in_a_row = 0  # since one came up
        self._prepare = prepare
        self._want = want
        self._wanting = asyncio.Lock()
        self._left = left
        self._adapts = adapts
        self._numbers = 0
        self._processes: dict[str, MachineProcess] = {}
        self._leaving: set[MachineProcess] = set()
        self._losses = Losses()
        self._full = 0.0  # until then nobody asks by himself: there was no room
        self.passing: Passing | None = None
        if backend.passes_on and first.container is None:
            self.passing = Passing(first.session, first.lock, cluster=launch.cluster, hooks=launch.hooks)
        self.scheduler_machine = rented.machines[0]
        rented.gone = self._gone

    @classmethod
    def of(cls, cluster: SyncedCluster, prepare: Callable[..., Awaitable[list[Prepared]]]) -> Machines:
        """Return the machines of a cluster whose first is prepared."""
        backend: Any = cluster.backend
        assert cluster.launch is not None
        if cluster.n_workers is None:
            cluster.n_workers = backend.workers_per_machine
        return cls(
            backend=backend,
            rented=backend.rented,
            first=cluster.prepared[0],
            place=cluster.places[0],
            launch=cluster.launch,
            options=cluster.options,
            encrypted=cluster.trust.encrypted,
            prepare=prepare,
            want=cluster._want,
            left=cluster._job_left,
            adapts=lambda: cluster._adapts,
        )

    def fleet(self, specs: dict[Any, Any], processes: Mapping[Any, Any]) -> MachineFleet:
        """Return what edits SpecCluster's specification."""
        return MachineFleet(self, specs, processes)

    # -- as MachineProcess needs it

    def next_name(self, group: Group) -> str:  # noqa: ARG002 - there is one
        """Return a name for a machine that no other had."""
        self._numbers += 1
        return f"machine-{self._numbers}"

    @property
    def may_grow(self) -> bool:
        """Whether it makes sense to ask for more by itself."""
        return time.monotonic() >= max(self._full, self._losses.until)

    def lacks_room(self) -> None:
        """Hear that a machine was not to be had."""
        self._full = time.monotonic() + _FULL

    def asked_again(self) -> None:
        """Hear that the user has it adapt anew, and has seen to what went wrong."""
        self.failures_in_a_row = 0
        self._losses.forget()

    def withdraw(self, names: Collection[str]) -> None:
        """Nothing: what is asked for is asked for at once."""

    def began(self, process: MachineProcess) -> bool:
        """Know a machine from now on; return whether it is the scheduler's, which no other uses."""
        first = not any(one.on_first and not one.over for one in self._processes.values())
        self._processes = {name: one for name, one in self._processes.items() if not one.over}
        self._processes[process.name] = process
        return first

    async def prepare(self, machine: Machine) -> Prepared:
        """Make the environment on a machine; what it lacks comes from the scheduler's, or from a store."""
        giver: Giver | None = self.passing
        host = self.backend.host(machine)
        prepared: Prepared | None = None
        try:
            await self.backend.finished(host)
            manifests = None if self.first.container else [manifest for manifest, _ in self.first.trees]
            [prepared] = await self._prepare([host], giver=giver, manifests=manifests)
            prepared.session.taking = giver  # code that is synced later goes the same way
            async with self._wanting:  # before its workers are there to be asked
                await self._want(prepared)
        except BaseException:
            if prepared is not None:
                self.forget(prepared)
                await prepared.session.close()  # it would keep the machine alive
            await host.close()
            raise
        return prepared

    def forget(self, prepared: Prepared) -> None:
        """Ask a machine no more for what others lack."""
        if self.passing is not None:
            self.passing.forget(prepared.session)

    def left(self, process: MachineProcess, why: str, end: End) -> None:
        """Hear from a machine that it is over, or that it retires."""
        if process in self._leaving:
            self._leaving.discard(process)
            return
        if end == "retired":
            self._leaving.add(process)
        there = [one for one in self._processes.values() if not one.over and one is not process]
        if end in ("taken", "retired") and not self._adapts() and not self._losses.replaces(len(there)):
            often, end = duration(OFTEN), "failed"
            why += f"; not replaced: too many were within {often}. scale() asks for another"
        if end == "failed":
            self.failures.append(f"{process.name}: {why}")
            self.failures_in_a_row += not process.came_up and time.monotonic() >= self._full
        if self._adapts() and (end in ("taken", "retired") or (end == "failed" and process.came_up)):
            pause = self._losses.pause(process.up_since, [one.up_since for one in there if not one.on_first])
            if pause:
                why += (
                    f"; too many were lost soon after they came up: no more is rented for {duration(pause)}"
                )
        self._left(process, why, end)

    def _gone(self, machine: Machine) -> None:
        """Hear from the cloud that a machine has ended."""
        why = machine.reason or machine.state
        if machine.id == self.scheduler_machine.id:
            text = f"the scheduler's machine {machine.id} has ended, and the cluster with it: {why}"
            self.failures.append(text)
            self.launch.hooks.failed("cluster", text)
        for process in [*self._processes.values()]:
            if process.machine is not None and process.machine.id == machine.id:
                process.lost(why)

    # -- as the cluster needs it

    def demand_first(self) -> None:
        """Make sure that the scheduler's machine is there.

        Raises
        ------
        AgentError
            It was lost.
        """
        if self.first.session.ended is not None:
            raise AgentError(
                f"the scheduler's machine is lost: {self.first.session.ended.message}",
                where=self.scheduler_machine.id,
                hint="Close the cluster, and start another one.",
            )

    def rows(self) -> MachineTable:
        """Return every machine as people want to see it."""
        return MachineTable(
            Row(
                name=one.name,
                id=one.machine.id if one.machine else "",
                state="running" if one.workers else "pending",
                reason="" if one.workers else "it comes up" if one.machine else "it boots",
                node=(one.machine.private_address or one.machine.public_address) if one.machine else "",
                left=None,
                workers=one.working,
            )
            for one in self._processes.values()
            if not one.over
        )

    async def close_leaving(self) -> None:
        """End the machines whose workers retire: nobody else knows them any more."""
        await asyncio.gather(*(process.close() for process in list(self._leaving)))

    async def close(self) -> None:
        """Let go of all machines: whoever rented them ends them."""
        await asyncio.gather(*(one.close() for one in self._processes.values()), return_exceptions=True)


class MachineFleet(Fleet):
    """A fleet of machines. The scheduler's goes last: it costs the same without workers."""

    kind = MachineProcess

    def rank(self, process: Any) -> int:
        """Return a number: the larger it is, the later a machine goes."""
        if process.on_first:
            return 3
        return 2 if process.workers else 1 if process.machine else 0

    def idle_to_go(self, names: Any) -> list[str]:
        """Sort machines that have nothing to do, the least loaded first, the scheduler's last."""
        return sorted(names, key=lambda name: getattr(self._processes.get(name), "on_first", False))
