"""Installing a few wheels without uv: the environment's own Python unpacks them and lays them out.

uv is quicker, but it is larger than all that a small environment takes, and has to come first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Mapping, Tuple

from ..plugins.unpack import lay, site_of, unpack
from .compiling import laid_code, processes
from .layout import disk_problem, remove

if TYPE_CHECKING:
    from .running import Runner

__all__ = ["DamagedError", "UnlaidError", "lay_out", "lay_wheels"]

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


def lay_wheels(
    runner: Runner, python: str, building: Path, prefix: Path, wheels: Mapping[str, Path], code: Path | None
) -> list[str]:
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
    code : Path, optional
        Compiled code, see `compiling.laid_code`; it may come meanwhile, or not at all.

    Returns
    -------
    list of str
        The files below site-packages whose compiled code is there.

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
    command = [python, "-I", "-S", sys.argv[0], "lay", *map(str, (building, prefix, folder, code or ""))]
    command += [text for name, wheel in wheels.items() for text in (name, str(wheel))]
    done = runner.run(command, {}, output=True)
    _check(done.returncode, done.stderr)
    remove(folder)
    return [str(name) for name in json.loads(done.stdout)]


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


def lay_out(building: str, prefix: str, folder: str, code: str, *wheels: str) -> int:
    """Make a virtual environment of wheels; write as JSON of which files there is compiled code.

    All cores unpack. One process lays out, by their names: where two have the same file, it is the same one's
    everywhere.

    Parameters
    ----------
    building, prefix : str
        Where it is made, and what it is called afterwards.
    folder : str
        Where they are unpacked, each into the folder of its distribution's name.
    code : str
        A file of compiled code; empty for none.
    *wheels : str
        Names and files in turns.

    Returns
    -------
    int
        The exit status; if that is not 0 the reason is on standard error, as JSON.
    """
    import venv

    name = ""
    try:
        if not _unpack([*zip(wheels[::2], map(Path, wheels[1::2]))], folder):
            return 1
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
    sys.stdout.write(json.dumps(laid_code(site_of(building), code) if code else []))
    return 0


def _unpack(wheels: _Wheels, folder: str) -> bool:
    """Unpack on all cores; return whether all went well. Else whoever failed has said why."""
    first, *others = _shares(wheels, processes(len(wheels))) or [[]]
    children, parent = [], os.getpid()
    for share in others:
        child = os.fork()  # no thread has been started, and what is imported is there
        if not child:
            os._exit(_unpack_share(share, folder, parent))
        children.append(child)
    statuses = [_unpack_share(first, folder), *(os.waitpid(child, 0)[1] for child in children)]
    return not any(statuses)


def _unpack_share(wheels: _Wheels, folder: str, parent: int = 0) -> int:
    name = ""
    try:
        for name, wheel in wheels:
            if parent and os.getppid() != parent:
                return 1  # it was killed
            unpack(str(wheel), f"{folder}/{name}", name=name, label=wheel.name)
    except (ValueError, OSError) as error:
        return _told(name, error)
    return 0


def _shares(wheels: _Wheels, count: int) -> list[_Wheels]:
    """Return wheels in parts that take about as long."""
    sizes = {name: wheel.stat().st_size for name, wheel in wheels}
    shares: list[tuple[int, _Wheels]] = [(0, []) for _ in range(count)]
    for name, wheel in sorted(wheels, key=lambda one: -sizes[one[0]]):
        size, share = min(shares, key=lambda one: one[0])
        shares.remove((size, share))
        shares.append((size + sizes[name], [*share, (name, wheel)]))
    return [share for _, share in shares if share]


def _told(name: str, error: Exception) -> int:
    number = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else None
    sys.stderr.write(json.dumps({"name": name, "errno": number, "text": str(error)}) + "\n")
    sys.stderr.flush()
    return 1
