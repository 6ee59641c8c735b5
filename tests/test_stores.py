"""Pushing into folders and buckets: nothing twice, nothing by halves, and nobody in another's way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import fsspec
import httpx
import pytest
from botocore.exceptions import UnknownServiceError
from botocore.utils import parse_timestamp

from envsync.errors import CorruptBlobError, StoreError
from envsync.hooks import Hooks
from envsync.store import FolderStore, blob_name
from envsync.stores import SharedStore, is_store, open_store, parse, shown
from envsync.stores.buckets import Bucket, Models, moment
from envsync.stores.keeping import gc, pushes, verify
from envsync.stores.pulling import fetch, pull, pull_from
from envsync.stores.pushing import push
from tests.pushed import Made, sha
from tests.s3 import S3, SECRET, Between

PUSH = """
import sys
from pathlib import Path
from tests.pushed import Made
from envsync.stores import open_store
from envsync.stores.pushing import push
made = Made(Path(sys.argv[1]), {f"p{n}": bytes([n]) * 50_000 for n in range(8)})
done = push(made.lock, made.manifests, made.store, open_store(sys.argv[2]), name=sys.argv[3])
print(done.record.file)
"""
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new store."""
    if request.param == "folder":
        return (tmp_path / "shared").as_uri()
    server: S3 = request.getfixturevalue("s3")
    return f"{server.bucket('stores')}/{secrets.token_hex(4)}"


@pytest.fixture
def store(url: str) -> SharedStore:
    return open_store(url)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "source", {"alpha": b"alpha" * 1000, "beta": b"beta" * 1000})


