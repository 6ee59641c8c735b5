"""Rented machines that are lost, do not come up, or are too many: what is rented then, and what ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from distributed import Client

from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner import losses, machines
from envsync.runner.cloud.provider import Machine
from tests.running import until
from tests.simulated_cloud import RentingCluster
from tests.test_cloud_renting import Booting, alive


class Told(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.texts.append(text)

    def failed(self, where: str, why: str) -> None:
        self.texts.append(why)

    def has(self, *words: str) -> bool:
        return any(all(word in text for word in words) for text in self.texts)


@contextlib.asynccontextmanager
async def cluster_of(n_workers: int, **asked: Any) -> AsyncIterator[tuple[Booting, RentingCluster]]:
    provider = Booting(["north"])
    async with RentingCluster(provider, n_workers, **asked) as cluster:
        yield provider, cluster
    assert (alive(provider), provider.shared) == ([], {})


def lose(provider: Booting, machine: Machine) -> None:
    """End a machine from outside."""
    provider.machines[machine.id] = replace(machine, state="ended", reason="Server.SpotInstanceTermination")


def others(cluster: RentingCluster) -> list[Any]:
    """Return the machines that have workers, but for the scheduler's."""
    return [one for one in cluster.workers.values() if not one.on_first and one.working]


async def another(provider: Booting, cluster: RentingCluster) -> Machine:
    """Wait until the one machine beside the scheduler's has its workers, and return it."""

    def there() -> Machine | None:
        rest = [one for one in alive(provider) if one.id != cluster.queue.scheduler_machine.id]
        return rest[0] if rest and [one.machine.id for one in others(cluster)] == [rest[0].id] else None

    found: Machine = await until(there)
    return found


async def test_machines_that_are_lost_again_and_again_are_not_rented_for_ever() -> None:
    told = Told()
    async with cluster_of(2, hooks=told) as (provider, cluster):
        for _ in range(8):
            lose(provider, await another(provider, cluster))
        await another(provider, cluster)
        assert len(provider.machines) == 2 + 8
        lose(provider, await another(provider, cluster))
        await until(lambda: told.has("not replaced: too many were within 10 min. scale() asks for another"))
        with pytest.raises(CloudError, match="too many were within 10 min"):
            await cluster._wait_for_workers(2, 60)
        assert len(alive(provider)) == 1
        cluster.scale(2)  # its user has seen to it
        await until(lambda: len(others(cluster)) == 1)
        assert len(provider.machines) == 2 + 8 + 1


async def test_spot_machines_that_are_told_to_go_again_and_again_are_not_replaced_for_ever() -> None:
    """Each is told before it goes: another is asked for at once, but not without end."""
    told = Told()
    async with cluster_of(2, hooks=told) as (provider, cluster):
        for number in range(9):
            going = await another(provider, cluster)
            others(cluster)[0].noticed({"seconds": 30, "text": "it is taken back"})
            if number < 8:
                await until(lambda going=going: going.id not in {one.id for one in alive(provider)})
        await until(lambda: told.has("it is taken back", "not replaced: too many were within 10 min"))
        await until(lambda: len(alive(provider)) == 1)
        with pytest.raises(CloudError, match="too many were within 10 min"):
            await cluster._wait_for_workers(2, 60)
        assert len(provider.machines) == 2 + 8


async def test_machines_that_are_lost_again_and_again_are_rented_ever_more_seldom_while_it_adapts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_PAUSE", 3600.0)
    monkeypatch.setattr(losses, "_LONGEST", 9999.0)
    told = Told()
    async with cluster_of(1, hooks=told) as (provider, cluster):
        cluster.adapt(minimum=2, maximum=4, interval="10 ms")
        for _ in range(8):
            lose(provider, await another(provider, cluster))
        assert not told.has("no more is rented")
        lose(provider, await another(provider, cluster))
        await until(lambda: told.has("was lost", "soon after they came up: no more is rented for 1 h 00 min"))
        assert not cluster.queue.may_grow
        await asyncio.sleep(0.1)  # ten times it would have asked
        assert len(provider.machines) == 2 + 8
        # it is over
        cluster.queue._losses.until = 0.0
        lose(provider, await another(provider, cluster))
        await until(lambda: told.has("was lost", "no more is rented for 2 h 00 min"))
        assert len(provider.machines) == 2 + 9
        cluster.adapt(minimum=2, maximum=4, interval="10 ms")  # its user has seen to it
        await another(provider, cluster)
        assert len(provider.machines) == 2 + 10


