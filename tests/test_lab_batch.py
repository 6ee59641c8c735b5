"""The lab's SGE, OAR and HTCondor give out what nodes have, end what they are told to, and leave nothing."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.batch import GPUS, BatchLab
from tests.lab.processes import namespace, processes_in

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CANCEL = {"SGE": "qdel", "OAR": "oardel", "Condor": "condor_rm"}
_DESCRIPTION = """executable = {script}
arguments = $(Process)
output = log
error = log
request_gpus = {gpus}
periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus >= {seconds}
queue {count}
"""


@pytest.fixture(scope="module", params=["sge", "oar", "condor"])
def batch(request: pytest.FixtureRequest) -> BatchLab:
    system = request.getfixturevalue(request.param)
    assert isinstance(system, BatchLab)
    return system


def submit(batch: BatchLab, script: Path, *, count: int = 1, gpus: int = 0, seconds: int = 300) -> list[str]:
    """Submit a script as so many jobs, and return the numbers by which they are cancelled."""
    script.chmod(0o755)
    script.parent.chmod(0o777)
    folder = script.parent
    name = type(batch).__name__
    if name == "SGE":
        options = ["-t", f"1-{count}", "-l", f"gpu={gpus},h_rt={seconds}", "-j", "y", "-o", "log", "-cwd"]
        return [batch.call("qsub", "-terse", *options, str(script), folder=folder).split(".")[0]]
    if name == "OAR":
        asked = f"/nodes=1/{f'gpu={gpus}' if gpus else 'core=1'},walltime=0:{seconds // 60}:{seconds % 60}"
        said = batch.call("oarsub", "-l", asked, f"--array={count}", str(script), folder=folder)
        return re.findall(r"OAR_JOB_ID=(\d+)", said)
    text = _DESCRIPTION.format(script=script, gpus=gpus, seconds=seconds, count=count)
    return [batch.call("condor_submit", "-terse", "-", stdin=text, folder=folder).split(".")[0]]


def until(condition: Callable[[], bool], batch: BatchLab, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (batch.jobs(), batch.processes(), batch.log()[-3000:])
        time.sleep(0.1)


def ended(batch: BatchLab) -> bool:
    return not batch.jobs() and not batch.processes()


def sleeping(batch: BatchLab, count: int = 1) -> bool:
    return sum("sleep 100" in " ".join(process.arguments) for process in batch.processes()) >= count


def on_nodes(batch: BatchLab) -> list[str]:
    """Return the nodes that jobs run on, by what the system says."""
    names = {node.name for node in batch.nodes}
    return sorted(word for line in batch.jobs() for word in line.split()[2:] if word in names)


def test_an_array_has_what_nodes_have_and_its_rest_waits(batch: BatchLab, tmp_path: Path) -> None:
    script, go = tmp_path / "job", tmp_path / "go"
    script.write_text(
        f"""#!/bin/sh
        index=${{SGE_TASK_ID:-${{OAR_ARRAY_INDEX:-$1}}}}
        touch /tmp/mine
        echo $(hostname) $(hostname -I) $(id -un) > {tmp_path}/said.part.$index
        mv {tmp_path}/said.part.$index {tmp_path}/said.$index
        while [ ! -e {go} ]; do sleep 0.1; done
        """
    )
    submit(batch, script, count=3, gpus=GPUS - 1)
    names = [node.name for node in batch.nodes]
    until(lambda: on_nodes(batch) == names and len(list(tmp_path.glob("said.[0-9]"))) == 2, batch)
    assert len(batch.jobs()) == 3
    assert batch.processes()
    go.touch()
    until(lambda: len(list(tmp_path.glob("said.[0-9]"))) == 3, batch)
    until(lambda: ended(batch), batch)
    said = [path.read_text().split() for path in sorted(tmp_path.glob("said.[0-9]"))]
    assert all([node.name, node.address, batch.user] in said for node in batch.nodes)
    assert not Path("/tmp/mine").exists()


def test_a_cancelled_job_leaves_nothing(batch: BatchLab, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("#!/bin/sh\nsleep 1000 & sleep 1000\n")
    numbers = submit(batch, tmp_path / "job")
    until(lambda: sleeping(batch, 2), batch)
    batch.call(CANCEL[type(batch).__name__], *numbers)
    until(lambda: ended(batch), batch)


def test_a_job_out_of_time_is_ended(batch: BatchLab, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("#!/bin/sh\nsleep 1000\n")
    submit(batch, tmp_path / "job", seconds=2)
    until(lambda: sleeping(batch), batch)
    until(lambda: ended(batch), batch)


def test_nothing_survives(batch: BatchLab, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("#!/bin/sh\nsetsid sleep 1000 &\nsleep 1000\n")
    submit(batch, tmp_path / "job")
    until(lambda: sleeping(batch, 2), batch)
    there = [namespace(machine.pid, "pid") for machine in batch.machines]
    assert len(there) == 3
    with (
        contextlib.ExitStack() as held
    ):  # or their numbers could be another's by the time they are looked for
        for machine in batch.machines:
            held.enter_context(open(f"/proc/{machine.pid}/ns/pid"))
        assert all(processes_in(each) for each in there)
        assert batch.close() == []
        assert [process for each in there for process in processes_in(each)] == []
    assert not batch.folder.exists()
