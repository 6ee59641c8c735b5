"""In a cluster that somebody else started: make its environment this one, and keep it so."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed.client import Client

from envsync.errors import ClusterError, MismatchError
from envsync.plugins.carried import other_python
from envsync.plugins.compare import ERROR, FATAL, WARNING, Difference
from envsync.plugins.gate import TOPIC
from envsync.plugins.survey import survey
from envsync.runner.code import look_here, with_code
from envsync.runner.hubcalls import NAME, apply, has_hub, install_hub, not_lost, owned, scheduler_of
from envsync.runner.logged import LoggedHooks
from envsync.runner.shipment import (
    hidden_trees,
    lacking_packages,
    make_state,
    owner,
    packages_for,
)
from envsync.runner.telling import tell_edited, tell_left_out
from envsync.runner.verification import Checked, Verification, in_words, warn
from envsync.runner.verifying import ask_all, verify
from envsync.shadowing import refuse_shadowing, shadowing, with_trees

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.verifying import Asked
    from envsync.trees import Manifest

__all__ = ["SyncEnvironment", "release"]

logger = logging.getLogger("envsync")

_UNCHANGED = ", and nothing was changed"
_GIVEN_BACK = ", and the cluster has its own environment again, not the one that was laid over it before"
_RESTARTED = ", and the cluster has its own environment again; workers were restarted on the way"


class SyncEnvironment:
    """A plugin that makes this environment true in a running cluster: packages and local code.

    Nothing is installed there. What differs is laid over each process's own environment, from a folder that
    the processes of a host share, and taken away again by `unregister`.

    Parameters
    ----------
    on_mismatch : {"raise", "warn"}
        What to do about a process that cannot be made equal. ``"raise"``: nothing is changed if there is one
        already, and one that comes later is refused. ``"warn"``: it is let in, and told of.
    restart : {"auto", "never", "always"}
        Which workers are restarted by their nannies, after the tasks that run there have ended and what only
        they hold has been moved: those that have imported packages that differ, none, or all that change.
    take_over : bool
        Whether to take the place of another client's environment.
    cwd : str, optional
        A working directory whose code goes along; code on ``sys.path`` does anyhow.
    hooks : Hooks, optional
        Told about progress; the log of ``envsync`` if not given.

    Examples
    --------
    >>> client.register_plugin(SyncEnvironment())           # doctest: +SKIP
    >>> client.sync_environment()      # after an edit      # doctest: +SKIP
    """

    name = NAME

    def __init__(
        self,
        *,
        on_mismatch: str = "raise",
        restart: str = "auto",
        take_over: bool = False,
        cwd: str | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if on_mismatch not in ("raise", "warn"):
            raise ValueError(f"on_mismatch must be 'raise' or 'warn', not {on_mismatch!r}")
        if restart not in ("auto", "never", "always"):
            raise ValueError(f"restart must be 'auto', 'never' or 'always', not {restart!r}")
        self.on_mismatch = on_mismatch
        self.restart = restart
        self.take_over = take_over
        self.cwd = cwd
        self.hooks = hooks or LoggedHooks()
        self.client: Client | None = None
        self.state: dict[str, Any] | None = None
        self._id = secrets.token_hex(8)
        self._snapshot = ""
        self._told: list[Manifest] = []
        self._roots: tuple[str, ...] = ()
        self._front: set[str] = set()
        self._kept: tuple[str, ...] = ()
        self._scheduler = ""  # the one that all this is in
        self._shows = hooks is not None  # what is found is shown by whoever gave hooks
        self._awaited = False

    def sync(self) -> Any:
        """Bring the cluster up to this environment as it is now: an edited module, a package just installed.

        Returns
        -------
        Verification
            Every process as it is then. A coroutine that returns it, where the client is asynchronous.

        Raises
        ------
        MismatchError
            A process could not be made equal, and `on_mismatch` is ``"raise"``; or a module of the local code
            hides one that Python or Dask needs (``random.py``), whatever `on_mismatch` is: nothing was sent.
        ClusterError
            The plugin is not registered, or another client's environment is in place.
        """
        return self._run(self._mend, self._registered())

    def verify(self, **options: Any) -> Any:
        """Compare every process of the cluster with this environment; see `envsync.verify`."""
        return verify(self._registered(), cwd=self.cwd, **options)

    def unregister(self) -> Any:
        """Restore every process to what it was before; where nothing is registered, say so."""
        if self.client is None:
            self.hooks.warning("cluster", "nothing was given back: the plugin is not registered")
            return asyncio.sleep(0) if self._awaited else None
        return self.client.sync(self._release)

    def roots(self) -> tuple[str, ...]:
        """Return the folders of this environment's local code, as they were at the last sync."""
        return self._roots

    def is_elsewhere(self) -> bool:
        """Tell whether the scheduler is another one than at the last sync, at the same address."""
        there = scheduler_of(self._registered())
        return bool(there and self._scheduler) and there != self._scheduler

    def _run(self, action: Callable[[Client], Coroutine[Any, Any, Verification]], client: Client) -> Any:
        if client.asynchronous:
            return self._run_async(action, client)
        verification: Verification = client.sync(action, client)
        self._warn(verification)
        return verification

    async def _run_async(
        self, action: Callable[[Client], Coroutine[Any, Any, Verification]], client: Client
    ) -> Verification:
        verification = await action(client)
        self._warn(verification)
        return verification

    def _warn(self, verification: Verification) -> None:
        if not verification.ok and not self._shows:
            warn(verification)

    def register(self, client: Client) -> Any:
        """Do what ``client.register_plugin`` is asked to, which calls it."""
        self._awaited = client.asynchronous
        return self._run(self._attach, client)

    def _registered(self) -> Client:
        if self.client is None:
            raise ClusterError(
                "the plugin is not registered", hint="Register it: client.register_plugin(plugin)"
            )
        return self.client

    async def _attach(self, client: Client) -> Verification:
        if self.client is not None and self.client is not client:
            raise ClusterError(
                "the plugin is registered with another client",
                hint="Make one for each: SyncEnvironment()",
            )
        verification = await self._mend(client)
        if self.client is None:
            self.client = client
            client.sync_environment = self.sync
            client.subscribe_topic(TOPIC, self._heard)
        return verification

    async def _mend(self, client: Client) -> Verification:
        began = time.monotonic()
        first = self._is_new_to(client) or self.client is None
        from envsync.indexes import read_settings
        from envsync.store import default_store

        store = default_store()
        snapshot, manifests, wanted = await asyncio.to_thread(look_here, self.cwd)
        refuse_shadowing(snapshot, _forward(manifests, wanted, self._front)[0])
        tell_left_out(manifests, self.hooks, before=self._told)
        self._told = manifests
        self._roots = tuple(tree.root for tree in snapshot.source_trees)
        if self.state is not None and snapshot.digest == self._snapshot:
            packages = self.state["packages"]  # only code can have changed
        else:
            asked = await ask_all(client.scheduler, survey, wanted, "who")
            names, beyond = lacking_packages(asked)
            self._demand(asked, beyond)
            # what restarts or joins before it is as wanted would be refused: better now than a round later
            self._front |= {name for one in asked for name in (one.answer or {}).get("covered", ())}
            refuse_shadowing(snapshot, _forward(manifests, wanted, self._front)[0])
            settings = await asyncio.to_thread(read_settings, prefix=snapshot.interpreter.prefix)
            packages = await packages_for(names, snapshot, store=store, settings=settings, hooks=self.hooks)
            await asyncio.to_thread(tell_edited, snapshot, self.hooks)
        mine = owner(self._id, client.id, self._roots)
        replaced: bool | None = None  # as the first round found it: what the second replaces is our own
        while True:
            ahead, wanted = _forward(manifests, wanted, self._front)
            state = make_state(wanted, packages, ahead, on_mismatch=self.on_mismatch, owner=mine)
            await install_hub(client)
            result = await apply(
                client.scheduler,
                state,
                store,
                self.hooks,
                restart=self.restart,
                take_over=self.take_over,
            )
            if replaced is None:
                replaced = result["replaced"]
                self._tell_displaced(result)
            hidden = hidden_trees(result) - self._front
            # where its other modules would hide what workers need, it stays at the back
            moved = with_trees(snapshot, _forward(manifests, wanted, hidden)[0])
            hidden -= {one.tree for one in shadowing(moved, snapshot.distributions)}
            if not hidden:
                break
            self._front |= hidden
        verification = _verification(result)
        workers_ok = Verification(
            processes=tuple(one for one in verification.processes if one.kind == "worker")
        ).ok
        if not workers_ok and self.on_mismatch == "raise":
            how = ""
            if first:
                with not_lost():
                    released = await client.scheduler.envsync_release(owner=self._id)
                restarted = result["restarted"] + (released or {}).get("restarted", 0)
                how = _GIVEN_BACK if replaced else _RESTARTED if restarted else _UNCHANGED
            raise MismatchError(
                f"not every process could be made equal{how}\n{verification}",
                differences=verification.differences,
                verification=verification,
            )
        self.state, self._snapshot = state, snapshot.digest
        self._tell_kept(verification)
        equal = sum(entry["state"] == "equal" for entry in result["workers"].values())
        said = f"{equal} of {len(result['workers'])} workers have this environment"
        self.hooks.done("cluster", said, time.monotonic() - began)
        return verification

    def _is_new_to(self, client: Client) -> bool:
        """Tell whether the scheduler is another one than before, which has nothing of ours yet."""
        there, before = scheduler_of(client), self._scheduler
        self._scheduler = there or before
        if self.client is None or not there or before in ("", there):
            return False
        self.hooks.warning("cluster", "the scheduler is another one than before: it gets everything again")
        self.state, self._kept = None, ()
        self._front.clear()
        client.subscribe_topic(TOPIC, self._heard)
        return True

    def _tell_displaced(self, result: Mapping[str, Any]) -> None:
        owner = result.get("displaced")
        if owner:
            said = owned(owner).message.partition(", since")[0].replace(" is in place", "")
            self.hooks.warning("cluster", f"this took the place of {said}")

    def _tell_kept(self, verification: Verification) -> None:
        """Tell once what a scheduler goes on with, which is never restarted."""
        kept = tuple(
            f"{one.subject} {one.right} (wanted: {one.left})"
            for checked in verification.processes
            for one in checked.differences
            if checked.kind == "scheduler" and one.kind == "imported" and one.severity == WARNING
        )
        if kept and kept != self._kept:
            self.hooks.warning("cluster", f"the scheduler keeps what it has imported: {', '.join(kept)}")
        self._kept = kept

    def _demand(self, asked: Sequence[Asked], beyond: Sequence[tuple[Asked, Difference]]) -> None:
        """Raise before anything is sent if a process is beyond repair."""
        grave = [(one, each) for one, each in beyond if each.severity in (FATAL, ERROR)]
        troubled = [one for one in asked if one.trouble]
        foreign = any(one.foreign for one in asked if one.kind == "scheduler")  # what we send would end it
        if not foreign and (self.on_mismatch != "raise" or not (grave or troubled)):
            return
        by_process: dict[str, list[Difference]] = {}
        for one, each in grave:
            by_process.setdefault(one.address, []).append(each)
        table = Verification(
            processes=tuple(
                Checked(
                    kind=one.kind,
                    process=one.name,
                    differences=tuple(by_process.get(one.address, ())),
                    trouble=one.trouble,
                )
                for one in asked
            )
        )
        raise MismatchError(
            "what differs cannot be laid over a running process, and nothing was changed\n" + str(table),
            hint="Work from the scheduler's Python, or have the cluster started with this one."
            if foreign
            else "Start those with the wanted Python and Dask; on_mismatch='warn' takes them as they are.",
            differences=table.differences,
            verification=table,
        )

    async def _release(self) -> None:
        client = self._registered()
        with not_lost():
            result = await client.scheduler.envsync_release(owner=self._id)
        if getattr(getattr(client, "sync_environment", None), "__self__", None) is self:
            client.unsubscribe_topic(TOPIC)
            del client.sync_environment
        self.client = self.state = None
        self._scheduler = ""
        self._snapshot, self._told = "", []
        result = result or {}  # None: it was given back already
        if result.get("refused"):
            self.hooks.warning("cluster", f"nothing was given back: {owned(**result['refused']).message}")
        for address, one in result.get("workers", {}).items():
            if one["trouble"]:
                text = f"worker {address} does not have its own environment again: {one['trouble']}"
                self.hooks.warning("cluster", text)

    def _heard(self, event: Any) -> None:
        """Tell of a worker that came later and was refused, or let in although it differs."""
        said = event[1] if isinstance(event, tuple) else event
        if not isinstance(said, dict) or said.get("action") not in ("refused", "admitted-different"):
            return
        told = map(Difference.from_dict, said.get("differences", ()))
        found = [one for one in told if one.severity in (FATAL, ERROR)]
        parts = in_words(found, few=0 if self.hooks.verbose else 3)
        parts += [said["trouble"]] if said.get("trouble") else []
        what = "was refused" if said["action"] == "refused" else "was let in although it differs"
        self.hooks.warning("cluster", f"worker {said.get('name')} {what}: {'; '.join(parts)}")


