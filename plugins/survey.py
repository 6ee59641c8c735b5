"""What a running process lacks of what is wanted, and what of that can be laid over it."""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig
import time
from typing import Any, Iterable, Mapping, cast

from .activate import active_folders
from .compare import CORE, ERROR, FATAL, compare
from .look import look
from .scan import libc
from .sources import covered_here

__all__ = ["repairable", "survey", "surveyed", "target_of_process"]

_KEPT = "_envsync_survey"
_FRESH = 60.0  # seconds that a survey counts for what follows it


def survey(wanted: Mapping[str, Any], who: str = "") -> dict[str, Any]:
    """Look at the running process.

    Parameters
    ----------
    wanted : Report
        The left side of the comparison.
    who : str
        What to call this process in the differences.

    Returns
    -------
    dict
        JSON types: ``target``, ``prefix``, ``host``, ``pid``, ``differences``, ``imported``, the versions
        that modules of distributions say of themselves ("" where they say none), and ``covered``, the source
        trees that differ and that something here would be imported instead of.
    """
    report = look(who, wanted)
    where = os.environ.get("ENVSYNC_HOST", "") or report["host"]
    found = compare(cast(Any, wanted), cast(Any, report), where=where, process=who)
    differing = {one.subject for one in found if one.kind == "source"}
    code = {name: tree for name, tree in (wanted.get("code") or {}).items() if name in differing}
    differences = [difference.to_dict() for difference in found]
    sys.__dict__[_KEPT] = {"wanted": _packages_of(wanted), "at": time.monotonic(), "differences": differences}
    return {
        "target": target_of_process(),
        "prefix": sys.prefix,
        "host": report["host"],
        "pid": os.getpid(),
        "differences": differences,
        "imported": {name: held.get("version", "") for name, held in report["imported"].items()},
        "covered": covered_here(code, active_folders()),
    }


def surveyed(wanted: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return how this process differed, local code aside, when `survey` saw it a moment ago; once.

    None if it did not, or was asked for something else.
    """
    kept = sys.__dict__.pop(_KEPT, None)
    if not kept or time.monotonic() - kept["at"] > _FRESH or kept["wanted"] != _packages_of(wanted):
        return None
    return [one for one in kept["differences"] if one["kind"] != "source"]


def _packages_of(wanted: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in wanted.items() if key not in ("trees", "code")}
    return json.dumps(kept, sort_keys=True)  # as JSON: what has come by msgpack has tuples for lists


def target_of_process() -> str:
    """Return what wheels must fit here: ``cpython-3.11-linux-x86_64-glibc-2.36``.

    A Python without the global lock is ``3.13t``: it takes other wheels.
    """
    minor = "{}.{}".format(*sys.version_info[:2])
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        minor += "t"
    system = "linux" if sys.platform.startswith("linux") else sys.platform
    return "-".join([sys.implementation.name, minor, system, platform.machine(), *(libc() or [])])


def repairable(
    differences: Iterable[Mapping[str, Any]],
) -> tuple[set[str], list[dict[str, Any]]]:
    """Sort differences by what can be done about them.

    Local code is neither: it ships as source trees. What was imported before it was installed anew is
    neither: a restart mends it. So is another build of the same version, which may be right there.

    Parameters
    ----------
    differences : iterable of Difference as mappings
        Of one process.

    Returns
    -------
    tuple
        The distributions to lay over, and the fatal and other errors that nothing here can mend.
    """
    names: set[str] = set()
    rest: list[dict[str, Any]] = []
    for one in differences:
        kind, subject = one["kind"], one["subject"]
        bad = one["severity"] in (FATAL, ERROR)
        if kind in ("source", "imported") and subject not in CORE:
            continue
        if kind in ("version", "content", "missing", "shadowed") and subject not in CORE:
            # what is missing on another kind of machine is only warned of, and is wanted all the same
            local = str(one.get("left", "")).endswith("(local code)")
            if not local and (bad or (kind == "missing" and one["severity"] == "warning")):
                names.add(subject)
        elif bad:
            rest.append(dict(one))
    return names, rest
