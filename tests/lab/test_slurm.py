"""The lab's Slurm: its nodes share what a computing centre's share, and end when they are told to."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.slurm import Slurm

pytestmark = pytest.mark.lab


def ended(slurm: Slurm) -> None:
    deadline = time.monotonic() + 90
    while slurm.jobs() or slurm.processes():
        assert time.monotonic() < deadline, (slurm.jobs(), slurm.processes())
        time.sleep(0.05)


def test_jobs_see_the_tests_folder_and_a_tmp_of_their_node(slurm: Slurm, tmp_path: Path) -> None:
    script = (
        "echo $(hostname) $(hostname -I) $(find /tmp -maxdepth 1 -name mine) > $SLURM_JOB_ID; touch /tmp/mine"
    )
    both = [f"--nodelist={node.name}" for node in slurm.nodes] * 2
    for options in both:
        slurm.call("sbatch", "--wait", f"--chdir={tmp_path}", "--output=log", options, f"--wrap={script}")
    numbers = sorted(int(path.name) for path in tmp_path.glob("[0-9]*"))
    found = [(tmp_path / str(number)).read_text().split() for number in numbers]
    first, again = found[:2], found[2:]
    assert first == [[node.name, node.address] for node in slurm.nodes]
    assert again == [[node.name, node.address, "/tmp/mine"] for node in slurm.nodes]
    assert not Path("/tmp/mine").exists()
    ended(slurm)


def test_a_cancelled_job_leaves_nothing(slurm: Slurm, tmp_path: Path) -> None:
    said = slurm.call("sbatch", f"--chdir={tmp_path}", "--output=log", "--wrap=sleep 1000 & sleep 1000")
    deadline = time.monotonic() + 90
    while sum("sleep" in process.arguments[0] for process in slurm.processes()) < 2:
        assert time.monotonic() < deadline, slurm.jobs()
        time.sleep(0.05)
    slurm.call("scancel", said.split()[-1])
    ended(slurm)


def test_another_stands_beside_it_and_ends_with_its_process(slurm: Slurm) -> None:
    script = """if True:
        import sys
        from tests.lab.slurm import Slurm
        slurm = Slurm(1)
        print(slurm.folder, *(machine.pid for machine in slurm.machines), flush=True)
        sys.stdin.read()
    """
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert run.stdout is not None
        folder, *pids = run.stdout.readline().decode().split()
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        assert Path(folder) != slurm.folder
        assert slurm.call("sinfo", "--noheader", "--partition=debug", "--format=%D %T").split() == [
            "2",
            "idle",
        ]
    finally:
        run.kill()
        run.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run(["rm", "-r", folder], check=True)
