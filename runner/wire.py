"""Requests, answers and events between a client and one agent, over one channel.

Every line is one JSON object. A request has an ``id`` and a verb (``do``); its answer has the same ``id`` and
``ok`` or ``error``; an event has ``event`` and, where it belongs to a request, that request's ``id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

from envsync.errors import (
    AgentError,
    CorruptBlobError,
    EnvsyncError,
    HostError,
    ImageError,
    RealiseError,
    RegistryLoginError,
    UnfitHostError,
)
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envsync.runner.hosts.base import Channel

__all__ = ["Wire", "error_of"]

_KINDS: dict[str, type[EnvsyncError]] = {
    "unfit": UnfitHostError,
    "realise": RealiseError,
    "corrupt": CorruptBlobError,
    "image": ImageError,
    "login": RegistryLoginError,
}
_MOMENT = 0.2  # seconds for a channel to close that takes no word to the agent any more
_SILENCE = (
    60.0  # seconds without any line from an agent that is pinged all the while: it hangs, or the host does
)


def error_of(problem: dict[str, Any], where: str, secrets: Iterable[str] = ()) -> EnvsyncError:
    """Return the exception for an agent's ``{"kind", "message", "hint"}``, without credentials.

    Parameters
    ----------
    problem : dict
        What the agent said.
    where : str
        Its host.
    secrets : iterable of str
        What must not be in it, besides the credentials of URLs.
    """
    from envsync.uv import scrub

    message, hint = (scrub(str(problem.get(key, "")), secrets) for key in ("message", "hint"))
    cls = _KINDS.get(str(problem.get("kind", "")), AgentError)
    return cls(message, where=where, hint=hint)


class Wire:
    """The client's end of a conversation with one agent.

    Parameters
    ----------
    channel : Channel
        To an agent that has said hello already.
    where : str
        The host's name, for errors.
    beat : float
        Seconds between two signs of life sent to the agent.
    silence : float, optional
        Seconds after which an agent that says nothing is given up; a minute at most.
    on_event : callable
        Called with each event that belongs to no request.
    on_end : callable
        Called once, with the error, when the agent is gone.

    Attributes
    ----------
    secrets : set of str
        What the agent was told and no error may repeat.
    """

    def __init__(
        self,
        channel: Channel,
        where: str,
        *,
        beat: float,
        silence: float | None = None,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[EnvsyncError], None],
    ) -> None:
        self.channel = channel
        self.where = where
        self.ended: EnvsyncError | None = None
        self.secrets: set[str] = set()
        self._beat = beat
        self._silence = max(_SILENCE, 6 * beat) if silence is None else min(_SILENCE, silence)
        self._on_event = on_event
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._watchers: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._heard = time.monotonic()
        self._sending = asyncio.Lock()
        self._closing = False
        self._cut = False
        self._first = self._answers[0] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._live())]

    async def request(
        self, verb: str, /, *, watch: Callable[[dict[str, Any]], None] | None = None, **arguments: Any
    ) -> Any:
        """Ask the agent for something and return its answer.

        Parameters
        ----------
        verb : str
            What to do.
        watch : callable, optional
            Called with the events that belong to this request.
        **arguments : JSON types
            What the verb needs.

        Raises
        ------
        EnvsyncError
            What the agent said went wrong, or that it is gone.
        """
        if self.ended is not None:
            raise self.ended
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        if watch is not None:
            self._watchers[number] = watch
        try:
            await self._send({"id": number, "do": verb, **arguments})
            return await answer
        finally:
            self._answers.pop(number, None)
            self._watchers.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, also where sending failed first

    async def first(self) -> Any:
        """Return the answer that the agent gives unasked: its probe.

        Raises
        ------
        EnvsyncError
            The probe failed, or the agent is gone.
        """
        return await self._first

    async def close(self, patience: float) -> None:
        """End the agent, and with it all that it started; silent if it is gone already.

        Where the channel is closed by somebody else, it is for him to wait for the agent's end.

        Parameters
        ----------
        patience : float
            Seconds that it may take over ending its processes.
        """
        self._closing = True
        if self.ended is None:
            with contextlib.suppress(EnvsyncError, OSError, asyncio.TimeoutError):
                await wait_for(self.request("quit"), patience)
                await wait_for(self.channel.wait(), patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_for(self.channel.close(), _MOMENT if self._cut else None)
        self._end(AgentError("the session is closed", where=self.where))

    def give_up(self, error: EnvsyncError) -> None:
        """Know from elsewhere that the agent is gone: nothing more is asked of it, or waited for."""
        self._cut = True
        self._end(error)

    async def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            async with self._sending:
                await self.channel.write(line)
        except (OSError, HostError) as error:
            self._cut = True
            if not self._closing:
                # The listener learns the agent's last words; give it a moment to find them.
                with contextlib.suppress(asyncio.TimeoutError):
                    await wait_for(asyncio.shield(self._tasks[0]), 5)
            raise self.ended or AgentError(f"the agent is gone: {error}", where=self.where) from error

    async def _listen(self) -> None:
        reason = "the agent ended"
        try:
            while line := await self.channel.readline():
                self._heard = time.monotonic()
                self._take(line)
        except (OSError, EnvsyncError) as error:
            reason = f"the connection to the agent was lost: {error}"
        await self._autopsy(reason)

    def _take(self, line: bytes) -> None:
        try:
            self._dispatch(json.loads(line))
        except ValueError:
            pass  # not one of ours
        except Exception as error:  # noqa: BLE001 - what a hook or a callback does wrong must not end the session
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{self.where}: an agent's message was not taken", "exception": error}
            )

    def _dispatch(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if "event" in message:
            watch = self._watchers.get(number) if number is not None else None
            (watch or self._on_event)(message)
            return
        answer = self._answers.get(number) if number is not None else None
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(error_of(message["error"], self.where, self.secrets))
        else:
            answer.set_result(message.get("ok"))

    async def _live(self) -> None:
        """Send signs of life; give up on an agent that gives none."""
        # The end is looked for, not only waited for: older Pythons' wait_for can swallow a cancellation.
        while self.ended is None and not self._closing:
            await asyncio.sleep(self._beat)
            with contextlib.suppress(EnvsyncError):
                await self._send({"do": "ping"})
            silent = time.monotonic() - self._heard
            if silent > self._silence:
                self._end(
                    AgentError(
                        f"the agent has said nothing for {silent:.0f} s",
                        where=self.where,
                        hint="The host hangs or is not reachable any more: try to log in there.",
                    )
                )
                await self.channel.close()
                return

    async def _autopsy(self, reason: str) -> None:
        hint = ""
        if not self._closing:
            with contextlib.suppress(Exception):
                code = await wait_for(self.channel.wait(), 5)
                reason += f" (exit status {code})"
                tail = (await self.channel.read_stderr()).decode(errors="replace").strip()
                hint = "\n  ".join(["its last words:", *tail.splitlines()[-10:]]) if tail else ""
        self._end(error_of({"message": reason, "hint": hint}, self.where, self.secrets))

    def _end(self, error: EnvsyncError) -> None:
        if self.ended is not None:
            return
        self.ended = error
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        self._on_end(error)
