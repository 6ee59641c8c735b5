"""What the running process has, and how that differs from what is wanted."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any, Dict, Mapping, cast

from .compare import ERROR, FATAL, compare
from .scan import imported_distributions, scan
from .sources import code_here

__all__ = ["check", "check_aside", "look", "refuses"]


def look(who: str = "", wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the Report of the running process.

    Parameters
    ----------
    who : str
        What to call this process, such as ``"worker tcp://10.0.0.2:41000"``.
    wanted : Report, optional
        Its ``code`` says which files to look for. Without that its ``trees`` are here where the folder of
        their digest is on the path.
    """
    report: dict[str, Any] = dict(scan())
    report["who"] = who
    report["host"] = socket.gethostname()
    report["imported"] = imported_distributions(report)
    report["altered"] = _altered()
    wanted = wanted or {}
    if wanted.get("code"):
        report["trees"] = code_here(wanted["code"])
    elif wanted.get("trees"):
        folders = [*sys.path, *os.environ.get("ENVSYNC_TREES", "").split(os.pathsep)]
        report["trees"] = {
            name: one for name, one in wanted["trees"].items() if any(one in path for path in folders)
        }
    return report


def _altered() -> dict[str, str]:
    """Return what is the matter with what is laid over this process, by whoever was left here to say it."""
    laid = sys.__dict__.get("_envsync_overlay", {}).get("active") or {}
    return cast(Dict[str, str], laid["altered"](laid["folders"])) if laid.get("altered") else {}


def check(wanted: Mapping[str, Any], *, where: str = "", process: str = "") -> list[dict[str, Any]]:
    """Compare what is wanted with the running process; the differences as JSON types, worst first.

    Parameters
    ----------
    wanted : Report
        The left side of the comparison. Its ``variants``, if any, are for hosts that were locked for apart:
        ``$ENVSYNC_VARIANT`` says which.
    where : str
        The host's name as the user knows it; this machine's own if empty.
    process : str
        What to call this process in the differences.
    """
    wanted = (wanted.get("variants") or {}).get(os.environ.get("ENVSYNC_VARIANT"), wanted)
    report = look(process, wanted)
    found = compare(cast(Any, wanted), cast(Any, report), where=where or report["host"], process=process)
    return [difference.to_dict() for difference in found]


async def check_aside(wanted: Mapping[str, Any], where: str = "", process: str = "") -> list[dict[str, Any]]:
    """`check`, without stopping the event loop meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(
        None, lambda: check(wanted, where=where or os.environ.get("ENVSYNC_HOST", ""), process=process)
    )


def refuses(differences: list[dict[str, Any]]) -> bool:
    """Tell whether a process with these differences must not run tasks."""
    return any(difference["severity"] in (FATAL, ERROR) for difference in differences)
