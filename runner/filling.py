"""What a store lacks is put there while machines boot: they take it from there, not over this link."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError
from envsync.runner.taking import SMALL
from envsync.store import size_of
from envsync.stores.working import each

if TYPE_CHECKING:
    from collections.abc import Collection

    from envsync.hooks import Hooks
    from envsync.store import Store
    from envsync.stores import SharedStore

__all__ = ["Filling"]

_AT_ONCE = 3  # few: what is half there when a machine is up is of no use yet
_LOOK = 0.05  # seconds
_PATIENCE = 120.0  # seconds that a machine waits for what is on its way; then it is sent


class Filling:
    """Puts blobs into a store, until it is told to begin no more. Nothing fails: what is not put is sent.

    Parameters
    ----------
    source : Store
        Holds the blobs.
    store : SharedStore
        Where they go, if it has addresses for machines to read from.
    hooks : Hooks
        Told about progress, and once why nothing can be put.

    Attributes
    ----------
    there : set of str
        What the store is known to have.
    """

    def __init__(self, source: Store, store: SharedStore, hooks: Hooks) -> None:
        self._source = source
        self._store = store
        self._hooks = hooks
        self._stopped = threading.Event()
        self._refused = False
        self.there: set[str] = set()
        self._coming: dict[str, threading.Event] = {}

    def put(self, digests: Collection[str]) -> None:
        """Put those there that it lacks, the smallest first; blocks until they are, or `stop`."""
        sizes = {digest: size_of(self._source, digest) for digest in self._source.has(digests)}
        wanted = sorted((one for one in sizes if sizes[one] >= SMALL), key=lambda one: sizes[one])
        if not wanted or self._refused or self._store.url(wanted[0]) is None:
            return
        where, began, done = self._store.shown, time.monotonic(), list[str]()

        def one(digest: str) -> None:
            if self._stopped.is_set():
                return
            arrived = self._coming[digest] = threading.Event()
            try:
                path = self._source.path(digest)
                assert path is not None  # a cache has files
                self._store.put(path, digest)
                self.there.add(digest)
                done.append(digest)
            finally:
                arrived.set()

        try:
            self.there |= self._store.has(wanted)
            lacking = [digest for digest in wanted if digest not in self.there]
            if not lacking:
                return
            total = sum(sizes[digest] for digest in lacking) / 1e6
            self._hooks.step(where, f"putting {len(lacking)} files there while machines boot, {total:.1f} MB")
            each(lacking, one, _AT_ONCE, stop=self._stopped)
        except EnvsyncError as error:
            if not self._refused:
                self._refused = True
                self._hooks.note(
                    "here", f"what {where} lacks is not put there, and machines are sent it: {error.message}"
                )
            return
        size = sum(sizes[digest] for digest in done) / 1e6
        self._hooks.done(
            where, f"put {len(done)} of {len(lacking)} files there, {size:.1f} MB", time.monotonic() - began
        )

    def stop(self) -> None:
        """Begin no more. What is under way goes on."""
        self._stopped.set()

    async def wait(self, digests: Collection[str]) -> None:
        """Wait for those that are on their way: the rest of one is less than all of it."""
        until = time.monotonic() + _PATIENCE
        coming = [self._coming[digest] for digest in digests if digest in self._coming]
        # no thread waits: it would keep whoever interrupts a start
        while time.monotonic() < until and not all(one.is_set() for one in coming):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
