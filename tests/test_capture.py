"""Looking at live environments: every kind of them, and every way that code gets into one."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from envsync.edited import touched_files
from envsync.errors import CaptureError
from envsync.plugins.scan import record_digest, scan
from envsync.snapshot import Snapshot, SourceTree, capture
from envsync.uv import find_uv

# Compiled, pure, namespaced, with data files, with scripts, with a vendored tree, with an odd name.
WHEELS = [
    "numpy", "six", "PyYAML", "packaging", "markupsafe", "cmake", "jupyterlab-widgets", "google-auth", "pytz",
    "zope.interface", "attrs", "ruamel.yaml", "backports.zstd",
]  # fmt: skip


def uv(*arguments: str) -> None:
    subprocess.run([find_uv(), *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that uv made and filled; do not change it."""
    prefix = tmp_path_factory.mktemp("live") / "env"
    uv("venv", "--python", sys.executable, str(prefix))
    uv("pip", "install", "--python", str(prefix / "bin/python"), *WHEELS)
    return prefix


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    prefix = tmp_path / "env"
    uv("venv", "--python", sys.executable, str(prefix))
    return prefix


def site(prefix: Path) -> Path:
    return next(prefix.glob("lib/python*/site-packages"))


def project(folder: Path, backend: str = "setuptools", *, layout: str = "flat", name: str = "proj") -> Path:
    """Write a small project."""
    code = folder / "src" if layout == "src" else folder
    (code / name).mkdir(parents=True)
    (code / name / "__init__.py").write_text("answer = 42\n")
    (code / name / "table.yaml").write_text("a: 1\n")
    builds = {
        "setuptools": ("setuptools>=64", "setuptools.build_meta"),
        "hatchling": ("hatchling", "hatchling.build"),
        "flit": ("flit_core", "flit_core.buildapi"),
        "pdm": ("pdm-backend", "pdm.backend"),
        "poetry": ("poetry-core", "poetry.core.masonry.api"),
    }
    requires, build = builds[backend]
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["{requires}"]\nbuild-backend = "{build}"\n'
        f'[project]\nname = "{name}"\nversion = "0.1"\ndescription = "small"\n'
        f'[project.scripts]\n{name}-run = "{name}:main"\n'
    )
    return folder


@pytest.mark.slow
def test_a_wheels_record_and_its_installation_have_one_digest(environment: Path, tmp_path: Path) -> None:
    snapshot = capture(str(environment))
    frozen = [f"{one.name}=={one.version}" for one in snapshot.distributions]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), *frozen], check=True
    )
    by_pip = tmp_path / "pip"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(by_pip)], check=True)
    wheels = sorted(tmp_path.glob("*.whl"))
    assert len(wheels) >= len(WHEELS)
    pip = [sys.executable, "-m", "pip", "--python", str(by_pip / "bin/python")]  # the tests' own: a newer one
    subprocess.run([*pip, "install", "-q", "--no-deps", *wheels], check=True)
    piped = capture(str(by_pip))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/RECORD")]
            digest = record_digest(archive.read(name).decode())
        key = wheel.name.split("-")[0].lower().replace("_", "-").replace(".", "-")
        for seen in (snapshot, piped):
            distribution = seen.distribution(key)
            assert distribution is not None
            assert distribution.record == digest, wheel.name
    assert {one.installer for one in snapshot.distributions} == {"uv"}
    assert piped.distribution("numpy").installer == "pip"  # type: ignore[union-attr]


def test_the_running_interpreter_is_seen_as_a_run_of_it_sees_itself(tmp_path: Path) -> None:
    here = capture()
    there = capture(sys.executable)
    assert here.interpreter == there.interpreter
    mine, theirs = ({(one.name, one.version, one.record) for one in each.winners} for each in (here, there))
    assert mine == theirs
    assert here.digest == there.digest
    assert Snapshot.from_dict(json.loads(json.dumps(here.to_dict()))) == here


