"""Compare every process of a running cluster with what is wanted, and say so in one table.

Works on any cluster that Dask can talk to: what looks travels by value, so workers need no envsync.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed.client import Client
from distributed.core import rpc
from distributed.protocol import pickle

from envsync.errors import MismatchError
from envsync.plugins.carried import Carried
from envsync.plugins.compare import CORE, ERROR, FATAL, Difference, compare
from envsync.plugins.look import check_aside
from envsync.runner.verification import Checked, Verification, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from distributed.deploy.cluster import Cluster
    from distributed.security import Security

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.trees import Manifest

__all__ = [
    "Asked",
    "ask_all",
    "client_differences",
    "demand_client",
    "tell_image_code",
    "verify",
    "verify_async",
]


def verify(
    target: Client | Cluster | str,
    *,
    on_mismatch: str = "raise",
    wanted: Mapping[str, Any] | None = None,
    security: Security | None = None,
    cwd: str | None = None,
) -> Verification:
    """Compare every process of a running cluster with this environment.

    Parameters
    ----------
    target : Client, Cluster or str
        A cluster, a client of it, or its scheduler's address.
    on_mismatch : {"raise", "warn", "ignore"}
        What to do about fatal and error differences; they are returned in any case but the first.
    wanted : Report, optional
        What to compare with; this process's own environment if not given (for a SyncedCluster: its lock).
    security : Security, optional
        For an address.
    cwd : str, optional
        A working directory whose code tasks may import; code on ``sys.path`` counts anyhow.

    Returns
    -------
    Verification
        Print it: it is a table. A coroutine that returns it, if `target` is asynchronous.

    Raises
    ------
    MismatchError
        There are such differences and `on_mismatch` is ``"raise"``.
    """
    if isinstance(target, str):
        return asyncio.run(
            verify_async(target, on_mismatch=on_mismatch, wanted=wanted, security=security, cwd=cwd)
        )
    runs = target if hasattr(target, "sync") else target.gateway  # a GatewayCluster leaves it to that
    # a warning is for the caller's line, which this thread knows
    later = on_mismatch == "warn" and not getattr(runs, "asynchronous", True)
    result: Verification = runs.sync(
        verify_async, target, on_mismatch="ignore" if later else on_mismatch, wanted=wanted, cwd=cwd
    )
    if later and not result.ok:
        warn(result)
    return result


async def verify_async(
    target: Client | Cluster | str,
    *,
    on_mismatch: str = "raise",
    wanted: Mapping[str, Any] | None = None,
    security: Security | None = None,
    cwd: str | None = None,
) -> Verification:
    """`verify`, from a coroutine."""
    if on_mismatch not in ("raise", "warn", "ignore"):
        raise ValueError(f"on_mismatch must be 'raise', 'warn' or 'ignore', not {on_mismatch!r}")
    client: Checked | None = None
    if wanted is None:
        wanted = getattr(target, "wanted", None)
    if wanted is None:
        wanted = await asyncio.get_running_loop().run_in_executor(None, _own_wanted, cwd)
    else:
        own = await asyncio.get_running_loop().run_in_executor(None, _own_report)
        if "code" not in wanted:  # a lock knows the digests of trees, and not their files
            wanted = {key: value for key, value in wanted.items() if key != "trees"}
        if getattr(target, "prepared", None):
            own["trees"] = await _own_trees(target)
        client = Checked(kind="client", process="client", differences=client_differences(own, wanted))
    if isinstance(target, str):
        arguments = security.get_connection_args("client") if security is not None else None
        connection = rpc(target, connection_args=arguments)
        try:
            processes = await _look_at_all(connection, wanted)
        finally:
            await connection.close_rpc()
    else:
        connection = target.scheduler if isinstance(target, Client) else target.scheduler_comm
        processes = await _look_at_all(connection, wanted)
    verification = Verification(
        processes=(*processes, *([client] if client is not None else [])),
        wanted=str(wanted.get("who", "")),
    )
    if not verification.ok and on_mismatch != "ignore":
        if on_mismatch == "raise":
            raise MismatchError(
                f"the cluster's environment is not the wanted one\n{verification}",
                differences=verification.differences,
                verification=verification,
            )
        warn(verification)
    return verification


def client_differences(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return how a cluster differs from its client: what the client has is what its tasks will need.

    Parameters
    ----------
    own : Report
        The client's, as it is now.
    wanted : Report
        Of the lock that the cluster runs in.
    """
    return tuple(compare(own, wanted, where="here", process="client"))


