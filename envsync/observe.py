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
    # Not -I: what PYTHONPATH adds is part of the environment. scan.py takes its own folder off the path.
    assert scan.__file__ is not None
    # -X with a name of ours means nothing to Python, and keeps a shell from running the scanner as its own.
    ran = _run(executable, "-X", "envsync", scan.__file__)
    facts = _last_object(ran.stdout)
    if ran.returncode or facts is None:
        version = _version(executable) if "py" in Path(executable).name else None
        if version is not None and version < _OLDEST:
            raise _too_old(executable, ".".join(map(str, version)))
        raise CaptureError(
            f"{executable} is not a Python that can be looked at: {_gist(ran.stderr)}", hint=_NAME_ONE
        )
    version_said = str(facts["interpreter"]["version"])
    if tuple(int(part) for part in version_said.split(".")[:2]) < _OLDEST:
        raise _too_old(executable, version_said)
    return facts


def _run(executable: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise CaptureError(
            f"{executable} did not answer within {_SECONDS} s",
            hint="See what it does at its start (sitecustomize, .pth files): run it by hand.",
        ) from error
    except OSError as error:
        raise CaptureError(f"{executable} cannot be run: {error.strerror}", hint=_NAME_ONE) from error


def _last_object(output: str) -> dict[str, Any] | None:
    """Return what the scanner wrote; what an environment's own start-up says is passed over."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"interpreter"'):
            try:
                return dict(json.loads(line))
            except ValueError:
                return None
    return None


def _version(executable: str) -> tuple[int, ...] | None:
    """Return the version of a Python that is perhaps too old to read the scanner."""
    ran = _run(executable, "-S", "-c", "import sys; print('%d %d' % sys.version_info[:2])")
    words = ran.stdout.split()
    return tuple(map(int, words)) if len(words) == 2 and all(word.isdigit() for word in words) else None


def _too_old(executable: str, version: str) -> CaptureError:
    return CaptureError(
        f"{executable} is Python {version}",
        hint="envsync reproduces environments of Python 3.10 and newer.",
    )


def _gist(stderr: str) -> str:
    """Return the line that says most: a traceback's last, anything else's first."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it said nothing"]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]


def _executable(python: str) -> str:
    path = Path(python).expanduser()
    if path.is_dir():
        for name in ("bin/python", "bin/python3", "python.exe", "Scripts/python.exe"):
            if (path / name).exists():
                return str((path / name).absolute())
        raise CaptureError(
            f"{path} is not the folder of a Python environment: it has no bin/python",
            hint=_NAME_ONE,
        )
    if path.exists():
        return str(path.absolute())  # not resolved: a virtual environment's python is a link
    if "/" not in python:
        import shutil

        found = shutil.which(python)
        if found:
            return found
    raise CaptureError(f"there is no {python}", hint=_NAME_ONE)
