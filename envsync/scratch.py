"""Folders for work that is not whole yet."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import StoreError
from envsync.store import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scratch"]


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Make a folder in the cache, on the disk where the blobs are, that is gone afterwards.

    Parameters
    ----------
    purpose : str
        Part of its name, for whoever finds one after a crash.

    Raises
    ------
    StoreError
        The cache cannot be written.
    """
    root = cache_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=root, prefix=f".{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(
            f"the cache folder cannot be written: {error.strerror}",
            where=str(root),
            hint="Set ENVSYNC_CACHE to a folder that you can write.",
        ) from error
    with folder as name:
        yield Path(name)
