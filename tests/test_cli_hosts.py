"""The command against real SSH hosts that have no Python, no uv and no internet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.machines import Lab, Machine

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.lab, pytest.mark.slow]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import platform
from dask.distributed import Client

if __name__ == "__main__":
    with Client() as client:
        print(client.scheduler.address.partition(":")[0], *sorted(client.run(platform.node).values()))
"""


@pytest.fixture
def envsync(lab: Lab, tmp_path: Path) -> Run:
    """Run the installed command as a user of the lab."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "envsync", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(lab.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def test_push_twice_diff_and_run(envsync: Run, machine: Callable[..., Machine], tmp_path: Path) -> None:
    hosts = [machine("bare"), machine("bare")]
    addresses = [f"ssh://{host.name}" for host in hosts]

    bare = envsync("diff", ".", addresses[0])
    assert bare.returncode == 2
    assert "there is no python3 on its PATH" in bare.stderr

    first = envsync("push", *addresses)
    assert first.returncode == 0, first.stderr
    for host in hosts:
        assert f"{host.name}: made, verified" in first.stdout
    again = envsync("push", "--json", *addresses)
    assert again.returncode == 0, again.stderr
    answers = json.loads(again.stdout)["hosts"]
    assert [(one["host"], one["created"]) for one in answers] == [(host.name, False) for host in hosts]

    same = envsync("diff", "--json", ".", f"{addresses[0]}{answers[0]['prefix']}")
    grave = [one for one in json.loads(same.stdout)["differences"] if one["severity"] in ("fatal", "error")]
    assert grave == []

    (tmp_path / "where.py").write_text(SCRIPT)
    names = ",".join(host.name for host in hosts)
    options = ["--on", "ssh", "--hosts", names, "-n", "2", "--threads-per-worker", "1"]
    ran = envsync("run", *options, "--", sys.executable, "where.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["tls", *sorted(host.name for host in hosts)]
    for host in hosts:
        assert [
            process for process in host.processes("envsync") if "agent" in " ".join(process.arguments)
        ] == []


def test_a_lock_for_a_host_is_for_what_was_probed(
    envsync: Run, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    from envsync.lock import Lock

    host = machine("bare")
    done = envsync("snapshot", "--for", f"ssh://{host.name}", "-o", "pylock.there.toml")
    assert done.returncode == 0, done.stderr
    lock = Lock.read(tmp_path / "pylock.there.toml")
    version = host.exec("ldd", "--version").decode().splitlines()[0].split()[-1]
    assert lock.target.libc == ("glibc", version)
    assert f"glibc {version}" in done.stdout


def test_a_host_with_another_python(envsync: Run, machine: Callable[..., Machine]) -> None:
    host = machine("python")
    done = envsync("diff", "--json", ".", f"ssh://{host.name}")
    assert done.returncode == 1, done.stderr
    found = {one["subject"]: one for one in json.loads(done.stdout)["differences"]}
    assert found["dask"]["kind"] == "missing"
    assert envsync("diff", ".", f"ssh://{host.name}/no/such/python").returncode == 2


def test_the_ssh_example(lab: Lab, machine: Callable[..., Machine], tmp_path: Path) -> None:
    hosts = [machine("bare"), machine("bare")]
    example = Path(__file__).parent.parent / "examples" / "ssh_cluster.py"
    names = ",".join(host.name for host in hosts)
    done = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(lab.home), "ENVSYNC_EXAMPLE_HOSTS": names},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for host in hosts:
        assert f"on {host.name}" in done.stdout
    assert "sum       499500" in done.stdout
