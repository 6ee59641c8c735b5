"""What every batch system does, spoken to by its file and the driver; PBS and LSF are stand-ins.

Torque is half a one: the commands that Debian has in its place over the lab's real Slurm.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from envsync.errors import BatchError, ConnectError, HostError, SubmitError
from envsync.hooks import Hooks
from envsync.runner.batch import Call, Driver, Job, JobRequest
from envsync.runner.batch.driver import Patience
from envsync.runner.hosts import Channel, Completed, Host
from tests.batch_sites import FAKES, SITES, Site, there

KINDS = [pytest.param(kind, marks=[] if kind in FAKES else pytest.mark.lab) for kind in SITES if there(kind)]


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with SITES[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
async def login(site: Site) -> AsyncIterator[Host]:
    async with site.host() as host:
        yield host


@pytest.fixture
async def driver(site: Site, login: Host) -> AsyncIterator[Driver]:
    made = driver_of(site, login)
    yield made
    await made.close()
    await until(made, lambda jobs: all(job.ended for job in jobs.values()))


class Recorded(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


class Flaky(Host):
    """Another host, which is lost after a command with a certain word in it, or whenever `lost` is set."""

    def __init__(self, inner: Host, after: str = "") -> None:
        self.inner, self.name = inner, inner.name
        self.after, self.lost, self.ran = after, False, 0

    async def run(self, command: str, **options: Any) -> Completed:
        if self.lost:
            raise ConnectError("the cable is out", where=self.name)
        done = await self.inner.run(command, **options)
        if self.after and self.after in command:
            self.ran += 1
            raise ConnectError("the cable was pulled", where=self.name)
        return done

    async def start(self, command: str) -> Channel:
        return await self.inner.start(command)

    async def forward(self, host: str, port: int) -> int:
        return await self.inner.forward(host, port)

    async def close(self) -> None:
        await self.inner.close()


class Cut(Flaky):
    """Another host, which is lost before a command with a certain word in it."""

    async def run(self, command: str, **options: Any) -> Completed:
        if self.after in command:
            self.ran += 1
            raise ConnectError("the cable was pulled", where=self.name)
        return await self.inner.run(command, **options)


def driver_of(site: Site, host: Host, **more: Any) -> Driver:
    patience = Patience(accounting=20, search=10, silence=60)
    settings: dict[str, Any] = {
        "interval": 0.2,
        "environment": site.environment,
        "patience": patience,
        **more,
    }
    return Driver(site.system, host, **settings)


async def until(
    driver: Driver, true: Callable[[dict[str, Job]], bool], seconds: float = 60
) -> dict[str, Job]:
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        await driver.poll()
        if true(driver.jobs):
            return driver.jobs
        assert asyncio.get_running_loop().time() < deadline, driver.jobs
        await asyncio.sleep(0.2)


async def ended(driver: Driver) -> list[Job]:
    return list((await until(driver, lambda jobs: all(job.ended for job in jobs.values()))).values())


async def submit(driver: Driver, request: JobRequest, body: str) -> dict[str, JobRequest]:
    """Submit jobs, one by one where a system has no arrays; return what each asked for, by its id."""
    jobs: dict[str, JobRequest] = {}
    while (left := request.count - len(jobs)) > 0:
        some = replace(request, count=min(left, driver.system.at_once), log=f"{request.log}{len(jobs)}")
        jobs.update(dict.fromkeys(await driver.submit(some, body), some))
    return jobs


def submission(site: Site) -> str:
    """Return what is in the command that submits, and in no other."""
    program, *more = site.system.submit(site.request(), "").argv
    return f"exec {program} {'-c ' if more[0] == '-c' else ''}"


def unique(word: str) -> str:
    return f"{word}{secrets.token_hex(2)}"


async def test_an_array_runs_each_job_in_its_folder_and_they_are_told_apart(
    site: Site, driver: Driver
) -> None:
    prologue = ("WORD='it''s \"fine\" $HOME'", "export WORD")
    name = unique("many")
    request, go = site.request(name, count=3, prologue=prologue, walltime=600), f"{name}.go"
    waits = f"while [ ! -e {go} ]; do sleep 0.1; done"
    body = f'echo "{site.system.variables.identity}"; echo "$WORD"; pwd; {waits}'
    ids = await submit(driver, request, body)
    assert len(set(ids)) == 3
    assert all(driver.jobs[each].state == "pending" for each in ids)
    await until(driver, lambda jobs: any(job.state == "running" and job.nodes for job in jobs.values()))
    (site.folder / go).touch()
    jobs = await ended(driver)
    assert {job.id for job in jobs} == set(ids)
    end = ("completed", 0) if site.tells_ends else ("lost", None)
    assert [(job.state, job.exit_code) for job in jobs] == [end] * 3
    assert all(job.restarts == 0 and len(job.nodes) == 1 for job in jobs)
    for each in ids:
        with open(site.system.log(ids[each], each)) as log:
            said = log.read().splitlines()
        assert said == [each, 'its "fine" $HOME', str(site.folder)]


async def test_how_a_script_ended_is_told(site: Site, driver: Driver) -> None:
    if not site.tells_ends:
        pytest.skip("its qstat -f has no exit_status: all jobs that ended are C")
    (bad,) = await driver.submit(site.request(unique("bad")), "exit 3")
    (killed,) = await driver.submit(site.request(unique("killed")), "kill -KILL $$")
    await ended(driver)
    assert (driver.jobs[bad].state, driver.jobs[bad].exit_code) == ("failed", 3)
    assert driver.jobs[killed].state in ("failed", "cancelled")  # some cannot tell this KILL from their own
    assert driver.jobs[killed].signal == 9 or driver.jobs[killed].exit_code == 128 + 9


async def test_what_does_not_fit_waits_with_a_reason_and_all_of_it_can_be_cancelled(
    site: Site, driver: Driver
) -> None:
    ids = await submit(driver, site.request(unique("full"), count=site.nodes + 1, **site.node), "sleep 300")
    jobs = await until(
        driver,
        lambda jobs: sorted(job.state for job in jobs.values()) == ["pending"] + ["running"] * site.nodes,
    )
    (waiting,) = [job for job in jobs.values() if job.state == "pending"]
    assert not site.system.never(waiting), waiting
    await driver.cancel([waiting.id])
    await until(driver, lambda jobs: jobs[waiting.id].ended)
    assert driver.jobs[waiting.id].state == "cancelled"
    assert all(driver.jobs[each].state == "running" for each in ids if each != waiting.id)
    await driver.cancel(ids)
    assert {job.state for job in await ended(driver)} == {"cancelled"}
    await driver.cancel(ids)


async def test_the_walltime_that_is_left_is_told_where_the_system_knows(site: Site, driver: Driver) -> None:
    (one,) = await driver.submit(site.request(unique("timed"), walltime=3600), "sleep 300")
    jobs = await until(driver, lambda jobs: jobs[one].state == "running" and bool(jobs[one].nodes))
    if site.system.name == "sge":
        assert jobs[one].walltime_left is None
    else:
        jobs = await until(driver, lambda jobs: jobs[one].walltime_left is not None)
        assert 3400 < (jobs[one].walltime_left or 0) <= 3600


async def test_an_unknown_queue_is_refused_in_the_systems_own_words(site: Site, driver: Driver) -> None:
    if site.system.name == "htcondor":
        pytest.skip("it has no queues")
    with pytest.raises(SubmitError, match=r"(?i)queue|partition"):
        await driver.submit(site.request(unique("lost"), queue="nonesuch"), "true")
    if site.system.name == "sge":
        with pytest.raises(SubmitError, match="project"):
            await driver.submit(site.request(unique("lost"), project="nonesuch"), "true")
    assert not driver.jobs


async def test_more_than_any_node_has_is_told(site: Site, driver: Driver) -> None:
    greedy = site.request(unique("greedy"), **{**site.one_core, **site.too_much})
    await driver.check(site.request("fits"))
    if site.said_before:
        with pytest.raises(SubmitError, match="would never run"):
            await driver.check(greedy)
        return
    await driver.check(greedy)
    try:
        (one,) = await driver.submit(greedy, "true")
    except SubmitError:
        return
    await until(driver, lambda jobs: site.system.never(jobs[one]))


async def test_a_system_that_is_not_there_is_told(site: Site, login: Host) -> None:
    nowhere = driver_of(site, login, environment={"PATH": "/nonexistent"})
    nowhere.system = type("Other", (type(site.system),), {"programs": ("envsync-nonesuch",)})()
    with pytest.raises(BatchError, match="envsync-nonesuch are not all on the PATH"):
        await nowhere.check()


async def test_a_submission_whose_answer_is_lost_is_found_and_never_made_twice(
    site: Site, login: Host
) -> None:
    host, hooks = Flaky(login, submission(site)), Recorded()
    one = driver_of(site, host, hooks=hooks)
    count = min(2, site.system.at_once)
    ids = await one.submit(site.request(unique("twice"), count=count), "sleep 300")
    assert (host.ran, len(ids), len(hooks.warnings)) == (1, count, 1)
    await until(one, lambda jobs: {job.state for job in jobs.values()} == {"running"})
    await one.close()
    await ended(one)


async def test_a_submission_that_never_arrived_is_told_and_not_repeated(site: Site, login: Host) -> None:
    host = Cut(login, submission(site))
    one = driver_of(site, host, patience=Patience(search=0.5))
    with pytest.raises(SubmitError, match="nobody knows whether"):
        await one.submit(site.request(unique("never")), "true")
    assert (host.ran, one.jobs) == (1, {})


async def test_a_login_host_that_is_lost_for_a_while_is_borne_and_said_once(site: Site, login: Host) -> None:
    host, hooks = Flaky(login), Recorded()
    one = driver_of(site, host, hooks=hooks, patience=Patience(silence=0.3))
    (job,) = await one.submit(site.request(unique("lone")), "true")
    host.lost = True
    assert [await one.poll(), await one.poll()] == [{}, {}]
    assert len(hooks.warnings) == 1
    await asyncio.sleep(0.4)
    with pytest.raises(HostError, match="the cable is out"):
        await one.poll()
    host.lost = False
    await ended(one)
    assert one.jobs[job].state == ("completed" if site.tells_ends else "lost")
    assert hooks.notes == [f"{site.system.name} answers again"]


async def test_what_left_the_listing_is_told_by_the_accounting(site: Site, driver: Driver) -> None:
    if site.system.name == "torque":
        pytest.skip("it has no accounting for users")
    ids = await driver.submit(site.request(unique("past"), count=2), "exit 4")
    if site.system.name == "lsf":
        site.lab.forget()
    elif site.system.name == "slurm":
        pytest.skip(
            "its listing tells of ended jobs for some minutes; test_batch_slurm.py has one that does not"
        )
    await ended(driver)
    assert [driver.jobs[each].exit_code for each in ids] == [4, 4]


async def test_a_job_nobody_knows_is_lost(site: Site, login: Host) -> None:
    one = driver_of(site, login, patience=Patience(accounting=0.0))
    gone = {
        "slurm": "99999_0",
        "sge": "99999.1",
        "lsf": "99999[1]",
        "htcondor": "99999.0",
        "pbs": "99999.fake",
    }
    job = gone.get(site.system.name, "99999")
    one.jobs[job] = Job(id=job, state="running")
    await ended(one)
    assert one.jobs[job].state == "lost"


async def test_a_job_over_its_time_is_told_so(site: Site, driver: Driver) -> None:
    if site.system.name in ("slurm", "lsf"):
        pytest.skip("it counts in minutes: test_batch_slurm.py")
    if site.system.name == "torque":
        pytest.skip("its qsub counts in minutes, and its qstat -f does not say that time was over")
    (one,) = await driver.submit(site.request(unique("late"), walltime=3), "sleep 300")
    await ended(driver)
    assert driver.jobs[one].state == "timeout", driver.jobs[one]
    assert driver.jobs[one].reason or site.system.name == "pbs"


async def test_gpus_are_asked_for_in_the_systems_own_way(site: Site, driver: Driver) -> None:
    # of half a Torque we know who is behind it
    variable = site.system.variables.gpus or ("CUDA_VISIBLE_DEVICES" if site.system.name == "torque" else "")
    one = site.request(unique("gpu"), gpus=1)
    (job,) = await driver.submit(one, f'echo "<${{{variable}}}>"' if variable else "true")
    await ended(driver)
    assert driver.jobs[job].state == ("completed" if site.tells_ends else "lost"), driver.jobs[job]
    if site.system.name in ("slurm", "htcondor", "torque"):
        with open(site.system.log(one, job)) as log:
            assert log.read().strip() not in ("", "<>")


async def test_a_submission_that_is_given_up_leaves_no_jobs(site: Site, login: Host) -> None:
    one = driver_of(site, login)
    began = asyncio.Event()
    run = one._run

    async def told(call: Call) -> Completed:
        began.set()
        return await run(call)

    one._run = told  # type: ignore[method-assign]
    count = min(2, site.system.at_once)
    submitting = asyncio.create_task(one.submit(site.request(unique("given"), count=count), "sleep 300"))
    await began.wait()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    await one.close()
    assert len(one.jobs) == count
    await ended(one)


async def test_an_answer_that_cannot_be_read_does_not_lose_jobs(site: Site, login: Host) -> None:
    class Chatty(Flaky):
        async def run(self, command: str, **options: Any) -> Completed:
            done = await self.inner.run(command, **options)
            return Completed(0, b"welcome", b"") if self.after in command else done

    one = driver_of(site, Chatty(login, submission(site)))
    ids = await one.submit(site.request(unique("chat")), "sleep 300")
    assert len(ids) == 1
    await until(one, lambda jobs: jobs[ids[0]].state == "running" and bool(jobs[ids[0]].nodes))
    await one.close()
    await ended(one)
