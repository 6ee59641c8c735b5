"""Hosts take blobs from a store by themselves: from signed addresses, or from a folder that they see."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import dask.config
import pytest
from click.testing import CliRunner

from envsync.cli import cli
from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.runner import SyncedCluster
from envsync.runner.options import plain_config
from envsync.runner.session import Session
from envsync.runner.taking import Taking
from envsync.store import blob_name
from envsync.stores import SharedStore, open_store
from tests.elsewhere import Elsewhere
from tests.lab.registry import Authority
from tests.makes import Makes, Told, says
from tests.s3 import S3, SECRET, VARIABLES, Between

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
BARE = {**dict.fromkeys(VARIABLES, None), "AWS_ENDPOINT_URL": None, "UV_CACHE_DIR": None}


class Heard(Told):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []
        self.warnings: list[str] = []

    def step(self, where: str, what: str) -> None:
        super().step(where, what)
        self.all.append(what)

    def done(self, where: str, what: str, seconds: float) -> None:
        self.all.append(what)

    def note(self, where: str, text: str) -> None:
        super().note(where, text)
        self.all.append(text)

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)
        self.all.append(text)


class Client:
    """One that has none of the wheels, and a host that has nothing at all."""

    def __init__(self, makes: Makes) -> None:
        self.makes = makes
        makes.hooks = makes.supply.hooks = self.hooks = Heard()
        self.lock: Lock = makes.lock(*(makes.artifact(name, keep=False) for name in NAMES))
        self.digests = {one.name: one.sha256 for one in self.lock.artifacts()}
        self.sent: list[list[str]] = []

    def fill(self, store: SharedStore, *names: str) -> SharedStore:
        for wheel in self.makes.wheels.iterdir():
            if wheel.name.partition("-")[0] in (names or NAMES):
                store.put(wheel)
        return store

    async def session(self, taking: Taking, **environment: str | None) -> Session:
        session = await self.makes.session(Elsewhere({**BARE, **environment}))
        session.taking = taking
        return session

    async def realise(self, session: Session) -> None:
        """Make the environment; `sent` is what this machine had to have for it."""

        async def fetch(digests: Collection[str]) -> None:
            self.sent.append(sorted(name for name, digest in self.digests.items() if digest in digests))
            for wheel in self.makes.wheels.iterdir():
                if hashlib.sha256(wheel.read_bytes()).hexdigest() in digests:
                    self.makes.store.put(wheel)

        made = await session.realise(self.lock, fetch=fetch)
        assert made.created
        code = "import alpha, beta, gamma; print(alpha.VALUE, beta.VALUE, gamma.VALUE)"
        assert says(made, code) == "alpha beta gamma"

    async def take(self, session: Session) -> list[str]:
        """Have the host take what it can; return the names."""
        assert session.taking is not None
        took = await session.taking.take(session, self.digests.values(), "wheels")
        lacking = await session.request("lacking", digests=sorted(self.digests.values()))
        assert took == set(self.digests.values()) - set(lacking)
        return sorted(name for name, digest in self.digests.items() if digest in took)


@pytest.fixture
def client(makes: Makes) -> Client:
    return Client(makes)


class Bucket:
    """A store in a bucket with all wheels, which everybody reaches through a server that may misbehave."""

    def __init__(self, between: Between, store: SharedStore) -> None:
        self.between = between
        self.store = store


@pytest.fixture(scope="module")
def shared_bucket(s3_server: S3) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, Between(s3_server.url) as between:
        s3_server.bucket("taking")
        for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": between.url, "NO_PROXY": "127.0.0.1"}.items():
            patch.setenv(name, value)
        store = open_store("s3://taking/x")
        store.entries("blobs")  # it has read the environment
        yield Bucket(between, store)


@pytest.fixture
def bucket(shared_bucket: Bucket, client: Client, s3: S3) -> Bucket:
    if not shared_bucket.store.has(client.digests.values()):
        client.fill(shared_bucket.store)
    shared_bucket.between.requests.clear()
    shared_bucket.between.ranges.clear()
    shared_bucket.between.fault = lambda *_: None
    return shared_bucket


def is_taken(method: str, path: str) -> bool:
    """Tell whether a request is a host's: its address is signed."""
    return method == "GET" and "X-Amz-Signature" in path


