"""Wheels come whole, checked and from where the lock says, or not at all and with a reason."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import stamina
from packaging.pylock import Pylock
from packaging.version import Version

from envsync.artifacts import Artifact
from envsync.collect import collect
from envsync.errors import CorruptBlobError, StoreError
from envsync.hooks import Hooks
from envsync.indexes import Index, IndexSettings
from envsync.lock import Lock
from envsync.store import FolderStore
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIG = os.urandom(5 << 20)
SMALL = b"a wheel, as far as collecting goes"
SECRET = "hunter2-canary"


class Server:
    """A real HTTP server on loopback that misbehaves as told.

    `script` maps a path to what happens on each request for it, the last entry repeated: a status to answer
    with, ``"cut:N"`` (N bytes, then the connection is reset), a URL to redirect to, or bytes to serve.
    """

    def __init__(self) -> None:
        self.script: dict[str, list[int | str | bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def seen(self, path: str) -> list[dict[str, str]]:
        return [headers for each, headers in self.requests if each == path]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path
        self.requests.append((path, dict(handler.headers)))
        steps = self.script.get(path, [b""])
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if isinstance(step, int):
            handler.send_response(step)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif isinstance(step, str) and step.startswith("http"):
            handler.send_response(302)
            handler.send_header("Location", step)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            body = step if isinstance(step, bytes) and step else self.files[path]
            start = 0
            wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
            if wanted and handler.headers.get("If-Range", '"tag"') == '"tag"':
                start = int(wanted[1])
                handler.send_response(206)
                handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                handler.send_response(200)
            handler.send_header("ETag", '"tag"')
            handler.send_header("Content-Length", str(len(body) - start))
            handler.end_headers()
            if isinstance(step, str):
                handler.wfile.write(body[start : start + int(step.removeprefix("cut:"))])
                handler.wfile.flush()
                time.sleep(0.2)  # a reset discards what has not been read yet
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.close_connection = True
                handler.connection.close()
            else:
                with contextlib.suppress(OSError):
                    handler.wfile.write(body[start:])


@pytest.fixture
def servers() -> Iterator[Callable[[], Server]]:
    started: list[Server] = []

    def start() -> Server:
        started.append(Server())
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


@pytest.fixture
def server(servers: Callable[[], Server]) -> Server:
    return servers()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=6, cap=True):
        yield


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def wheel(server: Server, body: bytes, name: str = "alpha", *, size: bool = True) -> Artifact:
    filename = f"{name}-1.0-py3-none-any.whl"
    server.files[f"/files/{filename}"] = body
    return Artifact(
        name=name,
        version="1.0",
        filename=filename,
        sha256=hashlib.sha256(body).hexdigest(),
        size=len(body) if size else None,
        url=f"{server.url}/files/{filename}",
        index="https://packages.example.org/simple",
    )


def lock_of(*artifacts: Artifact, folder: Path | None = None) -> Lock:
    return Lock(
        pylock=Pylock(
            lock_version=Version("1.0"),
            created_by="envsync",
            packages=[artifact.package() for artifact in artifacts],
        ),
        target=Target.current(),
        snapshot="0" * 64,
        folder=folder,
    )


def read(store: FolderStore, artifact: Artifact) -> bytes:
    with store.open(artifact.sha256) as file:
        return file.read()


class Counting(Hooks):
    def __init__(self) -> None:
        self.points: list[tuple[int, int]] = []

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        assert unit == "B"
        self.points.append((done, total))


async def test_wheels_come_with_progress_in_bytes(server: Server, store: FolderStore) -> None:
    big, small = wheel(server, BIG, "big"), wheel(server, SMALL, "small")
    hooks = Counting()
    await collect(lock_of(big, small), store, IndexSettings(), hooks=hooks)
    assert (read(store, big), read(store, small)) == (BIG, SMALL)
    total = len(BIG) + len(SMALL)
    assert hooks.points[-1] == (total, total)


async def test_what_the_store_has_is_not_asked_for(server: Server, store: FolderStore) -> None:
    here, lacking = wheel(server, SMALL, "here"), wheel(server, BIG, "lacking")
    store.put(SMALL)
    await collect(lock_of(here, lacking), store, IndexSettings())
    await collect(lock_of(here, lacking), store, IndexSettings())
    assert [path for path, _ in server.requests] == [f"/files/{lacking.filename}"]


async def test_only_what_is_named_is_fetched(server: Server, store: FolderStore) -> None:
    one, other = wheel(server, SMALL, "one"), wheel(server, BIG, "other")
    await collect(lock_of(one, other), store, IndexSettings(), only=[one.sha256, "f" * 64])
    assert store.has([one.sha256, other.sha256]) == {one.sha256}


async def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, store: FolderStore) -> None:
    artifact = wheel(server, BIG)
    path = f"/files/{artifact.filename}"
    server.script[path] = ["cut:3000000", "cut:1000", b""]
    hooks = Counting()
    await collect(lock_of(artifact), store, IndexSettings(), hooks=hooks)
    assert read(store, artifact) == BIG
    ranges = [headers.get("Range", "") for headers in server.seen(path)]
    assert ranges[0] == ""
    assert all(re.fullmatch(r"bytes=[1-9]\d*-", each) for each in ranges[1:])
    assert len(ranges) == 3
    assert hooks.points[-1][0] == len(BIG)


async def test_a_server_without_ranges_starts_again(server: Server, store: FolderStore) -> None:
    artifact = wheel(server, BIG)
    path = f"/files/{artifact.filename}"
    server.script[path] = ["cut:2000000", 416, b""]
    hooks = Counting()
    await collect(lock_of(artifact), store, IndexSettings(), hooks=hooks)
    assert read(store, artifact) == BIG
    assert "Range" not in server.seen(path)[-1]
    assert hooks.points[-1] == (len(BIG), len(BIG))


async def test_a_server_in_trouble_is_asked_again(server: Server, store: FolderStore) -> None:
    artifact = wheel(server, SMALL)
    server.script[f"/files/{artifact.filename}"] = [503, 503, b""]
    await collect(lock_of(artifact), store, IndexSettings())
    assert read(store, artifact) == SMALL
    assert len(server.requests) == 3


async def test_other_bytes_than_locked_are_refused(server: Server, store: FolderStore, cache: Path) -> None:
    artifact = wheel(server, SMALL)
    server.files[f"/files/{artifact.filename}"] = b"something else"
    with pytest.raises(CorruptBlobError) as error:
        await collect(lock_of(artifact), store, IndexSettings())
    text = str(error.value)
    assert "alpha 1.0" in text
    assert artifact.url is not None
    assert artifact.url in text
    assert "envsync snapshot" in text
    assert store.has([artifact.sha256]) == set()
    left = [path.relative_to(cache) for path in cache.rglob("*") if path.is_file()]
    assert [path for path in left if path.parts[0] != "memory"] == []


@pytest.mark.parametrize(("status", "words"), [(401, ".netrc"), (403, "keyring"), (404, "envsync snapshot")])
async def test_a_refusal_names_index_package_and_next_step(
    server: Server, store: FolderStore, status: int, words: str
) -> None:
    artifact = wheel(server, SMALL)
    server.script[f"/files/{artifact.filename}"] = [status]
    settings = IndexSettings(indexes=(Index(url=server.url, username="me", password=SECRET),))
    with pytest.raises(StoreError) as error:
        await collect(lock_of(artifact), store, settings)
    text = str(error.value)
    assert "alpha 1.0" in text
    assert "https://packages.example.org/simple" in text
    assert words in text
    assert SECRET not in text
    assert len(server.requests) == 1  # trying again would not help


async def test_credentials_go_to_their_server_and_to_no_other(
    servers: Callable[[], Server], store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    index, files = servers(), servers()
    artifact = wheel(index, SMALL)
    path = f"/files/{artifact.filename}"
    files.files[path] = SMALL
    index.script[path] = [503, files.url + path]
    settings = IndexSettings(indexes=(Index(url=index.url, username="me", password=SECRET),))
    with caplog.at_level("DEBUG"):
        await collect(lock_of(artifact), store, settings)
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert [headers.get("Authorization") for headers in index.seen(path)] == [expected, expected]
    assert [headers.get("Authorization") for headers in files.seen(path)] == [None]
    assert SECRET not in caplog.text
    assert expected not in caplog.text


async def test_a_server_that_is_not_there(store: FolderStore, servers: Callable[[], Server]) -> None:
    server = servers()
    artifact = wheel(server, SMALL)
    server.http.server_close()
    with pytest.raises(StoreError, match=r"alpha 1\.0 could not be downloaded in \d tries") as error:
        await collect(lock_of(artifact), store, IndexSettings())
    assert "127.0.0.1" in str(error.value)
    assert "HTTPS_PROXY" in str(error.value)


async def test_a_wheel_beside_the_lock(store: FolderStore, tmp_path: Path) -> None:
    artifact = Artifact(
        name="local",
        version="1.0",
        filename="local-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(SMALL).hexdigest(),
        path="envsync-wheels/local-1.0-py3-none-any.whl",
    )
    lock = lock_of(artifact, folder=tmp_path)
    with pytest.raises(StoreError, match=r"local 1\.0: there is no such file"):
        await collect(lock, store, IndexSettings())
    (tmp_path / "envsync-wheels").mkdir()
    place = tmp_path / "envsync-wheels" / artifact.filename
    place.write_bytes(b"built again, differently")
    with pytest.raises(CorruptBlobError, match=r"local 1\.0.*is not the wheel that was locked"):
        await collect(lock, store, IndexSettings())
    place.write_bytes(SMALL)
    await collect(lock, store, IndexSettings())
    assert read(store, artifact) == SMALL


async def test_a_full_or_read_only_cache_says_which_setting_moves_it(
    server: Server, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", "/proc/nowhere")
    with pytest.raises(StoreError, match="ENVSYNC_CACHE"):
        await collect(lock_of(wheel(server, SMALL)), store, IndexSettings())
