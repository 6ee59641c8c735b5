"""What becomes of a cluster's jobs on a real Slurm, and what its user is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from envsync.runner.jobends import cause
from envsync.runner.jobprocess import leaves_at
from tests.lab.fixtures import demand, ended
from tests.lab.install import PROGRAMS, SLURM
from tests.lab.slurm import Slurm
from tests.places import Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BEGIN = """
import os, socket, subprocess, sys, time
from distributed import Client
from envsync import SyncedCluster
from envsync.errors import EnvsyncError, JobFailed
from envsync.hooks import Hooks
from envsync.runner import Slurm, jobends, jobprocess, silence

BEGAN = time.monotonic()

class Told(Hooks):
    def __init__(self):
        self.all = []
    def tell(self, kind, where, text):
        print(f"{time.monotonic() - BEGAN:.1f} {kind}: {where}: {text}", file=sys.stderr, flush=True)
        self.all.append((kind, text))
    def failed(self, where, why):
        self.tell("failed", where, why)
    def note(self, where, text):
        self.tell("note", where, text)
    def warning(self, where, text):
        self.tell("warning", where, text)
    def of(self, kind, *words):
        return [text for one, text in self.all if one == kind and all(word in text for word in words)]

told = Told()

def start(n_workers, more=None, **options):
    asked = {"partition": "debug", "cores": 1, "memory": "500 MB", "poll": 0.5, **options}
    more = {"dashboard_address": "127.0.0.1:0", "hooks": told, **(more or {})}
    return SyncedCluster(Slurm(**asked), n_workers=n_workers, **more)

def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, (told.all, cluster.jobs)
        time.sleep(0.1)

def call(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
"""

SYSTEM_ENDS = (
    BEGIN
    + """
early = set()  # numbers of jobs whose time is as good as over
jobprocess.leaves_at = lambda time, number: time if number in early else 0.0
with start(3, time="10:00") as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3, timeout=150)
    names = lambda: {info["name"] for info in client.scheduler_info()["workers"].values()}
    held = client.scatter([bytes([n]) * 1000 for n in range(30)], hash=False)

    early.add(1)
    # time is over for one: another comes for it first, and what it held is not lost
    until(lambda: "job-1-0" not in names() and len(names()) == 3)
    assert told.of("note", "job-1", "its workers retire")
    until(lambda: {row.name: row.state for row in cluster.jobs}["job-1"] in ("completed", "cancelled"))
    assert set(cluster.workers) == {"job-2", "job-3", "job-4"}
    assert len(client.gather(held)) == 30

    # preempted: what it held moves while there is time, the job comes back
    row = next(row for row in cluster.jobs if row.name == "job-2")
    urgent = call("sbatch", "--parsable", "--partition=urgent", "--exclusive",
        f"--nodelist={row.node}", "--wrap=sleep 1").strip()
    until(lambda: "job-2-0" not in names())
    assert len(client.gather(held)) == 30
    until(lambda: {row.name: row.state for row in cluster.jobs}["job-2"] == "pending")
    until(lambda: not call("squeue", "-h", "-j", urgent, "-t", "running,pending"))
    call("scontrol", "update", f"jobid={row.id}", "starttime=now")
    until(lambda: "job-2-0" in names())
    assert {row.name: row.restarts for row in cluster.jobs}["job-2"] == 1
    assert len(client.gather(held)) == 30
"""
)

TOLD = (
    BEGIN
    + """
