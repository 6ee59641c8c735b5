"""The whole way for many hosts: capture, resolve, collect, realise, place, verify.

`prepare` is what `push`, `run` and `SyncedCluster` all call. Whatever can be known before a byte of the
environment is sent is known before: whether every host is reached, what each can run, which wheels it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from envsync.errors import EnvsyncError, MismatchError, StoreError
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.plugins.compare import ERROR, FATAL, NOTE, compare
from envsync.runner.hosts.local import Local
from envsync.runner.local_code import look
from envsync.runner.locking import Locks, demand_driver, demand_fit, lock_for, target_of
from envsync.runner.many import Meter, each, first_of
from envsync.runner.realising import few
from envsync.runner.session import Environment, Session
from envsync.runner.taking import Taking
from envsync.runner.telling import tell_findings
from envsync.store import default_store
from envsync.stores.pulling import Pulled, StoredSupply, fetch_async
from envsync.supply import Supply
from envsync.unobtainable import is_unobtainable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from envsync.indexes import IndexSettings
    from envsync.plugins.compare import Difference
    from envsync.runner.containers import Container, ImageName
    from envsync.runner.hosts.base import Host
    from envsync.runner.session import Lease
    from envsync.runner.taking import Giver
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.stores import SharedStore
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["LIMIT", "Mismatch", "Prepared", "prepare"]

LIMIT = 64
Mismatch = Literal["raise", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A host on which the environment is, verified.

    Attributes
    ----------
    session : Session
        Its agent; whoever has this closes it.
    lock : Lock
        The environment's, for this host's target.
    environment : Environment
        The lock, realised there.
    trees : tuple of (Manifest, str)
        The source trees and their folders there, in the order in which they are imported from.
    differences : tuple of Difference
        Between lock and host; those that were not worth an error.
    seconds : float
        From the first word to the last check.
    sent : int
        Bytes that went over the client's link.
    container : Container or None
        How to run from it, if it is in an image.
    """

    session: Session = field(repr=False)
    lock: Lock = field(repr=False)
    environment: Environment
    trees: tuple[tuple[Manifest, str], ...] = ()
    differences: tuple[Difference, ...] = ()
    seconds: float = 0.0
    sent: int = 0
    container: Container | None = field(default=None, repr=False)


