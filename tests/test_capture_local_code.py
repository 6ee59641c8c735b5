"""Local code of live environments: editables of every tool, and folders on the path in every order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from envsync.snapshot import Finding, Snapshot, SourceTree, capture
from envsync.store import FolderStore
from envsync.trees import pack
from envsync.uv import find_uv

pytestmark = pytest.mark.slow

SETUPTOOLS = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
META = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"


def uv(*arguments: str) -> None:
    ran = subprocess.run([find_uv(), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def env(tmp_path: Path) -> Path:
    prefix = tmp_path / "env"
    uv("venv", "-q", "--python", sys.executable, str(prefix))
    return prefix


def site(env: Path) -> Path:
    return next(env.glob("lib/python*/site-packages"))


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def editable(env: Path, folder: Path, *arguments: str) -> None:
    uv("pip", "install", "-q", "--python", str(env / "bin/python"), *arguments, "--editable", str(folder))


def by_hand(env: Path, name: str, files: dict[str, str], source: Path) -> Path:
    """Write an editable installation as a tool leaves it that is not at hand."""
    info = site(env) / f"{name}-1.0.dist-info"
    url = json.dumps({"url": source.as_uri(), "dir_info": {"editable": True}})
    write(site(env), files)
    write(info, {"METADATA": META.format(name=name), "direct_url.json": url})
    rows = [*files, *(f"{info.name}/{one}" for one in ("METADATA", "direct_url.json", "RECORD"))]
    (info / "RECORD").write_text("".join(f"{row},,\n" for row in rows))
    return info


def tree_of(snapshot: Snapshot, distribution: str) -> SourceTree:
    (tree,) = [tree for tree in snapshot.source_trees if tree.distribution == distribution]
    return tree


def warnings(snapshot: Snapshot) -> list[Finding]:
    return [one for one in snapshot.findings if one.severity != "note"]


def place(tree: SourceTree, folder: Path, store: Path) -> Path:
    """Put a packed tree into a folder, as a host has it."""
    kept = FolderStore(store)
    for path, digest, mode in pack(tree, kept).files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with kept.open(digest) as file:
            target.write_bytes(file.read())
        target.chmod(mode)
    return folder


def run_there(folder: Path, code: str) -> str:
    """Run code in a bare interpreter that has one more folder on its path."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(folder)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# Editables


def test_setuptools_with_packages_from_several_folders_works_elsewhere(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "work", {
        "pyproject.toml": SETUPTOOLS +
        '[project]\nname = "mixed"\nversion = "1.0"\n[project.scripts]\nmixed = "mixed:main"\n'
        '[tool.setuptools]\npackages = ["mixed", "mixed.deep", "ns.part"]\npy-modules = ["lone"]\n'
        '[tool.setuptools.package-dir]\nmixed = "code/mixed"\n"mixed.deep" = "elsewhere"\n',
        "code/mixed/__init__.py": "value = 1\n",
        "code/mixed/data/table.json": "{}",
        "elsewhere/__init__.py": "value = 2\n",
        "ns/part/__init__.py": "value = 3\n",
        "lone.py": "value = 4\n",
        "unrelated/__init__.py": "",
    })  # fmt: skip
    editable(env, folder)
    snapshot = capture(str(env))
    tree = tree_of(snapshot, "mixed")
    assert dict(tree.members) == {
        "mixed": str(folder / "code/mixed"),
        "mixed/deep": str(folder / "elsewhere"),
        "ns/part": str(folder / "ns/part"),
        "lone.py": str(folder / "lone.py"),
        **{
            f"mixed-1.0.dist-info/{one}": f"{site(env)}/mixed-1.0.dist-info/{one}"
            for one in ("METADATA", "entry_points.txt", "top_level.txt")
        },
    }
    assert not warnings(snapshot)
    there = place(tree, tmp_path / "there", tmp_path / "store")
    code = (
        "import mixed, mixed.deep, ns.part, lone; from importlib.metadata import version, entry_points;"
        "print(mixed.value, mixed.deep.value, ns.part.value, lone.value, version('mixed'),"
        "      [one.value for one in entry_points(group='console_scripts')])"
    )
    assert run_there(there, code) == "1 2 3 4 1.0 ['mixed:main']"


