"""Starting a cluster on four SSH hosts, environment in place: SyncedCluster, and distributed's SSHCluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import folder, prefix
from benchmarks.timing import Action, Row, Table, compare

HOSTS = 4
TITLE = f"Starting a cluster on {HOSTS} SSH hosts, one worker each, environment in place"
TARGET = "at most 1.3 of SSHCluster, with TLS and verification"
CLIENT = Path(__file__).with_name("client.py")
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
            [prefix() / "bin" / "python", CLIENT, kind, *hosts],
            env={
                **os.environ,
                "HOME": str(home),
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