def _forward(
    manifests: Sequence[Manifest], wanted: dict[str, Any], names: Collection[str]
) -> tuple[list[Manifest], dict[str, Any]]:
    """Put trees before the packages of the workers, which hold another copy of the same code."""
    chosen = [replace(one, position="front") if one.name in names else one for one in manifests]
    return chosen, with_code(wanted, chosen) if names else wanted


async def release(client: Client, *, take_over: bool = False) -> bool:
    """Give a cluster its own environment back, whichever client of this user's has changed it.

    Parameters
    ----------
    client : Client
        Of the cluster.
    take_over : bool
        Whether somebody else's environment is taken away too.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    ClusterError
        It is somebody else's, or the scheduler runs another Python.
    """
    versions = await client.scheduler.versions(packages=[])
    if other_python(versions):
        raise ClusterError(
            "the scheduler runs another Python than this one, which code sent from here would end",
            hint="Give it back from where it was changed, or from the scheduler's Python.",
        )
    if not await has_hub(client):
        return False
    by = (await client.scheduler.envsync_state()).get("owner")
    if not by:
        return False
    mine = owner("", client.id)
    if not take_over and (by.get("user"), by.get("host")) != (mine["user"], mine["host"]):
        raise owned(by)
    with not_lost():
        await client.scheduler.envsync_release(owner=by["id"])
    return True


def _register(client: Client, plugin: SyncEnvironment, *_: object, **__: object) -> Any:
    """What ``client.register_plugin`` does with a SyncEnvironment: neither name nor idempotent matter."""
    return plugin.register(client)


Client._register_plugin.register(SyncEnvironment, _register)


def _verification(result: Mapping[str, Any]) -> Verification:
    entries = [("scheduler", result["scheduler"])]
    entries += [("worker", entry) for entry in result["workers"].values()]
    return Verification(
        processes=tuple(
            Checked(
                kind=kind,
                process="scheduler" if kind == "scheduler" else f"worker {entry['name']}",
                differences=tuple(map(Difference.from_dict, entry["differences"])),
                trouble=entry["trouble"],
            )
            for kind, entry in entries
        ),
        wanted="this environment",
    )
