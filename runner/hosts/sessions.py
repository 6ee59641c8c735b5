"""The sessions of one SSH connection: sshd allows so many, and the others wait."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from envsync.errors import HostError
from envsync.runner.timeouts import wait_for

__all__ = ["Session", "Sessions"]

_REFUSALS = 6  # of a session, with twice the pause each time: a second and a half


@dataclass(eq=False)
class Session:
    """A place among those that sshd allows.

    Parameters
    ----------
    lasting : bool
        Whether it is for a command that goes on until it is told to end.
    opened : bool
        Whether sshd agreed.
    """

    lasting: bool
    opened: bool = False


class Sessions:
    """How many commands there are at once: sshd refuses more than its MaxSessions over one connection.

    Parameters
    ----------
    name : str
        The host's.
    limit : int
        How many to start with; refusals teach better.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._proven = 1
        self._taken: set[Session] = set()
        self._freed = asyncio.Condition()

    async def take(self, *, lasting: bool) -> Session:
        """Wait for a place."""
        session = Session(lasting)
        async with self._freed:
            await self._wait_for_place()
            self._taken.add(session)
        return session

    async def give(self, session: Session) -> None:
        """Give a place back."""
        async with self._freed:
            self._taken.discard(session)
            self._freed.notify_all()

    def opened(self, session: Session) -> None:
        """Note that sshd agreed."""
        session.opened = True
        self._proven = max(self._proven, sum(each.opened for each in self._taken))

    async def refused(self, session: Session, reason: str, times: int) -> None:
        """Learn from a refusal, and wait until another try makes sense.

        sshd frees a place a moment after its command has ended, so a refusal alone proves little.
        """
        async with self._freed:
            self._taken.discard(session)
            others = len(self._taken)
            self._limit = min(self._limit, max(self._proven, others))
            if times >= _REFUSALS and not others:
                raise HostError(
                    f"its sshd lets us in but opens no session: {reason}",
                    where=self._name,
                    hint="Look at MaxSessions and ForceCommand in its sshd_config.",
                )
            if times >= _REFUSALS and all(each.lasting for each in self._taken):
                raise self._full()
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await wait_for(self._change(), 0.02 * 2**times)
        async with self._freed:
            await self._wait_for_place()
            self._taken.add(session)

    async def _change(self) -> None:
        async with self._freed:
            await self._freed.wait()

    async def _wait_for_place(self) -> None:
        while len(self._taken) >= self._limit:
            if all(each.lasting for each in self._taken):
                raise self._full()
            await self._freed.wait()

    def _full(self) -> HostError:
        return HostError(
            f"all {len(self._taken)} sessions that its sshd allows over a connection are in use",
            where=self._name,
            hint="Raise MaxSessions in its sshd_config (the usual value is 10).",
        )
