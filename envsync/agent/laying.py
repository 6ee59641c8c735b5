"""Installing a few wheels without uv: the environment's own Python unpacks them and lays them out.

uv is quicker, but it is larger than all that a small environment takes, and has to come first.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, List, Mapping, Sequence, Tuple

from ..plugins.unpack import lay, unpack
from .layout import disk_problem, remove

if TYPE_CHECKING:
    from .running import Runner

__all__ = ["DamagedError", "UnlaidError", "lay_out", "lay_wheels", "unpack_wheels"]

_PROCESSES = 8  # at most
_FOLDER = ".unpacked"

_Wheels = List[Tuple[str, Path]]  # by names of distributions


class DamagedError(Exception):
    """A wheel that is not what its own RECORD says, or no wheel.

    Parameters
    ----------
    name : str
        Of the distribution.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class UnlaidError(Exception):
    """What is needed for it is missing in an interpreter, such as ``venv``: uv needs nothing of that."""


def lay_wheels(runner: Runner, python: str, building: Path, prefix: Path, wheels: Mapping[str, Path]) -> None:
    """Make an environment of wheels: a virtual environment (PEP 405), and each wheel in it.

    Parameters
    ----------
    runner : Runner
        Runs the interpreter.
    python : str
        The interpreter that the environment is for.
    building : Path
        Where it is made; not there yet.
    prefix : Path
        What it is called afterwards.
    wheels : mapping of str to Path
        By the names of their distributions.

    Raises
    ------
    DamagedError
        A wheel is not what it should be.
    UnlaidError
        The interpreter cannot do it.
    Problem
        The disk is full, or something else is wrong with it.
    """
    folder = building / _FOLDER
    folder.mkdir(mode=0o700, parents=True)
    command = [python, "-I", "-S", sys.argv[0]]
    shares = _shares([*wheels.items()], min(len(os.sched_getaffinity(0)), _PROCESSES))
    calls = [
        [*command, "unpack", str(folder), *(text for name, wheel in share for text in (name, str(wheel)))]
        for share in shares
    ]
    with ThreadPoolExecutor(max(1, len(calls))) as threads:
        for done in threads.map(lambda call: runner.run(call, {}), calls):
            _check(done.returncode, done.stderr)
    done = runner.run([*command, "lay", str(building), str(prefix), str(folder)], {})
    _check(done.returncode, done.stderr)
    remove(folder)


def _shares(wheels: _Wheels, count: int) -> list[_Wheels]:
    """Return wheels in parts that take about as long."""
    sizes = {name: wheel.stat().st_size for name, wheel in wheels}
    shares: list[tuple[int, _Wheels]] = [(0, []) for _ in range(count)]
    for name, wheel in sorted(wheels, key=lambda one: -sizes[one[0]]):
        size, share = min(shares, key=lambda one: one[0])
        shares.remove((size, share))
        shares.append((size + sizes[name], [*share, (name, wheel)]))
    return [share for _, share in shares if share]


def _check(status: int, stderr: bytes) -> None:
    if not status:
        return
    text = stderr.decode(errors="replace").strip()
    try:
        said = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        raise UnlaidError(text.splitlines()[-1] if text else f"exit status {status}") from None
    if said["errno"]:
        raise disk_problem(OSError(*said["errno"]), "the packages could not be installed")
    raise DamagedError(said["name"], said["text"])


# In the interpreter that the environment is for


def unpack_wheels(folder: str, wheels: Sequence[str]) -> int:
    """Unpack wheels, each into the folder of its distribution's name.

    Parameters
    ----------
    folder : str
        Has them afterwards.
    wheels : sequence of str
        Names and files in turns.

    Returns
    -------
    int
        The exit status; if that is not 0 the reason is on standard error, as JSON.
    """
    name = ""
    try:
        for name, wheel in zip(wheels[::2], wheels[1::2]):
            unpack(wheel, f"{folder}/{name}", name=name, label=Path(wheel).name)
    except (ValueError, OSError) as error:
        return _told(name, error)
    return 0


def lay_out(building: str, prefix: str, folder: str) -> int:
    """Make a virtual environment of unpacked wheels.

    One process does it, by their names: where two have the same file, it is the same one's everywhere.

    Parameters
    ----------
    building, prefix : str
        Where it is made, and what it is called afterwards.
    folder : str
        What `unpack_wheels` made.
    """
    import venv

    name = ""
    try:
        builder = venv.EnvBuilder(symlinks=True)
        context = builder.ensure_directories(building)
        builder.create_configuration(context)
        builder.setup_python(context)
        for unpacked in sorted(Path(folder).iterdir()):
            name = unpacked.name
            (info,) = (unpacked / "site").glob("*.dist-info")
            lay(str(unpacked), building, info.name, python=f"{prefix}/bin/python", keep=False)
    except (ValueError, OSError) as error:
        return _told(name, error)
    return 0


def _told(name: str, error: Exception) -> int:
    number = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else None
    sys.stderr.write(json.dumps({"name": name, "errno": number, "text": str(error)}) + "\n")
    return 1
