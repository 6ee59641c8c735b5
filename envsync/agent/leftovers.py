"""What crashed agents left on a host: found by the next one, and removed.

Of an agent of this machine it is known whether it lives. What belongs to one elsewhere, on a file system that
machines share, counts as left behind once it was not touched for so long that no living one would have
let it be.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Iterator

from .folderlock import break_lock
from .layout import Cache, remove
from .owner import lives, read_owner

__all__ = ["sweep", "touch_runs"]

_HOUR = 3600.0
_ABANDONED = 6 * _HOUR  # seconds after which an unfinished file or folder has no maker any more
_SILENT = 24 * _HOUR  # seconds after which a run folder that is to be touched every few minutes has no agent
_OLD = 14 * 24 * _HOUR  # seconds that the logs of what has ended are kept
_UNFINISHED = (".old-", ".placing-", ".unpacking-", ".unfinished-", ".uv-")


def sweep(cache: Cache) -> list[str]:
    """Remove what crashes left behind, and logs that are old.

    Parameters
    ----------
    cache : Cache
        Where.

    Returns
    -------
    list of str
        What was removed: paths in the cache.
    """
    gone = []
    _break_locks(cache)
    for path in (*_unfinished(cache), *_builds(cache), *_runs(cache)):
        with contextlib.suppress(OSError):
            remove(path)
            gone.append(str(path.relative_to(cache.root)))
    with contextlib.suppress(OSError):
        for cluster in cache.runs.iterdir():
            with contextlib.suppress(OSError):
                cluster.rmdir()  # refused unless it is empty
    return gone


def touch_runs(cache: Cache, keys: list[str]) -> None:
    """Let agents elsewhere know that the run folders of these processes have an owner who lives."""
    for key in keys:
        with contextlib.suppress(OSError):
            os.utime(cache.runs / key / "owner")


def _unfinished(cache: Cache) -> Iterator[Path]:
    for folder in (cache.envs, cache.trees, cache.pythons, cache.blobs, cache.bin):
        for path in _in(folder, *_UNFINISHED):
            if _age(path) > _ABANDONED:
                yield path


def _builds(cache: Cache) -> Iterator[Path]:
    """Yield environments that nobody goes on making: whoever makes one holds its lock."""
    for path in _in(cache.envs, ".building-"):
        digest = path.name[len(".building-") :].partition("-")[0]
        lock = cache.envs / f".lock-{digest}"
        if not lock.exists() or lives(read_owner(lock)) is False or _age(path) > _ABANDONED:
            yield path


def _break_locks(cache: Cache) -> None:
    for path in _in(cache.envs, ".lock-"):
        owner = read_owner(path)
        if lives(owner) is False or (not owner and _age(path) > _ABANDONED):
            break_lock(path, owner.get("token"))


def _runs(cache: Cache) -> Iterator[Path]:
    """Yield what was given to processes that are gone, keys among it, and run folders that are old."""
    with contextlib.suppress(OSError):
        for folder in sorted(cache.runs.glob("*/*")):
            owner = read_owner(folder)
            touched = min(map(_age, (folder, *folder.iterdir())))
            if owner:
                alive = lives(owner)
                if alive or (alive is None and _age(folder / "owner") < _SILENT):
                    continue
                after = owner.get("after")
                if alive is False and isinstance(after, list):
                    from .supervise import run_after

                    run_after([str(part) for part in after])
                yield from (folder / Path(str(name)).name for name in owner.get("files", ()))
                yield folder / "owner"
            if touched > _OLD:
                yield folder


def _in(folder: Path, *beginnings: str) -> Iterator[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    yield from (folder / name for name in names if name.startswith(beginnings))


def _age(path: Path) -> float:
    """Return how many seconds ago something was touched last, 0 if it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
