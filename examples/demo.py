"""The main job, on this machine alone, from looking at the environment to nothing left behind.

`make demo` runs it. It needs nothing but what `make` installs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from envsync import SyncedCluster, capture
from envsync.indexes import read_settings
from envsync.resolve import resolve
from envsync.store import default_store
from envsync.trees import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIMES = 17_984  # there are so many below 200,000
CHANGED = "toolz"


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "))


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print a heading, and how long it took."""
    print(f"\n{title}")
    began = time.monotonic()
    yield
    print(f"  ({time.monotonic() - began:.1f} s)")


def primes(start: int, end: int) -> int:
    """Count the primes in a range."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), end))


def prefix() -> str:
    """Return the environment that a task runs in."""
    return sys.prefix


def another_version(folder: Path) -> None:
    """Put a copy of a package that says it is of another version into a folder."""
    found = distribution(CHANGED)
    package = Path(str(found.locate_file(CHANGED)))
    shutil.copytree(package, folder / CHANGED)
    records = folder / f"{CHANGED}-0.1.dist-info"
    records.mkdir(parents=True)
    (records / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {CHANGED}\nVersion: 0.1\n")
    (records / "RECORD").write_text("")


def add_worker_by_hand(address: str, folder: Path) -> subprocess.Popen[str]:
    """Start a worker as somebody would who knows nothing of envsync."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address]
    options = ["--name", "by-hand", "--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    place = ["--local-directory", str(folder), "--death-timeout", "20"]
    return subprocess.Popen(
        [*command, *options, *place],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def others() -> set[int]:
    """Return the processes that this one has started, and those that they have."""
    found = {child.pid for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and process.environ().get("ENVSYNC_DEMO") == os.environ["ENVSYNC_DEMO"]
            ):
                found.add(process.pid)
    return found


def main() -> None:
    os.environ["ENVSYNC_DEMO"] = uuid.uuid4().hex  # what is started inherits it
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="envsync-demo-") as name:
        run(Path(name))
    left = others()
    print(f"\nProcesses left: {len(left)}. All of it took {time.monotonic() - began:.1f} s.")
    assert not left, left


def run(folder: Path) -> None:
    with step("1. What is installed here?"):
        snapshot = capture()
        machine = snapshot.target.describe().partition(", ")[2]
        say(
            f"Python {snapshot.interpreter.version} in {snapshot.interpreter.prefix}, "
            f"with {len(snapshot.distributions)} distributions, on {machine}."
        )
        for finding in snapshot.findings:
            say(f"{finding.severity}: {finding.subject}: {finding.text}")

    with step("2. Lock it: exact wheels with their hashes, and local code by its content."):
        store = default_store()
        manifests = [pack(tree, store) for tree in snapshot.source_trees]
        lock = resolve(snapshot, snapshot.target, store=store, settings=read_settings(), manifests=manifests)
        file = lock.write(folder / "pylock.demo.toml", store)
        local = [artifact for artifact in lock.artifacts() if artifact.path is not None]
        say(
            f"{len(lock.artifacts())} packages are locked, {len(local)} of them as wheels beside the lock. "
            f"Local code goes along file by file: {sum(len(tree.files) for tree in manifests)} files in "
            f"{len(manifests)} source trees. The lock is a PEP 751 file of {file.stat().st_size} bytes: "
            "uv and pip install it without envsync."
        )

    with contextlib.ExitStack() as stack:
        with step("3. Make that environment exist a second time, and start a cluster in it."):
            cluster = stack.enter_context(
                SyncedCluster(lock=lock, n_workers=2, threads_per_worker=1, dashboard_address=None)
            )
            client = stack.enter_context(cluster.get_client())
            client.wait_for_workers(2, timeout=60)
            there = client.submit(prefix, pure=False).result()
            say(f"The scheduler and two workers run in {there}. This script runs in {sys.prefix}.")
            say(f"It has started {len(others())} processes.")
            assert there != sys.prefix
            assert len(others()) > 3

        with step("4. Is it the same? Every process is compared with the lock."):
            print(textwrap.indent(str(cluster.verify()), "  "))

        with step("5. A real computation: how many primes are there below 200,000?"):
            pieces = [client.submit(primes, start, start + 5_000) for start in range(0, 200_000, 5_000)]
            count = client.submit(sum, pieces).result()
            say(
                f"{count}, counted in {len(pieces)} pieces. That is right."
                if count == PRIMES
                else f"{count}!"
            )
            assert count == PRIMES

        with step(f"6. Somebody adds a worker by hand, whose {CHANGED} is another one."):
            another_version(folder / "elsewhere")
            worker = add_worker_by_hand(cluster.scheduler_address, folder / "elsewhere")
            stack.callback(end, worker)
            try:
                said = worker.communicate(timeout=30)[1]
            except subprocess.TimeoutExpired:
                said = ""
            names = [str(info["name"]) for info in client.scheduler_info()["workers"].values()]
            assert "by-hand" not in names
            say(f"It was refused before it took a task; the cluster has its {len(names)} workers still.")
            for line in said.splitlines():
                if "was refused" in line:
                    say(f"The worker's log says: {line.partition('ERROR - ')[2] or line}")
                    break
            else:
                raise AssertionError(f"it was not told why:\n{said}")
            total = client.submit(sum, client.map(pow, range(10), [2] * 10)).result()
            assert total == 285
            say(f"And it goes on computing: the sum of the first squares is {total}.")


if __name__ == "__main__":
    main()
