"""A user of a cluster that somebody else started: does a thing several times and prints how long that took.

Runs in an environment of its own, in a folder whose code is the user's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Client

from envsync import SyncEnvironment

Times = dict[str, list[float]]


def _value(module: str) -> Callable[[], Any]:
    return lambda: __import__(module).VALUE


def _write(name: str, value: int) -> str:
    Path(name).write_text(f"VALUE = {value}\n")
    return name


def _timed(client: Client, module: str, value: int, act: Callable[[], object]) -> float:
    """Return how long it takes until every worker runs the new code."""
    began = time.perf_counter()
    act()
    found = set(client.run(_value(module)).values())
    seconds = time.perf_counter() - began
    if found != {value}:
        raise RuntimeError(f"{module} is {found} there, not {value}")
    return seconds


def edit(client: Client, rounds: int) -> Times:
    """One edited file, no restart: ours and Client.upload_file."""
    _write("mine.py", 0)
    plugin = SyncEnvironment(restart="never", on_mismatch="warn")
    client.register_plugin(plugin)
    times: Times = {"ours": [], "upload_file": []}
    for value in range(1, rounds + 2):
        path = _write("mine.py", value)
        ours = _timed(client, "mine", value, plugin.sync)
        path = _write("theirs.py", value)
        theirs = _timed(client, "theirs", value, lambda path=path: client.upload_file(path))  # type: ignore[misc]
        os.unlink(path)
        if value > 1:
            times["ours"].append(ours)
            times["upload_file"].append(theirs)
    plugin.unregister()
    os.unlink("mine.py")
    return times


def restart(client: Client, rounds: int) -> Times:
    """One edited file, with a restart: ours, and Client.restart followed by Client.upload_file."""
    _write("mine.py", 0)
    plugin = SyncEnvironment(restart="always")
    client.register_plugin(plugin)
    times: Times = {"ours": [], "restart": []}
    for value in range(1, rounds + 1):
        _write("mine.py", value)
        times["ours"].append(_timed(client, "mine", value, plugin.sync))
    plugin.unregister()
    for value in range(1, rounds + 1):
        path = _write("theirs.py", value)

        def act(path: str = path) -> None:
            client.restart()
            client.upload_file(path)

        times["restart"].append(_timed(client, "theirs", value, act))
    os.unlink("mine.py")
    os.unlink("theirs.py")
    return times


def nothing(client: Client, rounds: int) -> Times:
    """Register where all is equal already; and what Dask itself compares."""
    times: Times = {"ours": [], "get_versions": []}
    for turn in range(rounds + 1):
        plugin = SyncEnvironment()
        began = time.perf_counter()
        found = client.register_plugin(plugin)
        ours = time.perf_counter() - began
        if not found.ok or found.differences:
            raise RuntimeError(str(found))
        plugin.unregister()
        began = time.perf_counter()
        client.get_versions(check=True)
        theirs = time.perf_counter() - began
        if turn:
            times["ours"].append(ours)
            times["get_versions"].append(theirs)
    return times


def wheels(client: Client, _: int) -> Times:
    """Wheels that are not there; once."""
    plugin = SyncEnvironment()
    began = time.perf_counter()
    client.register_plugin(plugin)
    seconds = time.perf_counter() - began
    sizes = set(client.run(lambda: __import__("os").path.getsize(__import__("heavy0").__file__)).values())
    assert len(sizes) == 1
    plugin.unregister()
    return {"ours": [seconds]}


def file(client: Client, _: int) -> Times:
    """Send one large file to every worker by Client.upload_file; once."""
    began = time.perf_counter()
    client.upload_file(os.environ["BENCH_FILE"], load=False)
    return {"upload_file": [time.perf_counter() - began]}


def main(what: str, address: str, workers: int, rounds: int) -> None:
    """Do one of the things above and print its times."""
    sys.path.insert(0, str(Path.cwd()))  # as in a notebook, where the folder's code is one's own
    with Client(address) as client:
        client.wait_for_workers(workers, timeout=120)
        print(json.dumps(globals()[what](client, rounds)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
