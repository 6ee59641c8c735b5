"""Which folders of local code an interpreter imports from, and under what names."""

from __future__ import annotations

import ast
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
        The trees in the order of the path; what is left out, and why.
    """
    findings: list[Finding] = []
    back: list[_Tree] = []
    for distribution in distributions:
        if distribution.editable and not distribution.shadowed_by:
            tree = _editable(distribution, findings)
            if tree is not None:
                back.append(tree)
    taken = {path for tree in back for path in tree.covers}
    front, later = _loose(paths, interpreter, taken, cwd, findings)
    trees = [*front, *back, *later]
    return _named(trees), findings


def _editable(distribution: Distribution, findings: list[Finding]) -> _Tree | None:
    site = Path(distribution.location).parent
    name, shape = distribution.name, distribution.editable
    if shape in _BUILT:
        text = f"an editable project of {shape}: it ships as a wheel built from its source"
        findings.append(Finding(severity="note", subject=name, text=text))
        return None
    members: list[tuple[str, str]] = []
    covers: set[str] = set()
    if shape == "egg-link":
        members = [("", str(site)), (Path(distribution.location).name, distribution.location)]
        return _Tree(str(site), members, "back", "editable", name, {str(site)})
    files = _record_files(Path(distribution.location))
    for file in files:
        if file.endswith(".pth"):
            for folder in _pth_folders(site / file):
                members.append(("", folder))
                covers.add(folder)
        elif file.startswith("__editable__") and file.endswith("finder.py"):
            members += _finder_members(site / file)
    members = [(inside, source) for inside, source in members if os.path.exists(source)]  # noqa: PTH110
    if not members:
        text = "an editable project whose code was not found; it is left out: install it again"
        findings.append(Finding(severity="error", subject=name, text=text))
        return None
    info = Path(distribution.location)
    if info.suffix == ".dist-info":
        members += [(f"{info.name}/{one}", str(info / one)) for one in _METADATA if (info / one).is_file()]
    return _Tree(_project(distribution) or members[0][1], members, "back", "editable", name, covers)


def _project(distribution: Distribution) -> str:
    direct = distribution.direct_url
    parts = urlsplit(direct.url if direct is not None else "")
    return unquote(parts.path) if parts.scheme == "file" else ""


def _record_files(info: Path) -> list[str]:
    """Name the files of a distribution that stand directly in its site folder."""
    import csv

    try:
        with (info / "RECORD").open(newline="", encoding="utf-8") as file:
            rows = [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        plain = info.name.partition("-")[0].lower()
        return sorted(one.name for one in info.parent.glob("*.pth") if plain in one.name.lower())
    return [row for row in rows if "/" not in row]


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
    """Read MAPPING of a finder that setuptools writes for projects of the flat layout."""
    try:
        module = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    for statement in module.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        if statement.value is None or not any(
            isinstance(target, ast.Name) and target.id == "MAPPING" for target in targets
        ):
            continue
        try:
            mapping = ast.literal_eval(statement.value)
        except ValueError:
            return []
        members = []
        for name, source in sorted(mapping.items()):
            inside = str(name).replace(".", "/")
            if Path(source).is_dir():
                members.append((inside, str(source)))
            elif Path(f"{source}.py").is_file():  # a module's entry names it without its suffix
                members.append((f"{inside}.py", f"{source}.py"))
            elif Path(source).is_file():
                members.append((inside + Path(source).suffix, str(source)))
        return members
    return []


def _loose(
    paths: Sequence[str],
    interpreter: Interpreter,
    taken: set[str],
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
        if (
            path in own
            or (path in taken and path != cwd)
            or any(path.startswith(f"{folder}/") for folder in own)
        ):
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            if os.path.isfile(path) and not _stdlib_zip(name):  # noqa: PTH113
                text = "a zip file on the path; its code is left out: unpack it into a folder"
                findings.append(Finding(severity="warning", subject=path, text=text))
            continue
        if path == "/" or os.path.realpath(path) == os.path.realpath(Path.home()):
            if _modules(path):
                text = "a home or root folder is on the path; its code is left out: use a folder of its own"
                findings.append(Finding(severity="warning", subject=path, text=text))
            continue
        if not _modules(path):
            continue
        kind = "cwd" if here is not None and os.path.realpath(path) == os.path.realpath(here) else "path"
        tree = _Tree(path, [("", path)], "back" if site_seen else "front", kind)
        (back if site_seen else front).append(tree)
    return front, back


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
    """Tell whether anything can be imported from a folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith((".py", ".so")) or (".so." in name):
                    if entry.is_file():
                        return True
                elif name.isidentifier() and entry.is_dir():
                    init = os.path.join(entry.path, "__init__.py")  # noqa: PTH118 - hot
                    if os.path.exists(init):  # noqa: PTH110
                        return True
    except OSError:
        return False
    return False


def _named(trees: list[_Tree]) -> list[SourceTree]:
    """Give each tree a name of its own, and make one of two that are the same folder."""
    kept: list[_Tree] = []
    for tree in trees:
        whole = ("", tree.root)
        same = next((one for one in kept if whole in tree.members and ("", tree.root) in one.members), None)
        if same is None:
            kept.append(tree)
            continue
        # The working directory is the root of an editable project: one tree, searched where it comes first.
        same.members += [member for member in tree.members if member not in same.members]
        same.distribution = same.distribution or tree.distribution
    names: set[str] = set()
    made = []
    for tree in kept:
        base = tree.distribution if tree.kind == "editable" else os.path.basename(tree.root)  # noqa: PTH119
        name = base = base or "root"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.add(name)
        made.append(
            SourceTree(
                name=name,
                root=tree.root,
                members=tuple(dict.fromkeys(tree.members)),
                position=tree.position,
                kind=tree.kind,
                distribution=tree.distribution,
            )
        )
    return made
