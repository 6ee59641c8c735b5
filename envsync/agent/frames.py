"""Many pipes over one connection: what a carrier on a node and its client say to each other.

A frame is a kind, the number of a stream, a length and so many bytes. Each pipe has a window: nobody sends
more than the other side has room for, so a pipe that nobody reads holds up no other.
"""

from __future__ import annotations

import asyncio
import collections
import json
import struct
import time
from typing import Any, Awaitable, Callable

__all__ = [
    "DATA",
    "END",
    "EOF",
    "ERRORS",
    "EXIT",
    "HELLO",
    "INPUT",
    "MORE",
    "NOTICE",
    "OPEN",
    "OUTPUT",
    "PING",
    "REFUSED",
    "START",
    "Link",
    "Receiver",
    "Sender",
    "copy",
    "room_of",
]

HELLO, START, OPEN, REFUSED, DATA, MORE, EOF, EXIT, END, NOTICE, PING = range(1, 12)
"""Kinds of frames. All but DATA carry JSON, or nothing."""

INPUT, OUTPUT, ERRORS = b"i", b"o", b"e"
"""Pipes of a stream, by the first byte of what is said about them; a TCP connection has the first two."""

WINDOW = 1 << 20  # bytes that may be on their way
PIECE = 1 << 16  # bytes of one frame
_HEADER = struct.Struct("!BII")
_LONGEST = 1 << 20  # bytes of a frame that is not broken


class Link(asyncio.Protocol):
    """One connection, and its frames.

    Parameters
    ----------
    take : callable
        Given the kind, the stream and the payload of each frame.
    lost : callable
        Told why when the connection has ended: a word for people, empty if this side closed it.
    """

    def __init__(self, take: Callable[[int, int, bytes], None], lost: Callable[[str], None]) -> None:
        self.heard = time.monotonic()
        self.open = False
        self.made: Any = asyncio.get_running_loop().create_future()
        self._take = take
        self._lost = lost
        self._why = ""
        self._buffer = bytearray()
        self._transport: Any = None
        self._full = False
        self._waiting: list[Any] = []

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self.open = True
        if not self.made.done():
            self.made.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Cut frames from what came."""
        self.heard = time.monotonic()
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            kind, stream, size = _HEADER.unpack_from(self._buffer, at)
            if size > _LONGEST:
                self.abort("what came over it makes no sense")
                return
            end = at + _HEADER.size + size
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[at + _HEADER.size : end])
            at = end
            if kind != PING:
                self._take(kind, stream, payload)
        del self._buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whose it is."""
        self.open = False
        self.resume_writing()
        self._lost(self._why or (str(exc) or type(exc).__name__ if exc else "the other side closed it"))

    def pause_writing(self) -> None:
        """Have writers wait."""
        self._full = True

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._full = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def send(self, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        """Send a frame; silent when the connection has ended."""
        if self.open:
            self._transport.write(_HEADER.pack(kind, stream, len(payload)) + payload)

    def say(self, kind: int, stream: int = 0, **what: Any) -> None:
        """Send a frame of JSON."""
        self.send(kind, stream, json.dumps(what).encode())

    async def drain(self) -> None:
        """Wait until there is room for more; at once when the connection has ended."""
        if self._full:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    async def keep_alive(self, silence: float) -> None:
        """Give signs of life, and end the connection when there were none from the other side for so long."""
        while self.open:
            self.send(PING)
            await asyncio.sleep(min(10.0, silence / 4))
            if time.monotonic() - self.heard > silence:
                self.abort(f"nothing was heard from the other side for {silence:g} s")

    def close(self) -> None:
        """End it when what was sent has gone."""
        self._why = self._why or "closed"
        if self._transport is not None:
            self._transport.close()

    def abort(self, why: str) -> None:
        """End it now."""
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()


class Sender:
    """One pipe's end that writes.

    Parameters
    ----------
    link : Link
        What it goes over.
    stream : int
        Whose pipe it is.
    pipe : bytes
        Which.
    """

    def __init__(self, link: Link, stream: int, pipe: bytes) -> None:
        self.unread = False  # nobody reads it any more
        self._link = link
        self._stream = stream
        self._pipe = pipe
        self._room = WINDOW
        self._ended = False
        self._more: Any = None

    async def write(self, data: bytes) -> bool:
        """Send bytes, no faster than they are read; False if nobody reads them any more."""
        at = 0
        while at < len(data):
            while not self._room and not self.unread and self._link.open:
                self._more = asyncio.get_running_loop().create_future()
                await self._more
            if self.unread or not self._link.open:
                return False
            piece = data[at : at + min(PIECE, self._room)]
            self._room -= len(piece)
            at += len(piece)
            self._link.send(DATA, self._stream, self._pipe + piece)
            await self._link.drain()
        return not self.unread

    def end(self) -> None:
        """Say that this was all; once."""
        if not self._ended:
            self._ended = True
            self._link.send(EOF, self._stream, self._pipe)

    def more(self, room: int) -> None:
        """Hear that so many bytes were read there."""
        self._room += room
        self._go_on()

    def stop(self) -> None:
        """Hear that nobody reads there."""
        self.unread = True
        self._go_on()

    def _go_on(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)


class Receiver:
    """One pipe's end that reads.

    Parameters
    ----------
    link, stream, pipe
        As `Sender`.
    """

    def __init__(self, link: Link, stream: int, pipe: bytes) -> None:
        self._link = link
        self._stream = stream
        self._pipe = pipe
        self._pieces: collections.deque[bytes] = collections.deque()
        self._ended = False
        self._some: Any = None

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._pieces.append(data)
        self._wake()

    def end(self) -> None:
        """Hear that this was all."""
        self._ended = True
        self._wake()

    async def read(self, size: int = PIECE) -> bytes:
        """Return the next bytes, at most so many; ``b""`` at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._some = asyncio.get_running_loop().create_future()
            await self._some
        data = self._pieces.popleft()
        if len(data) > size:
            self._pieces.appendleft(data[size:])
            data = data[:size]
        self._link.send(MORE, self._stream, self._pipe + struct.pack("!I", len(data)))
        return data

    def refuse(self) -> None:
        """Say that nobody reads it any more."""
        self._link.send(EOF, self._stream, self._pipe)
        self._pieces.clear()
        self._ended = True

    def _wake(self) -> None:
        if self._some is not None and not self._some.done():
            self._some.set_result(None)


async def copy(read: Callable[[], Awaitable[bytes]], sender: Sender) -> None:
    """Send all that is read, then the end."""
    while True:
        data = await read()
        if not data:
            break
        if not await sender.write(data):
            return
    sender.end()


def room_of(payload: bytes) -> int:
    """Return what a MORE frame says."""
    return int(struct.unpack("!I", payload[1:])[0])
