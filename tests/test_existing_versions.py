"""Clusters that somebody started, from the oldest to the newest of Python and distributed, and mixed ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from envsync.uv import find_uv
from tests.places import BEGIN, ROOT, Place, here, make_place, write_bytecode
from tests.pythons import interpreter

pytestmark = pytest.mark.slow

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
OLDEST = {"dask": "2024.4.1", "distributed": "2024.4.1"}
OF_ITS_TIME = {"msgpack": "1.0.8", "cloudpickle": "3.0.0", "tornado": "6.4"}
NEWEST = {name: version(name) for name in OLDEST}
MINORS = ("3.10", "3.11", "3.12", "3.13")

Made = Callable[[str, dict[str, str]], Place]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Environments of the Python and the Dask that the tests run with."""
    with make_place(tmp_path_factory.mktemp("versions")) as made:
        yield made


@pytest.fixture(scope="module")
def made(place: Place) -> Made:
    """Make the same environments of another Python, or with other versions of Dask's core."""

    def make(minor: str, core: dict[str, str]) -> Place:
        if (minor, core) == (RUNNING, NEWEST):
            return place
        one = Place(place.folder, place.index)
        name = f"{minor}-{core['distributed']}"
        one.ours, one.other = place.folder / f"ours-{name}", place.folder / f"other-{name}"
        if one.other.exists():
            return one
        pins = [f"{name}=={wanted}" for name, wanted in core.items()]
        (wheel,) = (place.folder / "dist").glob("*.whl")
        python = wanted_python(minor)
        one.install(one.ours, *pins, wheel, "vary==2.0", "extra==1.0", python=python)
        one.install(one.other, *pins, "vary==1.0", python=python)
        write_bytecode(one.other / "bin/python")
        return one

    return make


def wanted_python(minor: str) -> Path:
    found = interpreter(minor)
    if found is None:
        pytest.skip(f"no CPython {minor} on this machine")
    return found


def test_the_oldest_is_what_the_project_asks_for() -> None:
    assert f'"distributed>={OLDEST["distributed"]}"' in (ROOT / "pyproject.toml").read_text()


STORY = (
    BEGIN
    + """
import subprocess
import distributed

def mine():
    return __import__("mine").VALUE

def python():
    return "%d.%d" % sys.version_info[:2], __import__("distributed").__version__

with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(1, timeout=150)
    assert everywhere(client, python) == {(sys.argv[3], sys.argv[4])} == {python()}
    before = sorted(map(str, client.run(path).values())), client.run_on_scheduler(path)
    plugin = SyncEnvironment()
    assert client.register_plugin(plugin).ok
    assert everywhere(client, mine) == {1}, everywhere(client, mine)
    assert client.submit(vary, pure=False).result() == "2.0"
    pids = client.run(__import__("os").getpid)
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert everywhere(client, mine) == {22}, everywhere(client, mine)
    assert client.run(__import__("os").getpid) == pids
    futures = [client.submit(vary, pure=False) for _ in range(20)]
    late = subprocess.Popen([sys.argv[2], "worker", "--scheduler-file", sys.argv[1], "--name", "late",
                             "--nthreads", "4", "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"])
    try:
        client.wait_for_workers(2, timeout=150)
        futures += [client.submit(vary, pure=False) for _ in range(20)]
        assert set(client.gather(futures)) == {"2.0"}
        assert everywhere(client, mine) == {22}, everywhere(client, mine)
        assert verify(client, on_mismatch="ignore").ok, verify(client, on_mismatch="ignore")
    finally:
        late.terminate()
        try:
            late.wait(30)
        except subprocess.TimeoutExpired:  # how it ends is nothing of ours
            late.kill()
    plugin.unregister()
    assert sorted(map(str, client.run(path).values())) == before[0]
    assert client.run_on_scheduler(path) == before[1]
    assert everywhere(client, extra) == {"no"}
    assert client.submit(vary, pure=False).result() == "1.0"
    print("told")
"""
)


@pytest.mark.parametrize(
    ("minor", "core"),
    [
        pytest.param("3.10", {**OLDEST, **OF_ITS_TIME}, id="3.10-oldest"),
        pytest.param("3.13", OLDEST, id="3.13-oldest"),
        # the one that runs this: test_existing.py
        *(pytest.param(minor, NEWEST, id=f"{minor}-newest") for minor in MINORS if minor != RUNNING),
    ],
)
def test_the_whole_story(made: Made, tmp_path: Path, minor: str, core: dict[str, str]) -> None:
    place = made(minor, core)
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        dask = str(place.other / "bin" / "dask")
        assert "told" in place.run(work, STORY, scheduler, dask, minor, core["distributed"])


LATE = (
    BEGIN
    + """
import logging, os, subprocess, time

class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []
    def emit(self, record):
        self.said.append((time.time(), record.levelname, record.getMessage()))

heard = Heard()
logging.getLogger("envsync").addHandler(heard)
scheduler, dask, on_mismatch, ran, *words = sys.argv[1:]

with Client(scheduler_file=scheduler) as client:
    client.register_plugin(SyncEnvironment(on_mismatch=on_mismatch))
    futures = [client.submit(os.getpid, pure=False) for _ in range(10)]
    late = subprocess.Popen([dask, "worker", "--scheduler-file", scheduler, "--name", "late",
                             "--nthreads", "4", "--host", "127.0.0.1", "--no-dashboard"])
    try:
        end = time.monotonic() + 60
        while not any("worker late" in text for _, _, text in heard.said):
            assert time.monotonic() < end and late.poll() is None, heard.said
            time.sleep(0.05)
        [(told, level, text)] = [one for one in heard.said if "worker late" in one[2]]
        assert level == "WARNING"
        assert all(word in text for word in words), text
        events = client.run_on_scheduler(lambda dask_scheduler: [
            *dask_scheduler.get_events("envsync"), *dask_scheduler.get_events("all")])
        since = min(stamp for stamp, said in events if said["action"] in ("refused", "add-worker"))
        assert told - since < 60, (told - since, events)
        if ran == "none":
            time.sleep(1)
            assert not any(one.done() for one in futures)
            assert not client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.total_nthreads)
            assert late.wait(60) is not None
        else:
            assert len(client.gather(futures)) == 10
    finally:
        late.terminate()
        try:
            late.wait(30)
        except subprocess.TimeoutExpired:  # how it ends is nothing of ours
            late.kill()
    print("told:", text)
"""
)


