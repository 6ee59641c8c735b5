"""Which interpreters can be looked at, and what is said of those that cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envsync.errors import CaptureError
from envsync.plugins.compare import compare
from envsync.snapshot import Snapshot, capture
from envsync.target import Target
from envsync.uv import find_uv

PYENV = {path.name: path / "bin/python" for path in Path.home().glob(".pyenv/versions/*")}


@pytest.fixture
def env(tmp_path: Path) -> Path:
    prefix = tmp_path / "env"
    subprocess.run([find_uv(), "venv", "-q", "--python", sys.executable, str(prefix)], check=True)
    return prefix


def site(env: Path) -> Path:
    return next(env.glob("lib/python*/site-packages"))


def old(major_minor: str) -> Path:
    found = [path for name, path in PYENV.items() if name.startswith(f"{major_minor}.")]
    if not found:
        pytest.skip(f"no Python {major_minor} on this machine")
    return found[0]


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.9"])
def test_one_that_is_too_old_is_called_so_though_it_cannot_read_our_code(version: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(str(old(version)))
    assert f"is Python {version}" in caught.value.message
    assert "3.10 and newer" in caught.value.hint


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_others_than_the_running_one(version: str) -> None:
    snapshot = capture(str(old(version)))
    assert snapshot.target.minor == version
    assert snapshot.interpreter.soabi.startswith(f"cpython-{version.replace('.', '')}-")
    assert Snapshot.from_dict(json.loads(json.dumps(snapshot.to_dict()))) == snapshot
    (difference,) = [
        one for one in compare(capture().report(), snapshot.report()) if one.severity == "fatal"
    ][:1]
    assert difference.kind in ("python", "missing", "version")


def test_a_start_up_that_talks_is_no_hindrance(env: Path) -> None:
    (site(env) / "sitecustomize.py").write_text(
        "import atexit, sys\nprint('hello')\nprint('{}')\nsys.stdout.buffer.write(b'\\xff\\n')\n"
        "atexit.register(print, 'bye')\n"
    )
    assert capture(str(env)).interpreter.prefix == str(env)


def test_a_start_up_that_fails_is_quoted(env: Path) -> None:
    (site(env) / "sitecustomize.py").write_text("import os\nos.write(2, b'no licence\\n')\nos._exit(3)\n")
    with pytest.raises(CaptureError, match="not a Python that can be looked at: no licence"):
        capture(str(env))


def test_a_module_of_the_users_does_not_stand_in_the_scanners_way(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those in the working directory nor those beside scan.py are on its path."""
    (tmp_path / "json.py").write_text("raise SystemExit(5)\n")
    monkeypatch.chdir(tmp_path)
    snapshot = capture(str(env))
    assert snapshot.source_trees == ()


@pytest.mark.parametrize("program", ["sh", "not executable", "a folder of another kind", ""])
def test_what_is_no_python_runs_nothing_of_ours(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell would take the scanner's lines for commands: some systems have one that is called import."""
    canary = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/import").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (tmp_path / "bin/import").chmod(0o755)
    (tmp_path / "file").write_text("text")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    what = {"sh": "/bin/sh", "not executable": f"{tmp_path}/file", "": f"{tmp_path}/none"}
    with pytest.raises(CaptureError) as caught:
        capture(what.get(program, str(tmp_path)))
    assert caught.value.hint
    assert not canary.exists()


def test_a_name_on_the_path_will_do(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{env}/bin")
    assert capture("python").interpreter.prefix == str(env)


def test_credentials_in_direct_urls_go_no_further(env: Path) -> None:
    for name, url in {
        "one": "https://me:canary@git.example.org/one",
        "two": "ssh://git@git.example.org/two",
        "three": "https://canary@git.example.org/three@v1",
    }.items():
        info = site(env) / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("")
        (info / "direct_url.json").write_text(
            json.dumps({"url": url, "vcs_info": {"vcs": "git", "commit_id": "c" * 40}})
        )
    snapshot = capture(str(env))
    urls = {one.name: one.direct_url.url for one in snapshot.winners if one.direct_url}
    assert urls == {
        "one": "https://git.example.org/one",
        "two": "ssh://git@git.example.org/two",
        "three": "https://git.example.org/three@v1",
    }
    assert "canary" not in json.dumps([snapshot.to_dict(), snapshot.report()])


def test_a_report_of_oneself_has_no_differences() -> None:
    snapshot = capture()
    assert compare(snapshot.report(), snapshot.report()) == []
    assert compare(snapshot.report(), json.loads(json.dumps(capture(sys.executable).report()))) == []


@pytest.mark.parametrize("broken", [{}, {"interpreter": {}}, {"interpreter": {"version": "3.11.7"}}])
def test_reading_what_is_no_snapshot(broken: dict[str, object]) -> None:
    with pytest.raises(CaptureError, match="this is no snapshot"):
        Snapshot.from_dict(broken)


def test_tags_are_those_of_the_target_and_not_of_the_build_that_runs() -> None:
    tags = Target(python="3.13.0", libc=("glibc", "2.28")).tags()
    assert {tag.abi for tag in tags} == {"cp313", "abi3", "none"}
    assert len(tags) == len(set(tags))
