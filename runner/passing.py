"""What the nodes of a cluster lack: sent once to the login host, and passed on from there, node to node."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envsync.errors import AgentError, ProcessDied, StartTimeout
from envsync.plugins.download import UNREACHABLE
from envsync.runner.timeouts import wait_for
from envsync.runner.tls import Authority

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.session import Session

__all__ = ["FromFolder", "Passing"]

_AT_ONCE = 8  # blobs on their way to one node
_SLOTS = 4  # nodes that one node gives to at the same time; the login host gives to one
_PATIENCE = 120.0  # seconds that a node waits for its turn; the login host gives it all then
_UP = 30.0  # seconds that a server has to come up
_ADDRESSES = 3  # of a host that are tried
_FOLDER_AT_ONCE = 4


@dataclass(eq=False)
class _Holder:
    """A host that has blobs."""

    session: Session
    slots: int
    held: set[str] = field(default_factory=set)
    busy: int = 0
    bases: list[str] | None = None  # where it gives them; None before it was asked to
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Passing:
    """Gives nodes what they lack: a `Giver`.

    The login host is given what it lacks itself, once. It gives to one node at a time, and nodes that have
    something give it to others. What a node gets from nobody is left to whoever asked.

    Parameters
    ----------
    first : Session
        The login host's.
    lock : Lock
        Whose wheels are collected where they are nowhere yet.
    cluster : str
        Names the run folders of the servers.
    interface : str, optional
        The login host's address on the nodes' network, if it does not know it by itself.
    hooks : Hooks
        Told who did not give what.

    Attributes
    ----------
    given : dict of str to int
        Bytes that each host gave to others, by its name.
    """

    def __init__(
        self, first: Session, lock: Lock, *, cluster: str, interface: str | None = None, hooks: Hooks
    ) -> None:
        self.given: dict[str, int] = {}
        self._first = first
        self._lock = lock
        self._cluster = cluster
        self._interface = interface
        self._hooks = hooks
        self._authority = Authority(f"{cluster} blobs")  # of these servers alone
        self._token = secrets.token_hex(32)
        self._origin = _Holder(first, 1)
        self._nodes: dict[Session, _Holder] = {}
        self._seeding = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._servers = 0

    async def take(self, session: Session, digests: Collection[str], what: str = "files") -> set[str]:
        """Have a node take blobs; see `Giver.take`."""
        await self.seed(digests, what)
        wanted, took = set(digests), set[str]()
        useless: set[_Holder] = set()
        began, size = time.monotonic(), 0
        own = self._nodes.setdefault(session, _Holder(session, _SLOTS))
        while rest := wanted - took:
            holder = await self._turn(own, rest, useless)
            if holder is None:
                break
            got: set[str] = set()
            try:
                got, more = await self._ask(holder, session, rest & holder.held, what)
                size += more
            finally:
                async with self._changed:
                    holder.busy -= 1
                    own.held |= got
                    self._changed.notify_all()
            took |= got
            if not (rest & holder.held) <= got:
                useless.add(holder)
        if took:
            text = f"took {what} from others: {len(took)}, {size / 1e6:.1f} MB"
            session.hooks.done(session.host.name, text, time.monotonic() - began)
        return took

    async def seed(self, digests: Collection[str], what: str = "files") -> None:
        """Have the login host have blobs: what it lacks is sent there, once."""
        async with self._seeding:
            unknown = set(digests) - self._origin.held
            if not unknown:
                return
            first = self._first
            lacking = set(await first.request("lacking", digests=sorted(unknown)))
            absent = lacking - await asyncio.to_thread(first.supply.store.has, lacking)
            if absent:
                from envsync.collect import collect

                supply = first.supply
                await collect(self._lock, supply.store, supply.settings, only=absent, hooks=self._hooks)
            if lacking:
                await first.send(lacking, what=what)
            self._origin.held |= unknown

    async def _turn(self, own: _Holder, rest: set[str], useless: set[_Holder]) -> _Holder | None:
        """Wait for somebody who has some of it and is free; None if there is nobody left."""
        until = time.monotonic() + _PATIENCE
        origin = self._origin
        async with self._changed:
            while True:
                able = [
                    holder
                    for holder in (origin, *self._nodes.values())
                    if holder not in useless and holder is not own and rest & holder.held
                    if holder.session.ended is None
                ]
                if not able:
                    return None
                nodes = [holder for holder in able if holder is not origin]
                free = [holder for holder in nodes or able if holder.busy < holder.slots]
                late = time.monotonic() > until
                if free or late:
                    best = max(free or able, key=lambda one: (len(rest & one.held), -one.busy))
                    chosen = best if free or origin not in able else origin
                    chosen.busy += 1
                    return chosen
                try:
                    await wait_for(self._changed.wait(), until - time.monotonic() + 0.01)
                except (TimeoutError, asyncio.TimeoutError):
                    continue

    async def _ask(
        self, holder: _Holder, session: Session, digests: set[str], what: str
    ) -> tuple[set[str], int]:
        """Have a node take blobs from one other host; return those that it has now, and the bytes."""
        giving, where = holder.session.host.name, session.host.name
        try:
            bases = await self._bases(holder)
        except (AgentError, ProcessDied, StartTimeout) as error:
            self._hooks.note(giving, f"it gives nothing to others: {error.message}")
            holder.held = set()
            return set(), 0
        session.hooks.step(where, f"taking {what} from {giving}")
        why = "it has no address"
        for base in tuple(bases):
            answer = await session.request(
                "fetch",
                watch=lambda event: session._tell(event),
                base=base,
                digests=sorted(digests),
                authority=self._authority.certificate,
                at_once=_AT_ONCE,
            )
            lacking = answer["lacking"]
            got, size = digests - set(lacking), int(answer["size"])
            self.given[giving] = self.given.get(giving, 0) + size
            if lacking:
                kind, why = next(iter(lacking.values()))
            if got or kind != UNREACHABLE:
                bases.remove(base)
                bases.insert(0, base)  # the others need not try what is not reached
                break
        if lacking:
            self._hooks.note(where, f"{giving} did not give it {len(lacking)} of {len(digests)} files: {why}")
        return got, size

    async def _bases(self, holder: _Holder) -> list[str]:
        """Return the addresses of a host's server, which is started when somebody asks for the first time."""
        async with holder.starting:
            if holder.bases is None:
                holder.bases = await self._serve(holder.session)
            return holder.bases

    async def _serve(self, session: Session) -> list[str]:
        known: Sequence[str] = session.facts.get("addresses") or ()
        chosen = [self._interface] if self._interface and session is self._first else known[:_ADDRESSES]
        if not chosen:
            raise AgentError("it knows no address of its own", where=session.host.name)
        credentials = self._authority.issue("worker", chosen)
        settings = {"cache": session.cache, "bind": "", "token": self._token, **credentials.config()}
        self._servers += 1
        remote = await session.spawn(
            f"blobs-{self._servers}",
            [session.python, "-I", "-S", session.agent, "share", "share.json"],
            files={**credentials.files(), "share.json": json.dumps(settings).encode()},
            cluster=self._cluster,
        )
        said = await remote.said(_UP)
        if "error" in said:
            raise AgentError(f"it cannot listen: {said['error']}", where=session.host.name)
        return [f"https://{_in_url(address)}:{said['port']}/{self._token}" for address in chosen]

    def forget(self, session: Session) -> None:
        """Ask a node no more that is gone."""
        self._nodes.pop(session, None)


class FromFolder:
    """Gives nodes what they lack from the login host's folder, which they see: a `Giver`.

    Parameters
    ----------
    passing : Passing
        Who has the folder have it, and gives what could not be read there.
    folder : str
        The login host's cache.
    """

    def __init__(self, passing: Passing, folder: str) -> None:
        self._passing = passing
        self._folder = folder

    async def take(self, session: Session, digests: Collection[str], what: str = "files") -> set[str]:
        """Have a node take blobs; see `Giver.take`."""
        await self._passing.seed(digests, what)
        asked = sorted(set(digests))
        answer = await session.request(
            "fetch",
            watch=lambda event: session._tell(event),
            folder=self._folder,
            digests=asked,
            at_once=_FOLDER_AT_ONCE,
        )
        took = set(asked) - set(answer["lacking"])
        if len(took) == len(asked):
            return took
        return took | await self._passing.take(session, sorted(set(asked) - took), what)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
