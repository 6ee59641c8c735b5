"""The local code that goes along, packed as it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envsync.errors import StoreError
from envsync.runner.telling import tell_edited, tell_left_out

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.trees import Manifest

__all__ = ["look"]


def look(snapshot: Snapshot, lock: Lock | None, store: Store, hooks: Hooks) -> list[Manifest]:
    """Put local code as it is now into a store, and tell what does not ship.

    Parameters
    ----------
    snapshot : Snapshot
        Whose source trees.
    lock : Lock or None
        Only those that it names; all, if there is none yet.
    store : Store
        Where the files go.
    hooks : Hooks
        Told what is left out, and what was edited since it was locked.

    Raises
    ------
    StoreError
        The lock names source trees that are not here.
    """
    tell_edited(snapshot, hooks)
    manifests = _pack(snapshot, lock, store, hooks)
    tell_left_out(manifests, hooks)
    return manifests


def _pack(snapshot: Snapshot, lock: Lock | None, store: Store, hooks: Hooks) -> list[Manifest]:
    from envsync.trees import pack_all

    wanted = None if lock is None else {tree.name: tree for tree in lock.trees}
    packed = pack_all(snapshot, store, lambda tree: wanted is None or tree.name in wanted)
    lacking = set(wanted or ()) - {manifest.name for manifest in packed}
    if lacking:
        raise StoreError(
            f"the lock's source trees are not here: {', '.join(sorted(lacking))}",
            hint="Run envsync where they are importable, or lock again: envsync snapshot",
        )
    for manifest in packed:
        if wanted is not None and wanted[manifest.name].digest != manifest.digest:
            hooks.warning(
                "here",
                f"source tree {manifest.name} was edited since the lock was made; it goes as it is now",
            )
    return packed
