"""Which folders of local code an interpreter imports from, and under what names."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envsync.snapshot import Finding, SourceTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.snapshot import Distribution, Interpreter

__all__ = ["find_trees"]

_SITE = ("site-packages", "dist-packages")
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")
_BUILT = {"scikit-build-core", "meson-python"}


@dataclass
class _Tree:
    root: str
    members: list[tuple[str, str]]
    position: str
    kind: str
    distribution: str | None = None
    covers: set[str] = field(default_factory=set)


def find_trees(
    paths: Sequence[str],
    distributions: Iterable[Distribution],
    interpreter: Interpreter,
    *,
    cwd: str | None = None,
) -> tuple[list[SourceTree], list[Finding]]:
    """Find the source trees of an environment.

    Editable projects come first in the search for names; every other folder on the path that is neither the
    standard library nor a folder of installed packages is local code too.

    Parameters
    ----------
    paths : sequence of str
        The interpreter's ``sys.path``.
    distributions : iterable of Distribution
        What was found on it.
    interpreter : Interpreter
        Whose path it is.
    cwd : str, optional
        A folder that counts as the working directory, on the path or not.

    Returns
    -------
    list of SourceTree, list of Finding
        The trees, those that come before installed packages first; what is left out, and why.
    """
    findings: list[Finding] = []
    editables = [
        tree
        for distribution in distributions
        if distribution.editable and not distribution.shadowed_by
        if (tree := _editable(distribution, findings)) is not None
    ]
    front, back = _loose(paths, interpreter, editables, cwd, findings)
    editables = [tree for tree in editables if tree.members]
    front += [tree for tree in editables if tree.position == "front"]
    findings += _hidden(front, paths)
    return _named([*front, *(tree for tree in editables if tree.position == "back"), *back]), findings


def _editable(distribution: Distribution, findings: list[Finding]) -> _Tree | None:
    site = Path(distribution.location).parent
    name, shape = distribution.name, distribution.editable
    if shape in _BUILT:
        text = f"an editable project of {shape}: it ships as a wheel built from its source"
        findings.append(Finding(severity="note", subject=name, text=text))
        covers = _members(site, _record_files(Path(distribution.location)))[1]
        return _Tree("", [], "back", "editable", name, covers)  # its folder is no local code of its own
    if shape == "egg-link":
        if _too_wide(str(site), findings):
            return None
        members = [("", str(site)), (Path(distribution.location).name, distribution.location)]
        return _Tree(str(site), members, "back", "editable", name, {str(site)})
    members, covers = _members(site, _record_files(Path(distribution.location)))
    covers = {folder for folder in covers if not _too_wide(folder, findings)}
    members = [
        (inside, source)
        for inside, source in members
        if os.path.exists(source) and (inside or source in covers)  # noqa: PTH110 - hot
    ]
    if not members:
        text = "an editable project whose code was not found: install it again"
        findings.append(Finding(severity="error", subject=name, text=text))
        return None
    info = Path(distribution.location)
    if info.suffix == ".dist-info":
        members += [(f"{info.name}/{one}", str(info / one)) for one in _METADATA if (info / one).is_file()]
    return _Tree(_project(distribution) or members[0][1], members, "back", "editable", name, covers)


def _members(site: Path, files: Sequence[str]) -> tuple[list[tuple[str, str]], set[str]]:
    """Return what the files of an editable project make importable, and the folders they put on the path."""
    members: list[tuple[str, str]] = []
    covers: set[str] = set()
    for file in files:
        path = site / file
        if file.endswith(".pth"):
            folders = _pth_folders(path)
            members += [("", folder) for folder in folders]
            covers.update(folders)
        elif "/" not in file and file.startswith("_") and file.endswith(".py"):
            members += _finder_members(path)
        elif not file.endswith(".pyc") and not file.startswith("."):
            members.append((file, str(path)))  # what was put into the site folder, by a link for instance
    return members, covers


def _project(distribution: Distribution) -> str:
    direct = distribution.direct_url
    parts = urlsplit(direct.url if direct is not None else "")
    return unquote(parts.path) if parts.scheme == "file" else ""


def _record_files(info: Path) -> list[str]:
    """Name the files of a distribution in its site folder, but for its dist-info."""
    import csv

    try:
        with (info / "RECORD").open(newline="", encoding="utf-8") as file:
            rows = [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        plain = info.name.partition("-")[0].lower()
        return sorted(one.name for one in info.parent.glob("*.pth") if plain in one.name.lower())
    return [row for row in rows if not row.startswith(("../", "/")) and ".dist-info/" not in row]


def _pth_folders(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        entry = line.rstrip()
        if entry and not entry.startswith(("#", "import ", "import\t")):
            found.append(os.path.abspath(os.path.join(file.parent, entry)))  # noqa: PTH100, PTH118 - keeps links
    return found


def _finder_members(file: Path) -> list[tuple[str, str]]:
    """Read where a generated finder finds its modules.

    Setuptools writes ``MAPPING = {name: path}``; what uses the library editables (hatch, pdm) writes
    ``F.map_module(name, path)``.
    """
    try:
        module = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    mapping: dict[str, str] = {}
    for statement in module.body:
        with contextlib.suppress(TypeError, ValueError):  # what those tools did not write
            mapping.update(_mapped(statement))
    members = []
    for name, source in sorted(mapping.items()):
        inside = name.replace(".", "/")
        if os.path.isdir(source):  # noqa: PTH112
            members.append((inside, source))
        elif os.path.isfile(f"{source}.py"):  # noqa: PTH113 - a module's entry names it without its suffix
            members.append((f"{inside}.py", f"{source}.py"))
        elif os.path.isfile(source):  # noqa: PTH113
            members.append((inside + Path(source).suffix, source))
    return members


def _mapped(statement: ast.stmt) -> dict[str, str]:
    """Return the modules that one statement of a finder maps to paths."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(getattr(target, "id", "") == "MAPPING" for target in targets):
            return dict(ast.literal_eval(statement.value))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        if getattr(call.func, "attr", "") == "map_module" and len(call.args) == 2:
            name, path = (str(ast.literal_eval(one)) for one in call.args)
            return {name: os.path.dirname(path) if path.endswith("/__init__.py") else path}  # noqa: PTH120
    return {}


