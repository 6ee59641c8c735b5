"""An image of the environment, made without an engine: all of it, after one edit, and unchanged."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import distributions, folder
from benchmarks.realising import prepare
from benchmarks.timing import Action, Row, Table, compare

_ROUNDS = 3
_MEMORY = 300  # MB, the most that it may take

_WORK = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from envsync.images.base import Base
from envsync.images.build import build
from envsync.images.layout import Layout
from envsync.images.oci import Platform
from envsync.images.plan import plan
from envsync.lock import Lock
from envsync.store import default_store
from envsync.snapshot import SourceTree
from envsync.trees import pack
place, machine = Path(sys.argv[1]), sys.argv[2]
store, lock = default_store(), Lock.read(place / "pylock.ours.toml")
local = str(place / "local")
about = {"members": (("", local),), "position": "front", "kind": "path", "distribution": None}
tree = pack(SourceTree(name="local", root=local, **about), store)
base = Base.open(Layout(place / "base"), "base", Platform.of("linux", machine))
built = build(plan(lock, [tree], base), store, Layout(place / "image"), tags=["latest"])
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    "made": len(built.made),
    "sent": built.sent,
    "size": sum(layer.size for layer in built.layers),
}))
"""


def _place() -> Path:
    return folder() / "realise"


def _run() -> dict[str, Any]:
    """Make the image in a process of its own, the start of Python included."""
    done = subprocess.run(
        [sys.executable, "-c", _WORK, _place(), platform.machine()],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _prepare() -> None:
    """Have the wheels in the store, a base of this machine's files, and some local code."""
    from tests.images import base_of_here

    prepare()
    for name in ("base", "local", "image"):
        shutil.rmtree(_place() / name, ignore_errors=True)
    base_of_here(_place() / "base")
    for number in range(50):
        file = _place() / "local" / f"package{number % 5}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"NUMBER = {number}\n" * 200)


def image() -> list[Table]:
    """Return the tables: times, and what they took."""
    _prepare()
    told: dict[str, list[dict[str, Any]]] = {}

    def act(name: str, before: Any) -> Action:
        def once() -> float:
            before()
            found = _run()
            told.setdefault(name, []).append(found)
            return float(found["seconds"])

        return once

    def forget() -> None:
        shutil.rmtree(_place() / "image", ignore_errors=True)
        shutil.rmtree(_place() / "cache" / "memory" / "layers", ignore_errors=True)

    def edit() -> None:
        file = _place() / "local" / "package0" / "module0.py"
        file.write_text(file.read_text() + f"# {os.urandom(8).hex()}\n")

    actions = {
        "all of it": act("all of it", forget),
        "one local file edited": act("one local file edited", edit),
        "unchanged": act("unchanged", lambda: None),
    }
    rows: list[Row] = compare(actions, rounds=_ROUNDS, warm_ups=0)
    whole = told["all of it"][-1]
    edited = told["one local file edited"][-1]
    speed = whole["size"] / rows[0].median / 1e6
    notes = [
        f"{whole['made']} layers of {whole['size'] / 1e6:.0f} MB, {speed:.0f} MB/s;"
        f" {max(one['memory'] for one in told['all of it']):.0f} MB of memory at most (to reach: {_MEMORY}).",
        f"After the edit {edited['made']} layer of {edited['sent'] / 1e3:.0f} kB is made.",
        "The start of Python and the imports are in the times, the capture and the lock are not.",
    ]
    title = f"An image of {distributions()} packages into a folder, wheels at hand"
    return [Table(title, "edited at most 1 s and 1 MB, unchanged at most 0.3 s", rows, notes)]
