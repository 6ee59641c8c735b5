"""One maker at a time, among processes and hosts that share a file system: a folder with a heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Callable

from .layout import remove

__all__ = ["FolderLock"]

_BEAT = 2.0


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

    def __init__(self, path: Path, waiting: Callable[[dict[str, str]], None], *, stale: float = 20.0) -> None:
        self._path = path
        self._waiting = waiting
        self._stale = stale
        self._token = secrets.token_hex(16)
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> FolderLock:
        told = False
        seen: object = None
        since = time.monotonic()
        while not self._take():
            owner = _owner(self._path)
            state = (owner.get("token"), _touched(self._path))
            if state != seen:
                seen, since = state, time.monotonic()
            if _dead(owner) or time.monotonic() - since > self._stale:
                self._break(owner.get("token"))
                continue
            if not told and owner:
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
        if _owner(self._path).get("token") == self._token:
            remove(self._path)

    def _take(self) -> bool:
        # Made under another name with its owner in it, then renamed: nobody ever sees it without its owner.
        made = self._path.with_name(f"{self._path.name}.{self._token}")
        made.mkdir(mode=0o700, exist_ok=True)
        (made / "owner").write_text(json.dumps({**_self(), "token": self._token}), encoding="utf-8")
        try:
            made.rename(self._path)  # onto a folder that is not empty: refused
        except OSError:
            remove(made)
            return False
        return True

    def _live(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _break(self, token: str | None) -> None:
        aside = self._path.with_name(f"{self._path.name}.broken-{secrets.token_hex(6)}")
        try:
            self._path.rename(aside)
        except OSError:
            return  # another one was quicker
        if _owner(aside).get("token") != token:
            with contextlib.suppress(OSError):
                aside.rename(self._path)  # it had changed hands in between: back with it
        remove(aside)


def _self() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _link(Path("/proc/self/ns/pid")),
        "pid": str(os.getpid()),
        "started": _started(os.getpid()),
    }


def _dead(owner: dict[str, str]) -> bool:
    """Return whether the owner was a process of this very machine, and is gone."""
    here = _self()
    same = bool(here["boot"]) and all(owner.get(key) == here[key] for key in ("boot", "namespace"))
    return same and owner.get("started") != _started(int(owner.get("pid", "0")))


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks, which tells it from a later one of the same number."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _owner(path: Path) -> dict[str, str]:
    try:
        owner = json.loads((path / "owner").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
