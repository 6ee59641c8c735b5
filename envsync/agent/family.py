"""Processes and what they started, found in /proc, so that nothing outlives its owner."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Iterable

__all__ = ["adopt", "descendants", "end_all", "reap"]


def adopt() -> bool:
    """Become the parent of whatever a child leaves behind; returns whether the kernel knows that (Linux)."""
    try:
        zero = ctypes.c_ulong(0)
        return bool(ctypes.CDLL(None).prctl(ctypes.c_int(36), ctypes.c_ulong(1), zero, zero, zero) == 0)
    except (OSError, AttributeError):
        return False


def descendants(pids: Iterable[int]) -> dict[int, str]:
    """Return all that these processes started, and so on, without themselves: number to starting time."""
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, (_, parent, started) in _all().items():
        children.setdefault(parent, []).append((pid, started))
    found: dict[int, str] = {}
    ask = list(pids)
    while ask:
        for pid, started in children.get(ask.pop(), ()):
            if pid not in found:
                found[pid] = started
                ask.append(pid)
    return found


def end_all(family: dict[int, str], grace: float = 0.0) -> None:
    """End those of these processes that still run: SIGTERM, `grace` seconds, SIGKILL."""
    until = time.monotonic() + grace
    if grace and _signal(family, signal.SIGTERM):
        while time.monotonic() < until and _signal(family, 0):
            time.sleep(0.05)
    _signal(family, signal.SIGKILL)


def reap(spare: set[int], suspects: set[int]) -> set[int]:
    """Collect adopted processes that have ended, and return those to collect next time if they still wait.

    One that somebody here waits for must not be collected: it is in `spare`, or is gone by the next time.
    """
    me = os.getpid()
    waiting = {pid for pid, (state, parent, _) in _all().items() if parent == me and state == "Z"} - spare
    for pid in waiting & suspects:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return waiting - suspects


def _signal(family: dict[int, str], number: int) -> bool:
    """Send a signal to those that are still the same processes; return whether there were any."""
    there = False
    for pid, started in family.items():
        state, _, begun = _one(pid)
        if begun == started and state != "Z":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                there = True
    return there


def _all() -> dict[int, tuple[str, int, str]]:
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - much quicker
    except OSError:
        return {}
    return {pid: about for pid in numbers for about in [_one(pid)] if about[2]}


def _one(pid: int) -> tuple[str, int, str]:
    """Return a process's state, parent and starting time; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1]), fields[19].decode()
    except (OSError, IndexError):
        return "", 0, ""
