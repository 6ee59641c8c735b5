"""In a cluster that dask-jobqueue starts in a real Slurm: other jobs, and a scheduler in our own process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.slurm import Slurm
from tests.places import BEGIN, Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        pytest.MonkeyPatch.context() as patch,
        make_place(tmp_path_factory.mktemp("existing"), ours=["dask-jobqueue==0.9.0"]) as made,
    ):
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        yield made


BEGIN_SLURM = (
    BEGIN
    + """
import dask, os, socket, subprocess, time
from dask_jobqueue import SLURMCluster

DISK = "/tmp/disk/envsync"

def jobs():
    squeue = ["squeue", "--noheader", "--format=%i %T"]
    return set(subprocess.run(squeue, capture_output=True, text=True, check=True).stdout.splitlines())

def start(address, python, nanny):
    # the scheduler is in this process. A worker without a nanny that is told to end by the scheduler, and
    # then by a signal, waits for ever for its own closing, which the signal cancelled (distributed 2026.8).
    # Slurm kills it, but finds by their parents what belongs to a job here: its shell has to stay.
    return SLURMCluster(
        cores=1, processes=1, memory="600MB", n_workers=2, python=python, nanny=nanny,
        job_script_prologue=["trap : TERM", f"export ENVSYNC_OVERLAYS={DISK}"],
        scheduler_options={"host": address, "port": 0, "dashboard_address": "127.0.0.1:0"},
    )

def where(seconds=0):
    time.sleep(seconds)
    return os.environ["SLURM_JOB_ID"], vary(), mine()

def mine():
    return __import__("mine").VALUE

def on_workers(client, function):
    return set(client.run(function).values())
"""
)

REPAIRED = (
    BEGIN_SLURM
    + """
# a restart takes longer: the cluster object would give a job away whose worker it has not seen for a second
dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"})
address, python, nanny = *sys.argv[1:3], sys.argv[3] == "nanny"
with start(address, python, nanny) as cluster, Client(cluster) as client:
    client.wait_for_workers(2, timeout=150)
    assert on_workers(client, socket.gethostname) == {"node1", "node2"}
    # they differ, and are told
    found = verify(client, on_mismatch="ignore")
    assert {"vary", "extra"} <= {one.subject for one in found.differences if one.severity == "error"}, found
    before, here, running = on_workers(client, path), sys.path[:], jobs()
    if nanny:
        on_workers(client, vary)  # imported: the nannies restart them, in the job where they are

    # repaired, on each host's own disk; and this process, where the scheduler is, is left as it is
    plugin = SyncEnvironment()
    assert client.register_plugin(plugin).ok
    assert on_workers(client, extra) == {"extra"}
    assert on_workers(client, lambda: __import__("extra").__file__.startswith(DISK)) == {True}
    assert not os.path.exists(DISK)
    assert on_workers(client, lambda: __import__("proj").VALUE) == {"mine, edited"}
    assert {client.submit(vary, pure=False).result() for _ in range(6)} == {"2.0"}
    assert verify(client, on_mismatch="ignore").ok
    assert sys.path == here
    assert "extra" not in sys.modules

    # an edit is on all, and no job is lost for it
    assert on_workers(client, mine) == {1}
    # jobs start in this folder, which they see: what was sent comes first
    assert on_workers(client, lambda: __import__("mine").__file__.startswith(DISK)) == {True}
    kept = client.submit(lambda: "kept", key="kept")
    assert kept.result() == "kept"
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert on_workers(client, mine) == {22}
    assert jobs() == running and kept.result() == "kept"

    # a job that comes later has it before its first task
    if nanny:
        cluster.scale(jobs=3)
    else:
        cluster.adapt(minimum_jobs=3, maximum_jobs=3)
    ran = set()
    while len({job for job, _, _ in ran}) < 3:
        ran |= set(client.gather(client.map(where, [0.02] * 20, pure=False)))
    assert {what[1:] for what in ran} == {("2.0", 22)}, ran

    # and given back
    del kept
    plugin.unregister()
    assert on_workers(client, extra) == {"no"}
    assert on_workers(client, vary) == {"1.0"}
    assert on_workers(client, path) == before
    assert jobs() > running and len(jobs()) == 3, jobs()
    assert not verify(client, on_mismatch="ignore").ok
print("repaired")
"""
)


@pytest.mark.parametrize("nanny", ["nanny", "no nanny"])
def test_jobs_are_repaired_synced_and_given_back(
    place: Place, slurm: Slurm, tmp_path: Path, nanny: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    python = place.other / "bin" / "python"
    assert "repaired" in place.run(work, REPAIRED, slurm.gateway, str(python), nanny)
    deadline = time.monotonic() + 60
    while slurm.jobs() or slurm.processes():
        assert time.monotonic() < deadline, (slurm.jobs(), slurm.processes())
        time.sleep(0.1)
