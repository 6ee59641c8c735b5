"""A client without GPUs, and nodes with a driver: what is locked for them, on a real Slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envsync.lock import Lock
from envsync.plugins.scan import libc
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
    client.wait_for_workers(2, timeout=150)
    assert set(client.run(builds).values()) == {("2.5.1+cu124", "12.4.127")}
    assert client.run_on_scheduler(here) == here() == "2.5.1+cpu"
    verification = cluster.verify()
    assert verification.ok, verification
    assert sum("torch 2.5.1+cu124 is locked in place" in note for note in told.notes) == 1, told.notes
"""


UNFIT = """
import sys, time
from pathlib import Path
from envsync import SyncedCluster
from envsync.hooks import Hooks
from envsync.runner import Slurm

class Told(Hooks):
    failures = ()
    def failed(self, where, why):
        self.failures += (why,)

told = Told()
driver, libc, cache = sys.argv[1:]
groups = {
    "driver": {"prologue": [f"export LD_LIBRARY_PATH={driver}"]},
    "libc": {"prologue": [f"export LD_PRELOAD={libc}"]},
}
backend = Slurm(cores=1, memory="400 MB", poll=1, groups=groups)
asked = {"lock": "pylock.envsync.toml", "dashboard_address": None, "hooks": told}
with SyncedCluster(backend, n_workers={"driver": 1, "libc": 1}, **asked) as cluster:
    end = time.monotonic() + 60
    while len(told.failures) < 2:
        assert time.monotonic() < end, cluster.jobs
        time.sleep(0.1)
    assert not cluster.scheduler_info["workers"]
    began = [path.name for path in Path(cache, "runs").glob("*/*")]
    assert not [name for name in began if name.startswith(("driver", "libc"))], began
    assert began, "where processes would have been"
    print(*sorted(told.failures), sep="\\n")
"""

# What an older C library says of itself, before the real one is asked.
OLD_LIBC = r"""
#include <string.h>
#include <unistd.h>
size_t confstr(int name, char *text, size_t size) {
    if (name != _CS_GNU_LIBC_VERSION) return 0;
    if (text && size) { strncpy(text, "glibc 2.17", size); text[size - 1] = 0; }
    return sizeof "glibc 2.17";
}
"""


@pytest.fixture(scope="module")
def place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gpus")
    torch_index(folder / "wheels")
    with (
        pytest.MonkeyPatch.context() as patch,
        make_place(folder, other=None, ours=["torch==2.5.1+cpu"]) as made,
    ):
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver_library(tmp_path_factory.mktemp("driver")).parent


@pytest.fixture(scope="module")
def locked(
    place: Place, driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Lock for the nodes of a partition that has a driver: the folder with the lock, and what was said."""
    folder = tmp_path_factory.mktemp("locked")
    nodes = f"slurm://?partition=debug&cores=1&poll=1&prologue=export LD_LIBRARY_PATH={driver}"
    done = place.envsync(folder, "--json", "snapshot", "--for", nodes)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_lock_for_the_nodes_of_a_partition(
    slurm: Slurm, place: Place, locked: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = locked
    assert found["target"]["accelerators"] == ["nvidia 550.54.14"]
    assert {one["name"]: one["locked"] for one in found["substitutions"]} == {"torch": "2.5.1+cu124"}
    lock = Lock.read(folder / "pylock.envsync.toml")
    assert {one.name for one in lock.artifacts()} >= {"nvidia-cuda-runtime-cu12", "triton"}
    assert not slurm.jobs()
    assert not slurm.processes()
    # a queue that nothing starts in says so, in time
    closed = place.envsync(folder, "snapshot", "--for", "slurm://?partition=closed&poll=1&wait=3s")
    assert closed.returncode == 5, closed.stderr
    assert "that was to look at a node" in closed.stderr
    assert "Partition" in closed.stderr
    assert not slurm.jobs()


def test_a_cluster_whose_login_host_has_no_driver(
    slurm: Slurm, place: Place, driver: Path, tmp_path: Path
) -> None:
    place.run(tmp_path, CLUSTER, str(driver))
    assert not slurm.jobs()


def test_nodes_that_cannot_run_what_was_locked(
    slurm: Slurm, place: Place, locked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """One with a driver that is too old for the lock's CUDA, one with a C library that is too old."""
    (tmp_path / "libc.c").write_text(OLD_LIBC)
    old = tmp_path / "libold.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", old, tmp_path / "libc.c"], check=True)
    too_old = driver_library(tmp_path / "driver", version="470.57.02", cuda=11040).parent
    said = place.run(locked[0], UNFIT, str(too_old), str(old), str(place.folder / "cache"))
    of_driver, of_libc = sorted(said.splitlines(), key=lambda line: "glibc 2.17" in line)
    for part in ("node", "470.57.02", "525.60.13", "CUDA 12.4", "Update the driver there, or lock for it"):
        assert part in of_driver, of_driver
    here = " ".join(libc() or ())
    for part in (
        "node",
        "cannot run what was locked for",
        here,
        "it is",
        "Ask for nodes like the login host",
    ):
        assert part in of_libc, of_libc
    assert not slurm.jobs()
    assert not slurm.processes()
