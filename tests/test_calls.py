"""Processes that are suspended, or gone in the middle, keep nobody waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Server
from distributed.metrics import time

from envsync.plugins import calls


async def ask(
    monkeypatch: pytest.MonkeyPatch, handler: Any, last_seen: float, *, listens: bool
) -> dict[str, Any]:
    """Ask a process that answers, or says nothing at all."""
    # not the module's: who unpickles this class in the process that has it gives it functions of their own
    monkeypatch.setitem(calls.Calls._one.__globals__, "LOOK", 0.05)
    async with Server({"run": handler}) as server:
        await server.listen("tcp://127.0.0.1:0")
        mute = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        port = mute.sockets[0].getsockname()[1]
        address = server.address if listens else f"tcp://127.0.0.1:{port}"
        worker = SimpleNamespace(address=address, nanny="", last_seen=last_seen, versions={})
        scheduler: Any = SimpleNamespace(workers={address: worker}, connection_args={})
        with ThreadPoolExecutor(1) as threads:
            asked = calls.Calls(scheduler, threads).run([address], ask, None, lambda _: {})
            found = await asyncio.wait_for(asked, 20)
        mute.close()
        return dict(found[address])


def test_who_answers_late_is_waited_for_while_it_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(**_: Any) -> dict[str, Any]:
        await asyncio.sleep(1.0)  # twenty looks
        return {"status": "OK", "result": {"trouble": "", "late": True}}

    assert asyncio.run(ask(monkeypatch, run, time(), listens=True))["late"]


@pytest.mark.parametrize("listens", [True, False])
def test_who_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch, *, listens: bool) -> None:
    async def run(**_: Any) -> None:
        await asyncio.sleep(60)

    answer = asyncio.run(ask(monkeypatch, run, time() - 1000, listens=listens))
    assert "does not answer" in answer["trouble"]
