"""Have a running process import from an overlay, and put it back.

What has to be found again, by another copy of this module too, is kept in ``sys``, under one name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from site import addpackage
from types import ModuleType
from typing import Any, Iterable, Iterator, Mapping, Sequence

__all__ = ["activate", "active", "deactivate", "elsewhere", "swap"]

_STATE = "_envsync_overlay"
_PATHS = ("PATH", "PYTHONPATH", "ENVSYNC_TREES")
_NOT_FOR_TASKS = frozenset(["benchmarks", "conftest", "docs", "examples", "setup", "test", "tests"])


def active() -> str:
    """Return the digest of the overlay that is active in this process, "" if none is."""
    return str((_state().get("active") or {}).get("digest", ""))


def activate(built: Mapping[str, Any], *, python_path: bool) -> dict[str, list[str]]:
    """Put an overlay on the path of this process, in the place of one that is there.

    Modules of the former one are forgotten, so that the next import reads the new ones, but for distributions
    that are the same in both, and for those with compiled modules, which no process can load twice.

    Parameters
    ----------
    built : mapping
        `Built.to_dict`.
    python_path : bool
        Whether the children of this process get it too, by environment variables.

    Returns
    -------
    dict
        ``forgotten``: modules; ``restart``: distributions, and modules of source trees, that this process has
        imported from elsewhere, so that only its restart brings the overlay's.
    """
    folders = _folders(built)
    old = _state().get("active")
    same = old and (old["digest"], old["python_path"]) == (built["digest"], python_path)
    if same and all(folder in sys.path for folder in folders):
        return {"forgotten": [], "restart": elsewhere(built)}
    roots = _roots(built)
    _take_off(roots, old)
    base = _without(sys.path, roots)
    head = base[:1] if base[:1] and _is_current(base[0]) else []
    rest = base[len(head) :]
    first = [*head, *built["front"], *([built["site"]] if built["site"] else [])]
    sys.path[:] = [*first, *rest]
    added: dict[str, list[Any]] = {"path": [], "meta_path": [], "path_hooks": []}
    if built["site"]:
        added = _read_pth(built["site"])
        rest = [one for one in sys.path[len(first) :] if one not in added["path"]]
        sys.path[:] = [*first, *added["path"], *rest]
    sys.path += built["back"]
    environ = _set_environment(built, python_path)
    plan = _plan(roots, folders, built["packages"])
    restart = sorted({*plan.stuck, *_elsewhere(built, plan)})
    for module, overlay in plan.moved.values():
        _move(module, overlay, built["site"])
    _forget(plan.stale)
    _state()["active"] = {
        "digest": built["digest"],
        "root": built["root"],
        "python_path": python_path,
        "folders": folders,
        "added": added,
        "environ": environ,
        "lingering": _lingering(roots, folders),
    }
    return {"forgotten": plan.stale, "restart": restart}


def elsewhere(built: Mapping[str, Any]) -> list[str]:
    """Return what of an overlay, active or not, this process has imported from elsewhere.

    Only its restart brings that; what `activate` can bring by itself is not among it.
    """
    return _elsewhere(built, _plan(_roots(built), _folders(built), built["packages"]))


def deactivate() -> dict[str, list[str]]:
    """Take the overlay off this process, as if there had been none; silent if there is none.

    Returns
    -------
    dict
        As for `activate`; ``restart`` are those of its distributions that stay imported.
    """
    old = _state().pop("active", None)
    if old is None:
        return {"forgotten": [], "restart": []}
    roots = {old["root"]}
    _take_off(roots, old)
    plan = _plan(roots, [], {})
    _forget(plan.stale)
    lingering = _lingering(roots, [])
    if lingering:
        # nothing is active, but what is imported from there still reads its files
        _state()["active"] = {"lingering": lingering, "folders": [], "digest": "", "root": old["root"]}
        _state()["active"].update(python_path=False, added={}, environ={})
    return {"forgotten": plan.stale, "restart": sorted(plan.stuck)}


def swap(old: Sequence[str], front: Sequence[str], back: Sequence[str]) -> int:
    """Put new folders of source trees in the place of old ones, here and for the children of this process.

    Modules that came from the old folders are forgotten, so that the next import reads the new ones.

    Parameters
    ----------
    old : sequence of str
        Folders that are on the path and go.
    front, back : sequence of str
        Folders that come before and after the installed packages.

    Returns
    -------
    int
        How many modules were forgotten.
    """
    gone = set(old)
    places = [index for index, folder in enumerate(sys.path) if folder in gone]
    first = places[0] if places else min(1, len(sys.path))
    kept = [folder for folder in sys.path if folder not in gone]
    sys.path[:] = [*kept[:first], *front, *kept[first:], *back]
    for name, folders in (("PYTHONPATH", front), ("ENVSYNC_TREES", back)):
        others = [one for one in os.environ.get(name, "").split(os.pathsep) if one and one not in gone]
        os.environ[name] = os.pathsep.join([*folders, *others])
    stale = [name for name, _, file in _imported() if _below(file, gone)]
    _forget(stale)
    return len(stale)


# The path


def _state() -> dict[str, Any]:
    return sys.__dict__.setdefault(_STATE, {})  # type: ignore[no-any-return]


def _folders(built: Mapping[str, Any]) -> list[str]:
    return [*built["front"], *([built["site"]] if built["site"] else []), *built["back"]]


def _is_current(folder: str) -> bool:
    """Tell whether a folder is the current one, which an interpreter may have put first."""
    if folder in ("", "."):
        return True
    with contextlib.suppress(OSError):
        return folder == os.getcwd()
    return False


def _without(path: Iterable[str], roots: Iterable[str]) -> list[str]:
    """Return a path without the folders of overlays, which a parent process may have left there."""
    return [folder for folder in path if not _below(folder, roots)]


def _below(path: Any, folders: Iterable[str]) -> str:
    """Return the one of the folders that a path lies in, "" if none."""
    text = path if isinstance(path, str) else ""
    return next((one for one in folders if text == one or text.startswith(one.rstrip(os.sep) + os.sep)), "")


def _take_off(roots: Iterable[str], old: Mapping[str, Any] | None) -> None:
    added = (old or {}).get("added") or {}
    for name in ("meta_path", "path_hooks"):
        listed = getattr(sys, name)
        for one in added.get(name, ()):
            if one in listed:
                listed.remove(one)
    sys.path[:] = [one for one in _without(sys.path, roots) if one not in added.get("path", ())]
    environ = (old or {}).get("environ") or {}
    for name in _PATHS:
        now = os.environ.get(name)
        if name in environ and now == environ[name][1]:
            _put(name, environ[name][0])
        elif now is not None:
            kept = _without(now.split(os.pathsep), roots)
            if len(kept) < len(now.split(os.pathsep)):
                _put(name, os.pathsep.join(kept) or None)


def _set_environment(built: Mapping[str, Any], python_path: bool) -> dict[str, tuple[str | None, str]]:
    """Set the variables, and return what each was and is."""
    wanted = {"PATH": [built["bin"]] if built["bin"] else []}
    if python_path:
        wanted["PYTHONPATH"] = [*built["front"], *([built["site"]] if built["site"] else [])]
        wanted["ENVSYNC_TREES"] = list(built["back"])
    environ = {}
    for name, folders in wanted.items():
        if folders:
            before = os.environ.get(name)
            text = os.pathsep.join([*folders, *([before] if before else [])])
            os.environ[name] = text
            environ[name] = (before, text)
    return environ


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _read_pth(site: str) -> dict[str, list[Any]]:
    """Read the .pth files of a folder as `site` does, and return what they added."""
    lists: dict[str, list[Any]] = {"path": sys.path, "meta_path": sys.meta_path, "path_hooks": sys.path_hooks}
    before = {name: list(listed) for name, listed in lists.items()}
    with contextlib.suppress(OSError):
        known = {os.path.normcase(os.path.abspath(one)) for one in sys.path}
        for name in sorted(os.listdir(site)):
            if name.endswith(".pth") and not name.startswith("."):
                addpackage(site, name, known)
    return {name: [one for one in listed if one not in before[name]] for name, listed in lists.items()}


# Modules


def _imported() -> Iterator[tuple[str, ModuleType, Any]]:
    """Yield name, module and file of all that is imported; nothing is asked that may import or warn."""
    for name, module in list(sys.modules.items()):
        try:
            yield name, module, vars(module).get("__file__")
        except TypeError:  # noqa: PERF203 - whatever stands in sys.modules may be no module
            continue


class _Plan:
    """What becomes of what is imported from overlays: moved, forgotten, or, by distributions, left."""

    def __init__(self) -> None:
        self.moved: dict[str, tuple[ModuleType, str]] = {}
        self.stale: list[str] = []
        self.stuck: set[str] = set()


def _roots(built: Mapping[str, Any]) -> set[str]:
    old = _state().get("active")
    return {built["root"], *([old["root"]] if old else [])}


def _plan(roots: Iterable[str], folders: Sequence[str], packages: Mapping[str, Any]) -> _Plan:
    """Return how to bring modules into line with an overlay of these folders and packages."""
    plan = _Plan()
    known: dict[str, tuple[dict[str, list[str]], set[str]]] = {}
    held: dict[str, list[str]] = {}
    for name, module, file in _imported():
        if file is None:
            if _is_gone_namespace(module, roots, folders):
                plan.stale.append(name)
            continue
        root = _below(file, roots)
        if not root or _below(file, folders):
            continue
        kind, _, rest = file[len(root.rstrip(os.sep)) + 1 :].partition(os.sep)
        if kind != "overlays":
            plan.stale.append(name)
            continue
        overlay = os.path.join(root, kind, rest.partition(os.sep)[0])
        if overlay not in known:
            known[overlay] = _compared(overlay, packages)
        modules, changed = known[overlay]
        owners = _owners(name, modules)
        if owners and not changed.intersection(owners):
            plan.moved[name] = module, overlay
            continue
        for owner in owners or [name.partition(".")[0]]:
            held.setdefault(owner, []).append(name)
            if not str(file).endswith(".py"):
                plan.stuck.add(owner)
    fixed = {name for owner in plan.stuck for name in held[owner]}
    names = {name for held_names in held.values() for name in held_names}
    plan.stale = sorted({*plan.stale, *names} - fixed)
    return plan


def _compared(overlay: str, packages: Mapping[str, Any]) -> tuple[dict[str, list[str]], set[str]]:
    """Return the distributions of an overlay by their modules, and which of them are others in `packages`."""
    try:
        with open(os.path.join(overlay, "overlay.json"), encoding="utf-8") as file:
            made = json.load(file)["packages"]
    except (OSError, ValueError, KeyError):
        return {}, set()
    roots: dict[str, list[str]] = {}
    for name, one in made.items():
        for module in one["modules"]:
            roots.setdefault(module, []).append(name)
    others = {name for name, one in made.items() if (packages.get(name) or {}).get("sha256") != one["sha256"]}
    return roots, others


def _owners(module: str, roots: Mapping[str, list[str]]) -> list[str]:
    parts = module.split(".")
    heads = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return [owner for head in heads for owner in roots.get(head, ())]


def _is_gone_namespace(module: ModuleType, roots: Iterable[str], folders: Sequence[str]) -> bool:
    try:
        path = list(vars(module).get("__path__") or ())
    except Exception:  # noqa: BLE001 - whatever stands there computes it
        return False
    return bool(path) and all(_below(one, roots) and not _below(one, folders) for one in path)


def _move(module: ModuleType, overlay: str, site: str) -> None:
    """Tell a module that its files, which are the same ones, are in another overlay now."""
    parts = site.rstrip(os.sep).split(os.sep)
    tail = os.sep.join(parts[-3:])  # lib/pythonX.Y/site-packages
    old = os.path.join(overlay, tail)

    def moved(text: Any) -> Any:
        return site + text[len(old) :] if isinstance(text, str) and _below(text, [old]) else text

    held = vars(module)
    for key in ("__file__", "__cached__"):
        if key in held:
            held[key] = moved(held[key])
    spec = held.get("__spec__")
    with contextlib.suppress(Exception):
        for path in (held.get("__path__"), getattr(spec, "submodule_search_locations", None)):
            if type(path) is list:
                path[:] = [moved(one) for one in path]
        if spec is not None:
            spec.origin, spec.cached = moved(spec.origin), moved(spec.cached)
        loader = held.get("__loader__")
        if hasattr(loader, "path"):
            loader.path = moved(loader.path)  # type: ignore[union-attr]


def _forget(names: Iterable[str]) -> None:
    for name in names:
        module = sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        above = getattr(sys.modules.get(parent), "__dict__", {})
        # `from parent import child` would find it there, and import nothing
        if module is not None and above.get(child) is module:
            del above[child]
    for folder in [one for one in sys.path_importer_cache if one not in sys.path]:
        sys.path_importer_cache.pop(folder, None)
    importlib.invalidate_caches()


def _lingering(roots: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Return the folders that modules are imported from though they are no longer on the path."""
    found = set()
    for _, _, file in _imported():
        root = _below(file, roots)
        if root and not _below(file, folders):
            found.add(os.sep.join([root, *file[len(root) :].strip(os.sep).split(os.sep)[:2]]))
    return sorted(found)


def _elsewhere(built: Mapping[str, Any], plan: _Plan) -> list[str]:
    gone = {*plan.moved, *plan.stale}
    imported = {name: file for name, _, file in _imported() if isinstance(file, str) and name not in gone}
    found = set()
    for name, one in built["packages"].items():
        for module in one["modules"]:
            file = imported.get(module)
            if file and module not in _NOT_FOR_TASKS and not _below(file, [built["site"]]):
                found.add(name)
    for folder in built["front"]:
        for name, file in imported.items():
            top = name.partition(".")[0]
            if top not in _NOT_FOR_TASKS and name != "__main__" and not _below(file, built["front"]):
                path = os.path.join(folder, *name.split("."))
                if _differs(file, path + ".py") or _differs(file, os.path.join(path, "__init__.py")):
                    found.add(top)
    return sorted(found)


def _differs(file: str, other: str) -> bool:
    """Tell whether a file of a tree is there and another one than that which was imported."""
    try:
        with open(other, "rb") as there:
            content = there.read()
    except OSError:
        return False
    try:
        with open(file, "rb") as here:
            return here.read() != content
    except OSError:
        return True
