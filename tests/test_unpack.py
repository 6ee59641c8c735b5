"""Wheels become installations as the specification says, and those that lie are refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from envsync.plugins.overlay import Overlays
from envsync.plugins.scan import scan
from envsync.plugins.unpack import lay, site_of, unpack
from envsync.uv import find_uv
from tests.overlays import hash_of, make_wheel, put, real


def installed(wheel: Path, folder: Path, python: str = sys.executable) -> tuple[Path, Path]:
    """Return the prefix and the site folder of a wheel's installation."""
    info = unpack(str(wheel), str(folder / "unpacked"))
    lay(str(folder / "unpacked"), str(folder / "prefix"), info, python=python)
    return folder / "prefix", Path(site_of(str(folder / "prefix")))


@pytest.mark.slow
def test_it_is_what_uv_installs_by_scan(real_wheels: Path, tmp_path: Path) -> None:
    """Same distributions, same record digests, and nothing odd: data folders, namespaces, C, .pth."""
    wheels = [
        real(real_wheels, *one)
        for one in (
            ("six", "1.16.0"),
            ("msgpack", "1.1.0"),
            ("protobuf", "5.29.3"),
            ("setuptools", "75.8.0"),
            ("jupyterlab_pygments", "0.3.0"),  # has .data/data
        )
    ]
    uv, there = str(find_uv()), tmp_path / "uv"
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(there)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", str(there), "--no-deps", *map(str, wheels)], check=True)
    overlays = Overlays(tmp_path / "overlays")
    built = overlays.build(put(overlays, *wheels), [])
    wanted, found = scan([site_of(str(there))]), scan([built.site])

    def about(facts: dict[str, Any]) -> list[list[str]]:
        keys = ("name", "version", "record", "tags", "requires", "editable", "trouble", "shadowed_by")
        return [[one[key] for key in keys] for one in facts["distributions"]]

    assert about(found) == about(wanted)
    assert {one["installer"] for one in found["distributions"]} == {"envsync"}
    assert (found["leftovers"], found["unowned"]) == ([], [])


@pytest.mark.slow
def test_every_line_of_record_is_true(real_wheels: Path, tmp_path: Path) -> None:
    for wheel in sorted(real_wheels.glob("*.whl")):
        prefix, site = installed(wheel, tmp_path / wheel.stem)
        (record,) = site.glob("*.dist-info/RECORD")
        with record.open(newline="") as file:
            rows = list(csv.reader(file))
        for path, digest, size in rows:
            if site / path == record:
                assert (digest, size) == ("", "")
                continue
            data = (site / path).read_bytes()
            assert (digest, int(size)) == (hash_of(data), len(data)), path
        listed = {os.path.normpath(site / path) for path, _, _ in rows}
        there = {str(path) for path in prefix.rglob("*") if path.is_file()}
        assert listed == there