def _loose(
    paths: Sequence[str],
    interpreter: Interpreter,
    editables: Sequence[_Tree],
    cwd: str | None,
    findings: list[Finding],
) -> tuple[list[_Tree], list[_Tree]]:
    """Sort the other folders of the path into those before and those after the installed packages."""
    front: list[_Tree] = []
    back: list[_Tree] = []
    own = _own_folders(interpreter)
    here = cwd or (os.getcwd() if "" in sys.path else None)  # noqa: PTH109
    ordered = list(paths) if cwd is None else [cwd, *(path for path in paths if path != cwd)]
    site_seen = False
    for path in ordered:
        name = os.path.basename(path)  # noqa: PTH119 - hot
        if name in _SITE:
            site_seen = True
            continue
        projects = [tree for tree in editables if path in tree.covers]
        if projects and not site_seen:
            for tree in projects:
                tree.position = "front"  # on the path twice, or the working directory: the first place counts
        if projects or path in own or any(path.startswith(f"{folder}/") for folder in own):
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            if os.path.isfile(path) and not _stdlib_zip(name):  # noqa: PTH113
                text = "a zip file on the path; its code is left out: unpack it into a folder"
                findings.append(Finding(severity="warning", subject=path, text=text))
            continue
        if not _modules(path) or _too_wide(path, findings):
            continue
        kind = "cwd" if here is not None and os.path.realpath(path) == os.path.realpath(here) else "path"
        tree = _Tree(path, [("", path)], "back" if site_seen else "front", kind)
        (back if site_seen else front).append(tree)
    return front, back


def _too_wide(folder: str, findings: list[Finding]) -> bool:
    """Tell whether a folder is a home or the root, which never ships whole, and say so."""
    real = os.path.realpath(folder)
    if not (os.path.realpath(Path.home()) + "/").startswith(real.rstrip("/") + "/"):
        return False
    text = "a home or root folder is on the path; its code is left out: use a folder of its own"
    findings.append(Finding(severity="warning", subject=folder, text=text))
    return True


def _hidden(front: Sequence[_Tree], paths: Sequence[str]) -> list[Finding]:
    """Find modules of local code that come before installed ones of the same name."""
    installed: dict[str, str] = {}
    for folder in paths:
        if os.path.basename(folder) in _SITE:  # noqa: PTH119 - hot
            for name in _importable(folder):
                installed.setdefault(name, folder)
    found = []
    for tree in front:
        for _, source in [member for member in tree.members if not member[0]]:
            for name in sorted(installed.keys() & _importable(source)):
                text = f"{name} in it comes before the installed {name} of {installed[name]}"
                found.append(Finding(severity="warning", subject=source, text=text))
    return found


def _importable(folder: str) -> set[str]:
    """Name the top-level modules of a folder: files, and folders with an ``__init__.py``."""
    try:
        with os.scandir(folder) as entries:
            return {
                name
                for entry in entries
                if (name := entry.name.partition(".")[0]).isidentifier()
                and (
                    entry.name.endswith((".py", ".so"))
                    or (entry.name == name and os.path.exists(f"{entry.path}/__init__.py"))  # noqa: PTH110
                )
            }
    except OSError:
        return set()


def _own_folders(interpreter: Interpreter) -> set[str]:
    """Name the folders on a path that are the interpreter's own: programs, standard library."""
    minor = ".".join(interpreter.version.split(".")[:2])
    folders = {os.path.dirname(interpreter.executable)}  # noqa: PTH120
    for prefix in (interpreter.prefix, interpreter.base_prefix):
        folders |= {f"{prefix}/bin", f"{prefix}/Scripts"}
        folders |= {f"{prefix}/{lib}/python{minor}" for lib in ("lib", "lib64")}
    return folders


def _stdlib_zip(name: str) -> bool:
    return name.startswith("python") and name.endswith(".zip")


def _modules(folder: str) -> bool:
    """Tell whether anything can be imported from a folder: a module, a package, or a folder of modules."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith((".py", ".so")):
                    if entry.is_file():
                        return True
                elif name.isidentifier() and name != "__pycache__" and entry.is_dir():
                    names = os.listdir(entry.path)  # noqa: PTH208 - hot
                    if any(one.endswith((".py", ".so")) for one in names) and "pyvenv.cfg" not in names:
                        return True
    except OSError:
        return False
    return False


def _named(trees: Sequence[_Tree]) -> list[SourceTree]:
    """Give each tree a name of its own; editable projects choose first, so that theirs stay the same."""
    names: dict[int, str] = {}
    for index in sorted(range(len(trees)), key=lambda index: trees[index].kind != "editable"):
        tree = trees[index]
        base = (tree.distribution or os.path.basename(tree.root)) or "root"  # noqa: PTH119
        number, name = 2, base
        while name in names.values():
            name, number = f"{base}-{number}", number + 1
        names[index] = name
    return [
        SourceTree(
            name=names[index],
            root=tree.root,
            members=tuple(dict.fromkeys(tree.members)),
            position=tree.position,
            kind=tree.kind,
            distribution=tree.distribution,
        )
        for index, tree in enumerate(trees)
    ]
