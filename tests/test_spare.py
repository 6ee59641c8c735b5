"""A process that was made ahead becomes what multiprocessing spawns first, and is like a new interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.plugins.compare import CORE
from envsync.runner import SyncedCluster
from tests.small import lock_of

_PROGRAM = """
import json, multiprocessing, os, sys, threading, time
from envsync.plugins.spare import keep

def look(number):
    time.sleep(number.get("sleep", 0))
    number["out"].put({
        "parent": os.getppid(), "copy": b"spawn_main" not in open("/proc/self/cmdline", "rb").read(),
        "argv": sys.argv, "main": sys.modules["__main__"].__name__,
        "name": multiprocessing.current_process().name,
        "variables": {name: os.environ.get(name) for name in ("OURS", "GONE", "PYTHONHASHSEED")},
        "hash": hash("text"), "input": os.readlink("/proc/self/fd/0"),
        "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                        if os.path.exists(f"/proc/self/fd/{n}")),
    })
    sys.exit(number.get("code", 0))

def spawned(**more):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=look, args=({"out": out, **more},), name="of ours")
    process.start()
    found = out.get(timeout=20)
    process.join(20)
    return {**found, "pid": process.pid, "code": process.exitcode}

if __name__ == "__main__":
    began = dict(os.environ)
    BEFORE
    kept = keep("envsync.plugins.fit", began)
    AFTER
    print(json.dumps({"kept": kept, "first": spawned(code=7), "second": spawned(), "own": os.getpid()}))
"""


def run(tmp_path: Path, before: str = "pass", after: str = "pass") -> dict[str, Any]:
    file = tmp_path / "program.py"
    file.write_text(_PROGRAM.replace("BEFORE", before).replace("AFTER", after))
    done = subprocess.run(
        [sys.executable, file],
        env={**os.environ, "GONE": "soon", "PYTHONHASHSEED": "7"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_it_becomes_the_first_that_is_spawned_and_is_like_the_second(tmp_path: Path) -> None:
    found = run(tmp_path, after="os.environ['OURS'] = 'set'; del os.environ['GONE']")
    first, second = found["first"], found["second"]
    assert found["kept"]
    assert (first.pop("copy"), second.pop("copy")) == (True, False)
    assert (first.pop("code"), second.pop("code")) == (7, 0)
    assert first.pop("pid") != second.pop("pid")
    assert first["parent"] == found["own"]
    assert first["variables"] == {"OURS": "set", "GONE": None, "PYTHONHASHSEED": "7"}
    kinds = [[file.split(":")[0] for file in one.pop("files")] for one in (first, second)]
    assert len(kinds[0]) <= len(kinds[1])  # no file of the parent's beyond what it passes on
    assert first == second


@pytest.mark.slow
def test_a_new_interpreter_where_a_copy_would_be_another_one(tmp_path: Path) -> None:
    for changed in ("os.environ['LD_LIBRARY_PATH'] = '/elsewhere'", "os.environ['OMP_NUM_THREADS'] = '3'"):
        found = run(tmp_path, after=changed)
        assert found["kept"]
        assert not found["first"]["copy"]
    threads = "threading.Thread(target=time.sleep, args=(2,), daemon=True).start()"
    found = run(tmp_path, before=threads)
    assert not found["kept"]
    assert not found["first"]["copy"]


def test_one_that_died_is_not_missed(tmp_path: Path) -> None:
    children = "open(f'/proc/self/task/{os.getpid()}/children').read().split()"
    found = run(tmp_path, after=f"[os.kill(int(child), 9) for child in {children}]; time.sleep(0.1)")
    assert found["kept"]
    assert not found["first"]["copy"]
    assert found["first"]["code"] == 7


def test_one_that_nobody_needs_ends_with_whom_it_is_of(tmp_path: Path) -> None:
    program = (
        "import os, time; from envsync.plugins.spare import keep; keep('json', dict(os.environ));"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        spare = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{spare}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{spare}").exists()


@pytest.mark.slow
async def test_a_worker_is_a_copy_where_there_is_numpy_and_its_blas_has_the_threads_of_any_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> tuple[bool, str | None, int]:
        from pathlib import Path

        def threads() -> set[str]:
            return {one.name for one in Path("/proc/self/task").iterdir()}

        before = threads()
        import numpy  # type: ignore[import-not-found]

        square = numpy.ones((500, 500))
        square @ square
        command = Path("/proc/self/cmdline").read_bytes()
        return b"spawn_main" not in command, os.environ.get("OMP_NUM_THREADS"), len(threads() - before)

    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    lock = lock_of(tmp_path, ["numpy", *(f"{name}=={version(name)}" for name in sorted(CORE))])
    keywords: dict[str, Any] = {"lock": lock, "threads_per_worker": 1, "dashboard_address": None}
    async with (
        SyncedCluster(n_workers=1, asynchronous=True, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert list((await client.run(look)).values()) == [(True, "1", 0)]
        await client.restart()  # a new interpreter, which is alike
        assert list((await client.run(look)).values()) == [(False, "1", 0)]
    keywords["env"] = {"OMP_NUM_THREADS": "2"}
    async with (
        SyncedCluster(n_workers=1, asynchronous=True, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        ((_, variable, _),) = (await client.run(look)).values()
        assert variable == "2"