def demand_client(lock: Lock, on_mismatch: str, hooks: Hooks) -> None:
    """Compare this process with a lock that a cluster is about to run in: tasks and results come from here.

    Raises
    ------
    MismatchError
        The two could not work together (another Python, another Dask), and `on_mismatch` is ``"raise"``.
    """
    found = client_differences(_own_report(), lock.report())
    fatal = [one for one in found if one.severity == FATAL]
    if fatal and on_mismatch == "raise":
        first = min(fatal, key=lambda one: one.kind != "python")
        raise MismatchError(
            f"this process has {first.subject} {first.left or 'not at all'}, and the lock {lock.name} has"
            f" {first.right or 'none'}: they cannot work together",
            where="here",
            hint="Lock this environment (envsync snapshot), or run in the one that was locked.",
            differences=found,
        )
    names = [one.subject for one in found if one.severity in (FATAL, ERROR)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"{', '.join(names[:3])}{more}"
        hooks.warning("here", f"the lock {lock.name} lacks what this process has, or has others: {what}")


def tell_image_code(manifests: Sequence[Manifest], cwd: str | None, hooks: Hooks) -> None:
    """Warn where local code in an image is not as it is here."""
    from envsync.runner.code import pack_code

    wanted = {manifest.name: manifest.digest for manifest in manifests}
    here = {manifest.name: manifest.digest for manifest in pack_code(cwd, set(wanted))}
    other = [name for name, digest in wanted.items() if name in here and here[name] != digest]
    if other:
        names = ", ".join(sorted(other))
        hooks.warning("here", f"local code is not as it is in the image: {names}; push an image of it")


def _own_report() -> dict[str, Any]:
    from envsync.snapshot import capture

    return dict(capture().report())


def _own_wanted(cwd: str | None) -> dict[str, Any]:
    from envsync.runner.code import look_here

    return look_here(cwd)[2]


async def _own_trees(cluster: Any) -> dict[str, str]:
    """Return the digests of the local code of a SyncedCluster's client, as it is now."""
    from envsync.runner.code import code_now

    return {manifest.name: manifest.digest for manifest in await code_now(cluster)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One process of a cluster, and what it answered.

    Attributes
    ----------
    kind : str
        ``"scheduler"`` or ``"worker"``.
    address : str
        A worker's; empty for the scheduler.
    name : str
        What it is called.
    foreign : tuple of Difference
        Why it was not asked: what travels by value would not load there.
    answer : object
        What the function returned there; None if it was not asked, or failed.
    trouble : str
        How it failed.
    """

    kind: str
    address: str
    name: str
    foreign: tuple[Difference, ...] = ()
    answer: Any = None
    trouble: str = ""


async def ask_all(
    connection: Any, function: Callable[..., Any], wanted: Mapping[str, Any], keyword: str
) -> list[Asked]:
    """Call a function in the scheduler and, through it, in every worker.

    Parameters
    ----------
    connection : rpc
        To the scheduler.
    function : callable
        Travels by value; called with `wanted`, and with the process's name as `keyword`.
    wanted : Report
        What it is told is wanted.
    keyword : str
        The name of its other argument.
    """
    names = {
        address: f"worker {info['name']}"
        if str(info.get("name", address)) != address
        else f"worker {address}"
        for address, info in (await connection.identity())["workers"].items()
    }
    versions, workers_versions = await asyncio.gather(
        connection.versions(packages=[]),
        connection.broadcast(msg={"op": "versions", "packages": []}, on_error="ignore"),
    )
    foreign = {"": _foreign(wanted, versions, "scheduler")}
    for address, theirs in workers_versions.items():
        names.setdefault(address, f"worker {address}")
        foreign[address] = _foreign(wanted, theirs, names[address])
    names = {"": "scheduler", **names}
    carried, arguments = _carried(function), pickle.dumps((dict(wanted),))

    async def ask(address: str) -> Asked:
        asked = Asked(kind="worker" if address else "scheduler", address=address, name=names[address])
        if foreign.get(address):
            return replace(asked, foreign=foreign[address])
        call = {
            "function": carried,
            "args": arguments,
            "kwargs": pickle.dumps({keyword: names[address]}),
            "wait": True,
        }
        try:
            if not address:
                answer = await connection.run_function(**call)
            else:
                answers = await connection.broadcast(
                    msg={"op": "run", **call}, workers=[address], on_error="return_pickle"
                )
                answer = answers[address]
            if isinstance(answer, bytes):
                answer = pickle.loads(answer)
            if isinstance(answer, BaseException):
                raise answer
        except Exception as error:  # noqa: BLE001 - whatever it is, it is one process's trouble
            return replace(asked, trouble=f"{type(error).__name__}: {error}")
        if answer["status"] != "OK":
            return replace(asked, trouble=str(answer.get("exception_text") or answer))
        return replace(asked, answer=answer["result"])

    return list(await asyncio.gather(*map(ask, names)))


@functools.cache
def _carried(function: Callable[..., Any]) -> bytes:
    carried: bytes = pickle.dumps(Carried(function))
    return carried


async def _look_at_all(connection: Any, wanted: Mapping[str, Any]) -> list[Checked]:
    """Ask the scheduler, and through it every worker, how they differ."""
    return [
        Checked(
            kind=one.kind,
            process=one.name,
            differences=one.foreign or tuple(map(Difference.from_dict, one.answer or ())),
            trouble=one.trouble and f"it could not be looked at: {one.trouble}",
        )
        for one in await ask_all(connection, check_aside, wanted, "process")
    ]


def _foreign(wanted: Mapping[str, Any], versions: Mapping[str, Any], name: str) -> tuple[Difference, ...]:
    """Return the fatal differences of a process that what travels by value would not load in."""
    theirs = str(dict(versions.get("packages") or {}).get("python") or "")
    ours = str(wanted["interpreter"]["version"])
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return ()
    rest = {one["name"]: one["version"] for one in wanted["distributions"] if one["name"] in CORE}
    found = [
        Difference(
            severity=FATAL,
            kind="python",
            subject="python",
            left=ours,
            right=".".join(theirs.split(".")[:3]),
            process=name,
            advice="start it in an environment of the wanted Python; nothing else of it could be compared",
        )
    ]
    for package, there in dict(versions.get("packages") or {}).items():
        if package in rest and there != rest[package]:
            found.append(
                Difference(
                    severity=FATAL,
                    kind="version",
                    subject=package,
                    left=rest[package],
                    right=str(there or ""),
                    process=name,
                    advice="start it in the wanted environment",
                )
            )
    return tuple(found)