class Clock:
    """A monotonic clock that is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_pauses_grow_and_end_with_a_machine_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(losses, "time", clock)
    lost = losses.Losses()

    def lose(others: list[float], lived: float = 30.0) -> float:
        clock.now += lived
        return lost.pause(clock.now - lived, others)

    there = [900.0] * 3  # for as long as it goes on
    assert [lose(there) for _ in range(8)] == [0.0] * 8
    assert lose(there) == 60.0
    assert lost.until == clock.now + 60
    assert lose(there, 0.0) == 0.0, "that was there already"
    found = []
    for _ in range(7):
        clock.now = lost.until
        found.append(lose(there))
    assert found == [120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0, 1800.0]
    clock.now = lost.until
    assert lose(there, 700.0) == 0.0, "that one was worth it"
    assert [lose(there) for _ in range(9)] == [0.0] * 8 + [60.0]
    clock.now = lost.until
    came = clock.now
    clock.now += 601
    assert lose([*there, came]) == 0.0, "another was"
    # of many, as many may go at once
    assert [lost.pause(0.0, [0.0] * 40) for _ in range(39)] == [0.0] * 39
    assert lost.pause(0.0, [0.0] * 40) == 60.0


async def test_what_never_comes_up_is_not_asked_for_for_ever_while_it_adapts() -> None:
    told = Told()
    async with cluster_of(1, hooks=told, boot=0.03) as (provider, cluster):
        provider.mute = 1000
        cluster.adapt(minimum=2, maximum=4, interval="20 ms")
        await until(lambda: told.has("10 machines in a row failed: nothing adapts any more"))
        await until(lambda: len(cluster.workers) == len(alive(provider)) == 1)
        made = len(provider.machines)
        assert made <= 1 + 2 * 10 + 2, "each and its replacement, and one that was on its way"
        await asyncio.sleep(0.2)
        assert len(provider.machines) == made


async def test_what_its_user_has_to_see_to_stands_in_the_widget_and_in_the_record() -> None:
    async with cluster_of(1) as (_, cluster):
        assert "Warning:" not in cluster._repr_html_()
        cluster.backend.rented._renewing.trouble = "log in <again>"
        assert "<strong>Warning:</strong> log in &lt;again&gt;" in cluster._repr_html_()
        assert (await cluster._stands())["trouble"] == "log in <again>"


async def test_adapting_to_less_ends_machines_and_the_schedulers_stays() -> None:
    async with cluster_of(1) as (provider, cluster), Client(cluster, asynchronous=True) as client:
        (first,) = alive(provider)
        cluster.adapt(minimum=0, maximum=3, interval="20 ms", wait_count=3, target_duration="100 ms")
        futures = client.map(held, range(60), pure=False)
        await until(lambda: len(cluster.workers) == 3)
        GO.set()
        assert sum(await client.gather(futures)) == sum(range(60))
        del futures
        await until(lambda: alive(provider) == [first])
        await until(lambda: not cluster.workers)
        assert await client.submit(slow, 7, pure=False) == 7
        assert [one.on_first for one in cluster.workers.values()] == [True]
        assert alive(provider) == [first]


async def test_a_replacement_that_finds_no_room_is_told_and_the_others_go_on() -> None:
    told = Told()
    async with cluster_of(2, hooks=told) as (provider, cluster), Client(cluster, asynchronous=True) as client:
        lost = await another(provider, cluster)
        provider.room.update({("north-a", "on-demand"): 0, ("north-b", "on-demand"): 0})
        lose(provider, lost)
        await until(lambda: told.has("machine-3", "no small there"))
        assert told.has("was lost", "Server.SpotInstanceTermination")
        with pytest.raises(CloudError, match="no small there"):
            await cluster._wait_for_workers(2, 60)
        await asyncio.sleep(0.1)
        assert sum("no small there" in text for text in told.texts) == 1, "it is asked for once"
        assert await client.submit(slow, 7) == 7
        provider.room.clear()
        cluster.scale(2)
        await until(lambda: others(cluster))
    assert len(provider.machines) == 3


async def test_where_there_is_no_room_it_adapts_when_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_FULL", 0.05)
    told = Told()
    async with cluster_of(1, hooks=told) as (provider, cluster):
        provider.room.update({("north-a", "on-demand"): 0, ("north-b", "on-demand"): 0})
        cluster.adapt(minimum=2, maximum=2, interval="10 ms")
        await until(lambda: sum("no small there" in text for text in told.texts) > 12)
        provider.room.clear()
        await until(lambda: others(cluster))
    assert len(provider.machines) == 2


async def test_a_start_whose_replacement_finds_no_room_leaves_nothing() -> None:
    provider = Booting(["north"], room={("north-a", "on-demand"): 1, ("north-b", "on-demand"): 0}, mute=1)
    with pytest.raises(CloudError, match="no small there"):
        async with RentingCluster(provider, 1, boot=0.03):
            pass
    assert len(provider.machines) == 1
    assert (alive(provider), provider.shared) == ([], {})


GO = threading.Event()
"""Until it is set, `held` does not end: its workers are threads of this process."""


def held(number: int) -> int:
    assert GO.wait(60)
    return number


def slow(number: int) -> int:
    import time

    time.sleep(0.02)
    return number
