"""What a command line says of Python: which one runs it, and which folder it imports from."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["first_folder", "python_of"]

_PYTHONS = ("python", "pypy")
_WITH_VALUE = "WX"
_LONGEST = 4096  # bytes of a file that are looked at


def python_of(program: str) -> str | None:
    """Return the Python that runs a program: the program itself, or the one that its first line names.

    None for what no Python runs, as far as can be told.
    """
    if Path(program).name.startswith(_PYTHONS):
        return program
    file = shutil.which(program)
    if file is None:
        return None
    try:
        with Path(file).open("rb") as opened:
            head = opened.read(_LONGEST)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    lines = head.decode(errors="replace").splitlines()
    try:
        words = shlex.split(lines[0][2:])
        if words and Path(words[0]).name == "sh" and lines[1:2] and lines[1].startswith("'''exec'"):
            words = shlex.split(lines[1][len("'''exec'") :])  # how installers write a path that is too long
    except ValueError:
        return None
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return words[0] if words and Path(words[0]).name.startswith(_PYTHONS) else None


def first_folder(arguments: Sequence[str]) -> str:
    """Return the folder that comes first on a command's path: that of its script, as Python has it.

    Parameters
    ----------
    arguments : sequence of str
        The command. One without a script (``python -m``, ``python -c``, no Python) has the working directory.
    """
    program = arguments[0]
    if Path(program).name.startswith(_PYTHONS):
        script = _script(arguments[1:])
    elif program.endswith(".py") or (python_of(program) and not _installed(program)):
        script = shutil.which(program)
    else:
        script = next((one for one in arguments[1:2] if one.endswith(".py")), None)
    if script is None:
        return str(Path.cwd())
    path = Path(script).resolve()
    return str(path if path.is_dir() else path.parent)


def _installed(program: str) -> bool:
    """Tell whether a program is one of an environment's own, such as pytest: no local code is beside it."""
    folder = Path(shutil.which(program) or program).absolute().parent
    return folder == Path(sys.executable).parent or (folder.parent / "pyvenv.cfg").exists()


def _script(arguments: Sequence[str]) -> str | None:
    """Return what Python takes for its script, None where there is none."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return next(rest, None)
        if argument == "-" or not argument:
            return None
        if not argument.startswith("-"):
            return argument
        if argument.startswith("--"):
            if argument == "--check-hash-based-pycs":
                next(rest, None)
            continue
        for place, letter in enumerate(argument[1:], start=2):
            if letter in "mc":
                return None
            if letter in _WITH_VALUE:
                if len(argument) == place:
                    next(rest, None)
                break
    return None
