"""From a laptop that reaches only a gateway's ssh, over a login node, to jobs of a real Slurm, and back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab.fixtures import demand, ended
from tests.lab.install import PROGRAMS, SLURM
from tests.lab.machines import Machine
from tests.lab.slurm import Slurm
from tests.places import Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

GRACE = 10
"""Seconds without a sign of life after which jobs end."""

LOCK = "pylock.envsync.toml"

BEGIN = """
import os, socket, sys, time, urllib.request
from envsync import SyncedCluster
from envsync.errors import ClusterError
from envsync.hooks import Hooks
from envsync.runner import SSH, Slurm

config, cache, grace = sys.argv[1:4]
BEGAN = time.monotonic()

class Told(Hooks):
    def __init__(self):
        self.all = []
    def tell(self, kind, text):
        print(f"{time.monotonic() - BEGAN:.1f} {kind}: {text}", file=sys.stderr, flush=True)
        self.all.append((kind, text))
    def failed(self, where, why):
        self.tell("failed", why)
    def note(self, where, text):
        self.tell("note", text)
    def warning(self, where, text):
        self.tell("warning", text)

told = Told()

def start(n_workers, **options):
    asked = {
        "cores": 1, "memory": "500 MB", "time": "10:00", "poll": 1, "grace": float(grace), "cache": cache,
        "via": SSH(["root@login"], config=(config,)), **options,
    }
    return SyncedCluster(Slurm(**asked), n_workers=n_workers, lock="pylock.envsync.toml", hooks=told)

def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told.all
        time.sleep(0.1)
"""

WHOLE = (
    BEGIN
    + """
for out_of_reach in ((sys.argv[4], 6818), (sys.argv[5], 22)):
    try:
        socket.create_connection(out_of_reach, 1)
    except OSError:
        pass
    else:
        raise AssertionError(f"a laptop reaches {out_of_reach}")
with start(2) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(2, timeout=150)
    assert cluster.verify().ok
    assert {row.name for row in cluster.jobs} == {"scheduler", "job-1", "job-2"}
    found = client.run_on_scheduler(socket.gethostname), *client.run(socket.gethostname).values()
    assert set(found) == {"node1", "node2"}, found
    assert sum(client.gather(client.map(abs, range(100)))) == 4950
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    assert b"Dask" in urllib.request.urlopen(cluster.dashboard_link, timeout=60).read()
    print("up", flush=True)
    # the login host's cable is out for a moment
    futures = client.map(lambda number: time.sleep(0.2) or number, range(40))
    assert sys.stdin.readline() == "healed\\n"
    assert sum(client.gather(futures)) == 780
    assert [row.workers for row in cluster.jobs if row.name != "scheduler"] == [1, 1]
    print("goes on", flush=True)
    # the login session is lost for good
    until(lambda: any(kind == "failed" and "the way to all jobs" in text for kind, text in told.all), 60)
    print("told", flush=True)
    until(lambda: cluster.status.name in ("closed", "closing"))
    try:
        client.scheduler_info()
    except ClusterError as error:
        assert "its scheduler was lost" in str(error), error
    else:
        raise AssertionError("as if nothing had been")
    client.close(timeout=1)
"""
)

WAITS = (
    BEGIN
    + """
with start(1) as cluster:
    cluster.get_client().wait_for_workers(1, timeout=150)
    print("up", flush=True)
    time.sleep(600)
"""
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    demand({**PROGRAMS, **SLURM})
    with ended(Slurm(2, shared=[tmp_path_factory.getbasetemp()])) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def login(slurm: Slurm) -> Machine:
    return slurm.login()


@pytest.fixture(scope="module")
def place(slurm: Slurm, login: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where the environment is on the cluster already, as on the second day: a laptop here has no index."""
    with (
        make_place(tmp_path_factory.mktemp("laptop"), other=None) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        work = made.folder / "work"
        work.mkdir()
        patch.setenv("HOME", str(slurm.home))
        for arguments in (
            ["snapshot"],
            ["push", "--lock", LOCK, "--cache", str(made.folder / "hpc"), login.name],
        ):
            done = made.envsync(work, *arguments)
            assert done.returncode == 0, done.stdout + done.stderr
        yield made


@pytest.fixture(scope="module")
def gateway(slurm: Slurm, login: Machine) -> Machine:
    return slurm.jump(login)


@contextlib.contextmanager
def client(
    slurm: Slurm, login: Machine, laptop: Machine, place: Place, script: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a script on the laptop until it is up; end it."""
    config = place.folder / "ssh_config"
    config.write_text(f"Host login\n  ProxyJump gateway\n\n{slurm.config.read_text()}")
    folder = place.folder / "work"
    (folder / "script.py").write_text(script)
    process = subprocess.Popen(
        [
            *("nsenter", f"--net=/proc/{laptop.pid}/ns/net", place.ours / "bin/python", "script.py"),
            *(config, place.folder / "hpc", str(GRACE), slurm.nodes[0].address, login.address),
        ],
        cwd=folder,
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def nothing_left(slurm: Slurm, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while (slurm.jobs() or slurm.processes()) and time.monotonic() < until:
        time.sleep(0.2)
    return not slurm.jobs() and not slurm.processes()


def test_it_works_goes_on_when_the_way_is_cut_for_a_moment_and_ends_with_the_session(
    slurm: Slurm, login: Machine, gateway: Machine, place: Place
) -> None:
    with slurm.laptop(gateway) as laptop, client(slurm, login, laptop, place, WHOLE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        login.cut()
        time.sleep(1)  # TCP tries again half a second later; after three seconds it would take three more
        login.heal()
        process.stdin.write("healed\n")
        process.stdin.flush()
        assert process.stdout.readline() == "goes on\n"
        sessions = [one for one in login.survivors() if one.arguments and "sshd: root" in one.arguments[0]]
        for one in sessions:
            os.kill(one.pid, signal.SIGKILL)
        assert sessions
        assert nothing_left(slurm, GRACE + 60)
        assert process.wait(60) == 0


def test_jobs_end_when_the_laptop_is_cut_off(
    slurm: Slurm, login: Machine, gateway: Machine, place: Place
) -> None:
    """The gateway still talks to the login node then, whose sshd sees nothing of it."""
    with slurm.laptop(gateway) as laptop, client(slurm, login, laptop, place, WAITS):
        assert slurm.jobs()
        laptop.cut()
        assert nothing_left(slurm, 2 * GRACE + 60)
