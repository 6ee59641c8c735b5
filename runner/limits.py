"""When a cluster ends by itself: what its user says, and the client's part in it.

The scheduler's process counts and decides, see `envsync.plugins.limits`. The client says what it has to know,
and takes care of the time in which there is no scheduler yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed.client import Client

from envsync.errors import CloudError, ClusterError, LimitReached
from envsync.plugins.limits import RESERVE
from envsync.runner.amounts import Money, money, span
from envsync.runner.cloud.costs import duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from envsync.runner.backends import Backend
    from envsync.runner.cloud.costs import Bill
    from envsync.runner.cloud.provider import Price

__all__ = ["IDLE", "KEYWORDS", "Limits", "Watch", "affordable", "cancel_futures", "said"]

KEYWORDS = ("idle_timeout", "max_lifetime", "client_timeout", "max_cost")
"""What `SyncedCluster`, profiles and ``envsync run`` call them."""

IDLE = 4 * 3600.0
"""Seconds that rented machines may be idle if nobody says otherwise: more than a lunch, less than a night."""

_LOOK = 1.0  # seconds between two looks at what machines cost
_RETELL = 30.0  # seconds after which the scheduler is told, whether it has changed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a cluster ends by itself.

    Attributes
    ----------
    idle : float or None
        Seconds in which nothing is computed.
    life : float or None
        Seconds from its start.
    client : float or None
        Seconds without a sign of life from the client.
    cost : Money or None
        What rented machines may cost, all in all.
    """

    idle: float | None = None
    life: float | None = None
    client: float | None = None
    cost: Money | None = None

    @classmethod
    def of(
        cls,
        *,
        idle_timeout: Any = "auto",
        max_lifetime: Any = None,
        client_timeout: Any = None,
        max_cost: Any = None,
        rents: bool = False,
    ) -> Limits:
        """Read what a user wrote; None: no such limit. What is idle by ``"auto"`` depends on `rents`.

        Raises
        ------
        ValueError
            It is no time, or no amount of money.
        """
        return cls(
            idle=_idle(idle_timeout, rents=rents),
            life=None if max_lifetime is None else span(max_lifetime, "max_lifetime"),
            client=None if client_timeout is None else span(client_timeout, "client_timeout"),
            cost=None if max_cost is None else money(max_cost, "max_cost"),
        )


def _idle(written: Any, *, rents: bool) -> float | None:
    if written == "auto":
        return IDLE if rents else None
    return None if written in (None, "never") else span(written, "idle_timeout")


def affordable(limit: Money, prices: Sequence[Price], count: int) -> tuple[Money, float]:
    """Return the limit in the currency of the prices, and what an hour of the dearest machine costs.

    Parameters
    ----------
    limit : Money
        What machines may cost.
    prices : sequence of Price
        Of all that may be rented.
    count : int
        How many are rented at the start.

    Raises
    ------
    CloudError
        The currency is another; or they would have to end as soon as they are there.
    """
    currencies = sorted({price.currency for price in prices})
    if len(currencies) != 1 or limit.currency not in ("", *currencies):
        raise CloudError(
            f"max_cost is {limit}, and prices are in {' and '.join(currencies)}",
            hint="Currencies are not converted: give it in the one that prices are in.",
        )
    dearest = max(price.amount for price in prices)
    least = dearest * count * RESERVE / 3600
    if limit.amount <= least:
        raise CloudError(
            f"max_cost is {limit}, and {count} machines at {dearest:.4g} {currencies[0]} an hour cost "
            f"{least:.4g} in the {duration(RESERVE)} that are kept for ending them",
            hint="Allow more, or rent fewer or cheaper machines.",
        )
    return Money(limit.amount, currencies[0]), dearest


