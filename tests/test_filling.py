"""What a store lacks is put there while machines boot."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.runner import filling as module
from envsync.runner.filling import Filling
from envsync.store import FolderStore
from envsync.stores.folder import SharedFolder
from tests.running import until


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def step(self, where: str, text: str) -> None:
        self.texts.append(text)

    def done(self, where: str, text: str, seconds: float) -> None:
        self.texts.append(text)

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)


class Signing(SharedFolder):
    """A store that machines read from; it can be slow, and refuse."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.order: list[int] = []
        self.released = threading.Event()
        self.slow = 1 << 40
        self.refusing = False

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        return f"https://example.org/{digest}"

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        if self.refusing:
            raise StoreError("it may not be written")
        assert isinstance(data, Path)
        self.order.append(data.stat().st_size)
        if data.stat().st_size >= self.slow:
            assert self.released.wait(20)
        return super().put(data, digest)


@pytest.fixture
def blobs(tmp_path: Path) -> tuple[FolderStore, list[str]]:
    """Blobs that are here; the first is too small to be asked for."""
    here = FolderStore(tmp_path / "here")
    return here, [here.put(bytes([number]) * (32 << 10) * number or b"small") for number in range(6)]


def test_the_smallest_go_first_and_what_is_there_is_not_sent_again(
    blobs: tuple[FolderStore, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    (here, digests), there, heard = blobs, Signing(tmp_path / "there"), Heard()
    SharedFolder(there.root).put(here.path(digests[2]) or b"")
    filling = Filling(here, there, heard)
    filling.put([*digests[::-1], "0" * 64])
    assert there.order == [number * (32 << 10) for number in (1, 3, 4, 5)]
    assert there.has(digests) == set(digests[1:])
    filling.put(digests)
    assert len(there.order) == 4
    assert [text.partition(", ")[0] for text in heard.texts] == [
        "putting 4 files there while machines boot",
        "put 4 of 4 files there",
    ]


async def test_what_is_on_its_way_when_a_machine_is_up_is_waited_for_and_no_more_is_begun(
    blobs: tuple[FolderStore, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    (here, digests), there = blobs, Signing(tmp_path / "there")
    there.slow = 3 * (32 << 10)
    filling = Filling(here, there, Heard())
    putting = asyncio.ensure_future(asyncio.to_thread(filling.put, digests))
    await until(lambda: there.slow in there.order, 20)
    filling.stop()
    await filling.wait([digests[4], digests[0]])  # nobody sends these
    waiting = asyncio.ensure_future(filling.wait(digests))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    there.released.set()
    await waiting
    await putting
    assert there.has(digests) == {digests[number] for number in (1, 2, 3)}


def test_a_store_that_refuses_is_told_once_and_one_without_addresses_is_left_alone(
    blobs: tuple[FolderStore, list[str]], tmp_path: Path
) -> None:
    (here, digests), there, heard = blobs, Signing(tmp_path / "there"), Heard()
    there.refusing = True
    filling = Filling(here, there, heard)
    filling.put(digests)
    filling.put(digests)
    (told,) = [text for text in heard.texts if "is not put there" in text]
    assert "it may not be written" in told
    folder = SharedFolder(tmp_path / "folder")
    Filling(here, folder, heard).put(digests)
    assert folder.has(digests) == set()
