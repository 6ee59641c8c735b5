"""Restarts that do not go as they should: who waits for them is told, and not kept waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from distributed import Client

from tests.index_server import write_wheel
from tests.running import Elsewhere, Wish, until

pytestmark = pytest.mark.slow

SLOW = """
import os, time

def dask_setup(worker):
    while os.path.exists({flag!r}):
        time.sleep(0.1)
"""


async def test_a_nanny_that_dies_while_its_worker_restarts_is_not_waited_for(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    flag, preload = tmp_path / "wait", tmp_path / "preload.py"
    preload.write_text(SLOW.format(flag=str(flag)))
    nanny = elsewhere.worker("dies", "--preload", str(preload), host="one")
    elsewhere.worker("lives", host="two")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(2)
        wish = Wish(others)
        wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
        before = set(_workers(nanny.process.pid))
        flag.touch()  # from now on its worker does not come up
        applied = asyncio.ensure_future(wish.apply(client, restart="always"))
        # by their numbers: when a process began is known to a second only
        await until(lambda: not before.issuperset(_workers(nanny.process.pid)), 60)
        await until(lambda: "dies" not in _names(client), 60)
        for pid in [nanny.process.pid, *_workers(nanny.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        answer = await applied
        assert time.monotonic() - began < 90  # and not two minutes
        found = {str(entry["name"]): entry["state"] for entry in answer["workers"].values()}
        assert found["lives"] == "equal"
        assert "dies" not in found


def _workers(nanny: int) -> list[int]:
    return [one.pid for one in psutil.Process(nanny).children()]


def _names(client: Client) -> set[str]:
    return {str(one["name"]) for one in client.scheduler_info()["workers"].values()}
