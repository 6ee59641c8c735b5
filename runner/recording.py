"""Keeps the record of a cluster that lives in this process: it is written, moved on, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envsync.errors import EnvsyncError
from envsync.runner.records import local_records
from envsync.runner.timeouts import wait_for
from envsync.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from envsync.hooks import Hooks
    from envsync.runner.records import Record, Records

__all__ = ["FAILED", "Recording", "look_every"]

FAILED = "its machines could not be ended"
"""How the end of a cluster begins that has left some."""

_LOOK = 10.0  # seconds between two looks whether somebody wants the cluster to end
_WRITE = 40.0  # seconds between two writes, at most
_ANSWER = 30.0  # seconds that a store may take: nothing waits longer for it
_UNKNOWN = "`envsync ls` does not show it on other machines; what is rented is found by its tags"


class Recording:
    """The record of one cluster.

    Parameters
    ----------
    record : Record
        As it begins.
    open_place : callable
        Returns where it is kept; called in a thread.
    store : str or None
        The store's URL, for who ends the cluster if this process dies.
    rented : bool
        Whether machines are rented: what cannot be written matters then, and is waited for.
    stands : async callable
        Returns what has changed: fields of the record.
    end : callable
        Called when somebody elsewhere wants the cluster to end, with who it is.
    hooks : Hooks
        Told what cannot be written.

    Attributes
    ----------
    watchdog : Watchdog or None
        Who ends what is rented if this process dies.
    """

    def __init__(
        self,
        record: Record,
        open_place: Callable[[], Records],
        *,
        store: str | None = None,
        rented: bool,
        stands: Callable[[], Awaitable[Mapping[str, Any]]],
        end: Callable[[str], None],
        hooks: Hooks,
    ) -> None:
        self.record = record
        self._open = open_place
        self._store = store
        self._rented = rented
        self._stands = stands
        self._end = end
        self._hooks = hooks
        self._place: Records | None = None
        self._local: Records | None = None
        self.watchdog: Watchdog | None = None
        self._missed = False
        self._writing = threading.Lock()
        self._over = False
        self._begun = False
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._look = look_every(record)
        self._write = min(_WRITE, record.patience / 7.5)

    async def begin(self) -> None:
        """Write it, before anything is rented; then move it on until `close`."""
        self._begun = True
        if self._rented:
            self.watchdog = Watchdog.begin(self.record, self._store)
            await self._keep()
        self._task = asyncio.ensure_future(self._move_on(kept=self._rented))

    def write_soon(self) -> None:
        """Have it written now rather than at the next turn: something has changed that others should know."""
        self._changed.set()

    async def close(self, how: str) -> None:
        """Write how it ended; silent if that is done, or if it never began."""
        begun, self._begun = self._begun, False
        if not begun:
            return
        if self._task is not None:  # none where its begin was interrupted: it may be there all the same
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._update()
        now = time.time()
        await self._keep(replace(self.record, seen=now, ended=now, how=how))
        if self.watchdog is not None and not how.startswith(FAILED):  # else it tries when this process ends
            await asyncio.to_thread(self.watchdog.dismiss)

    # -- inner

    async def _move_on(self, *, kept: bool) -> None:
        if not kept:
            await self._keep()
        written = time.monotonic()
        asked = False
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await wait_for(self._changed.wait(), self._look)
            with contextlib.suppress(Exception):  # the store does not answer: the next look may
                who = await asyncio.to_thread(self._wished_by)
                if who and not asked:
                    asked = True
                    self._hooks.warning(self.record.cluster, f"{who} has it ended")
                    self._end(who)
                    await self._keep(replace(self.record, how=f"{who} stops it"))  # whoever asked reads that
            if self._changed.is_set() or time.monotonic() - written >= self._write:
                self._changed.clear()
                written = time.monotonic()
                await self._update()
                await self._keep()

    async def _update(self) -> None:
        # no scheduler to ask, or it is busy: as it was. A record that is not moved on is of a dead client
        with contextlib.suppress(Exception):
            self.record = replace(self.record, **await self._stands())

    def _wished_by(self) -> str:
        return self._place.wished_by(self.record.cluster) if self._place is not None else ""

    async def _keep(self, record: Record | None = None) -> None:
        self.record = replace(record or self.record, seen=time.time())
        try:
            await wait_for(asyncio.to_thread(self._write_to, self.record), _ANSWER)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next write may go well
            # this process ends, and no thread begins any more: its watchdog closes the record
            if not self._missed and threading.main_thread().is_alive():
                self._missed = True
                late = "the store does not answer" if isinstance(error, asyncio.TimeoutError) else repr(error)
                why = error.message if isinstance(error, EnvsyncError) else late
                tell = self._hooks.warning if self._rented else self._hooks.note
                tell(self.record.cluster, f"its record: {why}. {_UNKNOWN}")

    def _write_to(self, record: Record) -> None:
        # a write that nobody waits for any more goes on in its thread: it must not bring back what has ended
        with self._writing:
            if not self._over:
                self._over = record.ended is not None
                self._write_now(record)

    def _write_now(self, record: Record) -> None:
        try:
            if self._place is None:
                self._place = self._open()
            self._place.keep(record)
            if record.ended is not None:
                self._place.forget_wish(record.cluster)
        except EnvsyncError:
            self._local = self._local or local_records()
            with contextlib.suppress(EnvsyncError):
                self._local.keep(record)  # so that at least this machine knows
            raise
        self._missed = False
        if self._local is not None:  # it has the record now
            with contextlib.suppress(EnvsyncError):
                self._local.drop(record.cluster)
            self._local = None


def look_every(record: Record) -> float:
    """Return after how many seconds a living client knows that somebody wants its cluster to end."""
    return min(_LOOK, record.patience / 8)
