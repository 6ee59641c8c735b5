"""Layers: tar archives (POSIX.1-2001) that depend on nothing but what is in them, compressed while they grow.

Files are root's, of one day, and as readable and executable as everybody's: no user, no time and no umask of
the machine that makes a layer shows in it.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envsync.errors import ImageError
from envsync.images.deflate import CHUNK, Member, deflated
from envsync.images.oci import LAYER_GZIP, LAYER_ZSTD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["COMPRESSIONS", "MTIME", "Content", "Entry", "Layer", "Plain"]

MTIME = 315_619_200  # 1980-01-02: what zip files can hold, in every time zone
COMPRESSIONS = {"gzip": LAYER_GZIP, "zstd": LAYER_ZSTD}
"""Media types of layers."""

_BLOCK = 512
_FEW = 1 << 16  # bytes of headers that wait for a file to go with
_ZSTD_LEVEL = 3
_NUMBERS = b"%07o\0%07o\0%07o\0%011o\0%011o\0"
_SPACES = b" " * 8


class Content(Protocol):
    """What a file holds."""

    @property
    def size(self) -> int:
        """Bytes, when nothing is compressed."""
        ...

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield deflated bytes, and the plain ones that can be read when they are there.

        Together they are one deflate stream, from its beginning to its last block.
        """
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A file's content that is not compressed yet.

    Attributes
    ----------
    size : int
        Bytes.
    chunks : callable
        Gives them.
    """

    size: int
    chunks: Callable[[], Iterable[bytes]]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Compress it."""
        return deflated(self.chunks())


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a link in a layer. Folders come by themselves.

    Attributes
    ----------
    path : str
        From the image's root, without a slash before it.
    content : bytes or Content
        What a file holds: bytes are taken as they are, uncompressed.
    executable : bool
        Of a file.
    link : str
        Where a link leads; empty for a file.
    """

    path: str
    content: bytes | Content = b""
    executable: bool = False
    link: str = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


class Layer:
    """A layer's bytes; each iteration makes them anew.

    Of two entries with one path the first stands.

    Parameters
    ----------
    entries : callable
        Gives them, in an order that is always the same.
    compression : str
        ``"gzip"`` or ``"zstd"``.
    root : str
        The folder that all is in. It gets no entry of its own if the base has it: those below it do.
    """

    def __init__(
        self, entries: Callable[[], Iterable[Entry]], *, compression: str = "gzip", root: str = "opt"
    ) -> None:
        self._entries = entries
        self._compression = compression
        self._root = root
        self._sha = hashlib.sha256()
        self.plain = 0

    @property
    def diff_id(self) -> str:
        """The digest of the tar archive, once the last chunk was read."""
        return f"sha256:{self._sha.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        self._sha, self.plain = hashlib.sha256(), 0
        return _joined(_gzip(self) if self._compression == "gzip" else _zstd(self))

    def steps(self) -> Iterator[tuple[bytes, Content | None]]:
        """Yield the archive in order: bytes, and the content that follows them, if it is no bytes."""
        made = {self._root}
        seen: set[str] = set()
        before = b""
        for entry in self._entries():
            if entry.path in seen:
                continue
            seen.add(entry.path)
            folders = []
            parent = entry.path.rpartition("/")[0]
            while parent and parent not in made:
                made.add(parent)
                folders.append(_header(f"{parent}/", b"5", 0, 0o755))
                parent = parent.rpartition("/")[0]
            head = before + b"".join(reversed(folders))
            before = b"\0" * (-entry.size % _BLOCK)
            if entry.link:
                yield head + _header(entry.path, b"2", 0, 0o777, entry.link), None
                continue
            head += _header(entry.path, b"0", entry.size, 0o755 if entry.executable else 0o644)
            if isinstance(entry.content, bytes):
                yield head + entry.content, None
            else:
                yield head, entry.content
        yield before + b"\0" * (2 * _BLOCK), None

    def count(self, plain: bytes) -> None:
        """Take note of bytes of the archive."""
        self.plain += len(plain)
        self._sha.update(plain)


def _gzip(layer: Layer) -> Iterator[bytes]:
    waiting = b""
    for head, content in layer.steps():
        waiting += head
        if content is None:
            if len(waiting) >= _FEW:
                yield Member(waiting).alone()
                layer.count(waiting)
                waiting = b""
            continue
        member = Member(waiting)
        yield member.begin()
        held = [waiting]
        waiting, size = b"", 0
        for packed, plain in content.pieces():
            yield packed
            member.hold(plain)
            held.append(plain)
            size += len(plain)
            if size >= CHUNK:
                layer.count(b"".join(held))
                held, size = [], 0
        layer.count(b"".join(held))
        yield member.end()
    yield Member(waiting).alone()
    layer.count(waiting)


def _zstd(layer: Layer) -> Iterator[bytes]:
    try:
        from zstandard import ZstdCompressor
    except ImportError as error:
        raise ImageError(
            "layers are to be compressed with zstd, and its library is not installed",
            hint="Install dask-envsync[zstd], or let layers be compressed with gzip.",
        ) from error
    packer = ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=False).compressobj()
    for plain in _joined(_plain(layer)):
        layer.count(plain)
        yield packer.compress(plain)
    yield packer.flush()


def _plain(layer: Layer) -> Iterator[bytes]:
    for head, content in layer.steps():
        yield head
        if content is not None:
            for _, plain in content.pieces():
                yield plain


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces that are no smaller than a chunk, but for the last one."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _header(path: str, kind: bytes, size: int, mode: int, link: str = "") -> bytes:
    """Return the header of a file, folder or link; one that tar has no room for gets a second one (pax)."""
    name, target, prefix = path.encode("utf-8", "surrogateescape"), link.encode(), b""
    if len(name) > 100:
        at = name.rfind(b"/", 0, -1)
        prefix, name = name[: max(at, 0)], name[at + 1 :]
    plain = name.isascii() and prefix.isascii() and target.isascii()
    if not plain or len(name) > 100 or len(prefix) > 155 or len(target) > 100 or size >= 1 << 33:
        return _pax(path, kind, size, mode, link)
    head = b"".join(
        (
            name.ljust(100, b"\0"),
            _NUMBERS % (mode, 0, 0, size, MTIME),
            _SPACES,
            kind,
            target.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(80),
            prefix.ljust(167, b"\0"),
        )
    )
    return b"%b%06o\0 %b" % (head[:148], sum(head), head[156:])


def _pax(path: str, kind: bytes, size: int, mode: int, link: str) -> bytes:
    info = tarfile.TarInfo(path.rstrip("/"))
    info.type, info.size, info.mode, info.mtime, info.linkname = kind, size, mode, MTIME, link
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
