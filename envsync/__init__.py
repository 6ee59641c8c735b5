"""envsync: this Python environment, exactly, on every machine of a Dask cluster.

The names below load on first use, so that ``import envsync`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot, capture
    from envsync.target import Target

__version__ = "0.1.0"

_HOMES = {
    "EnvsyncError": "envsync.errors",
    "Lock": "envsync.lock",
    "Snapshot": "envsync.snapshot",
    "SyncEnvironment": "envsync.runner",
    "SyncedCluster": "envsync.runner",
    "Target": "envsync.target",
    "capture": "envsync.snapshot",
    "verify": "envsync.runner",
}

__all__ = [
    "EnvsyncError",
    "Lock",
    "Snapshot",
    "SyncEnvironment",
    "SyncedCluster",
    "Target",
    "capture",
    "verify",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