def test_schemes_scripts_and_modes(tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path,
        "many",
        "1.0",
        {
            "many/__init__.py": "",
            "many/tool.sh": "#!/bin/sh\necho tool\n",
            "many-1.0.data/purelib/pure.py": "x = 1\n",
            "many-1.0.data/platlib/plat/__init__.py": "x = 2\n",
            "many-1.0.data/scripts/run-many": b"#!python\nimport pure\nprint(pure.x)\n",
            "many-1.0.data/scripts/shell": b"#!/bin/sh\necho shell\n",
            "many-1.0.data/data/share/many/file.txt": "data",
            "many-1.0.data/headers/many.h": "int x;\n",
            "many-1.0.dist-info/entry_points.txt": "[console_scripts]\nmany = many.cli:Main.run [extra]\n"
            "[gui_scripts]\nmany-gui=many.cli:start\n[other]\nnot = a:script\n",
            "many/cli.py": "import sys\nclass Main:\n    @staticmethod\n    def run():\n"
            "        print('ran', *sys.argv[1:])\n        return 7\ndef start(): pass\n",
        },
        modes={"many/tool.sh": 0o100755},
    )
    prefix, site = installed(wheel, tmp_path)
    assert (site / "pure.py").read_text() == "x = 1\n"
    assert (site / "plat/__init__.py").read_text() == "x = 2\n"
    assert (prefix / "share/many/file.txt").read_text() == "data"
    assert (prefix / f"include/site/{site.parent.name}/many/many.h").read_text() == "int x;\n"
    assert not list(site.glob("*.data"))
    assert os.access(site / "many/tool.sh", os.X_OK)
    assert not (site / "many/cli.py").stat().st_mode & 0o111
    assert sorted(one.name for one in (prefix / "bin").iterdir()) == ["many", "many-gui", "run-many", "shell"]
    done = subprocess.run([prefix / "bin/many", "a", "b"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "ran a b\n")
    environ = {**os.environ, "PYTHONPATH": str(site)}
    assert subprocess.check_output([prefix / "bin/run-many"], env=environ, text=True) == "1\n"
    assert subprocess.check_output([prefix / "bin/shell"], text=True) == "shell\n"
    assert (site / "many-1.0.dist-info/INSTALLER").read_text() == "envsync\n"


def test_a_long_or_blank_path_of_the_interpreter(tmp_path: Path) -> None:
    python = tmp_path / ("long" * 40) / "with blank" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    points = "[console_scripts]\nhello = hello:main\n"
    files = {"hello.py": "def main(): print('hello')\n", "hello-1.dist-info/entry_points.txt": points}
    prefix, _ = installed(make_wheel(tmp_path, "hello", "1", files), tmp_path, str(python))
    assert subprocess.check_output([prefix / "bin/hello"], text=True) == "hello\n"


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "wrong hash": ({"record": {"x.py": "x.py,sha256=AAAA,6"}}, "x.py is not what the wheel's RECORD says"),
    "not in RECORD": ({"record": {"x.py": None}}, "RECORD does not name x.py"),
    "no hash": ({"record": {"x.py": "x.py,,"}}, "no sha256 or better of x.py"),
    "weak hash": ({"record": {"x.py": "x.py,md5=AAAA,6"}}, "no sha256 or better of x.py"),
    "RECORD names more": ({"record": {"y.py": "y.py,sha256=AAAA,6"}}, "RECORD names y.py"),
    "another Wheel-Version": ({"wheel_version": "2.0"}, "Wheel-Version is 2.0"),
    "no Wheel-Version": ({"wheel_version": ""}, "Wheel-Version is"),
    "a link": ({"modes": {"x.py": 0o120777}}, "x.py is a link"),
    "a device": ({"modes": {"x.py": 0o020644}}, "x.py is a link or no plain file"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wheel_that_lies(lie: str, tmp_path: Path) -> None:
    options, said = LIES[lie]
    wheel = make_wheel(tmp_path, "liar", "1", {"x.py": "x = 1\n"}, **options)
    with pytest.raises(ValueError, match=said) as error:
        unpack(str(wheel), str(tmp_path / "unpacked"), label="liar-1.whl")
    assert str(error.value).startswith("liar-1.whl: ")


@pytest.mark.parametrize(
    "path",
    [
        *("../out.py", "/out.py", "a/../../out.py", "a//b.py", "./x.py", "a\\..\\out.py"),
        *("liar-1.data/other/x", "liar-1.data/purelib/../../../out.py", "liar-1.data/scripts/../../out"),
    ],
)
def test_no_way_out_of_the_folder(path: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels", "liar", "1", {path: "x = 1\n"})
    with pytest.raises(ValueError, match=r"is not a path inside a wheel|for a place that is not known"):
        unpack(str(wheel), str(tmp_path / "a/b/unpacked"))
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [wheel]


@pytest.mark.parametrize("name", ["../evil", "a/b"])
def test_no_script_outside_bin(name: str, tmp_path: Path) -> None:
    points = f"[console_scripts]\n{name} = x:main\n"
    wheel = make_wheel(tmp_path, "liar", "1", {"x.py": "", "liar-1.dist-info/entry_points.txt": points})
    with pytest.raises(ValueError, match="is no entry point"):
        installed(wheel, tmp_path)


@pytest.mark.parametrize("value", ["os:system('x')", "x;import os:main", "x", "x:", "x:a b"])
def test_no_code_in_an_entry_point(value: str, tmp_path: Path) -> None:
    points = f"[console_scripts]\ntool = {value}\n"
    wheel = make_wheel(tmp_path, "liar", "1", {"x.py": "", "liar-1.dist-info/entry_points.txt": points})
    with pytest.raises(ValueError, match="is no entry point"):
        installed(wheel, tmp_path)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    files = {"x.py": "x = 1\n", "liar-1.data/purelib/x.py": "x = 2\n"}
    wheel = make_wheel(tmp_path, "liar", "1", files)
    with pytest.raises(ValueError, match=r"two of its files would be site/x\.py"):
        unpack(str(wheel), str(tmp_path / "unpacked"))
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.py", "x = 3\n")
    with pytest.raises(ValueError, match=r"it has the file x\.py twice"):
        unpack(str(wheel), str(tmp_path / "again"))


def test_what_is_no_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "other", "1", {"x.py": "x = 1\n" * 1000})
    with pytest.raises(ValueError, match="it is the wheel of other, and pandas is wanted"):
        unpack(str(wheel), str(tmp_path / "a"), name="pandas")
    data = wheel.read_bytes()
    for number, broken in enumerate([b"", b"no zip", data[: len(data) // 2], data[60:]]):
        wheel.write_bytes(broken)
        with pytest.raises(ValueError, match=r"other-1-py3-none-any\.whl"):
            unpack(str(wheel), str(tmp_path / f"broken{number}"))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x.py", "")
    with pytest.raises(ValueError, match="has one dist-info folder, and this one has 0"):
        unpack(str(wheel), str(tmp_path / "b"))


@pytest.mark.slow
def test_a_flipped_bit_is_noticed(real_wheels: Path, tmp_path: Path) -> None:
    data = bytearray(real(real_wheels, "msgpack", "1.1.0").read_bytes())
    data[len(data) // 3] ^= 4
    wheel = tmp_path / "msgpack-1.1.0.whl"
    wheel.write_bytes(data)
    with pytest.raises(ValueError, match=r"msgpack-1\.1\.0\.whl"):
        unpack(str(wheel), str(tmp_path / "unpacked"))
