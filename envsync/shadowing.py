"""Local code that hides what Python or Dask needs: no worker starts with it on its path."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.markers import default_environment
from packaging.utils import canonicalize_name

from envsync.errors import MismatchError
from envsync.roots import active_requirements, parse_requirements

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from envsync.snapshot import Distribution, Snapshot, SourceTree
    from envsync.trees import Manifest

__all__ = ["HARMLESS", "Shadow", "refuse_shadowing", "shadowing"]

_DASK = ("dask", "distributed")
_NAMED = 3

# Compiled into every CPython: an import never looks for them in a folder.
_BUILT_IN = frozenset(
    (
        "atexit",
        "builtins",
        "errno",
        "faulthandler",
        "gc",
        "itertools",
        "marshal",
        "posix",
        "pwd",
        "sys",
        "time",
    )
)

HARMLESS = frozenset(
    [
        *("antigravity", "asynchat", "asyncore", "chunk", "cmd", "code", "codeop", "colorsys", "ensurepip"),
        *(
            "graphlib",
            "idlelib",
            "lib2to3",
            "mailbox",
            "pyclbr",
            "sched",
            "shelve",
            "test",
            "this",
            "tkinter",
        ),
        *("trace", "turtle", "turtledemo", "venv", "wave", "xdrlib", "zipapp"),
        # what some wheels put beside themselves
        *("benchmarks", "conftest", "docs", "examples", "setup", "tests"),
    ]
)
"""What a worker starts without: a project may have modules of these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A module of local code that would be imported instead of one that every process needs.

    Parameters
    ----------
    tree : str
        The source tree's name.
    file : str
        The file, here.
    module : str
        What it would be imported as.
    owner : str
        The distribution whose module it hides; empty for the standard library.
    """

    tree: str
    file: str
    module: str
    owner: str = ""

    def __str__(self) -> str:
        whose = self.owner if self.owner else "Python's standard library"
        return f"{self.file} hides {self.module} of {whose}"


def shadowing(
    trees: Iterable[tuple[SourceTree, Manifest]], distributions: Sequence[Distribution]
) -> list[Shadow]:
    """Find the modules of local code that hide what Python or Dask itself needs.

    Parameters
    ----------
    trees : iterable of (SourceTree, Manifest)
        As they are to be placed: only those at the front count. A folder without an ``__init__.py`` hides
        nothing: an import passes it over for a module further on.
    distributions : sequence of Distribution
        All that are installed here. The code of one of them hides nothing of its own.

    Returns
    -------
    list of Shadow
        In the order of the trees and their files.
    """
    front = [(tree, list(_modules(manifest))) for tree, manifest in trees if manifest.position == "front"]
    if not front:
        return []
    names = {module for _, modules in front for module, _ in modules}
    owners = _owners(names - HARMLESS, distributions)
    found = []
    for tree, modules in front:
        for module, path in modules:
            if module in HARMLESS or module in _BUILT_IN:
                continue
            file, owner = _file(tree, path), owners.get(module)
            if module in sys.stdlib_module_names:
                found.append(Shadow(tree=tree.name, file=file, module=module))
            elif owner is not None and not _is_own(owner, tree, file):
                found.append(Shadow(tree=tree.name, file=file, module=module, owner=owner.name))
    return found


def refuse_shadowing(snapshot: Snapshot, manifests: Sequence[Manifest]) -> None:
    """Raise if local code, so placed, hides what Python or Dask itself needs.

    Parameters
    ----------
    snapshot : Snapshot
        Of this environment.
    manifests : sequence of Manifest
        Of its source trees, as they are to be placed.

    Raises
    ------
    MismatchError
        It does; the files are named.
    """
    found = shadowing(with_trees(snapshot, manifests), snapshot.distributions)
    if not found:
        return
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise MismatchError(
        f"{'; '.join(map(str, found[:_NAMED]))}{more}: "
        "no worker could start with that, and nothing was changed",
        hint=f"Rename {'it' if len(found) == 1 else 'them'}, or work from another folder.",
    )


def with_trees(snapshot: Snapshot, manifests: Iterable[Manifest]) -> list[tuple[SourceTree, Manifest]]:
    """Return manifests with the source trees that they are of."""
    trees = {tree.name: tree for tree in snapshot.source_trees}
    return [(trees[manifest.name], manifest) for manifest in manifests]


def _modules(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the top-level modules of a tree, and the file that makes each of them one."""
    for path, _, _ in manifest.files:
        top, _, rest = path.partition("/")
        name = rest or top
        if name.endswith((".py", ".so")) and (not rest or name.partition(".")[0] == "__init__"):
            yield top.partition(".")[0], path


def _needed_by_dask(distributions: Iterable[Distribution]) -> list[Distribution]:
    """Return Dask and all that it requires, as far as it is installed."""
    here = {one.name: one for one in distributions if not one.shadowed_by}
    environment: Mapping[str, str] = {**default_environment()}  # type: ignore[dict-item]
    todo, found = list(_DASK), {}
    while todo:
        one = here.get(todo.pop())
        if one is None or one.name in found:
            continue
        found[one.name] = one
        required = active_requirements(parse_requirements(one.requires), environment)
        todo += [canonicalize_name(each.name) for each in required]
    return list(found.values())


def _owners(names: Collection[str], distributions: Iterable[Distribution]) -> dict[str, Distribution]:
    """Return whose modules these are, as far as Dask needs them."""
    needed = _needed_by_dask(distributions)
    beside = {
        entry.partition(".")[0]
        for site in {Path(one.location).parent for one in needed}
        for entry in _entries(site)
    }
    if not beside & set(names):
        return {}  # as a rule; reading all those records takes its time
    return {module: one for one in needed for module in _modules_of(one)}


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all it takes
    except OSError:
        return []


def _modules_of(distribution: Distribution) -> Collection[str]:
    """Name the top-level modules that a distribution installed."""
    if distribution.editable:
        return ()
    modules = set()
    for file in PathDistribution(Path(distribution.location)).files or ():
        top = file.parts[0]
        if len(file.parts) > 1 and "." not in top:
            modules.add(top)
        elif len(file.parts) == 1 and top.endswith((".py", ".so")):
            modules.add(top.partition(".")[0])
    return modules


def _is_own(owner: Distribution, tree: SourceTree, file: str) -> bool:
    """Tell whether a file is the distribution's own: of its project, or of a folder it is installed in."""
    return tree.distribution == owner.name or Path(owner.location).parent in Path(file).parents


def _file(tree: SourceTree, path: str) -> str:
    """Return where a file of a tree is here."""
    for inside, source in tree.members:
        if inside == path:
            return source
        if not inside or path.startswith(f"{inside}/"):
            file = Path(source, path[len(inside) + 1 :] if inside else path)
            if file.exists():
                return str(file)
    return str(Path(tree.root, path))
