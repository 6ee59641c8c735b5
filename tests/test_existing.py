"""In clusters that somebody else started, from another environment: repaired, kept so, and given back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index_server import write_wheel
from tests.places import BEGIN, Place, end, make_place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with make_place(tmp_path_factory.mktemp("existing")) as made:
        yield made


REPAIRED = (
    BEGIN
    + """
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(3, timeout=150)
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
    plugin.unregister()  # there is nothing left to give back, which is said
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
    client.wait_for_workers(2, timeout=150)
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


THREE_LINES = """
import sys
from distributed import Client
from envsync import SyncEnvironment, verify

client = Client(scheduler_file=sys.argv[1])
client.wait_for_workers(1, timeout=150)
client.register_plugin(SyncEnvironment())

def loaded():
    from importlib import import_module
    return import_module("01_load").VALUE, import_module("dir-x.m").VALUE, import_module("handmade").VALUE

print(client.submit(loaded, pure=False).result(), verify(client, on_mismatch="ignore").ok)
edited = sys.modules["importlib"].util.find_spec("handmade").origin
with open(edited, "w") as file:
    file.write("VALUE = 'edited again'\\n")
client.sync_environment()
print(client.submit(loaded, pure=False).result(), verify(client, on_mismatch="ignore").ok)
client.close()
"""


def test_scripts_of_any_name_and_packages_edited_in_place(place: Place, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "wheels", "handmade", "1.0", body="VALUE = 'as installed'\n")
    place.add(place.ours, wheel)
    place.add(place.other, wheel)
    (installed,) = place.ours.glob("lib/python*/site-packages/handmade/__init__.py")
    installed.unlink()  # it may be a link to the installer's own copy
    installed.write_text("VALUE = 'edited'\n")
    work = tmp_path / "work"
    (work / "dir-x").mkdir(parents=True)
    for name in ("01_load.py", "dir-x/m.py", "a b.py", "line\nbreak.py", "__main__.py"):
        (work / name).write_text("VALUE = 1\n")
    try:
        with place.cluster(tmp_path / "cluster", []) as scheduler:
            said = place.run(work, THREE_LINES, scheduler, script="my-run.py")
    finally:
        place.remove(place.ours, "handmade")
        place.remove(place.other, "handmade")
    assert said.splitlines() == ["(1, 1, 'edited') True", "(1, 1, 'edited again') True"]


TWO = (
    BEGIN
    + """
with Client(scheduler_file=sys.argv[1]) as one, Client(scheduler_file=sys.argv[1]) as two:
    one.wait_for_workers(1, timeout=150)
    one.register_plugin(SyncEnvironment())
    pathlib.Path("elsewhere").mkdir()
    pathlib.Path("elsewhere/other.py").write_text("VALUE = 1\\n")
    second = SyncEnvironment(cwd="elsewhere")
    try:
        two.register_plugin(second)
    except ClusterError as error:
        assert "is in place in this cluster" in str(error), error
    else:
        raise AssertionError("two environments at once")
    two.register_plugin(SyncEnvironment(cwd="elsewhere", take_over=True))
    assert everywhere(two, lambda: __import__("other").VALUE) == {1}
    print("refused")
"""
)


