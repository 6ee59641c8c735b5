"""What a running cluster lacks, as its scheduler is told of it: the State, and the blobs that it names."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import os
import secrets
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envsync.errors import ClusterError
from envsync.plugins.blobs import CHUNK
from envsync.plugins.survey import repairable
from envsync.store import size_of
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.indexes import IndexSettings
    from envsync.plugins.compare import Difference
    from envsync.runner.verifying import Asked
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.trees import Manifest

__all__ = [
    "hidden_trees",
    "lacking_packages",
    "make_state",
    "owner",
    "packages_for",
    "upload",
]

_AT_ONCE = 4  # blobs on their way to the scheduler

Packages = dict[str, dict[str, dict[str, Any]]]
"""By target and name: the wheel that is laid over what differs there."""


def owner(identity: str, client: str, roots: Iterable[str] = ()) -> dict[str, Any]:
    """Return who makes a cluster's environment true, for others to read, and from which folders of code."""
    return {
        "id": identity,
        "roots": list(roots),
        "client": client,
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.time(),
    }


def lacking_packages(asked: Iterable[Asked]) -> tuple[dict[str, set[str]], list[tuple[Asked, Difference]]]:
    """Return the distributions that differ, by target, and what of the differences nothing can mend.

    Parameters
    ----------
    asked : iterable of Asked
        With what `survey` answered.
    """
    from envsync.plugins.compare import Difference

    names: dict[str, set[str]] = {}
    beyond: list[tuple[Asked, Difference]] = []
    for one in asked:
        if one.foreign:
            beyond += [(one, difference) for difference in one.foreign]
        elif one.answer is not None:
            found, rest = repairable(one.answer["differences"])
            if found:
                names.setdefault(one.answer["target"], set()).update(found)
            beyond += [(one, Difference.from_dict(difference)) for difference in rest]
    return names, beyond


def hidden_trees(result: Mapping[str, Any]) -> set[str]:
    """Return the source trees that are there and are not what workers import: an installed copy hides them.

    Parameters
    ----------
    result : mapping
        What the scheduler answered.
    """
    return {
        difference["subject"]
        for entry in result["workers"].values()
        for difference in entry["differences"]
        if difference["kind"] == "source" and not entry["trouble"]
    }


async def packages_for(
    names: Mapping[str, set[str]],
    snapshot: Snapshot,
    *,
    store: Store,
    settings: IndexSettings,
    hooks: Hooks,
) -> Packages:
    """Lock what differs, for each target, and have the wheels in the store.

    Parameters
    ----------
    names : mapping of str to set of str
        Distributions, by target.
    snapshot : Snapshot
        What is installed here.
    store, settings, hooks
        As for `envsync.resolve.resolve`.

    Raises
    ------
    EnvsyncError
        As `envsync.resolve.resolve` and `envsync.collect.collect`.
    """
    from envsync.collect import collect
    from envsync.runner.locking import lock_for

    packages: Packages = {}
    for text, wanted in sorted(names.items()):
        part = replace(
            snapshot,
            distributions=tuple(one for one in snapshot.winners if one.name in wanted and not one.editable),
            source_trees=(),
        )
        lock = await asyncio.to_thread(
            lock_for, part, target_of_process(text, snapshot), store=store, settings=settings, hooks=hooks
        )
        artifacts = [one for one in lock.artifacts() if one.name in wanted]
        await collect(lock, store, settings, only=[one.sha256 for one in artifacts], hooks=hooks)
        packages[text] = {
            one.name: {
                "version": one.version,
                "sha256": one.sha256,
                "filename": one.filename,
                "size": size_of(store, one.sha256),
            }
            for one in artifacts
        }
    return packages


def target_of_process(text: str, snapshot: Snapshot) -> Target:
    """Return the target that a survey named: the client's own where that runs there too."""
    implementation, _, system, machine, *libc = text.split("-")
    there = Target(
        python=snapshot.interpreter.version,
        implementation=implementation,
        system=system,
        machine=machine,
        libc=(libc[0], libc[1]) if len(libc) == 2 else None,
    )
    return snapshot.target if there.covers(snapshot.target) else there


def make_state(
    wanted: Mapping[str, Any],
    packages: Packages,
    manifests: Sequence[Manifest],
    *,
    on_mismatch: str,
    owner: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the scheduler is told; see docs/internals-existing.md."""
    state: dict[str, Any] = {
        "wanted": dict(wanted),
        "packages": packages,
        "trees": [manifest.to_dict() for manifest in manifests],
        "on_mismatch": on_mismatch,
    }
    essentials = {
        "wanted": [
            sorted([one["name"], one["version"], one.get("record")] for one in wanted["distributions"]),
            wanted["interpreter"]["version"],
            wanted.get("trees"),
        ],
        "packages": packages,
        "trees": [manifest.digest for manifest in manifests],
        "on_mismatch": on_mismatch,
    }
    text = json.dumps(essentials, sort_keys=True, default=str)
    return {**state, "digest": hashlib.sha256(text.encode()).hexdigest(), "owner": dict(owner)}


async def upload(scheduler: Any, digests: Sequence[str], store: Store, hooks: Hooks) -> int:
    """Send blobs to the scheduler, in chunks.

    Parameters
    ----------
    scheduler : rpc
        Of which the Hub is a plugin.
    digests : sequence of str
        What it lacks.
    store : Store
        Where they are.
    hooks : Hooks
        Told how much has gone.

    Returns
    -------
    int
        How many bytes were sent.
    """
    if not digests:
        return 0
    total = sum(size_of(store, digest) for digest in digests)
    began, sent = time.monotonic(), 0
    what = f"{len(digests)} file{'s' * (len(digests) > 1)}"
    hooks.step("cluster", f"sending {what}")
    slots = asyncio.Semaphore(_AT_ONCE)
    token = secrets.token_hex(8)  # somebody else may send the same at the same time

    async def one(digest: str) -> None:
        nonlocal sent
        async with slots:
            with await asyncio.to_thread(store.open, digest) as stream:
                offset, last = 0, False
                while not last:
                    data = await asyncio.to_thread(stream.read, CHUNK)
                    last = len(data) < CHUNK
                    answer = await scheduler.envsync_put(
                        sha256=digest, offset=offset, data=data, last=last, upload=token
                    )
                    if answer.get("refused"):
                        raise ClusterError(f"the scheduler did not take a file: {answer['refused']}")
                    offset += len(data)
                    sent += len(data)
                    hooks.progress("cluster", sent, total, "B")

    tasks = [asyncio.ensure_future(one(digest)) for digest in digests]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    hooks.done("cluster", f"sent {what}, {sent / 1e6:.1f} MB", time.monotonic() - began)
    return sent
