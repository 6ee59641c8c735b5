"""A lock that was made before is taken again, exactly as long as it is still right."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.cli.snapshot import make_lock
from envsync.collect import collect
from envsync.errors import StoreError, UnfitHostError, UnsupportedError
from envsync.hooks import Hooks
from envsync.indexes import Index, IndexSettings, read_settings
from envsync.lock import Lock
from envsync.plan import make_plan
from envsync.runner.hosts import Local
from envsync.runner.locking import demand_fit, lock_for, target_of
from envsync.runner.session import Session
from envsync.snapshot import Snapshot, capture
from envsync.store import FolderStore, default_store
from envsync.supply import Supply
from envsync.target import Target
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel
from tests.test_provision import Told

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hosts are Linux machines")


def of_pypy() -> Snapshot:
    here = capture()
    return replace(
        here,
        interpreter=replace(here.interpreter, implementation="pypy", soabi="pypy311-pp73"),
        target=replace(here.target, implementation="pypy"),
        conda=(),
    )


async def test_the_targets_python_is_of_the_clients_kind(tmp_path: Path) -> None:
    snapshot = of_pypy()
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings(), capture())
    async with await Session.open(Local(), cache=str(tmp_path / "there"), supply=supply) as session:
        assert target_of(session, snapshot).implementation == "pypy"
        assert target_of(session, replace(snapshot, target=Target(python="3.1"))).implementation == "pypy"
        demand_fit([session], snapshot.target)
        with pytest.raises(UnfitHostError):
            demand_fit([session], replace(snapshot.target, machine="mips"))


def test_only_cpython_is_locked() -> None:
    snapshot = of_pypy()
    with pytest.raises(UnsupportedError, match="of pypy") as error:
        make_plan(snapshot)
    assert error.value.where == snapshot.interpreter.prefix


class Bench:
    """An environment with a wheel that came from no index, and an index for the rest."""

    def __init__(self, folder: Path, index: IndexServer) -> None:
        self.index = index
        self.folder = folder
        self.prefix = folder / "venv"
        self.settings = IndexSettings(indexes=(Index(url=index.url, default=True),))
        self.store = FolderStore(folder / "store")
        uv = find_uv()
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, self.prefix], check=True)
        command = [uv, "pip", "install", "-q", "--python", str(self.prefix / "bin/python")]
        own = write_wheel(folder / "own", "gamma", "1.0")
        subprocess.run([*command, "--default-index", index.url, str(own), "alpha"], check=True)
        (self.site,) = self.prefix.glob("lib/python*/site-packages")
        self.age()

    def age(self) -> None:
        """Let an hour pass."""
        for path in self.site.rglob("*"):
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)

    def lock(self) -> tuple[Lock, Told]:
        told = Told()
        snapshot = capture(str(self.prefix / "bin/python"))
        lock = lock_for(snapshot, snapshot.target, store=self.store, settings=self.settings, hooks=told)
        return lock, told


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_wheel(tmp_path / "wheels", "alpha", "1.0")
    with IndexServer(tmp_path / "wheels") as index:
        yield Bench(tmp_path, index)


def wheel(lock: Lock, name: str) -> str:
    (found,) = (one.sha256 for one in lock.artifacts() if one.name == name)
    return found


def test_an_edited_file_ships_as_it_is_now_and_that_is_said_each_time(bench: Bench) -> None:
    clean, told = bench.lock()
    assert (len(told.steps), told.warnings) == (1, [])
    again, told = bench.lock()
    assert (again, told.steps, told.warnings) == (clean, [], [])
    (bench.site / "gamma/__init__.py").write_text("EDITED = 1\n")
    bench.age()
    edited, told = bench.lock()
    assert wheel(edited, "gamma") != wheel(clean, "gamma")
    assert wheel(edited, "alpha") == wheel(clean, "alpha")
    (warning,) = told.warnings
    assert "gamma 1.0 was edited" in warning
    again, told = bench.lock()
    assert (again, told.steps, told.warnings) == (edited, [], [warning])


def test_an_edit_of_just_now_is_not_trusted_to_its_time(bench: Bench) -> None:
    file = bench.site / "gamma/__init__.py"
    found = set()
    for text in ("A = 1\n", "A = 2\n"):  # of one size, and, as far as a coarse clock tells, of one time
        file.write_text(text)
        os.utime(file, (int(time.time()),) * 2)
        lock, told = bench.lock()
        assert len(told.steps) == 1
        found.add(wheel(lock, "gamma"))
    assert len(found) == 2


def test_what_was_said_is_said_again_as_it_was(bench: Bench) -> None:
    (bench.site / "old-1.0.egg-info").write_text("Metadata-Version: 1.0\nName: old\nVersion: 1.0\n")
    bench.index.folder.joinpath("alpha-1.0-py3-none-any.whl").unlink()
    _, first = bench.lock()
    assert any("old 1.0 is left out" in text for text in first.warnings)
    assert any("its installed files are used" in text for text in first.notes)
    _, second = bench.lock()
    assert second.steps == []
    assert (second.warnings, second.notes) == (first.warnings, first.notes)


async def test_a_lock_whose_wheels_are_gone_is_made_again_once(bench: Bench) -> None:
    lock, _ = bench.lock()
    bench.index.folder.joinpath("alpha-1.0-py3-none-any.whl").unlink()
    with pytest.raises(StoreError, match=r"alpha 1\.0"):
        await collect(lock, bench.store, bench.settings)
    write_wheel(bench.index.folder, "alpha", "1.0", tag="py2.py3-none-any")
    again, told = bench.lock()
    assert len(told.steps) == 1
    assert any("could not be had" in text for text in told.notes)
    assert again != lock
    await collect(again, bench.store, bench.settings)
    assert bench.store.has([wheel(again, "alpha")])
    third, told = bench.lock()
    assert (third, told.steps) == (again, [])
    assert not any("could not be had" in text for text in told.notes)


class Full(FolderStore):
    """A store on a disk that has no room left."""

    def _part(self) -> tuple[int, str]:
        handle, name = super()._part()
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name


async def test_a_disk_that_is_full_here_is_not_held_against_the_wheels(bench: Bench) -> None:
    lock, _ = bench.lock()
    with pytest.raises(StoreError, match="the disk is full"):
        await collect(lock, Full(bench.store.root), bench.settings)
    again, told = bench.lock()
    assert (again, told.steps) == (lock, [])


def test_a_snapshot_renews_what_the_cache_remembers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", bench.index.url)
    bench.settings, bench.store = read_settings(prefix=str(bench.prefix)), default_store()
    lock, _ = bench.lock()
    write_wheel(bench.index.folder, "alpha", "1.0", tag="py2.py3-none-any")
    bench.index.folder.joinpath("alpha-1.0-py3-none-any.whl").unlink()
    same, told = bench.lock()
    assert (same, told.steps) == (lock, [])
    made, _ = make_lock(
        capture(str(bench.prefix / "bin/python")),
        None,
        file=bench.folder / "pylock.toml",
        cache=None,
        allow_substitutes=False,
        hooks=Hooks(),
    )
    again, told = bench.lock()
    assert told.steps == []
    assert again == made
    assert again != lock
