"""Many hosts at once: bounded, with one answer or one error, and what went to each of them counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from envsync.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Meter", "each", "first_of"]

T = TypeVar("T")
R = TypeVar("R")


async def each(
    items: Sequence[T], work: Callable[[T], Awaitable[R]], limit: int, *, patient: bool = False
) -> list[R | BaseException]:
    """Work on all items, a bounded number at the same time.

    The first failure ends the others and is raised, with what else had failed by then as its notes; when
    `patient`, failures are returned in their places.
    """
    slots = asyncio.Semaphore(limit)

    async def one(item: T) -> R:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        if tasks:
            await asyncio.wait(
                tasks, return_when=asyncio.ALL_COMPLETED if patient else asyncio.FIRST_EXCEPTION
            )
        ended = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
        if ended and not patient:
            raise first_of([error for task in ended if (error := task.exception()) is not None])
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    return list(results)


def first_of(errors: Sequence[BaseException]) -> BaseException:
    """Return the first error, the others added to it as notes (PEP 678, which older Pythons do not print)."""
    first, *others = errors
    notes = [*getattr(first, "__notes__", ()), *(f"also: {other}" for other in others)]
    if notes:
        first.__notes__ = notes  # type: ignore[attr-defined,unused-ignore]
    return first


class Meter(Hooks):
    """Passes everything on, and counts the bytes that went to one host."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.sent = 0
        self._last = 0

    def step(self, where: str, what: str) -> None:
        """See `Hooks.step`."""
        self._last = 0
        self.hooks.step(where, what)

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        """See `Hooks.progress`."""
        if unit == "B":
            self.sent += done - self._last if done > self._last else 0
            self._last = done
        self.hooks.progress(where, done, total, unit)

    def done(self, where: str, what: str, seconds: float) -> None:
        """See `Hooks.done`."""
        self.hooks.done(where, what, seconds)

    def failed(self, where: str, why: str) -> None:
        """See `Hooks.failed`."""
        self.hooks.failed(where, why)

    def note(self, where: str, text: str) -> None:
        """See `Hooks.note`."""
        self.hooks.note(where, text)

    def warning(self, where: str, text: str) -> None:
        """See `Hooks.warning`."""
        self.hooks.warning(where, text)
