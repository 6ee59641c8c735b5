"""What a state asks of one process of a running cluster: fetched, built, put in, taken out.

Several users may share a process: the workers, nannies and scheduler of a LocalCluster without processes do.
What is put in stays until the last of them has left. As modules that travel by value keep no globals, what
has to be found again is in ``sys.__dict__``.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Mapping, Sequence, cast

from .activate import activate, active_folders, deactivate, elsewhere
from .compare import compare
from .look import check
from .overlay import Overlays, root
from .scan import scan
from .sources import code_here
from .survey import repairable, surveyed, target_of_process
from .whole import altered_here, altered_in, overlay_of

__all__ = [
    "disturbed_here",
    "fetch_and_build",
    "is_owner",
    "laid_over",
    "look_again",
    "put_in",
    "signature",
    "stale",
    "take_out",
]

Get = Callable[[str, int], Mapping[str, Any]]

AT_ONCE = 4  # blobs that are fetched at the same time

_KEPT = "_envsync_fit"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_UNUSED = 86400.0  # seconds that unused overlays stay on a host's disk


def signature(state: Mapping[str, Any]) -> str:
    """Return what differs where more than local code does: packages, and what they are compared with."""
    wanted = {key: value for key, value in state["wanted"].items() if key not in ("trees", "code")}
    return repr((wanted, state["packages"]))


def is_owner(state: Mapping[str, Any]) -> bool:
    """Tell whether this process is the client whose state it is: it needs nothing but its own environment."""
    owner = state.get("owner") or {}
    return bool(owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname())


def fetch_and_build(state: Mapping[str, Any], get: Get) -> dict[str, Any]:
    """Have on this host's disk what this process needs of a state. For a thread: it waits and reads.

    Parameters
    ----------
    state : State
        What is wanted of the cluster.
    get : callable
        Takes a sha256 and an offset; returns ``data`` and the whole's ``size``, -1 where there is none.

    Returns
    -------
    dict
        The overlay as `activate` takes it; empty if this process needs nothing.

    Raises
    ------
    LookupError
        A blob is not to be had.
    OSError, ValueError
        The disk is full or not writable; a wheel is not what it should be.
    """
    if is_owner(state):
        return {}
    packages = _needed(state)
    trees: Sequence[Mapping[str, Any]] = state["trees"]
    if not packages and not trees:
        return {}
    folder = root()
    try:
        overlays = Overlays(folder)
        with overlays.lock():  # one process of a host fetches: the others find it there
            lacking = overlays.lacking(packages, trees)
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(lambda sha256: _fetch(overlays, sha256, get), lacking))
            built = overlays.build(packages, trees)
            overlays.hold(built)
            if lacking:
                overlays.sweep((), _UNUSED)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            f"{os.strerror(error.errno)}: {folder} on {socket.gethostname()}: "
            "make room there, or set ENVSYNC_OVERLAYS to a folder elsewhere"
        ) from error
    return built.to_dict()


def stale(built: Mapping[str, Any]) -> list[str]:
    """Return what an overlay has, or no longer has, and this process has imported otherwise.

    Only a restart brings all of that. Other modules may hold on to those of a package that are forgotten, so
    the ones of an overlay that is replaced count too, where they differ.
    """
    return sorted({*_replaced(built), *(elsewhere(built) if built else ())})


def laid_over() -> list[str]:
    """Return the distributions that this process has imported from the overlay that it was given."""
    built = (sys.__dict__.get(_KEPT) or {}).get("built") or {}
    return sorted(
        name
        for name, one in (built.get("packages") or {}).items()
        if any(_imported_from(module) == built["site"] for module in one["modules"])
    )


def put_in(who: str, built: Mapping[str, Any], *, python_path: bool = False) -> list[str]:
    """Activate an overlay for a user of this process; the distributions that a restart alone would bring."""
    kept = sys.__dict__.setdefault(_KEPT, {"users": {}})
    kept["users"][who] = python_path
    restart = _replaced(built)
    kept["outlived"] = _imported_so_far(built)  # somebody may hold on to it, however often it is replaced
    if built:
        kept["built"] = dict(built)
        restart += activate(built, python_path=any(kept["users"].values()))["restart"]
    elif not any(one != who for one in kept["users"]):
        deactivate()
        kept.pop("built", None)
    return sorted(set(restart))


def take_out(who: str) -> bool:
    """Undo `put_in` for one user; whether this process is as it was before the first."""
    kept = sys.__dict__.get(_KEPT)
    if kept is None or who not in kept["users"]:
        return False
    del kept["users"][who]
    if kept["users"]:
        return False
    deactivate()
    if kept.get("built"):
        Overlays(root()).hold(None)
    del sys.__dict__[_KEPT]
    return True


def disturbed_here(state: Mapping[str, Any]) -> bool:
    """Tell whether what was laid over this process is no longer what a state has. For a thread."""
    code = state["wanted"].get("code") or {}
    wanted = {name: tree["digest"] for name, tree in code.items()}
    return not is_owner(state) and bool(altered_here(active_folders()) or code_here(code) != wanted)


def look_again(state: Mapping[str, Any], *, process: str = "") -> list[dict[str, Any]]:
    """Return how this process differs from what is wanted. For a thread.

    Where packages are what they were the last time, only local code is looked at.
    """
    wanted = state["wanted"]
    kept = sys.__dict__.setdefault(_KEPT, {"users": {}})
    key = (signature(state), (kept.get("built") or {}).get("site"))
    known = surveyed(wanted)
    if kept.get("looked") != key and known is not None and not kept.get("built", {}).get("packages"):
        kept["rest"], kept["looked"] = known, key
    if kept.get("looked") != key:
        found = check(wanted, process=process)
        kept["rest"] = [one for one in found if one["kind"] != "source"]
        kept["looked"] = key
        return found
    left = {"trees": wanted.get("trees")}
    right = {"trees": code_here(wanted["code"])} if wanted.get("code") else {}
    where = os.environ.get("ENVSYNC_HOST", "") or socket.gethostname()
    code = compare(left, right, where=where, process=process)
    rest = [{**one, "process": process} for one in kept["rest"]]
    return [*(one.to_dict() for one in code), *rest]


def _replaced(built: Mapping[str, Any]) -> list[str]:
    after = built.get("packages") or {}
    return [
        name
        for name, hashes in _imported_so_far(built).items()
        if hashes - {(after.get(name) or {}).get("sha256")}
    ]


def _imported_so_far(built: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return which wheels, by distribution, this process has imported from the overlays that it was given.

    What somebody has altered in the one that `built` replaces is no wheel's any more.
    """
    kept = sys.__dict__.get(_KEPT) or {}
    found = {name: set(hashes) for name, hashes in kept.get("outlived", {}).items()}
    old = kept.get("built") or {"site": "", "packages": {}}
    altered = altered_in(overlay_of(old["site"])) if old["site"] and old["site"] != built.get("site") else {}
    for name in laid_over():
        hashes = found.setdefault(name, set())
        hashes.add(old["packages"][name]["sha256"])
        if altered.get(name, ([], []))[0]:
            hashes.add("altered")
    return found


