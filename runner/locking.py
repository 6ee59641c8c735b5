"""Which lock each host gets: one for each distinct target, made once and remembered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import envsync
from envsync import cuda
from envsync.artifacts import SCHEMA
from envsync.errors import BuildError, EnvsyncError, UnfitHostError
from envsync.hooks import Hooks
from envsync.store import recall, remember
from envsync.target import Target, version_numbers
from envsync.unobtainable import is_unobtainable, mark_unobtainable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.runner.session import Session
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.stores.pulling import Pulled
    from envsync.trees import Manifest

__all__ = [
    "Locks",
    "demand_driver",
    "demand_fit",
    "known_lock",
    "lock_anew",
    "lock_for",
    "read_lock",
    "say_again",
    "target_for",
    "target_of",
]


def read_lock(wanted: Lock | Pulled | str | os.PathLike[str] | None) -> Lock | Pulled | None:
    """Read what a user asks for: a lock's file, or an environment in a store (``s3://bucket/team#name``).

    Raises
    ------
    LockError, StoreError
        It cannot be read, or is not there.
    """
    if isinstance(wanted, str):
        from envsync.stores import is_store

        if is_store(wanted):
            from envsync.stores.pulling import pull_from

            return pull_from(wanted)
    if not isinstance(wanted, (str, os.PathLike)):
        return wanted
    from envsync.lock import Lock

    return Lock.read(wanted)


def target_of(session: Session, snapshot: Snapshot) -> Target:
    """Return what to lock for: the client's own target where the host can run what is locked for it.

    The host's driver is a part of it where its lock differs by it, and only there.
    """
    return target_for(session.facts, snapshot)


def target_for(facts: Mapping[str, Any], snapshot: Snapshot) -> Target:
    """Return what to lock for, for a host of which these are the facts. See `target_of`."""
    python = snapshot.interpreter
    there = Target.from_probe(facts, python=python.version, implementation=python.implementation)
    target = snapshot.target if there.covers(snapshot.target) else replace(there, accelerators=())
    driver = cuda.driver_of(there)
    if not driver or driver == cuda.driver_of(snapshot.target):
        return target
    packages = [(one.name, one.version) for one in snapshot.winners]
    return replace(target, accelerators=there.accelerators) if cuda.concerned(packages, driver) else target


class Locks:
    """The locks of one cluster: one for each distinct target, made once, however many hosts ask for it.

    Parameters
    ----------
    hooks : Hooks, optional
        Told what is locked, whoever asks; who asks if not given.

    Attributes
    ----------
    snapshot : Snapshot or None
        What all are made from, as soon as somebody has looked.
    expected : Target or None
        What was locked for before any host was there to be probed.
    """

    def __init__(self, hooks: Hooks | None = None) -> None:
        self.hooks = hooks
        self.snapshot: Snapshot | None = None
        self.expected: Target | None = None
        self._made: dict[Target, asyncio.Future[Lock]] = {}

    async def of(self, target: Target, make: Callable[[Target], Awaitable[Lock]]) -> Lock:
        """Return the lock for a target; `make` is called by who asks first."""
        made = self._made.get(target)
        if made is None or (made.done() and made.exception() is not None):
            made = self._made[target] = asyncio.ensure_future(make(target))
        return await asyncio.shield(made)

    def ahead(self) -> Lock | None:
        """Return the lock that was made for what is expected, as long as no host was seen to be that."""
        made = self._made.get(self.expected) if self.expected is not None else None
        return made.result() if made is not None and made.done() and not made.exception() else None

    def confirm(self, target: Target, where: str, hooks: Hooks) -> None:
        """Tell, once, that a host is not what was expected, if so: it is locked for anew."""
        expected, self.expected = self.expected, None
        if expected is not None and target != expected:
            hooks.note(
                where, f"it is {target.describe()}, and {expected.describe()} was expected: locked anew"
            )

    def forget(self) -> None:
        """Have all made anew that are asked for from now on."""
        self._made.clear()


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

    What was said when that lock was made is said again: nothing is left out in silence.

    Parameters
    ----------
    snapshot, target, store, settings, allow_substitutes, hooks
        As for `envsync.resolve.resolve`.
    """
    hooks = hooks or Hooks()
    key = _lock_key(snapshot, target, settings, allow_substitutes)
    lock, said = _known(recall("locks", key) if key else None, snapshot, store)
    if lock is not None and is_unobtainable(lock):
        hooks.note("here", "wheels of the lock that was made before could not be had: it is made again")
    elif lock is not None:
        say_again(said, hooks)
        return lock
    return lock_anew(
        snapshot,
        target,
        store=store,
        settings=settings,
        allow_substitutes=allow_substitutes,
        hooks=hooks,
    )


def known_lock(
    snapshot: Snapshot, target: Target, *, settings: IndexSettings, allow_substitutes: bool = False
) -> tuple[str, list[tuple[str, str, str]]] | None:
    """Return the text of the lock that was made for the same before, and what was said then.

    It is not read, which takes longer than to find it, and nothing says that its wheels can still be had.

    Parameters
    ----------
    snapshot, target, settings, allow_substitutes
        As for `lock_for`.
    """
    key = _lock_key(snapshot, target, settings, allow_substitutes)
    kept: Any = recall("locks", key) if key else None
    try:
        if _files(kept["files"], snapshot) == kept["files"]:
            return str(kept["lock"]), kept["said"]
    except (KeyError, TypeError):  # there is none, or it is damaged
        pass
    return None