def test_setuptools_strict_mode_ships_the_files_behind_its_links(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "work", {
        "pyproject.toml": SETUPTOOLS +
        '[project]\nname = "strict"\nversion = "1.0"\n',
        "strict/__init__.py": "value = 1\n",
    })  # fmt: skip
    editable(env, folder, "--config-settings", "editable_mode=strict")
    tree = tree_of(capture(str(env)), "strict")
    there = place(tree, tmp_path / "there", tmp_path / "store")
    assert run_there(there, "import strict; print(strict.value)") == "1"


def test_hatch_in_its_exact_mode(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "work", {
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "exact"\nversion = "1.0"\n'
        '[tool.hatch.build]\ndev-mode-exact = true\n',
        "exact/__init__.py": "value = 1\n",
        "tests/__init__.py": "",
    })  # fmt: skip
    editable(env, folder)
    snapshot = capture(str(env))
    members = dict(tree_of(snapshot, "exact").members)
    assert members["exact"] == str(folder / "exact")
    assert "tests" not in members
    assert "" not in members
    assert not warnings(snapshot)


def test_a_link_in_the_site_folder_is_followed(env: Path, tmp_path: Path) -> None:
    """As flit install --symlink does it."""
    folder = write(tmp_path / "work", {"linked/__init__.py": "value = 1\n"})
    by_hand(env, "linked", {}, folder)
    (site(env) / "linked").symlink_to(folder / "linked")
    with (site(env) / "linked-1.0.dist-info/RECORD").open("a") as file:
        file.write("linked,,\n")
    snapshot = capture(str(env))
    assert snapshot.distribution("linked").editable == "pth"  # type: ignore[union-attr]
    there = place(tree_of(snapshot, "linked"), tmp_path / "there", tmp_path / "store")
    assert run_there(there, "import linked; print(linked.value)") == "1"


def test_what_a_tool_put_beside_its_pth_ships_too(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "work", {"src/half/__init__.py": ""})
    files = {"half.pth": f"{folder}/src\n", "half_generated/__init__.py": "", ".gitignore": "*\n"}
    by_hand(env, "half", files, folder)
    members = dict(tree_of(capture(str(env)), "half").members)
    assert members[""] == str(folder / "src")
    assert members["half_generated/__init__.py"] == str(site(env) / "half_generated/__init__.py")
    assert ".gitignore" not in members


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "cmake", "ninja"))), reason="needs gcc, cmake and ninja to build with"
)
def test_compiled_editables_are_no_trees_for_they_ship_as_wheels(env: Path, tmp_path: Path) -> None:
    core = (
        "#include <Python.h>\nstatic PyMethodDef m[] = {{0}};\n"
        'static struct PyModuleDef d = {PyModuleDef_HEAD_INIT, "_core", 0, -1, m};\n'
        "PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&d); }\n"
    )
    scikit = write(tmp_path / "scikit", {
        "pyproject.toml": '[build-system]\nrequires = ["scikit-build-core"]\n'
        'build-backend = "scikit_build_core.build"\n[project]\nname = "skb"\nversion = "1.0"\n',
        "CMakeLists.txt": "cmake_minimum_required(VERSION 3.15)\nproject(skb LANGUAGES C)\n"
        "find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)\n"
        "python_add_library(_core MODULE core.c WITH_SOABI)\ninstall(TARGETS _core DESTINATION skb)\n",
        "core.c": core,
        "src/skb/__init__.py": "from . import _core\n",
    })  # fmt: skip
    meson = write(tmp_path / "meson", {
        "pyproject.toml": '[build-system]\nrequires = ["meson-python"]\n'
        'build-backend = "mesonpy"\n[project]\nname = "mes"\nversion = "1.0"\n',
        "meson.build": "project('mes', 'c', version: '1.0')\n"
        "py = import('python').find_installation(pure: false)\n"
        "py.install_sources('mes/__init__.py', subdir: 'mes')\n"
        "py.extension_module('_core', 'core.c', install: true, subdir: 'mes',"
        " dependencies: py.dependency())\n",
        "core.c": core,
        "mes/__init__.py": "from . import _core\n",
    })  # fmt: skip
    editable(env, scikit)
    editable(env, meson)
    snapshot = capture(str(env))
    assert {one.name: one.editable for one in snapshot.winners} == {
        "skb": "scikit-build-core",
        "mes": "meson-python",
    }
    assert snapshot.source_trees == ()
    assert {one.subject for one in snapshot.findings if "wheel" in one.text} == {"skb", "mes"}


