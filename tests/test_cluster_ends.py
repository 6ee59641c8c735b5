"""How a cluster ends: whole, however its start failed, whoever waits for its end, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status

from envsync import SyncedCluster
from envsync.errors import AgentError, CloudError, ClusterError, LockError, ProcessDied
from envsync.hooks import Hooks
from envsync.runner.remote import Remote
from envsync.runner.session import Session
from tests.running import until
from tests.simulated_cloud import LocalMachine, RentingCluster
from tests.test_cloud_renting import Booting, alive
from tests.test_machines import Told


@pytest.fixture
async def provider() -> AsyncIterator[Booting]:
    """A cloud of which nothing is left."""
    made = Booting(["north"])
    yield made
    assert (alive(made), made.shared) == ([], {})


class Held:
    """Where something waits until it is let go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def wait(self, *_: Any, **__: Any) -> None:
        self.reached.set()
        await self.go_on.wait()


@pytest.mark.parametrize("where", ["scheduler", "worker"])
@pytest.mark.parametrize("how", ["await", "with"])
async def test_a_start_that_is_given_up_leaves_no_machine(
    provider: Booting, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    held = Held()
    if where == "scheduler":
        monkeypatch.setattr("distributed.Scheduler.start", held.wait)
    else:
        monkeypatch.setattr(LocalMachine, "_work", held.wait)
    cluster = RentingCluster(provider)
    starting = asyncio.ensure_future(cluster if how == "await" else cluster.__aenter__())
    await asyncio.wait_for(held.reached.wait(), 30)
    assert len(alive(provider)) == 1
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 30)
    assert alive(provider) == []
    assert cluster.status == Status.closed


