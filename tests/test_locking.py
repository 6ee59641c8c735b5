"""A lock that was made before is taken again, exactly as long as it is still right."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.errors import UnfitHostError, UnsupportedError
from envsync.indexes import IndexSettings
from envsync.plan import make_plan
from envsync.runner.hosts import Local
from envsync.runner.locking import demand_fit, target_of
from envsync.runner.session import Session
from envsync.snapshot import Snapshot, capture
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target

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
