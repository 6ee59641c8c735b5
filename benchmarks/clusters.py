"""Starting a cluster on four SSH hosts, environment in place: SyncedCluster, and distributed's SSHCluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import ROOT, folder, prefix
from benchmarks.timing import Action, Row, Table, compare

HOSTS = 4
TITLE = f"Starting a cluster on {HOSTS} SSH hosts, one worker each, environment in place"
TARGET = "at most 1.3 of SSHCluster, with TLS and verification"
OURS, THEIRS = "SyncedCluster(SSH(...)), TLS and verification", "SSHCluster, plain TCP"


def start() -> Table:
    """Time both, in turns, in processes of their own."""
    try:
        from tests.lab.install import missing, obstacle
        from tests.lab.machines import HERE, Lab
    except ImportError as error:
        return _none(str(error))
    why = obstacle() or ("the lab lacks " + " ".join(missing()) if missing() else "")
    if why:
        return _none(why)
    lab = Lab()
    try:
        names = [lab.host(HERE).name for _ in range(HOSTS)]
        rows = compare({OURS: _action("synced", names, lab.home), THEIRS: _action("ssh", names, lab.home)})
    finally:
        lab.close()
    note = (
        "From the constructor's call until all workers are there. Both clients have imported all they need."
    )
    return Table(TITLE, TARGET, rows, [note])


def _none(why: str) -> Table:
    return Table(TITLE, TARGET, [Row(OURS, trouble=why), Row(THEIRS, trouble=why)])


def _action(kind: str, hosts: Sequence[str], home: Path) -> Action:
    def act() -> float:
        done = subprocess.run(
            [prefix() / "bin" / "python", "-m", "benchmarks.clusters", kind, *hosts],
            env={
                **os.environ,
                "HOME": str(home),
                "PYTHONPATH": str(ROOT),
                "PYTHONSAFEPATH": "1",
                "ENVSYNC_CACHE": str(folder() / "cache"),
            },
            cwd=folder(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode != 0:
            raise RuntimeError(" / ".join(done.stderr.strip().splitlines()[-3:]))
        return float(done.stdout.split()[-1])

    return act


def main(kind: str, hosts: Sequence[str]) -> None:
    """Start a cluster and print how long it took."""
    if kind == "synced":
        from envsync import SyncedCluster
        from envsync.runner import SSH

        began = time.perf_counter()
        cluster = SyncedCluster(SSH(hosts), n_workers=len(hosts), threads_per_worker=1)
    else:
        from distributed import SSHCluster

        began = time.perf_counter()
        cluster = SSHCluster([hosts[0], *hosts], worker_options={"nthreads": 1}, remote_python=sys.executable)
    with cluster:
        cluster.get_client().wait_for_workers(len(hosts), timeout=120)
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
