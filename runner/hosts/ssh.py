"""A machine that sshd lets us into."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import string
from collections.abc import AsyncIterable
from dataclasses import dataclass

import asyncssh

from envsync.errors import ConnectError, HostError
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
from envsync.runner.hosts.connecting import connect
from envsync.runner.hosts.options import Address, SSHOptions
from envsync.runner.hosts.sessions import Session, Sessions
from envsync.runner.timeouts import wait_for

__all__ = ["SSHHost", "SSHOptions", "shell_line"]

_CHUNK = 256 * 1024
_GRACE = 2.0  # seconds that a command which ran too long has after TERM
_SHELL = 60.0  # seconds that a login shell has to get going
_NOISE = 1024 * 1024  # bytes that login scripts may print
_BROKEN = (OSError, asyncssh.Error)
_HARMLESS = frozenset(f"{string.ascii_letters}{string.digits} /._-=,:;@+")


class SSHHost(Host):
    """A machine that sshd lets us into, over one connection that is opened when it is first needed.

    Parameters
    ----------
    address : str
        ``[ssh://][user@]host[:port]``, or a name of ssh's configuration.
    options : SSHOptions, optional
        How to connect.

    Raises
    ------
    HostError
        The address is not one.
    """

    def __init__(self, address: str, options: SSHOptions | None = None) -> None:
        Address.parse(address)
        self.name = address.removeprefix("ssh://").rstrip("/")
        self.options = options or SSHOptions()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._opening: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._forwards: dict[tuple[str, int], asyncssh.SSHListener] = {}
        self._forwarding = asyncio.Lock()
        self._sessions = Sessions(self.name, self.options.sessions)
        self._channels: set[_SSHChannel] = set()
        self._closed = False
        self.mark = f"@shell-{secrets.token_hex(8)}"

    async def run(
        self,
        command: str,
        *,
        input: bytes | AsyncIterable[bytes] | None = None,  # noqa: A002 - subprocess calls it so
        check: bool = True,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end. See `Host.run`."""
        try:
            done = await wait_for(self._run(command, input), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            if timeout is None:
                raise
            raise command_too_slow(self.name, command, timeout) from None
        if check and done.returncode != 0:
            raise command_failed(self.name, command, done.returncode, done.stderr)
        return done

    async def _run(self, command: str, data: bytes | AsyncIterable[bytes] | None) -> Completed:
        session = await self._sessions.take(lasting=False)
        try:
            running = await self._begin(command, session)
            ended = False
            try:
                out, err, _ = await asyncio.gather(
                    running.read_all(), running.process.stderr.read(), _feed(running, data)
                )
                code = await running.ended()
                ended = True
                return Completed(code, running.ahead + out, err)
            except _BROKEN as error:
                raise self._lost(error, f"while `{command[:200]}` ran") from error
            finally:
                if not ended:
                    await asyncio.shield(self.end(running, _GRACE))
        finally:
            await self._sessions.give(session)

    async def start(self, command: str) -> Channel:
        """Start a command that goes on. See `Host.start`."""
        session = await self._sessions.take(lasting=True)
        try:
            channel = _SSHChannel(self, await self._begin(command, session), session)
        except BaseException:
            await self._sessions.give(session)
            raise
        self._channels.add(channel)
        return channel

    async def forward(self, host: str, port: int) -> int:
        """Open a port here that leads to one there. See `Host.forward`."""
        async with self._forwarding:
            connection = await self._connected()
            listener = self._forwards.get((host, port))
            if listener is None:
                await self._may_forward(connection)
                try:
                    listener = await connection.forward_local_port("127.0.0.1", 0, host, port)
                except _BROKEN as error:
                    raise self._lost(error, f"while a tunnel to {host}:{port} was opened") from error
                self._forwards[host, port] = listener
            return listener.get_port()

    async def close(self) -> None:
        """End everything that was started through here, and the connection."""
        self._closed = True
        await asyncio.gather(*(channel.close() for channel in tuple(self._channels)))
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        self._forwards.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            try:
                await wait_for(connection.wait_closed(), _GRACE)
            except (TimeoutError, asyncio.TimeoutError):
                connection.abort()

    async def release(self, channel: _SSHChannel) -> None:
        """Strike a channel that has ended off the list."""
        if channel in self._channels:
            self._channels.discard(channel)
            await self._sessions.give(channel.session)

    async def end(self, running: _Running, *graces: float) -> None:
        """End a command's process group: TERM, then KILL; sshd signals nobody when a channel closes."""
        for signal, grace in zip(("TERM", "KILL"), (*graces, _GRACE), strict=False):
            if not await self._signal(running, signal) or await running.gone(grace):
                break
        running.process.close()

    async def _signal(self, running: _Running, signal: str) -> bool:
        """Signal a process group; tell whether the host took it."""
        if self._connection is None or self._connection.is_closed():
            return False
        group = f"kill -s {signal} -- -{running.pid} 2>/dev/null || kill -s {signal} {running.pid}"
        try:
            await wait_for(self._connection.run(shell_line(group), check=False), _GRACE)
        except asyncssh.ChannelOpenError:
            with contextlib.suppress(*_BROKEN):
                running.process.send_signal(signal)  # no session to be had; not every sshd heeds this
        except (*_BROKEN, asyncio.TimeoutError):
            return False
        return True

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """Return the connection, opened once however many ask, and anew when it was lost."""
        if self._closed:
            raise HostError("it was closed", where=self.name, hint="Make a new host of its address.")
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> asyncssh.SSHClientConnection:
        try:
            self._forwards.clear()
            self._connection = await connect(self.name, self.options)
            return self._connection
        finally:
            self._opening = None

    async def _begin(self, command: str, session: Session) -> _Running:
        """Start a command. If that is cancelled, what has begun is ended."""
        await self._connected()
        task = asyncio.create_task(self._begin_surely(command, session))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(HostError, TimeoutError, asyncio.TimeoutError):
                await self.end(await wait_for(task, _GRACE), _GRACE)
            raise

    async def _begin_surely(self, command: str, session: Session) -> _Running:
        """Open a session, and wait for the sign that its shell is ours."""
        for times in itertools.count():
            connection = await self._connected()
            try:
                process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(
                    shell_line(f"echo {self.mark} $$\n{command}"),
                    encoding=None,
                    request_pty=False,
                    window=8 * 1024 * 1024,
                )
                self._sessions.opened(session)
                break
            except asyncssh.ChannelOpenError as error:
                if connection.is_closed():
                    continue  # lost before anything was asked for: safe to ask again
                await self._sessions.refused(session, str(error.reason), times)
            except _BROKEN as error:
                raise self._lost(error, "while a command was started") from error
        try:
            return await wait_for(self._first_words(process), _SHELL)
        except (*_BROKEN, asyncio.TimeoutError) as error:
            process.close()
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                raise HostError(
                    f"the login shell did not get to our command within {_SHELL:g} s",
                    where=self.name,
                    hint="Look at what its start-up files wait for.",
                ) from error
            raise self._lost(error, "while a command was started") from error
        except BaseException:
            process.close()
            raise

    async def _first_words(self, process: asyncssh.SSHClientProcess[bytes]) -> _Running:
        """Skip what login scripts print, up to our mark and the number of the process."""
        seen = b""
        mark = f"{self.mark} ".encode()
        while len(seen) < _NOISE:
            data = await process.stdout.read(_CHUNK)
            if not data:
                break
            seen += data
            _, found, rest = seen.partition(mark)
            pid, newline, ahead = rest.partition(b"\n")
            if found and newline:
                return _Running(process, int(pid), ahead)
        said = (seen + await process.stderr.read()).decode(errors="replace").strip()[-500:]
        raise HostError(
            f"its login shell does not run commands; it said: {said or 'nothing'}",
            where=self.name,
            hint=f"Try it by hand: ssh {self.name} true",
        )

    async def _may_forward(self, connection: asyncssh.SSHClientConnection) -> None:
        """Find out now whether sshd forbids tunnels: later, connections would just close."""
        if self._forwards:
            return
        try:
            _, writer = await connection.open_connection("127.0.0.1", 1)
            writer.close()
        except asyncssh.ChannelOpenError as error:
            if error.code == asyncssh.constants.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise HostError(
                    f"its sshd forbids tunnels ({error.reason})",
                    where=self.name,
                    hint="Have AllowTcpForwarding set to yes there, or open the ports to this machine.",
                ) from error
        except _BROKEN as error:
            raise self._lost(error, "while a tunnel was opened") from error

    def _lost(self, error: Exception, when: str) -> ConnectError:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
        return ConnectError(
            f"the connection was lost {when}: {reason}",
            where=self.name,
            hint="Check that the machine is up and the network whole, then try again.",
        )


@dataclass(eq=False)
class _Running:
    """A command over there: its pipes, its process, and what was read of its output with the mark."""

    process: asyncssh.SSHClientProcess[bytes]
    pid: int
    ahead: bytes

    async def read_all(self) -> bytes:
        return await self.process.stdout.read()

    async def ended(self) -> int:
        """Wait for its end and return its status."""
        await self.process.wait_closed()
        code = self.process.returncode
        if code is None:
            raise asyncssh.ConnectionLost("nobody knows how the command ended")
        return code

    async def gone(self, seconds: float) -> bool:
        """Wait that long for its end."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await wait_for(self.process.wait_closed(), seconds)
            return True
        return False


class _SSHChannel(Channel):
    def __init__(self, host: SSHHost, running: _Running, session: Session) -> None:
        self.session = session
        self._host = host
        self._running = running
        self._lines = LineReader(running.process.stdout.read, running.ahead)
        self._tail = Tail()
        self._drain = asyncio.create_task(self._pump())

    async def write(self, data: bytes) -> None:
        stdin = self._running.process.stdin
        try:
            stdin.write(data)
            await stdin.drain()
        except _BROKEN as error:
            raise HostError(
                f"the command no longer reads what it is sent ({error})",
                where=self._host.name,
                hint="See the end of its standard error.",
            ) from error

    async def write_eof(self) -> None:
        with contextlib.suppress(*_BROKEN):
            self._running.process.stdin.write_eof()

    async def readline(self) -> bytes:
        try:
            return await self._lines.readline()
        except _BROKEN as error:
            raise self._host._lost(error, "while a command ran") from error

    async def read_stderr(self) -> bytes:
        return bytes(self._tail)

    async def wait(self) -> int:
        try:
            code = await self._running.ended()
        except _BROKEN as error:
            raise self._host._lost(error, "while a command ran") from error
        await asyncio.wait([self._drain], timeout=0.2)
        return code

    async def close(self) -> None:
        try:
            await self.write_eof()
            if not await self._running.gone(PATIENCE[0]):
                await asyncio.shield(self._host.end(self._running, PATIENCE[1]))
        finally:
            self._drain.cancel()
            await self._host.release(self)

    async def _pump(self) -> None:
        with contextlib.suppress(*_BROKEN):
            while data := await self._running.process.stderr.read(65536):
                self._tail.add(data)


def shell_line(script: str) -> str:
    """Return a line that runs a POSIX sh script from any login shell: sh, fish or csh.

    They differ in quotes, backslashes, exclamation marks and newlines, so whatever is not harmless goes as
    octal numbers, which sh itself turns back.
    """
    text = "".join(chr(byte) if chr(byte) in _HARMLESS else f"\\0{byte:03o}" for byte in script.encode())
    return f'exec sh -c \'eval "$(printf %b "{text}")"\''


async def _feed(running: _Running, data: bytes | AsyncIterable[bytes] | None) -> None:
    stdin = running.process.stdin
    try:
        if isinstance(data, bytes):
            for start in range(0, len(data), _CHUNK):
                stdin.write(data[start : start + _CHUNK])
                await stdin.drain()
        elif data is not None:
            async for chunk in data:
                stdin.write(chunk)
                await stdin.drain()
        stdin.write_eof()
    except _BROKEN:
        pass  # it ended, or wants no more: its exit status tells