def taken(bucket: Bucket) -> list[str]:
    """Return the blobs that were asked for by signed addresses."""
    paths = [path.partition("?")[0] for method, path in bucket.between.requests if is_taken(method, path)]
    return sorted(path.rpartition("/")[2] for path in paths)


def on_disk(folder: Path, secret: str) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()
    ]


async def test_a_host_takes_wheels_from_a_bucket_and_addresses_are_told_nobody(
    client: Client, bucket: Bucket
) -> None:
    seen: list[str] = []
    signatures: set[str] = set()

    def look(method: str, path: str, _: int) -> None:
        if is_taken(method, path):  # while the host waits for the answer
            (signature,) = re.findall(r"X-Amz-Signature=(\w+)", path)
            signatures.add(signature)
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        text = (process / name).read_bytes()
                    except OSError:
                        continue
                    if signature.encode() in text or b"X-Amz-" in text:
                        seen.append(f"{process}/{name}")

    bucket.between.fault = look
    session = await client.session(Taking(bucket.store, client.hooks))
    await client.realise(session)
    assert client.sent == []
    assert taken(bucket) == sorted(client.digests.values())
    assert [text for text in client.hooks.all if text.startswith("took wheels from s3://taking/x: 3")]
    assert client.hooks.notes == client.hooks.warnings == seen == []
    assert len(signatures) == 3
    for secret in (*signatures, SECRET):
        assert on_disk(client.makes.cache, secret) == []
        assert secret not in "".join(client.hooks.all)


async def test_what_is_refused_is_sent_and_that_is_told_once(client: Client, bucket: Bucket) -> None:
    bucket.between.fault = lambda method, path, _: 403 if is_taken(method, path) else None
    session = await client.session(Taking(bucket.store, client.hooks))
    await client.realise(session)
    assert client.sent == [[*NAMES]]
    (note,) = client.hooks.notes
    assert note == (
        "s3://taking/x did not give it 3 of 3 files (its server answers 403: forbidden, or the address has"
        " expired): they are sent"
    )
    assert session.taking is None
    assert len(taken(bucket)) == 3


async def test_what_the_store_lacks_or_lost_is_for_others_to_give(client: Client, bucket: Bucket) -> None:
    gone = client.digests["gamma"]
    bucket.between.fault = lambda method, path, _: 404 if is_taken(method, path) and gone in path else None
    client.lock = client.makes.lock(
        *client.lock.artifacts(), client.makes.artifact("delta", version="9.0", keep=False)
    )
    client.digests = {one.name: one.sha256 for one in client.lock.artifacts()}
    assert await client.take(await client.session(Taking(bucket.store, client.hooks))) == ["alpha", "beta"]
    assert client.digests["delta"] not in taken(bucket)
    assert client.hooks.notes == client.hooks.warnings == []


async def test_an_address_that_expired_before_its_turn_is_signed_anew(client: Client, bucket: Bucket) -> None:
    refused: set[str] = set()

    def once(method: str, path: str, _: int) -> int | None:
        digest = path.partition("?")[0]
        if not is_taken(method, path) or digest in refused:
            return None
        refused.add(digest)
        return 403

    bucket.between.fault = once
    session = await client.session(Taking(bucket.store, client.hooks, seconds=0.01))
    assert await client.take(session) == [*NAMES]
    assert client.hooks.notes == []


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(client: Client, bucket: Bucket) -> None:
    bucket.between.fault = lambda method, path, n: "cut" if is_taken(method, path) and not n else None
    assert await client.take(await client.session(Taking(bucket.store, client.hooks))) == [*NAMES]
    assert client.hooks.notes == []
    assert len(bucket.between.ranges) == 3
    assert all(re.fullmatch(r"bytes=[1-9]\d*-", one) for one in bucket.between.ranges)


async def test_a_server_that_fails_again_and_again(client: Client, bucket: Bucket) -> None:
    bucket.between.fault = lambda method, path, _: 503 if is_taken(method, path) else None
    assert await client.take(await client.session(Taking(bucket.store, client.hooks))) == []
    (note,) = client.hooks.notes
    assert "its server answers 503" in note


