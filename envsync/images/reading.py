"""Layers of others: their members, one after the other, whatever they are compressed with."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING, Any

from envsync.errors import ImageError
from envsync.images.deflate import BROKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envsync.images.oci import Descriptor, Images

__all__ = ["Chunks", "members"]

Member = tuple[tarfile.TarInfo, "Content"]


class Chunks(io.RawIOBase):
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as one chunk goes."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class Content:
    """What a member holds; to be read before the next member is asked for."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo, where: tuple[Images, str]) -> None:
        self._archive = archive
        self._member = member
        self._where = where

    def read(self, most: int = -1) -> bytes:
        """Read it, at most so many bytes."""
        with _telling(*self._where):
            file = self._archive.extractfile(self._member)
            return b"" if file is None else file.read(most)


def members(images: Images, layer: Descriptor) -> Iterator[Member]:
    """Yield the members of a layer with their contents. The blob is checked when all were read.

    Raises
    ------
    ImageError
        It cannot be read as a layer.
    CorruptBlobError
        It is not what its digest says.
    """
    chunks = images.open(layer.digest)
    raw: Any = io.BufferedReader(Chunks(chunks), 1 << 20)
    where = (images, layer.digest)
    with (
        _telling(*where),
        contextlib.closing(_plain(raw)) as plain,
        tarfile.open(fileobj=plain, mode="r|") as archive,
    ):
        for member in archive:
            yield member, Content(archive, member, where)
            held: Any = archive
            held.members.clear()  # it would remember them all
        while plain.read(1 << 20) or raw.read(1 << 20):
            pass


@contextlib.contextmanager
def _telling(images: Images, digest: str) -> Iterator[None]:
    """Say of which layer it is what cannot be read."""
    try:
        yield
    except (tarfile.TarError, EOFError, BROKEN, OSError) as error:
        raise ImageError(
            f"the layer {digest} cannot be read: {error}", where=images.name, hint="Put it there again."
        ) from error


def _plain(raw: Any) -> Any:
    magic = raw.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        from zlib_ng.gzip_ng import GzipNGFile

        unpacked: Any = GzipNGFile
        return unpacked(fileobj=raw, mode="rb")
    if magic == b"\x28\xb5\x2f\xfd":
        try:
            from zstandard import ZstdDecompressor
        except ImportError as error:
            raise ImageError(
                "a layer is compressed with zstd, and its library is not installed",
                hint="Install dask-envsync[zstd].",
            ) from error
        return io.BufferedReader(
            ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
        )
    return raw
