"""What becomes of modules that are imported, when the folders that they came from go."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from types import ModuleType
from typing import Any, Iterable, Iterator, List, Mapping, Sequence, cast

from .whole import altered_in

__all__ = ["Plan", "below", "forget", "imported", "lingering", "move", "plan_for"]


def imported() -> Iterator[tuple[str, ModuleType, Any]]:
    """Yield name, module and file of all that is imported; nothing is asked that may import or warn."""
    for name, module in list(sys.modules.items()):
        try:
            yield name, module, vars(module).get("__file__")
        except TypeError:  # noqa: PERF203 - whatever stands in sys.modules may be no module
            continue


def below(path: Any, folders: Iterable[str]) -> str:
    """Return the one of the folders that a path lies in, "" if none."""
    text = path if isinstance(path, str) else ""
    return next((one for one in folders if text == one or text.startswith(one.rstrip(os.sep) + os.sep)), "")


class Plan:
    """What becomes of what is imported from overlays: moved, forgotten, or, by distributions, left."""

    def __init__(self) -> None:
        self.moved: dict[str, tuple[ModuleType, str]] = {}
        self.stale: list[str] = []
        self.stuck: set[str] = set()


def plan_for(roots: Iterable[str], folders: Sequence[str], packages: Mapping[str, Any]) -> Plan:
    """Return how to bring modules into line with an overlay of these folders and packages."""
    plan = Plan()
    known: dict[str, tuple[dict[str, list[str]], set[str]]] = {}
    held: dict[str, list[str]] = {}
    for name, module, file in imported():
        if file is None:
            if _is_gone_namespace(module, roots, folders):
                plan.stale.append(name)
            continue
        root = below(file, roots)
        if not root or below(file, folders):
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
    """Return the distributions of an overlay by their modules, and which of them are others in `packages`.

    Those whose files were altered since are others too: this process may have imported the altered ones.
    """
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
    return roots, others | set(altered_in(overlay))


def _owners(module: str, roots: Mapping[str, list[str]]) -> list[str]:
    return [owner for head in sorted(_heads(module)) for owner in roots.get(head, ())]


def _heads(module: str) -> set[str]:
    """Return the names of a module and of the packages that it is in."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}


def _is_gone_namespace(module: ModuleType, roots: Iterable[str], folders: Sequence[str]) -> bool:
    try:
        path = list(vars(module).get("__path__") or ())
    except Exception:  # noqa: BLE001 - whatever stands there computes it
        return False
    return bool(path) and all(below(one, roots) and not below(one, folders) for one in path)


def move(module: ModuleType, overlay: str, site: str) -> None:
    """Tell a module that its files, which are the same ones, are in another overlay now."""
    parts = site.rstrip(os.sep).split(os.sep)
    tail = os.sep.join(parts[-3:])  # lib/pythonX.Y/site-packages
    old = os.path.join(overlay, tail)

    def moved(text: Any) -> Any:
        return site + text[len(old) :] if isinstance(text, str) and below(text, [old]) else text

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


def forget(names: Iterable[str]) -> None:
    """Have the next import of modules read their files, wherever they are now.

    What they put into the import system goes with them, as do modules below them that they made themselves.
    """
    gone = set(names)
    gone.update(name for name, _, file in imported() if file is None and _heads(name) & gone)
    for name in gone:
        module = sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        above = getattr(sys.modules.get(parent), "__dict__", {})
        # `from parent import child` would find it there, and import nothing
        if module is not None and above.get(child) is module:
            del above[child]
    for listed in (cast(List[Any], sys.meta_path), cast(List[Any], sys.path_hooks)):
        made = [one for one in listed if getattr(one, "__module__", None) in gone]
        for one in made:
            listed.remove(one)
    for folder in [one for one in sys.path_importer_cache if one not in sys.path]:
        sys.path_importer_cache.pop(folder, None)
    importlib.invalidate_caches()


def lingering(roots: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Return the folders that modules are imported from though they are no longer on the path."""
    found = set()
    for _, _, file in imported():
        root = below(file, roots)
        if root and not below(file, folders):
            found.add(os.sep.join([root, *file[len(root) :].strip(os.sep).split(os.sep)[:2]]))
    return sorted(found)
