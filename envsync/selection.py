"""Which files of a source tree ship, and why the others do not.

Packages (folders with ``__init__.py``) ship whole, data included. A folder of loose modules (the working
directory, a folder on PYTHONPATH, a namespace package) is looked at more closely, because such folders also
hold notebooks, results and gigabytes of data:

- its modules and extension modules ship;
- its folders ship by these same rules if Python files lie in them, at any depth;
- other files, and folders without Python, ship if they are small: ``Limits.beside``;
- notebooks and hidden files stay.

Of a home folder, the file system's root or the folder for temporary files, only modules and packages ship.

Nowhere: what .gitignore names (but extension modules built in place for this Python, and generated version
files, without which a package does not import), what looks like a secret, version control, virtual
environments, caches, build output, bytecode. Links are followed inside the tree. Whatever stays is listed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import CaptureError
from envsync.exclusions import has_init, is_package, made_here, refused_file, refused_folder
from envsync.gitignore import IgnoreRules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Found", "Limits", "Selection"]

MB = 1_000_000

_GENERATED = re.compile(r"_?_?version(_?_)?\.pyi?|_scm_version\.py|_git_version\.py", re.IGNORECASE)
_EXTENSION = re.compile(r"[^.]+(\.(?P<tag>[^.]+))?\.so")
_LOOK_AT_MOST = 5_000  # entries, in search of a Python file below a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a tree may ship. Code counts towards `tree` and `count` only.

    Attributes
    ----------
    file : int
        Bytes; a larger data file stays.
    beside : int
        Bytes; a larger data file, or folder without Python, beside loose modules stays.
    tree : int
        Bytes; above it the heaviest folders of data stay, and code alone above it is an error.
    count : int
        Files; more are an error.
    """

    file: int = 50 * MB
    beside: int = 5 * MB
    tree: int = 200 * MB
    count: int = 20_000

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Limits:
        """Return the limits with what ``ENVSYNC_TREE_LIMITS`` says, such as ``file=100,tree=1000`` (in MB).

        Raises
        ------
        CaptureError
            It says something else.
        """
        limits = cls()
        for item in filter(None, environ.get("ENVSYNC_TREE_LIMITS", "").replace(" ", "").split(",")):
            key, _, value = item.partition("=")
            try:
                limits = replace(limits, **{key: int(value) * (1 if key == "count" else MB)})
            except (TypeError, ValueError) as error:
                raise CaptureError(
                    f"ENVSYNC_TREE_LIMITS: {item!r} is not understood",
                    hint="Write numbers of MB, such as: ENVSYNC_TREE_LIMITS=file=100,beside=20,tree=1000",
                ) from error
        return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that ships: where it is, and how it was when it was looked at."""

    source: str
    code: bool
    status: os.stat_result


class Selection:
    """Looks through a tree's members.

    Parameters
    ----------
    root : str
        The tree's folder; links that lead out of it (and of its members) are not followed.
    members : sequence of (str, str)
        Path in the tree (empty: the top), absolute path of the file or folder.
    soabi : str
        Of the interpreter that extension modules must fit, such as ``cpython-311-x86_64-linux-gnu``.
    limits : Limits
        How much may ship.
    name : str
        What errors call the tree.

    Attributes
    ----------
    files : dict of str to Found
        By path in the tree.
    left_out : dict of str to str
        Why, by path in the tree; folders end with a slash.
    """

    def __init__(
        self, root: str, members: Sequence[tuple[str, str]], *, soabi: str, limits: Limits, name: str
    ) -> None:
        self.files: dict[str, Found] = {}
        self.left_out: dict[str, str] = {}
        self._soabi = soabi
        self._limits = limits
        self._name = name
        self._roots = [os.path.realpath(path) for path in dict.fromkeys((root, *(at for _, at in members)))]
        for path, source in members:
            self._member("" if path == "." else path.strip("/"), source)
        self._fit()

    def _member(self, path: str, source: str) -> None:
        try:
            status = Path(source).stat()
        except OSError as error:
            self.left_out[path or source] = f"cannot be read: {error.strerror}"
            return
        self.left_out.pop(path, None)
        self.left_out.pop(f"{path}/", None)
        if stat.S_ISDIR(status.st_mode):
            here = os.path.realpath(source)
            rules = IgnoreRules.of(Path(source))
            self._folder(path, source, rules, (here,), whole=path.endswith((".dist-info", ".egg-info")))
        elif stat.S_ISREG(status.st_mode):
            self._add(path, source, status, code=True)
        else:
            self.left_out[path] = "not a regular file"

    def _folder(
        self, path: str, source: str, rules: IgnoreRules, around: tuple[str, ...], *, whole: bool
    ) -> None:
        """Take a folder: `whole` if it is in a package, else by the rules for loose modules."""
        try:
            with os.scandir(source) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.left_out[f"{path}/"] = f"cannot be read: {error.strerror}"
            return
        names = {entry.name for entry in found}
        top = not path
        if not top and (made := made_here(names, source)):
            self.left_out[f"{path}/"] = made
            return
        whole = whole or (not top and is_package(names))
        bare = top and around[0] in _crowded()
        if bare:
            self.left_out["/"] = "of a home, root or temporary folder only modules and packages ship"
        for entry in found:
            where = f"{path}/{entry.name}" if path else entry.name
            shown = where.encode("utf-8", "backslashreplace").decode()
            at = os.path.join(source, entry.name)  # noqa: PTH118 - hot, and Path would not keep it as it is
            status, real, why = self._look(entry, at, around)
            if status is None:
                self.left_out[shown] = why
            elif stat.S_ISDIR(status.st_mode):
                why = refused_folder(entry.name, names, at, top=top)
                if not why and rules.ignores(at, folder=True):
                    why = "ignored by .gitignore"
                if why:
                    self.left_out[f"{shown}/"] = why
                    continue
                inner = rules.entered(Path(at))
                if whole or (
                    entry.name.isidentifier()
                    and (has_init(at) if bare else self._holds_code(at, inner, (*around, real)))
                ):
                    self._folder(where, at, inner, (*around, real), whole=whole)
                elif not bare:
                    self._data_folder(where, at, inner, (*around, real))
            else:
                self._file(where, at, status, rules, whole=whole, bare=bare)

    def _look(
        self, entry: os.DirEntry[str], at: str, around: tuple[str, ...]
    ) -> tuple[os.stat_result | None, str, str]:
        """Return what an entry is, its real path, and if it cannot be taken, why."""
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            return None, "", "its name is not UTF-8"
        try:
            linked = entry.is_symlink()
            status = entry.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return None, "", "a link to nothing" if missing else f"cannot be read: {error.strerror}"
        folder = stat.S_ISDIR(status.st_mode)
        if not folder and not stat.S_ISREG(status.st_mode):
            return None, "", "not a regular file"
        real = os.path.realpath(at) if linked else f"{around[-1]}/{entry.name}"
        if linked:
            why = self._link(real, folder=folder, around=around)
            if why:
                return None, "", why
        return status, real, ""

    def _link(self, real: str, *, folder: bool, around: tuple[str, ...]) -> str:
        inside = [root for root in self._roots if _within(real, root)]
        if not inside:
            return f"a link out of the tree, to {real}"
        if folder and any(_within(each, real) for each in around):
            return "a link to a folder around it"
        *above, last = real[len(inside[0]) :].lstrip("/").split("/")
        passed = Path(inside[0])
        for name in above if not folder else (*above, last):
            passed /= name
            why = refused_folder(name, set(), str(passed), top=False) or (
                "a virtual environment" if os.path.lexists(passed / "pyvenv.cfg") else ""
            )
            if why:
                return f"a link into {name}: {why}"
        return "" if folder else refused_file(last, real)

    def _file(
        self, path: str, at: str, status: os.stat_result, rules: IgnoreRules, *, whole: bool, bare: bool
    ) -> None:
        name = path.rpartition("/")[2]
        why = refused_file(name, at)
        extension = _EXTENSION.fullmatch(name)
        if extension and not self._fits(extension["tag"]):
            why = "built for another Python"
        code = name.endswith((".py", ".pyi")) or extension is not None
        needed = extension is not None or (whole and _GENERATED.fullmatch(name) is not None)
        if not why and not needed and rules.ignores(at, folder=False):
            why = "ignored by .gitignore"
        if not why and not code and not whole:
            if bare:
                return
            if name.endswith(".ipynb"):
                why = "a notebook"
            elif name.startswith("."):
                why = "hidden, and not in a package"
            elif fnmatch.fnmatch(name, "pylock*.toml"):
                why = "a lock"
            elif status.st_size > self._limits.beside:
                why = self._over("beside", status.st_size, "beside loose modules")
        if not why and not code and status.st_size > self._limits.file:
            why = self._over("file", status.st_size, "a file")
        if why:
            self.left_out[path] = why
        else:
            self._add(path, at, status, code=code)

    def _add(self, path: str, source: str, status: os.stat_result, *, code: bool) -> None:
        self.files.setdefault(path, Found(source=source, code=code, status=status))
        if len(self.files) > self._limits.count:
            raise CaptureError(
                f"source tree {self._name!r} has more than {self._limits.count} files",
                where=self._roots[0],
                hint="Work in a folder of its own, name what tasks do not need in .gitignore, "
                "or allow more: ENVSYNC_TREE_LIMITS=count=100000",
            )

    def _data_folder(self, path: str, at: str, rules: IgnoreRules, around: tuple[str, ...]) -> None:
        """Take a folder without Python if all of it is small, else list it."""
        limit, allowed = self._limits.beside, 500
        size = count = 0
        for folder, folders, files in os.walk(at):
            if folder == at and (made := made_here({*folders, *files}, at)):
                self.left_out[f"{path}/"] = made
                return
            for name in files:
                count += 1
                with contextlib.suppress(OSError):
                    size += Path(folder, name).lstat().st_size
            if size > limit or count > allowed:
                self.left_out[f"{path}/"] = (
                    f"no Python in it, and more than {limit / MB:g} MB or {allowed} files: move it into a "
                    "package, read it from shared storage, or raise ENVSYNC_TREE_LIMITS=beside=MB"
                )
                return
        self._folder(path, at, rules, around, whole=True)

    def _holds_code(self, at: str, rules: IgnoreRules, around: tuple[str, ...]) -> bool:
        """Say whether a Python file lies in a folder, the folder's own files first."""
        seen = 0
        queue = [(at, rules)]
        while queue:
            folder, rules = queue.pop(0)
            try:
                with os.scandir(folder) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError:
                continue
            names = {entry.name for entry in entries}
            if made_here(names, folder):
                continue
            for entry in entries:
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    refused = refused_folder(entry.name, names, entry.path, top=False)
                    if not refused and not rules.ignores(entry.path, folder=True):
                        queue.append((entry.path, rules.entered(Path(entry.path))))
                elif entry.name.endswith((".py", ".so")) and not rules.ignores(entry.path, folder=False):
                    return True
                elif entry.is_symlink() and entry.is_dir() and has_init(entry.path):
                    return not self._link(os.path.realpath(entry.path), folder=True, around=around)
            if seen > _LOOK_AT_MOST:
                return False
        return False

    def _fits(self, tag: str | None) -> bool:
        """Say whether an extension module's tag is the interpreter's own, the stable ABI's, or absent."""
        if tag is None or not re.match(r"(cpython|pypy|graalpy|cp\d|pp\d)", tag):
            return True
        return tag == self._soabi

    def _over(self, limit: str, size: int, what: str) -> str:
        allowed = getattr(self._limits, limit) / MB
        return (
            f"{size / MB:.1f} MB, more than {allowed:g} MB for {what}: raise ENVSYNC_TREE_LIMITS={limit}=MB"
        )

    def _fit(self) -> None:
        """Leave out the heaviest folders of data until the tree is within its limit."""
        total = sum(found.status.st_size for found in self.files.values())
        if total <= self._limits.tree:
            return
        folders: dict[str, list[str]] = {}
        for path, found in self.files.items():
            if not found.code:
                folders.setdefault(path.rpartition("/")[0], []).append(path)
        weights = {
            folder: sum(self.files[path].status.st_size for path in paths)
            for folder, paths in folders.items()
        }
        for folder, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
            if total <= self._limits.tree:
                return
            total -= weight
            for path in folders[folder]:
                del self.files[path]
            self.left_out[f"{folder}/*"] = (
                f"{weight / MB:.1f} MB of data in a tree of more than {self._limits.tree / MB:g} MB: "
                "raise ENVSYNC_TREE_LIMITS=tree=MB"
            )
        if total > self._limits.tree:
            raise CaptureError(
                f"source tree {self._name!r} holds {total / MB:.0f} MB of code, more than "
                f"{self._limits.tree / MB:g} MB",
                where=self._roots[0],
                hint="Work in a folder of its own, name what tasks do not need in .gitignore, "
                "or allow more: ENVSYNC_TREE_LIMITS=tree=1000 (MB)",
            )


def _crowded() -> set[str]:
    """Return the folders that hold everybody's things."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 - never raises
    above = {str(parent) for parent in Path(home).parents}
    return {home, *above, os.path.realpath(tempfile.gettempdir())}


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
