"""What is asked of a batch system, together: as few submissions and cancellations as there can be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError

if TYPE_CHECKING:
    from collections.abc import Collection

    from envsync.runner.jobprocess import JobProcess
    from envsync.runner.jobs import Jobs

__all__ = ["Submissions"]

_TOGETHER = 0.05  # seconds: what is asked for within them is one submission
_NAMED = 1000  # jobs that one command names


class Submissions:
    """Submits the jobs of a cluster, and ends them.

    Parameters
    ----------
    jobs : Jobs
        Whose they are.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.asked: list[tuple[JobProcess, asyncio.Future[str]]] = []
        """What waits for its turn."""
        self._submitting: asyncio.Task[None] | None = None
        self._ending: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def submit(self, process: JobProcess) -> str:
        """Submit a job; those of a group that are asked for together are one array. Return its id.

        Raises
        ------
        SubmitError
            The system did not take them.
        AgentError
            None could call.
        """
        self._jobs.demand_way()
        future: asyncio.Future[str] = self._loop.create_future()
        self.asked.append((process, future))
        if self._submitting is None or self._submitting.done():
            self._submitting = asyncio.ensure_future(self._submit_all())
        return await future

    def withdraw(self, names: Collection[str]) -> None:
        """Submit these no more, if they have not been yet; they have no id then. From any thread."""
        self._loop.call_soon_threadsafe(self._withdraw, set(names))

    def _withdraw(self, names: set[str]) -> None:
        gone = [future for process, future in self.asked if process.name in names]
        self.asked = [each for each in self.asked if each[0].name not in names]
        for future in gone:
            if not future.done():
                future.set_result("")

    async def _submit_all(self) -> None:
        await asyncio.sleep(_TOGETHER)
        jobs = self._jobs
        while self.asked:
            await jobs.driver.turn()  # what is asked for, or given up, until then is no submission of its own
            if not self.asked:
                break
            self.asked.sort(key=lambda each: int(each[0].name.rpartition("-")[2]))  # ids are in this order
            group = self.asked[0][0].group
            asked = [each for each in self.asked if each[0].group is group][: jobs.driver.system.at_once]
            names = {process.name for process, _ in asked}
            self.asked = [each for each in self.asked if each[0].name not in names]
            request = replace(jobs.request(group), count=len(asked))
            try:
                request, ids = await jobs.scripts.submit(request)
            except Exception as error:  # noqa: BLE001 - who asked is told, whatever it is
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            many = f"{len(ids)} jobs" if len(ids) > 1 else "a job"
            of = f" of group {group.name}" if group.name else ""
            jobs.launch.hooks.note(
                "cluster", f"submitted {many}{of}: {ids[0]}{f' to {ids[-1]}' if ids[1:] else ''}"
            )
            for (process, future), job in zip(asked, ids, strict=True):
                jobs.known[job] = process
                jobs.requests[job] = request
                if not future.done():
                    future.set_result(job)
        jobs.watching.begin()

    async def cancel(self, id_: str) -> None:
        """End a job; what is asked for together is one command, or one for each thousand.

        Told if it fails.
        """
        self._ending.append(id_)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.ensure_future(self._cancel_all())
        await asyncio.shield(self._cancelling)

    async def _cancel_all(self) -> None:
        await asyncio.sleep(_TOGETHER)
        while self._ending:
            ids, self._ending = self._ending[:_NAMED], self._ending[_NAMED:]
            try:
                await self._jobs.driver.cancel(ids)
            except EnvsyncError as error:
                many = f"{ids[0]} to {ids[-1]}" if ids[1:] else ids[0]
                text = f"{many}: {error.message}; what starts all the same ends by itself"
                self._jobs.launch.hooks.warning(error.where or "cluster", text)

    def close(self) -> None:
        """Submit no more."""
        if self._submitting is not None:
            self._submitting.cancel()
