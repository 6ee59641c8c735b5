"""A clean copy of a project to build from: what git has or would take, not what lies around."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.exclusions import refused_file, refused_folder
from envsync.gitignore import IgnoreRules
from envsync.store import cache_root, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Project", "look", "staged"]

_KEPT_HIDDEN = frozenset({".cargo", ".meson", ".cmake"})
_EXTENSION = re.compile(r".*\.(cpython-[^.]+|abi3|pypy[^.]+)\.so")
# Tools that take the version, or the list of files, from git.
_ASKS_GIT = re.compile(
    r"setuptools[-_]scm|hatch[-_]vcs|flit[-_]scm|vcs[-_]versioning|setuptools[-_]git|versioneer|versioningit"
    r"|dunamai|dynamic[-_]versioning|pbr\b|miniver|\bsource *= *[\"']scm|git['\", ]+describe",
    re.IGNORECASE,
)
_STALE = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project as it is now.

    Attributes
    ----------
    folder : Path
        Where it is.
    files : tuple of str
        What is copied: paths below the folder, sorted.
    secrets : tuple of str
        Files that git does not have, not copied because they look like secrets.
    repository : Path or None
        The git checkout that its build asks for a version or a list of files.
    """

    folder: Path
    files: tuple[str, ...]
    secrets: tuple[str, ...]
    repository: Path | None

    def digest(self, *extra: object) -> str:
        """Return a digest of what a build can see, and of `extra` (JSON types)."""
        seen: list[object] = []
        for name in self.files:
            path = self.folder / name
            if path.is_symlink() and _within(path, self.folder):
                seen.append([name, "link", str(path.readlink())])
            else:
                seen.append([name, path.stat().st_mode & 0o100, digest_of(path)])
        describe = "describe", "--always", "--long", "--tags", "--dirty", "--abbrev=40"
        commit = _git(self.repository, *describe) if self.repository else None
        return hashlib.sha256(json.dumps([extra, commit, seen]).encode()).hexdigest()


def look(folder: Path) -> Project:
    """Say what of a project is copied: what git tracks, and what it neither tracks nor ignores.

    Without git (or outside a checkout): all but what .gitignore names, build output, caches, environments
    and extension modules that were built in place.
    """
    known, names = _listed(folder)
    checkout = bool(names & {"pyproject.toml", "setup.py"})
    if not checkout:
        # No checkout, or one around the project that ignores it as a whole.
        known, names = set(), set(_walk(folder))
    names = {name for name in names if (folder / name).is_file()}
    secrets = {
        name for name in names - known if "secret" in refused_file(Path(name).name, str(folder / name))
    }
    repository = None
    if checkout and _asks_git(folder):
        top = _git(folder, "rev-parse", "--show-toplevel")
        repository = Path(top.rstrip("\n")) if top else None
    return Project(
        folder=folder,
        files=tuple(sorted(names - secrets)),
        secrets=tuple(sorted(secrets)),
        repository=repository,
    )


@contextlib.contextmanager
def staged(project: Project, key: str) -> Iterator[Path]:
    """Copy a project to a folder that is gone afterwards.

    The folder's path depends on the key, so that what compilers write of it is the same next time.
    """
    builds = cache_root() / "builds"
    builds.mkdir(mode=0o700, parents=True, exist_ok=True)
    room = builds / key[:16]
    with contextlib.suppress(OSError):
        if time.time() - room.stat().st_mtime > _STALE:
            shutil.rmtree(room, ignore_errors=True)
    try:
        room.mkdir(mode=0o700)
    except FileExistsError:  # somebody builds the same at this moment
        room = Path(tempfile.mkdtemp(dir=builds, prefix=f"{key[:16]}-"))
    try:
        top = room / "source"
        where = top / project.folder.name
        if project.repository is not None:
            where = top / os.path.relpath(project.folder.resolve(), project.repository.resolve())
            _clone(project.repository, top, where)
        for name in project.files:
            _copy(project.folder / name, where / name, project.folder)
        yield where
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _clone(repository: Path, top: Path, where: Path) -> None:
    """Give the copy a .git that borrows the checkout's objects and has its index, and write to neither."""
    _git(repository, "clone", "--quiet", "--shared", "--no-checkout", str(repository), str(top))
    index = _git(repository, "rev-parse", "--git-path", "index")
    if index is not None and (repository / index.rstrip("\n")).is_file():
        shutil.copyfile(repository / index.rstrip("\n"), top / ".git" / "index")
    if where.resolve() != top.resolve():
        # What is not copied is not missing: nothing is dirty but what was edited.
        inside = where.relative_to(top).as_posix() + "/"
        listed = (_git(top, "ls-files", "-z") or "").split("\0")
        rest = "\0".join(name for name in listed if name and not name.startswith(inside))
        _git(top, "update-index", "--skip-worktree", "-z", "--stdin", given=rest)


def _copy(source: Path, target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and _within(source, folder):
        target.symlink_to(source.readlink())
    else:
        shutil.copy(source, target)


def _within(link: Path, folder: Path) -> bool:
    """Say whether a link is relative and stays in the project."""
    return not link.readlink().is_absolute() and link.resolve().is_relative_to(folder.resolve())


def _walk(folder: Path) -> Iterator[str]:
    rules = {str(folder): IgnoreRules.of(folder)}
    for at, folders, files in os.walk(folder):
        here = rules.pop(at)
        beside = {*folders, *files}
        for name in list(folders):
            path = str(Path(at, name))
            refused = name not in _KEPT_HIDDEN and refused_folder(name, beside, path, top=False)
            if refused or os.path.lexists(Path(path, "pyvenv.cfg")) or here.ignores(path, folder=True):
                folders.remove(name)
            else:
                rules[path] = here.entered(Path(path))
        for name in files:
            path = str(Path(at, name))
            made = name == ".git" or name.endswith((".pyc", ".pyo")) or _EXTENSION.fullmatch(name)
            if not made and not here.ignores(path, folder=False):
                yield Path(path).relative_to(folder).as_posix()


def _listed(folder: Path) -> tuple[set[str], set[str]]:
    """Return what git tracks below a folder, and that with what it does not ignore; submodules' files too."""
    tracked = _git(folder, "ls-files", "-z", "--cached")
    others = _git(folder, "ls-files", "-z", "--others", "--exclude-standard")
    known = set(filter(None, (tracked or "").split("\0")))
    names = known | set(filter(None, (others or "").split("\0")))
    for name in sorted(names):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            known.discard(name)
            names.discard(name)
            if os.path.lexists(path / ".git"):
                inner = _listed(path)
                known |= {f"{name.rstrip('/')}/{each}" for each in inner[0]}
                names |= {f"{name.rstrip('/')}/{each}" for each in inner[1]}
    return known, names


def _asks_git(folder: Path) -> bool:
    for name in ("pyproject.toml", "setup.py", "setup.cfg"):
        with contextlib.suppress(OSError):
            if _ASKS_GIT.search((folder / name).read_text(encoding="utf-8", errors="replace")):
                return True
    return False


def _git(folder: Path | None, *args: str, given: str = "") -> str | None:
    """Return what git says, or None if there is no git or it fails."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=folder,
            input=os.fsencode(given),
            capture_output=True,
            check=False,
            env=environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except OSError:
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None
