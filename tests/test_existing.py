"""In clusters that somebody else started, from another environment: repaired, kept so, and given back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from envsync.plugins.compare import CORE
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


class Place:
    """Two environments, an index that both were made from, and clusters in the other one."""

    def __init__(self, folder: Path, index: IndexServer) -> None:
        self.folder = folder
        self.index = index
        self.ours = folder / "ours"
        self.other = folder / "other"

    def make(self) -> None:
        source = self.folder / "source"
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("envsync", "runner", "plugins"):
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        wheels = self.folder / "dist"
        self._uv("build", "-q", "--wheel", "--out-dir", wheels, source)
        (wheel,) = wheels.glob("*.whl")
        project = self.folder / "project"
        (project / "src").mkdir(parents=True)
        (project / "src" / "proj.py").write_text("VALUE = 'mine, edited'\n")
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools>=64"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "proj"\nversion = "2"\n'
            '[tool.setuptools]\npackage-dir = {"" = "src"}\npy-modules = ["proj"]\n'
        )
        self._install(self.ours, wheel, "vary==2.0", "extra==1.0", "same==1.0", "-e", project)
        self._install(self.other, "vary==1.0", "same==1.0", "proj==1.0")

    def _install(self, prefix: Path, *requirements: str | Path) -> None:
        pins = [f"{name}=={version(name)}" for name in sorted(CORE)]
        self._uv("venv", "-q", "-p", sys.executable, prefix)
        self._uv("pip", "install", "-q", "-p", prefix, "--index", self.index.url, *pins, *requirements)

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

    def run(self, work: Path, script: str, *arguments: str) -> str:
        """Run a script as a user would, in our environment; return what it printed."""
        work.mkdir(exist_ok=True)
        (work / "script.py").write_text(script)
        done = self._call(work, "python", "script.py", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def cluster(self, work: Path, *workers: list[str]) -> Iterator[str]:
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
                *("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"),
                *("--scheduler-file", str(scheduler_file)),
            )
            for number, options in enumerate(workers):
                start(
                    *(f"worker-{number}", "--scheduler-file", str(scheduler_file), "--nthreads", "1"),
                    *("--host", "127.0.0.1", "--no-dashboard", "--name", f"w{number}", *options),
                )
            yield str(scheduler_file)
        finally:
            for process in reversed(running):  # one by one: a worker that closes with its scheduler may hang
                end(process)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("existing")
    for number in ("1.0", "2.0"):
        write_wheel(folder / "wheels", "vary", number)
    write_wheel(folder / "wheels", "extra", "1.0", body="import vary\nVALUE = 'extra'\n")
    write_wheel(folder / "wheels", "same", "1.0")
    write_wheel(folder / "wheels", "proj", "1.0", body="VALUE = 'released'\n")
    with IndexServer(folder / "wheels") as index:
        made = Place(folder, index)
        made.make()
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

REPAIRED = (
    BEGIN
    + """
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(3, timeout=60)
    before = client.run(path), client.run_on_scheduler(path)
    assert everywhere(client, extra) == {"no"}
    plugin = SyncEnvironment()
    found = client.register_plugin(plugin)
    assert found.ok, found
    assert everywhere(client, vary) == {"2.0"}, everywhere(client, vary)
    assert everywhere(client, extra) == {"extra"}
    assert {client.submit(vary, pure=False).result() for _ in range(6)} == {"2.0"}
    # a project that is editable here, and installed there as it was released
    assert everywhere(client, lambda: __import__("proj").VALUE) == {"mine, edited"}
    assert verify(client, on_mismatch="ignore").ok, verify(client, on_mismatch="ignore")
    assert plugin.sync().ok
    assert client.register_plugin(plugin).ok  # twice is once
    # and given back
    plugin.unregister()
    after = client.run(path), client.run_on_scheduler(path)
    assert sorted(map(str, after[0].values())) == sorted(map(str, before[0].values()))
    assert after[1] == before[1]
    assert everywhere(client, extra) == {"no"}
    assert everywhere(client, lambda: __import__("proj").VALUE) == {"released"}
    assert not verify(client, on_mismatch="ignore").ok
    print("repaired")
"""
)


def test_packages_that_differ_or_are_missing_are_laid_over_and_taken_away_again(
    place: Place, tmp_path: Path
) -> None:
    with place.cluster(tmp_path / "cluster", [], [], ["--no-nanny"]) as scheduler:
        assert "repaired" in place.run(tmp_path / "work", REPAIRED, scheduler)


CODE = (
    BEGIN
    + """
def mine():
    return __import__("mine").VALUE

with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(2, timeout=60)
    plugin = SyncEnvironment(restart="never")
    client.register_plugin(plugin)
    assert everywhere(client, mine) == {1}, everywhere(client, mine)
    pids = client.run(__import__("os").getpid)
    import mine as old
    kept = client.submit(lambda: "kept", key="kept"); kept.result()
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert everywhere(client, mine) == {22}, everywhere(client, mine)
    assert client.submit(mine, pure=False).result() == 22
    assert client.run(__import__("os").getpid) == pids
    assert kept.result() == "kept"
    print("synced")
"""
)


def test_edited_code_arrives_without_a_restart(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", [], ["--no-nanny"]) as scheduler:
        work = tmp_path / "work"
        work.mkdir()
        (work / "mine.py").write_text("VALUE = 1\n")
        assert "synced" in place.run(work, CODE, scheduler)


TWO = (
    BEGIN
    + """
