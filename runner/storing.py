"""All of an environment, here: what a push into a store, or an image, is made of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from envsync.collect import collect
from envsync.errors import EnvsyncError, StoreError
from envsync.hooks import Hooks
from envsync.runner.local_code import look
from envsync.runner.locking import lock_for
from envsync.runner.telling import tell_findings
from envsync.store import default_store
from envsync.stores.pulling import Pulled, fetch_async
from envsync.stores.records import Supplies, Uv, blobs_of
from envsync.supply import Supply
from envsync.unobtainable import is_unobtainable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["Gathered", "gather"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """An environment whose blobs are all in one store.

    Attributes
    ----------
    lock : Lock
        The packages.
    manifests : tuple of Manifest
        The source trees.
    supplies : Supplies
        What bare hosts need besides.
    store : Store
        Where the blobs are.
    """

    lock: Lock
    manifests: tuple[Manifest, ...]
    supplies: Supplies
    store: Store


async def gather(
    snapshot: Snapshot,
    *,
    lock: Lock | Pulled | None = None,
    target: Target | None = None,
    store: Store | None = None,
    settings: IndexSettings,
    allow_substitutes: bool = False,
    supplies: bool = True,
    manifests: Sequence[Manifest] | None = None,
    hooks: Hooks | None = None,
) -> Gathered:
    """Have everything of an environment here: lock, wheels, local code, uv and an interpreter.

    Parameters
    ----------
    snapshot : Snapshot
        What to reproduce.
    lock : Lock or Pulled, optional
        The packages; made from the snapshot if not given. What was pulled is taken as it was pushed.
    target : Target, optional
        What to lock for; the snapshot's own if not given.
    store : Store, optional
        Where the blobs go; the cache if not given.
    settings : IndexSettings
        Where packages come from.
    allow_substitutes : bool
        Whether another version may stand in for one that has no wheel for the target.
    supplies : bool
        Whether uv and an interpreter are gathered too: images need neither, or find their own.
    manifests : sequence of Manifest, optional
        Local code, where the caller has looked at it, and told of it.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    EnvsyncError
        Something cannot be locked, built or had.
    """
    store, hooks = store or default_store(), hooks or Hooks()
    if isinstance(lock, Pulled):
        blobs = blobs_of(lock.push, lock.lock, lock.manifests)
        await fetch_async(lock.store, blobs, store, hooks=hooks, what="files")
        return Gathered(lock=lock.lock, manifests=lock.manifests, supplies=lock.push.supplies, store=store)
    if manifests is None:
        tell_findings(snapshot, hooks, locked=lock is not None)
        manifests = await asyncio.to_thread(look, snapshot, lock, store, hooks)

    async def locked() -> Lock:
        return await asyncio.to_thread(
            lock_for,
            snapshot,
            target or snapshot.target,
            store=store,
            settings=settings,
            allow_substitutes=allow_substitutes,
            hooks=hooks,
        )

    made = lock or await locked()
    try:
        await collect(made, store, settings, hooks=hooks)
    except StoreError:
        if lock is not None or not is_unobtainable(made):
            raise
        made = await locked()  # the one that was remembered names wheels that are gone
        await collect(made, store, settings, hooks=hooks)
    supply = Supply(store, settings, snapshot, hooks=hooks)
    others = await _supplies(made, supply, hooks) if supplies else Supplies()
    return Gathered(lock=made, manifests=tuple(manifests), supplies=others, store=store)


async def _supplies(lock: Lock, supply: Supply, hooks: Hooks) -> Supplies:
    """Return what hosts with nothing but a shell need; what cannot be had is told."""
    from importlib.metadata import version

    target = lock.target
    uv = await _or_tell(lambda: supply.uv(target), "uv", hooks)
    python = await _or_tell(lambda: supply.interpreter(target), f"Python {target.python}", hooks)
    return Supplies(
        uv=None
        if uv is None
        else Uv(version=version("uv"), system=target.system, machine=target.machine, digest=uv),
        python=python,
    )


async def _or_tell(ask: Callable[[], Awaitable[T]], what: str, hooks: Hooks) -> T | None:
    try:
        return await ask()
    except EnvsyncError as error:
        hooks.warning("here", f"hosts that have no {what} cannot start from the store alone: {error.message}")
        return None
