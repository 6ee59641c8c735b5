"""Workers that come and go together: those of a job, or of a machine."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from envsync.errors import EnvsyncError
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.groups import Group
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.processes import Launch, WorkerProcess
    from envsync.runner.provision import Prepared

__all__ = ["WorkerGroup", "all_finished", "let_go", "with_code_of"]


class WorkerGroup(ProcessInterface):  # type: ignore[misc]
    """What SpecCluster takes for one worker, and is several.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as hosts reach it.
    name : str
        Its workers are called by it.
    group : Group
        How many they are.
    launch : Launch
        What the processes of the cluster have in common.
    """

    def __init__(self, scheduler: str, *, name: str, group: Group, launch: Launch) -> None:
        super().__init__()
        self.group = group
        self.scheduler_address = scheduler
        self.name = name
        self.launch = launch
        self.workers: list[WorkerProcess] = []

    async def retire(self, seconds: float, where: str) -> None:
        """Have what only its workers hold moved to others within so many seconds; told if that fails."""
        names = {worker.name for worker in self.workers if worker.status == Status.running}
        with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
            names = await wait_for(self._move(names), seconds)
        if names:
            text = f"not all that only {self.name} held found a place in time: tasks that need it run again"
            self.launch.hooks.warning(where, text)

    async def _move(self, names: set[str | int]) -> set[str | int]:
        """Retire workers, as soon as others can take what they hold; return those that could not: none."""
        while left := names - await self.launch.retire(names):
            names = left
            await asyncio.sleep(1.0)
        return set()

    async def close_workers(self) -> None:
        """End its workers; silent if they have ended."""
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True)


async def all_finished(workers: Sequence[WorkerProcess]) -> bool:
    """Wait until none of them runs."""
    for worker in workers:
        await worker.finished()
    return True


async def with_code_of(first: Prepared, prepared: Prepared) -> Prepared:
    """Return a host with the local code that the first has now: it may have been synced meanwhile."""
    manifests = [manifest for manifest, _ in first.trees]
    if [manifest for manifest, _ in prepared.trees] == manifests:
        return prepared
    folders = await prepared.session.place_trees(manifests)
    return replace(prepared, trees=tuple(zip(manifests, folders, strict=True)))


async def let_go(prepared: Prepared | None, host: CarriedHost | None) -> None:
    """Let go of a job's node, which ends the job; silent if it is gone."""
    with contextlib.suppress(EnvsyncError, OSError):
        if prepared is not None:
            await prepared.session.close()
        if host is not None:
            await host.close()
