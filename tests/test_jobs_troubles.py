"""What goes wrong between a cluster and its jobs where nobody thought of it: it is told, and nobody hangs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Client

from envsync.errors import BatchError, ConnectError
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.runner import jobends, jobscripts
from envsync.runner.batch import Job, JobRequest
from envsync.runner.hosts.base import Completed
from envsync.runner.jobscripts import JobScripts
from envsync.runner.places import variant_of, with_variant
from envsync.target import Target
from tests.running import until
from tests.simulated import Board, LocalJob, SimulatedCluster, Site
from tests.test_scaling import cluster_of, run


class Told(Hooks):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def failed(self, where: str, why: str) -> None:
        self.lines.append(f"{where}: {why}")

    def warning(self, where: str, text: str) -> None:
        self.lines.append(f"{where}: {text}")


def test_a_cluster_closes_while_a_job_retires(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(_: Any) -> set[str]:
        await asyncio.sleep(3600)
        return set()

    async def test() -> None:
        async with cluster_of(1) as (site, cluster), Client(cluster, asynchronous=True) as client:
            site.start(1)
            await client.wait_for_workers(1)
            monkeypatch.setattr(cluster.queue.launch, "retire", forever)  # what it holds finds no place
            (job,) = cluster.workers.values()
            job._leave.set()
            await until(lambda: job not in cluster.workers.values())
        assert cluster.status.name == "closed"

    run(test)


def test_a_job_that_breaks_in_a_way_that_nobody_thought_of_is_told_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(self: Any) -> asyncio.Event:
        await self.jobs.board.answer(self.id)
        raise KeyError("nobody thought of it")

    monkeypatch.setattr(LocalJob, "_come_up", broken)

    async def test() -> None:
        told = Told()
        async with cluster_of(1, hooks=told) as (site, _):
            site.start(1)
            await until(lambda: told.lines)  # when it has been cancelled
            assert site.states() == {"CANCELLED": 1}
            assert ["KeyError: 'nobody thought of it'" in line for line in told.lines] == [True]

    run(test)


def test_a_submission_that_breaks_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with cluster_of(1) as (site, cluster):

            async def broken(_: JobRequest) -> Any:
                raise OSError("no space left")

            monkeypatch.setattr(cluster.queue.scripts, "submit", broken)
            cluster.scale(2)
            with pytest.raises(OSError, match="no space left"):
                await cluster._correct_state()
            monkeypatch.undo()
            cluster.scale(2)
            await until(lambda: site.states() == {"PENDING": 2})

    run(test)


def test_a_cancellation_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        told, site = Told(), Site()
        monkeypatch.setattr(site, "_scancel", lambda _: (1, ""))
        async with SimulatedCluster(site, 2, hooks=told) as cluster:
            cluster.scale(0)
            await until(lambda: told.lines)
            assert ": slurm did not cancel its jobs: no;" in told.lines[0]
            monkeypatch.undo()
        assert site.states() == {"CANCELLED": 2}, "closing tries again"

    run(test)


def test_jobs_that_were_on_their_way_when_no_folder_turned_out_to_be_shared_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Board, "body_alone", lambda *_: ("", "token"), raising=False)
    monkeypatch.setattr(Board, "admit", lambda *_: None, raising=False)

    async def test() -> None:
        told = Told()
        async with cluster_of(1, hooks=told) as (site, cluster):
            scripts = cluster.queue.scripts
            monkeypatch.setattr(scripts, "unseen", lambda job: job.ended)
            scripts.alone = True  # as another job has found out meanwhile
            site.end("1_0")
            await until(lambda: site.states() == {"FAILED": 1, "PENDING": 1})
            site.end("2_0")  # that one has brought along what it needs
            await until(lambda: bool(told.lines))
            assert site.states() == {"FAILED": 2}

    run(test)


def test_jobs_that_find_out_together_that_no_folder_is_shared_all_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two at once: the first has the others cancelled, which takes a moment, and ends them all with that."""
    monkeypatch.setattr(Board, "body_alone", lambda *_: ("", "token"), raising=False)
    monkeypatch.setattr(Board, "admit", lambda *_: None, raising=False)
    monkeypatch.setattr(jobends, "_LOOK", 0.0)

    class Slow(Site):
        async def run(self, command: str, **options: Any) -> Completed:
            if "scancel" in command and not self.calls["scancel"]:
                await asyncio.sleep(0.5)  # ten looks
            return await super().run(command, **options)

    async def test() -> None:
        told, site = Told(), Slow()
        async with (
            SimulatedCluster(site, 3, hooks=told, submissions_per_minute=1000) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            monkeypatch.setattr(cluster.queue.scripts, "unseen", lambda job: job.state == "failed")
            for id_ in ("1_0", "1_1"):
                site.end(id_)
            await until(lambda: "2_2" in site.jobs)
            site.start(3)
            await client.wait_for_workers(3)
            await asyncio.sleep(0.2)
            assert told.lines == []
            assert (site.calls["sbatch"], len(site.jobs)) == (2, 6)

    run(test)


def test_jobs_are_watched_again_when_their_system_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        told = Told()
        async with cluster_of(1, hooks=told) as (site, cluster):
            driver = cluster.queue.driver
            look, looks = driver._look, 0

            async def silent(_: Any) -> Any:
                nonlocal looks
                looks += 1
                raise BatchError("slurmctld is away", where="login")

            monkeypatch.setattr(type(driver._patience), "silence", 0.0)
            monkeypatch.setattr(driver, "_look", silent)
            await until(lambda: looks > 3)
            monkeypatch.setattr(driver, "_look", look)
            site.end("1_0")
            await until(lambda: "ended" in cluster.jobs.summary or not cluster.workers)
            assert sum("not known until that is over" in line for line in told.lines) == 1

    run(test)


def test_jobs_whose_time_is_over_as_soon_as_they_are_up_are_not_replaced_without_end() -> None:
    async def test() -> None:
        told, site = Told(), Site()
        async with SimulatedCluster(site, 1, hooks=told, submissions_per_minute=1000) as cluster:
            for number in range(1, 6):
                await until(lambda number=number: f"{number}_0" in site.jobs)
                site.start(1)
                await until(lambda: any(job.came_up for job in cluster.workers.values()))
                site.end(f"{number}_0", "TIMEOUT", "TimeLimit")
                await until(lambda: not any(job.came_up for job in cluster.workers.values()))
            await until(lambda: any("5 jobs in a row had no time left" in line for line in told.lines))
            await asyncio.sleep(0.3)
            assert site.states() == {"TIMEOUT": 5}

    run(test)


def test_a_job_that_runs_and_never_calls_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        told, site = Told(), Site()
        async with SimulatedCluster(site, 1, hooks=told) as cluster:
            monkeypatch.setattr(cluster.queue.launch, "start_timeout", 0.0)
            site.jobs["1_0"].state, site.jobs["1_0"].node = "RUNNING", "node1"
            await until(lambda: bool(told.lines))
            assert told.lines == [
                "node1: job-1 runs, and has not called yet: see its log, its prologue may hang"
            ]

    run(test)


@pytest.mark.parametrize("away", [True, False])
def test_a_job_whose_node_is_lost_while_it_comes_up_has_until_its_system_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """Slurm says that a job runs which it ends, for half a minute or longer, and then that it waits again."""
    come_up: Any = LocalJob._come_up

    async def close() -> None: ...

    async def lost(self: Any) -> asyncio.Event:
        if self.jobs.job(self.id).restarts:
            return cast("asyncio.Event", await come_up(self))
        await self.jobs.board.answer(self.id)
        self._host = SimpleNamespace(gone=away, hello={"host": "node0"}, close=close)
        raise ConnectError("the host was lost", where="node0")

    monkeypatch.setattr(LocalJob, "_come_up", lost)
    monkeypatch.setattr(jobends, "_LOOK", 0.0)

    async def test() -> None:
        told = Told()
        async with cluster_of(1, hooks=told) as (site, cluster), Client(cluster, asynchronous=True) as client:
            (one,) = site.start(1)
            if not away:  # it is the agent there that was lost
                await until(lambda: told.lines)
                assert "node0: the host was lost; job 1_0 running" in told.lines[0]
                return
            await until(lambda: cluster.queue.watching._looking is not None)
            site.jobs[one].state, site.jobs[one].restarts = "PENDING", 1
            await until(lambda: cluster.jobs[0].restarts == 1)
            site.start(1)
            await client.wait_for_workers(1)
            assert told.lines == []

    run(test)


async def test_a_job_that_is_run_again_may_call_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobscripts, "_LOOK", 0.0)

    async def look() -> None:
        await asyncio.sleep(0)

    first, second, third = (Job(id="1_0", state="running", restarts=number) for number in range(3))
    driver: Any = SimpleNamespace(jobs={"1_0": second}, host=SimpleNamespace(name="login"))
    board: Any = None
    scripts = JobScripts(board, driver, alone=True, look=look, hooks=Hooks())
    scripts.has_called(first)
    assert await scripts.was_run_again("1_0")
    assert await scripts.was_run_again("1_0"), "the link broke before it was answered"
    driver.jobs["1_0"] = third  # and again, while it is
    scripts.has_called(third)
    assert await scripts.was_run_again("1_0")
    scripts.has_called(third)
    assert not await scripts.was_run_again("1_0")


def test_what_is_wanted_of_a_node_has_the_code_that_the_cluster_has_now() -> None:
    lock = Lock.of(
        [], Target(python="3.12.1", implementation="cpython", machine="x86_64", libc=("glibc", "2.28"))
    )
    node: Any = SimpleNamespace(lock=lock, trees=())  # made before an edit was synced
    wanted = {"variant": "another", "trees": {"mine": "new"}, "code": {"mine": {"digest": "new"}}}
    (found,) = with_variant(wanted, node)["variants"].values()
    assert found["variant"] == variant_of(lock)
    assert (found["trees"], found["code"]) == (wanted["trees"], wanted["code"])
