"""GPUs for the jobs of one user on one node, where the batch system leaves it to them who takes which.

Who holds the lock on the file that has a device's UUID for a name has the device. The kernel gives a lock up
when its holder dies, so nothing has to be cleaned up, and nothing is taken away from the living.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Collection, Sequence

from .gpus import gpus, visible
from .layout import Problem
from .probe import affinity, numa

__all__ = ["Allotment", "choose"]

FOLDERS = ("/dev/shm", "/tmp")  # noqa: S108 - what is made there is looked at before it is trusted
"""Of this node alone; the first that can be written to."""

_PATIENCE = 30.0  # seconds for others who choose at this moment
_LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""What keeps one job from using a folder keeps all of them from it: then they meet in the next one."""


class Allotment:
    """The devices that this process holds, until it ends.

    Parameters
    ----------
    folders : sequence of str
        Where the folder of the locks may be made.
    library : str
        The driver's library.
    """

    def __init__(self, folders: Sequence[str] = FOLDERS, library: str = "libnvidia-ml.so.1") -> None:
        self._folders = folders
        self._library = library
        self._held: list[int] = []

    def take(self, count: int, name: str) -> dict[str, list[str]]:
        """Take devices of this node, of those that CUDA_VISIBLE_DEVICES names if it is set.

        Parameters
        ----------
        count : int
            How many.
        name : str
            Who they are for, to tell others.

        Returns
        -------
        dict
            ``gpus``, their UUIDs, and ``notes``, what a person should know.

        Raises
        ------
        Problem
            There are not so many, or others have them.
        """
        found, missing = gpus(self._library, processes=True)
        devices = visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
        folder = self._folder()
        with _Turn(folder):
            free: dict[str, int] = {}
            taken: list[str] = []
            for device in devices:
                path = folder / f"{device['uuid'].replace('/', '_')}.lock"
                handle = _lock(path)
                if handle is None:
                    taken.append(f"{device['uuid']} is held by {_holder(path)}")
                else:
                    free[device["uuid"]] = handle
            chosen = choose([device for device in devices if device["uuid"] in free], count, _near())
            for device in chosen:
                handle = free.pop(device["uuid"])
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "name": name}).encode(), 0)
                self._held.append(handle)
            for handle in free.values():
                os.close(handle)
        if not chosen:
            seen = [f"asked for {count}", f"{len(devices)} to be seen here, {len(free)} of them free"]
            why = "; ".join(part for part in (", ".join(seen), *taken, missing) if part)
            raise Problem("gpus", f"there are not enough GPUs: {why}", _HINT)
        return {
            "gpus": [device["uuid"] for device in chosen],
            "notes": [
                f"{device['uuid']} has others on it: {', '.join(map(_process, device['processes']))}"
                for device in chosen
                if device.get("processes")
            ],
        }

    def _folder(self) -> Path:
        """Return the folder of the locks: ours alone, and the same for all of our jobs on this node."""
        troubles = []
        for parent in self._folders:
            path = Path(parent) / f"envsync-gpus-{os.getuid()}"
            try:
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                about = path.lstat()
                if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                    raise OSError(errno.EACCES, f"{path} is somebody else's")
                path.chmod(0o700)
            except OSError as error:
                if error.errno not in _LASTING:
                    raise
                troubles.append(str(error))
            else:
                return path
        raise Problem(
            "unfit",
            f"GPUs cannot be shared out among jobs: there is no place for locks ({'; '.join(troubles)})",
            "Make one of these folders writable on the node.",
        )


_HINT = "Look at what nvidia-smi sees in a job there; have the batch system count GPUs as it counts cores."


def choose(devices: Sequence[dict[str, Any]], count: int, near: Collection[int]) -> list[dict[str, Any]]:
    """Choose devices that nobody computes on, as near to each other and to our cores as there are.

    Parameters
    ----------
    devices : sequence of dict
        ``{"uuid", "numa", "processes"}`` in the order of the bus, all free.
    count : int
        How many.
    near : collection of int
        The NUMA nodes of our cores.

    Returns
    -------
    list of dict
        In the order of the bus; empty if there are not so many.
    """
    idle = [device for device in devices if not device.get("processes")]
    if len(idle) < count:
        chosen = [*idle, *(device for device in devices if device not in idle)][:count]
        return [device for device in devices if device in chosen] if len(chosen) == count else []
    groups: dict[Any, list[dict[str, Any]]] = {}
    for device in idle:
        groups.setdefault(device["numa"], []).append(device)
    whole = [group for group in groups.values() if len(group) >= count]
    if whole:  # the one beside our cores; of several the fullest, which leaves room for who wants more
        return min(whole, key=lambda group: (group[0]["numa"] not in near, len(group)))[:count]
    most = sorted(groups.values(), key=lambda group: (-len(group), group[0]["numa"] not in near))
    chosen = [device for group in most for device in group][:count]
    return [device for device in devices if device in chosen]


class _Turn:
    """One who chooses at a time: who looks at locks by taking them keeps others from them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "choosing"
        self._handle = -1

    def __enter__(self) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            handle = _lock(self._path)
            if handle is not None:
                self._handle = handle
                return
            if time.monotonic() > until:
                raise Problem(
                    "gpus",
                    f"GPUs cannot be shared out: another process has had {self._path} for {_PATIENCE:.0f} s",
                    "Look whether a job of yours hangs on that node.",
                )
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)


def _near() -> set[int]:
    """Return the NUMA nodes of the cores that we have."""
    usable = set(affinity())
    return {node["node"] for node in numa() if usable.intersection(node["cores"])}


def _lock(path: Path) -> int | None:
    """Return an open file that is locked, None if somebody else has locked it. Children do not inherit it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} ({holder['name']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "a process that has not said who it is"


def _process(pid: int) -> str:
    """Return a process's number, and whose it is, if that is known here."""
    with contextlib.suppress(OSError, KeyError):
        return f"process {pid} of {pwd.getpwuid(Path(f'/proc/{pid}').stat().st_uid).pw_name}"
    return f"process {pid}"