@pytest.mark.parametrize(
    ("on_mismatch", "ran", "what"),
    [("raise", "none", "was refused"), ("warn", "all", "was let in although it differs")],
)
def test_a_late_worker_with_another_dask(
    place: Place, tmp_path: Path, on_mismatch: str, ran: str, what: str
) -> None:
    third = place.folder / "other-dask"
    if not third.exists():
        pins = [f"{name}=={wanted}" for name, wanted in here().items()]
        place.install(third, *pins, "vary==1.0", "same==1.0", "proj==1.0")
        older = ["--no-deps", f"dask<{version('dask')}"]  # distributed itself would not have it
        subprocess.run([find_uv(), "pip", "install", "-q", "-p", third, *older], check=True)
    arguments = (str(third / "bin/dask"), on_mismatch, ran, what, f"not {version('dask')}", "dask")
    with place.cluster(tmp_path / "cluster") as scheduler:
        assert "told" in place.run(tmp_path / "work", LATE, scheduler, *arguments)


@pytest.mark.parametrize(
    ("on_mismatch", "ran", "what"),
    [("raise", "none", "was refused"), ("warn", "all", "was let in although it differs")],
)
def test_a_late_worker_of_another_python(
    place: Place, made: Made, tmp_path: Path, on_mismatch: str, ran: str, what: str
) -> None:
    minor = next(one for one in ("3.12", "3.11", "3.13") if one != RUNNING)
    dask = str(made(minor, NEWEST).other / "bin/dask")
    with place.cluster(tmp_path / "cluster") as scheduler:
        arguments = (dask, on_mismatch, ran, what, f"python {minor}", f"not {RUNNING}")
        assert "told" in place.run(tmp_path / "work", LATE, scheduler, *arguments)


FOREIGN = (
    BEGIN
    + """
import os, subprocess

with Client(scheduler_file=sys.argv[1]) as client:
    other = subprocess.Popen([sys.argv[2], "worker", "--scheduler-file", sys.argv[1], "--name", "other",
                              "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"])
    try:
        client.wait_for_workers(2, timeout=150)
        kept = client.submit(os.getpid, workers=["other"], pure=False)
        pid = kept.result()
        try:
            client.register_plugin(SyncEnvironment())
        except MismatchError as error:
            assert "nothing was changed" in str(error) and "worker other" in str(error), error
        else:
            raise AssertionError("another Python is no mismatch")
        plugin = SyncEnvironment(on_mismatch="warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = client.register_plugin(plugin)
        assert not found.ok
        assert any("worker other" in str(one.message) and sys.argv[3] in str(one.message) for one in told)
        assert client.submit(vary, workers=["w0"], pure=False).result() == "2.0"
        state = client.sync(client.scheduler.envsync_state)["workers"]
        assert {one["name"]: one["state"] for one in state.values()} == {"w0": "equal", "other": "different"}
        pathlib.Path("mine.py").write_text("VALUE = 1\\n")
        assert not client.sync_environment().ok
        plugin.unregister()
        # no process was ended
        assert kept.result() == pid == client.submit(os.getpid, workers=["other"], pure=False).result()
    finally:
        other.terminate()
        try:
            other.wait(30)
        except subprocess.TimeoutExpired:  # how it ends is nothing of ours
            other.kill()
    print("let be")
"""
)


def test_a_worker_of_another_python_is_let_be(place: Place, made: Made, tmp_path: Path) -> None:
    """Code that travels by value would end it."""
    minor = next(one for one in ("3.12", "3.11", "3.13") if one != RUNNING)
    dask = str(made(minor, NEWEST).other / "bin/dask")
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        assert "let be" in place.run(tmp_path / "work", FOREIGN, scheduler, dask, minor)


SCHEDULER = (
    BEGIN
    + """
from envsync.runner.existing import release
with Client(scheduler_file=sys.argv[1]) as client:
    begun = client.scheduler_info()["id"]
    try:
        client.register_plugin(SyncEnvironment(on_mismatch="warn"))
    except MismatchError as error:
        assert "nothing was changed" in str(error) and "in scheduler" in str(error), error
    else:
        raise AssertionError("another Python is no mismatch")
    try:
        client.sync(release, client)
    except ClusterError as error:
        assert "another Python" in str(error)
    else:
        raise AssertionError("another Python is none")
    assert not verify(client, on_mismatch="ignore").ok
    assert client.sync(client.scheduler.identity)["id"] == begun
    print("let be")
"""
)


def test_a_scheduler_of_another_python_is_let_be(place: Place, made: Made, tmp_path: Path) -> None:
    minor = next(one for one in ("3.12", "3.11", "3.13") if one != RUNNING)
    with made(minor, NEWEST).cluster(tmp_path / "cluster") as scheduler:
        assert "let be" in place.run(tmp_path / "work", SCHEDULER, scheduler)
