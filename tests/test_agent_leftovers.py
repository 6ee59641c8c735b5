"""What crashed agents leave is found and removed; what living ones use is not touched."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envsync.agent import serve
from envsync.agent.archive import build as build_agent
from envsync.agent.layout import Cache, Problem
from envsync.agent.leftovers import sweep, touch_runs
from envsync.agent.owner import lives, myself, write_owner
from envsync.agent.supervise import spawn
from envsync.errors import AgentError
from envsync.indexes import IndexSettings
from envsync.runner.hosts.local import Local
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply

DAY = 86400.0
ELSEWHERE = {"boot": "another", "namespace": "pid:[1]", "pid": "1", "started": "1", "host": "elsewhere"}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def dead() -> dict[str, str]:
    """Describe a process of this machine that is gone."""
    code = "import json; from envsync.agent.owner import myself; print(json.dumps(myself()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    described: dict[str, str] = json.loads(done.stdout)
    return described


def run_folder(cache: Cache, name: str, owner: dict[str, str] | None) -> Path:
    folder = cache.runs / "cluster" / name
    folder.mkdir(parents=True)
    for file in ("config.json", "key.pem", "log", "results.csv"):
        (folder / file).write_text(file)
    if owner is not None:
        (folder / "owner").write_text(json.dumps({**owner, "files": ["config.json", "key.pem"]}))
    return folder


def build(cache: Cache, digit: str, owner: dict[str, str] | None) -> Path:
    digest = digit * 64
    made = cache.envs / f".building-{digest}-0123456789ab"
    made.mkdir(parents=True)
    if owner is not None:
        lock = cache.envs / f".lock-{digest}"
        lock.mkdir()
        (lock / "owner").write_text(json.dumps({**owner, "token": "x"}))
    return made


def age(path: Path, seconds: float) -> None:
    for each in (*path.iterdir(), path) if path.is_dir() else (path,):
        os.utime(each, (time.time() - seconds,) * 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_dead_agents_processes_were_given_goes_at_once(cache: Cache, dead: dict[str, str]) -> None:
    assert lives(dead) is False
    folder = run_folder(cache, "w", dead)
    sweep(cache)
    assert names(folder) == ["log", "results.csv"]
    age(folder, 13 * DAY)
    sweep(cache)
    assert names(folder) == ["log", "results.csv"]
    age(folder, 15 * DAY)
    sweep(cache)
    assert list(cache.runs.iterdir()) == []


def test_what_was_to_be_run_after_a_dead_agents_process_is_run(
    cache: Cache, dead: dict[str, str], tmp_path: Path
) -> None:
    """So ends a container that outlived its agent: only on the machine that it runs on."""
    for name, owner in (("dead", dead), ("living", myself()), ("elsewhere", ELSEWHERE)):
        folder = run_folder(cache, name, None)
        after = ["touch", str(tmp_path / f"after-{name}")]
        (folder / "owner").write_text(json.dumps({**owner, "files": [], "after": after}))
        age(folder, 2 * DAY)
    sweep(cache)
    sweep(cache)
    assert [path.name for path in tmp_path.glob("after-*")] == ["after-dead"]


def test_a_living_agents_are_not_touched_however_old(cache: Cache) -> None:
    folder = run_folder(cache, "w", myself())
    age(folder, 100 * DAY)
    assert sweep(cache) == []
    assert len(names(folder)) == 5


def test_one_elsewhere_lives_as_long_as_it_touches_its_folders(cache: Cache) -> None:
    folder = run_folder(cache, "w", ELSEWHERE)
    age(folder, 100 * DAY)
    touch_runs(cache, ["cluster/w", "cluster/gone"])
    assert sweep(cache) == []
    age(folder / "owner", 2 * DAY)
    sweep(cache)
    assert names(folder) == ["log", "results.csv"]


def test_a_number_that_another_process_has_now_is_no_sign_of_life(cache: Cache) -> None:
    assert lives(myself()) is True
    assert lives({**myself(), "started": "1"}) is False
    assert lives({**ELSEWHERE, "pid": "999999999"}) is None
    assert lives({}) is None
    assert lives({**myself(), "pid": "no number"}) is False


def test_names_in_an_owner_file_lead_nowhere_else(cache: Cache, dead: dict[str, str], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    folder = run_folder(cache, "w", None)
    (folder / "owner").write_text(json.dumps({**dead, "files": ["../../../precious", str(precious)]}))
    sweep(cache)
    assert precious.read_text() == "kept"


def test_builds_that_nobody_goes_on_with(cache: Cache, dead: dict[str, str]) -> None:
    left = [build(cache, "a", dead), build(cache, "b", None)]
    kept = [build(cache, "c", myself()), build(cache, "d", ELSEWHERE)]
    whole = cache.environment("e" * 64)
    whole.mkdir()
    sweep(cache)
    assert [path.exists() for path in (*left, *kept, whole)] == [False, False, True, True, True]
    assert [name[:8] for name in names(cache.envs) if "lock" in name] == [".lock-cc", ".lock-dd"]


def test_unfinished_files_go_when_they_are_old(cache: Cache) -> None:
    young, old = cache.blobs / ".unfinished-1", cache.bin / ".uv-2"
    for path in (young, old):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    age(old, DAY)
    assert sweep(cache) == ["bin/.uv-2"]
    assert young.exists()


@pytest.mark.slow
async def test_the_next_agent_removes_the_keys_of_one_that_was_killed(tmp_path: Path) -> None:
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings())
    files = {"key.pem": b"secret"}
    async with await Session.open(Local(), cache=str(tmp_path / "cache"), supply=supply) as living:
        kept = await living.spawn("w", ["sleep", "60"], cluster="living", files=files)
        killed = await Session.open(Local(), cache=str(tmp_path / "cache"), supply=supply)
        lost = await killed.spawn("w", ["sleep", "60"], cluster="lost", files=files)
        os.kill(killed.facts["pid"], signal.SIGKILL)
        with pytest.raises(AgentError):
            await lost.wait()
        await killed.close()
        assert Path(lost.folder, "key.pem").exists()
        async with await Session.open(Local(), cache=str(tmp_path / "cache"), supply=supply):
            until = time.monotonic() + 60
            while Path(lost.folder, "key.pem").exists() and time.monotonic() < until:
                await asyncio.sleep(0.05)
        assert names(Path(lost.folder)) == ["log"]
        assert names(Path(kept.folder)) == ["key.pem", "log", "owner"]
        with pytest.raises(AgentError, match="no-such-program"):
            await living.spawn("x", ["no-such-program"], cluster="living", files=files)
        assert names(Path(living.run_folder("living", "x"))) == ["log"]
        with pytest.raises(AgentError, match="owner or log"):
            await living.spawn("y", ["true"], cluster="living", files={"log": b""})


def test_who_starts_from_the_unpacked_agent_finds_it_whole_whoever_else_unpacks_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = cache.bin / "agent-1.pyz"
    cache.bin.mkdir(parents=True)
    archive.write_bytes(build_agent()[0])
    monkeypatch.setattr(sys, "argv", [str(archive)])
    extract, folder = zipfile.ZipFile.extractall, archive.with_suffix("")
    inodes: list[int] = []

    def overtaken(self: zipfile.ZipFile, *rest: Any) -> None:
        extract(self, *rest)
        if not inodes:
            inodes.append(0)
            serve._unpack_agent(cache)  # another agent, from its beginning to its end
            inodes.append(folder.stat().st_ino)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", overtaken)
    serve._unpack_agent(cache)
    assert folder.stat().st_ino == inodes[-1]
    (folder / "envsync_agent/agent/serve.py").unlink()  # as by somebody who cleans up old files
    serve._unpack_agent(cache)
    assert folder.stat().st_ino == inodes[-1]
    with zipfile.ZipFile(archive) as packed:
        assert all((folder / name).read_bytes() == packed.read(name) for name in packed.namelist())
    assert names(cache.bin) == ["agent-1", "agent-1.pyz"]


@pytest.mark.parametrize("said", [True, False])
def test_a_client_that_has_spoken_while_the_agent_did_not_listen_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    """As where a disk hung for longer than a client may be silent."""
    server: Any = object.__new__(serve._Server)
    times, taken = iter([0.0]), list[bytes]()

    def take(line: bytes) -> None:
        taken.append(line)
        server.leaving = True

    server.__dict__.update(
        {"grace": 10.0, "wake": 99, "leaving": False, "lease": None, "adopting": False, "_take": take},
        out=SimpleNamespace(broken=False),
    )
    ready = [0] if said else []
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=lambda: next(times, 100.0)))
    monkeypatch.setattr(serve, "select", SimpleNamespace(select=lambda *_: (ready, [], [])))
    monkeypatch.setattr(serve, "os", SimpleNamespace(read=lambda *_: b'{"do": "ping"}\n'))
    server._listen()
    assert taken == [b'{"do": "ping"}'] * said


def test_write_owner_is_this_process(tmp_path: Path) -> None:
    write_owner(tmp_path, token="t")
    assert json.loads((tmp_path / "owner").read_text()) == {**myself(), "token": "t"}


def test_what_is_handed_to_a_process_as_it_ends_is_not_left(cache: Cache) -> None:
    ended, go_on = threading.Event(), threading.Event()

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "exit":
            ended.set()
            go_on.wait(60)  # who reads what it says is slow

    request: dict[str, Any] = {
        "cluster": "ada-1",
        "name": "worker_0",
        "argv": ["cat"],
        "env": {},
        "files": {},
        "cwd": None,
    }
    child = spawn(cache, emit, request)
    os.kill(child.pid, signal.SIGKILL)
    assert ended.wait(60)
    with pytest.raises(Problem):
        child.hand({"key.pem": base64.b64encode(b"private").decode()}, "config.json")
    go_on.set()
    assert child.ended.wait(60)
    until = time.monotonic() + 60
    while [file.name for file in (cache.runs / "ada-1/worker_0").iterdir()] != ["log"]:
        assert time.monotonic() < until
        time.sleep(0.01)
