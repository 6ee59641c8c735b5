"""The client's own interpreter as a relocatable archive, for hosts that have none that fits.

What is packed: the executable, the standard library without its tests and without anything installed into it,
the C headers, and every shared library that they need and that is not part of the libc. Certificates of
authorities are not packed: a host without internet has no use for them, and any other has its own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import tarfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from envsync.elf import read_elf
from envsync.errors import UnsupportedError
from envsync.libraries import SPARE, Linker, may_be_elf
from envsync.scratch import scratch
from envsync.store import recall, remember

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envsync.snapshot import Interpreter
    from envsync.store import Store

__all__ = ["InterpreterArchive", "pack", "pack_tree"]

FORMAT = 2  # raised when the contents of an archive change, so that no older one is taken
LEVEL = 4  # of gzip: half the time of 6 for 4 % more bytes
MTIME = 315_619_200  # 1980-01-02: what zip files can hold, in every time zone
LEFT_OUT = frozenset(
    {
        *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo"),
        *("_bundled", "EXTERNALLY-MANAGED", "idle_test"),
    }
)
NO_MODULES = ("_test", "_tkinter", "_ctypes_test", "_xxtestfuzz", "xxlimited", "xxsubtype")
NO_SUFFIXES = (".pyc", ".a", ".o", ".exe")
LOOK = """
import json, os, platform, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "minor": "%d.%d" % sys.version_info[:2],
    "abiflags": getattr(sys, "abiflags", ""),
    "prefix": sys.base_prefix,
    "executable": getattr(sys, "_base_executable", sys.executable),
    "bindir": sysconfig.get_config_var("BINDIR") or "",
    "stdlib": sysconfig.get_path("stdlib"),
    "platstdlib": sysconfig.get_path("platstdlib"),
    "include": sysconfig.get_config_var("INCLUDEPY") or "",
    "machine": platform.machine(),
    "libc": platform.libc_ver(),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpreterArchive:
    """A packed interpreter, a blob in the store.

    Attributes
    ----------
    version : str
        Such as ``"3.11.7"``.
    digest : str
        sha256 of the .tar.gz. It unpacks (without a top folder) to ``bin/python3`` and ``lib/``.
    size : int
        Bytes.
    machine : str
        Such as ``"x86_64"``.
    libc : tuple of (str, str) or None
        The oldest libc that runs it, such as ``("glibc", "2.34")``; None if it needs none.
    """

    version: str
    digest: str
    size: int
    machine: str
    libc: tuple[str, str] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InterpreterArchive:
        """Read what `to_dict` returned."""
        values = {field.name: data[field.name] for field in fields(cls)}
        return cls(**values | {"libc": tuple(data["libc"]) if data["libc"] else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the parts of an interpreter are.

    Attributes
    ----------
    version, minor, machine : str
        Such as ``"3.11.7"``, ``"3.11"`` and ``"x86_64"``.
    prefix, executable : Path
        The installation, and the real file that is run.
    folders : tuple of Path
        Those whose files are packed, at the same place below the prefix.
    libc : tuple of (str, str)
        The libc that it runs with here.
    """

    version: str
    minor: str
    machine: str
    prefix: Path
    executable: Path
    folders: tuple[Path, ...]
    libc: tuple[str, str]


def pack(interpreter: Interpreter, store: Store) -> InterpreterArchive:
    """Pack an interpreter of this machine.

    A virtual environment's base interpreter is packed. The same interpreter gives the same bytes, and is
    packed only once.

    Parameters
    ----------
    interpreter : Interpreter
        A snapshot's.
    store : Store
        Where the archive goes.

    Raises
    ------
    UnsupportedError
        It is not a CPython of this machine that could run elsewhere.
    """
    key = _identity(interpreter.version, Path(interpreter.executable), Path(interpreter.base_prefix))
    if (known := _known(key, store)) is not None:
        return known
    layout = _look(interpreter.executable)
    with scratch("packing") as folder:
        linker = Linker(layout.prefix, _mine(layout), folder)
        members = linker.relocate(dict(_members(layout)), f"bin/python{layout.minor}")
        archive = _write(members, _links(layout.minor), folder / "python.tar.gz")
        made = InterpreterArchive(
            version=layout.version,
            digest=store.put(archive),
            size=archive.stat().st_size,
            machine=layout.machine,
            libc=_needed_libc(members, layout.libc),
        )
    remember("interpreters", key, made.to_dict())
    return made


def pack_tree(root: Path, version: str, store: Store) -> InterpreterArchive:
    """Pack an installation that is relocatable as it is, such as uv's own; it need not run on this machine.

    Parameters
    ----------
    root : Path
        It holds ``bin/python3.X`` and ``lib/python3.X``.
    version : str
        Such as ``"3.11.7"``.
    store : Store
        Where the archive goes.

    Raises
    ------
    UnsupportedError
        There is no such interpreter in it.
    """
    minor = ".".join(version.split(".")[:2])
    executable = root / "bin" / f"python{minor}"
    facts = read_elf(executable) if executable.is_file() else None
    stdlib = root / "lib" / f"python{minor}"
    if facts is None or not stdlib.is_dir():
        raise UnsupportedError(
            f"there is no Python {minor} for Linux in it",
            where=str(root),
            hint="Install that Python on the host, where envsync finds it on the PATH.",
        )
    folders = (stdlib, root / "include" / f"python{minor}")
    members = {f"bin/python{minor}": executable}
    for folder in folders:
        members |= dict(_below(folder, root))
    libraries = root / "lib"
    members |= {f"lib/{path.name}": path for path in sorted(libraries.glob("lib*.so*")) if path.is_file()}
    libc = _needed_libc(members, ("musl", "1.2") if "musl" in facts.loader else ("glibc", ""))
    with scratch("packing") as folder:
        archive = _write(members, _links(minor), folder / "python.tar.gz")
        return InterpreterArchive(
            version=version,
            digest=store.put(archive),
            size=archive.stat().st_size,
            machine=facts.machine,
            libc=libc,
        )


def _look(executable: str) -> Layout:
    """Ask an interpreter where its parts are."""
    try:
        answer = subprocess.run(
            [executable, "-I", "-S", "-c", LOOK], capture_output=True, text=True, check=True, timeout=60
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UnsupportedError(
            f"the interpreter does not run: {error}", where=executable, hint="Repair it, or use another one."
        ) from error
    prefix = Path(found["prefix"])
    name = f"python{found['minor']}{found['abiflags']}"
    candidates = [Path(found["executable"]).resolve(), prefix / "bin" / name, Path(found["bindir"], name)]
    real = [path for path in candidates if path.is_file() and read_elf(path) is not None]
    inside = [path for path in real if path.is_relative_to(prefix) or path.is_relative_to(prefix.resolve())]
    folders = [Path(found[key]) for key in ("stdlib", "platstdlib", "include") if found[key]]
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_relative_to(prefix)]
    if not inside or not folders:
        raise UnsupportedError(
            f"the interpreter cannot be packed: its parts are not below {prefix}",
            where=executable,
            hint=f"Install Python {found['minor']} on the host, where envsync finds it on the PATH.",
        )
    return Layout(
        version=found["version"],
        minor=found["minor"],
        machine=found["machine"],
        prefix=prefix,
        executable=inside[0],
        folders=tuple(folders),
        libc=_libc(found["libc"], inside[0]),
    )


def _libc(said: list[str], executable: Path) -> tuple[str, str]:
    facts = read_elf(executable)
    if facts is not None and "musl" in facts.loader:
        return ("musl", "1.2")
    return ("glibc", said[1])


def _members(layout: Layout) -> Iterator[tuple[str, Path]]:
    """Pairs of a place in the archive and the file that goes there."""
    yield f"bin/python{layout.minor}", layout.executable
    for folder in layout.folders:
        yield from _below(folder, layout.prefix)


def _below(folder: Path, prefix: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            name for name in folders if name not in LEFT_OUT and not name.startswith("config-")
        )
        place = PurePosixPath(Path(parent).relative_to(prefix).as_posix())
        for name in sorted(files):
            path = Path(parent, name)
            useless = name in LEFT_OUT or name.startswith(NO_MODULES) or name.endswith(NO_SUFFIXES)
            if not useless and path.is_file():
                yield str(place / name), path


def _mine(layout: Layout) -> tuple[Path, ...]:
    """Folders of shared libraries that keep their place below the prefix: not where the system's own are."""
    if layout.prefix in (Path("/usr"), Path("/")):
        return ()
    return (layout.prefix / "lib",)


def _links(minor: str) -> dict[str, str]:
    return {"bin/python3": f"python{minor}", "bin/python": f"python{minor}"}


def _needed_libc(members: dict[str, Path], libc: tuple[str, str]) -> tuple[str, str] | None:
    """The oldest libc that these files can be loaded with; spares are only used where they can be."""
    if libc[0] != "glibc":
        return libc
    used = {place: path for place, path in members.items() if not place.startswith(f"{SPARE}/")}
    facts = [read_elf(path) for place, path in used.items() if may_be_elf(place)]
    newest = max((each.glibc for each in facts if each is not None), default=())
    return ("glibc", ".".join(map(str, newest))) if newest else None


def _write(members: dict[str, Path], links: dict[str, str], destination: Path) -> Path:
    """Write the archive: sorted, one time for all, nobody's."""
    with (
        destination.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted({*members, *links}):
            info = tarfile.TarInfo(name)
            info.mtime = MTIME
            if name in links:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, links[name], 0o777
                tar.addfile(info)
                continue
            with members[name].open("rb") as file:
                status = os.fstat(file.fileno())
                info.size = status.st_size
                info.mode = 0o755 if status.st_mode & 0o111 else 0o644
                tar.addfile(info, file)
    return destination


def _known(key: str, store: Store) -> InterpreterArchive | None:
    remembered = recall("interpreters", key)
    try:
        archive = InterpreterArchive.from_dict(remembered)
    except (TypeError, KeyError):
        return None
    return archive if archive.digest in store.has([archive.digest]) else None


def _identity(version: str, executable: Path, prefix: Path) -> str:
    """A key that changes when the interpreter is installed anew."""
    minor = ".".join(version.split(".")[:2])
    paths = (executable.resolve(), prefix / "lib" / f"python{minor}" / "lib-dynload")
    stamps = [FORMAT, version, str(prefix), *map(_stamp, paths)]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def _stamp(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]
