"""The machine we are on, as a host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterable

from envsync.errors import HostError
from envsync.runner.hosts.base import (
    PATIENCE,
    Channel,
    Completed,
    Host,
    LineReader,
    Tail,
    command_failed,
    command_too_slow,
)
from envsync.runner.timeouts import wait_for

__all__ = ["Local"]

_GRACE = 2.0
"""Seconds that a command which ran too long has after TERM."""


class Local(Host):
    """The machine we are on. Commands run in process groups of their own."""

    def __init__(self) -> None:
        self.name = "local"
        self._channels: set[_LocalChannel] = set()

    async def run(
        self,
        command: str,
        *,
        input: bytes | AsyncIterable[bytes] | None = None,  # noqa: A002 - subprocess calls it so
        check: bool = True,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end. See `Host.run`."""
        process = await _spawn(command, stdin=input is not None)
        ended = False
        try:
            done = await wait_for(_communicate(process, input), timeout)
            ended = True
        except (TimeoutError, asyncio.TimeoutError):
            raise command_too_slow(self.name, command, timeout) from None
        finally:
            if not ended:
                await asyncio.shield(_end(process))
        if check and done.returncode != 0:
            raise command_failed(self.name, command, done.returncode, done.stderr)
        return done

    async def start(self, command: str) -> Channel:
        """Start a command that goes on. See `Host.start`."""
        channel = _LocalChannel(self, await _spawn(command, stdin=True))
        self._channels.add(channel)
        return channel

    async def forward(self, host: str, port: int) -> int:  # noqa: ARG002
        """Return the port itself: what is on this machine's loopback needs no tunnel."""
        return port

    async def close(self) -> None:
        """End everything that was started through here."""
        await asyncio.gather(*(channel.close() for channel in tuple(self._channels)))

    def forget(self, channel: _LocalChannel) -> None:
        """Strike a channel that has ended off the list."""
        self._channels.discard(channel)


class _LocalChannel(Channel):
    def __init__(self, host: Local, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._host = host
        self._process = process
        self._lines = LineReader(process.stdout.read)
        self._tail = Tail()
        self._drain = asyncio.create_task(_pump(process.stderr, self._tail))

    async def write(self, data: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(data)
            await stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise HostError(
                "the command no longer reads what it is sent",
                where=self._host.name,
                hint="See the end of its standard error.",
            ) from error

    async def write_eof(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def readline(self) -> bytes:
        return await self._lines.readline()

    async def read_stderr(self) -> bytes:
        return bytes(self._tail)

    async def wait(self) -> int:
        code = await self._process.wait()
        await asyncio.wait([self._drain], timeout=0.2)  # a child that goes on may hold the pipe
        return code

    async def close(self) -> None:
        self._host.forget(self)
        try:
            await self.write_eof()
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await wait_for(self._process.wait(), PATIENCE[0])
            await asyncio.shield(_end(self._process, PATIENCE[1]))
        finally:
            self._drain.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drain


async def _spawn(command: str, *, stdin: bool) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    # asyncio, cancelled while it starts one, may wait for ever, and leaves what was started
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_end_started(starting))
        raise


async def _end_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    """End a command that nobody waits for any more."""
    with contextlib.suppress(OSError):
        await _end(await starting)


async def _communicate(
    process: asyncio.subprocess.Process, data: bytes | AsyncIterable[bytes] | None
) -> Completed:
    if data is None or isinstance(data, bytes):
        out, err = await process.communicate(data)
    else:
        (out, err), _ = await asyncio.gather(_read_all(process), _feed(process, data))
    assert process.returncode is not None
    return Completed(process.returncode, out, err)


async def _read_all(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    out, err, _ = await asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait())
    return out, err


async def _feed(process: asyncio.subprocess.Process, data: AsyncIterable[bytes]) -> None:
    assert process.stdin is not None
    try:
        async for chunk in data:
            process.stdin.write(chunk)
            await process.stdin.drain()
    except ConnectionError:
        pass  # it ended, or wants no more: its exit status tells
    finally:
        process.stdin.close()


async def _pump(stream: asyncio.StreamReader, tail: Tail) -> None:
    while data := await stream.read(65536):
        tail.add(data)


async def _end(process: asyncio.subprocess.Process, grace: float = _GRACE) -> None:
    """End a process group: TERM, a little time, KILL; what its leader left behind too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        if process.returncode is None:
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await wait_for(process.wait(), grace)
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