def say_again(said: Sequence[tuple[str, str, str]], hooks: Hooks) -> None:
    """Tell what was told when a lock was made."""
    for severity, where, text in said:
        (hooks.warning if severity == "warning" else hooks.note)(where, text)


def lock_anew(
    snapshot: Snapshot,
    target: Target,
    *,
    store: Store,
    settings: IndexSettings,
    manifests: Sequence[Manifest] = (),
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> Lock:
    """Lock a snapshot for a target, whatever was locked before, and remember that for `lock_for`.

    Parameters
    ----------
    snapshot, target, store, settings, manifests, allow_substitutes, hooks
        As for `envsync.resolve.resolve`.
    """
    from envsync.resolve import resolve

    began = time.time()
    listener = _Listener(hooks or Hooks())
    lock = resolve(
        snapshot,
        target,
        store=store,
        settings=settings,
        manifests=manifests,
        allow_substitutes=allow_substitutes,
        hooks=listener,
    )
    key = _lock_key(snapshot, target, settings, allow_substitutes)
    files = _files(_local(lock), snapshot, since=began)
    if key and None not in files.values():
        remember("locks", key, {"lock": lock.dumps(), "files": files, "said": listener.said})
        mark_unobtainable(lock, False)
    return lock


class _Listener(Hooks):
    """Passes everything on, and keeps what a person should know."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.said: list[tuple[str, str, str]] = []
        self.step = hooks.step  # type: ignore[method-assign]
        self.progress = hooks.progress  # type: ignore[method-assign]
        self.done = hooks.done  # type: ignore[method-assign]
        self.failed = hooks.failed  # type: ignore[method-assign]

    def note(self, where: str, text: str) -> None:
        self.said.append(("note", where, text))
        self._hooks.note(where, text)

    def warning(self, where: str, text: str) -> None:
        self.said.append(("warning", where, text))
        self._hooks.warning(where, text)


def _known(kept: Any, snapshot: Snapshot, store: Store) -> tuple[Lock | None, list[tuple[str, str, str]]]:
    """Return a remembered lock and what was said of it, if it is still what would be made."""
    from envsync.lock import Lock

    if not isinstance(kept, dict):
        return None, []
    with contextlib.suppress(EnvsyncError):
        lock = Lock.loads(kept["lock"], source="a lock in the cache", dumped=True).without_trees()
        local = {artifact.sha256 for artifact in lock.artifacts() if artifact.path is not None}
        if len(store.has(local)) == len(local) and _files(_local(lock), snapshot) == kept["files"]:
            return lock, kept["said"]
    return None, []


def _local(lock: Lock) -> set[str]:
    """Return the packages of which a lock has local wheels."""
    return {artifact.name for artifact in lock.artifacts() if artifact.path is not None}


def _files(
    local: Collection[str], snapshot: Snapshot, *, since: float | None = None
) -> dict[str, str | None]:
    """Name the installed files of packages with local wheels: these ship as they are, edited or not."""
    if not local:
        return {}
    from envsync.wheels import files_key

    files: dict[str, str | None] = {}
    for one in snapshot.winners:
        if one.name in local and not one.editable:
            files[one.name] = None
            with contextlib.suppress(BuildError):  # where that matters, the wheel's making raises it
                files[one.name] = files_key(one, snapshot, since=since)
    return files


def _lock_key(
    snapshot: Snapshot, target: Target, settings: IndexSettings, allow_substitutes: bool
) -> str | None:
    """Everything that a lock depends on, hashed; None where that is not known without building."""
    from importlib.metadata import version

    in_trees = {tree.distribution for tree in snapshot.source_trees}
    if any(each.editable and each.name not in in_trees for each in snapshot.winners):
        return None  # a wheel is built from a project folder, whose files the snapshot does not see
    places = [
        [place.name, place.url, place.default, place.explicit]
        for place in (*settings.indexes, *settings.find_links)
    ]
    essentials = [
        *(SCHEMA, version("uv"), envsync.__version__, snapshot.digest, target.to_dict(), places),
        *(settings.no_index, settings.strategy, sorted(settings.uv), settings.notes, allow_substitutes),
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
            from envsync.runner.hosts.carried import CarriedHost

            job = isinstance(session.host, CarriedHost)  # nobody reaches its node to lock for it
            raise UnfitHostError(
                f"it cannot run what was locked for {target.describe()}: it is {there.describe()}",
                where=session.host.name,
                hint="Ask for nodes like the login host (constraint=), or start from one like these."
                if job
                else f"Lock for it: envsync snapshot --for {session.host.name}",
            )


def demand_driver(session: Session, lock: Lock) -> None:
    """Raise if a host's NVIDIA driver does not run the CUDA that a lock brings. Hosts without one pass.

    Raises
    ------
    UnfitHostError
        With the package that asks for the newest driver.
    """
    gpus = [gpu for gpu in session.facts.get("gpus", ()) if gpu.get("driver")]
    if not gpus:
        return
    driver = min((str(gpu["driver"]) for gpu in gpus), key=version_numbers)
    # a compatibility package on the host makes the driver run more than its own version tells
    newest = min(version_numbers(str(gpu.get("cuda") or "0")) for gpu in gpus)
    there = Target.from_probe(session.facts, python=lock.target.python)
    packages = [(one.name, one.version) for one in lock.artifacts()]
    missing = [need for need in cuda.unmet(driver, packages) if need.cuda > newest]
    if missing:
        raise UnfitHostError(
            cuda.too_old(driver, missing[-1]),
            where=session.host.name,
            hint="Update the driver there, or lock for it, so that builds are taken that it runs:"
            f" envsync snapshot --for {there.uv_platform}+nvidia-{driver}",
        )
