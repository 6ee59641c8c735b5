"""What happens to jobs on a real Slurm: they are preempted, run out of time, lose their node, never start."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from envsync.errors import SubmitError
from envsync.runner.batch import Call, Driver, Job, driver
from envsync.runner.hosts import Completed
from envsync.runner.hosts.local import Local
from tests.batch_sites import SITES, Site
from tests.lab.accounting import ACCOUNT

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With accounting, and a listing that forgets what ended as soon as it may: after ten seconds or so."""
    folder = tmp_path_factory.mktemp("slurm")
    forgetful = {"MinJobAge": "2"}
    with SITES["slurm"](folder, accounting=True, confined=["memory"], settings=forgetful) as made:
        yield made


@pytest.fixture(scope="module")
def late(site: Site) -> str:
    """A job that is over its time when the others are done: Slurm counts in minutes."""
    log = f"--output={site.folder}/late"
    said = site.lab.call(
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--time=1",
        "--array=0-0",
        "--mem=10",
        "--nodelist=node1",
        log,
        "--wrap=sleep 900",
    )
    return f"{said.strip()}_0"


@pytest.fixture(scope="module")
def old(site: Site) -> dict[str, str]:
    """Jobs that nobody looks at until Slurm's listing has forgotten them: how each ended, by its id."""
    return asyncio.run(submit_old(site))


async def submit_old(site: Site) -> dict[str, str]:
    one = Driver(site.system, Local(), environment=site.environment)
    node = ("--nodelist=node2",)
    good, bad = await one.submit(
        site.request("old", count=2, extra=node), "exit $((3 * SLURM_ARRAY_TASK_ID))"
    )
    (big,) = await one.submit(
        site.request("big", memory=50 * 2**20, extra=node), "head -c 200m /dev/zero | tail -n 1"
    )
    waits = await one.submit(site.request("waits", count=70, extra=("--hold",)), "true")
    # one that is taken out while it waits: of the others, sacct tells by their numbers
    site.lab.call("scancel", *waits[1::2])
    site.lab.call("scancel", waits[0].partition("_")[0])
    return {
        good: "completed",
        bad: "failed",
        big: "out-of-memory",
        **dict.fromkeys(waits[::2], "cancelled"),
    }


@pytest.fixture(autouse=True)
def started(late: str, old: dict[str, str]) -> None:
    """They start first."""


@pytest.fixture
async def jobs(site: Site) -> AsyncIterator[Driver]:
    made = Driver(site.system, Local(), interval=0.2, environment=site.environment)
    yield made
    await made.close()
    await until(made, lambda: all(job.ended for job in made.jobs.values()))


async def until(jobs: Driver, true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        await jobs.poll()
        assert time.monotonic() < deadline, jobs.jobs
        await asyncio.sleep(0.1)


async def call(site: Site, one: Call) -> Completed:
    command = f"exec {shlex.join(one.argv)}"
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in site.environment.items())
    return await Local().run(exports + command, input=one.input, check=False)


async def booked(site: Site, id_: str) -> Job:
    """Return a job as the accounting has it, which lags a little behind."""
    past = site.system.past([id_])
    assert past
    deadline = time.monotonic() + 60
    while id_ not in (known := site.system.ended(await call(site, past))):
        assert time.monotonic() < deadline, known
        await asyncio.sleep(0.1)
    return known[id_]


async def test_a_preempted_job_comes_back_and_it_is_counted(site: Site, jobs: Driver) -> None:
    low = site.request("low", cores=3, extra=("--nodelist=node1", "--requeue"))
    (one,) = await jobs.submit(low, "echo run ${SLURM_RESTART_COUNT:-0}; sleep 300")
    await until(jobs, lambda: jobs.jobs[one].state == "running")
    (two,) = await jobs.submit(
        site.request("high", cores=3, queue="urgent", extra=("--nodelist=node1",)), "sleep 1"
    )
    await until(jobs, lambda: jobs.jobs[one].state == "pending")
    await until(jobs, lambda: jobs.jobs[two].state == "completed")
    assert jobs.jobs[one].restarts == 1
    # Slurm lets a requeued job wait for two minutes: it is begun by hand
    site.lab.call("scontrol", "update", f"jobid={one}", "starttime=now")
    await until(jobs, lambda: jobs.jobs[one].state == "running")
    assert jobs.jobs[one].restarts == 1
    await jobs.cancel([one])
    await until(jobs, lambda: jobs.jobs[one].ended)
    assert (await booked(site, one)).state == "cancelled"  # and not how its first run ended


async def test_one_that_is_held_and_one_that_is_cancelled_by_hand(site: Site, jobs: Driver) -> None:
    held, taken, other = await jobs.submit(site.request("held", count=3, extra=("--hold",)), "sleep 300")
    await until(jobs, lambda: all(job.reason == "JobHeldUser" for job in jobs.jobs.values()))
    site.lab.call("scancel", taken)  # Slurm forgets it at once, and its accounting never hears of it
    await until(jobs, lambda: jobs.jobs[taken].ended, seconds=40)
    assert (jobs.jobs[taken].state, "while it waited" in jobs.jobs[taken].reason) == ("cancelled", True)
    site.lab.call("scontrol", "release", other)
    await until(jobs, lambda: jobs.jobs[other].state == "running")
    site.lab.call("scancel", other)
    await until(jobs, lambda: jobs.jobs[other].ended)
    assert jobs.jobs[other].state == "cancelled"
    site.lab.call("scontrol", "update", f"jobid={held}", "priority=0")
    assert jobs.jobs[held].state == "pending"


