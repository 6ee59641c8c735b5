"""Clusters that somebody else started, in environments without envsync, and what a client wants of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.plugins import scan
from envsync.plugins.blobs import CHUNK
from envsync.plugins.carried import by_value
from envsync.plugins.compare import CORE
from envsync.plugins.hub import Hub
from envsync.plugins.overlay import tree_digest
from envsync.plugins.survey import target_of_process
from envsync.uv import find_uv
from tests.places import write_bytecode

TOOLZ = "0.12.0"  # what the others have; not what the tests have


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with Dask, as here, an older toolz, and no envsync; its interpreter."""
    prefix = tmp_path_factory.mktemp("others") / "environment"
    uv = str(find_uv())
    core = [f"{name}=={version(name)}" for name in sorted(CORE)]
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(prefix)], check=True)
    python = prefix / "bin/python"
    subprocess.run([uv, "pip", "install", "-q", "-p", str(python), *core, f"toolz=={TOOLZ}"], check=True)
    write_bytecode(python)
    return python


class Process:
    """A scheduler or worker of Dask's command line, in another environment."""

    def __init__(self, python: Path, arguments: Sequence[str], folder: Path, **environment: str) -> None:
        known = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.process = subprocess.Popen(
            [str(python), "-m", "distributed.cli." + arguments[0], *arguments[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**known, "DASK_TEMPORARY_DIRECTORY": str(folder), **environment},
        )
        self.lines: list[str] = []
        self._told = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def said(self, text: str, seconds: float = 60) -> str:
        """Wait for a line with that text."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: next((line for line in self.lines if text in line), None), seconds
            )
        assert found, f"no {text!r} in:\n{self.log}"
        return found

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait(self, seconds: float = 60) -> int:
        code = self.process.wait(seconds)
        self._thread.join(60)
        return code

    def tell_to_end(self) -> None:
        """Send it a signal, once: by a second one Dask's processes end at once, and not well."""
        if not self._told:
            self._told = True
            self.process.terminate()

    def end(self) -> None:
        self.tell_to_end()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


class Elsewhere:
    """A cluster started by hand from another environment.

    Parameters
    ----------
    python : Path
        Of the scheduler and of workers, if no other one is named.
    folder : Path
        Working directories and overlays go below it.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.processes: list[Process] = []
        self.scheduler = self._start(
            python, ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"], "scheduler"
        )
        self.address = self.scheduler.said("Scheduler at:").split()[-1]

    def _start(self, python: Path, arguments: list[str], host: str, **environment: str) -> Process:
        folder = self.folder / f"cwd-{len(self.processes)}"
        folder.mkdir(parents=True)
        overlays = {"ENVSYNC_OVERLAYS": str(self.folder / "overlays" / host)}
        process = Process(python, arguments, folder, **{**overlays, **environment})
        self.processes.append(process)
        return process

    def worker(
        self,
        name: str,
        *more: str,
        nanny: bool = True,
        host: str = "host",
        threads: int = 1,
        python: Path | None = None,
        wait: bool = True,
        **environment: str,
    ) -> Process:
        """Start a worker; those of one `host` share its overlays."""
        options = ["--name", name, "--nthreads", str(threads), "--host", "127.0.0.1", "--no-dashboard"]
        kind = [] if nanny else ["--no-nanny"]
        process = self._start(
            python or self.python,
            ["dask_worker", self.address, *options, *kind, *more],
            host,
            **environment,
        )
        if wait:
            process.said("Registered to:")
        return process

    def end(self) -> None:
        for process in self.processes[1:]:  # all workers at once; the scheduler when they are gone
            process.tell_to_end()
        for process in reversed(self.processes):
            process.end()


@pytest.fixture
def elsewhere(others: Path, tmp_path: Path) -> Iterator[Elsewhere]:
    """Yield a cluster of one scheduler in the other environment."""
    cluster = Elsewhere(others, tmp_path)
    yield cluster
    cluster.end()


def facts_of(python: Path) -> dict[str, Any]:
    """What an environment has, seen from a plain interpreter of it."""
    told = subprocess.run(
        [str(python), "-I", scan.__file__], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    facts: dict[str, Any] = json.loads(told)
    return facts


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Wish:
    """What a client wants of a cluster, and the bytes it takes.

    Parameters
    ----------
    python : Path
        The environment that is wanted, but for what is added.
    owner : str
        Whose it is.
    """

    def __init__(self, python: Path, owner: str = "ada", on_mismatch: str = "raise") -> None:
        facts = facts_of(python)
        self.owner = {"id": owner, "user": owner, "host": "laptop", "since": 1.0}
        self.on_mismatch = on_mismatch
        self.wanted: dict[str, Any] = {
            "who": "client",
            **{key: facts[key] for key in ("interpreter", "platform")},
            "distributions": [
                {key: one[key] for key in ("name", "version", "record", "editable")}
                for one in facts["distributions"]
                if not one["shadowed_by"]
            ],
        }
        self.packages: dict[str, Any] = {}
        self.trees: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}

    def want(self, name: str, wanted: str) -> None:
        """Want a version of a distribution, whether or not it can be shipped."""
        rest = [one for one in self.wanted["distributions"] if one["name"] != name]
        one = {"name": name, "version": wanted, "record": None, "editable": ""}
        self.wanted["distributions"] = sorted([*rest, one], key=lambda one: str(one["name"]))

    def ship(self, wheel: Path, *, want: bool = True) -> None:
        """Want the version of a wheel, and ship it."""
        name, found = wheel.name.split("-")[:2]
        data = wheel.read_bytes()
        if want:
            self.want(name.replace("_", "-"), found)
        self.packages[name.replace("_", "-")] = {
            "version": found,
            "sha256": digest_of(data),
            "filename": wheel.name,
            "size": len(data),
        }
        self.blobs[digest_of(data)] = data

    def tree(self, folder: Path, *, name: str = "", position: str = "front") -> None:
        """Want a folder's files, in the place of an earlier one of its name."""
        files = []
        for path in sorted(folder.rglob("*.py")):
            data = path.read_bytes()
            self.blobs[digest_of(data)] = data
            files.append([str(path.relative_to(folder)), digest_of(data), 0o644])
        one = {
            "name": name or folder.name,
            "position": position,
            "kind": "path",
            "distribution": None,
            "files": files,
        }
        self.trees = [*(tree for tree in self.trees if tree["name"] != one["name"]), one]
        self.wanted["trees"] = {tree["name"]: tree_digest(tree) for tree in self.trees}
        self.wanted["code"] = {
            tree["name"]: {
                "digest": tree_digest(tree),
                "files": {path: sha256 for path, sha256, _ in tree["files"]},
            }
            for tree in self.trees
        }

    def state(self) -> dict[str, Any]:
        content = {
            "wanted": self.wanted,
            "packages": {target_of_process(): self.packages} if self.packages else {},
            "trees": self.trees,
            "on_mismatch": self.on_mismatch,
        }
        digest = digest_of(json.dumps(content, sort_keys=True).encode())
        return {"digest": digest, "owner": self.owner, **content}

    async def send(self, client: Client) -> None:
        """Install the Hub, and send it the blobs that it lacks."""
        await client.scheduler.register_scheduler_plugin(
            plugin=by_value(Hub()), name=Hub.name, idempotent=True
        )
        for sha256 in await client.scheduler.envsync_lacking(digests=list(self.blobs)):
            await put(client, sha256, self.blobs[sha256])

    async def apply(self, client: Client, **options: Any) -> dict[str, Any]:
        """Do all that a client does."""
        await self.send(client)
        answer: dict[str, Any] = await client.scheduler.envsync_apply(state=self.state(), **options)
        return answer


async def put(client: Client, sha256: str, data: bytes) -> Mapping[str, Any]:
    """Send a blob in chunks; the last answer."""
    upload = uuid.uuid4().hex
    answer: Mapping[str, Any] = {}
    for offset in range(0, max(len(data), 1), CHUNK):
        answer = await client.scheduler.envsync_put(
            sha256=sha256,
            offset=offset,
            data=data[offset : offset + CHUNK],
            last=offset + CHUNK >= len(data),
            upload=upload,
        )
        if answer.get("refused"):
            break
    return answer


def states(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the states of workers by their names."""
    return {str(entry["name"]): entry["state"] for entry in answer["workers"].values()}


async def until(condition: Any, seconds: float = 90) -> Any:
    """Wait until something holds; what it was."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.05)
