"""Gzip whose bytes are the same everywhere: no library's compressor has a say in them.

The contents of wheels are deflated already (RFC 1951), so a layer takes them as they are. What stands between
them, tar headers and blanks, is written here with the fixed Huffman codes of that format. A layer is a row of
gzip members (RFC 1952), one for each file; all that read layers read such rows.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import TYPE_CHECKING, Any

from zlib_ng import zlib_ng

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BROKEN", "Member", "deflated", "stored"]

CHUNK = 1 << 20
LEVEL = 6
_module: Any = zlib_ng  # its types have the error as a value
BROKEN: type[Exception] = _module.error
"""What is raised by what is no deflate stream."""

_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no system
_ALIGN = b"\x00\x00\xff\xff"  # what follows the three bits of an empty stored block
_STORED = 65535
_RUNS = re.compile(rb"(\0{4,})")


def _reversed(code: int, length: int) -> int:
    return int(format(code, f"0{length}b")[::-1], 2)


# Of the fixed codes: bytes up to 143 have 8 bits, so that a text is its translation.
_LITERALS = bytes(_reversed(0x30 + byte, 8) if byte < 144 else 0 for byte in range(256))
_WIDE = re.compile(rb"[\x90-\xff]")


@functools.lru_cache(maxsize=4096)
def _zeros(count: int) -> tuple[int, int]:
    """Return the bits of a run of zero bytes, at least four: one of them, and repetitions of it."""
    value, bits = _LITERALS[0], 8
    count -= 1
    while count:
        length = min(count, 258)
        if 0 < count - length < 3:
            length -= 3 - (count - length)  # the shortest repetition is of three
        code, width = _REPEATS[length]
        value |= code << bits
        bits += width
        count -= length
    return value, bits


def _repeats() -> dict[int, tuple[int, int]]:
    """Return the bits of a repetition of the last byte, by length: code, extra bits and distance 1."""
    found = {258: (_reversed(0xC0 + 5, 8), 13)}
    base, symbol = 3, 257
    for extra in (0, 0, 1, 2, 3, 4, 5):
        for _ in range(4):
            code, width = (symbol - 256, 7) if symbol < 280 else (0xC0 + symbol - 280, 8)
            for more in range(1 << extra):
                found.setdefault(base + more, (_reversed(code, width) | more << width, width + extra + 5))
            base += 1 << extra
            symbol += 1
    return found


_REPEATS = _repeats()


def _fixed(data: bytes) -> tuple[int, int] | None:
    """Return the bits of a block with fixed codes that another one follows; None if they do not fit it."""
    if _WIDE.search(data):
        return None
    value, bits = 2, 3  # not the last block; fixed codes
    for number, run in enumerate(_RUNS.split(data)):  # every other one is zeros
        if number & 1:
            code, width = _zeros(len(run))
        else:
            code, width = int.from_bytes(run.translate(_LITERALS), "little"), 8 * len(run)
        value |= code << bits
        bits += width
    return value, bits + 7  # the end of a block is seven zeros


def stored(data: bytes, *, last: bool) -> bytes:
    """Return bytes as stored blocks, beginning at a byte's border."""
    blocks = []
    for at in range(0, len(data) or 1, _STORED):
        piece = data[at : at + _STORED]
        final = last and at + _STORED >= len(data)
        blocks += [struct.pack("<BHH", final, len(piece), len(piece) ^ 0xFFFF), piece]
    return b"".join(blocks)


def deflated(plain: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Compress what is not compressed yet: pairs of compressed bytes and what they hold.

    zlib-ng gives the same bytes on every processor; another version of it may not, so it is pinned.
    """
    packer = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15)
    for piece in plain:
        yield packer.compress(piece), piece
    yield packer.flush(), b""


class Member:
    """One gzip member, as it grows.

    Parameters
    ----------
    head : bytes
        What it begins with: tar headers.
    """

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._check = zlib_ng.crc32(head)
        self._size = len(head)

    def alone(self) -> bytes:
        """Return the member that holds nothing else."""
        block = _fixed(self._head)
        if block is None:
            return _HEAD + stored(self._head, last=True) + self.end()
        value, bits = block
        return _HEAD + (value | 1).to_bytes((bits + 7) // 8, "little") + self.end()

    def begin(self) -> bytes:
        """Return what comes before deflated bytes that end by themselves."""
        block = _fixed(self._head)
        if block is None:
            return _HEAD + stored(self._head, last=False)
        value, bits = block
        return _HEAD + value.to_bytes((bits + 3 + 7) // 8, "little") + _ALIGN

    def hold(self, plain: bytes) -> None:
        """Take note of what deflated bytes hold."""
        self._check = zlib_ng.crc32(plain, self._check)
        self._size += len(plain)

    def end(self) -> bytes:
        """Return what comes after them."""
        return struct.pack("<II", self._check, self._size & 0xFFFFFFFF)