@pytest.mark.slow
def test_a_snapshot_agrees_with_pip(environment: Path) -> None:
    said = subprocess.run(
        [find_uv(), "pip", "freeze", "--python", str(environment / "bin/python")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    theirs = dict(line.split("==") for line in said.split())
    ours = {one.name: one.version for one in capture(str(environment)).winners}
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["venv", "virtualenv"])
def test_every_kind_of_environment(tmp_path: Path, maker: str) -> None:
    if maker == "virtualenv":
        uv("tool", "run", "virtualenv", "-q", "--python", sys.executable, str(tmp_path / "env"))
    else:
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    snapshot = capture(str(tmp_path / "env"))
    assert snapshot.distribution("pip") is not None
    assert snapshot.interpreter.prefix == str(tmp_path / "env")
    assert not snapshot.findings


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no system Python")
def test_the_system_python_names_what_has_no_record() -> None:
    try:
        snapshot = capture("/usr/bin/python3")
    except CaptureError as error:
        pytest.skip(str(error))
    assert snapshot.interpreter.executable == "/usr/bin/python3"
    for one in snapshot.winners:
        assert one.trouble or one.record or one.editable


@pytest.mark.skipif(not list(Path.home().glob(".pyenv/versions/3.1*")), reason="no pyenv on this machine")
def test_a_pyenv_python() -> None:
    (version, *_) = sorted(Path.home().glob(".pyenv/versions/3.1*"))
    assert capture(str(version)).interpreter.prefix == str(version)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "layout", "shape"),
    [
        ("setuptools", "flat", "finder"),
        ("setuptools", "src", "pth"),
        ("hatchling", "flat", "pth"),
        ("flit", "flat", "pth"),
        ("pdm", "src", "pth"),
        ("poetry", "src", "pth"),
    ],
)
def test_editables_of_every_backend(
    empty: Path, tmp_path: Path, backend: str, layout: str, shape: str
) -> None:
    folder = project(tmp_path / "work", backend, layout=layout)
    uv("pip", "install", "--python", str(empty / "bin/python"), "--editable", str(folder))
    snapshot = capture(str(empty))
    distribution = snapshot.distribution("proj")
    assert distribution is not None
    assert distribution.editable == shape
    assert not distribution.trouble
    (tree,) = snapshot.source_trees
    assert (tree.name, tree.kind, tree.position, tree.distribution) == ("proj", "editable", "back", "proj")
    members = dict(tree.members)
    code = folder / "src" if layout == "src" else folder
    assert members.get("proj", members.get("")) in (str(code / "proj"), str(code))
    assert any(path.endswith(".dist-info/entry_points.txt") for path in members)
    assert not [one for one in snapshot.findings if one.severity != "note"]


@pytest.mark.slow
def test_an_egg_info_left_in_the_source_is_not_a_second_project(empty: Path, tmp_path: Path) -> None:
    folder = project(tmp_path / "work", layout="src")
    uv("pip", "install", "--python", str(empty / "bin/python"), "--editable", str(folder))
    assert list(folder.glob("src/*.egg-info")), "setuptools is known to leave one"
    snapshot = capture(str(empty))
    assert [one.location.endswith(".dist-info") for one in snapshot.winners] == [True]
    assert not snapshot.findings


@pytest.mark.slow
def test_legacy_develop_installs(empty: Path, tmp_path: Path) -> None:
    folder = project(tmp_path / "old")
    info = folder / "proj.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: proj\nVersion: 0.1\n")
    (site(empty) / "proj.egg-link").write_text(f"{folder}\n.")
    (site(empty) / "easy-install.pth").write_text(f"{folder}\n")
    snapshot = capture(str(empty))
    (distribution,) = snapshot.winners
    assert distribution.editable == "egg-link"
    (tree,) = snapshot.source_trees
    assert tree.members[0] == ("", str(folder))
    assert tree.distribution == "proj"


@pytest.mark.slow
def test_legacy_eggs_and_packages_without_record_are_named(empty: Path) -> None:
    egg = site(empty) / "older-1.0-py3.11.egg" / "EGG-INFO"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: older\nVersion: 1.0\n")
    (site(empty) / "easy-install.pth").write_text("./older-1.0-py3.11.egg\n")
    info = site(empty) / "handmade-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: handmade\nVersion: 2.0\n")
    findings = {one.subject: one for one in capture(str(empty)).findings}
    assert "legacy egg" in findings["older"].text
    assert "no RECORD" in findings["handmade"].text
    assert {findings["older"].severity, findings["handmade"].severity} == {"error"}


