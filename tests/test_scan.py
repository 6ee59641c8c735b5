"""The scanner: digests that do not depend on the installer, odd and broken installations, old Pythons."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envsync.plugins import scan as scanner
from envsync.plugins.compare import compare
from envsync.plugins.scan import imported_distributions, record_digest, scan

SCANNER = str(scanner.__file__)
PYENV = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))


def install(site: Path, name: str, version: str, files: dict[str, str], **more: str) -> Path:
    """Write an installed distribution by hand; `more` are files of its dist-info."""
    info = site / f"{name}-{version}.dist-info"
    texts = {
        f"{info.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nLong words\n",
        f"{info.name}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        **{f"{info.name}/{key.replace('__', '.')}": text for key, text in more.items()},
    }
    rows = []
    for path, text in {**files, **texts}.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        rows.append([path, hashed(text), str(len(text))])
    with (info / "RECORD").open("w", newline="") as file_:
        csv.writer(file_, lineterminator="\n").writerows([*rows, [f"{info.name}/RECORD", "", ""]])
    return info


def hashed(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def only(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = [one for one in facts["distributions"] if one["name"] == name and not one["shadowed_by"]]
    return dict(one)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://me:p@ss@example.org/a.whl", "https://example.org/a.whl"),
        ("git+https://token@example.org/x.git", "git+https://example.org/x.git"),
        ("ssh://git@example.org/x.git", "ssh://git@example.org/x.git"),
        ("https://example.org/a@1/b.whl?x=1#sha256=ab", "https://example.org/a@1/b.whl?x=1#sha256=ab"),
        ("https://example.org/b.whl?x=1&X-Amz-Signature=ab#f", "https://example.org/b.whl#f"),
        ("https://example.org/b.whl?access_token=ab", "https://example.org/b.whl"),
        ("https://example.org?sig=ab", "https://example.org"),
        ("file:///home/me/b%40c", "file:///home/me/b%40c"),
    ],
)
def test_no_secret_of_a_url_is_kept(tmp_path: Path, url: str, public: str) -> None:
    install(tmp_path, "proj", "1.0", {"proj.py": ""}, direct_url__json=json.dumps({"url": url}))
    assert only(scan([str(tmp_path)]), "proj")["direct_url"]["url"] == public


def test_modules_that_no_package_owns_are_named(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    files = {
        "proj/__init__.py": "",
        "proj/a.py": "",
        "proj.libs/b.so": "",
        "proj_more.py": "",
        "zns/x/y.py": "",
    }
    install(site, "proj", "1.0", {**files, "odd, name.py": ""})
    (install(site, "apt-like", "1.0", {"aptlike.py": "", "apt_like/b.py": ""}, top_level__txt="aptlike\n")
        / "RECORD").unlink()  # fmt: skip
    (site / "old-1.0.egg-info").mkdir()
    (site / "old-1.0.egg-info" / "PKG-INFO").write_text("Name: old\nVersion: 1.0\n")
    (site / "old.py").write_text("")
    for name in ("_virtualenv.py", "some.pth", "README.txt", "__pycache__/x.pyc", "gone/__pycache__/y.pyc"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    assert scan([str(site)])["unowned"] == []
    for name in ("mine.py", "deep/er/fast.so", "sitecustomize.py", "proj_2/__init__.py", "zz.py"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    found = [Path(path).name for path in scan([str(site)])["unowned"]]
    assert found == ["deep", "mine.py", "proj_2", "sitecustomize.py", "zz.py"]
    assert scan([str(site)], records=False)["unowned"] == []
    elsewhere = site.rename(tmp_path / "code")  # a folder of local code ships as it is
    assert scan([str(elsewhere)])["unowned"] == []


def test_a_package_without_its_modules_is_seen(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    files = {
        "gone/a.py": "",
        "gone2.py": "",
        "there/a.py": "",
        "tests/a.py": "",
        "data/x.csv": "",
        "gone-x.pth": "",
    }
    install(site, "proj", "1.0", files)
    assert "gone" not in only(scan([str(site)]), "proj")
    for name in ("gone", "tests", "data"):
        shutil.rmtree(site / name)
    (site / "gone2.py").unlink()
    (site / "gone-x.pth").unlink()
    facts = scan([str(site)])
    assert only(facts, "proj")["gone"] == ["gone", "gone2.py"]
    (found,) = compare(facts, facts)
    assert (found.severity, found.kind, found.right) == ("error", "content", "gone, gone2.py gone")


# Digests

WHEEL = """\
pkg/__init__.py,sha256=aa,1
"pkg/with, comma.txt",sha256=bb,2
pkg/legacy.pyc,sha256=cc,3
pkg-1.0.data/purelib/other.py,sha256=dd,4
pkg-1.0.data/platlib/fast.so,sha256=ee,5
pkg-1.0.data/data/share/pkg/table.csv,sha256=ff,6
pkg-1.0.data/scripts/run,sha256=gg,7
pkg-1.0.data/headers/pkg.h,sha256=hh,8
pkg-1.0.dist-info/METADATA,sha256=ii,9
pkg-1.0.dist-info/licenses/LICENSE,sha256=jj,10
pkg-1.0.dist-info/RECORD,,
"""
INSTALLED = """\
../../../bin/run,sha256=rewritten,70
../../../include/site/python3.11/pkg/pkg.h,sha256=hh,8
../../../share/pkg/table.csv,sha256=ff,6
fast.so,sha256=ee,5
other.py,sha256=dd,4
"pkg/with, comma.txt",sha256=bb,2
pkg-1.0.dist-info/INSTALLER,sha256=zz,4
pkg-1.0.dist-info/METADATA,sha256=ii,9
pkg-1.0.dist-info/RECORD,,
pkg-1.0.dist-info/REQUESTED,sha256=zz,0
pkg-1.0.dist-info/direct_url.json,sha256=zz,9
pkg-1.0.dist-info/licenses/LICENSE,sha256=jj,10
pkg-1.0.dist-info/uv_cache.json,sha256=zz,9
pkg/__init__.py,sha256=aa,1
pkg/__pycache__/__init__.cpython-311.pyc,,
pkg/legacy.pyc,,
"""


def test_a_wheel_and_its_installation_have_one_digest() -> None:
    assert record_digest(WHEEL) == record_digest(INSTALLED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pkg/__init__.py,sha256=aa", "pkg/__init__.py,sha256=ab"),
        ("fast.so,sha256=ee,5\n", ""),
        ("table.csv,sha256=ff", "table.csv,sha256=fg"),
        ("other.py", "another.py"),
        ("LICENSE,sha256=jj", "LICENSE,sha256=jk"),
    ],
)
def test_a_change_of_content_changes_the_digest(old: str, new: str) -> None:
    assert old in INSTALLED
    assert record_digest(INSTALLED.replace(old, new)) != record_digest(INSTALLED)


@pytest.mark.parametrize(
    "respelled",
    [
        "".join(sorted(INSTALLED.splitlines(keepends=True), reverse=True)),
        INSTALLED.replace("\n", "\r\n"),
        INSTALLED.rstrip("\n"),
        INSTALLED.replace("pkg/__init__.py,sha256=aa,1", "./pkg/__init__.py,sha256=aa,1").replace(
            "./pkg/", "pkg/"
        ),
        INSTALLED.replace(",5\n", ",\n"),
    ],
    ids=["order", "line ends", "no last line end", "as it is", "no size"],
)
def test_the_spelling_of_a_record_does_not_matter(respelled: str) -> None:
    assert record_digest(respelled) == record_digest(INSTALLED)


def test_the_short_way_and_the_long_way_agree() -> None:
    """A RECORD with a quoted path goes the long way; one without goes the short way."""
    plain = "\n".join(line for line in INSTALLED.splitlines() if '"' not in line)
    quoted = plain.replace("pkg/__init__.py", '"pkg/__init__.py"')
    assert record_digest(plain) == record_digest(quoted)


def test_names_that_are_not_utf8_count_too(tmp_path: Path) -> None:
    info = install(tmp_path, "odd", "1.0", {})
    with (info / "RECORD").open("ab") as file:
        file.write(b"odd/caf\xe9.txt,sha256=aa,1\n")
    with_it = only(scan([str(tmp_path)]), "odd")["record"]
    install(tmp_path, "odd", "1.0", {})
    assert with_it != only(scan([str(tmp_path)]), "odd")["record"]


# Installations


def test_what_the_metadata_says(tmp_path: Path) -> None:
    info = install(tmp_path, "Some.Odd_name", "1.0+local", {"odd.py": "x = 1\n"}, INSTALLER="pip\n")
    text = "Metadata-Version: 2.1\r\nName: Some.Odd_name\r\nVersion: 1.0+local\r\n" + "".join(
        f"Requires-Dist: dependency-{number} (>=1.0) ; extra == 'x'\r\n" for number in range(2000)
    )
    (info / "METADATA").write_bytes(text.encode() + b"\r\nName: not this\r\nRequires-Dist: nor this\r\n")
    one = only(scan([str(tmp_path)]), "some-odd-name")
    assert (one["version"], one["installer"], one["tags"]) == ("1.0+local", "pip", ["py3-none-any"])
    assert len(one["requires"]) == 2000
    assert one["requires"][-1] == "dependency-1999 (>=1.0) ; extra == 'x'"
    assert one["trouble"] == ""


def test_of_twins_in_one_folder_the_one_whose_files_are_there_wins(tmp_path: Path) -> None:
    old = install(tmp_path, "twin", "1.0", {"twin.py": "old = 1\n"})
    new = install(tmp_path, "twin", "2.0", {"twin.py": "newer = 1\n"})
    (tmp_path / "twin.py").write_text("old = 1\n")
    os.utime(old, (1, 1))
    facts = scan([str(tmp_path)])
    assert only(facts, "twin")["version"] == "1.0"
    assert [one["shadowed_by"] for one in facts["distributions"]] == ["", str(old)]
    (tmp_path / "twin.py").write_text("newer = 1\n")
    assert only(scan([str(tmp_path)]), "twin")["location"] == str(new)


def test_the_first_on_the_path_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    install(first, "pkg", "1.0", {})
    install(second, "pkg", "2.0", {})
    assert only(scan([str(first), str(second)]), "pkg")["version"] == "1.0"
    assert only(scan([str(second), str(first), str(second)]), "pkg")["version"] == "2.0"


@pytest.mark.parametrize(
    ("file", "text", "trouble"),
    [
        ("direct_url.json", "{broken", "direct_url.json"),
        ("direct_url.json", "[]", "direct_url.json"),
        ("direct_url.json", '{"url": "file:///x", "dir_info": "yes"}', ""),
        ("METADATA", "", "METADATA"),
        ("METADATA", "\0\0\0", "METADATA"),
        ("WHEEL", "", ""),
    ],
)
def test_damaged_files_are_trouble_and_not_a_crash(
    tmp_path: Path, file: str, text: str, trouble: str
) -> None:
    info = install(tmp_path, "pkg", "1.0", {"pkg.py": ""})
    (info / file).write_text(text)
    one = only(scan([str(tmp_path)]), "pkg")
    assert one["version"] == "1.0"
    assert trouble in one["trouble"]
    assert bool(trouble) == bool(one["trouble"])


def test_leftovers_are_named_and_are_no_distributions(tmp_path: Path) -> None:
    install(tmp_path, "pkg", "1.0", {})
    (tmp_path / "pkg-1.0.dist-info").rename(tmp_path / "~kg-1.0.dist-info")
    (tmp_path / "empty-1.0.dist-info").mkdir()
    (tmp_path / "file-1.0.dist-info").touch()
    facts = scan([str(tmp_path), str(tmp_path / "missing"), SCANNER])
    assert facts["distributions"] == []
    assert [Path(one).name for one in facts["leftovers"]] == [
        "empty-1.0.dist-info",
        "file-1.0.dist-info",
        "~kg-1.0.dist-info",
    ]


def test_private_copies_of_setuptools_are_not_installed(tmp_path: Path) -> None:
    install(tmp_path / "setuptools" / "_vendor", "jaraco.text", "3.12", {})
    assert scan([str(tmp_path), str(tmp_path / "setuptools" / "_vendor")])["distributions"] == []


def test_an_editable_has_no_record_digest_since_that_would_name_its_path(tmp_path: Path) -> None:
    url = json.dumps({"url": "file:///home/me/proj", "dir_info": {"editable": True}})
    install(
        tmp_path, "proj", "1.0", {"__editable__.proj-1.0.pth": "/home/me/proj/src\n"}, direct_url__json=url
    )
    one = only(scan([str(tmp_path)]), "proj")
    assert (one["editable"], one["record"], one["trouble"]) == ("pth", None, "")


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("proj.pth", "pth"),
        ("__editable___proj_1_0_finder.py", "finder"),
        ("_proj_editable.py", "scikit-build-core"),
        ("_editable_skbc_proj.py", "scikit-build-core"),
        ("_proj_editable_loader.py", "meson-python"),
        ("proj/proj.abi3.so", ""),
    ],
)
def test_the_shapes_of_editables(tmp_path: Path, file: str, shape: str) -> None:
    url = json.dumps({"url": "file:///home/me/proj", "dir_info": {"editable": True}})
    install(tmp_path, "proj", "1.0", {"zz_proj.pth": "import x\n", file: ""} if shape else {file: ""},
            direct_url__json=url)  # fmt: skip
    one = only(scan([str(tmp_path)]), "proj")
    assert one["editable"] == shape
    assert (one["record"] is None) == bool(shape), (
        "what lies in the site folder whole is known by its content"
    )


def test_no_records_costs_no_digest(tmp_path: Path) -> None:
    install(tmp_path, "pkg", "1.0", {})
    assert only(scan([str(tmp_path)], records=False), "pkg")["record"] is None


# As a plain file


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_it_runs_alone(how: str, tmp_path: Path) -> None:
    text = Path(SCANNER).read_text()
    copy = tmp_path / "anything.py"
    copy.write_text(text)
    ran = subprocess.run(
        [sys.executable, "-I", str(copy) if how == "file" else "-"],
        input=None if how == "file" else text,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(ran.stdout)
    assert facts["interpreter"]["executable"] == sys.executable
    here = scan(facts["paths"])
    assert facts["distributions"] == here["distributions"]


def scanned(python: Path) -> dict[str, Any]:
    """Return what is found by a Python of this machine."""
    if tuple(map(int, python.parent.parent.name.split(".")[:2])) < (3, 8):
        pytest.skip("older than 3.8")
    ran = subprocess.run([python, "-I", SCANNER], capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout))


every_python = pytest.mark.parametrize("python", PYENV, ids=lambda path: path.parent.parent.name)


@pytest.mark.skipif(not PYENV, reason="no other Pythons on this machine")
@every_python
def test_it_runs_under_every_python_from_3_8(python: Path) -> None:
    facts = scanned(python)
    assert facts["interpreter"]["version"] == python.parent.parent.name
    assert facts["interpreter"]["soabi"].startswith("cpython-3")


@pytest.mark.slow
@pytest.mark.skipif(not PYENV, reason="no other Pythons on this machine")
@every_python
def test_it_finds_what_pip_lists(python: Path) -> None:
    facts = scanned(python)
    said = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True)
    if said.returncode:
        pytest.skip("it has no pip")
    theirs = {(scanner.normalize(one["name"]), one["version"]) for one in json.loads(said.stdout)}
    assert theirs <= {(one["name"], one["version"]) for one in facts["distributions"]}


# What is imported

LOOK = f"""
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("scanner", {SCANNER!r})
scanner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scanner)
sys.path.append(sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
facts = scanner.scan([sys.argv[1]])
facts["imported"] = scanner.imported_distributions(facts)
print(json.dumps(facts))
"""


def look(site: Path, *modules: str, before: str = "") -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-S", "-c", LOOK, str(site), *modules],
        env={**os.environ, "PYTHONPATH": before},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(ran.stdout))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "lib/python3.11/site-packages"
    version = "__version__ = '1.5'\n"
    install(folder, "plain", "1.5", {"plain/__init__.py": version, "plain/inner/__init__.py": ""})
    install(folder, "Single", "1.5", {"single.py": version})
    install(folder, "other-name", "1.5", {"_private.py": "", "othername/__init__.py": version})
    install(folder, "google-one", "1.5", {"google/one/__init__.py": version})
    install(folder, "google-two", "1.5", {"google/cloud/two/__init__.py": version})
    install(folder, "dataclasses", "0.8", {"dataclasses.py": version})
    install(folder, "uuid", "1.30", {"other_uuid.py": ""})
    install(folder, "unused", "1.5", {"unused.py": ""})
    return folder


def test_imported_distributions_by_whatever_name_they_have(site: Path) -> None:
    modules = ["plain.inner", "single", "othername", "google.one", "dataclasses", "uuid"]
    facts = look(site, *modules)
    assert facts["imported"] == {
        "google-one": {"path": f"{site}/google/one", "version": "1.5"},
        "other-name": {"path": f"{site}/othername", "version": "1.5"},
        "plain": {"path": f"{site}/plain", "version": "1.5"},
        "single": {"path": f"{site}/single.py", "version": "1.5"},
    }
    assert compare(facts, facts) == [], "a backport that the standard library hides is no difference"
    assert "google-two" in look(site, "google.cloud.two")["imported"]


def test_a_module_in_front_is_seen_for_what_it_is(site: Path, tmp_path: Path) -> None:
    front = tmp_path / "front"
    front.mkdir()
    (front / "plain.py").write_text("__version__ = '0.1'\n")
    wanted, there = look(site, "plain"), look(site, "plain", before=str(front))
    assert there["imported"]["plain"] == {"path": str(front / "plain.py"), "version": "0.1"}
    (difference,) = compare(wanted, there)
    assert (difference.severity, difference.kind, difference.subject) == ("error", "shadowed", "plain")
    assert difference.right == str(front / "plain.py")


def test_a_module_by_another_way_to_the_same_folder_is_not_shadowed(site: Path) -> None:
    link = site.parent.parent.parent / "lib64"
    link.symlink_to("lib")
    there = look(site, "plain", before=str(link / "python3.11/site-packages"))
    assert there["imported"]["plain"]["path"] == f"{site}/plain"


def test_modules_that_misbehave_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        __slots__ = ()

    monkeypatch.setitem(sys.modules, "hostile", Hostile())
    monkeypatch.setitem(sys.modules, "nothing", None)
    assert "pytest" in imported_distributions(scan())
