"""Tells a cloud that machines are still wanted, for as long as this process lives."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.cloud.plan import Plan
    from envsync.runner.cloud.provider import Provider

__all__ = ["Renewing"]

_SAID = 3600.0  # seconds after which what goes on is said again: the machines have some hours, then they end


class Renewing:
    """Has a cloud put off, again and again, when it stops machines by itself. See `Provider.renew`.

    Parameters
    ----------
    provider : Provider
        The cloud; nothing is done for one that does no such thing.
    plan : Plan
        Whose the machines are, and how long they go on by themselves.
    alive : callable
        The machines that there are now, by region.
    call : callable
        Makes a call that blocks.
    hooks : Hooks
        Told what cannot be put off.

    Attributes
    ----------
    trouble : str
        What keeps it from being put off, and what comes of that; empty if nothing does.
    """

    def __init__(
        self,
        provider: Provider,
        plan: Plan,
        *,
        alive: Callable[[], Mapping[str, Sequence[str]]],
        call: Callable[..., Awaitable[Any]],
        hooks: Hooks,
    ) -> None:
        self._provider, self._plan, self._hooks = provider, plan, hooks
        self._alive, self._call = alive, call
        self._last: float | None = None  # by the clock that goes on while this machine sleeps
        self.trouble = ""
        self._told = 0.0  # when it was said; 0 if it need not be
        self._closed = False
        self._doing: asyncio.Future[None] | None = None

    def soon(self) -> None:
        """Do it now: a machine is new."""
        self._last = None
        self.look()

    def look(self) -> None:
        """Begin with it if it is time; one call at a time is enough."""
        if self._due() and (self._doing is None or self._doing.done()):
            self._doing = asyncio.ensure_future(self._renew())

    def close(self) -> None:
        """Do it no more."""
        self._closed = True
        if self._doing is not None:
            self._doing.cancel()

    def _due(self) -> bool:
        if self._closed or not self._provider.renews:
            return False
        # that clock may be set back, too
        return self._last is None or not 0 <= time.time() - self._last < self._provider.renews

    async def _renew(self) -> None:
        while self._due():
            self._last = time.time()
            for region, ids in self._alive().items():
                await self._renew_in(region, ids)

    async def _renew_in(self, region: str, ids: Sequence[str]) -> None:
        try:
            await self._call(self._provider.renew, region, ids, self._plan.tags, self._plan.lease)
        except CloudError as error:
            if set(ids).isdisjoint(self._alive().get(region, ())):
                return  # it is no news of those that have ended meanwhile
            self.trouble = f"{error.message}. {error.hint}"
            if not 0 <= time.time() - self._told < _SAID:
                self._hooks.warning(error.where or self._provider.name, self.trouble)
                self._told = time.time()
        else:
            self._told, self.trouble = 0.0, ""
