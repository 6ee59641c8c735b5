"""Batch systems: up to three workers beside dask-jobqueue, sixteen nodes at once, a thousand jobs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import folder, run, uv
from benchmarks.timing import Action, Row, Table, compare

if TYPE_CHECKING:
    from tests.lab.slurm import Slurm

FEW, MANY, NODES = 3, 16, 16
NUMBERS = (1000, 100, 10)
JOBQUEUE = "dask-jobqueue==0.9.0"
CLIENT = Path(__file__).with_name("batch_client.py")

UP = f"From no worker to {FEW}, on a Slurm of 2 nodes, environment in place"
ALL = f"{NODES} nodes of a Slurm at once, a shared folder without the environment"
JOBS = f"{NUMBERS[0]:,} jobs that wait, in a batch system that runs nothing"
OURS, THEIRS = (
    "`scale(3)` of SyncedCluster(Slurm()), TLS and verification",
    "`scale(3)` of SLURMCluster, plain TCP",
)


def batch() -> list[Table]:
    """Measure all of it."""
    from tests.lab.install import PROGRAMS, SLURM, missing, obstacle

    lacking = missing({**PROGRAMS, **SLURM})
    why = obstacle() or ("the lab lacks " + " ".join(lacking) if lacking else "")
    if why:
        tables = [Table(title, "", [Row("envsync", trouble=why)]) for title in (UP, ALL)]
    else:
        _environments()
        tables = [_up(), _all()]
    return [*tables, _jobs()]


def _environments() -> None:
    """Make two that hold Dask: one with envsync, one with dask-jobqueue, bytecode and all."""
    from tests.places import here, wheel_of_envsync

    pins = [f"{name}=={wanted}" for name, wanted in here().items()]
    for name, more in (("synced", wheel_of_envsync(folder())), ("jobqueue", JOBQUEUE)):
        run(uv(), "venv", "--quiet", "--clear", "--python", sys.executable, _prefix(name))
        run(uv(), "pip", "install", "--quiet", "--compile-bytecode", "--python", _prefix(name), *pins, more)


def _prefix(kind: str) -> Path:
    return folder() / f"batch-{kind}"


def _ask(slurm: Slurm, work: Path, kind: str, workers: int) -> dict[str, Any]:
    """Let a client scale a cluster, and return what it says."""
    done = subprocess.run(
        [_prefix(kind) / "bin/python", CLIENT, kind, str(workers), slurm.gateway],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            **slurm.environment,
            "PYTHONSAFEPATH": "1",
            "ENVSYNC_CACHE": str(work / "cache"),
        },
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    if done.returncode != 0:
        raise RuntimeError(" / ".join(done.stderr.strip().splitlines()[-3:]))
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if kind == "synced" and not said["verified"]:
        raise RuntimeError("not verified")
    return said


def _with_slurm(nodes: int, measure: Callable[[Slurm, Path], Table]) -> Table:
    """Measure with a Slurm of the lab's and a folder that its nodes see: what is below /tmp they do not."""
    from tests.lab.slurm import Slurm

    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        slurm = Slurm(nodes)
        try:
            return measure(slurm, Path(work))
        finally:
            slurm.close()


def _up() -> Table:
    def measure(slurm: Slurm, work: Path) -> Table:
        def action(kind: str) -> Action:
            return lambda: float(_ask(slurm, work, kind, FEW)["seconds"])

        rows = compare({OURS: action("synced"), THEIRS: action("jobqueue")})
        return Table(
            UP,
            "at most 1.2 of dask-jobqueue",
            rows,
            [
                "From the call until all workers are there; the cluster is up, with none. "
                f"dask-jobqueue verifies nothing. All nodes share {os.cpu_count()} cores here."
            ],
        )

    return _with_slurm(2, measure)


def _all() -> Table:
    def measure(slurm: Slurm, work: Path) -> Table:
        try:
            said = _ask(slurm, work, "synced", MANY)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return Table(ALL, "", [Row(f"`scale({MANY})`", trouble=str(error)[:200])])
        return Table(
            ALL,
            "one realisation",
            [Row(f"`scale({MANY})`, until {MANY} verified workers are there", [said["seconds"]])],
            [
                f"The environment was asked for {said['asked']} times, by the login host and each job; "
                f"it was made {'once' if said['made'] == 1 else str(said['made']) + ' times'}. "
                f"All nodes share {os.cpu_count()} cores here, so {2 * MANY} processes start in turns."
            ],
        )

    return _with_slurm(NODES, measure)


def _jobs() -> Table:
    target = "no more than the number of jobs grows"
    try:
        asyncio.run(_many(1))  # a warm-up: what is imported
        found = {number: asyncio.run(_many(number)) for number in reversed(NUMBERS)}
    except Exception as error:  # noqa: BLE001 - a line of the table
        return Table(JOBS, target, [Row("envsync", trouble=f"{type(error).__name__}: {error}"[:200])])
    rows = [
        Row(f"{number:,} jobs: submit, look, show, close", [sum(found[number][0].values())])
        for number in NUMBERS
    ]
    notes = [
        "The client's time; the batch system answers at once. "
        "The last column is how much more the most jobs take."
    ]
    for number in NUMBERS:
        times, calls = found[number]
        parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items())
        run_ = ", ".join(
            f"{many} {name}" for name, many in sorted(calls.items()) if many and name in _PROGRAMS
        )
        notes.append(f"{number:,}: {parts}; {run_}.")
    return Table(JOBS, target, rows, [" ".join(notes)])


_PROGRAMS = ("sbatch", "squeue", "scancel")


async def _many(number: int) -> tuple[dict[str, float], dict[str, int]]:
    """Have a cluster ask for jobs, look at them, show them and close; seconds of each, and what was run."""
    from tests.simulated import SimulatedCluster, Site

    site, times = Site(), {}
    cluster = await SimulatedCluster(site, 0, submissions_per_minute=1000)
    began = time.perf_counter()
    cluster.scale(number)
    await cluster  # until all are submitted
    assert len(site.jobs) == number
    times["submit"] = time.perf_counter() - began
    began = time.perf_counter()
    await cluster.queue.driver.poll()
    times["look"] = time.perf_counter() - began
    began = time.perf_counter()
    assert str(cluster.jobs)
    assert len(cluster.jobs) == number
    times["show"] = time.perf_counter() - began
    began = time.perf_counter()
    await cluster.close()
    times["close"] = time.perf_counter() - began
    return times, dict(site.calls)


if __name__ == "__main__":
    for table in batch():
        sys.stdout.write(f"\n{table.markdown()}\n")
