"""The client side of one agent on one host: realise, place, spawn.

A `Session` owns its agent, and the agent owns all that it starts: when the session ends, for whatever reason,
so do its processes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, EnvsyncError
from envsync.hooks import Hooks
from envsync.runner.bootstrap import start_agent, target_of
from envsync.runner.remote import Remote
from envsync.runner.transfer import send
from envsync.runner.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from envsync.lock import Lock
    from envsync.runner.bootstrap import Findings
    from envsync.runner.hosts.base import Host
    from envsync.runner.taking import Giver
    from envsync.supply import Supply
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["Environment", "Lease", "Remote", "Session"]

_TELLING = 1 << 20  # bytes: how long fewer take, says nothing of a link
_BEAT = 3.0  # seconds between two signs of life, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A lock, realised in a folder on a host.

    Attributes
    ----------
    digest : str
        The lock's.
    prefix : str
        The folder there.
    python : str
        Its interpreter there.
    created : bool
        Whether it was made just now; if not, it was there and was checked.
    report : dict
        What the agent sees in it: a Report.
    """

    digest: str
    prefix: str
    python: str
    created: bool
    report: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a rented machine lives by.

    Attributes
    ----------
    path : str
        The file there that says until when.
    seconds : float
        How long it lives after each sign of life from here.
    """

    path: str
    seconds: float


class Session:
    """One agent on one host.

    Use `open` to get one, and `close` it, or ``async with await Session.open(...) as session``.

    Attributes
    ----------
    host : Host
        Where the agent runs.
    cache : str
        The cache folder there, an absolute path.
    agent : str
        The agent's own file there, for ``[environment.python, session.agent, "process", ...]``.
    python : str
        The interpreter that runs the agent.
    facts : dict
        What the probe found: python, libc, machine, cores, memory, numa, gpus, nics, disk, addresses.
    taking : Giver or None
        Whom the host may take blobs from by itself: a store, other hosts.
    noticed : callable or None
        Told that the cloud takes the machine back: what it said, and how many seconds are left.
    """

    def __init__(self, host: Host, supply: Supply, hooks: Hooks) -> None:
        self.host = host
        self.supply = supply
        self.hooks = hooks
        self.cache = ""
        self.agent = ""
        self.python = ""
        self.facts: dict[str, Any] = {}
        self.taking: Giver | None = None
        self.noticed: Callable[[dict[str, Any]], None] | None = None
        self._wire: Wire | None = None
        self._remotes: dict[str, Remote] = {}
        self._sending = asyncio.Lock()
        self._ahead: asyncio.Future[None] | None = None
        self._rate = 0.0

    @classmethod
    async def open(
        cls,
        host: Host,
        *,
        cache: str | None = None,
        grace: float = 10.0,
        lease: Lease | None = None,
        supply: Supply,
        hooks: Hooks | None = None,
        ahead: Callable[[Target], Awaitable[Collection[str]]] | None = None,
    ) -> Session:
        """Start an agent on a host, shipping what it needs there, and probe the host.

        Parameters
        ----------
        host : Host
            Where.
        cache : str, optional
            The cache folder there; ``$ENVSYNC_CACHE`` or ``~/.cache/envsync`` there if not given.
        grace : float
            Seconds without a sign of life from here after which the agent ends everything.
        lease : Lease, optional
            The machine's own, which the agent is to renew while it hears from here.
        supply : Supply
            What the host is given from.
        hooks : Hooks, optional
            Told about progress.
        ahead : callable, optional
            ``await ahead(target)`` returns the blobs that a host which has nothing yet is sent while the
            agent starts there: what it needs before anything else, and nobody else will give it.

        Raises
        ------
        UnfitHostError
            The host cannot run an agent, and what it lacks cannot be shipped.
        HostError
            It was not reached, or a command failed there.
        AgentError
            The agent did not start.
        """
        session = cls(host, supply, hooks or Hooks())
        try:
            channel, hello = await start_agent(
                host,
                cache=cache,
                grace=grace,
                supply=supply,
                hooks=session.hooks,
                bare=None if ahead is None else functools.partial(session._give, ahead),
            )
        except BaseException:
            await session.close()
            raise
        session.cache = hello["cache"]
        session.agent = hello["agent"]
        session.python = hello["python"]
        beat = min(grace / 3, _BEAT)
        session._wire = Wire(
            channel,
            host.name,
            beat=beat,
            # a machine that has not been heard for its lease has not heard us either: it has ended
            silence=None if lease is None else lease.seconds,
            on_event=session._hear,
            on_end=session._lost,
        )
        try:
            session.facts = await session._wire.first()
            if lease is not None:
                await session.request("lease", path=lease.path, seconds=lease.seconds)
        except BaseException:
            await session.close()
            raise
        return session

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def ended(self) -> EnvsyncError | None:
        """Why the agent is gone, or None while it is there."""
        return self._wire.ended if self._wire is not None else None

    async def request(
        self, verb: str, /, *, watch: Callable[[dict[str, Any]], None] | None = None, **arguments: Any
    ) -> Any:
        """Ask the agent for something; see `Wire.request`."""
        assert self._wire is not None
        return await self._wire.request(verb, watch=watch or self._tell, **arguments)

    def keep_secret(self, *secrets: str) -> None:
        """Have no error repeat what the agent is told."""
        if self._wire is not None:
            self._wire.secrets |= set(secrets)

    def _give(self, ahead: Callable[[Target], Awaitable[Collection[str]]], found: Findings) -> None:
        """Begin to send what a host needs first."""
        self.cache, self.agent, self.python = found.cache, found.agent, found.python

        async def give() -> None:
            with contextlib.suppress(EnvsyncError, OSError):  # who needs it sends it, and says what is wrong
                async with self._sending:
                    digests = await ahead(target_of(found, self.supply))
                    if digests:
                        await self._send(sorted(digests), "what it needs first")

        self._ahead = asyncio.ensure_future(give())

    async def close(self, patience: float = 15.0) -> None:
        """End the agent and all that it started; silent if it is gone already."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait({self._ahead})
        if self._wire is not None:
            await self._wire.close(patience)

    def give_up(self, error: EnvsyncError) -> None:
        """Know from elsewhere that the host is gone, and with it all that runs there; then `close`."""
        if self._wire is not None:
            self._wire.give_up(error)

    def run_folder(self, cluster: str, name: str) -> str:
        """Return the folder that a process of this name has there."""
        return f"{self.cache}/runs/{cluster}/{name}"

    async def send(self, digests: Collection[str], *, what: str = "") -> int:
        """Have the host have blobs; return how many were sent to it.

        What it lacks it takes from the shared store, where it is given one; the rest is sent.

        Parameters
        ----------
        digests : collection of str
            What it must have.
        what : str, optional
            What they are, for the hooks, such as ``"wheels"``.

        Raises
        ------
        StoreError
            The store does not hold one, or not what it should.
        UnfitHostError
            They do not fit there.
        """
        async with self._sending:
            lacking = await self.request("lacking", digests=sorted(set(digests)))
            if lacking and self.taking is not None:
                took = await self.taking.take(self, lacking, what)
                lacking = [digest for digest in lacking if digest not in took]
            if lacking:
                await self._send(lacking, what)
            return len(lacking)

    async def _send(self, digests: Sequence[str], what: str) -> None:
        began = time.monotonic()
        total = await send(self, digests, what=what)
        if total > _TELLING:
            self._rate = total / (time.monotonic() - began)

    @property
    def gives_ahead(self) -> bool:
        """Whether the host has nothing, and is sent what it needs first."""
        return self._ahead is not None

    async def rate(self) -> float:
        """Return how many bytes a second went to the host the last time that they were many, else 0.

        What goes ahead is waited for.
        """
        if self._ahead is not None:
            await asyncio.wait({self._ahead})
        return self._rate

    async def realise(
        self,
        lock: Lock,
        *,
        hooks: Hooks | None = None,
        fetch: Callable[[Collection[str]], Awaitable[None]] | None = None,
        online: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Environment:
        """Make a lock's environment exist on the host, or check the one that is there.

        Parameters
        ----------
        lock : Lock
            What to make.
        hooks : Hooks, optional
            Told about progress instead of the session's own.
        fetch : callable, optional
            ``await fetch(digests)`` puts the wheels that the host lacks into the store; without it they are
            downloaded from the lock's URLs.
        online : bool
            Whether the host may download from the lock's URLs itself, where it reaches them.
        environment : mapping, optional
            Settings for uv there, such as an index's credentials: for this machine only, never for another's.

        Raises
        ------
        RealiseError
            It could not be made.
        UnfitHostError
            The disk is full, or nothing may be executed there.
        """
        from envsync.runner.realising import realise

        if environment and self._wire is not None:
            from envsync.uv import secrets_in

            self._wire.secrets |= secrets_in(environment.items())
        return await realise(
            self, lock, hooks=hooks or self.hooks, fetch=fetch, online=online, environment=environment or {}
        )

    async def place_trees(self, manifests: Sequence[Manifest]) -> list[str]:
        """Make source trees exist on the host; return their folders there, in the same order."""
        if not manifests:
            return []
        began = time.monotonic()
        files = [(path, digest, mode) for manifest in manifests for path, digest, mode in manifest.files]
        sent = await self.send({digest for _, digest, _ in files}, what="source files")
        folders: list[str] = await self.request(
            "place_trees",
            trees=[
                {"digest": manifest.digest, "name": manifest.name, "files": [list(f) for f in manifest.files]}
                for manifest in manifests
            ],
        )
        self.hooks.done(
            self.host.name, f"placed {len(files)} source files, {sent} sent", time.monotonic() - began
        )
        return folders

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        files: Mapping[str, bytes] | None = None,
        cluster: str,
        cwd: str | None = None,
        after: Sequence[str] = (),
    ) -> Remote:
        """Start a process under the agent, in its own process group.

        Its standard input stays open while the agent and this session live, and ends when it must end.

        Parameters
        ----------
        name : str
            Such as ``"worker-0"``: letters, digits, ``.``, ``_`` and ``-``.
        argv : sequence of str
            The program and its arguments. Everyone on the host can read them: no secrets.
        env : mapping, optional
            Added to the agent's own environment, which has no ``PYTHON*`` variables; None takes one away.
        files : mapping of str to bytes, optional
            Written into the run folder before it starts, for its user only (0600).
        cluster : str
            Whose process it is; same letters as `name`.
        cwd : str, optional
            Where it starts; its run folder if not given.
        after : sequence of str
            A command that the agent runs when it has ended, however it did; if the agent was killed, the
            next one runs it.

        Raises
        ------
        AgentError
            It could not be started, or one of the same name still runs.
        """
        remote = Remote(self, name, cluster)
        key = f"{cluster}/{name}"
        before = self._remotes.get(key)
        if before is not None and before.running:
            raise AgentError(f"a process {key} runs already", where=self.host.name, hint="Stop it first.")
        self._remotes[key] = remote
        try:
            answer = await self.request(
                "spawn",
                name=name,
                cluster=cluster,
                argv=list(argv),
                env=dict(env or {}),
                files={path: base64.b64encode(data).decode() for path, data in (files or {}).items()},
                cwd=cwd,
                after=list(after),
            )
        except BaseException:
            if self._remotes.get(key) is remote:
                del self._remotes[key]
            raise
        remote.pid = answer["pid"]
        return remote

    def _hear(self, event: dict[str, Any]) -> None:
        if "key" in event:
            remote = self._remotes.get(event["key"])
            if remote is not None:
                remote._hear(event)
        else:
            self._tell(event)

    def _tell(self, event: dict[str, Any], hooks: Hooks | None = None) -> None:
        """Pass an event on to the hooks."""
        hooks, where = hooks or self.hooks, self.host.name
        kind = event.get("event")
        if kind == "step":
            hooks.step(where, event["text"])
        elif kind == "progress":
            hooks.progress(where, event["done"], event["total"], event["unit"])
        elif kind == "note":
            hooks.note(where, event["text"])
        elif kind == "warning":
            hooks.warning(where, event["text"])
        elif kind == "notice" and self.noticed is not None:
            self.noticed(event)

    def _lost(self, error: EnvsyncError) -> None:
        for remote in self._remotes.values():
            remote._end(error)
