"""Many go through at the same time, or one alone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Turnstile"]


class Turnstile:
    """For what many may do at once, and what must not happen beside it."""

    def __init__(self) -> None:
        self._entrance = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @contextlib.asynccontextmanager
    async def through(self) -> AsyncIterator[None]:
        """Wait until nobody is alone in there, or wants to be."""
        async with self._entrance:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until all have come out, and let nobody in."""
        async with self._entrance:
            await self._empty.wait()
            yield
