"""Wheels of what is installed and of local projects: the same bytes again, and they install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from packaging.utils import parse_wheel_filename

from envsync import wheels
from envsync.errors import BuildError
from envsync.hooks import Hooks
from envsync.snapshot import Distribution, Snapshot, capture
from envsync.staging import look
from envsync.store import FolderStore
from envsync.uv import run_uv
from envsync.wheelfile import Entry, compressed_tags, write
from envsync.wheels import as_shipped, build, record_of, repack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envsync.artifacts import Artifact

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return FolderStore(tmp_path / "cache")


class Listener(Hooks):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


def environment(folder: Path, *wheels: str | Path, linked: bool = True) -> Path:
    """Make a virtual environment with these installed; return its interpreter."""
    run_uv(["venv", "--quiet", "--python", sys.executable, str(folder)], env={})
    python = folder / "bin" / "python"
    if wheels:
        mode = "hardlink" if linked else "copy"
        arguments = ["pip", "install", "--quiet", "--no-deps", "--python", str(python), "--link-mode", mode]
        run_uv([*arguments, *map(str, wheels)], env={})
    return python


def project(folder: Path, pyproject: str = "", **files: str) -> Path:
    """Write a project that setuptools builds."""
    head = '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
    for name, content in {"pyproject.toml": head + pyproject, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def fetched(artifact: Artifact, store: FolderStore, folder: Path) -> Path:
    """Put a wheel where installers find it, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artifact.filename
    with store.open(artifact.sha256) as file:
        path.write_bytes(file.read())
    assert artifact.size == path.stat().st_size
    return path


def installed(python: Path, name: str) -> tuple[Snapshot, Distribution]:
    snapshot = capture(str(python))
    distribution = snapshot.distribution(name)
    assert distribution is not None
    return snapshot, distribution


