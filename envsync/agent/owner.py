"""Who something on the disk belongs to: a process, named so that it is known when it is gone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict

__all__ = ["lives", "myself", "read_owner", "write_owner"]

Owner = Dict[str, Any]


def myself() -> Owner:
    """Describe this process: its machine since when it started, and itself among all that had its number."""
    return {
        "host": os.uname().nodename,
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _link(Path("/proc/self/ns/pid")),
        "pid": str(os.getpid()),
        "started": _started(os.getpid()),
    }


def lives(owner: Owner) -> bool | None:
    """Return whether an owner still runs, None if that is not known here: it is not of this machine."""
    here = myself()
    if not here["boot"] or any(owner.get(key) != here[key] for key in ("boot", "namespace")):
        return None
    pid = str(owner.get("pid", ""))
    return pid.isdigit() and owner.get("started") == _started(int(pid)) != ""


def write_owner(folder: Path, **more: object) -> None:
    """Make a folder this process's, whatever was written there before."""
    (folder / "owner").write_text(json.dumps({**myself(), **more}), encoding="utf-8")


def read_owner(folder: Path) -> Owner:
    """Return what `write_owner` wrote, an empty mapping if there is nothing."""
    try:
        owner = json.loads((folder / "owner").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks, which tells it from a later one of the same number."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
