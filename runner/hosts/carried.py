"""A machine that nobody can reach, as a host: its job has called back, and carries what is done there."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
from typing import TYPE_CHECKING, Any

from envsync.agent.frames import (
    DATA,
    END,
    EOF,
    ERRORS,
    EXIT,
    HELLO,
    INPUT,
    MORE,
    NOTICE,
    OPEN,
    OUTPUT,
    REFUSED,
    START,
    Link,
    Receiver,
    Sender,
    copy,
    room_of,
)
from envsync.errors import ConnectError, EnvsyncError, HostError
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

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Callable, Mapping

__all__ = ["CarriedHost"]

SILENCE = 60.0
"""Seconds without a sign of life from there after which the connection counts as lost."""

_GRACE = 2.0
"""Seconds that a command which ran too long has after TERM."""

_HELLO = 20.0
"""Seconds that a carrier has to say who it is, after it has called."""


class CarriedHost(Host):
    """The node of a job, over the connection that its carrier made.

    Parameters
    ----------
    name : str
        What it is called.
    noticed : callable, optional
        Told the number of a signal that the job was sent, as by a batch system that is about to end it.
    lost : callable, optional
        Told why when the connection has ended that was taken; of one that was not, `take` raises.

    Attributes
    ----------
    hello : mapping
        What the carrier said of itself: ``host pid python agent variables scratch``.
    alone : bool
        Whether it came with a token of its own: its node does not see the login host's folder.
    """

    def __init__(
        self,
        name: str,
        *,
        noticed: Callable[[int], None] | None = None,
        lost: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.hello: Mapping[str, Any] = {}
        self.alone = False
        self._noticed = noticed
        self._lost = lost
        self._link: Link | None = None
        self._greeted: asyncio.Future[None] | None = None
        self._gone = ""
        self._taken = False
        self._over = asyncio.Event()
        self._numbers = 0
        self._streams: dict[int, _Stream] = {}
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, sock: socket.socket, context: ssl.SSLContext, *, token: str = "") -> None:
        """Begin on a connection to the carrier.

        Parameters
        ----------
        sock : socket
            Connected, not blocking, nothing of TLS said yet; closed if this fails.
        context : ssl.SSLContext
            A client's, with this cluster's authority: the carrier has a worker's certificate of it. With a
            token a server's: the carrier has no certificate, and trusts this cluster's authority.
        token : str
            What a carrier without a certificate has to say.

        Raises
        ------
        ConnectError
            Whoever is there is not a carrier of this cluster.
        """
        loop = asyncio.get_running_loop()
        self._greeted = loop.create_future()
        link = Link(self._take, self._ended)
        try:
            self.alone = bool(token)
            if token:
                await loop.connect_accepted_socket(lambda: link, sock, ssl=context)
            else:
                await loop.create_connection(
                    lambda: link, sock=sock, ssl=context, server_hostname="worker.envsync.invalid"
                )
            self._link = link
            await wait_for(self._greeted, _HELLO)
            said = str(self.hello.get("token") or "")
            self.hello = {key: value for key, value in self.hello.items() if key != "token"}
            if not hmac.compare_digest(said.encode(), token.encode()):
                raise ConnectError("it does not know the token of its job", where=self.name)
            if self._over.is_set():  # as soon as it had said who it is
                raise ConnectError(self._gone, where=self.name)
        except (OSError, asyncio.TimeoutError, TimeoutError, ConnectError) as error:
            link.abort("it is no carrier of this cluster")
            sock.close()
            raise ConnectError(
                f"what called back is no carrier of this cluster: {error or 'it said nothing'}",
                where=self.name,
                hint="Another cluster's job may have called; a job that is ours calls again.",
            ) from error
        self._taken = True
        self._begin(link.keep_alive(SILENCE))

    async def run(
        self,
        command: str,
        *,
        input: bytes | AsyncIterable[bytes] | None = None,  # noqa: A002 - subprocess calls it so
        check: bool = True,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end. See `Host.run`."""
        channel = self._start(command, input=input is not None)
        try:
            done = await wait_for(channel.communicate(input), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            raise command_too_slow(self.name, command, timeout) from None
        finally:
            channel.end(_GRACE)
        if check and done.returncode != 0:
            raise command_failed(self.name, command, done.returncode, done.stderr)
        return done

    async def start(self, command: str) -> Channel:
        """Start a command that goes on. See `Host.start`."""
        channel = self._start(command, input=True)
        channel.begin()
        return channel

    async def forward(self, host: str, port: int) -> int:
        """Return a port of our loopback that reaches an address from there. See `Host.forward`."""
        self._demand()
        server = self._servers.get((host, port))
        if server is None:

            async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._join(host, port, reader, writer)

            server = self._servers[host, port] = await asyncio.start_server(join, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self._over.is_set()

    async def close(self) -> None:
        """End everything that was started there, and with it the job; silent when closed already."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        link, self._link = self._link, None
        if link is not None and link.open:
            link.send(END)
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await wait_for(self._over.wait(), PATIENCE[1])
            link.close()
        for task in tuple(self._tasks):
            task.cancel()

    def _start(self, command: str, *, input: bool) -> _CarriedChannel:  # noqa: A002
        link = self._demand()
        self._numbers += 1
        channel = _CarriedChannel(self, link, self._numbers)
        self._streams[self._numbers] = channel
        link.say(START, self._numbers, command=command, input=input)
        return channel

    async def _join(
        self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Have what connected here speak with a server there."""
        try:
            link = self._demand()
        except HostError:
            writer.close()
            return
        self._numbers += 1
        stream = _Stream(self, link, self._numbers)
        self._streams[self._numbers] = stream
        link.say(OPEN, self._numbers, host=host, port=port)
        sending = self._begin(copy(lambda: reader.read(1 << 16), stream.input))
        try:
            with contextlib.suppress(OSError):
                while data := await stream.output.read():
                    writer.write(data)
                    await writer.drain()
        finally:
            sending.cancel()
            stream.output.refuse()
            stream.input.end()
            writer.close()
            self._streams.pop(stream.number, None)

    def _demand(self) -> Link:
        if self._link is None or not self._link.open:
            raise ConnectError(
                f"the job's connection is closed{': ' + self._gone if self._gone else ''}",
                where=self.name,
                hint="See how the job ended.",
            )
        return self._link

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == HELLO:
            self.hello = json.loads(payload)
            if self._greeted is not None and not self._greeted.done():
                self._greeted.set_result(None)
        elif kind == NOTICE:
            if self._noticed is not None:
                self._noticed(json.loads(payload)["signal"])
        elif (stream := self._streams.get(number)) is not None:
            stream.take(kind, payload)

    def _ended(self, why: str) -> None:
        self._gone = why
        self._over.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(ConnectError(why, where=self.name))
        for stream in tuple(self._streams.values()):
            stream.lose(why)
        if self._taken and self._lost is not None:
            self._lost(why)

    def _begin(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, number: int) -> None:
        """Strike a stream that has ended off the list."""
        self._streams.pop(number, None)


class _Stream:
    def __init__(self, host: CarriedHost, link: Link, number: int) -> None:
        self.host = host
        self.link = link
        self.number = number
        self.input = Sender(link, number, INPUT)
        self.output = Receiver(link, number, OUTPUT)

    def take(self, kind: int, payload: bytes) -> None:
        pipe = payload[:1]
        if kind == MORE:
            self.input.more(room_of(payload))
        elif kind == EOF and pipe == INPUT:
            self.input.stop()
        elif kind == DATA and pipe == OUTPUT:
            self.output.feed(payload[1:])
        elif kind == EOF and pipe == OUTPUT:
            self.output.end()
        elif kind == REFUSED:
            self.lose(json.loads(payload)["message"])

    def lose(self, why: str) -> None:  # noqa: ARG002
        self.input.stop()
        self.output.end()


class _CarriedChannel(_Stream, Channel):
    """A command there.

    Its number is given up when it has ended and all that it wrote has come.
    """

    def __init__(self, host: CarriedHost, link: Link, number: int) -> None:
        super().__init__(host, link, number)
        self.errors = Receiver(link, number, ERRORS)
        self._lines = LineReader(self.output.read)
        self._tail = Tail()
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._drain: asyncio.Task[None] | None = None
        self._ending = False

    def take(self, kind: int, payload: bytes) -> None:
        pipe = payload[:1]
        if kind == EXIT:
            if not self._exit.done():
                self._exit.set_result(int(json.loads(payload)["code"]))
        elif kind == DATA and pipe == ERRORS:
            self.errors.feed(payload[1:])
        elif kind == EOF and pipe == ERRORS:
            self.errors.end()
        else:
            super().take(kind, payload)

    def lose(self, why: str) -> None:
        super().lose(why)
        self.errors.end()
        if not self._exit.done():
            self._exit.set_exception(
                ConnectError(f"the host was lost: {why}", where=self.host.name, hint="See how the job ended.")
            )

    def begin(self) -> None:
        """Keep the end of what it writes to its standard error."""
        self._drain = self.host._begin(self._pump())

    async def communicate(self, data: bytes | AsyncIterable[bytes] | None) -> Completed:
        """Feed it, and return all that it wrote; instead of `begin`."""
        gathered = await asyncio.gather(
            _all_of(self.output), _all_of(self.errors), asyncio.shield(self._exit), self._feed(data)
        )
        return Completed(gathered[2], gathered[0], gathered[1])

    async def _feed(self, data: bytes | AsyncIterable[bytes] | None) -> None:
        if data is None:
            return
        try:
            if isinstance(data, bytes):
                await self.input.write(data)
            else:
                async for chunk in data:
                    if not await self.input.write(chunk):
                        break
        finally:
            self.input.end()

    async def _pump(self) -> None:
        while data := await self.errors.read():
            self._tail.add(data)

    async def write(self, data: bytes) -> None:
        if not await self.input.write(data):
            raise HostError(
                "the command no longer reads what it is sent",
                where=self.host.name,
                hint="See the end of its standard error.",
            )

    async def write_eof(self) -> None:
        self.input.end()

    async def readline(self) -> bytes:
        return await self._lines.readline()

    async def read_stderr(self) -> bytes:
        return bytes(self._tail)

    async def wait(self) -> int:
        code = await asyncio.shield(self._exit)
        if self._drain is not None:
            await asyncio.wait({self._drain}, timeout=0.2)  # a child that goes on may hold the pipe
        return code

    def end(self, grace: float) -> None:
        """Have it ended, unless it has; and forget it."""
        if not self._exit.done() and not self._ending:
            self._ending = True
            self.link.say(END, self.number, grace=grace)
            self._exit.add_done_callback(lambda _: self.host.forget(self.number))
        elif self._exit.done():
            self.host.forget(self.number)

    async def close(self) -> None:
        try:
            await self.write_eof()
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError, EnvsyncError):
                await wait_for(asyncio.shield(self._exit), PATIENCE[0])
        finally:
            self.end(PATIENCE[1])
            if not self._exit.done():
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError, EnvsyncError):
                    await wait_for(asyncio.shield(self._exit), 2 * PATIENCE[1])


async def _all_of(receiver: Receiver) -> bytes:
    pieces = []
    while data := await receiver.read():
        pieces.append(data)
    return b"".join(pieces)
