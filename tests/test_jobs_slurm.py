"""Clusters whose workers are jobs of a real Slurm, started where jobs are submitted."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forwarded import ASK, LENDING
from tests.lab.fixtures import demand, ended
from tests.lab.install import TORQUE
from tests.lab.slurm import Slurm
from tests.nvml import MISMATCH, Card, driver_library
from tests.places import Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BEGIN = """
import os, socket, sys, time
from envsync import SyncedCluster
from envsync.errors import EnvsyncError
from envsync.runner import Slurm

def start(n_workers, credentials="none", **options):
    asked = {"partition": "debug", "cores": 1, "memory": "400 MB", "poll": 1, **options}
    more = {"dashboard_address": "127.0.0.1:0", "credentials": credentials}
    return SyncedCluster(Slurm(**asked), n_workers=n_workers, **more)

def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)

def held_until(number, go):  # nodes see this folder
    while not os.path.exists(go):
        time.sleep(0.1)
    return number

def where():
    import mine
    return socket.gethostname(), os.environ["SLURM_JOB_ID"], sys.prefix, mine.VALUE
"""

WHOLE = (
    BEGIN
    + LENDING
    + ASK
    + """
with open("mine.py", "w") as file:
    file.write("VALUE = 'local code'\\n")
with start(3, time="10:00", credentials="forward") as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3, timeout=150)
    assert cluster.verify().ok
    found = list(client.run(where).values())
    assert {node for node, *_ in found} == {"node1", "node2"}, found
    assert len({job for _, job, *_ in found}) == 3
    assert all(prefix.startswith(os.environ["ENVSYNC_CACHE"]) for *_, prefix, _ in found)
    assert {value for *_, value in found} == {"local code"}
    answers = [(code, given["Token"], without) for code, given, without in client.run(ask).values()]
    assert answers == [(200, "c4n4ry-2", 403)] * 3, "each job's own agent gives them out"
    rows = cluster.jobs
    assert len({row.id.split("_")[0] for row in rows}) == 1, "one submission"
    until(lambda: [(row.state, row.workers) for row in cluster.jobs] == [("running", 1)] * 3)
    until(lambda: all(100 < (row.left or 0) <= 600 for row in cluster.jobs))

    # an edit goes to the workers that are there, and to those that come
    with open("mine.py", "w") as file:
        file.write("VALUE = 'edited code'\\n")
    assert cluster.sync() == 1
    assert cluster.sync() == 0
    client.wait_for_workers(3, timeout=150)
    assert {value for *_, value in client.run(where).values()} == {"edited code"}
    with open("mine.py", "w") as file:
        file.write("VALUE = 'edited again, and not synced'\\n")
    cluster.scale(4)
    client.wait_for_workers(4, timeout=150)
    assert {value for *_, value in client.run(where).values()} == {"edited code"}
    until(lambda: "4 jobs: 4 running; 4 workers" in str(cluster.jobs))  # they say to us that they are there
    assert "4 running" in cluster._repr_html_()

    # what only one holds is kept when it goes
    held = client.scatter(list(range(30)), hash=False)
    cluster.scale(1)
    until(lambda: len(client.scheduler_info()["workers"]) == 1)
    assert client.gather(held) == list(range(30))
    until(lambda: [row.state for row in cluster.jobs].count("running") == 1)
    # adaptive: from one to two and more, as there is work
    adaptive = cluster.adapt(minimum=1, maximum=3, interval="200ms", wait_count=2)
    futures = client.map(held_until, range(40), go=os.path.abspath("go"))
    until(lambda: len(client.scheduler_info()["workers"]) > 1)
    open("go", "w").close()
    assert sum(client.gather(futures)) == sum(range(40))
"""
)

REFUSED = (
    BEGIN
    + """
big = {"small": {}, "big": {"cores": 1000}}
for options in ({"partition": "nowhere"}, {"memory": "900 GB"}, {"groups": big}):
    try:
        start(1, **options)
    except EnvsyncError as error:
        print("refused:", error)
    else:
        raise AssertionError(options)
"""
)

KILLED = (
    BEGIN
    + """
cluster = start(2)
cluster.get_client().wait_for_workers(2, timeout=150)
print("up", flush=True)
time.sleep(600)
"""
)

CANCELLED = (
    BEGIN
    + """
