"""Making an environment of a lock: envsync's agent, and bare uv, from the same wheels in a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.environment import distributions, folder, prefix, settings, uv
from benchmarks.timing import Action, Table, command, compare

_ROUNDS = 3


def _place() -> Path:
    return folder() / "realise"


def _environment() -> dict[str, str]:
    return {"ENVSYNC_CACHE": str(_place() / "cache"), "UV_CACHE_DIR": str(_place() / "uv")}


def prepare() -> Path:
    """Lock the environment and have all of its wheels in the store; return the lock for bare uv."""
    from envsync.collect import collect
    from envsync.indexes import read_settings
    from envsync.lock import Lock
    from envsync.store import default_store

    shutil.rmtree(_place(), ignore_errors=True)
    _place().mkdir(parents=True)
    os.environ.update(_environment())
    ours = _place() / "pylock.ours.toml"
    subprocess.run(
        [prefix() / "bin" / "envsync", "--quiet", "snapshot", "-o", ours],
        cwd=_place(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lock, store = Lock.read(ours), default_store()
    asyncio.run(collect(lock, store, read_settings()))
    wheels = _place() / "wheels"
    wheels.mkdir()
    text = ['lock-version = "1.0"', 'created-by = "benchmarks"']
    for artifact in lock.artifacts():
        path = store.path(artifact.sha256)
        assert path is not None
        os.link(path, wheels / artifact.filename)
        text += ["[[packages]]", f'name = "{artifact.name}"', f'version = "{artifact.version}"']
        place, digest = f"wheels/{artifact.filename}", artifact.sha256
        text.append(f'wheels = [{{ path = "{place}", hashes = {{ sha256 = "{digest}" }} }}]')
    bare = _place() / "pylock.bare.toml"
    bare.write_text("\n".join(text) + "\n")
    return bare


def _forget(uv_cache: bool) -> None:
    shutil.rmtree(_place() / "cache" / "envs", ignore_errors=True)
    shutil.rmtree(_place() / "bare", ignore_errors=True)
    if uv_cache:
        for path in (_place() / "uv", _place() / "cache" / "uv"):  # bare uv's, and envsync's own
            shutil.rmtree(path, ignore_errors=True)


def _session(act: Callable[[Any, Any], Coroutine[Any, Any, float]]) -> float:
    """Open a session on this machine, and time what is done with it."""
    from envsync.hooks import Hooks
    from envsync.indexes import read_settings
    from envsync.lock import Lock
    from envsync.runner.hosts.local import Local
    from envsync.runner.session import Session
    from envsync.store import default_store
    from envsync.supply import Supply

    lock = Lock.read(_place() / "pylock.ours.toml")

    async def go() -> float:
        async with Local() as host:
            supply = Supply(default_store(), read_settings())
            began = time.perf_counter()
            async with await Session.open(host, supply=supply, hooks=Hooks()) as session:
                opened = time.perf_counter() - began
                return await act(session, lock) + opened
        raise AssertionError

    return asyncio.run(go())


async def _realise(session: Any, lock: Any) -> float:
    """Make or find the environment, and compare it with the lock as `prepare` does."""
    from envsync.plugins.compare import compare as compare_reports

    began = time.perf_counter()
    environment = await session.realise(lock)
    differences = compare_reports(lock.report(), environment.report)
    seconds = time.perf_counter() - began
    assert not [one for one in differences if one.severity in ("fatal", "error")], differences[:3]
    return seconds


def _ours(cold: bool) -> Action:
    def act() -> float:
        _forget(cold)
        return _session(_realise)

    return act


def _bare(bare: Path, cold: bool) -> Action:
    python = _place() / "bare" / "bin" / "python"
    environment = {**settings(), **_environment(), "UV_PREVIEW_FEATURES": "pylock"}
    make = command(
        [uv(), "venv", "--quiet", "--python", sys.executable, _place() / "bare"], environment=environment
    )
    sync = command(
        [uv(), "pip", "sync", "--quiet", "--python", python, bare], environment=environment, cwd=_place()
    )

    def act() -> float:
        _forget(cold)
        return make() + sync()

    return act


def realise() -> list[Table]:
    """First realisation, cold and warm; second start."""
    bare = prepare()
    tables = []
    for cold in (True, False):
        rows = compare(
            {"envsync": _ours(cold), "`uv venv`, `uv pip sync`": _bare(bare, cold)},
            rounds=_ROUNDS,
            warm_ups=0 if cold else 1,
        )
        state = "nothing in uv's cache" if cold else "uv's cache warm"
        tables.append(
            Table(
                f"First realisation of {distributions()} packages, wheels at hand, {state}",
                "at most 1.15 of bare uv",
                rows,
                [
                    "envsync's time has the start of the agent, its probe and the verification in it.",
                    f"Medians of {_ROUNDS}, in turns: this writes {distributions()} packages each time.",
                ],
            )
        )
    ours = _ours(False)
    ours()
    rows = compare({"probe, check and verification": lambda: _session(_realise)})
    tables.append(Table("Second start on a host", "at most 0.3 s", rows))
    return tables
