"""The folder store: what is on the disk, many processes at once, and disks that will not have it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envsync.errors import CorruptBlobError, StoreError
from envsync.store import FolderStore, Verified, cache_root, default_store, recall, remember

can_mount = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False
    ).returncode
    == 0
)
needs_mounts = pytest.mark.skipif(not can_mount, reason="this machine does not let users mount anything")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_folders_are_the_owners_alone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "cache")
    digest = store.put(b"private")
    path = tmp_path / "cache" / "blobs" / digest[:2] / digest
    assert store.path(digest) == path
    assert path.stat().st_mode & 0o777 == 0o600
    for folder in list(path.parents)[:3]:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left_of_what_was_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "file").write_bytes(b"garbled")
    with pytest.raises(CorruptBlobError):
        store.put(tmp_path / "file", sha(b"clear"))
    with pytest.raises(StoreError):
        store.put(tmp_path)  # a folder has no bytes
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_what_a_crash_left_is_swept_after_a_day(tmp_path: Path) -> None:
    FolderStore(tmp_path).put(b"first")
    old, new = tmp_path / "blobs/.unfinished/old", tmp_path / "blobs/.unfinished/new"
    for path in (old, new):
        path.write_bytes(b"half of a")
    os.utime(old, (time.time() - 90_000,) * 2)
    FolderStore(tmp_path).put(b"second")
    assert not old.exists()
    assert new.exists()


def test_bytes_lost_with_the_power_are_written_again(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = store.put(b"was here")
    path = store.path(digest)
    assert path is not None
    path.write_bytes(b"")
    assert store.has([digest]) == set()
    assert store.path(digest) is None
    with pytest.raises(StoreError, match="no blob"):
        store.open(digest)
    store.put(b"was here")
    assert path.read_bytes() == b"was here"


def test_a_spoilt_blob_is_found_by_whoever_verifies(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = store.put(b"good")
    path = store.path(digest)
    assert path is not None
    path.write_bytes(b"evil")
    with store.open(digest) as file:
        assert file.read() == b"evil"
    for ask in (Verified(store).open, Verified(store).path):
        with pytest.raises(CorruptBlobError, match=str(path)):
            ask(digest)
    path.unlink()
    store.put(b"good")
    assert Verified(store).path(digest) == path


def test_many_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from envsync.store import FolderStore; store = FolderStore(sys.argv[1])\n"
        "for n in range(200):\n"
        "    data = bytes([n]) * (n * 500)\n"
        "    with store.open(store.put(data)) as file: assert file.read() == data"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "cache"]) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    found = [path for path in (tmp_path / "cache/blobs").rglob("*") if path.is_file()]
    assert len(found) == 200
    assert all(path.name == sha(path.read_bytes()) for path in found)


def put_in(folder: Path, mount: str, size: int) -> str:
    """Put a blob into a folder of a file system of its own, and return the error."""
    code = (
        "import sys; from envsync.errors import StoreError; from envsync.store import FolderStore\n"
        "try: FolderStore(sys.argv[1]).put(b'x' * int(sys.argv[2]))\n"
        "except StoreError as error: print(type(error).__name__, error)\n"
        "import os; print('left:', [f for _, _, files in os.walk(sys.argv[1]) for f in files])"
    )
    command = f'mount {mount} "$1" && exec "$2" -c "$3" "$1" "$4"'
    arguments = ["sh", "-c", command, "sh", str(folder), sys.executable, code, str(size)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mounts
@pytest.mark.parametrize("size", [70_000, 5_000_000])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    text = put_in(tmp_path, "-t tmpfs -o size=64k none", size)
    assert text.startswith(f"StoreError {tmp_path}: the cache folder cannot be written: the disk is full")
    assert "ENVSYNC_CACHE" in text
    assert text.endswith("left: []\n")


@needs_mounts
def test_a_read_only_disk(tmp_path: Path) -> None:
    text = put_in(tmp_path, "-t tmpfs -o ro none", 10)
    assert text.startswith(
        f"StoreError {tmp_path}: the cache folder cannot be written: Read-only file system"
    )
    assert "ENVSYNC_CACHE" in text


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError, match=r"(?s)cannot be written.*ENVSYNC_CACHE"):
        FolderStore(tmp_path / "cache").put(b"x")
    assert FolderStore(tmp_path / "cache").has([sha(b"x")]) == set()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ENVSYNC_CACHE", raising=False)
    assert cache_root() == tmp_path / ".cache/envsync"
    monkeypatch.setenv("ENVSYNC_CACHE", "")
    assert cache_root() == tmp_path / ".cache/envsync"
    monkeypatch.setenv("ENVSYNC_CACHE", "~/elsewhere")
    assert cache_root() == tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVSYNC_CACHE", "beside")
    assert default_store().root == tmp_path / "beside"


def test_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    assert recall("tests", "key") is None
    remember("tests", "key", {"a": [1, "ü"]})
    assert recall("tests", "key") == {"a": [1, "ü"]}
    assert recall("other", "key") is None
    (tmp_path / "cache/memory/tests/key.json").write_text('{"a": [1')
    assert recall("tests", "key") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "file"))
    remember("tests", "key", 1)  # where nothing can be kept, nothing fails
    assert recall("tests", "key") is None
