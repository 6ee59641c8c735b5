"""The processes of a namespace, as seen from outside."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of a machine.

    Parameters
    ----------
    pid : int
        As this machine sees it, not its own.
    arguments : tuple of str
        Its command line.
    """

    pid: int
    arguments: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return what its environment was when it started; empty when it is gone."""
        try:
            text = Path(f"/proc/{self.pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            return {}
        return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def namespace(pid: int, kind: str) -> str:
    """Return the identity of a process's namespace; empty when the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def processes_in(pid_namespace: str) -> list[Process]:
    """Return the processes of a process namespace."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and pid_namespace and namespace(int(folder.name), "pid") == pid_namespace:
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                found.append(Process(int(folder.name), tuple(line.split("\0")[:-1])))
    return found
