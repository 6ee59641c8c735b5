"""Locks whose wheels could not be had: a cache of locks lets go of these."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from envsync.store import recall, remember

if TYPE_CHECKING:
    from envsync.lock import Lock

__all__ = ["is_unobtainable", "mark_unobtainable"]


def mark_unobtainable(lock: Lock, value: bool) -> None:
    """Remember whether wheels of a lock could not be had."""
    remember("unobtainable", _content(lock), value)


def is_unobtainable(lock: Lock) -> bool:
    """Whether wheels of a lock could not be had when they were last asked for."""
    return recall("unobtainable", _content(lock)) is True


def _content(lock: Lock) -> str:
    """Name the wheels of a lock and where they are to be had."""
    places = "".join(f"{one.sha256} {one.url or one.path}\n" for one in lock.artifacts())
    return hashlib.sha256(places.encode()).hexdigest()