def test_an_editable_whose_folder_is_gone_is_an_error_that_names_it(env: Path, tmp_path: Path) -> None:
    by_hand(env, "gone", {"gone.pth": f"{tmp_path}/nowhere\n"}, tmp_path / "nowhere")
    snapshot = capture(str(env))
    assert snapshot.source_trees == ()
    (finding,) = snapshot.findings
    assert (finding.severity, finding.subject) == ("error", "gone")


def test_two_projects_of_one_folder_are_two_trees(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "mono/src", {"one/__init__.py": "", "two/__init__.py": ""})
    for name in ("one", "two"):
        by_hand(env, name, {f"{name}.pth": f"{folder}\n"}, folder.parent)
    trees = capture(str(env)).source_trees
    assert [(tree.name, tree.distribution) for tree in trees] == [("one", "one"), ("two", "two")]


# Where on the path


def paths(env: Path, *, cwd: Path | None = None) -> list[tuple[str, str, str]]:
    trees = capture(str(env), cwd=None if cwd is None else str(cwd)).source_trees
    return [(tree.name, tree.kind, tree.position) for tree in trees]


def test_a_project_that_is_also_in_front_comes_first(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "work", {"proj/__init__.py": ""})
    by_hand(env, "proj", {"proj.pth": f"{folder}\n"}, folder)
    assert paths(env) == [("proj", "editable", "back")]
    assert paths(env, cwd=folder) == [("proj", "editable", "front")]
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert paths(env) == [("proj", "editable", "front")]


