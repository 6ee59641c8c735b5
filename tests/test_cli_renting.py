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
from envsync.errors import CloudError
from envsync.runner import clouds
from envsync.runner.amounts import Money
from envsync.runner.azure import Azure
from envsync.runner.backends import Backend
from envsync.runner.cloud.provider import Machine
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.ec2 import EC2
from envsync.runner.hetzner import Hetzner
from envsync.runner.limits import Limits
from envsync.runner.profiles import read_profile
from tests.cloud_fake import FakeProvider
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
    "west": {"backend": "azure", "type": "Standard_D4s_v5", "region": "westeurope", "zones": [1, 3]},
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
    prefer = run(*on, "--spot", "prefer", "-n", "4", "--dry-run").output
    assert "1 x m7i.large + 3 x m7i.large (spot) of ec2" in prefer
    assert "0.10 USD an hour, and 0.0400 USD an hour each, 0.22 USD in all" in prefer
    assert "what they cost is not known" in run(*on[:3], "t3.micro", "--dry-run").output
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
        (("--on", "azure", "--instance-type", "m", "--cloud-option", "subnets=a"), "Did you mean subnet?"),
        (("--on", "ec2", "--instance-type", "m", "--disk", "big"), "big"),
        (("--profile", "empty"), "it names no type of machine"),
        (("--on", "local", "--dry-run"), "--dry-run is for rented machines"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output


class Asked:
    """What a start came to before anything was rented, on the fake cloud."""

    def __init__(self) -> None:
        self.provider = FakeProvider(["north"])
        self.limits: list[Limits] = []
        self.plans: list[Plan] = []


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked, limited = Asked(), EC2.limited

    def limit(self: EC2, limits: Limits) -> Backend:
        asked.limits.append(limits)
        return limited(self, limits)

    class Refusing(Rented):
        async def start(self) -> Machine:
            asked.plans.append(self.plan)
            raise CloudError("not today", where="north")

    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    monkeypatch.setattr(EC2, "limited", limit)
    monkeypatch.setattr(EC2, "provider", lambda self: asked.provider)
    monkeypatch.setattr(clouds, "Rented", Refusing)
    return asked


ON = ("--on", "ec2", "--instance-type", "small")


def test_limits_reach_the_cluster_and_its_machines(asked: Asked) -> None:
    written = ("--idle-timeout", "20 min", "--max-lifetime", "8h", "--client-timeout", "90s")
    done = run(*ON, *written, "--max-cost", "2 usd", "-n", "2")
    assert done.exit_code != 0
    assert "not today" in done.output
    (limits,), (plan,) = asked.limits, asked.plans
    assert limits == Limits(idle=1200, life=28800, client=90, cost=Money(2.0, "USD"))
    assert (plan.count, plan.lease, plan.life) == (2, 90, 28800)
    assert plan.tags.deadline
    # the time in which one machine alone costs all of it, where that is less
    run(*ON, "--max-lifetime", "40:00:00", "--max-cost", "1.5")
    assert asked.plans[-1].life == pytest.approx(1.5 / 0.1 * 3600)
    run(*ON)
    assert asked.limits[-1] == Limits(idle=4 * 3600)  # of rented machines, where nobody says otherwise
    run(*ON, "--idle-timeout", "never")
    assert asked.limits[-1] == Limits()
    assert (asked.plans[-1].lease, asked.plans[-1].life) == (120, None)
    with dask.config.set({"envsync.profiles": {"day": {**PROFILES["night"], "type": "small"}}}):
        CliRunner().invoke(cli, ["run", "--profile", "day", "--max-lifetime", "1 h", "--", "true"])
    assert asked.plans[-1].life == 3600
    assert asked.provider.machines == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--idle-timeout", "soon"),
            "idle_timeout='soon' is no time: write 04:00:00, 2 h, 20 min, or seconds",
        ),
        (("--max-lifetime", "0"), "max_lifetime must be more than 0 s"),
        (("--client-timeout", "-5 min"), "client_timeout='-5 min' is no time"),
        (("--max-cost", "$50"), "max_cost='$50' is no amount of money: write 50 USD"),
        (("--max-cost", "0 USD"), "max_cost must be more than 0"),
        (("--max-cost", "5 EUR"), "max_cost is 5 EUR, and prices are in USD"),
        (
            ("--max-cost", "0.001 USD", "-n", "4"),
            "4 machines at 0.1 USD an hour cost 0.01333 in the 2 min that are kept",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused_and_nothing_is_rented(
    asked: Asked, words: tuple[str, ...], said: str
) -> None:
    done = run(*ON, *words)
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert asked.plans == []
    local = run("--on", "local", "--max-cost", "5 USD")
    assert local.exit_code == 2
    assert "--max-cost is for machines that are rented" in local.output


def test_profiles_of_rented_machines() -> None:
    with dask.config.set({"envsync.profiles": PROFILES}):
        night, cheap = read_profile("night", spot="never"), read_profile("cheap", location=("fsn1",))
    assert isinstance(night.backend, EC2)
    assert (night.backend.spot, night.backend.max_lifetime, night.backend.disk) == ("never", 28800.0, 19)
    assert night.cluster == {"n_workers": 3}
    assert isinstance(cheap.backend, Hetzner)
    with dask.config.set({"envsync.profiles": PROFILES}):
        assert isinstance(read_profile("west", subscription="1-2").backend, Azure)


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
