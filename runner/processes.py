"""Each Dask process of a cluster, as SpecCluster wants it, under its host's agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask.config
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from envsync.errors import AgentError, ClusterError, EnvsyncError, MismatchError, ProcessDied, StartTimeout
from envsync.plugins.compare import Difference
from envsync.plugins.spare import BEFORE
from envsync.runner.timeouts import wait_for
from envsync.runner.tls import Credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from envsync.hooks import Hooks
    from envsync.runner.forwarding import Forwarding
    from envsync.runner.places import Place
    from envsync.runner.remote import Remote
    from envsync.runner.warming import Warm

__all__ = [
    "DaskProcess",
    "Launch",
    "SchedulerProcess",
    "WorkerProcess",
    "process_name",
    "worker_variables",
]

GRACE = 5.0
"""Seconds that a process has to close by itself before it is made to."""

MOMENT = 0.5
"""The same, for one that nobody wants any more."""

_CONFIG = "config.json"
_SEED, _DASKS_SEED = "PYTHONHASHSEED", "6640"  # that of all workers, if nobody says another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the processes of one cluster have in common.

    Attributes
    ----------
    cluster : str
        Names their run folders: nobody else's.
    common : dict
        What every process's configuration says; see `envsync.plugins.process`.
    credentials : callable
        ``credentials(role, names)`` returns the Credentials of one process; None without TLS.
    start_timeout : float
        Seconds that a process has to come up.
    hooks : Hooks
        Told about each.
    lost : callable
        Told about a process that ended by itself.
    terminate : callable
        Asks the scheduler to close a worker.
    retire : callable
        Asks the scheduler to move what workers hold to others, by their names; returns those that are done.
    remove : callable
        Tells the scheduler that workers are lost, by their names: it would notice after minutes.
    forwardings : tuple of Forwarding
        The user's short-lived credentials, if processes are lent them: one for each cloud.
    warm : Warm or None
        Processes of workers that were started ahead.
    """

    cluster: str
    common: dict[str, Any]
    credentials: Callable[[str, tuple[str, ...]], Credentials | None] = field(repr=False)
    start_timeout: float
    hooks: Hooks
    lost: Callable[[DaskProcess], None] = field(repr=False)
    terminate: Callable[[WorkerProcess], Any] = field(repr=False)
    retire: Callable[[Collection[str | int]], Awaitable[set[str | int]]] = field(repr=False)
    remove: Callable[[Collection[str | int]], Awaitable[None]] = field(repr=False)
    forwardings: tuple[Forwarding, ...] = field(default=(), repr=False)
    warm: Warm | None = field(default=None, repr=False)