def _fetch(overlays: Overlays, sha256: str, get: Get) -> None:
    with overlays.add(sha256) as adding:
        offset, size = 0, 1
        while offset < size:
            chunk = get(sha256, offset)
            size = chunk["size"]
            if size < 0 or (size > offset and not chunk["data"]):
                raise LookupError(f"the scheduler has no blob {sha256[:12]}: sync again")
            adding.write(chunk["data"])
            offset += len(chunk["data"])
        adding.commit()


def _imported_from(module: str) -> str:
    """Return the folder that a module was imported from, "" if it is not imported."""
    path = str(getattr(sys.modules.get(module), "__file__", None) or "")
    for _ in range(module.count(".") + (2 if os.path.basename(path).startswith("__init__.") else 1)):
        path = os.path.dirname(path)
    return path


def _needed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return those packages of a state that the environment below any overlay lacks."""
    packages = dict(state["packages"].get(target_of_process()) or {})
    if not packages:
        return {}
    kept = sys.__dict__.setdefault(_KEPT, {"users": {}})
    key = signature(state)
    if kept.get("needed_for") != key:
        above = os.path.join(str(root()), "")
        report = dict(scan([path for path in sys.path if not path.startswith(above)]))
        wanted = {
            name: one for name, one in state["wanted"].items() if name not in ("trees", "code", "imported")
        }
        differences = [one.to_dict() for one in compare(wanted, cast(Any, report))]
        kept["needed"] = sorted(repairable(differences)[0])
        kept["needed_for"] = key
    return {name: packages[name] for name in kept["needed"] if name in packages}