async def prepare(
    hosts: Sequence[Host],
    *,
    snapshot: Snapshot | None = None,
    lock: Lock | Pulled | None = None,
    locks: Locks | None = None,
    image: ImageName | None = None,
    store: Store | None = None,
    shared: SharedStore | None = None,
    giver: Giver | None = None,
    settings: IndexSettings | None = None,
    cache: str | None = None,
    allow_substitutes: bool = False,
    on_mismatch: Mismatch = "raise",
    grace: float = 10.0,
    lease: Lease | None = None,
    hooks: Hooks | None = None,
    limit: int = LIMIT,
    cwd: str | None = None,
    manifests: Sequence[Manifest] | None = None,
) -> list[Prepared]:
    """Make the environment exist on hosts, and verify it there.

    Parameters
    ----------
    hosts : sequence of Host
        They stay open, also when this fails.
    snapshot : Snapshot, optional
        What to reproduce; the running environment if not given.
    lock : Lock or Pulled, optional
        What to realise; made from the snapshot, for each host's target, if not given. What was pulled comes
        from its store alone, its local code as well, and no index is asked.
    locks : Locks, optional
        What is locked from, and what was locked, in other calls for the same cluster.
    image : ImageName, optional
        What to run from instead: hosts pull it, and nothing is locked or made.
    store : Store, optional
        Where blobs are; the cache if not given.
    shared : SharedStore, optional
        What other machines take from it by themselves, if they lack it; the one that `lock` was pulled from
        if not given.
    giver : Giver, optional
        Who gives hosts what they lack instead, such as others of the same cluster.
    settings : IndexSettings, optional
        Where packages come from; this machine's if not given.
    cache : str, optional
        The cache folder on the hosts.
    allow_substitutes : bool
        Whether another version may stand in for one that has no wheel for a host.
    on_mismatch : {"raise", "warn"}
        What to do about an environment that is not what was locked, although it was just made, or made anew
        because something in it had changed.
    grace : float
        Seconds without a sign of life from here after which the agents end everything.
    lease : Lease, optional
        That of rented machines, which the agents renew.
    hooks : Hooks, optional
        Told about progress.
    limit : int
        How many hosts are worked on at the same time.
    cwd : str, optional
        A working directory whose code goes along; code on ``sys.path`` does anyhow.
    manifests : sequence of Manifest, optional
        Local code as it was packed before; as it is now if not given.

    Returns
    -------
    list of Prepared
        In the order of `hosts`. Their sessions are open.

    Raises
    ------
    MismatchError
        What is on a host is not what was locked.
    EnvsyncError
        The first failure of any host; those of others are its notes. All sessions are closed.
    """
    pulled = lock if isinstance(lock, Pulled) else None
    shared = shared or (pulled.store if pulled is not None else None)
    made = locks or Locks()
    work = _Work(
        snapshot=snapshot or made.snapshot,
        lock=lock.lock if isinstance(lock, Pulled) else lock,
        pulled=pulled,
        image=image is not None,
        store=store or default_store(),
        taking=giver or (Taking(shared, hooks or Hooks()) if shared is not None else None),
        settings=settings if settings is not None else await asyncio.to_thread(_read_settings),
        allow_substitutes=allow_substitutes,
        hooks=hooks or Hooks(),
        limit=max(1, limit),
        made=made,
    )
    if work.snapshot is None:
        work.snapshot = await asyncio.to_thread(_capture, cwd)
    made.snapshot = work.snapshot
    if image is None and manifests is None:
        tell_findings(work.snapshot, work.hooks, locked=lock is not None)
    work.supply = Supply(work.store, work.settings, work.snapshot, hooks=work.hooks)
    if pulled is not None:
        work.supply = StoredSupply(pulled, work.supply)
    looking = asyncio.ensure_future(work.look(image, manifests))  # while the hosts are connected to
    try:
        sessions = await work.open(hosts, cache=cache, grace=grace, lease=lease)
    except BaseException:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        raise
    try:
        code = await looking
        prepared = await (work.provide(sessions, code) if image is None else work.pull(sessions, image))
        _judge(prepared, on_mismatch, work.hooks)
    except BaseException:
        await _close(sessions)
        raise
    return prepared


