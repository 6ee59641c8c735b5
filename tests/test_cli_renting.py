"""``envsync run --on ec2``: what would be rented and at what price, and on machines that boot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest
from click.testing import CliRunner, Result

from envsync.cli import cli
from envsync.runner.clouds import EC2
from envsync.runner.hetzner import Hetzner
from envsync.runner.profiles import read_profile
from tests.lab.cloud import Cloud
from tests.lab.ec2_api import EC2Api

PROFILES: dict[str, Any] = {
    "night": {
        "backend": "ec2",
        "type": "m7i.large",
        "region": ["eu-central-1", "eu-west-1"],
        "spot": "prefer",
        "max-lifetime": "8 h",
        "disk": "20 GB",
        "n-workers": 3,
    },
    "empty": {"backend": "ec2"},
    "cheap": {"backend": "hetzner", "type": "ccx23", "host-keys": "first"},
}
PRICES = {"ec2": {"date": "2026-11-01", "source": "our contract", "m7i.large": 0.1, "m7i.large spot": 0.04}}


@pytest.fixture
def api() -> Iterator[EC2Api]:
    with EC2Api() as api, api.used():
        yield api


def run(*words: str) -> Result:
    with dask.config.set({"envsync.profiles": PROFILES, "envsync.cloud.prices": PRICES}):
        return CliRunner().invoke(cli, ["run", *words, "--", "true"])


def test_what_would_be_rented_is_said_and_nothing_is(api: EC2Api) -> None:
    on = ("--on", "ec2", "--instance-type", "m7i.large", "--region", "eu-west-1")
    done = run(*on, "-n", "4", "--workers-per-machine", "2", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "2 x m7i.large of ec2 in eu-west-1: eu-west-1a" in done.output
    assert "0.10 USD an hour each, 0.20 USD in all" in done.output
    assert "(our contract, 2026-11-01)" in done.output
    document = json.loads(run("--profile", "night", "--spot", "only", "--dry-run", "--json").stdout)
    assert (document["machines"], document["market"], document["region"]) == (3, "spot", "eu-central-1")
    assert document["hourly_price_of_one"]["amount"] == 0.04
    assert "nobody says" in run(*on[:3], "t3.micro", "--dry-run").output
    huge = run("--on", "ec2", "--instance-type", "m99.huge", "--dry-run")
    assert huge.exit_code != 0
    assert "there is no m99.huge in eu-west-1" in huge.output
    assert api.left() == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "ec2"), "--on ec2 needs --instance-type"),
        (("--instance-type", "m7i.large"), "--instance-type is for rented machines: --on ec2"),
        (("--on", "slurm", "--region", "x"), "--region is for rented machines"),
        (("--on", "ec2", "--instance-type", "m7i.large", "--time", "2h"), "on ec2 there is no time"),
        (("--on", "ec2", "--instance-type", "m", "--cloud-option", "zonse=a"), "Did you mean zones?"),
        (("--on", "ec2", "--instance-type", "m", "--disk", "big"), "big"),
        (("--profile", "empty"), "it names no type of machine"),
        (("--on", "local", "--dry-run"), "--dry-run is for rented machines"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_profiles_of_rented_machines() -> None:
    with dask.config.set({"envsync.profiles": PROFILES}):
        night, cheap = read_profile("night", spot="never"), read_profile("cheap", location=("fsn1",))
    assert isinstance(night.backend, EC2)
    assert (night.backend.spot, night.backend.max_lifetime, night.backend.disk) == ("never", 28800.0, 19)
    assert night.cluster == {"n_workers": 3}
    assert isinstance(cheap.backend, Hetzner)


SCRIPT = """
import os
from distributed import Client
with Client() as client:
    client.wait_for_workers(2)
    print(sorted(client.run(lambda: os.uname().nodename).values()), client.submit(sum, [1, 2]).result())
"""


@pytest.mark.lab
@pytest.mark.slow
def test_a_script_runs_with_machines_that_are_rented_for_it(
    cloud: Cloud, small_lock: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command: list[Any] = [
        Path(sys.executable).parent / "envsync",
        "run",
        "--on",
        "ec2",
        "--instance-type",
        "m7i.large",
    ]
    options: list[Any] = [
        "--region",
        "eu-west-1",
        "-n",
        "2",
        "--threads-per-worker",
        "1",
        "--lock",
        small_lock,
    ]
    done = subprocess.run(
        [*command, *options, "--", sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("3")
    assert len(set(json.loads(done.stdout.rpartition("]")[0].replace("'", '"') + "]"))) == 2
    assert (cloud.vms(), cloud.api.left()) == ([], {})
