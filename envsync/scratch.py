"""Folders for work that is not whole yet: ``scratch/`` in the cache, on the disk where the blobs are.

Folders with keys in them are in the temporary folder, with an owner, and are swept from there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.agent.owner import lives, read_owner
from envsync.errors import StoreError
from envsync.store import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scratch", "sweep_temporary"]

_ABANDONED = 24 * 3600.0  # seconds after which nobody works in a folder any more


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Make a folder in the cache that is gone afterwards. Those that crashes left are removed.

    Parameters
    ----------
    purpose : str
        Part of its name, for whoever finds one after a crash.

    Raises
    ------
    StoreError
        The cache cannot be written.
    """
    root = cache_root() / "scratch"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=root, prefix=f"{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(
            f"the cache folder cannot be written: {error.strerror}",
            where=str(root),
            hint="Set ENVSYNC_CACHE to a folder that you can write.",
        ) from error
    with folder as name:
        _sweep(root)
        yield Path(name)


def _sweep(root: Path) -> None:
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path)


def sweep_temporary(prefix: str) -> None:
    """Remove folders in the temporary folder whose process was killed before it could do so.

    Only this user's folders count, and only those whose process of this machine is known to be gone.

    Parameters
    ----------
    prefix : str
        What their names begin with.
    """
    try:
        found = [entry for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(prefix)]
    except OSError:
        return
    for entry in found:
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            owner = read_owner(Path(entry.path))
            if owner and lives(owner) is False:
                shutil.rmtree(entry.path)