@pytest.mark.slow
def test_duplicates_are_settled_and_reported(empty: Path, tmp_path: Path) -> None:
    python = str(empty / "bin/python")
    uv("pip", "install", "--python", python, "six==1.16.0")
    (old,) = site(empty).glob("six-*.dist-info")
    twin = site(empty) / "six-1.15.0.dist-info"
    twin.mkdir()
    (twin / "METADATA").write_text("Name: six\nVersion: 1.15.0\n")
    (twin / "RECORD").write_text("six.py,sha256=x,1\n")
    import os

    os.utime(twin, (1, 1))
    elsewhere = tmp_path / "overlay"
    uv("pip", "install", "--python", python, "--target", str(elsewhere), "six==1.17.0")
    (site(empty) / "zz.pth").write_text(f"{elsewhere}\n")
    snapshot = capture(str(empty))
    winner = snapshot.distribution("six")
    assert winner is not None
    assert winner.location == str(old)
    texts = [one.text for one in snapshot.findings if one.subject == "six"]
    assert len(texts) == 2
    assert any("twice" in text for text in texts)
    assert any("1.17.0" in text and "hidden" in text for text in texts)


@pytest.mark.slow
def test_broken_leftovers_are_reported(empty: Path) -> None:
    (site(empty) / "~umpy-1.0.dist-info").mkdir()
    snapshot = capture(str(empty))
    assert not snapshot.distributions
    assert ["leftover" in one.text for one in snapshot.findings] == [True]


@pytest.mark.slow
def test_files_edited_in_place_are_found_only_when_asked(empty: Path) -> None:
    uv("pip", "install", "--python", str(empty / "bin/python"), "--link-mode", "copy", "six", "pytz")
    with (site(empty) / "six.py").open("a") as file:
        file.write("# mine\n")
    (site(empty) / "pytz/lazy.py").unlink()
    assert not capture(str(empty)).findings
    found = {
        (one.subject, one.text.split(": ")[1]) for one in capture(str(empty), verify_files=True).findings
    }
    assert found == {
        ("six", "six.py was edited after it was installed"),
        ("pytz", "pytz/lazy.py is missing"),
    }
    # what every push asks: by sizes and times, whatever the RECORD's way of writing, and only what is read
    record = next(site(empty).glob("pytz-*.dist-info/RECORD"))
    rows = [row.split(",") for row in record.read_text().split()]
    record.write_text("".join(f'"{path}",{hashed},{size}\r\n' for path, hashed, size in rows))
    next(site(empty).glob("six-*.dist-info/METADATA")).write_text("Name: six\nVersion: 1\n")
    touched = touched_files(capture(str(empty)).distributions)
    assert {(one.subject, one.text.split(": ")[1]) for one in touched} == found


@pytest.mark.slow
def test_conda_packages_are_listed_without_their_channels_token(empty: Path) -> None:
    meta = empty / "conda-meta"
    meta.mkdir()
    (meta / "history").touch()
    (meta / "numpy-base-1.26.4-py311h_0.json").write_text(
        json.dumps({"name": "numpy-base", "channel": "https://me:canary@conda.example.org/t/tk-canary/main"})
    )
    snapshot = capture(str(empty))
    (record,) = snapshot.conda
    assert (record.name, record.version, record.build) == ("numpy-base", "1.26.4", "py311h_0")
    assert record.channel == "https://conda.example.org/main"
    assert snapshot.findings[0].severity == "error"
    assert "canary" not in json.dumps(snapshot.to_dict())


def loose(trees: tuple[SourceTree, ...]) -> list[tuple[str, str, str]]:
    return [(tree.name, tree.kind, tree.position) for tree in trees]


