"""Jobs that are said to run, and of which nothing is heard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envsync.runner.jobs import Jobs

__all__ = ["LOOKS", "Silence"]

LOOKS = 2.0
"""Seconds between two looks."""

_FIRST = 30.0  # seconds from a job's start to its call, after which it is told; most call in one or two
_AGAIN = 10.0  # that a system may say of a job that has ended that it runs


class Silence:
    """How long a job that runs has not been heard of. It is told, once.

    Parameters
    ----------
    jobs : Jobs
        Who knows how it stands.
    name : str
        What people call it.
    """

    def __init__(self, jobs: Jobs, name: str) -> None:
        self._jobs = jobs
        self._name = name
        self._since: float | None = None
        self._told = False

    def look(self, id_: str, *, heard: bool, came_up: bool = False) -> float:
        """Return for how many seconds there has been silence; whoever waits looks now and then.

        Parameters
        ----------
        id_ : str
            The job.
        heard : bool
            Whether its node is connected.
        came_up : bool
            Whether it has had workers.
        """
        job, now = self._jobs.job(id_), asyncio.get_running_loop().time()
        if heard or job.state != "running":  # a queue may take as long as it takes
            self._since, self._told = None, False
            return 0.0
        if self._since is None:
            self._since = now
        silent = now - self._since
        if not self._told and silent >= (_AGAIN if came_up else min(_FIRST, self._jobs.launch.start_timeout)):
            self._told = True
            text = f"{self._name} runs, and has not called yet: see its log, its prologue may hang"
            if came_up:
                system = self._jobs.backend.system.name
                text = f"{self._name} is not heard of any more, and {system} says that it runs"
            self._jobs.launch.hooks.warning(", ".join(job.nodes) or id_, text)
        return silent
