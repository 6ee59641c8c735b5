"""Which processes of a host are alive, and one at a time of them: for folders that several share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from types import TracebackType
from typing import Any, Dict

__all__ = ["HostLock", "OwnerLock", "lives", "locked", "myself", "token"]

Owner = Dict[str, str]

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


def myself() -> Owner:
    """Describe this process: its machine since when it started, and itself among all that had its number."""
    pid = os.getpid()
    return {
        "host": os.uname().nodename,
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": str(pid),
        "started": _started(str(pid)),
    }


def lives(owner: Owner) -> bool | None:
    """Return whether a process still runs, None if that is not known here: it is not of this machine."""
    here = myself()
    if not here["boot"] or any(owner.get(key) != here[key] for key in ("boot", "namespace")):
        return None
    pid = str(owner.get("pid", ""))
    return pid.isdigit() and owner.get("started") == _started(pid) != ""


def token() -> str:
    """Return a name that nobody else has, and that `lives` can be asked about: `owner_of`."""
    return os.urandom(8).hex()


def locked(number: int, *, shared: bool = False) -> bool | None:
    """Lock an open file without waiting: False if another one has it, None if this file system cannot."""
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


class HostLock:
    """Held by one process at a time, and let go by the kernel when that dies.

    It waits, so it is nothing for an event loop. It may be taken in one thread and let go in another.

    Parameters
    ----------
    path : str
        A file, which stays. Where the file system has no locks, a folder beside it is taken: `OwnerLock`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._number = -1
        self._other: OwnerLock | None = None

    def __enter__(self) -> HostLock:
        number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        wait = 0.005
        try:
            held = locked(number)
            while held is False:
                time.sleep(wait)
                wait = min(wait * 1.5, 0.1)
                held = locked(number)
        except BaseException:
            os.close(number)
            raise
        if held is None:
            os.close(number)
            self._other = OwnerLock(self._path + ".owner").__enter__()
        else:
            self._number = number
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._other is not None:
            self._other.__exit__(kind, error, trace)
            self._other = None
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


class OwnerLock:
    """Held by whoever could make the folder; taken from an owner that is dead.

    Parameters
    ----------
    path : str
        The folder.
    stale : float
        Seconds after which an owner of whom nothing can be known, on another machine, counts as dead.
    """

    def __init__(self, path: str, *, stale: float = 600.0) -> None:
        self._path = path
        self._stale = stale
        self._token = token()

    def __enter__(self) -> OwnerLock:
        seen, since = "", time.monotonic()
        while not self._take():
            owner = _read_owner(self._path)
            if owner.get("token", "") != seen:
                seen, since = owner.get("token", ""), time.monotonic()
            alive = lives(owner) if owner else None
            if alive is False or (alive is None and time.monotonic() - since > self._stale):
                self._break(seen)
            else:
                time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _read_owner(self._path).get("token") == self._token:
            shutil.rmtree(self._path, ignore_errors=True)

    def _take(self) -> bool:
        # Made under another name with its owner in it, then renamed: nobody ever sees it without its owner.
        made = f"{self._path}.{self._token}"
        os.makedirs(made, mode=0o700, exist_ok=True)
        with open(os.path.join(made, "owner"), "w", encoding="utf-8") as file:
            json.dump({**myself(), "token": self._token}, file)
        try:
            os.rename(made, self._path)  # onto a folder that is not empty: refused
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def _break(self, holder: str) -> None:
        aside = f"{self._path}.{token()}"
        try:
            os.rename(self._path, aside)
        except OSError:
            return  # another one was quicker
        if _read_owner(aside).get("token", "") != holder:
            with contextlib.suppress(OSError):
                os.rename(aside, self._path)  # it has changed hands meanwhile: back with it
        shutil.rmtree(aside, ignore_errors=True)


def _read_owner(folder: str) -> Owner:
    try:
        with open(os.path.join(folder, "owner"), encoding="utf-8") as file:
            owner: Any = json.load(file)
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _started(pid: str) -> str:
    """Return when a process started, in clock ticks, which tells it from a later one of the same number."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
