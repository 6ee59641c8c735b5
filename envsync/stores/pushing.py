"""From here into a store: what it lacks, and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import platform
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.store import size_of
from envsync.stores import records
from envsync.stores.records import Push, Supplies
from envsync.stores.working import each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.lock import Lock
    from envsync.store import Store
    from envsync.stores import SharedStore
    from envsync.trees import Manifest

__all__ = ["Pushed", "push"]

_YOUNG = 24 * 3600.0  # seconds: an unchanged environment is recorded again when its last record is older


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did.

    Attributes
    ----------
    record : Push
        What others start from; made by this push, or found.
    sent, size : int
        How many blobs were sent, and their bytes.
    there, there_size : int
        How many were there already, and their bytes.
    new : bool
        Whether the record is this push's own: False for an environment that was there, whole and recorded.
    seconds : float
    """

    record: Push
    sent: int
    size: int
    there: int
    there_size: int
    new: bool
    seconds: float


def push(
    lock: Lock,
    manifests: Sequence[Manifest],
    source: Store,
    store: SharedStore,
    *,
    name: str = "",
    supplies: Supplies | None = None,
    hooks: Hooks | None = None,
) -> Pushed:
    """Put an environment into a store: its lock, wheels, source trees, and what bare hosts need.

    The record of the push is written last, so that nobody finds an environment that is not whole. A push
    that was interrupted is taken up where it ended.

    Parameters
    ----------
    lock : Lock
        The packages.
    manifests : sequence of Manifest
        The source trees, in the order in which they are imported from.
    source : Store
        Holds all blobs.
    store : SharedStore
        Where they go.
    name : str, optional
        What others ask for; the lock's if not given.
    supplies : Supplies, optional
        What bare hosts are given, blobs in `source` too.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    StoreError
        Something is not in `source`, or the store cannot be read or written.
    """
    began, hooks = time.monotonic(), hooks or Hooks()
    text = lock.without_trees().dumps().encode()
    record = Push(
        name=name or lock.name,
        lock=lock.digest,
        text=hashlib.sha256(text).hexdigest(),
        trees=tuple(manifest.digest for manifest in manifests),
        supplies=supplies or Supplies(),
        target=lock.target.describe(),
        user=_user(),
        host=platform.node(),
    )
    documents = {records.lock_file(record.lock, record.text): text}
    documents |= {
        records.tree_file(manifest.digest): records.to_json(manifest.to_dict()) for manifest in manifests
    }
    sizes = _sizes(records.blobs_of(record, lock, manifests), source)
    record = replace(record, size=sum(sizes.values()))

    known = _newest(store, record.name)
    same = known is not None and known.content == record.content
    new = known is None or not same or known.time < time.time() - _YOUNG
    lacking = sizes.keys() - store.has(sizes) if not new else set(sizes)
    if known is not None and not lacking and _written(documents, store):
        record = known
    else:
        new = True
        mark = records.begin(store, documents, sizes)
        try:
            records.wait_for_sweepers(store, mark, hooks)
            lacking = sizes.keys() - store.has(sizes)  # from now on gc leaves them alone
            _send(sorted(lacking, key=lambda digest: -sizes[digest]), sizes, source, store, hooks)
            for file, data in documents.items():
                store.write(file, data)
            record = record.write(store)
        finally:
            with contextlib.suppress(StoreError):
                store.remove(mark)
    size = sum(sizes[digest] for digest in lacking)
    done = Pushed(
        record=record,
        sent=len(lacking),
        size=size,
        there=len(sizes) - len(lacking),
        there_size=record.size - size,
        new=new,
        seconds=time.monotonic() - began,
    )
    what = f"sent {len(lacking)} of {len(sizes)} files" if lacking else "nothing to send"
    hooks.done(store.shown, what, done.seconds)
    return done


def _send(
    lacking: Sequence[str], sizes: dict[str, int], source: Store, store: SharedStore, hooks: Hooks
) -> None:
    """Send blobs, the largest first."""
    if not lacking:
        return
    total, done, guard = sum(sizes[digest] for digest in lacking), 0, threading.Lock()
    hooks.step(store.shown, f"sending {len(lacking)} files, {total / 1e6:.1f} MB")

    def one(digest: str) -> None:
        nonlocal done
        path = source.path(digest)
        if path is not None:
            store.put(path, digest)
        else:
            with source.open(digest) as file:
                store.put(file.read(), digest)
        with guard:
            done += sizes[digest]
            hooks.progress(store.shown, done, total, "B")

    each(lacking, one, store.at_once)


def _written(documents: dict[str, bytes], store: SharedStore) -> bool:
    """Whether a store has these records, as they are to be."""

    def one(file: str) -> None:
        if store.read(file) != documents[file]:
            raise StoreError(f"{file} is spoilt", where=store.shown)

    try:
        each(documents, one, store.at_once)
    except StoreError:
        return False
    return True


def _sizes(digests: set[str], source: Store) -> dict[str, int]:
    lacking = digests - source.has(digests)
    if lacking:
        raise StoreError(
            f"{len(lacking)} blobs of the environment are not here, {min(lacking)} among them",
            hint="Make the lock again on the machine whose environment it describes (envsync snapshot).",
        )
    return {digest: size_of(source, digest) for digest in digests}


def _newest(store: SharedStore, name: str) -> Push | None:
    """Return the last push of a name, or None; one that cannot be read is as none."""
    for files in records.pushes(store, name).values():
        with contextlib.suppress(StoreError):
            return records.read_push(store, files[0])
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
