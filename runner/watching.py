"""How the jobs of a cluster stand: one listing for all, and what of it people are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from envsync.errors import BatchError, HostError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from envsync.runner.batch import Job
    from envsync.runner.jobs import Jobs

__all__ = ["Watching"]


class Watching:
    """Looks at the jobs of a cluster, and passes on what is new.

    Parameters
    ----------
    jobs : Jobs
        Whose they are.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._told: set[str] = set()  # why jobs wait
        self._restarts: dict[str, int] = {}
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Hear from now on how jobs stand."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        told = False
        while True:
            try:
                return await self._jobs.driver.watch(self._news)
            except (HostError, BatchError) as error:
                if not told:
                    text = f"{error.message}: how jobs stand is not known until that is over"
                    self._jobs.launch.hooks.warning(error.where or "cluster", text)
                told = True
            await asyncio.sleep(self._jobs.driver.interval)

    def _news(self, news: Mapping[str, Job]) -> None:
        for id_, job in news.items():
            process = self._jobs.known.get(id_)
            if process is not None:
                process.heard(job)
        self._tell_waiting(
            [job for id_, job in news.items() if job.state == "pending" and id_ in self._jobs.known]
        )
        again = [job.id for job in news.values() if self._starts_again(job)]
        if again:
            text = f"{self._jobs.backend.system.name} starts again what it had ended: {', '.join(again)}"
            self._jobs.launch.hooks.note("cluster", text)
        if any(job.ended for job in news.values()):
            self._jobs.tidy()

    def _tell_waiting(self, waiting: Sequence[Job]) -> None:
        """Say why jobs wait, in the system's words, once for each reason: of a thousand jobs too."""
        for reason in dict.fromkeys(job.reason for job in waiting):
            if not reason or reason in self._told:
                continue
            self._told.add(reason)
            those = [job.id for job in waiting if job.reason == reason]
            many = f"{len(those)} jobs wait" if len(those) > 1 else f"job {those[0]} waits"
            stuck = any(word in reason for word in self._jobs.backend.system.stuck)
            text = f"{many}: {reason}{' (nothing starts until somebody changes that)' if stuck else ''}"
            (self._jobs.launch.hooks.warning if stuck else self._jobs.launch.hooks.note)("cluster", text)

    def _starts_again(self, job: Job) -> bool:
        """Whether a job has been started once more since it was looked at last."""
        before = self._restarts.get(job.id, 0)
        self._restarts[job.id] = job.restarts
        return job.restarts > before

    async def look(self) -> None:
        """Have the batch system looked at, and wait a moment; whoever else waits looks with us."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_once())
        await asyncio.shield(self._looking)

    async def _look_once(self) -> None:
        try:
            self._news(await self._jobs.driver.poll())
        finally:
            await asyncio.sleep(0.5)

    def forget(self, ids: Collection[str]) -> None:
        """Count no longer how often these were started again."""
        for id_ in ids:
            self._restarts.pop(id_, None)

    def close(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
