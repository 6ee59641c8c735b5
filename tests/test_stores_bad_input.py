"""Stores that are not there, not ours to write, or full: one error that says which, where and what next."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envsync.errors import StoreError
from envsync.stores import open_store, shown
from envsync.stores.keeping import gc, pushes
from envsync.stores.pulling import pull
from envsync.stores.pushing import push
from envsync.stores.remote import FsspecStore
from tests.pushed import Made, sha
from tests.s3 import S3, SECRET, end, start

can_mount = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False
    ).returncode
    == 0
)
needs_mounts = pytest.mark.skipif(not can_mount, reason="this machine does not let users mount anything")
ROOT = Path(__file__).parent.parent
PUSH = """
import sys
from pathlib import Path
from tests.pushed import Made
from envsync.errors import StoreError
from envsync.stores import open_store
from envsync.stores.pushing import push
from envsync.stores.remote import FsspecStore
made = Made(Path(sys.argv[2]), {"large": b"x" * 3_000_000})
url = sys.argv[3]
try:
    store = FsspecStore(url.partition("+")[2]) if url.startswith("fsspec+") else open_store(url)
    push(made.lock, made.manifests, made.store, store)
except StoreError as error:
    print(type(error).__name__, error)
import os
print("left:", [f for _, _, files in os.walk(sys.argv[1]) for f in files])
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "source", {"alpha": b"alpha" * 1000})