async def test_the_hosts_own_proxy_decides_whether_it_is_reached(client: Client, bucket: Bucket) -> None:
    away = {"http_proxy": "http://127.0.0.1:9", "no_proxy": None, "NO_PROXY": None}
    session = await client.session(Taking(bucket.store, client.hooks), **away)
    assert await client.take(session) == []
    assert taken(bucket) == []
    (note,) = client.hooks.notes
    assert "did not give it 3 of 3 files (connection refused): they are sent" in note


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_server_whose_authority_is_the_stores_own(
    client: Client, s3: S3, authority: Authority, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    client.fill(open_store(f"{s3.bucket('taking')}/tls"))
    with Between(s3.url, tls=(authority.certificate, authority.key)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        if trusted:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca))
        options = None if trusted else {"client_kwargs": {"verify": False}}  # here; hosts do verify
        taking = Taking(open_store("s3://taking/tls", options), client.hooks)
        session = await client.session(taking, AWS_CA_BUNDLE=None)
        assert await client.take(session) == ([*NAMES] if trusted else [])
    told = [note.partition("(")[2] for note in client.hooks.notes]
    assert [text.startswith("its certificate is not trusted") for text in told] == [True] * (not trusted)


async def test_a_damaged_object_is_named_and_not_used(client: Client, bucket: Bucket) -> None:
    artifact = client.makes.artifact("delta", keep=False)
    name = blob_name(artifact.sha256)
    bucket.store.write(name, b"bytes of somebody else")
    client.digests["delta"] = artifact.sha256
    assert await client.take(await client.session(Taking(bucket.store, client.hooks))) == [*NAMES]
    (warning,) = client.hooks.warnings
    assert warning.startswith(f"s3://taking/x/{name} is damaged and not used: it holds other bytes")
    assert client.hooks.notes == []


async def test_a_folder_that_the_host_sees(client: Client, tmp_path: Path) -> None:
    store = client.fill(open_store((tmp_path / "shared").as_uri()), "alpha", "beta")
    damaged = tmp_path / "shared" / blob_name(client.digests["beta"])
    damaged.write_bytes(b"bytes of somebody else")
    assert await client.take(await client.session(Taking(store, client.hooks))) == ["alpha"]
    (warning,) = client.hooks.warnings
    assert warning.startswith(f"{damaged.as_uri()} is damaged and not used")
    assert client.hooks.notes == []


async def test_a_folder_that_it_does_not_see(client: Client, tmp_path: Path) -> None:
    store = open_store((tmp_path / "nowhere").as_uri())
    assert await client.take(await client.session(Taking(store, client.hooks))) == []
    (note,) = client.hooks.notes
    assert note.endswith("did not give it 3 of 3 files (it does not see that folder): they are sent")


async def test_a_store_without_addresses(client: Client) -> None:
    store = client.fill(open_store("memory://taking"))
    assert await client.take(await client.session(Taking(store, client.hooks))) == []
    (note,) = client.hooks.notes
    assert "stores of this kind give no addresses" in note


async def test_a_store_that_cannot_be_asked_is_an_error_at_once(
    client: Client, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    session = await client.session(Taking(open_store("s3://taking/x"), Hooks()))
    with pytest.raises(StoreError, match="it cannot be listed"):
        await client.take(session)


async def test_the_store_is_an_option_and_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with dask.config.set({"envsync.store": "file:///of/the/settings"}):
        assert SyncedCluster(asynchronous=True).store == "file:///of/the/settings"
        assert SyncedCluster(asynchronous=True, store="file:///mine").store == "file:///mine"
        hooks = Told()
        assert "envsync" not in plain_config(dask.config.global_config, hooks)
        assert hooks.notes == []  # it is nothing that Dask's processes miss
    assert SyncedCluster(asynchronous=True).store is None
    refused = CliRunner().invoke(cli, ["run", "--store", "nonsense", "--", "true"])
    assert refused.exit_code == 2
    assert "'nonsense' is not the URL of a store" in refused.stderr
