"""The end of a cluster whose time or money is over, in the scheduler's process: it holds if the client hangs.

The client says at the start what the limits are, and what machines cost whenever that changes; from there on
all is counted here. What is decided is said on standard output, where the client hears it, and the agent of
this machine too, which lets a rented machine's lease run out from then on. Processes elsewhere are told, and
say it to their agents. Then clients learn why nothing comes any more, and the scheduler closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Mapping

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["RESERVE", "Limits", "ended"]

WITHIN = 30.0
"""Seconds that the client has to end rented machines; then they end themselves."""

RESERVE = 120.0
"""Seconds for which machines may cost after the end: gathering, closing, `WITHIN`, a shutdown that hangs."""

GATHERING = 5.0
"""Seconds that results have which are on their way to a client."""

_WARNED = 0.8  # of the money, and of the time that it may be idle
_LONG = 600.0  # seconds: of less idle time nobody is warned
_AT_WORK = 50.0  # per cent of a core: what actors do is no task
_OFTEN, _SELDOM = 0.02, 1.0  # seconds between two looks
_TOLD = 3.0  # seconds in which other processes are told
_TOPIC = "envsync-limits"

# what clients ask for that is work, and no task: `client.run`, gathering, scattering, calls of actors
_WORK = (
    *("gather", "scatter", "broadcast", "proxy", "run_function", "rebalance", "replicate", "restart"),
    *("restart_workers", "update_data", "benchmark_hardware"),
    *("register_scheduler_plugin", "register_worker_plugin", "register_nanny_plugin"),
)


class Limits:
    """Ends a scheduler when a limit is reached.

    Parameters
    ----------
    scheduler : Scheduler
        Which.
    limits : mapping
        ``idle`` and ``life``, in seconds from now on; ``cost``: ``limit``, ``currency``, ``spent`` and
        ``rate``, an hour's; ``waits``: how long nothing counts as idle while no worker has come yet;
        ``nanny``: whether workers run under nannies. Each may be absent.
    say : callable
        Told what the client and the agent should hear.
    """

    def __init__(
        self, scheduler: Scheduler, limits: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.scheduler: Any = scheduler
        self.idle: float | None = limits.get("idle")
        self.life: float | None = limits.get("life")
        self.cost: Mapping[str, Any] | None = limits.get("cost")
        self.nanny = bool(limits.get("nanny", True))
        self._say = say
        self._began = self._active = self._counted = time.monotonic()
        self._awaited = self._began + float(limits.get("waits", 0))  # the first worker, until then
        self._seen: tuple[Any, ...] = ()
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._warned = self._warned_idle = False
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Begin to watch."""
        handlers = self.scheduler.handlers
        for name in _WORK:
            if name in handlers:
                handlers[name] = self._counting(handlers[name])
        handlers["envsync_cost"] = self.costs
        self._task = asyncio.ensure_future(self._watch())

    def costs(self, spent: float, rate: float) -> None:
        """Count from here on: so much has been spent, and so much is by the hour."""
        if self.cost is not None:
            self.cost = {**self.cost, "spent": float(spent), "rate": float(rate)}
            self._counted = time.monotonic()

    def spent(self, now: float) -> float:
        """Return what has been spent until a time of the monotonic clock."""
        assert self.cost is not None
        return float(self.cost["spent"] + self.cost["rate"] * (now - self._counted) / 3600)

    def over(self, now: float) -> tuple[str, str]:
        """Return which limit is reached and a sentence about it, both empty if none is."""
        if self.cost is not None:
            spent, currency = self.spent(now), self.cost["currency"]
            if spent + self.cost["rate"] * RESERVE / 3600 >= self.cost["limit"]:
                text = f"it has cost {spent:.4g} {currency}, and ending it costs the rest of"
                return "max_cost", f"{text} {self.cost['limit']:g} {currency} (max_cost)"
        if self.life is not None and now - self._began >= self.life:
            return "max_lifetime", "its time is over (max_lifetime)"
        if self.idle is not None and now - self._active >= self.idle:
            return "idle_timeout", f"nothing was computed for {_span(self.idle)} (idle_timeout)"
        return "", ""

    # -- inner

    def _counting(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler whose calls count as activity for as long as they last."""

        @functools.wraps(handler)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._active = time.monotonic()
            result = handler(*args, **kwargs)
            return self._during(result) if inspect.isawaitable(result) else result

        return call

    async def _during(self, work: Awaitable[Any]) -> Any:
        self._busy += 1
        self._quiet.clear()
        try:
            return await work
        finally:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()
            self._active = time.monotonic()

    async def _watch(self) -> None:
        least = min([one for one in (self.idle, self.life) if one is not None], default=_SELDOM)
        every = min(_SELDOM, max(_OFTEN, least / 20))
        while self.scheduler.status.name == "running":
            now = time.monotonic()
            if self._works(now):
                self._active = now
            self._warn(now)
            self._warn_idle(now)
            which, text = self.over(now)
            if which:
                await self._end(which, text)
                return
            await asyncio.sleep(every)

    def _works(self, now: float) -> bool:
        """Whether there is something to do, or something has happened since the last look."""
        scheduler = self.scheduler
        before = self._seen
        self._seen = (scheduler.transition_counter, tuple(scheduler.workers), tuple(scheduler.clients))
        if scheduler.workers:
            self._awaited = 0.0
        return bool(
            before != self._seen
            or now < self._awaited
            or self._busy
            or getattr(scheduler, "_active_graph_updates", 0)
            or scheduler.queued
            or scheduler.unrunnable
            or any(
                worker.processing or worker.metrics.get("cpu", 0.0) >= _AT_WORK
                for worker in scheduler.workers.values()
            )
        )

    def _warn(self, now: float) -> None:
        if self.cost is None or self._warned or self.spent(now) < _WARNED * self.cost["limit"]:
            return
        self._warned = True
        spent, rate, limit, currency = (
            *(self.spent(now), self.cost["rate"], self.cost["limit"]),
            self.cost["currency"],
        )
        left = max(0.0, (limit - spent) / rate * 3600 - RESERVE) if rate else 0.0
        text = (
            f"it has cost {spent:.4g} of {limit:g} {currency}; at {rate:.4g} {currency} an hour it ends in "
            f"{_span(left)}"
        )
        self._tell("max_cost", text)

    def _warn_idle(self, now: float) -> None:
        if self.idle is None or self.idle < _LONG:
            return
        quiet = now - self._active
        if quiet < _WARNED * self.idle:
            self._warned_idle = False
        elif not self._warned_idle:
            self._warned_idle = True
            text = f"nothing was computed for {_span(quiet)}; it ends in {_span(self.idle - quiet)}"
            self._tell("idle_timeout", f"{text} (idle_timeout)")

    def _tell(self, which: str, text: str) -> None:
        self.scheduler.log_event(_TOPIC, {"action": "warning", "limit": which, "text": text})
        self._say({"limit": text})

    async def _end(self, which: str, text: str) -> None:
        end = {"limit": which, "text": text, "within": WITHIN}
        self.scheduler.log_event(_TOPIC, {"action": "end", **end})
        self._say({"ended": end})
        with contextlib.suppress(Exception):  # whoever is not told has a lease
            await asyncio.wait_for(
                self.scheduler.broadcast(
                    msg={"op": "envsync_ended", "end": end}, nanny=self.nanny, on_error="ignore"
                ),
                _TOLD,
            )
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), GATHERING)
        self._cancel(f"The cluster has ended: {text}.")
        await asyncio.sleep(0.1)  # until that is sent: comms are cut next
        await self.scheduler.close(reason=f"envsync-{which}")

    def _cancel(self, text: str) -> None:
        """Have all clients know of all that they wait for that it does not come, and why."""
        from distributed.client import Client

        message: dict[str, Any] = {"op": "cancelled-keys"}
        if "msg" in inspect.signature(Client._handle_cancelled_keys).parameters:  # of older versions not
            message.update(reason="cluster-ended", msg=text)
        for name, state in self.scheduler.clients.items():
            keys = [task.key for task in state.wants_what]
            self.scheduler.report({**message, "keys": keys}, client=name)


def ended(say: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
    """Return the handler of other processes of the cluster, which say it to their agents."""

    def handler(end: Mapping[str, Any]) -> None:
        say({"ended": dict(end)})

    return handler


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
