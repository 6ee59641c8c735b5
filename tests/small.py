"""A small environment that Dask runs in, and its lock: the versions are those of the tests' own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envsync.lock import Lock
from envsync.plugins.compare import CORE, ERROR, FATAL, worst
from envsync.uv import find_uv

if TYPE_CHECKING:
    from envsync.runner.verification import Verification


@pytest.fixture(scope="session")
def small_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the path of a lock of Dask and nothing else; the cache is a new one for as long as it is used."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        yield lock_of(folder, [f"{name}=={version(name)}" for name in sorted(CORE)])


@pytest.fixture
def keywords(small_lock: Path) -> dict[str, Any]:
    """What a small cluster is started with; many files have keywords of their own."""
    return {"lock": small_lock, "threads_per_worker": 1, "asynchronous": True}


def lock_of(folder: Path, requirements: list[str]) -> Path:
    """Install requirements into a new environment, lock it, and return the lock's path."""
    prefix = folder / "environment"
    uv = str(find_uv())
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(prefix)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", str(prefix), *requirements], check=True)
    file = folder / "pylock.small.toml"
    code = "import sys; from envsync.cli import main; sys.exit(main())"
    # from an empty folder, so that nothing beside it counts as local code
    (folder / "empty").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, "snapshot", "--python", str(prefix / "bin/python"), "-o", str(file)],
        check=True,
        cwd=folder / "empty",
        env={**os.environ, "PYTHONPATH": ""},
    )
    Lock.read(file)
    return file


def processes_in(cache: Path) -> dict[int, str]:
    """Return the processes that were started from a cache folder: agents, schedulers, nannies, workers."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            folder = str((entry / "cwd").readlink())
        except OSError:
            continue
        if command and (str(cache) in command or folder.startswith(str(cache))):
            found[int(entry.name)] = command
    return found


def wait_until_none(cache: Path, seconds: float) -> None:
    """Wait until nothing that was started from a cache folder is left."""
    deadline = time.monotonic() + seconds
    while (left := processes_in(cache)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"still there after {seconds} s: {left}"


def equal_but_for_the_client(verification: Verification) -> bool:
    """Tell whether the cluster is as its lock says, whatever else the tests' own environment has."""
    return all(
        not one.trouble and worst(one.differences) not in (FATAL, ERROR)
        for one in verification.processes
        if one.kind != "client"
    )
