"""Which lock each host gets: one for each distinct target, made once and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError, UnfitHostError
from envsync.hooks import Hooks
from envsync.lock import SCHEMA, Lock
from envsync.store import recall, remember
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.indexes import IndexSettings
    from envsync.runner.session import Session
    from envsync.snapshot import Snapshot
    from envsync.store import Store

__all__ = ["demand_fit", "lock_for", "target_of"]


def target_of(session: Session, snapshot: Snapshot) -> Target:
    """Return what to lock for: the client's own target where the host can run what is locked for it."""
    python = snapshot.interpreter
    there = Target.from_probe(session.facts, python=python.version, implementation=python.implementation)
    return snapshot.target if there.covers(snapshot.target) else there


def lock_for(
    snapshot: Snapshot,
    target: Target,
    *,
    store: Store,
    settings: IndexSettings,
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> Lock:
    """Lock a snapshot for a target, or take the lock that was made for the same before.

    Parameters
    ----------
    snapshot, target, store, settings, allow_substitutes, hooks
        As for `envsync.resolve.resolve`.
    """
    hooks = hooks or Hooks()
    key = _lock_key(snapshot, target, settings, allow_substitutes)
    known = recall("locks", key) if key else None
    if isinstance(known, str):
        with contextlib.suppress(EnvsyncError):
            lock = Lock.loads(known, source="a lock in the cache")
            local = [artifact.sha256 for artifact in lock.artifacts() if artifact.path is not None]
            if len(store.has(local)) == len(set(local)):
                _repeat(lock, settings, hooks)
                return lock
    from envsync.resolve import resolve

    lock = resolve(
        snapshot,
        target,
        store=store,
        settings=settings,
        allow_substitutes=allow_substitutes,
        hooks=hooks,
    )
    if key:
        remember("locks", key, lock.dumps())
    return lock


def _repeat(lock: Lock, settings: IndexSettings, hooks: Hooks) -> None:
    """Say again what was said when the lock was made: nothing is left out in silence."""
    for note in settings.notes:
        hooks.note("here", note)
    for one in lock.excluded:
        hooks.note("here", f"{one.name} {one.version} is left out: {one.reason}")
    for other in lock.substitutions:
        hooks.warning(
            "here", f"{other.name} {other.locked} is locked in place of {other.installed}: {other.reason}"
        )


def _lock_key(
    snapshot: Snapshot, target: Target, settings: IndexSettings, allow_substitutes: bool
) -> str | None:
    """Everything that a lock depends on, hashed; None where that is not known without building."""
    from importlib.metadata import version

    in_trees = {tree.distribution for tree in snapshot.source_trees}
    if any(each.editable and each.name not in in_trees for each in snapshot.distributions):
        return None  # a wheel is built from a project folder, whose files the snapshot does not see
    places = [
        [place.name, place.url, place.default, place.explicit]
        for place in (*settings.indexes, *settings.find_links)
    ]
    essentials = [
        *(SCHEMA, version("uv"), version("dask-envsync"), snapshot.digest, target.to_dict(), places),
        *(settings.no_index, settings.strategy, sorted(settings.uv), allow_substitutes),
    ]
    text = json.dumps(essentials, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def demand_fit(sessions: Sequence[Session], target: Target) -> None:
    """Raise if a host cannot run what a lock is for.

    Raises
    ------
    UnfitHostError
        The first that cannot, with what it is.
    """
    for session in sessions:
        there = Target.from_probe(session.facts, python=target.python, implementation=target.implementation)
        if not there.covers(target):
            raise UnfitHostError(
                f"it cannot run what was locked for {target.describe()}: it is {there.describe()}",
                where=session.host.name,
                hint=f"Lock for it: envsync snapshot --for {session.host.name}",
            )
