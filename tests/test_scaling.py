"""Scaling in jobs: what is submitted, what goes first, what adapts, and what a thousand jobs cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from distributed import Client

from envsync.errors import AgentError
from envsync.hooks import Hooks
from envsync.runner import Slurm
from envsync.runner.batch import Driver, JobRequest
from envsync.runner.batch import driver as driver_module
from envsync.runner.batch.driver import Patience
from envsync.runner.hosts.base import Completed
from tests.running import until
from tests.simulated import SimulatedCluster, Site

GROUPS: dict[str, dict[str, Any]] = {"cpu": {}, "gpu": {"gres": "gpu:2", "cores": 4}}


class Told(Hooks):
    def __init__(self) -> None:
        self.failures: list[str] = []

    def failed(self, where: str, why: str) -> None:
        self.failures.append(why)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


@contextlib.asynccontextmanager
async def cluster_of(n_workers: Any = 0, **asked: Any) -> AsyncIterator[tuple[Site, SimulatedCluster]]:
    site = Site()
    async with SimulatedCluster(site, n_workers, **asked) as cluster:
        yield site, cluster
    assert not site.states().keys() - {"CANCELLED", "FAILED"}, "no job is left"


@pytest.mark.slow
def test_a_thousand_jobs_are_one_array_one_listing_and_one_cancellation() -> None:
    async def test() -> None:
        site = Site()
        async with SimulatedCluster(site, 1000) as cluster:
            assert site.calls["sbatch"] == 1
            assert len(site.jobs) == 1000
            before = site.calls["squeue"]
            await cluster.queue.driver.poll()
            # one of ours, and perhaps one of those who watch
            assert 1 <= site.calls["squeue"] - before <= 2
            assert len(cluster.jobs) == 1000
            cluster.scale(400)
            await until(lambda: site.states()["CANCELLED"] == 600)
            assert site.calls["scancel"] == 1
            assert [job.state for job in site.jobs.values()] == ["PENDING"] * 400 + ["CANCELLED"] * 600
            cluster.scale(400)  # that is what there is
            cluster.scale(700)
            await until(lambda: site.states()["PENDING"] == 700)
            assert site.calls["sbatch"] == 2
            assert not {"tail", "sacct"} & site.calls.keys()
            await until(lambda: len(cluster.jobs) == 700 + 200)  # the last of those that ended
        assert site.calls["scancel"] <= 3  # the driver's own, as it closes
        assert site.states() == {"CANCELLED": 1300}

    run(test)


def test_what_waits_goes_first_then_the_youngest_that_run() -> None:
    async def test() -> None:
        async with cluster_of(6) as (site, cluster), Client(cluster, asynchronous=True) as client:
            started = site.start(4)
            await client.wait_for_workers(4)
            await until(lambda: [row.workers for row in cluster.jobs] == [1, 1, 1, 1, 0, 0])
            jobs = cluster.queue.driver.jobs
            jobs.update({id_: replace(job, state="pending", nodes=()) for id_, job in jobs.items()})
            rows = cluster.jobs  # whoever has called runs, also where the system was asked before that
            assert [row.state for row in rows] == ["running"] * 4 + ["pending"] * 2
            cluster.scale(3)
            await until(lambda: site.states()["CANCELLED"] == 3)
            assert [id_ for id_, job in site.jobs.items() if job.state == "RUNNING"] == started[:3]
            cluster.scale(0)
            await until(lambda: site.states()["CANCELLED"] == 6)
            cluster.scale(2)
            await until(lambda: site.states()["PENDING"] == 2)
            assert len({row.name for row in cluster.jobs}) == 8, "no name is given again"

    run(test)


@pytest.mark.slow
def test_what_is_given_up_before_its_turn_is_never_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envsync.runner.batch.driver.MINUTE", 3.0)

    async def test() -> None:
        async with cluster_of(2, submissions_per_minute=1) as (site, cluster):
            cluster.scale(5)
            await until(lambda: len(cluster.queue.submissions.asked) == 3)
            cluster.scale(1)  # while three wait for their turn
            await until(lambda: site.states() == {"PENDING": 1, "CANCELLED": 1})
            cluster.scale(2)
            await until(lambda: site.states()["PENDING"] == 2)
            assert site.calls["sbatch"] == 2
            cluster.scale(9)
            await until(lambda: bool(cluster.queue.submissions.asked))
        assert site.calls["sbatch"] == 2, "closing waits for no turn"

    run(test)


def test_a_job_that_is_run_again_is_still_one_of_those_wanted() -> None:
    async def test() -> None:
        async with cluster_of(2) as (site, cluster), Client(cluster, asynchronous=True) as client:
            first, _ = site.start(2)
            await client.wait_for_workers(2)
            site.jobs[first].state, site.jobs[first].restarts = "PENDING", 1
            await until(lambda: cluster.jobs[0].restarts == 1)
            cluster.scale(2)
            await asyncio.sleep(0.2)
            assert site.calls["sbatch"] == 1
            assert "restarts" in str(cluster.jobs)

    run(test)


def test_groups_are_scaled_each_by_itself() -> None:
    async def test() -> None:
        async with (
            cluster_of({"cpu": 2, "gpu": 3}, groups=GROUPS) as (site, cluster),
            Client(cluster, asynchronous=True) as client,
        ):
            assert site.calls["sbatch"] == 2
            assert [(row.name, row.group) for row in cluster.jobs] == [
                *(("cpu-1", "cpu"), ("cpu-2", "cpu"), ("gpu-3", "gpu"), ("gpu-4", "gpu"))
            ]
            assert len(cluster.plan) == 2 + 2 * 2  # three workers take two jobs of two GPUs
            site.start(4)
            await client.wait_for_workers(6)
            found = await client.submit(lambda: 1, resources={"group-gpu": 1}, pure=False)
            assert found == 1
            held = client.map(abs, range(8), resources={"group-gpu": 1})
            await client.gather(held)
            who = {name for where in (await client.who_has(held)).values() for name in where}
            names = {
                info["name"] for address, info in cluster.scheduler_info["workers"].items() if address in who
            }
            assert names <= {"gpu-3-0", "gpu-3-1", "gpu-4-0", "gpu-4-1"}
            cluster.scale({"gpu": 0})
            await until(lambda: len(cluster.plan) == 2)
            cluster.scale(1)
            assert cluster.plan == {"cpu-1-0"}
            cluster.scale(jobs={"gpu": 1})
            assert len(cluster.plan) == 3
            for wrong in ({"disk": 1}, {"gpu": -1}):
                with pytest.raises(ValueError, match=r"there is no group|not be negative"):
                    cluster.scale(wrong)
            with pytest.raises(ValueError, match="how much cores a job has"):
                cluster.scale(cores=8)

    run(test)


def test_adaptive_jobs_are_whole_and_what_waits_long_is_asked_for_once() -> None:
    async def test() -> None:
        async with (
            cluster_of(gpus=2, cores=2) as (site, cluster),
            Client(cluster, asynchronous=True) as client,
        ):
            quick = {"interval": "20ms", "wait_count": 3, "target_duration": "100ms"}
            adaptive = cluster.adapt(minimum=0, maximum=6, **quick)
            futures = client.map(slow, range(40), pure=False)
            # nothing runs, so nobody knows how long they take: one job first
            await until(lambda: site.states()["PENDING"] >= 1)
            await asyncio.sleep(0.5)
            assert site.calls["sbatch"] == 1, "it waits, and is not asked for again"
            assert site.calls["scancel"] == 0, "nor given up"
            site.start(1)
            await until(lambda: len(site.jobs) == 3)  # six workers at most
            await asyncio.sleep(0.3)
            assert len(site.jobs) == 3
            site.start(3)
            assert sum(await client.gather(futures)) == sum(range(40))
            await client.cancel(futures)
            futures = []
            await until(lambda: site.states() == {"CANCELLED": 3})
            assert {len(change["workers"]) for _, change in adaptive.log if "workers" in change} <= {1, 2, 3}

    run(test)


def test_adaptive_rounds_to_whole_jobs_and_does_not_go_in_circles() -> None:
    async def test() -> None:
        async with cluster_of(workers_per_job=2) as (site, cluster):
            cluster.adapt(minimum=3, maximum=5, interval="20ms", wait_count=1)
            await until(lambda: len(site.jobs) == 2)
            await asyncio.sleep(0.4)
            assert site.calls["sbatch"] == 1
            assert site.calls["scancel"] == 0
            cluster.adapt(minimum_jobs=1, maximum_jobs=1, interval="20ms", wait_count=1)
            await until(lambda: site.states() == {"PENDING": 1, "CANCELLED": 1})
            with pytest.raises(ValueError, match="how much memory a job has"):
                cluster.adapt(maximum_memory="10 GB")

    run(test)


@pytest.mark.slow
def test_a_group_adapts_to_the_tasks_that_ask_for_it() -> None:
    async def test() -> None:
        groups = {"cpu": {}, "gpu": {"gpus": 1}}
        async with (
            cluster_of({"cpu": 2}, groups=groups) as (site, cluster),
            Client(cluster, asynchronous=True) as client,
        ):
            site.start(2)
            await client.wait_for_workers(2)
            quick = {"interval": "20ms", "wait_count": 2, "target_duration": "100ms"}
            cluster.adapt(maximum=3, group="gpu", **quick)
            assert sum(await client.gather(client.map(slow, range(10), pure=False))) == 45
            assert len(site.jobs) == 2, "idle workers of the other group do: no GPU is asked for"
            futures = client.map(slow, range(30), resources={"GPU": 1}, pure=False)
            await until(lambda: len(site.jobs) > 2)
            assert len(cluster.queue.backend.groups) == 2
            site.start(1)
            await client.gather(futures)
            del futures
            await until(lambda: site.states() == {"RUNNING": 2, "CANCELLED": len(site.jobs) - 2})

    run(test)


def test_closing_while_it_adapts_leaves_nothing() -> None:
    async def test() -> None:
        for number in range(5):
            async with cluster_of(1) as (site, cluster), Client(cluster, asynchronous=True) as client:
                site.start(1)
                cluster.adapt(minimum=0, maximum=8, interval="5ms", wait_count=1)
                futures = client.map(slow, range(50), pure=False)
                await asyncio.sleep(0.01 + 0.06 * number)
                del futures

    run(test)


def slow(number: int) -> int:
    import time

    time.sleep(0.05)
    return number


def test_a_burst_of_failures_is_looked_into_with_few_commands() -> None:
    async def test() -> None:
        told = Told()
        async with cluster_of(60, hooks=told) as (site, _):
            before, began = site.calls["squeue"], time.monotonic()
            for id_ in site.start(60):
                site.end(id_)
            await until(lambda: len(told.failures) == 60)
            watched = (time.monotonic() - began) / 0.05  # whoever watches looks as often, at most
            assert site.calls["squeue"] - before < 15 + watched
            assert site.calls["tail"] <= 10

    run(test)


def test_a_job_that_calls_is_not_lost_with_a_listing_that_leaves_it_out() -> None:
    async def test() -> None:
        site, there = Site(), {"1_0"}
        driver = Driver(
            Slurm().system,
            site,  # type: ignore[arg-type]
            patience=Patience(accounting=0.0),
            heard_of=there.__contains__,
        )
        await driver.submit(JobRequest(name="job", log="", folder="", count=2), "")
        site.jobs.clear()
        assert {id_: job.state for id_, job in (await driver.poll()).items()} == {"1_1": "cancelled"}
        driver.jobs["1_0"] = replace(driver.jobs["1_0"], state="running")
        there.clear()
        assert {id_: job.state for id_, job in (await driver.poll()).items()} == {"1_0": "lost"}

    run(test)


@pytest.mark.parametrize(("lately", "state"), [(60.0, "cancelled"), (-1.0, "pending")])
def test_what_is_taken_out_of_the_queue_is_told_soon_unless_it_may_have_run_meanwhile(
    monkeypatch: pytest.MonkeyPatch, lately: float, state: str
) -> None:
    monkeypatch.setattr(driver_module, "_LATELY", lately)

    async def test() -> None:
        site = Site()
        driver = Driver(Slurm().system, site, interval=0.1)  # type: ignore[arg-type]
        await driver.submit(JobRequest(name="job", log="", folder="", count=2), "")
        del site.jobs["1_1"]
        await driver.poll()
        assert driver.jobs["1_1"].state == "pending", "one look is none"
        await asyncio.sleep(0.2)
        await driver.poll()
        assert {id_: job.state for id_, job in driver.jobs.items()} == {"1_0": "pending", "1_1": state}

    run(test)


def test_what_is_refused_later_is_told_and_nothing_else_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        told = Told()
        site = Site()
        async with SimulatedCluster(site, 1, hooks=told) as cluster:
            site.start()
            await until(lambda: any(job.came_up for job in cluster.workers.values()))
            sbatch = site._sbatch
            site._sbatch = lambda arguments: (1, "")  # type: ignore[method-assign]
            cluster.scale(3)
            await until(lambda: bool(told.failures))
            assert cluster.queue is not None
            assert cluster.queue.failures_in_a_row == 1
            site._sbatch = sbatch  # type: ignore[method-assign]
            cluster.scale(2)
            await until(lambda: len(cluster.workers) == 2)
            cluster.queue._lost = AgentError("the relay is gone", where="login")
            cluster.scale(3)
            await until(lambda: len(told.failures) == 2)
            assert "no more jobs: the way to them is lost (the relay is gone)" in told.failures[-1]
            assert site.calls["sbatch"] == 3
        assert "Traceback" not in caplog.text

    run(test)


def test_a_submission_that_hangs_is_told_and_its_jobs_end_with_the_driver() -> None:
    class Warned(Hooks):
        warnings: tuple[str, ...] = ()

        def warning(self, where: str, text: str) -> None:
            self.warnings += (text,)

    class Hanging(Site):
        async def run(self, command: str, **options: Any) -> Completed:
            done = await super().run(command, **options)
            if "sbatch" in command:
                await asyncio.sleep(1000)
            return done

    async def test() -> None:
        site, told = Hanging(), Warned()
        patience = Patience(word=0.01, last=0.1)
        driver = Driver(Slurm().system, site, patience=patience, hooks=told)  # type: ignore[arg-type]
        submitting = asyncio.ensure_future(
            driver.submit(JobRequest(name="job", log="", folder="", count=2), "")
        )
        await until(lambda: told.warnings)
        assert told.warnings == ("`sbatch` does not answer: it is waited for 120 s at most",)
        submitting.cancel()
        await driver.close()
        assert site.states() == {"CANCELLED": 2}
        await asyncio.wait({submitting})

    run(test)


def test_more_than_an_array_takes_are_several() -> None:
    async def test() -> None:
        async with cluster_of(1002) as (site, cluster):
            assert site.calls["sbatch"] == 2
            assert len(site.jobs) == len(cluster.jobs) == 1002

    run(test)