with Client(scheduler_file=sys.argv[1]) as one, Client(scheduler_file=sys.argv[1]) as two:
    one.wait_for_workers(1, timeout=60)
    one.register_plugin(SyncEnvironment())
    pathlib.Path("other.py").write_text("VALUE = 1\\n")
    second = SyncEnvironment()
    try:
        two.register_plugin(second)
    except ClusterError as error:
        assert "is in place in this cluster" in str(error), error
    else:
        raise AssertionError("two environments at once")
    two.register_plugin(SyncEnvironment(take_over=True))
    assert everywhere(two, lambda: __import__("other").VALUE) == {1}
    print("refused")
"""
)


def test_another_environment_is_refused_unless_it_takes_over(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        work = tmp_path / "work"
        work.mkdir()
        assert "refused" in place.run(work, TWO, scheduler)


IMPORTED = (
    BEGIN
    + """
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(1, timeout=60)
    assert client.run(vary).popitem()[1] == "1.0"  # so it is imported there, and stays
    before = client.run(path)
    try:
        client.register_plugin(SyncEnvironment())
    except MismatchError as error:
        assert "nothing was changed" in str(error), error
        assert "vary" in str(error), error
    else:
        raise AssertionError("what is imported was pretended to be exchanged")
    assert client.run(path) == before
    assert client.run(extra).popitem()[1] == "no"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = client.register_plugin(SyncEnvironment(on_mismatch="warn"))
    assert not found.ok
    assert any("vary" in str(one.message) for one in told)
    assert client.run(vary).popitem()[1] == "1.0"
    assert client.run(extra).popitem()[1] == "extra"
    print("said")
"""
)


def test_what_is_imported_already_is_said_and_never_pretended(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", ["--no-nanny"]) as scheduler:
        assert "said" in place.run(tmp_path / "work", IMPORTED, scheduler)


LATE = (
    BEGIN
    + """
import subprocess
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(1, timeout=60)
    client.register_plugin(SyncEnvironment())
    futures = [client.submit(vary, pure=False) for _ in range(40)]
    command = [sys.argv[2], "worker", "--scheduler-file", sys.argv[1], "--name", "late", "--nthreads", "4",
               "--host", "127.0.0.1", "--no-dashboard", *sys.argv[3:]]
    late = subprocess.Popen(command)
    try:
        client.wait_for_workers(2, timeout=60)
        assert everywhere(client, vary) == {"2.0"}, everywhere(client, vary)
        futures += [client.submit(vary, pure=False) for _ in range(40)]
        assert set(client.gather(futures)) == {"2.0"}
    finally:
        late.terminate()
        late.wait(30)
    print("late")
"""
)


@pytest.mark.parametrize("options", [[], ["--no-nanny"]])
def test_who_comes_later_has_it_before_its_first_task(
    place: Place, tmp_path: Path, options: list[str]
) -> None:
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        dask = str(place.other / "bin" / "dask")
        assert "late" in place.run(tmp_path / "work", LATE, scheduler, dask, *options)


VALUE = """
import sys
from distributed import Client

with Client(sys.argv[1]) as client:
    def value():
        import importlib
        return importlib.import_module("mine").VALUE
    print(sorted({*client.run(value).values(), client.run_on_scheduler(value)}))
"""


def test_from_the_shell_and_at_every_save(place: Place, tmp_path: Path) -> None:
    work = tmp_path / "project"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    elsewhere = tmp_path / "elsewhere"
    with place.cluster(tmp_path / "cluster", [], []) as scheduler:
        deadline = time.monotonic() + 60
        while not Path(scheduler).exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads(Path(scheduler).read_text())["address"]
        assert place.envsync(work, "check", address).returncode == 1
        done = place.envsync(work, "sync", address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all as wanted" in done.stdout or "usable" in done.stdout
        checked = place.envsync(work, "check", address)
        assert checked.returncode == 0, checked.stdout
        assert place.run(elsewhere, VALUE, address) == "[1]\n"
        with (tmp_path / "watch.log").open("wb") as log:
            watching = subprocess.Popen(
                [place.ours / "bin" / "envsync", "sync", address, "--watch"],
                cwd=work,
                env=place.environment,
                stdout=log,
                stderr=log,
            )
            try:
                deadline = time.monotonic() + 60
                while "scheduler" not in (tmp_path / "watch.log").read_text():
                    assert time.monotonic() < deadline
                    assert watching.poll() is None, (tmp_path / "watch.log").read_text()
                    time.sleep(0.1)
                time.sleep(1)
                (work / "mine.py").write_text("VALUE = 22\n")
                while "mine.py is on every process" not in (tmp_path / "watch.log").read_text():
                    assert time.monotonic() < deadline, (tmp_path / "watch.log").read_text()
                    time.sleep(0.1)
                assert place.run(elsewhere, VALUE, address) == "[22]\n"
            finally:
                end(watching)
        undone = place.envsync(work, "sync", address, "--undo")
        assert "its own environment again" in undone.stdout, undone.stdout + undone.stderr
        assert "nothing to undo" in place.envsync(work, "sync", address, "--undo").stdout
        assert place.envsync(work, "check", address).returncode == 1
