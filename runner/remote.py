"""One process on a host, as its client sees it."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, EnvsyncError, ProcessDied, StartTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envsync.runner.session import Session

__all__ = ["Remote"]

_TAIL = 30  # lines


class Remote:
    """One process that the agent supervises.

    Attributes
    ----------
    name, cluster : str
        What it was spawned as.
    folder : str
        Its run folder there, which is also where it was started: its files and its ``log``.
    pid : int
        On the host; 0 before it is known.
    returncode : int or None
        Its exit status once it ended; negative for a signal.
    """

    def __init__(self, session: Session, name: str, cluster: str) -> None:
        self.session = session
        self.name = name
        self.cluster = cluster
        self.folder = session.run_folder(cluster, name)
        self.pid = 0
        self.returncode: int | None = None
        self.lost: EnvsyncError | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._callbacks: list[Callable[[Remote], None]] = []
        self._listener: Callable[[dict[str, Any]], None] | None = None

    def __repr__(self) -> str:
        state = "running" if self.running else "lost" if self.lost else f"ended {self.returncode}"
        return f"<Remote {self.cluster}/{self.name} on {self.session.host.name}: {state}>"

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known here."""
        return not self._gone.is_set()

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of its log."""
        return tuple(self._tail)

    async def wait(self) -> int:
        """Wait until it ends and return its exit status.

        Raises
        ------
        AgentError
            The agent was lost, and the process with it.
        """
        await self._gone.wait()
        if self.returncode is None:
            raise self.lost or AgentError("the process was lost", where=self.session.host.name)
        return self.returncode

    async def said(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the next thing it said to us (a line ``@envsync {...}`` on its standard output).

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Raises
        ------
        ProcessDied
            It ended first.
        StartTimeout
            It said nothing in time.
        AgentError
            The agent was lost.
        """
        where = f"{self.session.host.name}: {self.name}"
        if self._said.empty() and self.running:
            next_word = asyncio.ensure_future(self._said.get())
            end = asyncio.ensure_future(self._gone.wait())
            try:
                await asyncio.wait({next_word, end}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if next_word.done():
                    return next_word.result()
            finally:
                for waiting in (next_word, end):
                    waiting.cancel()
            if self.running:
                raise StartTimeout(
                    f"the process said nothing for {timeout:.0f} s",
                    where=where,
                    hint="\n  ".join(["Its last lines:", *self._tail])
                    if self._tail
                    else "It has written nothing to its log either; give it more time, or look at the host.",
                )
        if not self._said.empty():
            return self._said.get_nowait()
        if self.lost is not None:
            raise self.lost
        raise ProcessDied(
            f"the process ended with exit status {self.returncode}",
            where=where,
            returncode=self.returncode,
            tail=self.tail(),
        )

    async def hand(self, files: Mapping[str, bytes], line: str) -> None:
        """Give it what it waits for.

        Parameters
        ----------
        files : mapping of str to bytes
            Written into its folder, for its user only (0600).
        line : str
            What it then reads on its standard input.

        Raises
        ------
        AgentError
            They could not be written, or it reads nothing any more.
        """
        packed = {name: base64.b64encode(data).decode() for name, data in files.items()}
        await self.session.request("hand", key=self._key, files=packed, line=line)

    def on_exit(self, callback: Callable[[Remote], None]) -> None:
        """Call `callback(remote)` once when it ends or is lost; at once if it has."""
        if self.running:
            self._callbacks.append(callback)
        else:
            callback(self)

    def on_said(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call `callback(what)` with whatever it says from now on, in place of `said`."""
        self._listener = callback
        while not self._said.empty():
            callback(self._said.get_nowait())

    async def stop(self, grace: float = 5.0) -> int | None:
        """End it and its process group: its input ends, SIGTERM, and after `grace` seconds SIGKILL.

        Silent if it has ended. Returns its exit status, None if it was lost.
        """
        if self.running:
            with contextlib.suppress(AgentError):
                await self.session.request("stop", key=self._key, grace=grace)
                await self._gone.wait()
        return self.returncode

    @property
    def _key(self) -> str:
        return f"{self.cluster}/{self.name}"

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "said" and self._listener is not None:
            self._listener(event["data"])
        elif kind == "said":
            self._said.put_nowait(event["data"])
        elif kind == "log":
            self._tail.extend(event["lines"])
        elif kind == "exit":
            self._tail = collections.deque(event["tail"], maxlen=_TAIL)
            self.returncode = event["code"]
            self._end(None)

    def _end(self, lost: EnvsyncError | None) -> None:
        if not self.running:
            return
        self.lost = lost
        self._gone.set()
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001, PERF203 - others are still to hear that they are lost
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"{self!r}: nobody took that it ended", "exception": error}
                )
