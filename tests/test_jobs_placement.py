"""Clusters in a queue whose nodes have the environment on their own disk, on real Slurm and Grid Engine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.fixtures import demand, ended
from tests.lab.sge import SGE
from tests.lab.slurm import Slurm
from tests.places import Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BEGIN = """
import contextlib, os, socket, subprocess, sys, time
from envsync import SyncedCluster
from envsync.errors import EnvsyncError
from envsync.hooks import Hooks
from envsync.runner import SGE, SSH, Slurm

class Told(Hooks):
    def __init__(self):
        self.notes, self.failures = [], []
    def note(self, where, text):
        self.notes.append(text)
    def failed(self, where, text):
        self.failures.append(text)

def where():
    import vary
    return socket.gethostname(), sys.prefix, vary.__version__
"""

SLURM = (
    BEGIN
    + """
cache, empty, *nodes = sys.argv[1:]

@contextlib.contextmanager
def start(told, n_workers=3, **options):
    asked = {"cores": 1, "memory": "400 MB", "poll": 0.5, **options}
    backend = Slurm(**asked)
    with SyncedCluster(backend, n_workers=n_workers, hooks=told, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster

def check(cluster):
    client = cluster.get_client()
    client.wait_for_workers(3, timeout=150)
    found = set(client.run(where).values())
    assert {node for node, *_ in found} == {"node1", "node2"}
    assert {version for *_, version in found} == {"2.0"}
    assert cluster.verify().ok
    return {prefix for _, prefix, _ in found}

# the folder is seen: what nodes lack they copy from there, and nobody sends it
told = Told()
with start(told, placement="node", scratch="/tmp/$SLURM_JOB_PARTITION") as cluster:
    (prefix,) = check(cluster)
    assert prefix.startswith(f"/tmp/debug/envsync-{os.getuid()}/envs/"), prefix
    assert cluster.queue.passing.given == {}
    assert {job._prepared.sent for job in cluster.queue.known.values()} == {0}, "nothing by the client's link"
    assert not any("placement" in text for text in told.notes), told.notes

# it is not: the first jobs find that out, and others are submitted that need no folder
for pid in nodes:
    subprocess.run(["nsenter", "-t", pid, "-m", "mount", "--bind", empty, cache], check=True)
told = Told()
with start(told) as cluster:
    (prefix,) = check(cluster)
    assert prefix.startswith(f"/tmp/envsync-{os.getuid()}/envs/"), prefix
    submitted = [text for text in told.notes if text.startswith("submitted")]
    assert len(submitted) == 2, submitted
    assert sum("jobs are submitted again" in text for text in told.notes) == 1, told.notes
    assert sum("the environment lies on each node" in text for text in told.notes) == 1, told.notes
    assert len(cluster.jobs) == 3
    whole = cluster.queue.passing.given.pop("local")
    assert list(cluster.queue.passing.given.values()) == [whole], "from one node to the other"
    # an edit goes the same way
    with open("mine.py", "w") as file:
        file.write("VALUE = 'edited'")
    cluster.sync()
    values = cluster.get_client().run(lambda: __import__("mine").VALUE)
    assert list(values.values()) == ["edited"] * 3, values
    assert cluster.queue.passing.given["local"] > 0
    # who is run again calls again, with the same token
    job = cluster.jobs[0].id
    subprocess.run(["scontrol", "requeue", job], check=True)
    client = cluster.get_client()
    end = time.monotonic() + 60
    while len(client.scheduler_info(n_workers=-1)["workers"]) == 3 or cluster.jobs[0].state != "pending":
        assert time.monotonic() < end
        time.sleep(0.1)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # not in two minutes
    client.wait_for_workers(3, timeout=150)
    assert not told.failures, told.failures

# who knows better is told what to do
told = Told()
with start(told, 1, placement="shared") as cluster:
    end = time.monotonic() + 90
    while not told.failures:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "does not see" in told.failures[0], told.failures
    assert "placement='node'" in told.failures[0], told.failures
told = Told()
with start(told, 1, placement="node", scratch="$NOWHERE") as cluster:
    end = time.monotonic() + 90
    while not told.failures:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "$NOWHERE: a variable in it is not set" in told.failures[0], told.failures
    assert "scratch=" in told.failures[0], told.failures
"""
)

SGE_SCRIPT = (
    BEGIN
    + """
user, config = sys.argv[1:]
via = SSH([f"{user}@head"], config=(config,))
told = Told()
# three of a node's four cores: each worker has a node of its own, whatever load Grid Engine sees there
backend = SGE(cores=3, poll=1, cache="/var/tmp/envsync", via=via, placement="node")
refused = SGE(cores=1, poll=1, cache="/var/tmp/envsync", via=via, scheduler="login")
with SyncedCluster(refused, n_workers=1, hooks=told) as cluster:  # others could read what lets a node call
    end = time.monotonic() + 60
    while not told.failures:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "lets others on the nodes read" in told.failures[0], told.failures
with SyncedCluster(backend, n_workers=4, hooks=told) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(4, timeout=120)
    found = set(client.run(where).values())
    assert {node for node, *_ in found} == {"node1", "node2", "node3", "node4"}, found
    assert {version for *_, version in found} == {"2.0"}
    assert cluster.verify(on_mismatch="ignore").ok
    print(cluster.queue.passing.given[f"{user}@head"])
"""
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with make_place(tmp_path_factory.mktemp("placement"), other=None) as made:
        yield made


def nothing_left(lab: Slurm | SGE) -> bool:
    until = time.monotonic() + 60
    while (lab.jobs() or lab.processes()) and time.monotonic() < until:
        time.sleep(0.2)
    return not lab.jobs() and not lab.processes()


def test_nodes_have_it_themselves_whether_or_not_they_see_the_folder(
    slurm: Slurm, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    cache, empty = place.folder / "cache", tmp_path / "empty"
    empty.mkdir()
    nodes = [str(node.pid) for node in slurm.nodes]
    try:
        place.run(tmp_path / "work", SLURM, str(cache), str(empty), *nodes)
        # a node that is only looked at does not see it either
        target = "slurm://?partition=debug&cores=1&memory=400MB&poll=1"
        done = place.envsync(tmp_path / "work", "snapshot", "--for", target)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("jobs are submitted again") == 1, done.stderr
    finally:
        for pid in nodes:
            subprocess.run(["nsenter", "-t", pid, "-m", "umount", str(cache)], check=False)
    assert nothing_left(slurm)
    for node in slurm.nodes:
        left = Path(f"/proc/{node.pid}/root/tmp")
        assert not list(left.glob("envsync-job-*")), "carriers take away what came with their script"
        assert not list(left.glob("**/envsync-*/runs/*/*/key.pem")), "no key stays"


def test_one_copy_crosses_the_clients_link_and_one_the_login_hosts(place: Place, tmp_path: Path) -> None:
    demand()
    with ended(SGE(4)) as lab:
        before = lab.head.stats()
        whole = int(place.run(tmp_path / "work", SGE_SCRIPT, lab.user, str(lab.config)))
        after = lab.head.stats()
        assert nothing_left(lab)
    assert whole > 10e6
    assert after["received"] - before["received"] < 1.3 * whole, "from the client"
    assert after["sent"] - before["sent"] < 1.3 * whole, "to all nodes"
