"""What is installed is what is in the checkout, and nothing in it belongs to one machine."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"envsync": "envsync", "runner": "envsync.runner", "plugins": "envsync.plugins"}


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name]


def packages_in_the_checkout() -> dict[str, str]:
    """Import name of every package here, and its folder."""
    found = {}
    for top, name in FOLDERS.items():
        for file in (ROOT / top).rglob("__init__.py"):
            folder = file.parent.relative_to(ROOT)
            if top == "envsync" and folder.parts[1:2] in (("runner",), ("plugins",)):
                continue  # through the links: counted where they really are
            found[".".join([name, *folder.parts[1:]])] = folder.as_posix()
    return found


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = packages_in_the_checkout()
    assert sorted(settings["packages"]) == sorted([*found, "envsync.dockerfiles"])  # that has no modules
    folders = settings["package-dir"]
    for name, folder in found.items():
        home = next(prefix for prefix in _prefixes(name) if prefix in folders)
        assert folder == "/".join([folders[home], *name[len(home) :].split(".")[1:]]), name


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what a clean checkout of the working tree holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for file in tracked():
        copy = source / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            copy.symlink_to(file.readlink())
        elif file.is_file():
            copy.write_bytes(file.read_bytes())
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder, source], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_module(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    wanted = set()
    for file in tracked():
        top, *rest = file.relative_to(ROOT).parts
        if top in FOLDERS and file.suffix == ".py":
            wanted.add("/".join([*FOLDERS[top].split("."), *rest]))
    assert names == wanted
    assert {"envsync/runner/__init__.py", "envsync/plugins/__init__.py"} <= names
    others = {f"envsync/dockerfiles/{file.name}" for file in (ROOT / "dockerfiles").iterdir()}
    assert {"envsync/py.typed", *others} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    prefix = tmp_path / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, prefix], check=True)
    python = prefix / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, wheel], check=True)
    version = subprocess.run(
        [prefix / "bin" / "envsync", "--version"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    dask = subprocess.run(
        [prefix / "bin" / "dask", "envsync", "--version"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert version == dask
    shown = subprocess.run(
        [prefix / "bin" / "envsync", "build", "--dockerfile", "--template", "gpu"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert shown == (ROOT / "dockerfiles/gpu.Dockerfile").read_text()
    assert version.split()[-1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    listing = (
        "import pathlib, envsync.runner, envsync.plugins as p;"
        "print(pathlib.Path(envsync.runner.__file__).parent.is_symlink(), p.__file__)"
    )
    out = subprocess.run(
        [python, "-c", listing], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    linked, where = out.split()
    assert linked == "False"
    assert where.startswith(str(prefix))


# spelled in pieces, so that this file does not name what it forbids
FORBIDDEN = [
    "pypi" + r"\.org",
    "python" + "hosted",
    r"conda\." + "anaconda",
    r"(?<![\w.])/" + r"work/(main|shared|\.)",
    "/root/" + r"\.pyenv",
    r"/home/" + r"\w+/(?!\.)\w+/envsync",
]


def test_no_registry_and_no_machine_is_named_in_tracked_files() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    named = []
    for file in tracked():
        if file.is_symlink() or not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                named.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert named == []


def test_every_module_of_the_core_is_under_the_import_rules() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    core = {f"envsync.{file.stem}" for file in (ROOT / "envsync").glob("[!_]*.py")}
    folders = {file.parent.name for file in (ROOT / "envsync").glob("*/__init__.py")}
    core |= {f"envsync.{name}" for name in folders - {"agent", "cli", "plugins", "runner"}}
    (pure,) = (one for one in contracts if one["name"].startswith("the core"))
    assert {name for name in pure["source_modules"] if name != "envsync.agent"} == core
    for start in ("the agent", "plugins"):
        (closed,) = (one for one in contracts if one["name"].startswith(start))
        assert core <= set(closed["forbidden_modules"])


def test_no_module_is_named_after_nothing() -> None:
    nothing = {"utils", "util", "helpers", "common", "misc"}
    assert [str(file) for file in tracked() if file.stem in nothing] == []
