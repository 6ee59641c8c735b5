"""The interpreters of a host: which there are, and which one an environment gets."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator

from .layout import Cache, Problem, checked_digest, disk_problem, fresh, remove, taken_back

__all__ = ["choose", "find", "look", "supplement", "unpack_python"]

Python = Dict[str, Any]

_MINORS = tuple(range(8, 21))
_BUNDLE = Path("lib/envsync")  # of a shipped interpreter: libraries that it looks for
_HOMES = (
    "/usr/local/bin",
    "/usr/bin",
    "/opt/*/bin",
    "~/.pyenv/versions/*/bin",
    "~/.local/share/uv/python/*/bin",
)
_QUESTION = """
import json, os, sys, _imp
libc = None
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION").split()
except Exception:
    pass
suffix = next((s for s in _imp.extension_suffixes() if s.count(".") > 1), "")
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d.%d" % sys.version_info[:3] + (
        {"alpha": "a", "beta": "b", "candidate": "rc"}[sys.version_info[3]] + str(sys.version_info[4])
        if sys.version_info[3] != "final" else ""),
    "executable": sys.executable,
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
    "soabi": suffix.split(".")[1] if suffix else "",
    "system": sys.platform,
    "machine": os.uname().machine,
    "libc": libc,
    "free_threaded": not getattr(sys, "_is_gil_enabled", lambda: True)(),
}))
"""


def look(executable: str) -> Python | None:
    """Run an interpreter and return what it is, or None if it does not run or is older than 3.8."""
    import subprocess

    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("executable") else None


def find(cache: Cache, hints: Iterable[str] = ()) -> list[Python]:
    """Return the interpreters of this host, the hinted ones first, then those shipped here, then the others.

    What an executable is, is remembered for as long as the file stays the same.

    Parameters
    ----------
    cache : Cache
        Where the shipped ones are, and the memory.
    hints : iterable of str
        Executables that may be interpreters.
    """
    memory = cache.memory / "pythons.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
    places: dict[str, str] = {}  # real file: the first name it was found by
    for candidate in _candidates(cache, hints):
        places.setdefault(os.path.realpath(candidate), candidate)
    stamps = {name: _stamp(real) for real, name in places.items()}
    new = [name for name in places.values() if known.get(name, {}).get("stamp") != stamps[name]]
    if new:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            for name, found in zip(new, pool.map(look, new)):
                known[name] = {"stamp": stamps[name], "python": found}
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            part = fresh(memory.parent, ".pythons-")
            kept = {name: each for name, each in known.items() if Path(name).exists()}
            part.write_text(json.dumps(kept), encoding="utf-8")
            part.replace(memory)
    found_all = [known[name]["python"] for name in places.values()]
    return [python for python in found_all if python is not None]


def choose(pythons: Iterable[Python], version: str, implementation: str) -> Python | None:
    """Return the interpreter for an environment: the exact version, else one of the same minor version.

    Parameters
    ----------
    pythons : iterable of dict
        As `find` gives them.
    version : str
        Such as ``"3.11.7"``.
    implementation : str
        Such as ``"cpython"``.
    """
    fit = [p for p in pythons if p["implementation"] == implementation and not p.get("free_threaded")]
    for python in fit:
        if python["version"] == version:
            return python
    minor = version.split(".")[:2]
    same = [
        p for p in fit if p["version"].split(".")[:2] == minor and p["version"].replace(".", "").isdigit()
    ]
    return max(same, key=lambda p: [int(part) for part in p["version"].split(".")], default=None)


def unpack_python(cache: Cache, version: str, digest: str) -> dict[str, Any]:
    """Unpack a shipped interpreter, whose archive is a blob here, and return what it is.

    Raises
    ------
    Problem
        It does not run here, or there is no room for it.
    """
    import tarfile

    target = cache.pythons / f"{version}-{checked_digest(digest)[:8]}"
    if "/" in version or not (cache.has(digest) or target.is_dir()):
        raise Problem("usage", f"the archive of Python {version} is not here")
    if not target.is_dir():
        part = fresh(cache.pythons, ".unpacking-")
        try:
            part.mkdir(parents=True)
            with taken_back(part), tarfile.open(cache.blob(digest), "r:gz") as archive:
                for member in archive.getmembers():
                    if member.name.startswith("/") or ".." in member.name.split("/"):
                        raise Problem("corrupt", f"the archive of Python {version} leads out of its folder")
                archive.extractall(part)  # noqa: S202 - the names were looked at
                with contextlib.suppress(FileExistsError):
                    _rename(part, target)
        except OSError as error:
            raise disk_problem(error, f"Python {version} could not be unpacked") from error
        remove(part)
    found = look(str(target / "bin" / "python3"))
    if found is None:
        remove(target)
        raise Problem(
            "unfit",
            f"the Python {version} that was sent does not run there",
            "The host's C library is older, or its machine another: install a Python 3 there.",
        )
    return found


def supplement(executable: str) -> None:
    """Give a shipped interpreter, of its spare libraries, those that this host lacks.

    Wheels expect libstdc++ and libgcc_s of every system; one that has its own is to use that. Hosts
    that share a file system may differ, so each looks for itself.

    Parameters
    ----------
    executable : str
        An interpreter of this host, shipped or not.
    """
    root = Path(os.path.realpath(executable)).parent.parent
    spares = sorted((root / _BUNDLE / "spare").glob("*.so*"))  # libgcc_s first: the other one needs it
    if not spares:
        return
    if Path(os.path.realpath(sys.executable)).parent.parent != root:
        # What an interpreter finds depends on where it looks: only that one can tell.
        import subprocess

        command = [executable, "-I", "-S", sys.argv[0], "supplement", executable]
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=True
            )
        return
    for spare in spares:
        if not _loads(spare.name) and _loads(str(spare)):
            with contextlib.suppress(FileNotFoundError):  # another agent did it
                spare.rename(root / _BUNDLE / spare.name)


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _candidates(cache: Cache, hints: Iterable[str]) -> Iterator[str]:
    yield from (hint for hint in hints if os.access(hint, os.X_OK))
    yield from sorted(str(path) for path in cache.pythons.glob("[!.]*/bin/python3"))
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for pattern in _HOMES:
        with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: there is no home folder
            full = Path(pattern).expanduser()
            folders += sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))
    for folder in folders:
        if folder.name == "shims":
            continue  # pyenv's: scripts that ask which one is meant
        for name in ("python3", *(f"python3.{minor}" for minor in _MINORS)):
            path = folder / name
            with contextlib.suppress(OSError):
                if os.access(path, os.X_OK) and not _in_environment(path):
                    yield str(path)


def _in_environment(path: Path) -> bool:
    """Return whether an interpreter is a virtual environment's: those come and go."""
    return (path.parent.parent / "pyvenv.cfg").is_file()


def _stamp(real: str) -> list[int]:
    try:
        status = Path(real).stat()
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
