"""What the jobs of a cluster run: what they need is in a folder that they see, or they bring it along."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from envsync.hooks import Hooks
    from envsync.runner.batch import Driver, Job, JobRequest
    from envsync.runner.batch.calling import Switchboard

__all__ = ["JobScripts"]

_LOOK = 10.0  # seconds that the system has to say that a job was run again


class JobScripts:
    """Submits the jobs of one cluster, and knows who may call as one of them.

    Parameters
    ----------
    board : Switchboard
        Where they call.
    driver : Driver
        Submits them.
    alone : bool
        Whether they bring along what they need.
    look : callable
        ``await look()`` has the batch system looked at, and waits a moment.
    hooks : Hooks
        Told who was turned away.
    """

    def __init__(
        self,
        board: Switchboard,
        driver: Driver,
        *,
        alone: bool,
        look: Callable[[], Awaitable[None]],
        hooks: Hooks,
    ) -> None:
        self.alone = alone
        self._board = board
        self._driver = driver
        self._look = look
        self._hooks = hooks
        self._alone: set[str] = set()
        self._called: dict[str, int] = {}  # how often each job had been started again when it called
        self._calls: dict[str, int] = {}  # the same, of those that are being answered

    async def submit(self, request: JobRequest) -> tuple[JobRequest, tuple[str, ...]]:
        """Submit jobs; return what was asked for in the end, and their ids.

        Raises
        ------
        SubmitError, HostError
            As `Driver.submit`.
        """
        system = self._driver.system
        identity = system.variables.identity
        if not self.alone or not self.can_be_alone:
            return request, await self._driver.submit(request, self._board.body(identity))
        if system.takes == "script":
            request = replace(request, folder="/tmp", log="")  # noqa: S108 - where jobs begin, nothing more
        body, token = self._board.body_alone(identity)
        ids = await self._driver.submit(request, body)
        self._board.admit(token, ids)
        self._alone.update(ids)
        return request, ids

    def came_alone(self, id_: str) -> bool:
        """Return whether a job has brought along what it needs."""
        return id_ in self._alone

    @property
    def can_be_alone(self) -> bool:
        """Whether the system takes a script to nodes that share no folder with the login host."""
        return self._driver.system.takes != "nothing"

    @property
    def may_be_alone(self) -> bool:
        """Whether that needs nobody to ask for it: what lets a node call is in the script then."""
        return self.can_be_alone and self._driver.system.private

    def unseen(self, job: Job) -> bool:
        """Return whether a job has ended because its node does not see the login host's folder."""
        return self._driver.system.unseen(job, self._board.folder)

    def instead(self) -> str:
        """Return what to do about that."""
        if not self.can_be_alone:
            return f"{self._driver.system.name} has them read scripts there: cache= names one that they see"
        if not self._driver.system.private:
            return (
                "cache= names a folder that they see; placement='node' needs none, and has scripts hold what"
                f" lets a node call, which {self._driver.system.name} lets others on the nodes read"
            )
        return "cache= names a folder that they see, or placement='node' needs none"

    def has_called(self, job: Job) -> None:
        """Hear that a job's carrier is there: another call under its name is another run's, or nobody's."""
        self._called[job.id] = self._calls.pop(job.id, job.restarts)

    async def was_run_again(self, id_: str) -> bool:
        """Ask the batch system whether it has started a job again since that called."""
        until = asyncio.get_running_loop().time() + _LOOK
        while True:
            with contextlib.suppress(EnvsyncError):
                await self._look()
            job = self._driver.jobs.get(id_)
            if job is not None and job.restarts > self._called.get(id_, 0):
                self._calls[id_] = job.restarts  # it has not called before it is answered: a link may break
                return True
            if asyncio.get_running_loop().time() > until:
                break
        self._hooks.warning(
            self._driver.host.name,
            f"somebody called as job {id_}, which has called already and was not run again: turned away",
        )
        return False
