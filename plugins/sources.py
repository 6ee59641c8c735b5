"""Whether local code is here as it is there: every file of a source tree, where an import would find it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from typing import Any, Collection, Mapping, Sequence

__all__ = ["code_here", "covered_here"]


def code_here(wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what this process has of source trees.

    A tree is looked for where its top-level modules would be imported from, not where it was put: so this
    works in clusters that nobody shipped it to, and sees files that were changed after they were shipped.

    Parameters
    ----------
    wanted : mapping
        By tree name: ``digest``, and ``files``, the sha256 of each file by its path in the tree.

    Returns
    -------
    dict of str to str
        By tree name: the wanted digest if all of it is here and equal; else what is the matter. A tree of
        which nothing can be imported here is left out.
    """
    found = {}
    for name, tree in wanted.items():
        said = _tree_here(tree["files"])
        if said is not None:
            found[name] = said or str(tree["digest"])
    return found


def covered_here(wanted: Mapping[str, Mapping[str, Any]], besides: Collection[str]) -> list[str]:
    """Return the source trees that something else here comes before, if they are last on the path.

    Parameters
    ----------
    wanted : mapping
        As for `code_here`.
    besides : collection of str
        Folders of the path that do not count.
    """
    path = [folder for folder in sys.path if folder not in besides]
    return [
        name
        for name, tree in wanted.items()
        if any(_is_elsewhere(top, path) for top in {file.partition("/")[0] for file in tree["files"]})
    ]


def _is_elsewhere(top: str, path: Sequence[str]) -> bool:
    module = _module_of(top)
    if module is None:
        return False
    spec = PathFinder.find_spec(module, path)
    return module in sys.builtin_module_names or (spec is not None and spec.origin is not None)


# Of a project's folder, what is importable and that no task imports.
_NOT_FOR_TASKS = frozenset(
    ["benchmarks", "conftest.py", "docs", "examples", "noxfile.py", "setup.py", "test", "tests"]
)


def _tree_here(files: Mapping[str, str]) -> str | None:
    """Return "" if all is here, None if nothing is, else what is the matter."""
    places: dict[str, list[str]] = {}
    missing, other = [], []
    looked_at = 0
    for path in sorted(files):
        top, _, rest = path.partition("/")
        if _module_of(top) is None:
            continue
        if top not in places:
            places[top] = _places_of(top)
        if not places[top]:
            if path.endswith(".py") and top not in _NOT_FOR_TASKS:
                looked_at += 1
                missing.append(path)
            continue
        looked_at += 1
        digest = _digest([os.path.join(place, rest) if rest else place for place in places[top]])
        if digest is None:
            missing.append(path)
        elif digest != files[path]:
            other.append(path)
    if missing and len(missing) == looked_at:
        return None
    parts = [f"{len(other)} of {looked_at} files differ ({_shown(other[0])})"] if other else []
    parts += [f"{len(missing)} of {looked_at} files are not there ({_shown(missing[0])})"] if missing else []
    return ", ".join(parts)


def _digest(paths: Sequence[str]) -> str | None:
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _module_of(top: str) -> str | None:
    """Return what an import calls a name at the top of a tree; None if it can call it nothing.

    Names need not be identifiers: ``importlib.import_module("my-run")`` finds ``my-run.py``.
    """
    if top.endswith((".dist-info", ".egg-info")):
        return None
    module = top[:-3] if top.endswith(".py") else top.split(".", 1)[0] if ".so" in top else top
    # what stands at the top of every process, or of a folder that is a package itself, is not the tree's
    return None if not module or "." in module or module in ("__main__", "__init__") else module


def _places_of(top: str) -> list[str]:
    """Return the files or folders that an import takes for a name at the top of a tree.

    Where it takes another of the same folder (of ``run.py`` and ``run/``, one hides the other), that name is
    there all the same.
    """
    module = _module_of(top)
    if module is None:
        return []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return []
    if spec is None:
        return []
    folders = [str(place) for place in spec.submodule_search_locations or ()]
    origin = spec.origin if spec.origin and spec.has_location else None
    taken = folders or ([origin] if origin else [])
    if module == top and folders:
        return folders
    if [top] == [os.path.basename(place) for place in taken]:
        return taken
    beside = [os.path.join(os.path.dirname(place), top) for place in taken]
    found = [place for place in beside if os.path.exists(place)]
    return found or ([origin] if origin and module != top and not folders else [])
