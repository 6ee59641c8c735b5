"""A client without GPUs, and nodes with a driver: what is locked for them, on a real Slurm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from envsync.lock import Lock
from tests.lab.slurm import Slurm
from tests.nvml import driver_library
from tests.places import Place, make_place
from tests.test_cuda_builds import torch_index

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]

CLUSTER = """
import sys
from envsync import SyncedCluster
from envsync.hooks import Hooks
from envsync.runner import Slurm

class Told(Hooks):
    def __init__(self):
        self.notes = []
    def note(self, where, text):
        self.notes.append(text)

def builds():
    from importlib.metadata import version
    return version("torch"), version("nvidia-cuda-runtime-cu12")

def here():
    from importlib.metadata import version
    return version("torch")

told = Told()
asked = {"cores": 1, "memory": "400 MB", "poll": 1, "time": "10:00"}
backend = Slurm(prologue=[f"export LD_LIBRARY_PATH={sys.argv[1]}"], **asked)
with SyncedCluster(backend, n_workers=2, dashboard_address="127.0.0.1:0", hooks=told) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(2, timeout=90)
    assert set(client.run(builds).values()) == {("2.5.1+cu124", "12.4.127")}
    assert client.run_on_scheduler(here) == here() == "2.5.1+cpu"
    verification = cluster.verify()
    assert verification.ok, verification
    assert sum("torch 2.5.1+cu124 is locked in place" in note for note in told.notes) == 1, told.notes
"""


@pytest.fixture(scope="module")
def place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gpus")
    torch_index(folder / "wheels")
    with pytest.MonkeyPatch.context() as patch, make_place(folder, ours=["torch==2.5.1+cpu"]) as made:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver_library(tmp_path_factory.mktemp("driver")).parent


def test_a_lock_for_the_nodes_of_a_partition(
    slurm: Slurm, place: Place, driver: Path, tmp_path: Path
) -> None:
    nodes = f"slurm://?partition=debug&cores=1&poll=1&prologue=export LD_LIBRARY_PATH={driver}"
    done = place.envsync(tmp_path, "--json", "snapshot", "--for", nodes)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["target"]["accelerators"] == ["nvidia 550.54.14"]
    assert {one["name"]: one["locked"] for one in found["substitutions"]} == {"torch": "2.5.1+cu124"}
    lock = Lock.read(tmp_path / "pylock.envsync.toml")
    assert {one.name for one in lock.artifacts()} >= {"nvidia-cuda-runtime-cu12", "triton"}
    assert not slurm.jobs()
    assert not slurm.processes()
    # a queue that nothing starts in says so, in time
    closed = place.envsync(tmp_path, "snapshot", "--for", "slurm://?partition=closed&poll=1&wait=3s")
    assert closed.returncode == 5, closed.stderr
    assert "that was to look at a node" in closed.stderr
    assert "Partition" in closed.stderr
    assert not slurm.jobs()


def test_a_cluster_whose_login_host_has_no_driver(
    slurm: Slurm, place: Place, driver: Path, tmp_path: Path
) -> None:
    place.run(tmp_path, CLUSTER, str(driver))
    assert not slurm.jobs()