@dataclass(slots=True)
class _Work:
    """One run of the pipeline."""

    snapshot: Snapshot | None
    lock: Lock | None
    store: Store
    settings: IndexSettings
    allow_substitutes: bool
    hooks: Hooks
    limit: int
    pulled: Pulled | None = None
    taking: Giver | None = None
    image: bool = False
    supply: Supply | None = None
    locks: Sequence[Lock] = ()
    made: Locks = field(default_factory=Locks)
    again: bool = False
    meters: dict[int, Meter] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    collecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(
        self, hosts: Sequence[Host], *, cache: str | None, grace: float, lease: Lease | None
    ) -> list[Session]:
        """Open a session on every host; on none if one fails, after all were tried."""
        supply = self.supply
        assert supply is not None
        # a machine that was just made
        ahead = self._first if lease is not None and self.taking is None and not self.image else None
        sessions: list[Session] = []

        async def one(host: Host) -> Session:
            meter = Meter(self.hooks)
            with self._telling(host):
                session = await Session.open(
                    host, cache=cache, grace=grace, lease=lease, supply=supply, hooks=meter, ahead=ahead
                )
            sessions.append(session)
            self.meters[id(session)] = meter
            return session

        try:
            opened = await each(hosts, one, self.limit, patient=True)
            failed = [result for result in opened if isinstance(result, BaseException)]
            if failed:
                raise first_of(failed)
        except BaseException:
            await _close(sessions)
            raise
        return [result for result in opened if isinstance(result, Session)]

    async def _first(self, target: Target) -> Collection[str]:
        """Return what a host that has nothing is sent: its wheels if they are few and known, else uv.

        Whether it is what was locked for, is seen later.
        """
        assert self.supply is not None
        lock = self.lock or self.made.ahead()
        if lock is not None and await asyncio.to_thread(few, lock, lock.target, self.store):
            return await asyncio.to_thread(self.store.has, {one.sha256 for one in lock.artifacts()})
        return {await self.supply.uv(target)}

    async def provide(self, sessions: Sequence[Session], manifests: Sequence[Manifest]) -> list[Prepared]:
        """Lock for each host, then make all environments."""
        try:
            return await self._provide(sessions, manifests)
        except StoreError as error:
            if not self._worth_a_new_lock(error):
                raise
            self.again = True
            self.made.forget()
        return await self._provide(sessions, manifests)

    def _worth_a_new_lock(self, error: EnvsyncError) -> bool:
        """Whether locks were remembered whose wheels are gone: `lock_for` makes these again."""
        ours = self.lock is None and not self.again
        return ours and isinstance(error, StoreError) and any(map(is_unobtainable, self.locks))

    async def _provide(self, sessions: Sequence[Session], manifests: Sequence[Manifest]) -> list[Prepared]:
        self.locks = locks = await self._locks(sessions, manifests)
        await self._interpreters(sessions, locks)
        pairs = list(zip(sessions, locks, strict=True))
        done = await each(pairs, lambda pair: self._one(*pair, manifests), self.limit)
        return [result for result in done if isinstance(result, Prepared)]

    @contextlib.contextmanager
    def _telling(self, host: Host) -> Iterator[None]:
        """Lay an error at the door of the host that it is about."""
        try:
            yield
        except EnvsyncError as error:
            error.where = error.where or host.name
            if not self._worth_a_new_lock(error):
                self.hooks.failed(host.name, error.message)
            raise

    async def look(
        self, image: ImageName | None = None, packed: Sequence[Manifest] | None = None
    ) -> list[Manifest]:
        """Have the local code in the store: as it is now, or as it was pushed, or packed already."""
        assert self.snapshot is not None
        if packed is not None:
            return list(packed)
        if image is not None:  # it is in there
            return []
        if self.pulled is None:
            return await asyncio.to_thread(look, self.snapshot, self.lock, self.store, self.hooks)
        files = {sha256 for manifest in self.pulled.manifests for _, sha256, _ in manifest.files}
        await fetch_async(self.pulled.store, files, self.store, hooks=self.hooks, what="source files")
        return list(self.pulled.manifests)

    async def pull(self, sessions: Sequence[Session], image: ImageName) -> list[Prepared]:
        """Have an image on all hosts."""
        from envsync.runner.containers import contained

        async def one(session: Session) -> Prepared:
            meter = self.meters[id(session)]
            with self._telling(session.host):
                found = await contained(session, image, meter)
                demand_driver(session, found.lock)
            return Prepared(
                session=session,
                lock=found.lock,
                environment=found.environment,
                trees=found.trees,
                differences=found.differences,
                seconds=time.monotonic() - self.began,
                sent=meter.sent,
                container=found.container,
            )

        done = await each(sessions, one, self.limit)
        return [result for result in done if isinstance(result, Prepared)]

    async def _locks(self, sessions: Sequence[Session], manifests: Sequence[Manifest]) -> list[Lock]:
        """Return each host's lock, one for each distinct target."""
        assert self.snapshot is not None
        refs = tuple(manifest.reference() for manifest in manifests)
        if self.lock is not None:
            demand_fit(sessions, self.lock.target)
            for session in sessions:
                demand_driver(session, self.lock)
            return [replace(self.lock, trees=refs)] * len(sessions)
        locks = []
        for session in sessions:
            with self._telling(session.host):
                target = target_of(session, self.snapshot)
                self.made.confirm(target, session.host.name, self.hooks)
                lock = await self.made.of(target, self._lock_for)
                if not isinstance(session.host, Local):  # there it is what is installed
                    demand_driver(session, lock)
            locks.append(replace(lock, trees=refs))
        return locks

    async def _lock_for(self, target: Target) -> Lock:
        assert self.snapshot is not None
        return await asyncio.to_thread(
            lock_for,
            self.snapshot,
            target,
            store=self.store,
            settings=self.settings,
            allow_substitutes=self.allow_substitutes,
            hooks=self.made.hooks or self.hooks,
        )

    async def _interpreters(self, sessions: Sequence[Session], locks: Sequence[Lock]) -> None:
        """Have ready what hosts without a fitting interpreter will need, before any environment is begun."""
        assert self.supply is not None
        for session, lock in zip(sessions, locks, strict=True):
            if not any(_same_minor(python, lock.target) for python in session.facts.get("pythons", ())):
                with self._telling(session.host):
                    await self.supply.interpreter(lock.target)

    async def _one(self, session: Session, lock: Lock, manifests: Sequence[Manifest]) -> Prepared:
        meter = self.meters[id(session)]

        async def fetch(digests: Collection[str]) -> None:
            from envsync.collect import collect

            async with self.collecting:  # whoever comes second finds them in the store
                if self.pulled is not None:
                    await fetch_async(self.pulled.store, digests, self.store, hooks=self.hooks, what="wheels")
                    return
                await collect(lock, self.store, self.settings, only=digests, hooks=self.hooks)

        here = isinstance(session.host, Local)
        session.taking = None if here else self.taking
        with self._telling(session.host):
            environment = await session.realise(
                lock,
                hooks=meter,
                fetch=fetch,
                online=self.pulled is None,
                environment=self.settings.uv_environment() if here else None,
            )
            folders = await session.place_trees(manifests)
        session.taking = None  # what comes later is new, and not there
        differences = compare(lock.report(), environment.report, where=session.host.name)
        return Prepared(
            session=session,
            lock=lock,
            environment=environment,
            trees=tuple(zip(manifests, folders, strict=True)),
            differences=tuple(differences),
            seconds=time.monotonic() - self.began,
            sent=meter.sent,
        )


