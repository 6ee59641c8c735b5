"""Source trees on a host: what was packed, where it was put, and one file for one edit."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envsync.errors import AgentError, StoreError
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.trees import Manifest
from tests.elsewhere import Elsewhere

pytestmark = pytest.mark.slow


class Told(Hooks):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings())
    cache = str(tmp_path / "cache")
    async with await Session.open(Elsewhere({}), cache=cache, supply=supply, hooks=Told()) as opened:
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
    assert litter(session, tree.digest) == []


@pytest.mark.parametrize("how", ["edited", "same size", "removed", "not executable", "a link", "all gone"])
async def test_a_tree_that_was_changed_is_placed_anew(session: Session, how: str) -> None:
    tree = manifest(session, **{"pkg/__init__.py": "X = 1", "pkg/tool.sh": "#!/bin/sh\n"})
    (folder,) = await session.place_trees([tree])
    package = Path(folder, "pkg")
    inode = Path(folder).stat().st_ino
    (package / "__pycache__").mkdir()
    (package / "results.csv").write_text("made by the code itself")
    assert await session.place_trees([tree]) == [folder]
    assert Path(folder).stat().st_ino == inode
    file = package / "__init__.py"
    if how == "edited":
        file.write_text("X = 'other'")
    elif how == "same size":
        file.write_text("X = 2")
    elif how == "removed":
        file.unlink()
    elif how == "not executable":
        (package / "tool.sh").chmod(0o600)
    elif how == "a link":
        (package / "elsewhere").write_text("X = 1")
        file.unlink()
        file.symlink_to("elsewhere")
    else:
        shutil.rmtree(package)
    (again,) = await session.place_trees([tree])
    assert again == folder
    assert file.read_text() == "X = 1"
    assert not file.is_symlink()
    assert (package / "tool.sh").stat().st_mode & 0o777 == 0o700
    assert Path(folder).stat().st_ino != inode  # nothing was written into what somebody may be using
    assert litter(session, tree.digest) == []
    assert [text for text in session.hooks.notes if "project had been changed" in text]  # type: ignore[attr-defined]
    inode = Path(folder).stat().st_ino
    await session.place_trees([tree])
    assert Path(folder).stat().st_ino == inode


async def test_a_changed_tree_is_there_all_the_while_it_is_placed_anew(session: Session) -> None:
    tree = manifest(session, **{f"module{i}.py": f"X = {i}" for i in range(50)})
    (folder,) = await session.place_trees([tree])
    missing: list[float] = []
    done = False

    def watch() -> None:
        while not done:
            if not Path(folder, "module1.py").exists():
                missing.append(time.monotonic())

    watching = asyncio.create_task(asyncio.to_thread(watch))
    for i in range(10):
        Path(folder, "module0.py").write_text(f"X = 'changed {i}'")
        await session.place_trees([tree])
    done = True
    await watching
    assert missing == []
    assert Path(folder, "module0.py").read_text() == "X = 0"


async def test_what_was_only_touched_is_read_once_and_kept(session: Session) -> None:
    tree = manifest(session, **{"a.py": "X = 1", "b.py": "X = 2"})
    (folder,) = await session.place_trees([tree])
    inode = Path(folder).stat().st_ino
    file = Path(folder, "a.py")
    file.touch()
    await session.place_trees([tree])
    status = file.stat()
    file.write_text("X = 7")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody does that by accident
    await session.place_trees([tree])
    assert file.read_text() == "X = 7"  # not read: nothing told
    assert Path(folder).stat().st_ino == inode


def litter(session: Session, digest: str) -> list[str]:
    known = {digest, f".seen-{digest}"}
    return sorted(path.name for path in Path(session.cache, "trees").iterdir() if path.name not in known)


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
