"""The Facts of an interpreter: of this process, or of another one by running `plugins/scan.py` under it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from envsync.errors import CaptureError
from envsync.plugins import scan

__all__ = ["facts_of", "here"]

_OLDEST = (3, 10)
_SECONDS = 120
_NAME_ONE = "Name a Python interpreter, or its environment's folder."


def here() -> dict[str, Any]:
    """Return the Facts of the running interpreter."""
    return scan.scan()


def facts_of(python: str) -> dict[str, Any]:
    """Return the Facts of another interpreter.

    Parameters
    ----------
    python : str
        Its executable, or the folder of its environment.

    Raises
    ------
    CaptureError
        There is no such interpreter, it does not run, or it is too old.
    """
    executable = _executable(python)
    try:
        # Not -I: what PYTHONPATH adds is part of the environment. scan.py takes its own folder off the path.
        ran = subprocess.run(
            [executable, scan.__file__], capture_output=True, timeout=_SECONDS, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CaptureError(
            f"{executable} cannot be run: {error}",
            hint="Name a Python interpreter, or its environment's folder.",
        ) from error
    lines = ran.stdout.splitlines()
    try:
        if ran.returncode:
            raise ValueError
        facts = json.loads(lines[-1])
        version = str(facts["interpreter"]["version"])
    except (ValueError, IndexError, KeyError, TypeError):
        said = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CaptureError(
            f"{executable} is not a Python that can be looked at: {said}",
            hint="Name a Python interpreter of version 3.10 or newer, or its environment's folder.",
        ) from None
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise CaptureError(
            f"{executable} is Python {version}",
            hint="envsync reproduces environments of Python 3.10 and newer.",
        )
    return dict(facts)


def _executable(python: str) -> str:
    path = Path(python).expanduser()
    if path.is_dir():
        for name in ("bin/python", "bin/python3", "python.exe", "Scripts/python.exe"):
            if (path / name).exists():
                return str((path / name).absolute())
        raise CaptureError(
            f"{path} is not the folder of a Python environment: it has no bin/python",
            hint="Name the environment's folder, or its interpreter.",
        )
    if path.exists():
        return str(path.absolute())  # not resolved: a virtual environment's python is a link
    if "/" not in python:
        import shutil

        found = shutil.which(python)
        if found:
            return found
    raise CaptureError(
        f"there is no {python}", hint="Name a Python interpreter, or its environment's folder."
    )
