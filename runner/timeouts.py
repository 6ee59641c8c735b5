"""Waiting no longer than so many seconds, without ever taking a cancellation for an answer.

`asyncio.wait_for` drops a cancellation that comes in the moment in which what it waits for is done, before
Python 3.12: the task goes on, and whoever cancelled it and waits for its end waits for ever.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["wait_for"]

T = TypeVar("T")


async def wait_for(awaited: Awaitable[T], seconds: float | None) -> T:
    """Wait for something, as `asyncio.wait_for` does.

    Parameters
    ----------
    awaited : awaitable
        A coroutine runs in this task; a future or task is cancelled when the time is over.
    seconds : float or None
        None waits for ever.

    Raises
    ------
    asyncio.TimeoutError
        The time is over.
    """
    async with timeout(seconds):
        return await awaited
