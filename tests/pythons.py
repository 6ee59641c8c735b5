"""The Pythons of this machine, for tests that need another one than their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from envsync.uv import find_uv

_ASK = (
    "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.base_prefix, sep='\\n')"
)


@cache
def interpreter(minor: str) -> Path | None:
    """Return the interpreter of a CPython such as ``"3.12"``, None if there is none.

    It is that of an installation, no virtual environment's, and it has been run. Nothing is downloaded.
    """
    return next((found for path in _candidates(minor) if (found := _asked(path, minor)) is not None), None)


def _candidates(minor: str) -> Iterator[str]:
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == minor:
        yield sys.executable
    for folder in os.get_exec_path():
        if (path := shutil.which(f"python{minor}", path=folder)) is not None:
            yield path
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    yield from map(str, sorted(versions.glob(f"{minor}.*/bin/python{minor}"), reverse=True))
    told = subprocess.run(
        [find_uv(), "python", "find", "--no-python-downloads", "--managed-python", "--no-project", minor],
        capture_output=True,
        text=True,
        check=False,
    )
    yield from told.stdout.split("\n")[:1]


def _asked(path: str, minor: str) -> Path | None:
    """Return the interpreter that a program is: a shim may only say that there is none."""
    try:
        told = subprocess.run(
            [path, "-I", "-c", _ASK], capture_output=True, text=True, check=False, timeout=30
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    if len(told) != 3 or told[:2] != ["cpython", minor]:
        return None
    found = Path(told[2]) / "bin" / f"python{minor}"
    return found if found.exists() else Path(path)
