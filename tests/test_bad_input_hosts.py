"""Hosts that are wrong, bare or old: what the command says, what it leaves there, and what goes on working.

The list of all bad input, with the tests of each line, is in `test_bad_input.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from envsync.lock import Lock
from tests.lab.machines import Lab, Machine
from tests.pythons import interpreter
from tests.test_bad_input import User, contents, write_lock

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CACHE = "root/.cache/envsync"


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Machine]:
    """A host with a Python of its own."""
    with lab.host("python") as machine:
        yield machine


@pytest.fixture
def user(lab: Lab, small_lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    """A user of the lab, with an ssh folder of their own and the cache that the small lock was made with."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh/config").write_text(f"Include {lab.config}\n")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    user = User(tmp_path, HOME=str(home))
    user.cache = Path(os.environ["ENVSYNC_CACHE"])
    yield user
    user.left_nothing()


def ssh(user: User) -> Path:
    return Path(user.environment["HOME"]) / ".ssh"


def change_configuration(user: User, lab: Lab, old: Path, new: Path) -> None:
    text = lab.config.read_text()
    assert str(old) in text
    (ssh(user) / "config").write_text(text.replace(str(old), str(new)))


def agents(machine: Machine) -> list[str]:
    return [" ".join(one.arguments) for one in machine.processes("envsync")]


def kept(machine: Machine) -> list[str]:
    """What is in a host's cache, but for folders and compiled modules."""
    cache = machine.root / CACHE
    files = (path for path in cache.rglob("*") if not path.is_dir() and path.suffix != ".pyc")
    return sorted(str(path.relative_to(cache)) for path in files)


def begun(machine: Machine) -> list[str]:
    """What was left half done on a host."""
    names = (f"{folder}/.*" for folder in ("bin", "blobs", "envs", "pythons", "."))
    return [str(path) for name in names for path in (machine.root / CACHE).glob(name)]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [("name", "ConnectError"), ("key", "AuthenticationError"), ("host key", "HostKeyError")],
)
def test_hosts_that_do_not_let_us_in(
    user: User, node: Machine, small_lock: Path, wrong: str, kind: str
) -> None:
    host = node.name
    says, hint = "does not let us in", "ssh-copy-id"
    if wrong == "name":
        host, says, hint = "no-such-host.invalid", "no-such-host.invalid", "ssh no-such-host.invalid"
    elif wrong == "key":
        key = asyncssh.generate_private_key("ssh-ed25519")
        (ssh(user) / "id_ed25519").write_bytes(key.export_private_key())
        change_configuration(user, node.lab, node.lab.key, ssh(user) / "id_ed25519")
    else:
        (ssh(user) / "known_hosts").write_text("")
        change_configuration(user, node.lab, node.lab.known_hosts, ssh(user) / "known_hosts")
        says, hint = "is not known yet", f"ssh {node.name}"
    there, before = contents(ssh(user)), kept(node)
    for arguments in (
        ["push", "--lock", small_lock, f"ssh://{host}"],
        ["run", "--on", "ssh", "--hosts", host, "--lock", small_lock, "--", "true"],
        ["snapshot", "--for", f"ssh://{host}"],
    ):
        error = user.fails(4, kind, *arguments)
        assert error["where"] == host
        assert says in error["message"]
        assert hint in error["hint"]
    assert user.fails(2, kind, "diff", ".", f"ssh://{host}")["where"] == host
    assert contents(ssh(user)) == there
    assert kept(node) == before
    assert agents(node) == []
    assert not (user.folder / "pylock.envsync.toml").exists()


def test_one_bad_host_among_good_ones(user: User, machine: Callable[..., Machine], small_lock: Path) -> None:
    good = machine("python")
    names = [f"ssh://{good.name}", "ssh://no-such-host.invalid"]
    error = user.fails(4, "ConnectError", "push", "--lock", small_lock, *names)
    assert error["where"] == "no-such-host.invalid"
    assert agents(good) == []
    assert not [path for path in kept(good) if path.startswith(("envs", "blobs"))]
    assert begun(good) == []


def test_no_python_and_none_can_be_sent(
    user: User, machine: Callable[..., Machine], small_lock: Path
) -> None:
    bare = machine("bare")
    bare.exec("sh", "-c", "rm $(command -v tar)")
    error = user.fails(4, "UnfitHostError", "push", "--lock", small_lock, f"ssh://{bare.name}")
    assert error["where"] == bare.name
    assert "no Python at all and no tar" in error["message"]
    assert "Install Python 3.8 or newer, or tar" in error["hint"]
    assert kept(bare) == []
    assert agents(bare) == []


