"""Folders for work that is not whole yet: ``scratch/`` in the cache, on the disk where the blobs are."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import StoreError
from envsync.store import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scratch"]

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