def said(url: str, made: Made) -> StoreError:
    """Push; return the error, which has a place and a next step, and no secret."""
    with pytest.raises(StoreError) as raised:
        push(made.lock, made.manifests, made.store, open_store(url))
    error = raised.value
    assert error.hint
    for text in (str(error), repr(error.__cause__)):
        assert SECRET not in text
    return error


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gopher://host/a", "no store has the scheme gopher://"),
        ("node1", "is not the URL of a store"),
        ("ssh://node1/a", "is not the URL of a store"),
        ("file://host/folder", "names no folder of this machine"),
        ("file:///", "names no folder of this machine"),
        ("s3://", "s3:// names no bucket"),
        ("file:///a%00b", "names no folder of this machine"),
    ],
)
def test_what_is_no_store(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        open_store(url)


@pytest.mark.parametrize("end", ["/x@bucket/a", "#x@bucket/a", "?x@bucket", "", "12/x@bucket"])
def test_a_password_that_cuts_its_url_is_not_said(end: str) -> None:
    with pytest.raises(StoreError, match="In a password write / as %2F") as raised:
        open_store(f"s3://me:{SECRET}{end}")
    assert SECRET not in str(raised.value)


def test_ports_and_users_are_no_such_password() -> None:
    for url in (
        "http://host:80/x",
        "http://host:80",
        "http://[::1]:80/x",
        "s3://b/c:d/e",
        "memory://x#a:b@c",
    ):
        open_store(url)
        assert shown(url) == url.partition("#")[0]
    assert shown("http://u:p:w@host:80/x") == "http://host:80/x"
    assert (shown("s3://"), shown("file:///"), shown("s3://b/")) == ("s3://", "file:///", "s3://b")


def test_a_library_that_is_not_installed(tmp_path: Path) -> None:
    """In an interpreter that has fsspec, and nothing that speaks to a bucket."""
    code = (
        "import sys\n"
        "sys.modules.update({'s3fs': None, 'gcsfs': None})\n"
        "from envsync.errors import StoreError\n"
        "from envsync.stores import open_store, shown\n"
        "for url in ('s3://bucket/a', 'gs://bucket/a'):\n"
        "    try: open_store(url)\n"
        "    except StoreError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.split("gs://bucket/a: ")
    assert first.startswith("s3://bucket/a: what speaks s3:// is not installed")
    assert 'pip install "dask-envsync[s3]"' in first
    assert "what speaks gs:// is not installed" in second
    assert "gcsfs" in second.splitlines()[-1]


@pytest.mark.slow
def test_a_bucket_that_is_not_there(s3: S3, made: Made) -> None:
    error = said("s3://no-such-bucket/x", made)
    assert "bucket does not exist" in error.message
    assert error.where == "s3://no-such-bucket/x"
    assert "Make the bucket" in error.hint
    with pytest.raises(StoreError, match="nothing was pushed there"):
        pull(open_store("s3://no-such-bucket/x"))
    assert pushes(open_store("s3://no-such-bucket/x")) == []


@pytest.mark.slow
def test_no_credentials(s3: S3, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.bucket("mine")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = said(url, made)
    assert "credentials" in error.message
    assert "AWS_PROFILE" in error.hint
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    error = said(url, made)
    assert "nobody" in error.message


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that knows nobody's keys."""
    process, url = start(tmp_path_factory.mktemp("strict"), INITIAL_NO_AUTH_ACTION_COUNT="0")
    try:
        yield url
    finally:
        end(process)


@pytest.mark.slow
def test_wrong_credentials(s3: S3, strict: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict)
    error = said("s3://theirs/x", made)
    assert error.message.startswith("it may not be ")
    assert "AWS_PROFILE" in error.hint


@pytest.mark.slow
def test_a_server_that_is_not_there(s3: S3, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("envsync.stores.remote._S3_CONFIG", {"retries": {"max_attempts": 0}})
    error = said("s3://bucket/x", made)
    assert "http://127.0.0.1:9" in error.message
    assert "reachable" in error.hint


def test_a_kind_of_store_that_cannot_be_written(made: Made) -> None:
    error = said("data:///x", made)
    assert error.where == "data:///x"
    assert "cannot be" in error.message


def test_passwords_in_a_url_are_not_said(made: Made) -> None:
    error = said("ftp://user:w0rd@127.0.0.1:9/folder?sig=s1gned", made)
    assert error.where == "ftp://127.0.0.1:9/folder"
    assert "w0rd" not in str(error)
    assert "s1gned" not in str(error)


def mounted(folder: Path, source: Path, mount: str, url: str) -> str:
    """Push into a file system of its own, and return what was said."""
    folder.mkdir(exist_ok=True)
    command = f'mount {mount} "$1" && exec "$2" -c "$3" "$1" "$4" "$5"'
    arguments = ["sh", "-c", command, "sh", str(folder), sys.executable, PUSH, str(source), url]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(source.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mounts
@pytest.mark.parametrize("kind", ["", "fsspec+"])
def test_a_full_disk(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "disk"
    url = f"{kind}{folder.as_uri()}/store"
    text = mounted(folder, tmp_path / "source", "-t tmpfs -o size=1m none", url)
    assert text.startswith("StoreError ")
    assert "the disk is full" in text or "no room left" in text
    assert "Make room there" in text
    assert "ENVSYNC_CACHE" not in text
    left = text.splitlines()[-1].removeprefix("left: ")
    assert left in ("[]", f"['{sha(b'ANSWER = 1' + bytes([10]))}']")  # which fits, and may have come first


@needs_mounts
@pytest.mark.parametrize("kind", ["", "fsspec+"])
def test_a_read_only_disk(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "disk"
    url = f"{kind}{folder.as_uri()}/store"
    text = mounted(folder, tmp_path / "source", "-t tmpfs -o ro none", url)
    assert text.startswith("StoreError ")
    assert "Read-only file system" in text or "read-only" in text
    assert "ENVSYNC_CACHE" not in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path: Path, made: Made) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    error = said((tmp_path / "theirs").as_uri(), made)
    assert "Permission denied" in error.message
    assert "let you write there" in error.hint


def test_a_store_that_is_a_file(tmp_path: Path, made: Made) -> None:
    (tmp_path / "file").write_text("")
    error = said((tmp_path / "file").as_uri(), made)
    assert "no folder" in error.message


def test_gc_of_a_folder_that_is_no_store_removes_nothing(tmp_path: Path, made: Made) -> None:
    before = sorted(made.store.root.rglob("*"))
    with pytest.raises(StoreError, match="nothing is removed"):
        gc(open_store(made.store.root.as_uri()), older=0.0)
    assert sorted(made.store.root.rglob("*")) == before


def test_a_file_that_changes_while_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecStore((tmp_path / "store").as_uri())
    large = tmp_path / "large"
    large.write_bytes(bytes(20 << 20))
    real = store._send

    def edited(data: bytes | Path, target: str) -> None:
        with large.open("r+b") as file:
            file.write(secrets.token_bytes(8))
        real(data, target)

    monkeypatch.setattr(store, "_send", edited)
    with pytest.raises(StoreError, match="it changed while it was sent"):
        store.put(large)
    assert store.has([sha(bytes(20 << 20))]) == set()
