"""A client that has environments made on hosts: wheels of its own, a store, and sessions."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from envsync.artifacts import Artifact
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.lock import Lock
from envsync.runner.hosts.base import Host
from envsync.runner.packing import packed
from envsync.runner.session import Environment, Session
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target
from envsync.uv import find_uv
from tests.elsewhere import Elsewhere
from tests.index_server import write_wheel


class Told(Hooks):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


class Makes:
    """A client: wheels, a store and sessions to a host that has a cache of its own."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.store = FolderStore(folder / "store")
        self.cache = folder / "cache"
        self.hooks = Told()
        self.stack = stack
        self.supply = Supply(self.store, IndexSettings(), hooks=self.hooks)

    def artifact(self, name: str, *, version: str = "1.0", url: str = "", keep: bool = True) -> Artifact:
        wheel = write_wheel(self.wheels, name, version, body=f"VALUE = {name!r}\n")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if keep:
            self.store.put(wheel)
        return Artifact(
            name=name,
            version=version,
            filename=wheel.name,
            sha256=digest,
            url=f"{url}/files/{wheel.name}" if url else None,
            path=None if url else f"envsync-wheels/{wheel.name}",
        )

    def lock(self, *artifacts: Artifact, python: str = "") -> Lock:
        here = Target.current()
        target = Target(python=python or here.python, machine=here.machine, libc=here.libc)
        return Lock.of(artifacts, target)

    async def session(self, host: Host | None = None) -> Session:
        # A host that is not this machine is given uv as a blob; the installed one does here.
        opened = await Session.open(
            host or Elsewhere({"UV_CACHE_DIR": None}),
            cache=str(self.cache),
            supply=self.supply,
            hooks=self.hooks,
        )
        return await self.stack.enter_async_context(opened)


@pytest.fixture
def uv_asked_for() -> list[Target]:
    return []


@pytest.fixture(scope="session")
def store_of_uv(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, str]:
    """A store that has the installed uv, as it is and packed, and its digest: both take a second to make."""
    store = FolderStore(tmp_path_factory.mktemp("uv"))
    digest = store.put(Path(find_uv()))
    with store.open(digest) as file:
        packed(store, digest, file, Path(find_uv()).stat().st_size)
    return store, digest


@pytest.fixture
async def makes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uv_asked_for: list[Target],
    store_of_uv: tuple[FolderStore, str],
) -> AsyncIterator[Makes]:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    kept, digest = store_of_uv

    async def installed(self: Supply, target: Target, *, here: bool = False) -> str:
        uv_asked_for.append(target)
        if not self.store.has([digest]):
            shutil.copytree(
                kept.root / "blobs", tmp_path / "store/blobs", copy_function=os.link, dirs_exist_ok=True
            )
        return digest

    # These tests are of what uv does; without it they would all be few.
    monkeypatch.setattr("envsync.runner.realising._FEW", -1)
    # The index is not asked for a static uv by these tests: the installed one runs here just as well.
    monkeypatch.setattr(Supply, "uv", installed)
    async with AsyncExitStack() as stack:
        yield Makes(tmp_path, stack)


def says(environment: Environment, code: str, **variables: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [environment.python, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **variables},
    ).stdout.strip()


def litter(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "envs").iterdir() if path.name.startswith("."))


@pytest.fixture
async def tiny_disk(tmp_path: Path) -> AsyncIterator[Callable[..., Path]]:
    """Mount small disks, where that is allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    mounted: list[Path] = []

    def mount(megabytes: int, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        chosen = ",".join([f"size={megabytes}m", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", chosen, "tiny", folder], check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
