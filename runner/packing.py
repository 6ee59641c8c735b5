"""Blobs that shrink on their way to a host: wheels are packed already, programs and source code are not."""

from __future__ import annotations

import io
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from envsync.errors import StoreError
from envsync.scratch import scratch
from envsync.store import recall, remember

if TYPE_CHECKING:
    from envsync.store import Store

__all__ = ["packed"]

_SMALL = 1024  # bytes; smaller ones go as they are
_LARGE = 1 << 20  # bytes; larger ones are packed once, and kept so in the store
_WORTH = 0.8  # of its size: what does not get smaller than that goes as it is
_SAMPLE = 64 * 1024
_CHUNK = 1 << 20
_QUICK, _WELL = 1, 4  # levels of zlib: for what goes now, and for what is kept
_SIGNS = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x89PNG", b"\xff\xd8\xff")
_one_at_a_time = threading.Lock()  # many hosts ask for the same at once


def packed(store: Store, digest: str, file: BinaryIO, size: int) -> tuple[BinaryIO, int] | None:
    """Return a blob as a zlib stream (RFC 1950) and its length, or None if it is as well sent as it is.

    Parameters
    ----------
    store : Store
        Where the packed form of large blobs is kept for the next host.
    digest : str
        The blob.
    file : binary file
        Its bytes, at their beginning; there again afterwards.
    size : int
        How many.
    """
    if size < _SMALL or not _shrinks(file, size):
        return None
    if size < _LARGE:
        data = zlib.compress(file.read(), _QUICK)
        file.seek(0)
        return io.BytesIO(data), len(data)
    try:
        with _one_at_a_time:
            kept, length = _kept(store, digest, file)
        return store.open(kept), length
    except (OSError, StoreError):  # no room to keep it: it goes as it is
        file.seek(0)
        return None


def _shrinks(file: BinaryIO, size: int) -> bool:
    """Look at some of it, from its middle: beginnings are often unlike the rest."""
    sign = file.read(8)
    if sign.startswith(_SIGNS):
        file.seek(0)
        return False
    file.seek(max(0, (size - _SAMPLE) // 2))
    sample = file.read(_SAMPLE)
    file.seek(0)
    return len(zlib.compress(sample, _QUICK)) < _WORTH * len(sample)


def _kept(store: Store, digest: str, file: BinaryIO) -> tuple[str, int]:
    """Return the blob that is another one packed, and its size; made if it is not there."""
    known = recall("packed", digest)
    if known and known["digest"] in store.has([known["digest"]]):
        return known["digest"], known["size"]
    packer = zlib.compressobj(_WELL)
    with scratch("packing") as folder:
        path = Path(folder, "blob.zlib")
        with path.open("wb") as out:
            while data := file.read(_CHUNK):
                out.write(packer.compress(data))
            out.write(packer.flush())
        size = path.stat().st_size
        kept = store.put(path)
    remember("packed", digest, {"digest": kept, "size": size})
    return kept, size
