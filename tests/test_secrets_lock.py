"""Credentials of indexes work, and are nowhere but in uv's environment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.errors import EnvsyncError
from envsync.resolve import resolve
from envsync.snapshot import Snapshot, capture
from envsync.store import FolderStore
from tests.index_server import IndexServer, write_wheel
from tests.test_resolve import MAC, Heard, plain_settings, uv

PASSWORD = "canary-s3cret/with%odd@signs"
ENCODED = "canary-s3cret%2Fwith%25odd%40signs"
CANARY = "canary-s3cret"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, "private", "1.0")
    return folder


@pytest.fixture(scope="module")
def snapshot(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """An environment that somebody else installed from the private index."""
    folder = tmp_path_factory.mktemp("env") / "venv"
    uv("venv", "--quiet", str(folder))
    with IndexServer(wheels) as server:
        uv("pip", "install", "--quiet", "--python", str(folder), "--default-index", server.url, "private")
    return capture(str(folder / "bin/python"))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the command lines of every process meanwhile."""
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    try:
                        seen.add(
                            (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        )
                    except OSError:
                        continue

    thread = threading.Thread(target=look)
    thread.start()
    found: list[str] = []
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found.extend(seen)


def spread(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]


def configure(way: str, home: Path, server: IndexServer) -> dict[str, str]:
    """Put the credentials where a user would; return the variables."""
    url = f"http://me:{ENCODED}@{server.host}/simple"
    if way == "variable":
        return {"UV_DEFAULT_INDEX": url}
    if way == "named":
        return {
            "UV_DEFAULT_INDEX": f"corp={server.url}",
            "UV_INDEX_CORP_USERNAME": "me",
            "UV_INDEX_CORP_PASSWORD": PASSWORD,
        }
    if way == "pip.conf":
        (home / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
        return {"PIP_CONFIG_FILE": str(home / "pip.conf")}
    if way == "uv.toml":
        (home / ".config/uv").mkdir(parents=True)
        (home / ".config/uv/uv.toml").write_text(f'[[index]]\nurl = "{url}"\ndefault = true\n')
        return {}
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    (home / ".netrc").chmod(0o600)
    return {"UV_DEFAULT_INDEX": server.url}


@pytest.mark.parametrize("way", ["variable", "named", "pip.conf", "uv.toml", "netrc"])
def test_credentials_open_the_index_and_are_written_nowhere(
    way: str, wheels: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("ENVSYNC_CACHE", str(work / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("TMPDIR", str(work))
    hooks = Heard()
    with IndexServer(wheels, username="me", password=PASSWORD) as server, watched() as commands:
        settings = plain_settings(home, **configure(way, home, server))
        for target in (snapshot.target, MAC):
            lock = resolve(
                snapshot, target, store=FolderStore(work / "cache"), settings=settings, hooks=hooks
            )
            (private,) = lock.artifacts()
            assert private.index == server.url
            assert private.path is None
            lock.write(work / "pylock.toml")
        assert settings.auth_for(private.url or "") == ("me", PASSWORD)
        assert any(status == 200 for _, status in server.requests)
    assert any("pip compile" in command for command in commands)
    said = [*commands, repr(settings), repr(lock), *hooks.notes, *hooks.warnings]
    assert not [text for text in said if CANARY in text]
    assert spread(work) == []


@pytest.mark.parametrize("way", ["variable", "named", "pip.conf", "netrc"])
def test_wrong_credentials_are_in_no_error(
    way: str, wheels: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    home = tmp_path / "home"
    home.mkdir()
    with IndexServer(wheels, username="me", password="another") as server:
        settings = plain_settings(home, **configure(way, home, server))
        aarch64 = replace(snapshot.target, machine="aarch64")
        for target in (snapshot.target, aarch64):
            with pytest.raises(EnvsyncError) as caught:
                resolve(snapshot, target, store=FolderStore(tmp_path / "cache"), settings=settings)
            chain: BaseException | None = caught.value
            while chain is not None:
                assert CANARY not in f"{chain} {vars(chain)}"
                chain = chain.__cause__ or chain.__context__
            assert server.host in str(caught.value)
    assert "me" not in os.environ.get("UV_DEFAULT_INDEX", "")
