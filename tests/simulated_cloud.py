"""Clusters on machines that are values: what a client rents, replaces and ends, without anything that boots.

`FakeProvider` is the cloud. All else is real: `Rented`, `Machines`, `MachineProcess`, `SyncedCluster`'s
scaling and Dask's scheduler; only what would happen on machines is replaced: one that is up has workers here.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import distributed

from envsync import SyncedCluster
from envsync.hooks import Hooks
from envsync.runner.cloud.provider import Provider, Tags
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.clouds import Cloud
from envsync.runner.machineprocess import MachineProcess
from envsync.runner.machines import MachineFleet, Machines
from tests.simulated import LocalWorker


class Values(Cloud):
    """A backend whose cloud is given."""

    def __init__(self, given: Provider, **asked: Any) -> None:
        super().__init__("small", **asked)
        self._given = given

    def provider(self) -> Provider:
        return self._given


class LocalMachine(MachineProcess):
    """A machine whose workers are here."""

    async def _come_up(self) -> None:
        self.machine = await self.machines.rented.another()
        await self._work(self.machines.first)

    async def _work(self, prepared: Any) -> None:
        self.workers = [
            LocalWorker(self.scheduler_address, self.name + suffix, {}) for suffix in self.group.suffixes
        ]
        await asyncio.gather(*(worker.start() for worker in self.workers))
        self._is_up()


class LocalFleet(MachineFleet):
    """A fleet of `LocalMachine`."""

    kind = LocalMachine


class RentingCluster(SyncedCluster):  # type: ignore[misc]
    """A SyncedCluster on such machines; asynchronous.

    Parameters
    ----------
    given : Provider
        The cloud.
    boot : float
        Seconds that a machine has to come up.
    """

    def __init__(
        self, given: Provider, n_workers: int = 1, *, boot: float = 60.0, hooks: Hooks | None = None
    ) -> None:
        self._boot = boot
        super().__init__(Values(given), n_workers=n_workers, asynchronous=True, security=False, hooks=hooks)

    async def _provision(self) -> None:
        backend: Any = self.backend
        tags = Tags(cluster=self._run_name, owner="ada@laptop")
        plan = Plan(
            type="small", count=backend._count(self.options.n_workers), tags=tags, boot=self._boot,
            poll=0.01, watch=0.02,
        )  # fmt: skip
        backend._rented = Rented(backend.provider(), plan, self.hooks)
        await backend.rented.start()
        self.queue = Machines(
            backend=backend,
            rented=backend.rented,
            first=SimpleNamespace(session=SimpleNamespace(ended=None), container=True),  # type: ignore[arg-type]
            place=None,  # type: ignore[arg-type]
            launch=SimpleNamespace(  # type: ignore[arg-type]
                cluster=self._run_name, hooks=self.hooks, retire=self._retire, remove=self._remove
            ),
            options=self.options,
            encrypted=False,
            prepare=None,  # type: ignore[arg-type]
            want=None,  # type: ignore[arg-type]
            left=self._job_left,
            adapts=lambda: self._adapts,
        )
        self.scheduler_spec = {
            "cls": distributed.Scheduler,
            "options": {"host": "127.0.0.1", "dashboard_address": ":0"},
        }
        self._plan_jobs(LocalFleet(self.queue, self.worker_spec, self.workers))