class Watch:
    """The client's part for one cluster.

    Parameters
    ----------
    limits : Limits
        What is watched.
    backend : Backend
        Whose machines cost something.

    Attributes
    ----------
    ended : str
        What the scheduler has said when a limit was reached.
    """

    def __init__(self, limits: Limits, backend: Backend) -> None:
        self.limits = limits
        self.backend = backend
        self.cost: Money | None = None
        self.ended = ""
        self._dearest = 0.0
        self._began = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def demand(self, n_workers: int | None) -> None:
        """Have the backend know its prices before anything is rented, where there is a limit.

        Raises
        ------
        CloudError
            Nobody knows a price, or it is more than the limit.
        """
        if self.limits.cost is not None:
            self.cost, self._dearest = await self.backend.afford(self.limits.cost, n_workers)

    async def during(self, start: asyncio.Task[None]) -> None:
        """Wait for a start, which has no scheduler yet that would look after the limits.

        Raises
        ------
        LimitReached
            It has to be given up.
        """
        guarded = self.limits.life is not None or self.limits.cost is not None
        while not start.done():
            await asyncio.wait({start}, timeout=_LOOK if guarded else None)
            if why := self._over():
                raise LimitReached(f"{why} before the cluster was up", where="cluster", hint="Allow it more.")

    def to_scheduler(self, *, waits: float, nanny: bool) -> dict[str, Any]:
        """Return what the scheduler is to know: times from now on; empty if there are no limits.

        Parameters
        ----------
        waits : float
            Seconds that its first worker may take.
        nanny : bool
            Whether they run under nannies.
        """
        told: dict[str, Any] = {}
        if self.limits.idle is not None:
            told["idle"] = self.limits.idle
        if self.limits.life is not None:
            told["life"] = max(0.0, self.limits.life - (time.monotonic() - self._began))
        if self.cost is not None:
            told["cost"] = {"limit": self.cost.amount, "currency": self.cost.currency, **self._costs()}
        return {**told, "waits": waits, "nanny": nanny} if told else {}

    def begin(self, tell: Callable[..., Awaitable[Any]]) -> None:
        """Tell the scheduler what machines cost, whenever that changes, until `close`."""
        if self.cost is not None:
            self._task = asyncio.ensure_future(self._keep_told(tell))

    async def close(self) -> None:
        """Tell no more; silent if that is done."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _keep_told(self, tell: Callable[..., Awaitable[Any]]) -> None:
        told, at = -1.0, 0.0
        while True:
            costs = self._costs()
            if costs["rate"] != told or time.monotonic() - at > _RETELL:
                with contextlib.suppress(OSError):  # the next look may tell it
                    await tell(**costs)
                    told, at = costs["rate"], time.monotonic()
            await asyncio.sleep(_LOOK)

    def _costs(self) -> dict[str, float]:
        """Return what has been spent, and an hour's rate. What has no price yet is as dear as any."""
        bill: Bill = self.backend.bill()
        now = time.time()
        unknown = bill.unpriced
        there = sum(one.ended is None for one in unknown)
        return {
            "spent": bill.cost(now) + self._dearest * sum(one.hours(now) for one in unknown),
            "rate": bill.rate(now) + self._dearest * there,
        }

    def _over(self) -> str:
        """Return which limit is reached, as a sentence begins; empty if none is."""
        if self.limits.life is not None and time.monotonic() - self._began >= self.limits.life:
            return f"max_lifetime, {duration(self.limits.life)}, was over"
        if self.cost is not None:
            costs = self._costs()
            if costs["spent"] + costs["rate"] * RESERVE / 3600 >= self.cost.amount:
                return f"max_cost, {self.cost}, was reached: {costs['spent']:.4g} were spent"
        return ""


def cancel_futures(cluster: Any, why: str) -> None:
    """Have clients of a cluster in this process know that it has ended, and why: no results come."""
    for client in list(Client._instances):
        if client.cluster is cluster:
            client.scheduler_info = partial(_ended, why)  # Dask's would be empty, and say nothing
            for state in list(client.futures.values()):
                if state.status == "pending":
                    _cancel(state, why)


def _ended(why: str, *_: Any, **__: Any) -> None:
    raise ClusterError(why, hint="Start another one.")


def _cancel(state: Any, why: str) -> None:
    try:
        state.cancel(reason="cluster-ended", msg=why)
    except TypeError:  # of older versions
        state.cancel()


def said(event: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a scheduler has said of its limits: a warning, and why it ends; empty if it is not that."""
    end = event.get("ended")
    return str(event.get("limit") or ""), str(end.get("text", "")) if isinstance(end, dict) else ""
