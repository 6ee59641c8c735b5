"""One maker at a time, whoever crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from envsync.agent.folderlock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from envsync.agent.folderlock import FolderLock
with FolderLock(Path(sys.argv[1]), lambda owner: None):
    print("held", flush=True)
    time.sleep(60)
"""

COUNT = """
import sys, time
from pathlib import Path
from envsync.agent.folderlock import FolderLock
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(5):
    with FolderLock(lock, lambda owner: None):
        value = int(counter.read_text())
        time.sleep(0.005)
        counter.write_text(str(value + 1))
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_four_processes_never_hold_it_together(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", COUNT, tmp_path / "lock", counter]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert counter.read_text() == "20"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter"]


def test_whoever_waits_is_told_for_whom(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    told: list[dict[str, str]] = []

    def wait() -> None:
        with FolderLock(tmp_path / "lock", told.append):
            pass

    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [owner["pid"] for owner in told] == [str(process.pid)]
    assert waiting.is_alive()
    process.kill()
    process.wait()
    waiting.join(60)
    assert not waiting.is_alive()  # the dead holder is on this machine: no need to wait until it is stale


def test_a_holder_elsewhere_is_dead_when_it_does_not_touch_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "owner").write_text('{"token": "x", "host": "elsewhere", "pid": "1", "boot": "another"}')
    began = time.monotonic()
    with FolderLock(lock, lambda owner: None, stale=1.0):
        assert time.monotonic() - began >= 1.0
    assert not lock.exists()


@pytest.mark.slow
def test_a_holder_elsewhere_that_touches_it_lives(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "owner").write_text('{"token": "x", "host": "elsewhere", "pid": "1", "boot": "another"}')
    entered = threading.Event()

    def wait() -> None:
        with FolderLock(lock, lambda owner: None, stale=2.0):
            entered.set()

    threading.Thread(target=wait, daemon=True).start()
    for _ in range(25):  # for longer than that
        os.utime(lock)
        time.sleep(0.1)
        assert not entered.is_set()
    assert entered.wait(60)


def test_it_beats_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envsync.agent.folderlock._BEAT", 0.1)
    lock = tmp_path / "lock"
    seen: set[Any] = set()
    with FolderLock(lock, lambda owner: None):
        deadline = time.monotonic() + 60
        while len(seen) < 3:
            assert time.monotonic() < deadline
            seen.add(lock.stat().st_mtime_ns)
            time.sleep(0.02)
