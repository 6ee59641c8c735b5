"""The seam between envsync and a machine: run a command, move a file, reach a port.

`Local` (local.py) and `SSHHost` (ssh.py) implement it; ``tests/contracts/test_host.py`` says what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from envsync.errors import CommandError, EnvsyncError, HostError, UnfitHostError

if TYPE_CHECKING:
    from envsync.runner.hosts.options import SSHOptions

__all__ = [
    "PATIENCE",
    "TAIL",
    "Channel",
    "Completed",
    "Host",
    "LineReader",
    "Tail",
    "command_failed",
    "command_too_slow",
    "parse_host",
]

TAIL = 64 * 1024
"""How many bytes of a channel's standard error are kept."""

PATIENCE = (1.0, 10.0)
"""Seconds that a closed channel's command has after the end of its input, and after TERM."""

_CHUNK = 256 * 1024
_FULL = ("No space left on device", "Disk quota exceeded")
_CLOSED = ("Read-only file system", "Permission denied")


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended.

    Parameters
    ----------
    returncode : int
        Its exit status; negative for the signal that ended it.
    stdout, stderr : bytes
        All that it wrote.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


class Channel(ABC):
    """A command that runs on a host, and its three pipes."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write to its standard input; waits while the other side is not reading.

        Raises
        ------
        HostError
            The command no longer reads, or the host is gone.
        """

    @abstractmethod
    async def write_eof(self) -> None:
        """End its standard input; silent when ended already."""

    @abstractmethod
    async def readline(self) -> bytes:
        """Return its standard output's next line, however long, with its newline; at the end ``b""``."""

    @abstractmethod
    async def read_stderr(self) -> bytes:
        """Return the end of what it has written to its standard error so far; after `wait`, of all."""

    @abstractmethod
    async def wait(self) -> int:
        """Wait for its end and return its exit status, negative for a signal.

        What it writes meanwhile stays readable; one that writes more than the pipe holds needs a reader.

        Raises
        ------
        ConnectError
            The host was lost, and nobody knows how the command ended.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the command; silent when it has ended.

        Its input ends; `PATIENCE` later its process group gets TERM, then KILL.
        """

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Host(ABC):
    """A machine where commands run and files go.

    Commands are POSIX sh text, whatever the user's login shell is: build them with `shlex.join`.
    Nothing happens on the machine before the first method is awaited.

    Attributes
    ----------
    name : str
        The host as the user wrote it.
    """

    name: str

    @abstractmethod
    async def run(
        self,
        command: str,
        *,
        input: bytes | AsyncIterable[bytes] | None = None,  # noqa: A002 - subprocess calls it so
        check: bool = True,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end.

        Parameters
        ----------
        command : str
            POSIX sh text.
        input : bytes or asynchronous iterable of bytes, optional
            Its standard input; an iterable is asked for no more than the other side takes.
        check : bool
            Whether an exit status other than 0 is an error.
        timeout : float, optional
            Seconds after which the command is ended.

        Returns
        -------
        Completed

        Raises
        ------
        CommandError
            It failed and `check` is set, or it did not end in time (status 124).
        HostError
            The host was not reached, or was lost meanwhile.
        """

    @abstractmethod
    async def start(self, command: str) -> Channel:
        """Start a command that goes on, and return its three pipes.

        Raises
        ------
        HostError
            The host was not reached.
        """

    @abstractmethod
    async def forward(self, host: str, port: int) -> int:
        """Return a port of this machine's loopback that reaches ``host:port`` as seen from there.

        It is open until `close`. Asking again for the same address gives the same port.
        """

    @abstractmethod
    async def close(self) -> None:
        """End everything that was started through here; silent when closed already."""

    async def put(self, source: bytes | Path, destination: str, *, mode: int = 0o644) -> None:
        """Put a file there: whole or not at all, folders above it made where they are missing.

        Parameters
        ----------
        source : bytes or Path
            The content, or the file here that has it.
        destination : str
            Its path there, as it is: no ``~``, no variables. Relative to the home folder (`Local`: to the
            working directory).
        mode : int
            Its permissions; it never has more, not even while it is written.

        Raises
        ------
        UnfitHostError
            The disk is full, or may not be written to.
        CommandError
            It could not be written for another reason.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size  # noqa: ASYNC240 - one stat
        part = _part(destination)
        try:
            script = _put_script(destination, part, size, mode)
            done = await self.run(script, input=_chunks(source, size), check=False)
        except asyncio.CancelledError:
            # A shell that is killed while its disk is slow does not get to its trap.
            with contextlib.suppress(EnvsyncError):
                await asyncio.shield(self.run(f"rm -f {shlex.quote(part)}", timeout=PATIENCE[1]))
            raise
        if done.returncode == 0:
            return
        text = done.stderr.decode(errors="replace").strip()
        if any(words in text for words in _FULL):
            raise UnfitHostError(
                f"no room for {destination} ({size} bytes): {text}",
                where=self.name,
                hint="Make room there, or move the cache to another disk with ENVSYNC_CACHE.",
            )
        if any(words in text for words in _CLOSED):
            raise UnfitHostError(
                f"{destination} may not be written: {text}",
                where=self.name,
                hint="Use a user who may, or move the cache with ENVSYNC_CACHE.",
            )
        raise CommandError(
            f"{destination} could not be written: {text or f'status {done.returncode}'}",
            where=self.name,
            hint="Check that the path is a file's, and that the connection is whole.",
            returncode=done.returncode,
            stderr=text,
        )

    async def get(self, source: str) -> bytes:
        """Return the content of a file there.

        Raises
        ------
        CommandError
            There is no such file, or it may not be read.
        """
        done = await self.run(f"LC_ALL=C; export LC_ALL; exec cat < {shlex.quote(source)}", check=False)
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()
            raise CommandError(
                f"{source} could not be read: {text}",
                where=self.name,
                hint="Check the path and who may read it.",
                returncode=done.returncode,
                stderr=text,
            )
        return done.stdout

    async def __aenter__(self) -> Host:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def parse_host(address: str, options: SSHOptions | None = None) -> Host:
    """Make a host of how a user writes one.

    Parameters
    ----------
    address : str
        ``local`` for this machine; else a host name, an alias of ssh's configuration, ``user@host``,
        ``host:port`` or ``ssh://user@host:port``.
    options : SSHOptions, optional
        How to connect.

    Returns
    -------
    Local or SSHHost

    Raises
    ------
    HostError
        The address is not one.
    """
    if address in ("local", "local://"):
        from envsync.runner.hosts.local import Local

        return Local()
    if "://" in address and not address.startswith("ssh://"):
        raise HostError(
            f"{address!r} is not the address of a host",
            hint="Write ssh://user@host:port, a name of your ~/.ssh/config, or local.",
        )
    from envsync.runner.hosts.ssh import SSHHost

    return SSHHost(address, options)


def command_failed(where: str, command: str, returncode: int, stderr: bytes) -> CommandError:
    """Return the error of a command that failed."""
    tail = stderr[-4096:].decode(errors="replace").strip()
    how = f"was ended by signal {-returncode}" if returncode < 0 else f"failed with status {returncode}"
    shown = command if len(command) <= 200 else f"{command[:200]}..."
    last = tail.splitlines()[-1] if tail else "it said nothing"
    return CommandError(
        f"`{shown}` {how}: {last}",
        where=where,
        hint="Run it there by hand to see more.",
        returncode=returncode,
        stderr=tail,
    )


def command_too_slow(where: str, command: str, timeout: float | None) -> CommandError:
    """Return the error of a command that did not end in time."""
    return CommandError(
        f"`{command[:200]}` did not end within {timeout:g} s",
        where=where,
        hint="Allow it more time, or look at what it waits for.",
        returncode=124,
    )


class LineReader:
    """Cuts lines of any length from a stream.

    Parameters
    ----------
    read : callable
        Returns the next bytes, at most so many as asked for, and ``b""`` at the end.
    ahead : bytes
        What was read of it before.
    """

    def __init__(self, read: Callable[[int], Awaitable[bytes]], ahead: bytes = b"") -> None:
        self._read = read
        self._buffer = bytearray(ahead)
        self._ended = False

    async def readline(self) -> bytes:
        """Return the next line with its newline, the last one as it is, then ``b""``."""
        searched = 0
        while True:
            cut = self._buffer.find(b"\n", searched) + 1
            if not cut and self._ended:
                cut = len(self._buffer)
            if cut or self._ended:
                line = bytes(memoryview(self._buffer)[:cut])
                del self._buffer[:cut]
                return line
            searched = len(self._buffer)
            data = await self._read(_CHUNK)
            self._buffer += data
            self._ended = not data


class Tail:
    """The last bytes of a stream."""

    def __init__(self, limit: int = TAIL) -> None:
        self._limit = limit
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Append bytes; the oldest go when there are too many."""
        self._data += data
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def __bytes__(self) -> bytes:
        return bytes(self._data[-self._limit :])


async def _chunks(source: bytes | Path, size: int) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, size, _CHUNK):
            yield source[start : start + _CHUNK]
        return
    with source.open("rb") as file:
        while size and (data := file.read(min(_CHUNK, size))):
            size -= len(data)
            yield data


def _part(destination: str) -> str:
    """Return the file beside a destination that is written before it takes its name."""
    path = PurePosixPath(destination)
    return _no_option(path.parent / f".{path.name[:64]}.{secrets.token_hex(6)}.part")


def _no_option(path: PurePosixPath) -> str:
    return str(path) if path.is_absolute() else f"./{path}"


def _put_script(destination: str, part: str, size: int, mode: int) -> str:
    """Return what writes its input to a file; the size tells when a lost connection ended the input early."""
    return f"""LC_ALL=C; export LC_ALL
dest={shlex.quote(_no_option(PurePosixPath(destination)))}
part={shlex.quote(part)}
mkdir -p "${{dest%/*}}/" || exit 1
if [ -d "$dest" ]; then echo "it is a folder" >&2; exit 1; fi
trap 'rm -f "$part"' EXIT
trap 'exit 1' HUP INT TERM PIPE
umask 077
cat > "$part" || exit 1
if [ $(wc -c < "$part") -ne {size} ]; then echo "its content came incomplete" >&2; exit 1; fi
chmod {mode:o} "$part" && mv -f "$part" "$dest"
"""