@pytest.mark.slow
def test_local_code_by_where_it_stands_on_the_path(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first/lib", "second/lib", "late", "nothing", "work"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "first/lib/one.py").write_text("x = 1\n")
    (tmp_path / "second/lib/two.py").write_text("x = 1\n")
    (tmp_path / "late/pack").mkdir()
    (tmp_path / "late/pack/__init__.py").touch()
    (tmp_path / "nothing/data.csv").touch()
    (tmp_path / "work/analysis.py").touch()
    (site(empty) / "zz.pth").write_text(f"{tmp_path / 'late'}\n{tmp_path / 'nothing'}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'first/lib'}:{tmp_path / 'second/lib'}")
    snapshot = capture(str(empty), cwd=str(tmp_path / "work"))
    assert loose(snapshot.source_trees) == [
        ("work", "cwd", "front"),
        ("lib", "path", "front"),
        ("lib-2", "path", "front"),
        ("late", "path", "back"),
    ]


@pytest.mark.slow
def test_a_home_folder_is_not_local_code(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = capture(str(empty), cwd=str(tmp_path))
    assert snapshot.source_trees == ()
    assert "home" in snapshot.findings[0].text


@pytest.mark.slow
def test_the_root_of_an_editable_project_as_working_directory_is_one_tree(
    empty: Path, tmp_path: Path
) -> None:
    folder = project(tmp_path / "work", "hatchling")
    uv("pip", "install", "--python", str(empty / "bin/python"), "--editable", str(folder))
    (tree,) = capture(str(empty), cwd=str(folder)).source_trees
    assert tree.distribution == "proj"
    assert tree.position == "front"


@pytest.mark.parametrize("what", ["/no/such/python", "/bin/sh", "no-such-program-anywhere"])
def test_what_is_no_python_is_refused_with_the_next_step(what: str) -> None:
    with pytest.raises(CaptureError, match="Name a Python interpreter"):
        capture(what)


def test_a_folder_without_a_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no bin/python"):
        capture(str(tmp_path))


@pytest.mark.skipif(
    not list(Path.home().glob(".pyenv/versions/3.8*")), reason="no Python 3.8 to look at on this machine"
)
def test_a_python_that_is_too_old_is_refused() -> None:
    (old, *_) = Path.home().glob(".pyenv/versions/3.8*")
    with pytest.raises(CaptureError, match=r"3\.10 and newer"):
        capture(str(old))


@pytest.mark.slow
def test_the_digest_follows_what_is_installed_and_not_where(empty: Path, tmp_path: Path) -> None:
    before = capture(str(empty)).digest
    uv("pip", "install", "--python", str(empty / "bin/python"), "six==1.17.0")
    after = capture(str(empty)).digest
    other = tmp_path / "other"
    uv("venv", "--python", sys.executable, str(other))
    uv("pip", "install", "--python", str(other / "bin/python"), "six==1.17.0")
    assert before != after
    assert capture(str(other)).digest == after


@pytest.mark.slow
def test_a_scan_reads_only_the_folders_that_it_is_given(environment: Path) -> None:
    facts = scan([str(site(environment))])
    assert {one["name"] for one in facts["distributions"]} == {
        one.name for one in capture(str(environment)).winners
    }


@pytest.mark.slow
def test_a_report_names_no_path_and_no_address(empty: Path, tmp_path: Path) -> None:
    """It is sent to clusters that others run."""
    folder = project(tmp_path / "secret-folder")
    uv("pip", "install", "--python", str(empty / "bin/python"), "-e", str(folder))
    snapshot = capture(str(empty))
    assert str(folder) in json.dumps(snapshot.to_dict())
    said = json.dumps(snapshot.report())
    assert '"proj"' in said
    assert str(tmp_path) not in said
    assert str(Path.home()) not in said
    assert "url" not in said


@pytest.mark.slow
def test_a_module_put_by_hand_among_the_packages_is_a_finding(empty: Path) -> None:
    assert capture(str(empty)).findings == ()
    (site(empty) / "mine.py").write_text("answer = 42\n")
    (found,) = capture(str(empty)).findings
    assert (found.severity, found.subject) == ("warning", str(site(empty)))
    assert found.text.startswith("mine.py: of no package")