async def test_what_no_queue_will_ever_start_is_known(site: Site, jobs: Driver) -> None:
    (long,) = await jobs.submit(site.request("long", queue="short", walltime=3600), "true")
    (shut,) = await jobs.submit(site.request("shut", queue="closed"), "true")
    await until(jobs, lambda: jobs.jobs[long].reason == "PartitionTimeLimit")
    assert site.system.never(jobs.jobs[long])
    await until(jobs, lambda: jobs.jobs[shut].reason == "PartitionDown")  # somebody may open it again
    assert not site.system.never(jobs.jobs[shut])


@pytest.mark.parametrize(
    ("asked", "words"), [({"gpus": 3}, "node configuration"), ({"gres": "gpu:other:1"}, "gres")]
)
async def test_gpus_that_no_node_has_are_refused_before_submission(
    site: Site, jobs: Driver, asked: dict[str, object], words: str
) -> None:
    with pytest.raises(SubmitError, match=f"(?is)would never run.*({words}|node configuration)"):
        await jobs.check(site.request("greedy", **asked))


async def test_jobs_see_the_gpus_that_slurm_gave_them(site: Site, jobs: Driver) -> None:
    one = site.request("gpu", count=2, gpus=1, extra=("--nodelist=node2",))
    ids = await jobs.submit(one, f"echo ${site.system.variables.gpus}; sleep 2")
    await until(jobs, lambda: all(job.ended for job in jobs.jobs.values()))
    seen = {(site.folder / f"gpu.log.{each.partition('_')[2]}").read_text().strip() for each in ids}
    assert seen == {"0", "1"}


async def test_submissions_are_no_more_than_so_many_a_minute(
    site: Site, jobs: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "MINUTE", 2.0)
    slow = Driver(site.system, Local(), per_minute=2, interval=0.2, environment=site.environment)
    began = time.monotonic()
    took = []
    for _ in range(3):
        await slow.submit(site.request("quick"), "true")
        took.append(time.monotonic() - began)
    assert took[2] >= 2.0
    await until(slow, lambda: all(job.ended for job in slow.jobs.values()))


async def test_what_is_new_is_told_once(site: Site) -> None:
    one = Driver(site.system, Local(), interval=0.2, environment=site.environment)
    told: list[Job] = []
    watching = asyncio.create_task(one.watch(lambda news: told.extend(news.values())))
    await one.submit(site.request("news"), "sleep 1")
    deadline = time.monotonic() + 90
    while not any(job.ended for job in told):
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.1)
    await one.close()
    await asyncio.wait_for(watching, 60)
    states = [job.state for job in told]
    assert states == sorted(states, key=["pending", "running", "completed"].index)
    assert states.count("completed") == 1


async def test_a_job_over_its_time_is_told_so(site: Site, jobs: Driver, late: str) -> None:
    jobs.jobs[late] = Job(id=late, state="pending")
    await until(jobs, lambda: jobs.jobs[late].ended, seconds=150)
    assert (jobs.jobs[late].state, jobs.jobs[late].reason) == ("timeout", "TimeLimit")
    assert (await booked(site, late)).state == "timeout"


async def test_what_slurm_has_forgotten_is_told_by_its_accounting(
    site: Site, jobs: Driver, old: dict[str, str]
) -> None:
    deadline = time.monotonic() + 90
    while set(jobs.system.listed(await call(site, jobs.system.listing(old)))) & set(old):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    jobs.jobs.update((id_, Job(id=id_, state="running", restarts=1)) for id_ in old)
    await jobs.poll()
    assert {id_: job.state for id_, job in jobs.jobs.items()} == old
    _, bad, big, *waits = (jobs.jobs[id_] for id_ in old)
    assert bad == Job(id=bad.id, state="failed", reason="FAILED", nodes=("node2",), exit_code=3, restarts=1)
    assert (big.reason, big.nodes, big.exit_code) == ("OUT_OF_MEMORY", ("node2",), None)
    assert {job.reason for job in waits} == {"CANCELLED by 0"}


async def test_an_account_that_slurm_does_not_know_is_refused_before_submission(
    site: Site, jobs: Driver
) -> None:
    with pytest.raises(SubmitError, match=r"would never run this job: .*Invalid account") as caught:
        await jobs.check(site.request("poor", account="nobodys"))
    assert "account" in (caught.value.hint or "")
    await jobs.check(site.request("paid", account=ACCOUNT))


async def test_a_node_that_dies_is_told_so(site: Site, jobs: Driver) -> None:
    doomed = site.request("doomed", extra=("--nodelist=node2", "--no-requeue"))
    (one,) = await jobs.submit(doomed, "sleep 300")
    await until(jobs, lambda: jobs.jobs[one].state == "running")
    site.lab.nodes[1].kill()
    site.lab.call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    await until(jobs, lambda: jobs.jobs[one].ended)
    assert (jobs.jobs[one].state, jobs.jobs[one].nodes) == ("node-failed", ("node2",))
