"""Where things lie on a host, and the errors that the agent reports."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

__all__ = [
    "TREES_PTH",
    "Cache",
    "Emit",
    "Problem",
    "checked_digest",
    "checked_name",
    "disk_problem",
    "exchange",
]

Emit = Callable[[Dict[str, Any]], None]

TREES_PTH = (
    "import os, sys; sys.path.extend(filter(None, os.environ.get('ENVSYNC_TREES', '').split(os.pathsep)))\n"
)
"""The environment's ``envsync.pth``: source trees after installed packages."""

_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_SETTING = "set cache= (or ENVSYNC_CACHE on that host) to a folder that you can write"


class Problem(Exception):  # noqa: N818 - it is what the other side is told
    """Something that the client is told, as it is.

    Parameters
    ----------
    kind : str
        ``"unfit"``, ``"realise"``, ``"corrupt"``, ``"process"`` or ``"usage"``: which error it becomes there.
    message : str
        What happened.
    hint : str, optional
        What to do next.
    """

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, str]:
        """Return it as the answer's ``error``."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


def disk_problem(error: OSError, doing: str) -> Problem:
    """Return what a failed write means for a person."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return Problem("unfit", f"{doing}: {why}{where}", f"Make room there, or {_SETTING}.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Problem(
            "unfit",
            f"{doing}: {os.strerror(error.errno).lower()}{where}",
            f"Make it writable, or {_SETTING}.",
        )
    return Problem("realise", f"{doing}: {error}", f"If the folder is the trouble, {_SETTING}.")


def checked_digest(text: object) -> str:
    """Return a sha256 digest, or raise `Problem`: it becomes part of a path."""
    if not isinstance(text, str) or not _DIGEST.match(text):
        raise Problem("usage", f"{text!r} is not a sha256 digest")
    return text


def checked_name(text: object) -> str:
    """Return the name of a cluster or process, or raise `Problem`: it becomes part of a path."""
    if not isinstance(text, str) or not _NAME.match(text):
        raise Problem("usage", f"{text!r} cannot name a process: use letters, digits, '.', '_' and '-'")
    return text


class Cache:
    """The cache folder of one user on one host.

    Parameters
    ----------
    root : Path
        An absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.pythons = root / "pythons"
        self.blobs = root / "blobs"
        self.wheels = root / "wheels"
        self.uv = root / "uv"
        self.envs = root / "envs"
        self.trees = root / "trees"
        self.runs = root / "runs"
        self.memory = root / "memory"

    def blob(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        return self.blobs / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Return whether a blob is here. An empty file that should not be is what a power cut left."""
        try:
            return self.blob(digest).stat().st_size > 0 or digest == _EMPTY
        except OSError:
            return False

    def environment(self, digest: str) -> Path:
        """Return where a lock's environment is, or would be."""
        return self.envs / digest


def private_folder(path: Path) -> None:
    """Make a folder for its user only, and those above it that are missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)


def token() -> str:
    """Return a name that nobody else has. (The module of that purpose takes long to import.)"""
    return os.urandom(8).hex()


def fresh(folder: Path, stem: str) -> Path:
    """Return a path in a folder that nobody else has; nothing is made."""
    return folder / f"{stem}{token()}"


@contextlib.contextmanager
def taken_back(path: Path) -> Iterator[Path]:
    """Remove a file or folder again if the body fails."""
    try:
        yield path
    except BaseException:
        remove(path)
        raise


def exchange(new: Path, target: Path) -> Path:
    """Give a folder the name of one that is there, and return what that one is called now.

    Nobody ever finds nothing under that name, where the system can do that (Linux, but not over NFS).
    """
    import ctypes

    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    with contextlib.suppress(OSError, AttributeError):
        paths = os.fsencode(new), os.fsencode(target)
        if ctypes.CDLL(None).renameat2(here, paths[0], here, paths[1], swap) == 0:
            return new
    old = fresh(target.parent, ".old-")
    with contextlib.suppress(FileNotFoundError):  # another one is doing the same
        target.rename(old)
    new.rename(target)
    return old


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
