"""When a cluster ends by itself: what is read, what is counted, and clusters of this machine that end."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client
from distributed.core import Status

from envsync.errors import CloudError, ConfigurationError, LimitReached
from envsync.hooks import Hooks
from envsync.plugins.limits import RESERVE
from envsync.plugins.limits import Limits as Watching
from envsync.runner import SSH, Local, Slurm, SyncedCluster
from envsync.runner.amounts import Money, money, seconds
from envsync.runner.cloud.provider import Price
from envsync.runner.limits import Limits, affordable
from envsync.runner.profiles import read_profile
from tests.running import until
from tests.small import processes_in


class Told(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


def test_times_and_money_are_read_alike_everywhere() -> None:
    written = ("20 min", "90s", "10min", "8 h", "0.5 MIN", "2 minutes", "01:00:00", 3, 0.5)
    assert [seconds(one) for one in written] == [1200, 90, 600, 28800, 30, 120, 3600, 3, 0.5]
    assert [str(money(one)) for one in ("50 USD", "50usd", 50, "0.05")] == ["50 USD", "50 USD", "50", "0.05"]
    for wrong in ("soon", True, "5 minx", "inf", [1]):
        with pytest.raises(ValueError, match=r"idle_timeout=.* is no time"):
            Limits.of(idle_timeout=wrong)
    for none in ("$50", "50 €", "-1", True, "1,5 EUR", float("nan"), "much"):
        with pytest.raises(ValueError, match=r"max_cost=.* is no amount of money: write 50 USD"):
            Limits.of(max_cost=none)
    with pytest.raises(ValueError, match="max_lifetime must be more than 0"):
        Limits.of(max_lifetime=0)


def test_only_rented_machines_have_a_time_to_be_idle_that_nobody_gave() -> None:
    assert Limits.of() == Limits()
    assert Limits.of(rents=True) == Limits(idle=4 * 3600)
    assert [Limits.of(idle_timeout=one, rents=True).idle for one in (None, "never", "9 h")] == [
        None,
        None,
        32400,
    ]


@pytest.mark.parametrize("backend", [Local(), SSH(["node1"]), Slurm()])
def test_the_clients_time_is_the_backends_grace_and_only_what_is_rented_costs(backend: Any) -> None:
    before = backend.grace
    assert backend.limited(Limits.of(client_timeout="2 min")).grace == 120
    assert backend.limited(Limits.of(idle_timeout=5)) is backend
    assert backend.grace == before
    with pytest.raises(TypeError, match="max_cost= is for machines that are rented"):
        SyncedCluster(backend, max_cost="5 USD")


def test_a_profile_has_limits_too() -> None:
    import dask.config

    profiles = {
        "short": {"backend": "local", "idle-timeout": "20 min", "max-lifetime": 60},
        "wrong": {"backend": "local", "idle-timeout": "soon"},
        "never": {"backend": "ec2", "type": "small", "idle-timeout": "never"},
    }
    with dask.config.set({"envsync.profiles": profiles}):
        assert read_profile("short").cluster == {"idle_timeout": "20 min", "max_lifetime": 60}
        assert read_profile("never").cluster == {"idle_timeout": "never"}
        with pytest.raises(ConfigurationError, match="idle_timeout='soon' is no time"):
            read_profile("wrong")


def test_what_cannot_be_paid_is_refused() -> None:
    prices = [Price(amount=one, currency="USD", source="a list", date="2026-11-01") for one in (1.0, 3.6)]
    assert affordable(money("5"), prices, 2) == (Money(5.0, "USD"), 3.6)
    with pytest.raises(CloudError, match="max_cost is 5 EUR, and prices are in USD"):
        affordable(money("5 EUR"), prices, 2)
    with pytest.raises(CloudError, match="2 machines at"):
        affordable(money("0.24 USD"), prices, 2)


def test_costs_are_counted_from_what_was_told_last_and_the_end_comes_before_the_limit() -> None:
    said: list[Any] = []
    cost = {"limit": 10.0, "currency": "USD", "spent": 1.0, "rate": 36.0}
    logged: list[Any] = []
    scheduler = SimpleNamespace(log_event=lambda *event: logged.append(event))
    limits = Watching(scheduler, {"cost": cost}, said.append)
    now = time.monotonic()
    assert limits.spent(now + 100) == pytest.approx(2.0, abs=0.01)
    limits._warn(now)
    assert (limits.over(now + 100), said) == (("", ""), [])
    limits.costs(spent=8.5, rate=3.6)
    now = time.monotonic()
    limits._warn(now)
    limits._warn(now)
    (warning,) = said
    assert warning["limit"] == "it has cost 8.5 of 10 USD; at 3.6 USD an hour it ends in 23 min"
    assert logged[0][0] == "envsync-limits"
    until = (10 - 8.5) / 3.6 * 3600
    assert limits.over(now + until - RESERVE - 1) == ("", "")
    which, text = limits.over(now + until - RESERVE + 1)
    assert (which, text[:16]) == ("max_cost", "it has cost 9.88")


def test_nobody_is_surprised_by_the_end_of_a_cluster_that_is_idle() -> None:
    said: list[Any] = []
    worker = SimpleNamespace(processing={}, metrics={"cpu": 3.0})
    scheduler = SimpleNamespace(
        log_event=lambda *_: None,
        transition_counter=7,
        workers={"tls://worker": worker},
        clients={},
        queued=(),
        unrunnable=(),
    )
    limits = Watching(scheduler, {"idle": 4 * 3600.0}, said.append)
    limits._works(0)  # what is new counts as activity
    assert not limits._works(1)
    worker.metrics["cpu"] = 97.0  # an actor that another worker calls is no task
    assert limits._works(2)
    worker.metrics.clear()  # before its first sign of life
    assert not limits._works(3)

    now = limits._active
    for after in (3 * 3600, 3.3 * 3600, 3.4 * 3600):
        limits._warn_idle(now + after)
    text = "nothing was computed for 3.3 h; it ends in 42 min (idle_timeout)"
    assert said == [{"limit": text}]
    limits._active = now + 3.5 * 3600
    for after in (3.6 * 3600, 7 * 3600):
        limits._warn_idle(now + after)
    assert said[1:] == [{"limit": "nothing was computed for 3.5 h; it ends in 30 min (idle_timeout)"}]
    assert limits.over(now + 7.4 * 3600) == ("", "")
    assert limits.over(now + 7.6 * 3600)[0] == "idle_timeout"


async def gone(cluster: SyncedCluster) -> None:
    deadline = time.monotonic() + 90
    while cluster.status != Status.closed:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_it_ends_when_nothing_is_computed_and_not_before(small_lock: Path) -> None:
    def slept(value: int) -> int:
        time.sleep(3.5)
        return value

    hooks = Told()
    keywords: dict[str, Any] = {"lock": small_lock, "threads_per_worker": 1, "dashboard_address": None}
    cluster = await SyncedCluster(n_workers=1, idle_timeout=3, asynchronous=True, hooks=hooks, **keywords)
    async with Client(cluster, asynchronous=True) as client:
        # longer than it may be idle: a task, and what is no task
        assert await client.submit(slept, 7) == 7
        assert list((await client.run(slept, 8)).values()) == [8]
        kept = client.submit(sum, [1, 2])
        assert await kept == 3
        await gone(cluster)
        assert cluster.ending == "nothing was computed for 3 s (idle_timeout)"
        assert hooks.warnings[-1] == "it ends: nothing was computed for 3 s (idle_timeout)"
        with pytest.raises(CancelledError):
            await kept
    await cluster.close()
    assert processes_in(small_lock.parent / "cache") == {}


@pytest.mark.slow
async def test_it_ends_when_its_time_is_over_and_whoever_waits_is_told(small_lock: Path) -> None:
    def hasten(dask_scheduler: Any) -> float:  # an hour takes long
        limits = dask_scheduler.handlers["envsync_cost"].__self__
        told, limits.life = limits.life, 0.0
        return float(told)

    async def wanted(client: Client) -> bool:
        return bool(
            await client.run_on_scheduler(
                lambda dask_scheduler: (
                    sum(len(one.wants_what) for one in dask_scheduler.clients.values()) == 2
                )
            )
        )

    keywords: dict[str, Any] = {"lock": small_lock, "threads_per_worker": 1, "dashboard_address": None}
    cluster = await SyncedCluster(n_workers=1, max_lifetime="1 h", asynchronous=True, **keywords)
    async with (
        Client(cluster, asynchronous=True) as client,
        Client(cluster.scheduler_address, security=cluster.security, asynchronous=True) as other,
    ):
        waiting = [one.submit(time.sleep, 60, pure=False) for one in (client, other)]
        await until(lambda: wanted(client))
        assert 3000 < await client.run_on_scheduler(hasten) < 3600
        for future in waiting:
            with pytest.raises(CancelledError, match=r"its time is over \(max_lifetime\)"):
                await asyncio.wait_for(future, 90)
        await gone(cluster)
        assert cluster.ending == "its time is over (max_lifetime)"
    assert processes_in(small_lock.parent / "cache") == {}
    with pytest.raises(LimitReached, match="max_lifetime, 0 s, was over before the cluster was up"):
        await SyncedCluster(n_workers=1, max_lifetime=0.01, asynchronous=True, **keywords)
    assert processes_in(small_lock.parent / "cache") == {}
