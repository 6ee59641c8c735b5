"""Joins what jobs call back with to the client that waits for them, on the machine that both reach.

It sees nothing of what they say: they speak TLS with each other, and it passes on bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import sys
from typing import Any

__all__ = ["relay"]

_FIRST = 10.0  # seconds that the first line may take
_CLAIM = 60.0  # seconds that a carrier waits for the client
_WAITING = 4096  # carriers that may wait for the client
_PIECE = 1 << 16


def relay(host: str, port: int) -> int:
    """Listen until standard input ends.

    Prints JSON lines: first ``port`` and ``inner``, the port on loopback where the client claims what
    arrived; then ``arrived`` (what it called itself, which proves nothing) and ``key`` for each carrier.
    Whoever connects to the inner port and sends a key and a newline is joined to that carrier.

    Parameters
    ----------
    host : str
        The address to listen on; empty for all.
    port : int
        The port; 0 for any.
    """
    try:
        return asyncio.run(_Relay().run(host, port))
    except OSError as error:
        _say(error=error.strerror or str(error))
        return 1


class _Relay:
    def __init__(self) -> None:
        self.waiting: dict[str, Any] = {}
        self.tasks: set[Any] = set()

    async def run(self, host: str, port: int) -> int:
        outer = await asyncio.start_server(self.arrives, host or None, port)
        inner = await asyncio.start_server(self.claims, "127.0.0.1", 0)
        _say(port=outer.sockets[0].getsockname()[1], inner=inner.sockets[0].getsockname()[1])
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.read(_PIECE):
            pass
        outer.close()
        inner.close()
        for task in list(self.tasks):
            task.cancel()
        return 0

    async def arrives(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _FIRST)
            name = json.loads(line)["carrier"]
        except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError):
            writer.close()
            return
        if len(self.waiting) >= _WAITING:
            writer.close()
            return
        key = secrets.token_hex(16)
        self.waiting[key] = reader, writer
        _say(arrived=str(name)[:200], key=key)
        asyncio.get_running_loop().call_later(_CLAIM, self.forget, key)

    def forget(self, key: str) -> None:
        """Turn away a carrier that nobody claimed."""
        there = self.waiting.pop(key, None)
        if there is not None:
            there[1].close()

    async def claims(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _FIRST)
        except (OSError, ValueError, asyncio.TimeoutError):
            line = b""
        there = self.waiting.pop(line.decode("ascii", "replace").strip(), None)
        if there is None:
            writer.close()
            return
        for one in (writer, there[1]):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.ensure_future(_join(reader, writer, *there))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    there: asyncio.StreamReader,
    back: asyncio.StreamWriter,
) -> None:
    """Pass bytes on, both ways, until one side has ended: neither goes on without the other."""
    ways = {asyncio.ensure_future(_pass_on(reader, back)), asyncio.ensure_future(_pass_on(there, writer))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        writer.close()
        back.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = await reader.read(_PIECE)
            if not data:
                return
            writer.write(data)
            await writer.drain()


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
