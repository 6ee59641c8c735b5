"""Two environments, an index that both were made from, and clusters that somebody started in one of them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envsync.plugins.compare import CORE
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel

ROOT = Path(__file__).parent.parent


def here() -> dict[str, str]:
    """Return the versions of Dask's core that these tests run with."""
    return {name: version(name) for name in sorted(CORE)}


def end(*processes: subprocess.Popen[bytes]) -> None:
    """Tell processes to end, all at once and each once (by a second signal Dask ends badly), and wait."""
    for process in processes:
        process.terminate()
    for process in processes:
        _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


def wheel_of_envsync(folder: Path) -> Path:
    """Write a wheel of these sources below a folder."""
    name, data = _built()
    wheel = folder / "dist" / name
    wheel.parent.mkdir(exist_ok=True)
    wheel.write_bytes(data)
    return wheel


@functools.cache
def _built() -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        source, wheels = Path(folder, "source"), Path(folder, "dist")
        for name in ("envsync", "runner", "plugins", "dockerfiles"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        subprocess.run([find_uv(), "build", "-q", "--wheel", "--out-dir", wheels, source], check=True)
        (wheel,) = wheels.glob("*.whl")
        return wheel.name, wheel.read_bytes()


def write_bytecode(python: Path) -> None:
    """Import what Dask's processes do, once: else all that start at the same time compile it, each."""
    subprocess.run(
        [python, "-c", "import distributed.cli.dask_scheduler, distributed.cli.dask_worker"], check=True
    )


class Place:
    """Two environments, an index that both were made from, and clusters in the other one.

    In `ours` stand envsync (as a wheel), vary 2.0, extra 1.0, same 1.0 and the editable project proj 2; in
    `other` vary 1.0, same 1.0, proj 1.0 as it was released, and no envsync. Made by `make_place`.
    """

    def __init__(self, folder: Path, index: IndexServer) -> None:
        self.folder = folder
        self.index = index
        self.ours = folder / "ours"
        self.other = folder / "other"

    def make(
        self,
        *,
        python: str | Path = sys.executable,
        core: Mapping[str, str] | None = None,
        ours: Sequence[str] = (),
        other: Sequence[str] | None = (),
    ) -> None:
        """Make both environments, with an interpreter, versions of Dask's core and more requirements.

        Only ours, if `other` is None: it takes as long again.
        """
        wheel = wheel_of_envsync(self.folder)
        project = self.folder / "project"
        (project / "src").mkdir(parents=True)
        (project / "src" / "proj.py").write_text("VALUE = 'mine, edited'\n")
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools>=64"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "proj"\nversion = "2"\n'
            '[tool.setuptools]\npackage-dir = {"" = "src"}\npy-modules = ["proj"]\n'
        )
        pins = [f"{name}=={wanted}" for name, wanted in (core or here()).items()]
        mine = (wheel, "vary==2.0", "extra==1.0", "same==1.0", "-e", project)
        self.install(self.ours, *pins, *mine, *ours, python=python)
        if other is None:
            return
        self.install(self.other, *pins, "vary==1.0", "same==1.0", "proj==1.0", *other, python=python)
        write_bytecode(self.other / "bin/python")

    def install(self, prefix: Path, *requirements: str | Path, python: str | Path = sys.executable) -> None:
        """Make an environment with these requirements."""
        self._uv("venv", "-q", "-p", python, prefix)
        self.add(prefix, *requirements)

    def add(self, prefix: Path, *requirements: str | Path) -> None:
        """Install these requirements into an environment."""
        self._uv("pip", "install", "-q", "-p", prefix, "--index", self.index.url, *requirements)

    def remove(self, prefix: Path, *names: str) -> None:
        """Uninstall from an environment."""
        self._uv("pip", "uninstall", "-q", "-p", prefix, *names)

    def _uv(self, *arguments: str | Path) -> None:
        subprocess.run([find_uv(), *map(str, arguments)], check=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "UV_INDEX": f"{os.environ.get('UV_INDEX', '')} {self.index.url}".strip(),
            "ENVSYNC_CACHE": str(self.folder / "cache"),
        }

    def _call(self, work: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.ours / "bin" / program, *arguments],
            cwd=work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def envsync(self, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._call(work, "envsync", *arguments)

    def run(self, work: Path, text: str, *arguments: str, script: str = "script.py") -> str:
        """Run a script as a user would, in our environment; return what it printed."""
        work.mkdir(exist_ok=True)
        (work / script).write_text(text)
        done = self._call(work, "python", script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def cluster(self, work: Path, *workers: list[str], port: int = 0) -> Iterator[str]:
        """Start a scheduler and workers of the other environment, with these options each."""
        running = []
        work.mkdir()
        environment = {**os.environ, "ENVSYNC_OVERLAYS": str(work / "overlays")}
        scheduler_file = work / "scheduler.json"

        def start(name: str, *options: str) -> None:
            with (work / f"{name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [self.other / "bin" / "dask", name.split("-")[0], *options],
                        cwd=work,
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )

        try:
            start(
                *("scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", ":0"),
                *("--scheduler-file", str(scheduler_file)),
            )
            for number, options in enumerate(workers):
                start(
                    *(f"worker-{number}", "--scheduler-file", str(scheduler_file), "--nthreads", "1"),
                    *("--host", "127.0.0.1", "--no-dashboard", "--name", f"w{number}", *options),
                )
            yield str(scheduler_file)
        finally:
            end(*running[1:])
            end(*running[:1])  # not together: a worker that closes with its scheduler may hang


@contextlib.contextmanager
def make_place(folder: Path, **options: Any) -> Iterator[Place]:
    """Yield a `Place` below a folder; the options are those of `Place.make`."""
    for number in ("1.0", "2.0"):
        write_wheel(folder / "wheels", "vary", number)
    write_wheel(folder / "wheels", "extra", "1.0", body="import vary\nVALUE = 'extra'\n")
    write_wheel(folder / "wheels", "same", "1.0")
    write_wheel(folder / "wheels", "proj", "1.0", body="VALUE = 'released'\n")
    with IndexServer(folder / "wheels") as index:
        made = Place(folder, index)
        made.make(**options)
        yield made


BEGIN = """
import pathlib, sys, warnings
from distributed import Client
from envsync import EnvsyncError, SyncEnvironment, verify
from envsync.errors import ClusterError, MismatchError

def everywhere(client, function):
    return {*client.run(function).values(), client.run_on_scheduler(function)}

def vary():
    return __import__("vary").__version__

def extra():
    try:
        return __import__("extra").VALUE
    except ImportError as error:
        return "no"

def path():
    # but for the folder of a worker's own, which has another name after a restart
    return tuple(one for one in sys.path if "dask-scratch-space" not in one)
"""
"""What scripts that `Place.run` runs begin with."""
