"""Compare every process of a running cluster with what is wanted, and say so in one table.

Works on any cluster that Dask can talk to: what looks travels by value, so workers need no envsync.
"""

from __future__ import annotations

import asyncio
import html
import textwrap
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.core import rpc
from distributed.deploy.cluster import Cluster
from distributed.protocol import pickle

from envsync.errors import MismatchError
from envsync.plugins.compare import CORE, ERROR, FATAL, NOTE, WARNING, Difference, compare
from envsync.plugins.gate import Carried, check_aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from distributed.client import Client
    from distributed.security import Security

    from envsync.hooks import Hooks
    from envsync.lock import Lock

__all__ = ["Checked", "Verification", "table", "verify", "verify_async"]

_ORDER = {FATAL: 0, ERROR: 1, WARNING: 2, NOTE: 3}
_HEAD = ("severity", "where", "subject", "wanted", "there", "next step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One process that was looked at.

    Attributes
    ----------
    kind : str
        ``"scheduler"``, ``"worker"`` or ``"client"``.
    process : str
        What it is called.
    differences : tuple of Difference
        How it differs, the worst first.
    trouble : str
        Why it could not be looked at; empty if it could.
    """

    kind: str
    process: str
    differences: tuple[Difference, ...] = ()
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "kind": self.kind,
            "process": self.process,
            "differences": [difference.to_dict() for difference in self.differences],
            "trouble": self.trouble,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the processes of a cluster differ from what is wanted.

    Attributes
    ----------
    processes : tuple of Checked
        The scheduler, the workers, and the client where it was compared too.
    wanted : str
        What they were compared with.
    """

    processes: tuple[Checked, ...]
    wanted: str = ""

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All differences of all processes, the worst first."""
        found = [difference for one in self.processes for difference in one.differences]
        return tuple(sorted(found, key=lambda one: (_ORDER.get(one.severity, 9), one.subject, one.process)))

    @property
    def ok(self) -> bool:
        """Whether every process could be looked at and none differs in what tasks can reach."""
        return not any(
            one.trouble or any(difference.severity in (FATAL, ERROR) for difference in one.differences)
            for one in self.processes
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "ok": self.ok,
            "wanted": self.wanted,
            "processes": [one.to_dict() for one in self.processes],
        }

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """Return the table: identical differences of several processes are one row."""
        totals = Counter(one.kind for one in self.processes)
        groups: dict[tuple[str, ...], list[tuple[Checked, Difference | None]]] = {}
        for one in self.processes:
            if one.trouble:
                groups.setdefault((ERROR, "", "", one.trouble, ""), []).append((one, None))
            for found in one.differences:
                key = (found.severity, found.subject, found.left or "-", found.right or "-", found.advice)
                groups.setdefault(key, []).append((one, found))
        rows = []
        for (severity, subject, left, right, advice), members in groups.items():
            if not subject:
                row = (severity, _where(members, totals), "(all)", "a report", right, "look at its log")
            else:
                row = (severity, _where(members, totals), subject, left, right, advice)
            rows.append(row)
        return sorted(rows, key=lambda row: (_ORDER.get(row[0], 9), row[2], row[1]))

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        counts = Counter(one.kind for one in self.processes)
        parts = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]
        who = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "no process"
        severities = Counter(row[0] for row in self.rows())
        if not severities:
            return f"{who}: all as wanted"
        found = ", ".join(f"{severities[name]} {name}" for name in _ORDER if severities[name])
        return f"{who}: {'usable' if self.ok else 'not as wanted'} ({found})"

    def __str__(self) -> str:
        rows = self.rows()
        return f"{table(rows)}\n{self.summary()}" if rows else self.summary()

    def _repr_html_(self) -> str:
        cells = "".join(
            "<tr>"
            + "".join(f"<td style='text-align: left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self.rows()
        )
        head = "".join(f"<th style='text-align: left'>{name}</th>" for name in _HEAD)
        body = f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>" if cells else ""
        return f"{body}<p>{html.escape(self.summary())}</p>"


def table(rows: Sequence[Sequence[str]], width: int = 140) -> str:
    """Lay rows out as text, the last column wrapped within the width."""
    widths = [max(len(row[column]) for row in [_HEAD, *rows]) for column in range(len(_HEAD) - 1)]
    widths = [min(size, 34) for size in widths]
    last = max(24, width - sum(widths) - 2 * len(widths))
    lines = []
    for row in [_HEAD, *rows]:
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, [*widths, last], strict=True)]
        for index in range(max(map(len, cells))):
            parts = [cell[index] if index < len(cell) else "" for cell in cells]
            lines.append(
                "  ".join(f"{part:<{size}}" for part, size in zip(parts, [*widths, 0], strict=True)).rstrip()
            )
    return "\n".join(lines)


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
    result: Verification = target.sync(verify_async, target, on_mismatch=on_mismatch, wanted=wanted, cwd=cwd)
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
    own = await asyncio.get_running_loop().run_in_executor(None, _own_report)
    client: Checked | None = None
    if wanted is None:
        wanted = getattr(target, "wanted", None)
    if wanted is None:
        wanted = {**own, **await asyncio.get_running_loop().run_in_executor(None, _own_code, cwd)}
    else:
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
        connection = target.scheduler_comm if isinstance(target, Cluster) else target.scheduler
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
            )
        warnings.warn(str(verification), stacklevel=2)
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


def _own_report() -> dict[str, Any]:
    from envsync.snapshot import capture

    return dict(capture().report())


def _own_code(cwd: str | None) -> dict[str, Any]:
    """Return the local code of this process, for processes that nobody shipped it to."""
    from envsync.runner.code import pack_code
    from envsync.trees import code_of

    code = code_of(pack_code(cwd))
    return {"trees": {name: one["digest"] for name, one in code.items()}, "code": code}


async def _own_trees(cluster: Any) -> dict[str, str]:
    """Return the digests of the local code of a SyncedCluster's client, as it is now."""
    from envsync.runner.code import code_now

    return {manifest.name: manifest.digest for manifest in await code_now(cluster)}


async def _look_at_all(connection: Any, wanted: Mapping[str, Any]) -> list[Checked]:
    """Ask the scheduler, and through it every worker."""
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
    asked = [address for address in names if not foreign.get(address)]

    function = pickle.dumps(Carried(check_aside))
    arguments = {
        address: {"op": "run", "function": function, "wait": True, **_call(wanted, name)}
        for address, name in {"": "scheduler", **{one: names[one] for one in asked}}.items()
    }

    async def look(address: str) -> Any:
        message = {key: value for key, value in arguments[address].items() if key != "op"}
        if not address:
            return await connection.run_function(**message)
        answers = await connection.broadcast(
            msg=arguments[address], workers=[address], on_error="return_pickle"
        )
        return answers[address]

    checked = []
    order = ["", *names]
    looked = [address for address in order if not foreign.get(address)]
    answers = dict(zip(looked, await asyncio.gather(*map(look, looked), return_exceptions=True), strict=True))
    for address in order:
        kind, name = ("worker", names[address]) if address else ("scheduler", "scheduler")
        if address not in answers:
            checked.append(Checked(kind=kind, process=name, differences=foreign[address]))
        else:
            checked.append(_checked(kind, name, answers[address]))
    return checked


def _call(wanted: Mapping[str, Any], name: str) -> dict[str, bytes]:
    return {"args": pickle.dumps((dict(wanted),)), "kwargs": pickle.dumps({"process": name})}


def _checked(kind: str, name: str, answer: Any) -> Checked:
    if isinstance(answer, bytes):
        answer = pickle.loads(answer)
    if isinstance(answer, BaseException):
        return Checked(kind=kind, process=name, trouble=f"{type(answer).__name__}: {answer}")
    if answer["status"] != "OK":
        return Checked(kind=kind, process=name, trouble=str(answer.get("exception_text") or answer))
    found = tuple(Difference.from_dict(one) for one in answer["result"])
    return Checked(kind=kind, process=name, differences=found)


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


def _where(members: Iterable[tuple[Checked, Difference | None]], totals: Mapping[str, int]) -> str:
    """Name the processes of a row: singly while they are few, by number otherwise."""
    parts = []
    kinds: dict[str, list[tuple[Checked, Difference | None]]] = {}
    for one, found in members:
        kinds.setdefault(one.kind, []).append((one, found))
    for kind, those in kinds.items():
        if kind == "worker" and (len(those) > 2 or len(those) == totals[kind] > 1):
            parts.append(f"{len(those)} of {totals[kind]} workers")
        else:
            parts += [
                f"{one.process} on {found.where}"
                if found is not None and found.where and kind != "client"
                else one.process
                for one, found in those
            ]
    return ", ".join(parts)
