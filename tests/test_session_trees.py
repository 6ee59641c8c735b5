"""Source trees on a host: what was packed, where it was put, and one file for one edit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envsync.errors import AgentError, StoreError
from envsync.indexes import IndexSettings
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.trees import Manifest
from tests.elsewhere import Elsewhere


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings())
    async with await Session.open(Elsewhere({}), cache=str(tmp_path / "cache"), supply=supply) as opened:
        yield opened


def manifest(session: Session, **files: str) -> Manifest:
    store = session.supply.store
    return Manifest(
        name="project",
        position="front",
        kind="cwd",
        files=tuple(
            (path, store.put(text.encode()), 0o755 if path.endswith(".sh") else 0o644)
            for path, text in sorted(files.items())
        ),
    )


async def test_a_tree_is_as_it_was_packed(session: Session) -> None:
    files = {"pkg/__init__.py": "", "pkg/data/värden.yaml": "a: 1", "run.sh": "#!/bin/sh\n"}
    tree = manifest(session, **files)
    (folder,) = await session.place_trees([tree])
    assert folder == f"{session.cache}/trees/{tree.digest}"
    found = {str(p.relative_to(folder)): p.read_text() for p in Path(folder).rglob("*") if p.is_file()}
    assert found == files
    assert Path(folder, "run.sh").stat().st_mode & 0o777 == 0o700
    assert Path(folder, "pkg/data/värden.yaml").stat().st_mode & 0o777 == 0o600


async def test_an_edit_sends_one_file_and_leaves_the_old_tree(session: Session) -> None:
    before = manifest(session, **{f"module{i}.py": f"X = {i}" for i in range(20)})
    (old,) = await session.place_trees([before])
    after = manifest(session, **{f"module{i}.py": f"X = {i or 'changed'}" for i in range(20)})
    changed = {digest for _, digest, _ in after.files}
    assert len(await session.request("lacking", digests=sorted(changed))) == 1
    new, same = await session.place_trees([after, before])
    assert (Path(new, "module0.py").read_text(), Path(old, "module0.py").read_text()) == (
        "X = changed",
        "X = 0",
    )
    assert same == old


async def test_code_that_writes_to_its_own_files_harms_nobody(session: Session) -> None:
    tree = manifest(session, **{"state.txt": "clean"})
    (folder,) = await session.place_trees([tree])
    Path(folder, "state.txt").write_text("scribbled")
    other = dataclasses.replace(tree, name="another")
    (second,) = await session.place_trees([other])
    assert second != folder
    assert Path(second, "state.txt").read_text() == "clean"


async def test_many_at_once_make_one(session: Session) -> None:
    tree = manifest(session, **{f"module{i}.py": f"X = {i}" for i in range(200)})
    folders = await asyncio.gather(*(session.place_trees([tree]) for _ in range(5)))
    assert len({folder for (folder,) in folders}) == 1
    assert [path.name for path in Path(session.cache, "trees").iterdir()] == [tree.digest]


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", ""])
async def test_no_file_lands_outside(session: Session, path: str) -> None:
    with pytest.raises(AgentError, match="not a path inside"):
        await session.place_trees([manifest(session, **{path: "evil"})])
    assert list(Path(session.cache, "trees").glob("*")) == []


async def test_a_file_that_the_store_lost(session: Session) -> None:
    tree = Manifest(name="lost", position="front", kind="cwd", files=(("a.py", "0" * 64, 0o644),))
    with pytest.raises(StoreError):
        await session.place_trees([tree])


async def test_no_trees_no_questions(session: Session) -> None:
    assert await session.place_trees([]) == []
