"""From a store to here: what another machine pushed, so that hosts can be given it without an index."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.stores import open_store, parse, records
from envsync.stores.working import each
from envsync.supply import Supply

if TYPE_CHECKING:
    from collections.abc import Collection

    from envsync.interpreter import InterpreterArchive
    from envsync.lock import Lock
    from envsync.store import Store
    from envsync.stores import SharedStore
    from envsync.stores.records import Push
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["Pulled", "StoredSupply", "fetch", "fetch_async", "pull", "pull_from"]

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An environment as it was pushed.

    Attributes
    ----------
    store : SharedStore
        Where its blobs are.
    push : Push
        The record.
    lock : Lock
        Its packages and references to its source trees.
    manifests : tuple of Manifest
        The source trees.
    """

    store: SharedStore
    push: Push
    lock: Lock
    manifests: tuple[Manifest, ...]


def pull_from(url: str) -> Pulled:
    """Read an environment from a store's URL with its name behind it: ``s3://bucket/team#analysis``."""
    where, wanted = parse(url)
    return pull(open_store(where), wanted)


def pull(store: SharedStore, wanted: str = "") -> Pulled:
    """Read what was pushed: the lock and the source trees. Blobs stay in the store until they are asked for.

    Parameters
    ----------
    store : SharedStore
        Where.
    wanted : str, optional
        A name: the last that was pushed under it; or 8 or more digits of a lock's digest. May be left out
        if all pushes have the same name.

    Raises
    ------
    StoreError
        There is no such push, or something is missing or spoilt.
    """
    push = records.read_push(store, _find(store, wanted))
    manifests = tuple(records.read_tree(store, digest) for digest in push.trees)
    lock = records.read_lock(store, push)
    lock = replace(lock, trees=tuple(manifest.reference() for manifest in manifests))
    return Pulled(store=store, push=push, lock=lock, manifests=manifests)


def fetch(
    store: SharedStore,
    digests: Collection[str],
    into: Store,
    *,
    hooks: Hooks | None = None,
    what: str = "files",
    stop: threading.Event | None = None,
) -> int:
    """Put blobs of a store into another, those that it lacks, each checked; return how many came.

    Parameters
    ----------
    store : SharedStore
        Where they are.
    digests : collection of str
        The blobs.
    into : Store
        Where they go.
    hooks : Hooks, optional
        Told about progress.
    what : str
        What they are, for the hooks.
    stop : threading.Event, optional
        Set by another thread: no more are begun.

    Raises
    ------
    CorruptBlobError
        One holds other bytes; its URL is named.
    StoreError
        One is not there.
    """
    lacking = sorted(set(digests) - into.has(digests))
    if not lacking:
        return 0
    hooks = hooks or Hooks()
    began, count, guard = time.monotonic(), 0, threading.Lock()
    hooks.step("here", f"getting {len(lacking)} {what} from {store.shown}")

    def one(digest: str) -> None:
        nonlocal count
        store.fetch(digest, into)
        with guard:
            count += 1
            hooks.progress("here", count, len(lacking), what)

    each(lacking, one, store.at_once, stop=stop)
    hooks.done("here", f"got {count} {what} from {store.shown}", time.monotonic() - began)
    return count


async def fetch_async(
    store: SharedStore, digests: Collection[str], into: Store, *, hooks: Hooks, what: str
) -> None:
    """Fetch, in a thread that ends when this is cancelled."""
    stop = threading.Event()
    try:
        await asyncio.to_thread(fetch, store, digests, into, hooks=hooks, what=what, stop=stop)
    finally:
        stop.set()


class StoredSupply(Supply):
    """A supply that gives hosts what was pushed with an environment, where that fits, and no index is asked.

    Parameters
    ----------
    pulled : Pulled
        The environment.
    supply : Supply
        Gives what was not pushed, or does not fit.
    """

    def __init__(self, pulled: Pulled, supply: Supply) -> None:
        super().__init__(supply.store, supply.settings, supply.snapshot, hooks=supply.hooks)
        self._pulled = pulled

    async def uv(self, target: Target) -> str:
        """Return the digest of the uv executable for a machine, a blob in the store."""
        uv = self._pulled.push.supplies.uv
        if uv is None or (uv.system, uv.machine) != (target.system, target.machine):
            return await super().uv(target)
        await self._fetch(uv.digest, "uv")
        return uv.digest

    async def interpreter(self, target: Target) -> InterpreterArchive:
        """Return an interpreter that runs on a target, as an archive in the store."""
        archive = self._pulled.push.supplies.python
        wanted = self._pulled.lock.target
        if archive is None or target.python != wanted.python or not target.covers(wanted):
            return await super().interpreter(target)
        await self._fetch(archive.digest, f"Python {archive.version}")
        return archive

    async def _fetch(self, digest: str, what: str) -> None:
        async with self._locks.setdefault(digest, asyncio.Lock()):
            await fetch_async(self._pulled.store, [digest], self.store, hooks=self.hooks, what=what)


def _find(store: SharedStore, wanted: str) -> str:
    """Return the file of the push that is asked for."""
    if wanted:
        files = records.pushes(store, wanted).get(wanted)
        if files:
            return files[0]
    every = records.pushes(store)
    if not wanted and len(every) == 1:
        (files,) = every.values()
        return files[0]
    if _DIGEST.fullmatch(wanted):
        for file in sorted((file for files in every.values() for file in files), key=_age, reverse=True):
            part = file.rpartition("/")[2].split("-")[1]
            if part.startswith(wanted[: len(part)]) and (
                len(wanted) <= len(part) or records.read_push(store, file).lock.startswith(wanted)
            ):
                return file
    names = ", ".join(sorted(every))
    if not every:
        raise StoreError(
            "nothing was pushed there",
            where=store.shown,
            hint=f"Is that the address? Push an environment: envsync push {store.shown}",
        )
    raise StoreError(
        f"there is no environment {wanted!r}" if wanted else f"there are several environments: {names}",
        where=store.shown,
        hint=f"Name one of {names} behind the URL: {store.shown}#{sorted(every)[0]}",
    )


def _age(file: str) -> str:
    return file.rpartition("/")[2]
