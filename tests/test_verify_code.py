"""Local code in clusters that nobody shipped it to: stale, missing, equal."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.artifacts import Artifact
from envsync.errors import MismatchError
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.plugins.compare import compare
from envsync.plugins.look import look
from envsync.plugins.sources import code_here, covered_here
from envsync.runner.verifying import demand_client
from envsync.snapshot import capture
from envsync.target import Target
from envsync.trees import Manifest, code_of


def wanted(folder: Path, *paths: str) -> dict[str, dict[str, object]]:
    files = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths}
    return {"mine": {"digest": "d" * 64, "files": files}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "zz_pack" / "data").mkdir(parents=True)
    (tmp_path / "zz_pack" / "__init__.py").write_text("x = 1\n")
    (tmp_path / "zz_pack" / "data" / "table.yaml").write_text("a: 1\n")
    (tmp_path / "zz_loose.py").write_text("y = 1\n")
    (tmp_path / "setup.py").write_text("\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


ALL = ("zz_pack/__init__.py", "zz_pack/data/table.yaml", "zz_loose.py", "setup.py")


def test_equal_code_is_equal_wherever_it_stands(folder: Path) -> None:
    assert code_here(wanted(folder, *ALL)) == {"mine": "d" * 64}


@pytest.mark.parametrize("path", ALL[:3])
def test_a_stale_file_is_named(folder: Path, path: str) -> None:
    code = wanted(folder, *ALL)
    (folder / path).write_text("changed\n")
    assert code_here(code)["mine"] == f"1 of 4 files differ ({path})"


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    code = wanted(folder, *ALL)
    (folder / "zz_pack/data/table.yaml").unlink()
    assert code_here(code)["mine"] == "1 of 4 files are not there (zz_pack/data/table.yaml)"


ODD = (
    "my-run.py",
    "01_load.py",
    "a b.py",
    "dir-x/m.py",
    "line\nbreak.py",
    "__main__.py",
    "v1.2/m.py",
    "a.b.py",
)


def test_names_that_no_import_statement_can_write(folder: Path) -> None:
    for path in ODD:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("z = 1\n")
    code = wanted(folder, *ALL, *ODD)
    assert code_here(code) == {"mine": "d" * 64}
    assert covered_here(code, [str(folder)]) == []
    (folder / "my-run.py").write_text("changed\n")
    assert code_here(code)["mine"] == "1 of 9 files differ (my-run.py)"
    (folder / "my-run.py").write_text("z = 1\n")
    (folder / "line\nbreak.py").unlink()
    assert code_here(code)["mine"] == r"1 of 9 files are not there ('line\nbreak.py')"


@pytest.mark.parametrize("package", [True, False])
def test_a_module_and_a_folder_of_one_name(folder: Path, package: bool) -> None:
    paths = ["zz_two.py", "zz_two/data.csv", *(["zz_two/__init__.py"] if package else [])]
    (folder / "zz_two").mkdir()
    for path in paths:
        (folder / path).write_text("z = 1\n")
    code = wanted(folder, *ALL, *paths)
    assert code_here(code) == {"mine": "d" * 64}
    for path in ("zz_two.py", "zz_two/data.csv"):
        (folder / path).write_text("changed\n")
        assert code_here(code)["mine"] == f"1 of {4 + len(paths)} files differ ({path})"
        (folder / path).write_text("z = 1\n")
    (folder / "zz_two.py").unlink()
    assert "are not there (zz_two.py)" in code_here(code)["mine"]


def test_what_no_task_imports_may_be_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = wanted(folder, *ALL)
    del code["mine"]["files"]["setup.py"]  # type: ignore[attr-defined]
    code["mine"]["files"]["noxfile.py"] = "0" * 64  # type: ignore[index]
    assert code_here(code) == {"mine": "d" * 64}


def test_a_tree_of_which_nothing_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = wanted(folder, *ALL[:3])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    assert code_here(code) == {}
    want = {"trees": {"mine": "d" * 64}, "code": code}
    (found,) = [one for one in compare(want, look("me", want)) if one.kind == "source"]
    assert (found.severity, found.right) == ("error", "")


def test_of_two_trees_with_one_module_the_first_counts() -> None:
    first = Manifest(
        name="b", position="front", kind="path", distribution=None, files=(("m.py", "1" * 64, 0o644),)
    )
    last = Manifest(
        name="a", position="back", kind="path", distribution=None, files=(("m.py", "2" * 64, 0o644),)
    )
    code = code_of([last, first])
    assert code["b"]["files"] == {"m.py": "1" * 64}
    assert code["a"]["files"] == {}


def test_a_module_that_is_installed_too_comes_before_a_tree_at_the_back() -> None:
    files = (("pytest/__init__.py", "1" * 64, 0o644), ("zz_own.py", "2" * 64, 0o644))
    tree = Manifest(name="a", position="back", kind="editable", distribution="a", files=files)
    assert code_of([tree])["a"]["files"] == {"zz_own.py": "2" * 64}


class Heard(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


def test_a_given_lock_of_another_python_is_refused_before_anything_starts() -> None:
    target = replace(Target.current(), python="3.9.1")
    lock = Lock.of([], target, snapshot="0" * 64)
    with pytest.raises(MismatchError, match=r"3\.9\.1.*cannot work together"):
        demand_client(lock, "raise", Heard())
    hooks = Heard()
    demand_client(lock, "warn", hooks)
    assert "dask" in hooks.warnings[0]


def test_what_a_given_lock_lacks_is_told() -> None:
    own = capture().report()
    packages = [
        Artifact(
            name=one["name"],
            version=one["version"],
            filename=f"{one['name'].replace('-', '_')}-1-py3-none-any.whl",
            sha256="0" * 64,
            url="https://files.example.org/x/" + f"{one['name'].replace('-', '_')}-1-py3-none-any.whl",
        )
        for one in own["distributions"]
        if one["name"] != "pytest"
    ]
    hooks = Heard()
    lock = Lock.of(packages, Target.current(), snapshot="0" * 64, trees=())
    demand_client(lock, "raise", hooks)
    assert any("pytest" in text for text in hooks.warnings)