class DaskProcess(ProcessInterface):  # type: ignore[misc]
    """A scheduler or a worker.

    Parameters
    ----------
    launch : Launch
        What it shares with the others.
    place : Place
        Where it runs.
    name : str or int
        Dask's name for it.
    config : mapping
        Its own part of the configuration.
    """

    role = ""

    def __init__(self, *, launch: Launch, place: Place, name: str | int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.launch = launch
        self.place = place
        self.name = name
        self.config = config
        self.remote: Remote | None = None
        self.differences: tuple[Difference, ...] = ()

    @property
    def label(self) -> str:
        """What people call it."""
        return self.role if self.role == "scheduler" else f"{self.role} {self.name}"

    @property
    def where(self) -> str:
        """Its host and label, for errors."""
        return f"{self.place.name}: {self.label}"

    async def start(self) -> None:
        """Spawn it and wait until it listens.

        Raises
        ------
        ProcessDied
            It ended first.
        StartTimeout
            It did not come up in time.
        MismatchError
            Its environment is not the wanted one.
        ClusterError
            A port that it needs is taken.
        """
        began = time.monotonic()
        _expect_failure(asyncio.current_task())
        self.launch.hooks.step(self.place.name, f"starting {self.label}")
        try:
            hello = await self._spawn()
            self.take(hello)
            await self.reached(hello)
        except BaseException:
            self.status = Status.failed
            if self.remote is not None:
                await asyncio.shield(self.remote.stop(MOMENT))
            raise
        assert self.remote is not None
        await super().start()
        self.launch.hooks.done(self.place.name, f"{self.label} started", time.monotonic() - began)
        self.remote.on_exit(self._ended)

    async def _spawn(self) -> dict[str, Any]:
        credentials = self.launch.credentials(self.role, self.place.addresses)
        config = {**self.launch.common, **self.config}
        files: dict[str, bytes] = {}
        if credentials is not None:
            config["tls"] = Credentials.config()
            files.update(credentials.files())
        name = process_name(self.label)
        for forwarding in self.launch.forwardings:
            folder = self.place.session.run_folder(self.launch.cluster, name)
            lent, more = await forwarding.on(self.place.session, folder)
            config["env"] = {**lent, **(config.get("env") or {})}
            files.update(more)
        files[_CONFIG] = json.dumps(config).encode()
        argv, env, after = self._command(name, config.get("options") or {})
        if not await self._was_ahead(name, env, config, files):
            self.remote = await self.place.session.spawn(
                name, argv, env=env, files=files, cluster=self.launch.cluster, after=after
            )
        assert self.remote is not None
        try:
            hello = await self.remote.said(self.launch.start_timeout)
        except ProcessDied as error:
            raise ProcessDied(
                f"it ended with exit status {error.returncode} before it was up",
                where=self.where,
                returncode=error.returncode,
                tail=error.tail,
            ) from error
        except StartTimeout as error:
            raise StartTimeout(
                f"it did not come up within {self.launch.start_timeout:g} s",
                where=self.where,
                hint="\n  ".join([_NOT_UP, *(f"| {line}" for line in self.remote.tail())]),
            ) from error
        if "error" in hello:
            raise await self._failure(hello["error"])
        return hello

    def _command(
        self, name: str, options: Mapping[str, Any]
    ) -> tuple[list[str], Mapping[str, str | None], list[str]]:
        """Return its command, its variables, and what is run when it has ended."""
        session, container = self.place.session, self.place.container
        if container is None:
            argv = [self.place.python, session.agent, "process", self.role, _CONFIG]
            return argv, {**self.place.environment(), **self.variables()}, []
        from envsync.runner.containers import container_name, folders_of

        folder = session.run_folder(self.launch.cluster, name)
        called = container_name(self.launch.cluster, name)
        argv = container.command(
            called,
            [session.agent, "process", self.role, f"{folder}/{_CONFIG}"],
            env={"ENVSYNC_HOST": self.place.name, **self.variables()},
            **folders_of(session, folder, options),
        )
        return argv, {}, container.removal(called)

    async def _was_ahead(
        self,
        name: str,
        env: Mapping[str, str | None],
        config: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> bool:
        """Have the process that was started ahead go on, if there is one that can be this."""
        if self.launch.warm is None:
            return False
        self.remote = await self.launch.warm.take(self.place, name, env, config)
        if self.remote is None:
            return False
        try:
            await self.remote.hand(files, _CONFIG)
        except AgentError:
            if self.remote.lost is not None:
                raise
            await self.remote.stop(MOMENT)  # it died meanwhile: one that starts now tells why, or comes up
            return False
        return True

    def variables(self) -> dict[str, str]:
        """Return what its interpreter has to start with, beside what every process of its place has."""
        return {}

    async def _failure(self, error: Mapping[str, Any]) -> EnvsyncError:
        """Return the exception for what a process said before it ended."""
        assert self.remote is not None
        if error["kind"] == "mismatch":
            return MismatchError(
                error["message"],
                where=self.where,
                hint="Start the cluster again to have its environment made anew; see the differences first.",
                differences=[Difference.from_dict(one) for one in error.get("differences", ())],
            )
        if error["kind"] == "port":
            return ClusterError(
                f"a port that it was told to use is taken: {error['message']}",
                where=self.where,
                hint="Choose another port, or 0 for any that is free; or end what listens there.",
            )
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError, EnvsyncError):
            await wait_for(self.remote.wait(), GRACE)
        return ProcessDied(
            f"it could not start: {error['message']}",
            where=self.where,
            returncode=self.remote.returncode,
            tail=self.remote.tail(),
        )

    def take(self, hello: Mapping[str, Any]) -> None:
        """Remember what it said when it was up."""
        self.address = hello["address"]
        self.differences = tuple(Difference.from_dict(one) for one in hello.get("differences", ()))

    async def reached(self, hello: Mapping[str, Any]) -> None:
        """Make sure that it can be reached from here, where that matters."""

    def _ended(self, remote: Remote) -> None:  # noqa: ARG002
        if self.status == Status.running:
            self.status = Status.closed
            self._event_finished.set()
            self.launch.lost(self)

    async def close(self) -> None:
        """End it; silent if it has ended."""
        if self.status == Status.running:
            self.status = Status.closing
            await self._part()
        if self.remote is not None:
            with contextlib.suppress(EnvsyncError):
                await self.remote.stop(GRACE)
        await super().close()

    async def _part(self) -> None:
        """Give it the chance to close by itself."""


class SchedulerProcess(DaskProcess):
    """The scheduler.

    Parameters
    ----------
    reach : callable
        Called when it listens, with this object and what it said; returns the address that it has from here.
    said : callable
        Told what else it says, while it runs.
    """

    role = "scheduler"

    def __init__(
        self,
        *,
        reach: Callable[[SchedulerProcess, Mapping[str, Any]], Any],
        said: Callable[[Mapping[str, Any]], None],
        **rest: Any,
    ) -> None:
        super().__init__(name="scheduler", **rest)
        self._reach = reach
        self._said = said

    async def start(self) -> None:
        """See `DaskProcess.start`."""
        await super().start()
        assert self.remote is not None
        self.remote.on_said(self._said)

    async def reached(self, hello: Mapping[str, Any]) -> None:
        """Find the address that it has from here."""
        self.external_address = await self._reach(self, hello)

    async def _part(self) -> None:
        assert self.remote is not None
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError, EnvsyncError):
            await wait_for(self.remote.wait(), GRACE)