def test_another_environment_is_refused_unless_it_takes_over(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        work = tmp_path / "work"
        work.mkdir()
        assert "refused" in place.run(work, TWO, scheduler)


SHARED = (
    BEGIN
    + """
import logging
told = []

class Told(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())

logging.getLogger("envsync").addHandler(Told())

def mine():
    return __import__("mine").VALUE

# a notebook, and a shell beside it in the same folder
with Client(scheduler_file=sys.argv[1]) as notebook, Client(scheduler_file=sys.argv[1]) as shell:
    notebook.wait_for_workers(1, timeout=150)
    assert notebook.run_on_scheduler(vary) == "1.0"  # so the scheduler has imported it
    found = notebook.register_plugin(SyncEnvironment())
    assert found.ok, found  # it runs no tasks
    kept = "the scheduler keeps what it has imported: vary 1.0 (wanted: 2.0)"
    assert any(kept in one for one in told), told
    assert verify(notebook, on_mismatch="ignore").ok, verify(notebook, on_mismatch="ignore")
    pathlib.Path("mine.py").write_text("VALUE = 1\\n")
    assert shell.register_plugin(SyncEnvironment()).ok
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    assert notebook.sync_environment().ok
    assert set(notebook.run(mine).values()) == {22}
    assert notebook.run(vary).popitem()[1] == "2.0"
    print("shared")
"""
)


def test_a_shell_beside_a_notebook_shares_its_environment(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", []) as scheduler:
        assert "shared" in place.run(tmp_path / "work", SHARED, scheduler)


IMPORTED = (
    BEGIN
    + """
def versions(client):
    return sorted(client.run(vary).values())

with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(2, timeout=150)
    try:
        client.register_plugin(SyncEnvironment(cwd="nowhere"))
    except EnvsyncError as error:
        assert "nowhere is no folder" in str(error), error
    else:
        raise AssertionError("a folder that is not there was taken")
    assert versions(client) == ["1.0", "1.0"]  # so it is imported there, and stays in the one without a nanny
    before = sorted(client.run(path).values())
    try:
        client.register_plugin(SyncEnvironment())
    except MismatchError as error:
        assert "its own environment again; workers were restarted on the way" in str(error), error
        assert "vary" in str(error), error
    else:
        raise AssertionError("what is imported was pretended to be exchanged")
    assert sorted(client.run(path).values()) == before
    assert set(client.run(extra).values()) == {"no"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = client.register_plugin(SyncEnvironment(on_mismatch="warn"))
    assert not found.ok
    assert [one.filename for one in told if "vary" in str(one.message)] == [__file__]
    assert versions(client) == ["1.0", "2.0"]
    assert set(client.run(extra).values()) == {"extra"}
    try:
        client.register_plugin(SyncEnvironment())
    except MismatchError as error:
        assert "its own environment again" in str(error), error
    else:
        raise AssertionError("what is imported was pretended to be exchanged")
    assert set(client.run(extra).values()) == {"no"}
    print("said")
"""
)


def test_what_is_imported_already_is_said_and_never_pretended(place: Place, tmp_path: Path) -> None:
    with place.cluster(tmp_path / "cluster", ["--no-nanny"], []) as scheduler:
        assert "said" in place.run(tmp_path / "work", IMPORTED, scheduler)
        address = json.loads(Path(scheduler).read_text())["address"]
        done = place.envsync(tmp_path / "work", "sync", "--json", address)
        warned = place.envsync(tmp_path / "work", "sync", "--on-mismatch", "warn", address)
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["scheduler"], document["ok"]) == (address, False)
    (worker,) = [one for one in document["processes"] if one["process"] == "worker w0"]
    assert "vary" in {one["subject"] for one in worker["differences"]}
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert "nothing was changed" in events[-1]["message"]
    assert (warned.stdout + warned.stderr).count("not as wanted") == 1, "one table"
    assert "_mend" not in warned.stderr


LATE = (
    BEGIN
    + """
import subprocess
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(1, timeout=150)
    client.register_plugin(SyncEnvironment())
    futures = [client.submit(vary, pure=False) for _ in range(40)]
    command = [sys.argv[2], "worker", "--scheduler-file", sys.argv[1], "--name", "late", "--nthreads", "4",
               "--host", "127.0.0.1", "--no-dashboard", *sys.argv[3:]]
    late = subprocess.Popen(command)
    try:
        client.wait_for_workers(2, timeout=150)
        assert everywhere(client, vary) == {"2.0"}, everywhere(client, vary)
        futures += [client.submit(vary, pure=False) for _ in range(40)]
        assert set(client.gather(futures)) == {"2.0"}
    finally:
        late.terminate()
        try:
            late.wait(30)
        except subprocess.TimeoutExpired:  # how it ends is nothing of ours
            late.kill()
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
        return importlib.import_module("mine").VALUE, importlib.import_module("vary").__version__
    print(sorted({*client.run(value).values(), client.run_on_scheduler(value)}))
"""


def test_from_the_shell_and_at_every_save(place: Place, tmp_path: Path) -> None:
    work = tmp_path / "project"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    (work / "old.py").write_text("VALUE = 1\n")
    elsewhere = tmp_path / "elsewhere"
    log = tmp_path / "watch.log"
    with contextlib.ExitStack() as stack:
        with place.cluster(tmp_path / "cluster", [], []) as scheduler:
            address = address_of(scheduler)
            assert place.envsync(work, "check", address).returncode == 1
            done = place.envsync(work, "sync", address)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "all as wanted" in done.stdout or "usable" in done.stdout
            for path in (tmp_path / "cluster" / "overlays").rglob("vary/__init__.py"):
                path.unlink()  # as somebody who tidies up folders for temporary files
            checked = place.envsync(work, "check", address)
            assert checked.returncode == 1, checked.stdout
            assert "1 file gone (vary/__init__.py)" in checked.stdout
            assert place.envsync(work, "sync", address).returncode == 0
            checked = place.envsync(work, "check", address)
            assert checked.returncode == 0, checked.stdout
            assert place.run(elsewhere, VALUE, address) == "[(1, '2.0')]\n"
            watching = subprocess.Popen(
                [place.ours / "bin" / "envsync", "sync", address, "--watch", "--timeout", "60"],
                cwd=work,
                env=place.environment,
                stdout=log.open("wb"),
                stderr=subprocess.STDOUT,
            )
            stack.callback(end, watching)
            said(log, "scheduler", watching)
            (work / "mine.py").write_text("VALUE = 22\n")  # it may not watch yet
            said(log, "mine.py is on every process", watching)
            assert place.run(elsewhere, VALUE, address) == "[(22, '2.0')]\n"
            (work / "old.py").unlink()
            said(log, "old.py is gone from every process", watching)
        # another one in its place, which has never heard of any of this
        port = int(address.rpartition(":")[2])
        with place.cluster(tmp_path / "again", [], port=port) as scheduler:
            assert address_of(scheduler) == address
            said(log, "it gets everything again", watching)
            said(log, "all is on every process", watching)
            assert place.run(elsewhere, VALUE, address) == "[(22, '2.0')]\n"
            end(watching)
            undone = place.envsync(work, "sync", address, "--undo")
            assert "its own environment again" in undone.stdout, undone.stdout + undone.stderr
            assert "nothing to undo" in place.envsync(work, "sync", address, "--undo").stdout
            assert place.envsync(work, "check", address).returncode == 1


def address_of(scheduler: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, ValueError):  # it is not there, or not yet written to its end
            return str(json.loads(Path(scheduler).read_text())["address"])
        assert time.monotonic() < deadline
        time.sleep(0.1)


def said(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a log has a text."""
    deadline = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
