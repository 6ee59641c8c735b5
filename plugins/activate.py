"""Have a running process import from an overlay, and put it back.

What has to be found again, by another copy of this module too, is kept in ``sys``, under one name.
"""

from __future__ import annotations

import contextlib
import os
import sys
from site import addpackage
from typing import Any, Iterable, List, Mapping, Sequence, cast

from .forget import Plan, below, forget, imported, lingering, move, plan_for
from .whole import altered_here

__all__ = ["activate", "active", "active_folders", "deactivate", "elsewhere", "swap"]

_STATE = "_envsync_overlay"
_PATHS = ("PATH", "PYTHONPATH", "ENVSYNC_TREES")
# Nothing that tasks import, and what setuptools has every interpreter import before anything else.
_NOT_FOR_TASKS = frozenset(
    ["_distutils_hack", "benchmarks", "conftest", "docs", "examples", "setup", "test", "tests"]
)


def active() -> str:
    """Return the digest of the overlay that is active in this process, "" if none is."""
    return str((_state().get("active") or {}).get("digest", ""))


def active_folders() -> list[str]:
    """Return what is on the path for the overlay that is active in this process."""
    return list((_state().get("active") or {}).get("folders", ()))


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
    base = _base(roots, old)
    head = base[:1] if base[:1] and _is_current(base[0]) else []
    first = [*head, *built["front"], *([built["site"]] if built["site"] else [])]
    sys.path[:] = [*first, *base[len(head) :], *built["back"]]  # at once: other threads may be importing
    _restore_environment(roots, old)
    environ = _set_environment(built, python_path)
    plan = plan_for(roots, folders, built["packages"])
    restart = sorted({*plan.stuck, *_elsewhere(built, plan)})
    for module, overlay in plan.moved.values():
        move(module, overlay, built["site"])
    forget(plan.stale)
    if old and built["site"] in old["folders"]:
        added = old["added"]
    else:
        if not built["site"]:
            _drop_finders(old)
        added = _read_pth(built["site"])
        # What a module made that is imported still, it will not make again.
        for name, listed in _finders().items():
            added[name] += [one for one in ((old or {}).get("added") or {}).get(name, ()) if one in listed]
    rest = [one for one in sys.path[len(first) :] if one not in added["path"]]
    sys.path[:] = [*first, *added["path"], *rest]
    _state()["active"] = {
        "digest": built["digest"],
        "root": built["root"],
        "python_path": python_path,
        "folders": folders,
        "altered": altered_here,  # for `look`, which is in processes over which nothing is ever laid, too
        "added": added,
        "environ": environ,
        "lingering": lingering(roots, folders),
    }
    return {"forgotten": plan.stale, "restart": restart}


def elsewhere(built: Mapping[str, Any]) -> list[str]:
    """Return what of an overlay, active or not, this process has imported from elsewhere.

    Only its restart brings that; what `activate` can bring by itself is not among it.
    """
    return _elsewhere(built, plan_for(_roots(built), _folders(built), built["packages"]))


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
    sys.path[:] = _base(roots, old)
    _restore_environment(roots, old)
    plan = plan_for(roots, [], {})
    forget(plan.stale)
    _drop_finders(old)
    left = lingering(roots, [])
    if left:
        # nothing is active, but what is imported from there still reads its files
        _state()["active"] = {
            "added": {},
            "environ": {},
            "digest": "",
            "root": old["root"],
            "python_path": False,
            "folders": [],
            "lingering": left,
        }
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
    stale = [name for name, _, file in imported() if below(file, gone)]
    forget(stale)
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
    return [folder for folder in path if not below(folder, roots)]


def _base(roots: Iterable[str], old: Mapping[str, Any] | None) -> list[str]:
    """Return the path as it is without an overlay."""
    added = ((old or {}).get("added") or {}).get("path", ())
    return [one for one in _without(sys.path, roots) if one not in added]


def _finders() -> dict[str, list[Any]]:
    return {"meta_path": cast(List[Any], sys.meta_path), "path_hooks": cast(List[Any], sys.path_hooks)}


def _drop_finders(old: Mapping[str, Any] | None) -> None:
    """Remove what .pth files added to the import system."""
    added = (old or {}).get("added") or {}
    for name, listed in _finders().items():
        listed[:] = [one for one in listed if one not in added.get(name, ())]


def _restore_environment(roots: Iterable[str], old: Mapping[str, Any] | None) -> None:
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
    lists: dict[str, list[Any]] = {"path": sys.path, **_finders()}
    before = {name: list(listed) for name, listed in lists.items()}
    if site:
        known = {os.path.normcase(os.path.abspath(one)) for one in sys.path}
        for name in sorted(os.listdir(site)):
            if name.endswith(".pth") and not name.startswith("."):
                addpackage(site, name, known)
    return {name: [one for one in listed if one not in before[name]] for name, listed in lists.items()}


def _roots(built: Mapping[str, Any]) -> set[str]:
    old = _state().get("active")
    return {built["root"], *([old["root"]] if old else [])}


def _elsewhere(built: Mapping[str, Any], plan: Plan) -> list[str]:
    gone = {*plan.moved, *plan.stale}
    files = {name: file for name, _, file in imported() if isinstance(file, str) and name not in gone}
    found = set()
    for name, one in built["packages"].items():
        for module in one["modules"]:
            file = files.get(module)
            if file and module not in _NOT_FOR_TASKS and not below(file, [built["site"]]):
                found.add(name)
    for folder in built["front"]:
        tops = {entry.partition(".")[0] for entry in os.listdir(folder)} - _NOT_FOR_TASKS
        for name, file in files.items():
            top = name.partition(".")[0]
            if top in tops and name != "__main__" and not below(file, built["front"]):
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