def give_python_3_7(machine: Machine) -> str:
    """Make a real Python 3.7 the only one of a host; return its version."""
    found = interpreter("3.7")
    if found is None:
        pytest.skip("no Python 3.7 on this machine")
    prefix = found.parent.parent
    local = machine.root / "usr/local"
    (local / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(found, local / "bin/python3.7")
    (local / "bin/python3").symlink_to("python3.7")
    left = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "config-3.7*", "idlelib")
    shutil.copytree(prefix / "lib/python3.7", local / "lib/python3.7", ignore=left)
    for library in prefix.glob("lib/libpython3.7*.so*"):
        shutil.copy(library, local / "lib", follow_symlinks=False)
    machine.exec("ldconfig", check=False)
    said = machine.exec("/usr/local/bin/python3", "-c", "import sys; print(sys.version.split()[0])")
    assert said.startswith(b"3.7.")
    return said.decode().strip()


def test_only_python_3_7(user: User, machine: Callable[..., Machine], small_lock: Path) -> None:
    old, stuck = machine("bare"), machine("bare")
    version = give_python_3_7(old)
    give_python_3_7(stuck)
    stuck.exec("sh", "-c", "rm $(command -v tar)")

    error = user.fails(4, "UnfitHostError", "push", "--lock", small_lock, f"ssh://{stuck.name}")
    assert error["where"] == stuck.name
    assert f"only Python {version} at /usr/local/bin/python3" in error["message"]
    assert "Install Python 3.8 or newer" in error["hint"]
    assert kept(stuck) == []

    done = user.run("push", "--lock", small_lock, f"ssh://{old.name}")
    assert done.returncode == 0, done.stderr
    assert f"{old.name}: made, verified" in done.stdout
    assert f"sending Python: only Python {version} at /usr/local/bin/python3" in done.stderr
    lock = Lock.read(small_lock)
    python = old.exec(f"/{CACHE}/envs/{lock.digest}/bin/python", "-c", "import dask, sys; print(sys.version)")
    assert python.decode().startswith(lock.target.python)
    assert agents(old) == agents(stuck) == []


def test_a_lock_for_a_newer_libc(user: User, node: Machine, small_lock: Path) -> None:
    """The environment that is there stays, and no wheel of the other lock arrives."""
    assert user.run("push", "--lock", small_lock, f"ssh://{node.name}").returncode == 0
    before = kept(node)
    environment = small_lock.parent / "environment"
    target = f"{os.uname().machine}-manylinux_2_99"
    done = user.run("snapshot", "--python", environment, "--for", target, "-o", "pylock.new.toml")
    assert done.returncode == 0, done.stderr
    there = contents(user.folder)
    received = node.stats()["received"]
    for arguments in (
        ["push", "--lock", "pylock.new.toml", f"ssh://{node.name}"],
        ["run", "--on", "ssh", "--hosts", node.name, "--lock", "pylock.new.toml", "--", "true"],
    ):
        error = user.fails(4, "UnfitHostError", *arguments)
        assert error["where"] == node.name
        assert "glibc 2.99" in error["message"]
        assert "glibc 2.36" in error["message"]
        assert f"envsync snapshot --for {node.name}" in error["hint"]
    assert node.stats()["received"] - received < 500_000  # the talk of ssh, of agents and bootstraps
    assert kept(node) == before
    assert contents(user.folder) == there
    assert agents(node) == begun(node) == []


def test_a_lock_that_was_edited_reaches_no_host(user: User, node: Machine) -> None:
    file = write_lock(user.folder / "pylock.toml")
    file.write_text(file.read_text().replace("b" * 64, "c" * 64))
    received = node.stats()["received"]
    error = user.fails(3, "LockError", "push", "--lock", "pylock.toml", f"ssh://{node.name}")
    assert "beta" in error["message"]
    assert node.stats()["received"] - received < 1000


def test_a_worker_that_dies_at_start_on_a_host(user: User, node: Machine, small_lock: Path) -> None:
    options = ["--on", "ssh", "--hosts", node.name, "-n", "1", "--threads-per-worker", "1"]
    marker = user.folder / "ran"
    done = user.run(
        *["run", "--json", *options, "--lock", small_lock, "--", "touch", marker],
        DASK_DISTRIBUTED__WORKER__PRELOAD="no_such_module_at_all",
    )
    assert done.returncode == 5, done.stderr
    (error,) = [one for one in map(json.loads, done.stderr.splitlines()) if one["event"] == "error"]
    assert error["kind"] == "ProcessDied"
    assert error["where"] == f"{node.name}: worker {node.name}-0"
    assert "no_such_module_at_all" in error["message"]
    text = user.run(
        *["run", *options, "--lock", small_lock, "--", "touch", marker],
        DASK_DISTRIBUTED__WORKER__PRELOAD="no_such_module_at_all",
    ).stderr
    assert "  | ModuleNotFoundError: No module named 'no_such_module_at_all'" in text
    assert not marker.exists()
    assert agents(node) == begun(node) == []
    assert not list(node.root.glob(f"{CACHE}/runs/*/*/*.pem"))
