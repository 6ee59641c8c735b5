"""What a host lacks is found, made or downloaded once; what cannot be had is refused with a reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envsync.elf import read_elf
from envsync.errors import EnvsyncError, UnfitHostError, UnsupportedError
from envsync.hooks import Hooks
from envsync.indexes import Index, IndexSettings, read_settings
from envsync.snapshot import Interpreter, Snapshot
from envsync.store import FolderStore, cache_root
from envsync.supply import Supply
from envsync.target import Target
from envsync.uv import find_uv

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are Linux machines"),
]

NOWHERE = IndexSettings(no_index=True)
HERE = Target.current()


class Notes(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.steps: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("ENVSYNC_CACHE", str(folder))
    patch.setenv("UV_PYTHON_INSTALL_MIRROR", (folder / "no-mirror").as_uri())
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def store() -> FolderStore:
    return FolderStore(cache_root())


def blob(store: FolderStore, digest: str) -> Path:
    path = store.path(digest)
    assert path is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return path


async def test_without_an_index_a_machine_like_this_gets_the_installed_uv(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    hooks = Notes()
    supply = Supply(store, NOWHERE, hooks=hooks)
    digest = await supply.uv(HERE)
    assert blob(store, digest).read_bytes() == Path(find_uv()).read_bytes()
    assert "installed uv" in hooks.texts[0]
    with pytest.raises(EnvsyncError, match="uv"):
        await supply.uv(replace(HERE, machine="aarch64"))


@pytest.mark.parametrize("target", [replace(HERE, system="darwin"), replace(HERE, machine="sparc64")])
async def test_there_is_no_uv_for_some_machines(store: FolderStore, target: Target) -> None:
    with pytest.raises(UnsupportedError, match="no static executable"):
        await Supply(store, NOWHERE).uv(target)


async def test_uv_is_static_and_is_downloaded_once(store: FolderStore) -> None:
    hooks = Notes()
    supply = Supply(store, read_settings(), hooks=hooks)
    first, second = await asyncio.gather(supply.uv(HERE), supply.uv(replace(HERE, libc=("musl", "1.2"))))
    assert first == second
    facts = read_elf(blob(store, first))
    assert facts is not None
    assert facts.static
    assert facts.machine == HERE.machine
    program = cache_root() / "uv"
    program.write_bytes(blob(store, first).read_bytes())
    program.chmod(0o755)
    assert subprocess.check_output([program, "--version"], text=True).startswith("uv ")
    assert await Supply(store, NOWHERE).uv(HERE) == first  # no index is asked any more
    assert len([step for step in hooks.steps if "getting uv" in step]) == 1


async def test_uv_from_a_folder_of_wheels(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = version("uv")
    static = await Supply(store, read_settings()).uv(HERE)
    links = tmp_path / "links"
    links.mkdir()
    info = f"uv-{pin}.dist-info"
    with zipfile.ZipFile(links / f"uv-{pin}-py3-none-musllinux_1_1_{HERE.machine}.whl", "w") as wheel:
        wheel.write(blob(store, static), f"uv-{pin}.data/scripts/uv")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: uv\nVersion: {pin}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: py3-none-musllinux_1_1_{HERE.machine}\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    settings = IndexSettings(no_index=True, find_links=(Index(url=links.as_uri()),))
    hooks = Notes()
    assert await Supply(FolderStore(tmp_path / "cache"), settings, hooks=hooks).uv(HERE) == static
    assert hooks.texts == []


async def test_the_interpreter_is_the_one_that_runs_here(store: FolderStore) -> None:
    archive = await Supply(store, NOWHERE).interpreter(HERE)
    assert archive.version == platform.python_version()
    with tarfile.open(blob(store, archive.digest)) as tar:
        assert "bin/python3" in tar.getnames()


async def test_a_libc_that_is_too_old_is_refused_with_both_versions(store: FolderStore) -> None:
    with pytest.raises(UnfitHostError) as error:
        await Supply(store, NOWHERE).interpreter(replace(HERE, libc=("glibc", "2.5")))
    assert HERE.libc is not None
    assert "the host has glibc 2.5" in str(error.value)
    assert "needs glibc 2." in str(error.value)
    assert f"Install Python {HERE.minor}" in str(error.value)


@pytest.mark.parametrize(
    "target",
    [
        replace(HERE, system="darwin"),
        replace(HERE, implementation="pypy"),
        replace(HERE, machine="riscv64"),
        replace(HERE, libc=("musl", "1.2")),
    ],
    ids=["system", "implementation", "machine", "libc"],
)
async def test_an_interpreter_that_cannot_be_had(store: FolderStore, target: Target) -> None:
    with pytest.raises((UnsupportedError, UnfitHostError)) as error:
        await Supply(store, NOWHERE).interpreter(target)
    assert f"Install Python {HERE.minor}" in str(error.value)


async def test_another_interpreter_comes_from_where_uv_is_told(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await Supply(store, NOWHERE).interpreter(HERE)
    tree = tmp_path / "made" / "python"
    tree.mkdir(parents=True)
    with tarfile.open(blob(store, own.digest)) as tar:
        tar.extractall(tree, filter="fully_trusted")
    tarball = tmp_path / "python-build.tar.gz"
    with tarfile.open(tarball, "w:gz", compresslevel=1) as tar:
        tar.add(tree, "python")
    major, minor, patch = HERE.python.split(".")
    listing = {
        f"cpython-{HERE.python}-linux-{HERE.machine}-gnu": {
            "name": "cpython",
            "arch": {"family": HERE.machine, "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": int(major),
            "minor": int(minor),
            "patch": int(patch),
            "prerelease": "",
            "url": tarball.as_uri(),
            "sha256": hashlib.sha256(tarball.read_bytes()).hexdigest(),
            "variant": None,
            "build": "20240101",
        }
    }
    (tmp_path / "downloads.json").write_text(json.dumps(listing))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(tmp_path / "downloads.json"))
    monkeypatch.delenv("UV_PYTHON_INSTALL_MIRROR")

    snapshot = Snapshot(  # of an environment with another version than the one that is wanted
        interpreter=Interpreter(
            implementation="cpython",
            version=f"{major}.{minor}.99",
            executable=sys.executable,
            prefix=sys.prefix,
            base_prefix=sys.base_prefix,
            soabi="",
        ),
        target=HERE,
        distributions=(),
    )
    archive = await Supply(store, NOWHERE, snapshot).interpreter(HERE)
    assert (archive.version, archive.machine) == (HERE.python, HERE.machine)
    folder = tmp_path / "there"
    folder.mkdir()
    subprocess.run(["tar", "-xzf", blob(store, archive.digest), "-C", folder], check=True)
    ask = "import json, sys; print(sys.prefix)"
    said = subprocess.check_output([folder / "bin" / "python3", "-Ic", ask], text=True)
    assert said.strip() == str(folder)
    tarball.unlink()  # and is remembered
    assert await Supply(store, NOWHERE, snapshot).interpreter(HERE) == archive
