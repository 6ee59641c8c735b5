"""A client that has environments made on hosts: wheels of its own, a store, and sessions."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from envsync.artifacts import Artifact
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.lock import Lock
from envsync.runner.hosts.base import Host
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


@pytest.fixture
async def makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv_asked_for: list[Target]
) -> AsyncIterator[Makes]:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))

    async def installed(self: Supply, target: Target, *, here: bool = False) -> str:
        uv_asked_for.append(target)
        return self.store.put(Path(find_uv()))

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
