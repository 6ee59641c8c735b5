"""What becomes of a store: what is in it, what nobody needs, what is damaged."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from envsync.errors import CorruptBlobError, StoreError
from envsync.hooks import Hooks
from envsync.store import EMPTY, blob_name
from envsync.stores import records
from envsync.stores.working import each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envsync.stores import Entry, SharedStore
    from envsync.stores.records import Push

__all__ = ["Damage", "Swept", "gc", "pushes", "verify"]

T = TypeVar("T")

_GRACE = 24 * 3600.0  # seconds: what is younger may belong to a push that is under way
_MISSING = "it is missing"
_BATCH = 200  # removals between two looks at who has begun to push


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What `gc` removed, or would.

    Attributes
    ----------
    pushes, environments, trees, blobs : int
        How many.
    size : int
        Bytes of the blobs.
    uploads : int
        Unfinished writes.
    """

    pushes: int
    environments: int
    trees: int
    blobs: int
    size: int
    uploads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Something that is not in a store as it should be.

    Attributes
    ----------
    name : str
        In the store.
    why : str
    pushes : tuple of str
        The files of the pushes that need it; none: nobody does.
    """

    name: str
    why: str
    pushes: tuple[str, ...] = ()


def pushes(store: SharedStore, troubles: list[StoreError] | None = None) -> list[Push]:
    """Return all pushes, by name, each name's newest first.

    Parameters
    ----------
    store : SharedStore
        Which.
    troubles : list of StoreError, optional
        What cannot be read is added to it, and the others are returned; without it that is raised.
    """
    files = [file for _, listed in sorted(records.pushes(store).items()) for file in listed]
    found: dict[str, Push] = {}

    def one(file: str) -> None:
        try:
            found[file] = records.read_push(store, file)
        except StoreError as error:
            if troubles is None:
                raise
            troubles.append(error)

    each(files, one, store.at_once)
    return [found[file] for file in files if file in found]


def gc(
    store: SharedStore,
    *,
    keep: int = 3,
    older: float = 30 * 24 * 3600.0,
    dry_run: bool = False,
    hooks: Hooks | None = None,
) -> Swept:
    """Remove pushes that are old, and what no push needs any more.

    What is younger than a day stays, and what a push that is under way relies on: pushing goes on meanwhile.

    Parameters
    ----------
    store : SharedStore
        Which.
    keep : int
        How many pushes of each name stay, whatever their age; at least 1.
    older : float
        Seconds; younger pushes stay too.
    dry_run : bool
        Count only.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    StoreError
        There are no pushes, or one of those that stay cannot be read: nothing is removed then.
    """
    hooks = hooks or Hooks()
    began = time.monotonic()
    hooks.step(store.shown, "looking for what nobody needs")
    demanded, now = _demanded(store), records.clock(store)
    gone = {
        file
        for files in demanded.values()
        for file in files[max(1, keep) :]
        if (records.time_of(file) or now) < now - older
    }
    roots = _Roots(store, now)
    roots.look(without=gone)
    lists = {kind: store.entries(kind) for kind in ("environments", "trees", "blobs")}
    removed = {
        kind: [
            entry
            for entry in entries
            if entry.name not in roots.names and (entry.modified or now) < now - _GRACE
        ]
        for kind, entries in lists.items()
    }
    uploads = 0
    if not dry_run:
        for file in sorted(gone):  # first: nobody may find a push whose blobs go
            store.remove(file)
        for kind, entries in removed.items():
            removed[kind] = _remove(store, entries, roots, gone, hooks)
        for entry in [*store.entries("pushing"), *store.entries("sweeping")]:
            if (entry.modified or now) < now - _GRACE:
                store.remove(entry.name)
        uploads = store.sweep(now - _GRACE)
    hooks.done(store.shown, "looked for what nobody needs", time.monotonic() - began)
    return Swept(
        pushes=len(gone),
        environments=len(removed["environments"]),
        trees=len(removed["trees"]),
        blobs=len(removed["blobs"]),
        size=sum(entry.size for entry in removed["blobs"]),
        uploads=uploads,
    )


def verify(store: SharedStore, *, remove: bool = False, hooks: Hooks | None = None) -> list[Damage]:
    """Read everything that a store holds, and compare it with its name.

    What is there and cannot be read (no network, no permission) ends it: nobody knows whether that is
    damaged, and nothing is removed.

    Parameters
    ----------
    store : SharedStore
        Which.
    remove : bool
        Remove blobs and records that are damaged, so that the next push sends them again.
    hooks : Hooks, optional
        Told about progress.

    Returns
    -------
    list of Damage
        Sorted by name; what is missing is there too.

    Raises
    ------
    StoreError
        Something cannot be read.
    """
    hooks = hooks or Hooks()
    began, guard = time.monotonic(), threading.Lock()
    damages: dict[str, str] = {}
    needed: dict[str, set[str]] = {}
    hooks.step(store.shown, "reading everything")
    for files in records.pushes(store).values():
        for file in files:
            _needs(store, file, needed, damages)
    entries = store.entries("blobs")
    done = 0

    def one(entry: Entry) -> None:
        nonlocal done
        why = _damage(store, entry)
        with guard:
            if why:
                damages[entry.name] = why
            done += 1
            hooks.progress(store.shown, done, len(entries), "blobs")

    each(entries, one, store.at_once)
    there = {entry.name for entry in entries}
    damages |= {name: _MISSING for name in needed if name.startswith("blobs/") and name not in there}
    if remove:
        for name, why in damages.items():
            if why != _MISSING:
                store.remove(name)
    hooks.done(store.shown, f"read {len(entries)} blobs", time.monotonic() - began)
    return [
        Damage(name=name, why=why, pushes=tuple(sorted(needed.get(name, ()))))
        for name, why in sorted(damages.items())
    ]


class _Roots:
    """What must stay: the names of records and blobs that pushes need, read as far as they are known."""

    def __init__(self, store: SharedStore, now: float) -> None:
        self.names: set[str] = set()
        self._store = store
        self._ahead = now - time.monotonic()
        self._read: set[str] = set()

    def look(self, without: Iterable[str]) -> None:
        """Read what was not read yet."""
        now = self._ahead + time.monotonic()
        for entry in self._store.entries("pushing"):
            if entry.name not in self._read and (entry.modified or now) >= now - _GRACE:
                self._read.add(entry.name)
                try:
                    documents, blobs = records.begun(self._store, entry)
                except CorruptBlobError:
                    raise
                except StoreError:
                    continue  # that push has ended meanwhile, and its record is there
                self.names |= documents | blobs
        # after them: a push that ends meanwhile has its record here before it takes its mark away
        files = [file for files in records.pushes(self._store).values() for file in files]
        each(set(files) - self._read - set(without), self._push, self._store.at_once)

    def _push(self, file: str) -> None:
        push = records.read_push(self._store, file)
        lock = records.read_lock(self._store, push)
        manifests = [records.read_tree(self._store, digest) for digest in push.trees]
        self.names |= push.documents | set(map(blob_name, records.blobs_of(push, lock, manifests)))
        self._read.add(file)


def _demanded(store: SharedStore) -> dict[str, list[str]]:
    found = records.pushes(store)
    if not found:
        raise StoreError(
            "nothing was pushed there: nothing is removed",
            where=store.shown,
            hint="Is that the address of a store? A cache folder is none; remove folders by hand.",
        )
    return found


def _remove(
    store: SharedStore, entries: list[Entry], roots: _Roots, gone: set[str], hooks: Hooks
) -> list[Entry]:
    """Remove what is still not needed; return what was."""
    removed: list[Entry] = []
    for start in range(0, len(entries), _BATCH):
        with records.sweeping(store):
            roots.look(without=gone)
            batch = [entry for entry in entries[start : start + _BATCH] if entry.name not in roots.names]
            each([entry.name for entry in batch], store.remove, store.at_once)
        removed += batch
        hooks.progress(store.shown, start + len(batch), len(entries), "files")
    return removed


def _needs(store: SharedStore, file: str, needed: dict[str, set[str]], damages: dict[str, str]) -> None:
    """Note what a push needs, as far as it can be read."""

    def read(name: str, reader: Callable[[], T]) -> T | None:
        try:
            return reader()
        except StoreError as error:
            damages[name] = _why(store, name, error)
            needed.setdefault(name, set()).add(file)
            return None

    push = read(file, lambda: records.read_push(store, file))
    if push is None:
        return
    lock = read(records.lock_file(push.lock, push.text), lambda: records.read_lock(store, push))
    digests = push.supplies.digests | {one.sha256 for one in (lock.artifacts() if lock else ())}
    for digest in push.trees:
        tree = read(records.tree_file(digest), partial(records.read_tree, store, digest))
        digests |= {sha256 for _, sha256, _ in (tree.files if tree else ())}
    for digest in digests:
        needed.setdefault(blob_name(digest), set()).add(file)


def _damage(store: SharedStore, entry: Entry) -> str:
    """Read a blob; return what is the matter with it, or nothing."""
    digest = entry.name.rpartition("/")[2]
    try:
        expected = blob_name(digest)
    except StoreError as error:
        return f"it has not the name of a blob: {error.message}"
    if entry.name != expected:
        return "it lies in the wrong place"
    if not entry.size and digest != EMPTY:
        return "it is empty"
    try:
        store.open(digest).close()
    except StoreError as error:
        why = _why(store, entry.name, error)
        return "" if why == _MISSING else why  # removed since it was listed; missing if a push needs it
    return ""


def _why(store: SharedStore, name: str, error: StoreError) -> str:
    """Return what is the matter with what could not be read; raise if the error says nothing about it."""
    if isinstance(error, CorruptBlobError):
        return error.message
    if any(entry.name == name for entry in store.entries(name.rpartition("/")[0])):
        raise error
    return _MISSING