def child(code: str, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def sizes(folder: Path) -> list[int]:
    """Of the files in a folder, as far as they are still there."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


def test_what_is_pushed_can_be_pulled(store: SharedStore, made: Made, tmp_path: Path) -> None:
    done = push(made.lock, made.manifests, made.store, store, name="analysis")
    assert (done.sent, done.there, done.new) == (3, 0, True)
    assert done.size == done.record.size == 9011
    found = pull(store, "analysis")
    assert found.lock == made.lock.__class__.loads(found.lock.dumps())
    assert found.lock.digest == made.lock.digest
    assert found.lock.name == "analysis"
    assert found.manifests == made.manifests
    assert [tree.digest for tree in found.lock.trees] == [made.manifests[0].digest]
    here = FolderStore(tmp_path / "here")
    assert fetch(store, made.blobs, here) == 3
    assert fetch(store, made.blobs, here) == 0
    assert here.has(made.blobs) == made.blobs
    assert verify(store) == []


def test_nothing_is_sent_twice(store: SharedStore, made: Made, tmp_path: Path) -> None:
    first = push(made.lock, made.manifests, made.store, store)
    before = [entry.name for kind in ("blobs", "pushes", "trees") for entry in store.entries(kind)]
    again = push(made.lock, made.manifests, made.store, store)
    assert (again.sent, again.there, again.new, again.record) == (0, 3, False, first.record)
    assert [entry.name for kind in ("blobs", "pushes", "trees") for entry in store.entries(kind)] == before
    edited = Made(tmp_path / "source", {"alpha": b"alpha" * 1000, "beta": b"beta" * 1000}, b"ANSWER = 2\n")
    third = push(edited.lock, edited.manifests, edited.store, store)
    assert (third.sent, third.size, third.there) == (1, 11, 2)
    assert pull(store, "envsync").manifests == edited.manifests


def test_a_blob_that_is_gone_is_sent_again(store: SharedStore, made: Made) -> None:
    push(made.lock, made.manifests, made.store, store)
    store.remove(blob_name(sha(b"beta" * 1000)))
    (damage,) = verify(store)
    assert (damage.name, damage.why) == (blob_name(sha(b"beta" * 1000)), "it is missing")
    assert push(made.lock, made.manifests, made.store, store).sent == 1
    assert verify(store) == []


def test_names_and_digests_lead_to_a_push(store: SharedStore, made: Made, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing was pushed there"):
        pull(store)
    push(made.lock, made.manifests, made.store, store, name="a/b ü")
    assert pull(store).push.name == "a/b ü"
    assert pull_from(f"{store.shown}#a%2Fb%20%C3%BC").push.name == "a/b ü"
    other = Made(tmp_path / "source", {"gamma": b"gamma"})
    push(other.lock, other.manifests, other.store, store, name="other")
    for wanted in (other.lock.digest, other.lock.digest[:8], "other"):
        assert pull(store, wanted).lock.digest == other.lock.digest
    with pytest.raises(StoreError, match=r"(?s)several environments: a/b ü, other.*#a/b ü"):
        pull(store)
    with pytest.raises(StoreError, match=r"(?s)there is no environment 'third'.*a/b ü, other"):
        pull(store, "third")
    with pytest.raises(StoreError, match="there is no environment"):
        pull(store, "f" * 64)


def test_many_processes_push_the_same_at_once(url: str, tmp_path: Path) -> None:
    started = [child(PUSH, tmp_path / f"source{n}", url, f"name{n % 2}") for n in range(3)]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 3, ended
    store = open_store(url)
    assert len(store.entries("blobs")) == 9
    assert verify(store) == []
    assert {push.name for push in pushes(store)} == {"name0", "name1"}
    assert store.entries("pushing") == []
    assert gc(store, older=0.0).blobs == 0


def test_a_folder_that_is_replaced_while_it_is_empty_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two make it at once, and the second takes the place of the first: seen in one of some hundred pushes
    mkstemp, replace = tempfile.mkstemp, Path.replace
    gone: list[str] = []

    def take(folder: Path) -> None:
        if folder.name not in gone and not any(folder.iterdir()):
            gone.append(folder.name)
            folder.rmdir()

    def made_in(dir: Path) -> tuple[int, str]:  # noqa: A002 - it is called so
        take(dir)
        return mkstemp(dir=dir)

    def renamed(path: Path, target: Path) -> Path:
        take(target.parent)
        return replace(path, target)

    monkeypatch.setattr(tempfile, "mkstemp", made_in)
    monkeypatch.setattr(Path, "replace", renamed)
    store = open_store((tmp_path / "shared").as_uri())
    store.write("pushes/one", b"record")
    digest = store.put(b"blob")
    assert store.read("pushes/one") == b"record"
    assert store.open(digest).read() == b"blob"
    assert gone == [".unfinished", "pushes", digest[:2]]


@pytest.mark.slow
def test_a_push_into_a_folder_that_is_killed_is_taken_up(tmp_path: Path) -> None:
    shared, source = tmp_path / "shared", tmp_path / "source"
    made = Made(source, {"small": b"small"})
    code = """
import sys
from pathlib import Path
from tests.pushed import Made
from envsync.stores import open_store
from envsync.stores.pushing import push
large = b"".join(bytes([n]) * (8 << 20) for n in range(30))
made = Made(Path(sys.argv[1]), {"small": b"small", "large": large})
print("made", flush=True)
push(made.lock, made.manifests, made.store, open_store(sys.argv[2]))
"""
    process = child(code, source, shared.as_uri())
    unfinished = shared / "blobs" / ".unfinished"
    assert process.stdout is not None
    process.stdout.readline()
    while process.poll() is None and not any(size > 1 << 20 for size in sizes(unfinished)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = open_store(shared.as_uri())
    assert process.returncode == -signal.SIGKILL
    assert any(unfinished.iterdir())
    assert [push.name for push in pushes(store)] == []
    assert [one for one in verify(store) if one.why != "it is missing"] == []
    assert len(store.entries("pushing")) == 1
    process = child(code, source, shared.as_uri())
    assert process.wait(60) == 0
    process.communicate()
    assert verify(store) == []
    assert store.sweep(time.time() + 60) >= 1
    assert not any(unfinished.iterdir())
    assert made.blobs <= {entry.name.rpartition("/")[2] for entry in store.entries("blobs")}


@pytest.mark.slow
def test_an_upload_to_s3_that_is_killed_is_not_seen_and_swept(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("killed")
    code = """
import sys
from pathlib import Path
from tests.pushed import Made
from envsync.stores import open_store
from envsync.stores.pushing import push
made = Made(Path(sys.argv[1]), {"large": b"".join(bytes([n]) * (1 << 20) for n in range(34))})
push(made.lock, made.manifests, made.store, open_store(sys.argv[2]))
"""

    def second_part_hangs(method: str, path: str, before: int) -> str | None:
        return "hang" if "partNumber=2" in path else None

    with Between(s3.url, second_part_hangs) as between:
        process = child(code, tmp_path / "source", f"{bucket}/x", AWS_ENDPOINT_URL=between.url)
        while process.poll() is None and not any("partNumber=2" in path for _, path in between.requests):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    client = s3.client()
    client.call_s3("create_multipart_upload", Bucket="killed", Key="others/file")  # none of ours
    store = open_store(f"{bucket}/x")
    assert pushes(store) == []
    assert [entry for entry in store.entries("blobs") if entry.size > 1000] == []
    assert store.sweep(0.0) == 0  # moto says of every upload that it began in 2010
    assert store.sweep(time.time() - 60) == 1
    left = client.list_multipart_uploads("killed")
    assert [upload["Key"] for upload in left] == ["others/file"]
    process = child(code, tmp_path / "source", f"{bucket}/x")
    assert process.wait(60) == 0, process.communicate()
    process.communicate()
    assert verify(store) == []
    assert len(pushes(store)) == 1


CTRL_C = """
import os, signal
from envsync.stores.folder import SharedFolder
put, puts = SharedFolder.put, []

def third(self, *rest):
    puts.append(rest)
    if len(puts) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return put(self, *rest)

SharedFolder.put = third
"""
"""Comes in the middle of a push, however quick that is."""


def test_ctrl_c_ends_a_push_soon_and_cleanly(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    code = CTRL_C + PUSH.replace("50_000", "20_000_000")
    process = child(code, tmp_path / "source", shared.as_uri(), "x")
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    store = open_store(shared.as_uri())
    assert pushes(store) == []
    assert store.entries("pushing") == []
    assert verify(store) == []


@pytest.mark.slow
def test_a_server_that_is_busy_or_breaks_off_is_asked_again(
    s3: S3, monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: Path
) -> None:
    url = f"{s3.bucket('busy')}/x"

    def fault(method: str, path: str, before: int) -> int | str | None:
        if before == 0 and method == "PUT":
            return 503
        if before == 0 and method == "GET" and ("/blobs/" in path or "/environments/" in path):
            return "cut"
        return 500 if before == 0 and "list-type" in path and "pushes" in path else None

    with Between(s3.url, fault) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        store = open_store(url)
        assert push(made.lock, made.manifests, made.store, store).sent == 3
        fetch(store, made.blobs, FolderStore(tmp_path / "here"))
        assert verify(store) == []
    blobs = {path for method, path in between.requests if method == "PUT" and "/blobs/" in path}
    assert len(blobs) == 3
    assert all(between.requests.count(("PUT", path)) == 2 for path in blobs)


@pytest.mark.slow
def test_an_unchanged_push_to_s3_is_a_handful_of_requests(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{s3.bucket('few')}/x"
    made = Made(tmp_path / "source", {f"p{n}": b"%d" % n for n in range(25)})
    push(made.lock, made.manifests, made.store, open_store(url))
    with Between(s3.url) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        assert not push(made.lock, made.manifests, made.store, open_store(url)).new
    methods = [method for method, _ in between.requests]
    assert set(methods) <= {"GET", "HEAD"}
    assert (
        len(methods) <= 44
    )  # three for the record and the folders, and a listing of each folder of 41 blobs


def test_a_spoilt_blob_is_named_and_can_be_mended(url: str, made: Made, tmp_path: Path, request) -> None:  # type: ignore[no-untyped-def]
    store = open_store(url)
    pushed = push(made.lock, made.manifests, made.store, store, name="x")
    digest = sha(b"beta" * 1000)
    if url.startswith("file:"):
        (tmp_path / "shared" / blob_name(digest)).write_bytes(b"evil")
    else:
        request.getfixturevalue("s3").client().pipe_file(f"{url[5:]}/{blob_name(digest)}", b"evil")
    here = FolderStore(tmp_path / "here")
    for read in (store.open, lambda one: store.fetch(one, here)):
        with pytest.raises(CorruptBlobError) as raised:
            read(digest)
        assert raised.value.where == f"{url}/{blob_name(digest)}"
        assert f"envsync store verify {url}" in raised.value.hint
    assert here.has([digest]) == set()
    (damage,) = verify(store, remove=True)
    assert damage.name == blob_name(digest)
    assert damage.pushes == (pushed.record.file,)
    assert [one.why for one in verify(store)] == ["it is missing"]
    assert push(made.lock, made.manifests, made.store, store, name="x").sent == 1
    assert verify(store) == []


def test_spoilt_records_are_named(store: SharedStore, made: Made) -> None:
    record = push(made.lock, made.manifests, made.store, store).record
    lock, tree = sorted(record.documents)
    for name, data in ((lock, store.read(lock) + b"\n"), (tree, b"{}"), (record.file, b"[")):
        good = store.read(name)
        store.write(name, data)
        with pytest.raises(CorruptBlobError) as raised:
            pull(store)
        assert raised.value.where == f"{store.shown}/{name}"
        assert [one.name for one in verify(store)] == [name]
        with pytest.raises(CorruptBlobError):
            gc(store, older=0.0)
        store.write(name, good)
    assert pull(store).lock.digest == made.lock.digest


@pytest.mark.slow
def test_a_store_can_be_a_whole_bucket(s3: S3, made: Made) -> None:
    store = open_store(s3.bucket("ees"))  # a name that is a part of others, such as trees/
    push(made.lock, made.manifests, made.store, store, name="ees")
    assert not push(made.lock, made.manifests, made.store, store, name="ees").new
    assert pull(store).manifests == made.manifests
    assert verify(store) == []
    assert [entry.name for entry in store.entries("trees")] == [f"trees/{made.manifests[0].digest}.json"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"requester_pays": True}], ids=["botocore", "s3fs"])
def test_a_bucket_is_opened_as_it_is_configured(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, Any]
) -> None:
    url = f"{s3.bucket('configured')}/{tmp_path.name}"
    options = {"key": "AKIATESTSTESTSTESTS0", "secret": SECRET, "endpoint_url": s3.url, **more}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    store = open_store(url)
    assert isinstance(store, Bucket) == (not more)  # what only s3fs knows, s3fs does
    file = tmp_path / "blob"
    file.write_bytes(b"b" * (17 << 20))  # so large a one is not read before
    for name, data in (("a/1.json", b"one"), ("a/b/2.json", b"two"), ("ab/3.json", b"three")):
        store.write(name, data)
    digest = store.put(file)
    assert store.has([digest]) == {digest}
    assert [(one.name, one.size) for one in store.entries("a")] == [("a/1.json", 3), ("a/b/2.json", 3)]
    assert store.read("a/b/2.json") == b"two"
    address = store.url(digest)
    assert address
    assert SECRET not in repr(store) + address
    store.remove("a/1.json")
    store.remove("a/1.json")
    with pytest.raises(StoreError, match=r"there is no a/1\.json"):
        store.read("a/1.json")


@pytest.mark.slow
def test_presigned_addresses_need_no_credential(s3: S3, made: Made) -> None:
    store = open_store(f"{s3.bucket('signed')}/x")
    push(made.lock, made.manifests, made.store, store)
    digest = sha(b"alpha" * 1000)
    address = store.url(digest, 60)
    assert address is not None
    # moto lets expired ones in: that they expire is in the address, and is the server's part
    assert httpx.URL(address).params["X-Amz-Expires"] == "60"
    assert SECRET not in address
    assert httpx.get(address, trust_env=False).content == b"alpha" * 1000
    absent = store.url(sha(b"absent"))
    assert absent is not None
    assert httpx.get(absent, trust_env=False).status_code == 404


def test_botocore_reads_descriptions_as_it_does_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine" / "2026-01-01" / "service-2.json"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"version": "2.0"}')
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    usual = botocore.session.Session().get_component("data_loader")
    quick = botocore.session.Session().get_component("data_loader")
    quick.file_loader = Models()
    for name in ("s3", "sts", "sso", "sso-oidc"):  # the others are asked for credentials
        for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
            assert quick.load_service_model(name, kind) == usual.load_service_model(name, kind)
    assert quick.load_data("endpoints") == usual.load_data("endpoints")
    assert quick.load_service_model("mine", "service-2") == {"version": "2.0"}
    with pytest.raises(UnknownServiceError, match=r"'?s4'?.*accessanalyzer.*mine.*s3"):
        quick.load_service_model("s4", "service-2")


def test_times_are_read_as_botocore_reads_them() -> None:
    for text in (
        *("2026-11-29T19:23:43.123Z", "2026-11-29T19:23:43Z", "2026-11-29T19:23:43.123456789Z"),
        *("Sun, 29 Nov 2026 19:23:43 GMT", "2026-11-29T19:23:43+01:00", "1422172800", 1422172800.5),
    ):
        assert moment(text) == parse_timestamp(text)
    for wrong in ("", "no time Z", "no time GMT", None):
        with pytest.raises((TypeError, ValueError)) as ours:
            moment(wrong)
        with pytest.raises(ours.type, match=re.escape(str(ours.value))):
            parse_timestamp(wrong)


def test_an_address_is_told_from_a_host() -> None:
    assert is_store("s3://bucket")
    assert is_store("file:///a")
    assert not any(map(is_store, ("ssh://a", "node1", "local", "local://", "a/b", "oci:a", "C:/a")))
    assert parse("s3://b/c#a%20b") == ("s3://b/c", "a b")
    assert shown("ftp://user:word@host/a?sig=1#x") == "ftp://host/a"


class Told(Hooks):
    def __init__(self) -> None:
        self.amounts: list[tuple[int, int]] = []

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        self.amounts.append((done, total))


def test_progress_is_in_bytes(store: SharedStore, made: Made) -> None:
    told = Told()
    push(made.lock, made.manifests, made.store, store, hooks=told)
    assert sorted(told.amounts)[-1] == (9011, 9011)
    assert len(told.amounts) == 3


def test_a_source_that_lacks_a_blob_is_an_error_before_anything_is_sent(
    store: SharedStore, made: Made
) -> None:
    path = made.store.path(sha(b"alpha" * 1000))
    assert path is not None
    path.unlink()
    with pytest.raises(StoreError, match=r"1 blobs of the environment are not here"):
        push(made.lock, made.manifests, made.store, store)
    assert store.entries("blobs") == []


def test_a_blob_that_is_spoilt_here_does_not_go(store: SharedStore, made: Made) -> None:
    path = made.store.path(sha(b"alpha" * 1000))
    assert path is not None
    path.write_bytes(b"evil!")
    with pytest.raises(CorruptBlobError, match="sha256 is"):
        push(made.lock, made.manifests, made.store, store)
    assert pushes(store) == []
    assert store.has([sha(b"alpha" * 1000)]) == set()
    assert store.entries("pushing") == []


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_folder_of_a_group_stays_one(made: Made, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    push(made.lock, made.manifests, made.store, open_store(shared.as_uri()))
    modes = {path.stat().st_mode & 0o7777 for path in shared.rglob("*") if path.is_dir()}
    assert modes == {0o2770}
    assert {path.stat().st_mode & 0o777 for path in shared.rglob("*") if path.is_file()} == {0o660}


@pytest.mark.slow
def test_records_say_who_and_what_and_no_secret(s3: S3, made: Made) -> None:
    store = open_store(f"{s3.bucket('records')}/x")
    record = push(made.lock, made.manifests, made.store, store).record
    data = json.loads(store.read(record.file))
    assert set(data) == {"name", "lock", "text", "trees", "supplies", "target", "user", "host", "size"}
    everything = b"".join(
        store.read(entry.name)
        for kind in ("pushes", "trees", "environments", "blobs")
        for entry in store.entries(kind)
    )
    assert SECRET.encode() not in everything