def test_an_egg_info_in_a_checkout_that_is_not_installed_belongs_to_its_tree(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(
        tmp_path / "checkout", {"proj/__init__.py": "", "proj.egg-info/PKG-INFO": META.format(name="proj")}
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    snapshot = capture(str(env))
    tree = tree_of(snapshot, "proj")
    assert tree.position == "front"
    there = place(tree, tmp_path / "there", tmp_path / "store")
    assert run_there(there, "from importlib.metadata import version; print(version('proj'))") == "1.0"


def test_an_editables_name_does_not_depend_on_the_working_directory(env: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "proj", {"proj/__init__.py": "", "script.py": ""})
    finder = f"MAPPING: dict[str, str] = {{'proj': {str(folder / 'proj')!r}}}\n"
    files = {"__editable___proj_1_0_finder.py": finder, "__editable__.proj-1.0.pth": "import x\n"}
    by_hand(env, "proj", files, folder)
    assert [name for name, kind, _ in paths(env) if kind == "editable"] == ["proj"]
    assert paths(env, cwd=folder) == [("proj-2", "cwd", "front"), ("proj", "editable", "back")]


def test_local_modules_that_hide_installed_ones_are_reported(env: Path, tmp_path: Path) -> None:
    write(site(env), {"tool/__init__.py": "", "plain.py": ""})
    folder = write(
        tmp_path / "work", {"tool.py": "", "plain/__init__.py": "", "own.py": "", "data/x.csv": ""}
    )
    findings = capture(str(env), cwd=str(folder)).findings
    found = {one.text.split()[0]: one for one in findings if one.subject == str(folder)}
    assert set(found) == {"tool", "plain"}
    assert {one.severity for one in found.values()} == {"warning"}
    # and that they were put there by hand is another finding, of the folder of installed packages
    assert [one.subject for one in findings if one.subject != str(folder)] == [str(site(env))]


@pytest.mark.parametrize("where", ["home", "above home", "root"])
def test_what_is_too_wide_never_ships(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    home = write(tmp_path / "homes/me", {"script.py": "", "proj.egg-info/PKG-INFO": META.format(name="proj")})
    write(tmp_path / "homes", {"script.py": ""})
    monkeypatch.setenv("HOME", str(home))
    folder = {"home": home, "above home": home.parent, "root": Path("/")}[where]
    by_hand(env, "wide", {"wide.pth": f"{folder}\n"}, folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    snapshot = capture(str(env))
    assert snapshot.source_trees == ()
    assert [one.subject for one in snapshot.findings if "home or root" in one.text][:1] == [str(folder)]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.py": ""}, True),
        ({"a/__init__.py": ""}, True),
        ({"a/b.py": ""}, True),
        ({"a.so": ""}, True),
        ({"a/data.csv": "", "README.md": ""}, False),
        ({"not-a-name/b.py": ""}, False),
        ({"env/pyvenv.cfg": "", "env/activate_this.py": ""}, False),
        ({"__pycache__/a.py": ""}, False),
    ],
)
def test_a_working_directory_counts_when_something_in_it_can_be_imported(
    env: Path, tmp_path: Path, files: dict[str, str], code: bool
) -> None:
    folder = write(tmp_path / "work", files)
    assert bool(paths(env, cwd=folder)) == code


def test_the_folders_of_the_interpreter_itself_are_no_local_code(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of the environment start with the folder that they lie in on the path."""
    write(env / "bin", {"tool.py": ""})
    stdlib = os.path.dirname(os.__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(env / "bin"), stdlib, f"{stdlib}/json"]))
    assert paths(env) == []


def test_setuptools_imported_in_this_process_adds_nothing() -> None:
    """It puts a folder of private copies on the path."""
    code = (
        "import sys, setuptools, json; from envsync.snapshot import capture; s = capture();"
        "print(json.dumps([any('_vendor' in one for one in sys.path),"
        "  [t.root for t in s.source_trees if 'setuptools' in t.root],"
        "  [d.location for d in s.distributions if '_vendor' in d.location]]))"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    if "No module named 'setuptools'" in ran.stderr:
        pytest.skip("no setuptools here")
    assert json.loads(ran.stdout)[1:] == [[], []]


# The digest


def test_the_digest_names_no_folder_of_this_machine(env: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("here", "there"):
        prefix = tmp_path / name / "env"
        uv("venv", "-q", "--python", sys.executable, str(prefix))
        folder = write(tmp_path / name / "work", {"proj/__init__.py": ""})
        by_hand(prefix, "proj", {"proj.pth": f"{folder}\n"}, folder)
        digests.add(capture(str(prefix)).digest)
    assert len(digests) == 1
    assert os.path.basename(str(env)) == "env"
    assert capture(str(env)).digest not in digests


def test_the_digest_follows_what_an_editable_project_requires(env: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "mine", {"mine.py": ""})
    info = by_hand(env, "mine", {"mine.pth": f"{source}\n"}, source)
    before = capture(str(env))
    write(info, {"METADATA": META.format(name="mine") + "Requires-Dist: numpy\n"})
    after = capture(str(env))
    assert [one.requires for one in after.winners if one.name == "mine"] == [("numpy",)]
    assert [one.record for one in after.winners] == [one.record for one in before.winners]
    assert after.digest != before.digest