def _same_minor(python: dict[str, Any], target: Target) -> bool:
    return (
        python.get("implementation", "cpython") == target.implementation
        and str(python.get("version", "")).split(".")[:2] == target.python.split(".")[:2]
    )


async def _close(sessions: Sequence[Session]) -> None:
    """Close all, also where one does not want to."""
    await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True)


def _judge(prepared: Sequence[Prepared], on_mismatch: Mismatch, hooks: Hooks) -> None:
    """Raise or tell what differs from the locks."""
    found = [(one.session.host.name, difference) for one in prepared for difference in one.differences]
    grave = [(name, difference) for name, difference in found if difference.severity in (FATAL, ERROR)]
    if grave and on_mismatch != "warn":
        raise MismatchError(
            f"the environment is not what was locked ({len(grave)} differences): {_worded(grave[0][1])}",
            where=", ".join(dict.fromkeys(name for name, _ in grave)),
            hint="Push the image again; on_mismatch='warn' goes on."
            if any(one.container is not None for one in prepared)
            else "Remove its folder there (envs/ in the cache) and try again; on_mismatch='warn' goes on.",
            differences=[difference for _, difference in found],
        )
    for name, difference in found:
        if difference.severity != NOTE:
            hooks.warning(name, _worded(difference))


def _worded(difference: Difference) -> str:
    there, wanted = difference.right or "nothing", difference.left or "nothing"
    text = f"{difference.kind} of {difference.subject}: {there} is there, {wanted} was locked"
    return f"{text}; {difference.advice}" if difference.advice else text


def _capture(cwd: str | None) -> Snapshot:
    from envsync.snapshot import capture

    return capture(cwd=cwd)


def _read_settings() -> IndexSettings:
    from envsync.indexes import read_settings

    return read_settings()
