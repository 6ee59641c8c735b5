"""``envsync run -- COMMAND``: which folder the command imports from, and which Python runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envsync.cli.command_line import first_folder, python_of

ENVSYNC = Path(sys.executable).parent / "envsync"
SHOW = "import sys; print(sys.path[0] or '.')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a script in a folder, a module beside it, and a folder that can be run."""
    (tmp_path / "sub" / "app").mkdir(parents=True)
    for path in ("sub/analysis.py", "sub/analysis", "sub/app/__main__.py", "mod.py"):
        (tmp_path / path).write_text(SHOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["sub/analysis.py"],
        ["-u", "sub/analysis.py", "mod.py"],
        ["-W", "ignore", "-X", "utf8", "sub/analysis"],
        ["-Wignore", "-Xutf8", "-uB", "sub/analysis.py"],
        ["-uW", "ignore", "--check-hash-based-pycs", "never", "--", "sub/analysis.py"],
        ["sub/app"],
        ["-m", "mod", "sub/analysis.py"],
        ["-um", "mod", "sub/analysis.py"],
        ["-c", SHOW, "sub/analysis.py"],
        [f"-c{SHOW}", "sub/analysis.py"],
    ],
)
def test_the_folder_is_the_one_that_python_puts_first(folder: Path, arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first_folder(command) == str((folder / done.stdout.strip()).resolve())


def test_a_script_that_can_be_run_counts_and_an_installed_one_does_not(folder: Path) -> None:
    script = folder / "sub" / "tool"
    script.write_text(f"#!{sys.executable}\n{SHOW}")
    script.chmod(0o755)
    assert first_folder([str(script)]) == str(folder / "sub")
    assert first_folder([str(ENVSYNC), "sub/analysis"]) == str(folder)
    assert first_folder(["ls", "sub"]) == str(folder)


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("#!/opt/x/bin/python3.11\n", "/opt/x/bin/python3.11"),
        ("#! /usr/bin/env python3\n", "python3"),
        ("#!/usr/bin/env -S A=1 python3 -u\n", "python3"),
        ("#!/bin/sh\n'''exec' '/opt/a b/bin/python' \"$0\" \"$@\"\n' '''\n", "/opt/a b/bin/python"),
        ("#!/bin/sh\necho python\n", None),
        ("#!\n", None),
        ("plain\n", None),
    ],
)
def test_the_first_line_of_a_script_names_its_python(tmp_path: Path, text: str, python: str | None) -> None:
    script = tmp_path / "tool"
    script.write_text(text)
    script.chmod(0o755)
    assert python_of(str(script)) == python


@pytest.mark.slow
def test_a_script_of_another_environment_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", other], check=True)
    script = tmp_path / "script.py"
    script.write_text(f"#!{other}/bin/python\nprint('ran')\n")
    script.chmod(0o755)
    for command in ([str(script)], [str(other / "bin" / "python"), str(script)]):
        done = subprocess.run(
            [ENVSYNC, "run", "--", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 3, done.stderr
        assert f"the Python of {other}" in done.stderr
        assert "ran" not in done.stdout
