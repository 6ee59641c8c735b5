"""The folder of a host that overlays are in, and what is done to files there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Iterable

from .hostlock import lives, myself, token

__all__ = [
    "Adding",
    "clone",
    "disturbed",
    "is_left_behind",
    "is_whole",
    "may_load",
    "part_in",
    "remove",
    "root",
    "traces",
]

_CLONE = 0x40049409  # FICLONE
_CHUNK = 1 << 16  # bytes; smaller files are copied in less time than it takes to ask for a clone


def root() -> Path:
    """Return the folder of this user's overlays, made if it is not there.

    Raises
    ------
    OSError
        Others could write to it, or to where it leads.
    """
    given = os.environ.get("ENVSYNC_OVERLAYS", "")
    if given:
        path = Path(given).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        path = Path(_temporary(), f"envsync-{os.geteuid()}")
    hint = "remove it, or set ENVSYNC_OVERLAYS to a folder of your own"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"{path} is a link, and nothing is put where others may have it lead: {hint}")
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is no folder: {hint}")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user (uid {status.st_uid}): {hint}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{path} is open to others (mode {mode:o}): chmod 700 it, or {hint}")
    return path


def _temporary() -> str:
    try:
        from dask import config
    except ImportError:
        folder = None
    else:
        folder = config.get("temporary-directory", None)
    if not folder:
        return tempfile.gettempdir()
    path = os.path.abspath(os.path.expanduser(str(folder)))
    os.makedirs(path, exist_ok=True)
    return path


class Adding:
    """A blob on its way to the disk. Ended without `commit`, it was never there."""

    def __init__(self, part: str, target: str, sha256: str) -> None:
        self._part = part
        self._target = target
        self._sha256 = sha256
        self._sha = hashlib.sha256()
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file = open(number, "wb", buffering=0)  # noqa: SIM115 - open until commit or abort

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append what came."""
        view = memoryview(chunk).cast("B")
        self._sha.update(view)
        while view:
            view = view[self._file.write(view) :]

    def commit(self) -> None:
        """Let it appear, if it is what it is called.

        Raises
        ------
        ValueError
            It is not, and is gone.
        """
        self._file.close()
        if self._sha.hexdigest() != self._sha256:
            self.abort()
            raise ValueError(
                f"what came for {self._sha256[:12]} is not that: its sha256 is another; send it again"
            )
        os.replace(self._part, self._target)

    def abort(self) -> None:
        """Remove what came; silent where nothing is left."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part)

    def __enter__(self) -> Adding:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def part_in(folder: str) -> str:
    """Return a name for something unfinished, by which it is known when its maker is gone."""
    me = myself()
    return f"{folder}/.part-{_number(me['namespace'])}-{me['pid']}-{me['started'] or 0}-{token()}"


def _number(namespace: str) -> str:
    return "".join(re.findall(r"\d", namespace)) or "0"


def may_load(label: str, folder: str) -> None:
    """Refuse what cannot work: compiled modules where nothing may be executed."""
    compiled = label.endswith(".whl") and not label.endswith("-any.whl")
    if compiled and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise PermissionError(
            f"{label} has compiled modules, and {folder} is on a file system mounted noexec: "
            "set ENVSYNC_OVERLAYS to a folder of your own elsewhere"
        )


def is_whole(path: str) -> bool:
    """Tell whether a folder is as it appeared; what was added beside, such as bytecode, does not count."""
    return disturbed(path) == ([], [])


def disturbed(path: str) -> tuple[list[str], list[str]]:
    """Return which files of a folder were written to since it appeared, and which are gone.

    Where that is not known any more, its own notes are what is gone: ``.seen``.
    """
    try:
        with open(f"{path}/.seen", encoding="utf-8") as file:
            seen = json.load(file)["files"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        return [], [".seen"]
    there = traces(path, (name for name, _ in seen))
    other = [name for name, trace in seen if there[name] not in ("", trace)]
    return other, [name for name in there if not there[name]]


def traces(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """Return for each file what differs whenever it was written to; "" if it is not there."""
    found = {}
    for path in paths:
        try:
            status = os.lstat(f"{folder}/{path}")
        except OSError:  # noqa: PERF203
            found[path] = ""
        else:
            found[path] = f"{status.st_size} {status.st_mtime_ns} {status.st_mode:o}"
    return found


def is_left_behind(name: str) -> bool:
    """Tell whether unfinished work is that of a process that is gone."""
    found = re.match(r"\.part-(\d+)-(\d+)-(\d+)-", name)
    here = myself()
    if not found or not here["boot"]:
        return False
    if found.group(1) != _number(here["namespace"]):
        return False
    return lives({**here, "pid": found.group(2), "started": found.group(3)}) is False


def clone(source: str, target: str, mode: int) -> None:
    """Copy a file, sharing its blocks where the file system can: code may write to its own files."""
    content = os.open(source, os.O_RDONLY)
    try:
        file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            data = os.read(content, _CHUNK)
            if len(data) == _CHUNK:
                with contextlib.suppress(OSError):
                    fcntl.ioctl(file, _CLONE, content)
                    return
            while data:
                data = data[os.write(file, data) :] or os.read(content, _CHUNK)
        finally:
            os.close(file)
    finally:
        os.close(content)


def remove(path: str) -> None:
    """Remove a file or a folder with all in it, as far as that can be done; silent where there is none."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
