"""The end of what many may want to end: it comes once, and whole, whoever waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Closing"]


class Closing:
    """What ends in two steps, once.

    Parameters
    ----------
    part : async callable
        Lets what runs close in order. Whoever gives up waiting cuts it short.
    end : async callable
        Ends all that is left, however that went. Nobody cuts it short.
    """

    def __init__(self, part: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]]) -> None:
        self._part = part
        self._end = end
        self._parting: asyncio.Future[None] | None = None
        self._ending: asyncio.Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether somebody has wanted it."""
        return self._ending is not None

    @property
    def under_way(self) -> bool:
        """Whether it has begun, and is not through."""
        return self._ending is not None and not self._ending.done()

    async def wait(self) -> None:
        """Begin to end, and wait until it has; who comes later waits for the same end.

        A wait that is cancelled goes on until the end has come, but without patience for the first step; one
        that is cancelled again stops waiting.

        Raises
        ------
        Exception
            What `end` raised, or `part`.
        """
        if self._parting is None or self._ending is None:
            self._parting = asyncio.ensure_future(self._part())
            self._ending = asyncio.ensure_future(self._through(self._parting))
        try:
            await asyncio.shield(self._ending)
        except asyncio.CancelledError:
            self._parting.cancel()
            await asyncio.wait({self._ending})
            raise

    async def _through(self, parting: asyncio.Future[None]) -> None:
        try:
            await asyncio.wait({parting})
        finally:
            await self._end()
        if not parting.cancelled():
            parting.result()
