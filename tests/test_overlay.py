"""A host's overlays: whole or not there, made once, kept while somebody uses them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask import config

from envsync.plugins.hostlock import HostLock, OwnerLock
from envsync.plugins.overlay import Overlays, root, tree_digest
from envsync.trees import Manifest
from tests.overlays import make_wheel, put, put_tree, real, sha256_of


@pytest.fixture
def overlays(tmp_path: Path) -> Overlays:
    return Overlays(tmp_path / "host")


def names(overlays: Overlays, kind: str) -> list[str]:
    return sorted(one.name for one in (overlays.root / kind).iterdir())


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


# The folder


def test_root_is_made_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_OVERLAYS", str(tmp_path / "a/b"))
    assert root() == tmp_path / "a/b"
    assert root().stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("ENVSYNC_OVERLAYS")
    with config.set({"temporary-directory": str(tmp_path / "dask")}):
        assert root() == tmp_path / f"dask/envsync-{os.geteuid()}"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with config.set({"temporary-directory": None}):
        assert root() == tmp_path / f"envsync-{os.geteuid()}"


def test_root_that_others_could_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "overlays"
    monkeypatch.setenv("ENVSYNC_OVERLAYS", str(path))
    path.mkdir(mode=0o755)
    path.chmod(0o750)
    with pytest.raises(PermissionError, match=r"is open to others \(mode 750\): chmod 700 it"):
        root()
    path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match=f"{path} is a link"):
        root()
    path.unlink()
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="set ENVSYNC_OVERLAYS to a folder of your own"):
        root()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "overlays"
    monkeypatch.setenv("ENVSYNC_OVERLAYS", str(path))
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(PermissionError, match=r"belongs to another user \(uid 12345\)"):
        root()


# Blobs


def test_a_blob_is_there_when_it_is_right(overlays: Overlays) -> None:
    data = os.urandom(1_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    adding = overlays.add(sha256)
    adding.write(data[:400_000])
    adding.write(memoryview(data)[400_000:])
    assert sha256 not in names(overlays, "blobs")
    adding.commit()
    assert names(overlays, "blobs") == [sha256]
    assert (overlays.root / "blobs" / sha256).read_bytes() == data
    with overlays.add("0" * 64) as adding:
        adding.write(b"something else")
        with pytest.raises(ValueError, match="send it again"):
            adding.commit()
    adding = overlays.add("0" * 64)
    adding.abort()
    adding.abort()
    assert names(overlays, "blobs") == [sha256]
    with pytest.raises(ValueError, match="is no sha256"):
        overlays.add("../../etc/passwd")


# Building


def test_what_is_lacking_and_what_is_built(overlays: Overlays, tmp_path: Path) -> None:
    one = make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"})
    two = make_wheel(tmp_path, "two", "2", {"two.py": "x = 2\n"})
    other = Overlays(tmp_path / "other")
    packages = put(other, one, two)
    front = put_tree(other, "front", {"mine.py": "a = 1\n", "pack/__init__.py": ""})
    back = put_tree(other, "back", {"theirs.py": "b = 1\n"}, position="back")
    blobs = [sha256_of(one), sha256_of(two), *(file[1] for tree in (front, back) for file in tree["files"])]
    assert overlays.lacking(packages, [front, back]) == blobs
    with pytest.raises(FileNotFoundError, match=r"one-1-py3-none-any\.whl is not on this host"):
        overlays.build(packages, [])
    with pytest.raises(FileNotFoundError, match=r"mine\.py of source tree front is not on this host"):
        overlays.build({}, [front])
    assert names(overlays, "wheels") == names(overlays, "overlays") == names(overlays, "trees") == []
    put(overlays, one)
    assert overlays.lacking(packages, []) == [sha256_of(two)]
    for sha256 in overlays.lacking(packages, [front, back]):
        adding = overlays.add(sha256)
        adding.write((other.root / "blobs" / sha256).read_bytes())
        adding.commit()
    built = overlays.build(packages, [front, back])
    assert overlays.lacking(packages, [front, back]) == []
    assert (Path(built.site) / "one.py").read_text() == "x = 1\n"
    assert (Path(built.site) / "two.py").read_text() == "x = 2\n"
    assert [Path(folder).parent.name for folder in built.front] == [tree_digest(front)]
    assert (Path(built.front[0]) / "mine.py").read_text() == "a = 1\n"
    assert [sorted(os.listdir(folder)) for folder in built.back] == [["theirs.py"]]
    assert built.bin == ""
    assert built.root == str(overlays.root)
    assert json.loads(json.dumps(built.to_dict())) == built.to_dict()
    assert overlays.build(packages, [front, back]) == built
    assert {name: one["version"] for name, one in built.packages.items()} == {"one": "1", "two": "2"}


def test_nothing_at_all_is_an_overlay_too(overlays: Overlays) -> None:
    built = overlays.build({}, [])
    assert (built.site, built.bin, built.front, built.back) == ("", "", [], [])


def test_the_name_of_a_tree_is_its_manifests(overlays: Overlays) -> None:
    tree = put_tree(overlays, "näme", {"a.py": "x = 1\n", "b/ü.py": ""})
    assert tree_digest(tree) == Manifest.from_dict(tree).digest
    received = {**tree, "files": tuple(tuple(file) for file in tree["files"])}  # comms make tuples of lists
    assert tree_digest(received) == tree_digest(tree)


def test_another_tree_alone_is_another_overlay_with_the_same_packages(
    overlays: Overlays, tmp_path: Path
) -> None:
    packages = put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": ""}))
    first = overlays.build(packages, [put_tree(overlays, "code", {"a.py": "1\n"})])
    second = overlays.build(packages, [put_tree(overlays, "code", {"a.py": "2\n"})])
    assert first.digest != second.digest
    assert first.site == second.site


def test_packages_that_share_a_folder_are_one(overlays: Overlays, tmp_path: Path) -> None:
    shared = {"space/__init__.py": "", "LICENSE": "same"}
    packages = put(
        overlays,
        make_wheel(tmp_path, "left", "1", {**shared, "space/left.py": "", "clash.py": "left"}),
        make_wheel(tmp_path, "right", "1", {**shared, "space/right.py": "", "clash.py": "right"}),
    )
    site = Path(overlays.build(packages, []).site)
    assert sorted(os.listdir(site / "space")) == ["__init__.py", "left.py", "right.py"]
    assert (site / "clash.py").read_text() == "left"


def test_files_are_links_and_a_wheel_is_unpacked_once(overlays: Overlays, tmp_path: Path) -> None:
    one = make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"})
    two = make_wheel(tmp_path, "two", "1", {"two.py": "x = 2\n"})
    first = overlays.build(put(overlays, one), [])
    assert names(overlays, "blobs") == []
    assert overlays.lacking(put(Overlays(tmp_path / "other"), one, two), []) == [sha256_of(two)]
    second = overlays.build({**put(overlays, two), **put(Overlays(tmp_path / "other"), one)}, [])
    assert first.site != second.site
    assert (Path(first.site) / "one.py").samefile(Path(second.site) / "one.py")


def test_where_links_are_refused_files_are_copied(
    overlays: Overlays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    built = overlays.build(put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"})), [])
    assert (Path(built.site) / "one.py").read_text() == "x = 1\n"
    assert overlays.build(built.packages, []).site == built.site


def test_a_tree_has_files_of_its_own(overlays: Overlays) -> None:
    """Code may write to its own files, and must not change a blob, nor what others import, by that."""
    tree = put_tree(overlays, "code", {"a.py": "x = 1\n"})
    tree["files"][0][2] = 0o755
    built = overlays.build({}, [tree])
    file = Path(built.front[0]) / "a.py"
    assert file.stat().st_mode & 0o777 == 0o700
    file.write_text("x = 2\n")
    again = overlays.build({}, [tree])
    assert (Path(again.front[0]) / "a.py").read_text() == "x = 1\n"
    assert Path(again.front[0]).parent.name == tree_digest(tree) + ".1"
    assert file.read_text() == "x = 2\n"
    assert overlays.build({}, [tree]) == again


@pytest.mark.parametrize("path", ["../out.py", "/tmp/out.py", "a/../../out.py", ""])
def test_a_tree_stays_in_its_folder(path: str, overlays: Overlays) -> None:
    tree = put_tree(overlays, "code", {path: "x = 1\n"})
    with pytest.raises(ValueError, match="is not a path inside it"):
        overlays.build({}, [tree])
    assert names(overlays, "trees") == []


def test_what_a_cleaner_of_temp_folders_took_is_made_again(overlays: Overlays, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n", "other.py": "", "bytes.txt": "1"})
    tree = put_tree(overlays, "code", {"a.py": "x = 1\n", "b.py": "x = 2\n"})
    packages = put(overlays, wheel)
    built = overlays.build(packages, [tree])
    for file in (f"{built.site}/one.py", f"{built.front[0]}/a.py"):
        os.unlink(file)
    assert overlays.lacking(packages, [tree]) == []  # the unpacked wheel and the tree's blobs are there
    again = overlays.build(packages, [tree])
    assert (Path(again.site) / "one.py").read_text() == "x = 1\n"
    assert (Path(again.front[0]) / "a.py").read_text() == "x = 1\n"
    assert not (Path(built.site) / "one.py").exists()  # what is in use by others is left to them
    os.unlink(f"{again.site}/one.py")
    os.unlink(overlays.root / "wheels" / sha256_of(wheel) / "site/one.py")
    assert overlays.lacking(packages, []) == [sha256_of(wheel)]
    put(overlays, wheel)
    assert (Path(overlays.build(packages, []).site) / "one.py").read_text() == "x = 1\n"


def test_bytecode_beside_does_not_count(overlays: Overlays, tmp_path: Path) -> None:
    packages = put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"}))
    built = overlays.build(packages, [])
    subprocess.run([sys.executable, "-m", "compileall", "-q", built.site], check=True)
    assert list(Path(built.site).glob("__pycache__/one*.pyc"))
    assert overlays.build(packages, []) == built


def test_a_wheel_that_lies_leaves_nothing(overlays: Overlays, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", "1", {"x.py": ""}, record={"x.py": "x.py,sha256=AAAA,0"})
    with pytest.raises(ValueError, match=r"liar-1-py3-none-any\.whl: x\.py is not what"):
        overlays.build(put(overlays, wheel), [])
    assert names(overlays, "wheels") == names(overlays, "overlays") == []


# Several processes

BUILD = """
import json, sys, time
from pathlib import Path
from envsync.plugins.overlay import Overlays
packages = json.loads(sys.argv[2])
overlays = Overlays(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
with overlays.lock():
    lacking = overlays.lacking(packages, [])
    for name, one in packages.items():
        if one["sha256"] in lacking:
            with overlays.add(one["sha256"]) as adding:
                adding.write((Path(sys.argv[3]) / one["filename"]).read_bytes())
                adding.commit()
    built = overlays.build(packages, [])
    overlays.hold(built)
print(json.dumps([built.site, len(lacking)]), flush=True)
sys.stdin.readline()
"""

LOCKED = """
import sys, time
from pathlib import Path
from envsync.plugins.overlay import Overlays
overlays = Overlays(Path(sys.argv[1]))
with overlays.lock():
    adding = overlays.add("0" * 64)
    adding.write(b"half")
    (overlays.root / "overlays" / adding._part.rpartition("/")[2]).mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_one_process_of_a_host_fetches_and_all_have_it(
    overlays: Overlays, real_wheels: Path, tmp_path: Path
) -> None:
    wheels = [real(real_wheels, "six", "1.17.0"), real(real_wheels, "msgpack", "1.1.0")]
    packages = put(Overlays(tmp_path / "other"), *wheels)
    arguments = (str(overlays.root), json.dumps(packages), str(real_wheels))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        assert [line(process) for process in processes] == ["ready"] * 4
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(line(process)) for process in processes]
        assert len({site for site, _ in answers}) == 1
        assert sorted(lacking for _, lacking in answers) == [0, 0, 0, 2]
        assert len(names(overlays, "overlays")) == 1
        assert len(names(overlays, "holds")) == 4
    finally:
        for process in processes:
            process.communicate("end\n")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_in_the_middle_holds_nobody_up(
    ending: int, overlays: Overlays, tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    process = start(LOCKED, overlays.root)
    children.append(process)
    assert line(process) == "held"
    done = threading.Event()

    def wait_for_it() -> None:
        with overlays.lock():
            done.set()

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    assert not done.wait(0.5)
    process.send_signal(ending)
    thread.join(60)
    assert done.is_set()
    process.wait()
    packages = put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"}))
    with overlays.lock():
        overlays.hold(overlays.build(packages, []))
        unfinished = [one for kind in ("blobs", "overlays") for one in names(overlays, kind) if one[0] == "."]
        assert len(unfinished) == 2
        overlays.sweep()
        left = [one for kind in ("blobs", "overlays") for one in names(overlays, kind) if one[0] == "."]
    overlays.hold(None)
    assert left == []


def test_unfinished_work_of_a_living_process_stays(
    overlays: Overlays, children: list[subprocess.Popen[str]]
) -> None:
    process = start(LOCKED, overlays.root)
    children.append(process)
    assert line(process) == "held"
    overlays.sweep(older=0)
    assert len(names(overlays, "blobs")) == len(names(overlays, "overlays")) == 1


COUNT = """
import sys, time
from pathlib import Path
from envsync.plugins import hostlock
kind, lock, counter = sys.argv[1], sys.argv[2], Path(sys.argv[3])
for _ in range(10):
    with getattr(hostlock, kind)(lock):
        value = int(counter.read_text())
        time.sleep(0.005)
        counter.write_text(str(value + 1))
print("done")
"""

HOLD_LOCK = """
import sys, time
from envsync.plugins.hostlock import OwnerLock
with OwnerLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["HostLock", "OwnerLock"])
def test_one_at_a_time(kind: str, tmp_path: Path, children: list[subprocess.Popen[str]]) -> None:
    """The second kind is for file systems that have no locks."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    children += [start(COUNT, kind, tmp_path / "lock", counter) for _ in range(3)]
    assert [line(process) for process in children] == ["done"] * 3
    assert counter.read_text() == "30"
    assert not (tmp_path / "lock.owner").exists()


def test_a_lock_of_a_dead_owner_is_taken_without_the_kernels_help(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    process = start(HOLD_LOCK, tmp_path / "lock")
    children.append(process)
    assert line(process) == "held"
    process.kill()
    process.wait()
    began = time.monotonic()
    with OwnerLock(str(tmp_path / "lock")):
        pass
    assert time.monotonic() - began < 60  # and not ten minutes
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_is_taken_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/owner").write_text(json.dumps({"boot": "another", "pid": "1", "token": "theirs"}))
    began = time.monotonic()
    with OwnerLock(str(tmp_path / "lock"), stale=0.5):
        pass
    assert time.monotonic() - began >= 0.5


def test_a_file_system_without_locks_has_the_other_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what it sees itself: tests that load plugins anew leave another module under that name
    monkeypatch.setitem(HostLock.__enter__.__globals__, "locked", lambda _: None)
    with HostLock(str(tmp_path / "lock")):
        assert (tmp_path / "lock.owner/owner").exists()
    assert not (tmp_path / "lock.owner").exists()


# Sweeping

HOLD = """
import json, sys, time
from pathlib import Path
from envsync.plugins.overlay import Overlays
overlays = Overlays(Path(sys.argv[1]))
overlays.hold(json.loads(sys.argv[2]))
if sys.argv[3] == "closed":
    import os
    os.closerange(3, 100)
print("held", flush=True)
time.sleep(60)
"""


def removed(overlays: Overlays, **options: Any) -> set[str]:
    with overlays.lock():
        return {one.partition("/")[0] for one in overlays.sweep(**options)}


@pytest.mark.parametrize("way", ["open", "closed"])
def test_what_a_living_process_holds_stays_however_old(
    way: str, overlays: Overlays, tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    """Also where that process has closed all its files, and its lock with them."""
    packages = put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"}))
    tree = put_tree(overlays, "code", {"a.py": "x = 1\n"})
    built = overlays.build(packages, [tree])
    process = start(HOLD, overlays.root, json.dumps(built.to_dict()), way)
    children.append(process)
    assert line(process) == "held"
    assert removed(overlays, older=0) == set()
    assert overlays.lacking(packages, [tree]) == []
    assert names(overlays, "blobs") == [tree["files"][0][1]]  # the next tree has most of its files
    process.kill()
    process.wait()
    assert removed(overlays, older=0) == {"overlays", "trees", "wheels", "blobs"}
    assert names(overlays, "holds") == []
    assert not os.path.exists(built.site)


def test_holding_another_one_lets_the_first_go(overlays: Overlays, tmp_path: Path) -> None:
    builts = [
        overlays.build(
            put(overlays, make_wheel(tmp_path / str(number), "one", "1", {"one.py": str(number)})), []
        )
        for number in range(2)
    ]
    overlays.hold(builts[0])
    overlays.hold(builts[0].to_dict())
    assert len(names(overlays, "holds")) == 1
    overlays.hold(builts[1])
    assert removed(overlays, older=0) == {"overlays", "wheels"}
    assert [os.path.exists(built.site) for built in builts] == [False, True]
    overlays.hold(None)
    assert names(overlays, "holds") == []
    assert removed(overlays, older=0) == {"overlays", "wheels"}


def test_what_was_used_a_moment_ago_stays_and_what_is_to_be_kept(overlays: Overlays, tmp_path: Path) -> None:
    packages = put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": ""}))
    built = overlays.build(packages, [])
    assert removed(overlays, older=60) == set()
    (overlay,) = (overlays.root / "overlays").iterdir()
    for folder in (overlay, *(overlays.root / "wheels").iterdir()):
        os.utime(folder, (1, 1))
    assert removed(overlays, older=60, keep=[overlay.name]) == set()  # and the wheels that it is made of
    overlays.build(packages, [])  # a use
    assert removed(overlays, older=60) == {"wheels"}
    assert os.path.exists(built.site)


def test_a_folder_that_somebody_removed_is_made_again(overlays: Overlays, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one", "1", {"one.py": ""})
    built = overlays.build(put(overlays, wheel), [])
    shutil.rmtree(overlays.root)
    again = Overlays(overlays.root)
    assert again.build(put(again, wheel), []) == built