class WorkerProcess(DaskProcess):
    """A worker, under its nanny.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as other hosts reach it.
    name : str or int
        Dask's name for it.
    nthreads, memory_limit : int
        As its configuration has them: SpecCluster looks for them here.
    """

    role = "worker"

    def __init__(
        self,
        scheduler: str,
        *,
        launch: Launch,
        place: Place,
        name: str | int,
        config: Mapping[str, Any],
        nthreads: int,
        memory_limit: int,
    ) -> None:
        own = {"scheduler": scheduler, "name": name, "nthreads": nthreads, "memory_limit": memory_limit}
        super().__init__(
            launch=launch,
            place=place,
            name=name,
            config={**config, "options": {**config.get("options", {}), **own}},
        )
        self.nthreads = nthreads
        self.memory_limit = memory_limit
        self.workers = [self]  # of what SpecCluster calls a worker: a job has several

    def variables(self) -> dict[str, str]:
        """Have the nanny hash as its worker will, which may be a copy of it; see `plugins/spare.py`."""
        return worker_variables(self.launch.common)

    async def _part(self) -> None:
        assert self.remote is not None
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError, OSError, EnvsyncError):
            await wait_for(self.launch.terminate(self), GRACE)
            await wait_for(self.remote.wait(), GRACE)


def worker_variables(common: Mapping[str, Any]) -> dict[str, str]:
    """Return what the interpreter of a worker has to start with, by what all processes are told."""
    given = dask.config.get(BEFORE, default=None, config=common.get("dask") or {}) or {}
    seed = str(given.get(_SEED) or 0)
    return {_SEED: seed if seed != "0" else _DASKS_SEED}


def process_name(label: str) -> str:
    """Return what a process is called on its host, by what people call it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", label)


_NOT_UP = "Allow it more with start_timeout=, or look at its log, which ends with:"


def _expect_failure(task: asyncio.Task[Any] | None) -> None:
    """Keep asyncio from complaining of a start whose cluster was given up: nobody asks how it ended."""
    if task is not None:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