import subprocess
from envsync.hooks import Hooks

class Told(Hooks):
    def __init__(self):
        self.failures = []
    def failed(self, where, why):
        self.failures.append(why)

def partition():
    return os.environ["SLURM_JOB_PARTITION"]

def hasten(dask_scheduler):  # ten minutes take long
    dask_scheduler.handlers["envsync_cost"].__self__.idle = 2

told = Told()
groups = {"one": {}, "two": {"partition": "urgent", "cores": 2, "workers_per_job": 2}}
backend = Slurm(cores=1, memory="400 MB", poll=1, groups=groups)
asked = {"n_workers": {"one": 1, "two": 2}, "idle_timeout": "10 min"}
with SyncedCluster(backend, hooks=told, **asked) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3, timeout=150)
    names = sorted(info["name"] for info in client.scheduler_info()["workers"].values())
    assert names == ["one-1-0", "two-2-0", "two-2-1"], names
    for group, there in (("one", "debug"), ("two", "urgent")):
        asked = {"resources": {f"group-{group}": 1}, "pure": False}
        found = client.gather([client.submit(partition, **asked) for _ in range(4)])
        assert found == [there] * 4, found
    subprocess.run(["scancel", next(row.id for row in cluster.jobs if row.group == "one")], check=True)
    until(lambda: len(cluster.workers) == 1 and told.failures)
    assert "cancelled" in told.failures[0].lower(), told.failures
    assert any(row.state == "cancelled" and row.reason for row in cluster.jobs), cluster.jobs
    assert sum(client.gather(client.map(abs, range(10)))) == 45
    client.run_on_scheduler(hasten)
    client.close()  # it would look for a scheduler that is gone
    until(lambda: cluster.status.name == "closed")
    assert cluster.ending == "nothing was computed for 2 s (idle_timeout)", cluster.ending
"""
)

GPUS = (
    BEGIN
    + """
from envsync.hooks import Hooks

class Told(Hooks):
    failures = ()
    def failed(self, where, why):
        self.failures += (why,)

def pinned():
    variables = os.environ
    return variables["CUDA_VISIBLE_DEVICES"], variables["SLURM_JOB_ID"], variables["SLURM_JOB_GPUS"]

driver, broken = sys.argv[1:]
asked = {"cores": 2, "memory": "800 MB", "poll": 1, "gres": "gpu:2"}
jobs = Slurm(prologue=[f"export LD_LIBRARY_PATH={driver}"], **asked)
with SyncedCluster(jobs, n_workers=4, dashboard_address=None) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(4, timeout=150)
    found = sorted(client.run(pinned).values())
    assert [device for device, *_ in found] == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"], found
    assert len({job for _, job, _ in found}) == 2
    # what each job was given, as Slurm calls it outside of the job, is what its workers have
    assert all(device[-1] in given.split(",") for device, _, given in found), found
    workers = client.scheduler_info()["workers"].values()
    assert [worker["resources"] for worker in workers] == [{"GPU": 1}] * 4
    assert {worker["nthreads"] for worker in workers} == {1}
    assert {worker["memory_limit"] for worker in workers} == {400 * 10**6}

hidden = [f"export LD_LIBRARY_PATH={driver}", "export CUDA_VISIBLE_DEVICES="]
for prologue in ([f"export LD_LIBRARY_PATH={broken}"], hidden):
    told = Told()
    jobs = Slurm(prologue=prologue, **asked)
    with SyncedCluster(jobs, n_workers=2, dashboard_address=None, hooks=told) as cluster:
        until(lambda: told.failures)
        print(told.failures[0])
        assert not cluster.scheduler_info["workers"]
