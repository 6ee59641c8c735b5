"""What every store does, whatever it keeps its blobs in."""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from envsync.errors import CorruptBlobError, StoreError
from envsync.runner.hosts import Host, SSHOptions, parse_host
from envsync.runner.hoststore import HostStore
from envsync.store import FolderStore, Store, Verified
from envsync.stores import open_store
from envsync.stores.remote import FsspecStore
from tests.s3 import S3

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.lab.machines import Lab, Machine


class MemoryStore:
    """A store for tests of what uses one; this suite keeps it honest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def has(self, digests: Iterable[str]) -> set[str]:
        return {digest for digest in digests if _checked(digest) in self.blobs}

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        try:
            content = data if isinstance(data, bytes) else data.read_bytes()
        except OSError as error:
            raise StoreError(str(error)) from error
        found = hashlib.sha256(content).hexdigest()
        if digest is not None and digest != found:
            raise CorruptBlobError(f"{found}, not {digest}")
        self.blobs[found] = content
        return found

    def open(self, digest: str) -> BinaryIO:
        try:
            return io.BytesIO(self.blobs[_checked(digest)])
        except KeyError:
            raise StoreError(f"there is no blob {digest}") from None

    def path(self, digest: str) -> Path | None:
        _checked(digest)
        return None

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        _checked(digest)
        return None


def _checked(digest: str) -> str:
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise StoreError(f"{digest!r} is not a digest")
    return digest


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Machine]:
    with lab.host("bare") as machine:
        yield machine


KINDS = ["folder", "memory", "shared folder", "fsspec folder", "fsspec memory", "local host"]
BUCKETS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("s3", "verified s3")]
SSH = pytest.param("ssh host", marks=pytest.mark.lab)


@pytest.fixture(params=[*KINDS, "verified folder", "verified memory", *BUCKETS, SSH])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    kind = request.param.removeprefix("verified ")
    inner: Store
    if kind.endswith("host"):
        host: Host = parse_host("local")
        cache = str(tmp_path / "a cache")
        if kind == "ssh host":
            machine: Machine = request.getfixturevalue("bare")
            host = parse_host(machine.name, SSHOptions(config=(machine.lab.config,)))
            cache = f"/root/a cache/{secrets.token_hex(4)}"
        with HostStore(host, cache) as inner:
            yield inner
        return
    if kind == "s3":
        server: S3 = request.getfixturevalue("s3")
        inner = open_store(f"{server.bucket('contract')}/{secrets.token_hex(4)}")
    elif kind == "folder":
        inner = FolderStore(tmp_path / "store")
    elif kind == "memory":
        inner = MemoryStore()
    elif kind == "shared folder":
        inner = open_store((tmp_path / "a store").as_uri())
    elif kind == "fsspec folder":
        inner = FsspecStore(f"file://{tmp_path}/store")
    else:
        inner = open_store(f"memory://{secrets.token_hex(4)}")
    yield Verified(inner) if request.param.startswith("verified") else inner


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 10_000], ids=["empty", "one", "2.5 MB"])
def test_what_is_put_comes_back(store: Store, data: bytes) -> None:
    digest = store.put(data)
    assert digest == sha(data)
    with store.open(digest) as file:
        assert file.read() == data


def test_a_file_is_kept_as_it_was(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "ein Datensatz\n.csv"
    source.write_bytes(b"before")
    digest = store.put(source)
    source.write_bytes(b"after!")
    assert digest == sha(b"before")
    with store.open(digest) as file:
        assert file.read() == b"before"


def test_putting_twice_is_putting_once(store: Store) -> None:
    assert store.put(b"again") == store.put(b"again", sha(b"again"))
    with store.open(sha(b"again")) as file:
        assert file.read() == b"again"


def test_has_tells_what_is_there(store: Store) -> None:
    here = store.put(b"here")
    assert store.has([here, sha(b"elsewhere")]) == {here}
    assert store.has([]) == set()


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_bytes_that_are_not_what_they_should_be_are_refused(
    store: Store, tmp_path: Path, as_file: bool
) -> None:
    (tmp_path / "received").write_bytes(b"garbled")
    with pytest.raises(CorruptBlobError, match=sha(b"garbled")):
        store.put(tmp_path / "received" if as_file else b"garbled", sha(b"clear"))
    assert store.has([sha(b"clear"), sha(b"garbled")]) == set()


def test_a_missing_blob_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match=sha(b"nowhere")):
        store.open(sha(b"nowhere"))
    assert store.path(sha(b"nowhere")) is None


def test_a_file_that_cannot_be_read_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        store.put(tmp_path / "absent")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "f" * 63, "f" * 65, "f" * 64 + "\n"])
def test_what_is_not_a_digest_is_an_error(store: Store, name: str) -> None:
    for ask in (store.open, store.path, store.url, lambda digest: store.has([digest])):
        with pytest.raises(StoreError):
            ask(name)


def test_a_path_holds_the_blob(store: Store) -> None:
    digest = store.put(b"on disk?")
    path = store.path(digest)
    if path is not None:
        assert path.read_bytes() == b"on disk?"


def test_many_writers_of_the_same_blobs(store: Store) -> None:
    blobs = [bytes([n]) * 100_000 for n in range(10)]
    troubles: list[BaseException] = []

    def work() -> None:
        try:
            for blob in blobs:
                with store.open(store.put(blob)) as file:
                    assert file.read() == blob
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert store.has(map(sha, blobs)) == set(map(sha, blobs))
