"""The options of a batch system: what makes no sense is said before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import dask.config
import pytest
from click.testing import CliRunner

from envsync.cli import cli
from envsync.cli.queue import QUEUE_OPTIONS, where
from envsync.cli.run import command as run
from envsync.runner import SGE, Batch, batch
from envsync.runner.profiles import Profile

PROFILES = {
    "envsync.profiles": {
        "desks": {"backend": "ssh", "hosts": ["node1"]},
        "grid": {"backend": "sge", "parallel-environment": "mpi", "cores": 4, "time": "2h", "n-workers": 6},
    }
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--partition", "gpu"], "--partition is for a batch system: --on slurm|sge"),
        (["--on", "ssh", "--hosts", "node1", "--time", "2h"], "--time is for a batch system"),
        (["--on", "slurm", "--hosts", "node1"], "--hosts needs --on ssh"),
        (["--on", "slurm", "--memory", "much"], "memory='much' is no size: write 16 GB"),
        (["--on", "slurm", "--time", "soon"], "soon"),
        (["--on", "slurm", "--cores", "0"], "0 is not in the range"),
        (["--on", "slurm", "--env", "image:registry.example.org/x"], "not for batch systems yet"),
        (["--on", "moab"], "'moab' is not one of"),
        (["--on", "slurm", "--via", "user@"], "'user@' is not the address of a host"),
        (["--on", "sge", "--site", "memory_resource"], "that is not KEY=VALUE"),
        (
            ["--on", "slurm", "--site", "parallel-environment=mpi"],
            "on slurm there is no parallel-environment",
        ),
        (["--on", "sge", "--site", "gpu-per-core=often"], "gpu-per-core has to be true or false"),
        (["--profile", "nope"], "there is no profile 'nope' in Dask's configuration; there are desks, grid"),
        (["--profile", "grid", "--on", "slurm"], "envsync.profiles.grid: it is for sge, not for slurm"),
        (["--profile", "grid", "--hosts", "node1"], "on sge there is no hosts"),
        (["--profile", "desks", "--partition", "gpu"], "on ssh there is no queue"),
        (["--profile", "grid", "--env", "image:registry.example.org/x"], "not for batch systems yet"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], said: str) -> None:
    with dask.config.set(PROFILES):
        done = CliRunner().invoke(cli, ["run", *arguments, "--", "true"])
    assert done.exit_code == 2
    assert said in done.output


def place(*words: str) -> Profile:
    """Return where ``envsync run`` would have its cluster."""
    asked = run.make_context("run", [*words, "--", "true"]).params
    queue = {name: asked[name] for name in QUEUE_OPTIONS}
    with dask.config.set(PROFILES):
        return where(asked["backend"], asked["hosts"] or (), asked["profile"], asked["cache"], queue)


def test_options_count_instead_of_what_a_profile_says() -> None:
    more = ("--time", "8h", "--extra", "-V", "--extra=-R y", "--prologue", "date", "--shell", "/bin/bash")
    found = place("--profile", "grid", *more, "--site", "gpu-per-core=false", "--site", "memory-resource=")
    assert isinstance(found.backend, SGE)
    request = found.backend.group.request
    assert (request.cores, request.walltime, request.shell) == (4, 8 * 3600.0, "/bin/bash")
    assert (request.extra, request.prologue) == (("-V", "-R y"), ("date",))
    assert isinstance(found.backend.system, batch.SGE)
    assert (found.backend.system.gpu_per_core, found.backend.system.memory) == (False, "")
    assert found.backend.system.parallel == "mpi"
    assert found.cluster["n_workers"] == 6
    slurm = place("--on", "slurm", "--gpus", "2", "--scheduler", "login", "--poll", "2", "--via", "me@login")
    assert slurm.cluster == {"n_workers": 2}, "one job's workers"
    assert isinstance(slurm.backend, Batch)
    assert (slurm.backend.scheduler, slurm.backend.poll) == ("login", 2.0)
    assert place().backend.local


def test_the_help_has_each_option_once_below_a_title() -> None:
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    titles = ("Where the cluster runs:", "Workers:", "What runs there:", "Jobs of a batch system:", "Output:")
    assert [line for line in text.splitlines() if line in titles] == list(titles)
    starts = [line for line in text.splitlines() if line.startswith("  -")]
    for option in (one for one in run.params if isinstance(one, click.Option)):
        names = ", ".join(option.opts)
        assert len([line for line in starts if f"{line} ".startswith(f"  {names} ")]) == 1, names


@pytest.mark.parametrize("text", ["envsync: {profiles: [", "envsync: {profiles: {a: {on: slurm}}}"])
def test_a_configuration_that_dask_cannot_read_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "dask.yaml").write_text(text)
    done = subprocess.run(
        [Path(sys.executable).parent / "envsync", "run", "--", "true"],
        env={**os.environ, "DASK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Dask's configuration cannot be read" in done.stderr
