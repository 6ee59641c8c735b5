"""Folders for unfinished work: gone afterwards, and so are those that a crash left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from envsync.errors import StoreError
from envsync.scratch import scratch


def test_it_is_gone_afterwards_whatever_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))

    def work() -> None:
        with scratch("work") as folder:
            (folder / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_a_crash_left_is_removed_and_what_is_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    left = tmp_path / "scratch" / "download-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    os.utime(left, (time.time() - 2 * 24 * 3600,) * 2)
    with scratch("one") as one, scratch("two") as two:
        assert sorted((tmp_path / "scratch").iterdir()) == sorted([one, two])


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be written") as caught, scratch("work"):
        pass
    assert "ENVSYNC_CACHE" in caught.value.hint