"""
)


@pytest.fixture(scope="module")
def place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        pytest.MonkeyPatch.context() as patch,
        make_place(tmp_path_factory.mktemp("jobs"), other=None) as made,
    ):
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        yield made


@contextlib.contextmanager
def client_with_workers(place: Place, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a client that has its workers, and end it."""
    (folder / "script.py").write_text(KILLED)
    process = subprocess.Popen(
        [place.ours / "bin/python", "script.py"],
        cwd=folder,
        env=place.environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.terminate()
        process.wait(90)
        process.stdout.close()


def nothing_left(slurm: Slurm, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while (slurm.jobs() or slurm.processes()) and time.monotonic() < until:
        time.sleep(0.2)
    return not slurm.jobs() and not slurm.processes()


def test_from_the_queue_to_verified_workers_and_back(slurm: Slurm, place: Place, tmp_path: Path) -> None:
    place.run(tmp_path, WHOLE)
    assert nothing_left(slurm)
    runs = place.folder / "cache" / "runs"
    assert not list(runs.glob("*/*/key.pem")), "no key stays"


def test_what_slurm_would_never_run_is_an_error_before_it_is_submitted(
    slurm: Slurm, place: Place, tmp_path: Path
) -> None:
    said = place.run(tmp_path, REFUSED)
    assert said.count("refused:") == 3
    assert "invalid partition" in said.lower()
    assert "group big: slurm would never run this job" in said
    assert nothing_left(slurm)


def test_a_client_that_is_killed_leaves_no_job(slurm: Slurm, place: Place, tmp_path: Path) -> None:
    with client_with_workers(place, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert nothing_left(slurm, 90)


def test_a_job_that_somebody_cancels_is_told_and_the_others_go_on(
    slurm: Slurm, place: Place, tmp_path: Path
) -> None:
    place.run(tmp_path, CANCELLED)
    assert nothing_left(slurm)


def test_no_secret_is_in_what_slurm_shows(slurm: Slurm, place: Place, tmp_path: Path) -> None:
    with client_with_workers(place, tmp_path):
        (key,) = (place.folder / "cache" / "runs").glob("*/relay/key.pem")
        secret = "".join(key.read_text().splitlines()[1:-1])[:40]
        assert key.stat().st_mode & 0o777 == 0o600
        job = slurm.jobs()[0].split()[0]
        shown = slurm.call("scontrol", "show", "job", job)
        shown += slurm.call("scontrol", "write", "batch_script", job, "-")
        assert "carry" in shown
        assert secret not in shown
        assert secret not in json.dumps([one.arguments for one in slurm.processes()])
    assert nothing_left(slurm, 90)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_workers_have_the_gpus_that_slurm_gave_their_jobs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two jobs on one node, each in a cgroup where its devices are the first and the second."""
    with ended(Slurm(1, shared=[tmp_path_factory.getbasetemp()], gpus=4, confined=["devices"])) as lab:
        monkeypatch.setenv("SLURM_CONF", lab.environment["SLURM_CONF"])
        cards = [Card(uuid=f"GPU-{one}", file=f"{lab.folder}/dev/nvidia{one}") for one in range(4)]
        driver = driver_library(tmp_path / "driver", cards).parent
        broken = driver_library(tmp_path / "broken", init=MISMATCH).parent
        said = place.run(tmp_path, GPUS, str(driver), str(broken))
        assert "there are not enough GPUs: asked for 2, 0 to be seen here" in said
        assert "CUDA_VISIBLE_DEVICES is '0,1'" in said
        assert "NVML_ERROR_LIB_RM_VERSION_MISMATCH" in said
        assert "CUDA_VISIBLE_DEVICES is '', NVML sees 2" in said
        assert nothing_left(lab)


@pytest.mark.parametrize(
    "site",
    [("--on", "slurm", "--partition", "debug"), ("--on", "torque", "--site", "arrays=false")],
    ids=["slurm", "torque"],
)
def test_from_the_shell(slurm: Slurm, place: Place, tmp_path: Path, site: tuple[str, ...]) -> None:
    """And in Torque's words, by what Debian has for that: a submission for each job."""
    demand(TORQUE)
    (tmp_path / "script.py").write_text(
        "import socket\n"
        "from distributed import Client\n"
        "with Client() as client:\n"
        "    client.wait_for_workers(2, timeout=150)\n"
        "    print(sorted(set(client.run(socket.gethostname).values())))\n"
    )
    asked = (*site, "--cores", "1", "--memory", "400MB", "--time", "10:00")
    python = str(place.ours / "bin" / "python")
    done = place.envsync(tmp_path, "run", *asked, "-n", "2", "--", python, "script.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "['node1', 'node2']\n"
    assert nothing_left(slurm)
