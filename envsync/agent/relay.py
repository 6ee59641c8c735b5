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
from pathlib import Path
from typing import Any, Mapping

from .supervise import MARKER

__all__ = ["relay"]

_FIRST = 10.0  # seconds that the first line may take
_CLAIM = 60.0  # seconds that a carrier waits for the client
_WAITING = 4096  # carriers that may wait for the client
_PIECE = 1 << 16


def relay(path: str) -> int:
    """Listen until standard input ends.

    Says (lines for `Remote.said`) first ``port`` and ``inner``, the port on loopback where the client claims
    what arrived; then ``arrived`` (what it called itself, which proves nothing), ``enrol`` (whether it has a
    token instead of a key, or says so) and ``key`` for each carrier.
    Whoever connects to the inner port and sends a key and a newline is joined to that carrier.

    Parameters
    ----------
    path : str
        A JSON file: ``bind`` (the address to listen on; empty for all), ``port`` (0 for any), ``addresses``
        (by which others may reach this machine), ``carrier`` (what `carry` is to read, but for its ``ways``)
        and ``settings`` (the name of the file beside it where that goes).
    """
    file = Path(path).resolve()
    try:
        return asyncio.run(_Relay(json.loads(file.read_text()), file.parent).run())
    except OSError as error:
        _say(error=error.strerror or str(error))
        return 1


class _Relay:
    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self.settings = settings
        self.file = folder / settings["settings"]
        self.waiting: dict[str, Any] = {}
        self.tasks: set[Any] = set()

    async def run(self) -> int:
        outer = await _listen(self.arrives, self.settings["bind"], int(self.settings["port"]))
        inner = await asyncio.start_server(self.claims, "127.0.0.1", 0)
        port = outer.sockets[0].getsockname()[1]
        ways = [[address, port] for address in self.settings["addresses"]]
        self.file.write_text(json.dumps({**self.settings["carrier"], "ways": ways}))
        _say(port=port, inner=inner.sockets[0].getsockname()[1])
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
            said = json.loads(line)
            name, enrol = said["carrier"], bool(said.get("enrol"))
        except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError):
            writer.close()
            return
        if len(self.waiting) >= _WAITING:
            writer.close()
            return
        key = secrets.token_hex(16)
        self.waiting[key] = reader, writer
        _say(arrived=str(name)[:200], enrol=enrol, key=key)
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


async def _listen(arrives: Any, bind: str, port: int) -> Any:
    """Listen on an address; on all of them at one port, if none is named."""
    if bind:
        return await asyncio.start_server(arrives, bind, port)
    sock = socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
    except OSError:
        sock.close()  # a kernel without IPv6
        return await asyncio.start_server(arrives, "0.0.0.0", port)  # noqa: S104 - nodes have to reach it
    return await asyncio.start_server(arrives, sock=sock)


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
    sys.stdout.buffer.write(MARKER + json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()
