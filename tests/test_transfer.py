"""Blobs on their way to a host: what shrinks is packed, and arrives as what it was."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.runner.hosts.base import Host
from envsync.runner.hosts.local import Local
from envsync.runner.many import Meter
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply
from tests.elsewhere import Elsewhere

TEXT = "".join(f"def function_{n}(x):\n    return x * {n}\n" for n in range(100_000)).encode()  # 4 MB
NOISE = random.Random(7).randbytes(2_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "client"))
    return tmp_path / "host"


@pytest.fixture
def supply(tmp_path: Path) -> Supply:
    return Supply(FolderStore(tmp_path / "client"), IndexSettings())


@pytest.fixture
async def session(supply: Supply, cache: Path) -> AsyncIterator[Session]:
    async with await opened(Elsewhere({}), supply, cache) as session:
        yield session


async def opened(host: Host, supply: Supply, cache: Path) -> Session:
    return await Session.open(host, cache=str(cache), supply=supply, hooks=Meter(Hooks()))


def sent(session: Session) -> int:
    assert isinstance(session.hooks, Meter)
    return session.hooks.sent


def there(cache: Path, digest: str) -> bytes:
    return (cache / "blobs" / digest[:2] / digest).read_bytes()


async def test_programs_and_code_are_packed_and_arrive_whole(session: Session, cache: Path) -> None:
    blobs = [TEXT, TEXT[:100_000], TEXT[:5000], b"tiny", b""]
    digests = [session.supply.store.put(blob) for blob in blobs]
    assert await session.send(digests) == len(blobs)
    assert [there(cache, digest) for digest in digests] == blobs
    assert sent(session) < sum(map(len, blobs)) / 3


async def test_what_does_not_shrink_goes_as_it_is(session: Session, cache: Path) -> None:
    wheel = b"PK\x03\x04" + bytes(1_500_000)  # a zip file's word is taken for it
    digests = [session.supply.store.put(blob) for blob in (NOISE, wheel)]
    await session.send(digests)
    assert [there(cache, digest) for digest in digests] == [NOISE, wheel]
    assert sent(session) == len(NOISE) + len(wheel)


@pytest.mark.slow
async def test_a_large_one_is_packed_once_for_all_hosts(
    supply: Supply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = supply.store.put(TEXT)
    packed: list[object] = []
    put = supply.store.put

    def counting(data: bytes | Path, digest: str | None = None) -> str:
        packed.append(data)
        return put(data, digest)

    monkeypatch.setattr(supply.store, "put", counting)
    for name in ("one", "two"):
        async with await opened(Elsewhere({}), supply, tmp_path / name) as session:
            await session.send([digest])
            assert sent(session) < len(TEXT) / 3
            assert there(tmp_path / name, digest) == TEXT
    assert len(packed) == 1


async def test_a_store_without_room_for_the_packed_form_sends_it_all_the_same(
    supply: Supply, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = supply.store.put(TEXT)
    blocked = cache.parent / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("ENVSYNC_CACHE", str(blocked / "cache"))
    async with await opened(Elsewhere({}), supply, cache) as session:
        await session.send([digest])
        assert sent(session) == len(TEXT)
    assert there(cache, digest) == TEXT


async def test_on_this_machine_nothing_is_packed(supply: Supply, cache: Path) -> None:
    digest = supply.store.put(TEXT)
    async with await opened(Local(), supply, cache) as session:
        await session.send([digest])
        assert sent(session) == len(TEXT)
    assert hashlib.sha256(there(cache, digest)).hexdigest() == digest
    assert os.stat(cache / "blobs" / digest[:2] / digest).st_mode & 0o777 == 0o600
