"""Waiting for so long and no longer; a cancellation is never lost in it."""

from __future__ import annotations

import asyncio

import pytest

from envsync.runner.timeouts import wait_for


async def test_what_takes_too_long_is_left() -> None:
    loop = asyncio.get_running_loop()
    slow = loop.create_future()
    with pytest.raises(asyncio.TimeoutError):
        await wait_for(slow, 0.01)
    assert slow.cancelled()
    assert await wait_for(asyncio.sleep(0, "done"), 5) == "done"
    assert await wait_for(asyncio.sleep(0, "done"), None) == "done"


async def test_a_task_that_is_cancelled_as_what_it_waits_for_comes_ends() -> None:
    come = asyncio.get_running_loop().create_future()

    async def forever() -> None:
        await wait_for(come, 60)
        await asyncio.Event().wait()

    task = asyncio.ensure_future(forever())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    come.set_result(None)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done
    assert task.cancelled()