def said(python: Path, *args: str) -> str:
    return subprocess.run([python, *args], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with a wheel of every shape in it, that an installer made."""
    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        rich = project(
            folder / "Rich_Project",
            """
[project]
name = "Rich.Project"
version = "1.2+local.3"
[project.scripts]
generated = "rich_pkg:main"
[project.gui-scripts]
generated-gui = "rich_pkg:main"
[tool.setuptools]
packages = ["rich_pkg"]
script-files = ["by-hand.py", "shell.sh"]
[tool.setuptools.package-data]
rich_pkg = ["*.txt", "tool"]
[tool.setuptools.data-files]
"share/rich" = ["d.txt"]
"etc/rich" = ["d.txt"]
""",
            **{
                "rich_pkg/__init__.py": "def main():\n    print('generated speaks')\n",
                "rich_pkg/ünï code.txt": "x",
                "rich_pkg/tool": "#!/bin/sh\necho tool\n",
                "by-hand.py": "#!/usr/bin/env python\nimport sys\nprint('by hand', sys.prefix)\n",
                "shell.sh": "#!/bin/sh\necho shell\n",
                "d.txt": "data",
                "setup.py": "from setuptools import setup\nsetup(headers=['rich.h'])\n",
                "rich.h": "#define RICH 1\n",
            },
        )
        (rich / "rich_pkg" / "tool").chmod(0o755)
        spaces = [
            project(
                folder / f"space-{part}",
                f'[project]\nname = "space-{part}"\nversion = "1"\n'
                '[tool.setuptools]\npackages = ["space.' + part + '"]\n',
                **{f"space/{part}/__init__.py": f"PART = {part!r}\n"},
            )
            for part in ("one", "two")
        ]
        bare = project(
            folder / "bare",
            '[project]\nname = "bare"\nversion = "3"\n[project.entry-points."rich.plugins"]\n'
            'b = "builtins:print"\n[project.scripts]\nbare = "this:main"\n[tool.setuptools]\npackages = []\n',
        )
        store = FolderStore(folder / "cache")
        wheels = [fetched(build(each, store), store, folder / "wheels") for each in (rich, *spaces, bare)]
        yield environment(folder / "env", *wheels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rich-project", "space-one", "bare"])
def test_a_repacked_wheel_installs_as_what_it_was(
    sample: Path, store: FolderStore, tmp_path: Path, name: str
) -> None:
    snapshot, distribution = installed(sample, name)
    artifact = repack(distribution, snapshot, store)
    wheel = fetched(artifact, store, tmp_path / "wheels")
    again, copy = installed(environment(tmp_path / "again", wheel), name)
    assert copy.record == distribution.record
    assert (copy.name, copy.version, copy.tags) == (name, distribution.version, distribution.tags)
    assert record_of(artifact, store) == distribution.record
    assert (artifact.name, artifact.path) == (name, f"envsync-wheels/{artifact.filename}")
    # What comes out of the new environment is the same wheel again, byte by byte.
    assert repack(copy, again, store) == artifact
    assert again is not snapshot


@pytest.mark.slow
def test_a_repacked_wheel_works(sample: Path, store: FolderStore, tmp_path: Path) -> None:
    snapshot, distribution = installed(sample, "rich-project")
    wheel = fetched(repack(distribution, snapshot, store), store, tmp_path / "wheels")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = next(name for name in names if "/scripts/" in name).split("/")[0]
    assert {f"{data}/scripts/by-hand.py", f"{data}/scripts/shell.sh", f"{data}/headers/rich.h"} <= names
    assert {f"{data}/data/share/rich/d.txt", f"{data}/data/etc/rich/d.txt"} <= names
    assert not [
        name for name in names if "generated" in name or name.endswith((".pyc", "INSTALLER", "url.json"))
    ]
    assert zipfile.ZipFile(wheel).read(f"{data}/scripts/by-hand.py").startswith(b"#!python\n")
    assert zipfile.ZipFile(wheel).read(f"{data}/scripts/shell.sh") == b"#!/bin/sh\necho shell\n"
    there = environment(tmp_path / "there", wheel).parent
    assert said(there / "generated") == "generated speaks\n"
    assert said(there / "by-hand.py") == f"by hand {there.parent}\n"
    assert said(there / "shell.sh") == "shell\n"
    assert (there.parent / "share/rich/d.txt").read_text() == "data"
    assert said(next(there.parent.glob("lib/*/site-packages/rich_pkg/tool"))) == "tool\n"
    assert list(there.parent.glob("include/site/*/*/rich.h"))


@pytest.mark.slow
def test_pip_takes_it_too(sample: Path, store: FolderStore, tmp_path: Path) -> None:
    snapshot, distribution = installed(sample, "rich-project")
    wheel = fetched(repack(distribution, snapshot, store), store, tmp_path / "wheels")
    python = environment(tmp_path / "by-pip")
    arguments = ["-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, *arguments, wheel], check=True, capture_output=True)
    again, copy = installed(python, "rich-project")
    assert copy.record == distribution.record
    assert repack(copy, again, store).sha256 == repack(distribution, snapshot, store).sha256


@pytest.mark.slow
def test_a_namespace_is_shared(sample: Path, store: FolderStore, tmp_path: Path) -> None:
    snapshot, one = installed(sample, "space-one")
    _, two = installed(sample, "space-two")
    wheels = [fetched(repack(each, snapshot, store), store, tmp_path / "wheels") for each in (one, two)]
    there = environment(tmp_path / "there", *wheels)
    assert (
        said(there, "-c", "import space.one, space.two; print(space.one.PART, space.two.PART)") == "one two\n"
    )


@pytest.mark.slow
def test_a_compiled_package_from_the_index(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "RACY", 0.0)  # as if it had been installed some time ago
    snapshot, numpy = installed(environment(tmp_path / "env", "numpy"), "numpy")
    artifact = repack(numpy, snapshot, store)
    assert record_of(artifact, store) == numpy.record
    assert {str(tag) for tag in parse_wheel_filename(artifact.filename)[3]} == set(numpy.tags)
    there = environment(tmp_path / "there", fetched(artifact, store, tmp_path / "wheels"))
    assert installed(there, "numpy")[1].record == numpy.record
    assert said(there, "-c", "import numpy; print(numpy.linalg.det(numpy.eye(3)))") == "1.0\n"
    monkeypatch.setattr(wheels, "write", None)
    assert repack(numpy, snapshot, store) == artifact, "it is not packed again"


@pytest.mark.slow
def test_the_same_wheel_on_another_day(
    sample: Path, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, distribution = installed(sample, "rich-project")
    first = repack(distribution, snapshot, store)
    site = Path(distribution.location).parent
    for path in site.rglob("*"):
        if path.stat().st_nlink == 1:
            os.utime(path, (1_500_000_000, 1_500_000_000))
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "other cache"))
    assert repack(distribution, snapshot, FolderStore(tmp_path / "other cache")).sha256 == first.sha256
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    other = repack(distribution, snapshot, store)
    assert other.sha256 != first.sha256
    dates = {info.date_time for info in zipfile.ZipFile(fetched(other, store, tmp_path / "w")).infolist()}
    assert dates == {(2023, 11, 14, 22, 13, 20)}


def edited(tmp_path: Path, store: FolderStore) -> Path:
    """An environment of its own, whose files are nobody else's."""
    folder = project(
        tmp_path / "pkg",
        '[project]\nname = "pkg"\nversion = "1"\n[tool.setuptools]\npackages = ["pkg"]\n'
        'script-files = ["run.py"]\n',
        **{"pkg/__init__.py": "VALUE = 1\n", "run.py": "#!/usr/bin/env python\nprint(1)\n"},
    )
    return environment(tmp_path / "env", fetched(build(folder, store), store, tmp_path / "w"), linked=False)


@pytest.mark.slow
def test_files_edited_in_place_ship_as_they_are(store: FolderStore, tmp_path: Path) -> None:
    python = edited(tmp_path, store)
    snapshot, distribution = installed(python, "pkg")
    listener = Listener()
    before = repack(distribution, snapshot, store, hooks=listener)
    assert listener.warnings == []
    module = Path(distribution.location).parent / "pkg" / "__init__.py"
    assert as_shipped(snapshot, store) is snapshot
    module.write_text("VALUE = 2\n")
    with (python.parent / "run.py").open("a") as script:
        script.write("print(2)\n")
    after = repack(distribution, snapshot, store, hooks=listener)
    assert after.sha256 != before.sha256
    assert len(listener.warnings) == 1
    assert "pkg/__init__.py" in listener.warnings[0]
    assert "scripts/run.py" in listener.warnings[0]
    assert record_of(after, store) != record_of(before, store) == distribution.record
    shipped = as_shipped(snapshot, store).distribution("pkg")
    assert shipped is not None
    assert shipped.record == record_of(after, store)
    there = environment(tmp_path / "there", fetched(after, store, tmp_path / "wheels"))
    assert said(there, "-c", "import pkg; print(pkg.VALUE)") == "2\n"
    assert said(there.parent / "run.py") == "1\n2\n"
    assert installed(there, "pkg")[1].record == record_of(after, store)


@pytest.mark.slow
def test_what_was_packed_is_remembered_until_it_changes(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []

    def writing(target: BinaryIO, entries: Iterable[Entry], info: str) -> dict[str, str]:
        packed.append(info)
        return write(target, entries, info)

    monkeypatch.setattr("envsync.wheels.write", writing)
    snapshot, distribution = installed(edited(tmp_path, store), "pkg")
    site = Path(distribution.location).parent
    for path in [*site.rglob("*"), *(site.parents[2] / "bin").iterdir()]:
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    listener = Listener()
    first = repack(distribution, snapshot, store)
    assert repack(distribution, snapshot, store) == first
    assert len(packed) == 1
    (site / "pkg/__init__.py").write_text("VALUE = 3\n")
    os.utime(site / "pkg/__init__.py", (1_600_000_001, 1_600_000_001))
    second = repack(distribution, snapshot, store)
    assert second.sha256 != first.sha256
    assert repack(distribution, snapshot, store, hooks=listener) == second
    assert len(packed) == 2
    assert len(listener.warnings) == 1  # told again, though it was not packed again
    blob = store.path(second.sha256)
    assert blob is not None
    blob.unlink()
    assert repack(distribution, snapshot, store) == second
    assert store.has([second.sha256])


@pytest.mark.slow
def test_a_missing_file_is_named(store: FolderStore, tmp_path: Path) -> None:
    snapshot, distribution = installed(edited(tmp_path, store), "pkg")
    (Path(distribution.location).parent / "pkg/__init__.py").unlink()
    with pytest.raises(BuildError, match=r"(?s)pkg 1.*pkg/__init__\.py.*not there.*--reinstall"):
        repack(distribution, snapshot, store)


@pytest.mark.slow
def test_what_was_not_installed_from_a_wheel_is_refused(store: FolderStore, tmp_path: Path) -> None:
    snapshot, distribution = installed(edited(tmp_path, store), "pkg")
    with pytest.raises(BuildError, match="editable"):
        repack(replace(distribution, editable="pth"), snapshot, store)
    with pytest.raises(BuildError, match="does not say what it runs on"):
        repack(replace(distribution, tags=()), snapshot, store)
    with (Path(distribution.location) / "RECORD").open("a") as record:
        record.write("../../../../../../outside.txt,,\n")
    with pytest.raises(BuildError, match="outside the environment"):
        repack(distribution, snapshot, store)
    (Path(distribution.location) / "RECORD").unlink()
    with pytest.raises(BuildError, match="no RECORD"):
        repack(distribution, snapshot, store)


@pytest.mark.slow
def test_sourceless_modules_stay_and_caches_go(store: FolderStore, tmp_path: Path) -> None:
    python = edited(tmp_path, store)
    snapshot, distribution = installed(python, "pkg")
    site = Path(distribution.location).parent
    said(python, "-m", "compileall", "-q", "-b", str(site / "pkg"))
    said(python, "-m", "compileall", "-q", str(site / "pkg"))
    with (site / distribution.location / "RECORD").open("a") as record:
        record.write("pkg/__init__.pyc,,\n")
        record.write(f"pkg/__pycache__/__init__.{sys.implementation.cache_tag}.pyc,,\n")
    wheel = fetched(repack(distribution, snapshot, store), store, tmp_path / "wheels")
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".pyc")] == [
        "pkg/__init__.pyc"
    ]


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        (("py3-none-any",), "py3-none-any"),
        (("py3-none-any", "py2-none-any"), "py2.py3-none-any"),
        (
            ("cp311-abi3-manylinux_2_17_x86_64", "cp311-abi3-manylinux2014_x86_64"),
            "cp311-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64",
        ),
        (("cp311-cp311-linux_x86_64", "py3-none-any"), "cp311-cp311-linux_x86_64"),
    ],
)
def test_tags_in_a_file_name(tags: tuple[str, ...], name: str) -> None:
    assert compressed_tags(tags) == name