node = int(sys.argv[1])
groups = {
    "good": {"extra": ["--nodelist=node1"]},
    "shut": {"partition": "closed"},
    "late": {"partition": "short", "time": "1:00:00"},
    "broken": {"prologue": ["echo no such module >&2", "exit 3"]},
    "hungry": {"extra": ["--nodelist=node2"]},
    "doomed": {"extra": ["--nodelist=node3", "--no-requeue"]},
}
with start({"good": 1, "hungry": 1, "doomed": 1}, {"memory_limit": None}, groups=groups) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3, timeout=150)
    cluster.scale({"broken": 1, "shut": 1, "late": 1})
    try:
        client.wait_for_workers(6, timeout=150)
    except JobFailed as error:
        assert "6 workers will not be there" in str(error)
    else:
        raise AssertionError("they came")
    # the system's words, the exit code, the log's last line
    until(lambda: told.of("failed", "broken", "exit status 3", "node1", "| no such module"))
    until(lambda: told.of("failed", "late", "will never start", "PartitionTimeLimit"))
    until(lambda: told.of("warning", "PartitionDown", "nothing starts until somebody"))
    name = lambda group: next(row.name for row in cluster.jobs if row.name.startswith(group)) + "-0"
    # held, as Slurm looks once a second
    hog = client.submit(lambda: (lambda held: time.sleep(30))(b"x" * 1000**3), workers=name("hungry"))
    until(lambda: told.of("failed", "hungry", "more memory than it had asked for", "exceeded memory limit"))
    hog.cancel()
    # two clusters on one node
    with start(1, extra=["--nodelist=node1"]) as other, Client(other, set_as_default=False) as one:
        one.wait_for_workers(1, timeout=150)
        assert len({row.node for row in other.jobs} & {row.node for row in cluster.jobs}) == 1
        assert other.verify().ok and cluster.verify().ok
    # a node dies, and Slurm hears of it; who is not heard of any more is told sooner than elsewhere
    jobends._LOOK = silence._AGAIN = 2.0
    os.kill(node, 9)
    until(lambda: told.of("warning", "doomed", "not heard of any more"))
    call("scontrol", "update", "nodename=node3", "state=down", "reason=test")
    until(lambda: told.of("warning", "doomed", "node-failed", "node3"))
    until(lambda: told.of("warning", "waits", "somebody"))  # the one that takes its place, for that node
    print(cluster.jobs, file=sys.stderr)
    assert sum(client.gather(client.map(abs, range(10)))) == 45
"""
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One of our own, as its nodes die; it watches how much memory jobs use."""
    demand({**PROGRAMS, **SLURM})
    watched = {
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "JobAcctGatherParams": "OverMemoryKill",
    }
    with ended(Slurm(3, shared=[tmp_path_factory.getbasetemp()], settings=watched)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        pytest.MonkeyPatch.context() as patch,
        make_place(tmp_path_factory.mktemp("ends"), other=None) as made,
    ):
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.mark.parametrize("time", [60, 300, 3600, 4 * 3600, 7 * 86400])
def test_workers_leave_before_the_end_one_after_another(time: float) -> None:
    before = [leaves_at(time, number) for number in range(1, 9)]
    assert all(min(60, time / 2) <= each < time for each in before)
    assert max(before) <= time * 3 / 4
    apart = [late - early for early, late in itertools.pairwise(sorted(before))]
    assert min(apart) > (max(before) - min(before)) / 20


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slurmstepd-node2: error: StepId=8.batch exceeded memory limit (834027520 > 500170752)", "memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=8.batch.", "memory"),
        ("=>> PBS: job killed: walltime 64 exceeded limit 60", "walltime"),
        ("=>> PBS: job killed: mem 2097152kb exceeded limit 1048576kb", "memory"),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit.", "walltime"),
        ("*** JOB 9 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("my own line about memory", ""),
    ],
)
def test_a_log_may_say_more_of_an_end_than_a_state(line: str, words: str) -> None:
    assert words in cause(["something", line])
    assert bool(words) == bool(cause([line]))


def test_what_the_system_ends_is_replaced_or_comes_back(slurm: Slurm, place: Place, tmp_path: Path) -> None:
    place.run(tmp_path, SYSTEM_ENDS)


def test_what_a_user_is_told_when_jobs_go_wrong(slurm: Slurm, place: Place, tmp_path: Path) -> None:
    place.run(tmp_path, TOLD, str(slurm.nodes[2].pid))
