"""One maker at a time, among processes and hosts that share a file system: a folder with a heartbeat."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Callable

from .layout import remove, token
from .owner import Owner, lives, read_owner, write_owner

__all__ = ["FolderLock", "break_lock"]

_BEAT = 2.0
_TRY = 1.0  # seconds between two tries to take what somebody seems to hold


class FolderLock:
    """Held by whoever could make the folder, which works on every file system, NFS too.

    The holder touches it every few seconds. Whoever waits breaks it when its holder is known to be dead (same
    machine), or has not touched it for a while by the waiter's own clock: two machines' clocks differ.

    Parameters
    ----------
    path : Path
        The folder.
    waiting : callable
        Called once with the holder's description when there is one to wait for.
    stale : float
        Seconds without a touch after which the holder counts as dead.
    """

    def __init__(self, path: Path, waiting: Callable[[Owner], None], *, stale: float = 20.0) -> None:
        self._path = path
        self._waiting = waiting
        self._stale = stale
        self._token = token()
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> FolderLock:
        told = False
        seen: object = None
        since = tried = time.monotonic()
        owner: Owner = {}
        while True:
            # Reading is what shows other hosts' changes on NFS, and costs little; trying writes.
            if not owner or time.monotonic() - tried > _TRY:
                tried = time.monotonic()
                if self._take():
                    break
            owner = read_owner(self._path)
            state = (owner.get("token"), _touched(self._path))
            if state != seen:
                seen, since = state, time.monotonic()
            if lives(owner) is False or time.monotonic() - since > self._stale:
                break_lock(self._path, owner.get("token"))
                owner = {}
            elif not told and owner:
                told = True
                self._waiting(owner)
            time.sleep(0.1)
        self._beat = threading.Thread(target=self._live, daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._beat is not None:
            self._beat.join()
        if read_owner(self._path).get("token") == self._token:
            remove(self._path)

    def _take(self) -> bool:
        # Made under another name with its owner in it, then renamed: nobody ever sees it without its owner.
        made = self._path.with_name(f"{self._path.name}.{self._token}")
        made.mkdir(mode=0o700, exist_ok=True)
        write_owner(made, token=self._token)
        try:
            made.rename(self._path)  # onto a folder that is not empty: refused
        except OSError as error:
            remove(made)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def _live(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def break_lock(path: Path, holder: str | None) -> None:
    """Take a lock away from a dead holder, unless it has changed hands meanwhile.

    Parameters
    ----------
    path : Path
        The lock's folder.
    holder : str or None
        The dead holder's token, as its owner file has it.
    """
    aside = path.with_name(f"{path.name}.broken-{token()}")
    try:
        path.rename(aside)
    except OSError:
        return  # another one was quicker
    if read_owner(aside).get("token") != holder:
        with contextlib.suppress(OSError):
            aside.rename(path)  # back with it
    remove(aside)


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