async def test_a_start_whose_workers_fail_leaves_no_machine(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise ProcessDied("it ended with exit status 3 before it was up", where="worker 0")

    monkeypatch.setattr(LocalMachine, "_work", fail)
    with pytest.raises(ProcessDied, match="exit status 3"):
        await RentingCluster(provider)
    assert alive(provider) == []


async def test_why_a_start_failed_is_raised_and_what_could_not_be_ended_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider, told = Booting(["north"]), Told()
    real = RentingCluster._provision

    async def fail(cluster: RentingCluster) -> None:
        await real(cluster)
        raise ProcessDied("it ended with exit status 3", where="worker 0")

    async def refuse(_: Any) -> None:
        raise CloudError("no such credentials any more", where="north")

    monkeypatch.setattr(RentingCluster, "_provision", fail)
    monkeypatch.setattr("envsync.runner.cloud.renting.Rented.close", refuse)
    with pytest.raises(ProcessDied, match="exit status 3"):
        await RentingCluster(provider, hooks=told)
    assert told.has("no such credentials")


async def test_why_a_start_failed_is_raised_where_differences_are_warned_about(tmp_path: Path) -> None:
    cluster = SyncedCluster(lock=tmp_path / "pylock.none.toml", on_mismatch="warn", asynchronous=True)
    with pytest.raises(LockError, match="no such lock"):
        await cluster
    assert cluster.status == Status.closed
    await SyncedCluster(on_mismatch="warn", asynchronous=True).close()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_one_that_is_stopped_from_elsewhere_before_it_is_up_rents_nothing_more(
    provider: Booting, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    held, real = Held(), RentingCluster._provision

    async def slow(cluster: RentingCluster) -> None:
        if when == "before":
            await held.wait()
        await real(cluster)
        await held.wait()

    monkeypatch.setattr(RentingCluster, "_provision", slow)
    cluster = RentingCluster(provider)
    starting = asyncio.ensure_future(cluster)
    await asyncio.wait_for(held.reached.wait(), 30)
    cluster._end_for("bob@desk")
    with pytest.raises(ClusterError, match="before it was up: stopped by bob@desk"):
        await asyncio.wait_for(starting, 30)
    assert len(provider.machines) == (when == "after")
    assert cluster.status == Status.closed


async def test_who_waits_for_a_start_beside_another_begins_nothing_twice(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    cluster = RentingCluster(provider)
    monkeypatch.setattr(cluster._watch, "begin", begun.append)
    await asyncio.gather(cluster, cluster)
    assert len(begun) == 1
    await cluster.close()


async def test_who_gives_up_waiting_for_the_end_may_wait_again(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, held = await RentingCluster(provider), Held()
    [process] = cluster.workers.values()
    real = process.close

    async def slow() -> None:
        if not held.reached.is_set():
            await held.wait()
        await real()

    monkeypatch.setattr(process, "close", slow)
    closing = asyncio.ensure_future(cluster.close())
    await asyncio.wait_for(held.reached.wait(), 30)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, 30)
    assert alive(provider) == []  # nothing is waited for any more but that
    await asyncio.wait_for(cluster.close(), 30)
    assert cluster.status == Status.closed
    held.go_on.set()


async def test_who_closes_second_waits_for_all_of_it(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, held = await RentingCluster(provider), Held()
    monkeypatch.setattr(cluster, "_end_record", held.wait)
    first = asyncio.ensure_future(cluster._close())  # as it does when its scheduler is lost
    await asyncio.wait_for(held.reached.wait(), 30)
    second = asyncio.ensure_future(cluster.close())
    await asyncio.wait({second}, timeout=0.05)
    assert not second.done()
    held.go_on.set()
    await asyncio.wait_for(asyncio.gather(first, second), 30)


async def test_what_goes_wrong_at_the_end_keeps_no_machine(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await RentingCluster(provider)

    async def fail() -> None:
        raise RuntimeError("by a mistake")

    monkeypatch.setattr(cluster.queue, "close", fail)
    with pytest.raises(RuntimeError, match="by a mistake"):
        await cluster.close()
    assert alive(provider) == []
    assert cluster.status == Status.closed
    await asyncio.wait_for(cluster.close(), 30)


async def test_who_gives_up_waiting_for_workers_leaves_one_of_each_name(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, real = Held(), LocalMachine.start

    async def slow(machine: LocalMachine) -> None:
        await held.wait()
        await real(machine)

    async with RentingCluster(provider) as cluster:
        monkeypatch.setattr(LocalMachine, "start", slow)
        cluster.scale(2)
        waiting = asyncio.ensure_future(cluster)
        await asyncio.wait_for(held.reached.wait(), 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.go_on.set()
        await asyncio.wait_for(cluster, 30)
        await until(lambda: len(cluster.scheduler_info["workers"]) == 2)
        assert len(provider.machines) == 2
        assert cluster.status == Status.running


async def test_a_machine_that_the_scheduler_could_not_be_told_of_is_let_go_of(
    provider: Booting, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def close() -> None:
        closed.append("session")

    async def prepare(*_: Any, **__: Any) -> list[Any]:
        return [SimpleNamespace(session=SimpleNamespace(close=close))]

    async def refuse(_: Any) -> None:
        raise OSError("the scheduler is gone")

    async with RentingCluster(provider) as cluster:
        monkeypatch.setattr(cluster.queue, "_prepare", prepare)
        monkeypatch.setattr(cluster.queue, "_want", refuse)
        with pytest.raises(OSError, match="the scheduler is gone"):
            await cluster.queue.prepare(cluster.queue.scheduler_machine)
    assert closed == ["session"]


async def test_all_processes_of_a_host_hear_that_it_is_lost_whatever_one_makes_of_it() -> None:
    host: Any = SimpleNamespace(name="node1")
    session = Session(host, None, Hooks())  # type: ignore[arg-type]
    remotes = [Remote(session, name, "ada-1") for name in ("scheduler", "worker-0")]
    session._remotes = {remote.name: remote for remote in remotes}
    wrong: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: wrong.append(str(said["exception"])))

    def fail(_: Remote) -> None:
        raise ValueError("of a user's own hook")

    remotes[0].on_exit(fail)
    session._lost(AgentError("the connection is gone", where="node1"))
    assert wrong == ["of a user's own hook"]
    for remote in remotes:
        with pytest.raises(AgentError, match="the connection is gone"):
            await asyncio.wait_for(remote.wait(), 30)