EXTENSION = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *args) { return PyLong_FromLong(ANSWER); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast", NULL, -1, methods};
PyMODINIT_FUNC PyInit_fast(void) { return PyModule_Create(&module); }
"""


def compiled(folder: Path) -> Path:
    return project(
        folder,
        '[project]\nname = "compiled"\nversion = "1"\n[tool.setuptools]\npackages = ["compiled"]\n'
        'ext-modules = [{name = "compiled.fast", sources = ["fast.c"]}]\n',
        **{
            "compiled/__init__.py": "from .fast import answer\n",
            "fast.c": "#define ANSWER 41\n" + EXTENSION,
            f"compiled/fast.{sysconfig.get_config_var('SOABI')}.so": "stale, built in place",
            "build/lib/compiled/stale.py": "stale",
        },
    )


@needs_compiler
@pytest.mark.slow
def test_a_compiled_project(store: FolderStore, tmp_path: Path) -> None:
    folder = compiled(tmp_path / "compiled")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    listener = Listener()
    artifact = build(folder, store, hooks=listener)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before  # nothing written there
    assert listener.steps == ["building compiled"]
    (tag,) = parse_wheel_filename(artifact.filename)[3]
    assert tag.platform.startswith("linux_")
    there = environment(tmp_path / "there", fetched(artifact, store, tmp_path / "wheels"))
    assert said(there, "-c", "import compiled; print(compiled.answer())") == "41\n"
    assert installed(there, "compiled")[1].record == record_of(artifact, store)
    assert "compiled/stale.py" not in zipfile.ZipFile(tmp_path / "wheels" / artifact.filename).namelist()

    assert build(folder, store, hooks=listener) == artifact
    (folder / "build" / "more").write_text("not a source")
    assert build(folder, store, hooks=listener) == artifact
    assert len(listener.steps) == 1

    (folder / "fast.c").write_text("#define ANSWER 42\n" + EXTENSION)
    newer = build(folder, store, hooks=listener)
    assert (newer.filename, len(listener.steps)) == (artifact.filename, 2)
    assert newer.sha256 != artifact.sha256
    there = environment(tmp_path / "newer", fetched(newer, store, tmp_path / "newer wheels"))
    assert said(there, "-c", "import compiled; print(compiled.answer())") == "42\n"


@needs_compiler
@pytest.mark.slow
def test_the_same_source_is_the_same_wheel(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(compiled(tmp_path / "compiled"), store)
    shutil.rmtree(tmp_path / "cache" / "memory")
    time.sleep(2)
    assert build(tmp_path / "compiled", store).sha256 == first.sha256
    assert list((tmp_path / "cache" / "builds").iterdir()) == []


@pytest.mark.slow
def test_a_build_that_fails_says_what_its_backend_said(store: FolderStore, tmp_path: Path) -> None:
    folder = project(
        tmp_path / "broken",
        **{"setup.py": "import sys\nprint('looking for libfoo')\nsys.exit('libfoo.h was not found')\n"},
    )
    with pytest.raises(BuildError) as caught:
        build(folder, store)
    assert "libfoo.h was not found" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert f"uv build --wheel {folder}" in caught.value.hint
    assert list((tmp_path / "cache" / "builds").iterdir()) == []


def test_where_there_is_no_project(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"neither pyproject\.toml nor setup\.py"):
        build(tmp_path / "nowhere", store)


@pytest.mark.slow
def test_a_secret_beside_the_source_is_not_in_the_wheel(store: FolderStore, tmp_path: Path) -> None:
    folder = project(
        tmp_path / "leaky",
        '[project]\nname = "leaky"\nversion = "1"\n[tool.setuptools]\npackages = ["leaky"]\n'
        '[tool.setuptools.package-data]\nleaky = ["*", ".*"]\n',
        **{"leaky/__init__.py": "", "leaky/.env": "canary-77aa", "leaky/data.txt": "x"},
    )
    listener = Listener()
    wheel = zipfile.ZipFile(fetched(build(folder, store, hooks=listener), store, tmp_path / "w"))
    assert "leaky/data.txt" in wheel.namelist()
    assert not [name for name in wheel.namelist() if b"canary" in wheel.read(name)]
    assert "leaky/.env" in listener.notes[0]


def git(folder: Path, *args: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
@needs_git
def test_of_a_checkout_git_says_what_is_source(store: FolderStore, tmp_path: Path) -> None:
    folder = project(
        tmp_path / "checkout",
        '[project]\nname = "checkout"\nversion = "1"\n[tool.setuptools]\npackages = ["pkg"]\n'
        '[tool.setuptools.package-data]\npkg = ["*.txt"]\n',
        **{
            "pkg/__init__.py": "",
            "pkg/tracked though ignored.txt": "",
            "pkg/removed.txt": "",
            ".gitignore": "*ignored.txt\n",
        },
    )
    git(folder, "init", "-q")
    git(folder, "add", "-f", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "pkg/ignored.txt").write_text("")
    (folder / "pkg/new.txt").write_text("")
    (folder / "pkg/removed.txt").unlink()
    os.symlink("new.txt", folder / "pkg/link.txt")
    index = (folder / ".git/index").read_bytes()
    names = set(zipfile.ZipFile(fetched(build(folder, store), store, tmp_path / "w")).namelist())
    assert {name for name in names if name.endswith(".txt") and "dist-info" not in name} == {
        *("pkg/tracked though ignored.txt", "pkg/new.txt", "pkg/link.txt")
    }
    assert (folder / ".git/index").read_bytes() == index


@pytest.mark.slow
@needs_git
def test_submodules_are_source_and_a_checkout_that_ignores_it_all_is_none(
    store: FolderStore, tmp_path: Path
) -> None:
    inner, folder = tmp_path / "inner", tmp_path / "outer" / "project"
    inner.mkdir()
    (inner / "part.py").write_text("")
    project(
        folder,
        '[project]\nname = "outer"\nversion = "1"\n[tool.setuptools]\npackages = ["part"]\n',
        **{"build/x.py": "", ".venv/pyvenv.cfg": ""},
    )
    for each in (inner, folder):
        git(each, "init", "-q")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "first")
    git(folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "part")
    wheel = fetched(build(folder, store), store, tmp_path / "w")
    assert "part/part.py" in zipfile.ZipFile(wheel).namelist()
    shutil.rmtree(folder / ".git")
    (folder / ".gitmodules").unlink()
    git(folder.parent, "init", "-q")
    (folder.parent / ".gitignore").write_text("*\n")
    assert look(folder).files == ("part/part.py", "pyproject.toml")


@pytest.mark.slow
def test_pip_itself_packs_without_the_scripts_that_installers_add(store: FolderStore, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    snapshot, pip = installed(tmp_path / "env" / "bin" / "python", "pip")
    artifact = repack(pip, snapshot, store)
    there, copy = installed(environment(tmp_path / "there", fetched(artifact, store, tmp_path / "w")), "pip")
    assert copy.record == pip.record
    assert repack(copy, there, store) == artifact


@pytest.mark.slow
def test_a_script_that_uv_passed_over_is_no_missing_file(store: FolderStore, tmp_path: Path) -> None:
    """A wheel may hold a script that is an entry point too: uv writes its own, and leaves both in RECORD."""
    folder = project(
        tmp_path / "twice",
        '[project]\nname = "twice"\nversion = "1"\n[project.scripts]\ntwice = "this:main"\n'
        '[tool.setuptools]\npackages = []\nscript-files = ["twice"]\n',
        twice="#!/bin/sh\necho the script\n",
    )
    wheel = fetched(build(folder, store), store, tmp_path / "w")
    assert "twice-1.data/scripts/twice" in zipfile.ZipFile(wheel).namelist()
    snapshot, distribution = installed(environment(tmp_path / "env", wheel), "twice")
    again = fetched(repack(distribution, snapshot, store), store, tmp_path / "again")
    assert [name for name in zipfile.ZipFile(again).namelist() if "scripts" in name] == []
    assert installed(environment(tmp_path / "there", again), "twice")[1].record == distribution.record


@pytest.mark.slow
@pytest.mark.parametrize("by", ["uv", "pip"])
def test_scripts_of_an_environment_with_a_long_path(
    sample: Path, store: FolderStore, tmp_path: Path, by: str
) -> None:
    """Where a path is too long for a shebang, uv writes a shell script around the script."""
    snapshot, distribution = installed(sample, "rich-project")
    artifact = repack(distribution, snapshot, store)
    wheel = fetched(artifact, store, tmp_path / "wheels")
    python = environment(tmp_path / ("long" * 40), *([wheel] if by == "uv" else []))
    if by == "pip":
        arguments = ["-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
        subprocess.run([sys.executable, *arguments, wheel], check=True, capture_output=True)
    script = (python.parent / "by-hand.py").read_bytes()
    assert script.startswith(b"#!/bin/sh\n") or by == "pip"
    there, copy = installed(python, "rich-project")
    assert repack(copy, there, store).sha256 == artifact.sha256


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize("below", ["", "packages/scm"])
def test_a_project_that_asks_git_for_its_version(store: FolderStore, tmp_path: Path, below: str) -> None:
    top = tmp_path / "monorepo"
    folder = project(top / below)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77", "setuptools-scm>=8"]\n'
        'build-backend = "setuptools.build_meta"\n[project]\nname = "scm"\ndynamic = ["version"]\n'
        f'[tool.setuptools_scm]\nroot = "{"../.." if below else "."}"\nlocal_scheme = "dirty-tag"\n'
        'version_file = "scm/_version.py"\n[tool.setuptools]\npackages = ["scm"]\n'
    )
    (folder / "scm").mkdir()
    (folder / "scm/__init__.py").write_text("")
    (folder / "scm/table.csv").write_text("data that only git lists")
    (top / "other.txt").write_text("of another project")
    (top / ".gitignore").write_text("_version.py\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    git(top, "tag", "-m", "a release", "v2.5")
    listener = Listener()
    artifact = build(folder, store, hooks=listener)
    assert artifact.version == "2.5"
    assert "scm/table.csv" in zipfile.ZipFile(fetched(artifact, store, tmp_path / "w")).namelist()
    (folder / "scm/__init__.py").write_text("X = 1\n")
    dirty = build(folder, store, hooks=listener)
    assert dirty.version == "2.6.dev0+dirty"
    # An installed one is built as the version that it is installed as.
    _, distribution = installed(
        environment(tmp_path / "env", fetched(artifact, store, tmp_path / "x")), "scm"
    )
    assert build(folder, store, installed=distribution).version == "2.5"
