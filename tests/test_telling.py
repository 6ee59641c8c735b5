"""What does not ship is told, and told once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.errors import EnvsyncError
from envsync.hooks import Hooks
from envsync.runner.hosts import parse_host
from envsync.runner.provision import prepare
from envsync.runner.telling import tell_findings, tell_left_out
from envsync.snapshot import Finding, SourceTree, capture
from envsync.store import default_store
from envsync.trees import Manifest, pack


class Told(Hooks):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def note(self, where: str, text: str) -> None:
        self.said.append((f"note {where}", text))

    def warning(self, where: str, text: str) -> None:
        self.said.append((f"warning {where}", text))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))


def tree(folder: Path, *names: str) -> SourceTree:
    for name in ("mine.py", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("key = 1\n")
    return SourceTree(
        name="mine", root=str(folder), members=(("", str(folder)),), position="front", kind="cwd"
    )


def packed(folder: Path, *names: str) -> Manifest:
    return pack(tree(folder, *names), default_store())


def test_what_everybody_leaves_out_is_not_told(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "code", ".git/config", "__pycache__/mine.cpython-311.pyc", ".hidden/x")
    told = Told()
    tell_left_out([manifest], told)
    assert manifest.left_out
    assert told.said == []


def test_files_that_may_be_missed_are_counted_and_three_are_named(tmp_path: Path) -> None:
    names = [f"{letter}.key" for letter in "abcde"]
    manifest = packed(tmp_path / "code", *names)
    told = Told()
    tell_left_out([manifest], told)
    ((kind, text),) = told.said
    assert kind == "warning here"
    assert text.startswith("source tree mine: 5 left out: a.key (looks like a secret), b.key (")
    assert "c.key" in text
    assert "d.key" not in text
    assert "and 2 more (envsync snapshot -v shows all)" in text
    tell_left_out([manifest], told, before=[manifest])
    assert len(told.said) == 1
    whole = Told()
    whole.verbose = True
    tell_left_out([manifest], whole)
    assert whole.said[0][1].endswith("d.key (looks like a secret), e.key (looks like a secret)")
    tell_left_out([packed(tmp_path / "code", "f.key")], told, before=[manifest])
    assert told.said[1][1].startswith("source tree mine: 1 left out: f.key")


def test_what_a_gitignore_leaves_out_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "code" / ".git").mkdir(parents=True)
    (tmp_path / "code" / ".gitignore").write_text("*.csv\n")
    told = Told()
    tell_left_out([packed(tmp_path / "code", "table.csv")], told)
    assert told.said == [
        (
            "note here",
            "source tree mine: 1 left out: table.csv (ignored by .gitignore) (envsync snapshot -v shows all)",
        )
    ]


def test_findings_are_told_and_a_lock_stands_for_what_is_installed() -> None:
    findings = [("error", "odd"), ("warning", "/code"), ("note", "fine")]
    snapshot = replace(
        capture(), findings=tuple(Finding(severity=how, subject=what, text="so") for how, what in findings)
    )
    told, locked = Told(), Told()
    tell_findings(snapshot, told)
    tell_findings(snapshot, locked, locked=True)
    assert told.said == [("warning here", "odd: so"), ("warning here", "/code: so")]
    assert locked.said == [("warning here", "/code: so")]


def test_preparing_hosts_tells_before_they_are_reached() -> None:
    found = Finding(severity="warning", subject="odd", text="so")
    snapshot = replace(capture(), findings=(found,), source_trees=())
    told = Told()

    async def to_nowhere() -> None:
        async with parse_host("ssh://127.0.0.1:1") as host:
            await prepare([host], snapshot=snapshot, hooks=told)

    with pytest.raises(EnvsyncError):
        asyncio.run(to_nowhere())
    assert told.said == [("warning here", "odd: so")]
