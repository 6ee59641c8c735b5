"""The options of a batch system: what makes no sense is said before anything is started."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from envsync.cli import cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--partition", "gpu"], "--partition is for a batch system: --on slurm|sge"),
        (["--on", "ssh", "--hosts", "node1", "--time", "2h"], "--time is for a batch system"),
        (["--on", "slurm", "--hosts", "node1"], "--hosts needs --on ssh"),
        (["--on", "slurm", "--memory", "much"], "Could not interpret 'much' as a byte unit"),
        (["--on", "slurm", "--time", "soon"], "soon"),
        (["--on", "slurm", "--cores", "0"], "0 is not in the range"),
        (["--on", "slurm", "--env", "image:registry.example.org/x"], "not for batch systems yet"),
        (["--on", "moab"], "'moab' is not one of"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["run", *arguments, "--", "true"])
    assert done.exit_code == 2
    assert said in done.output
