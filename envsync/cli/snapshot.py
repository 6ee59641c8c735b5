"""``envsync snapshot``: what is installed here, and the lock of it."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import demand_hosts, lock_to_write, python_there
from envsync.cli.output import cache_option, current, plural, result, terminated_as_interrupted, watch
from envsync.cli.output import command as make_command
from envsync.cli.queue import SYSTEMS
from envsync.errors import HostError

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["command", "find_target", "target_for"]

_DESCRIBED = re.compile(r"(\w+?)-(manylinux|musllinux)_(\d+)_(\d+)(?:\+nvidia-(\d+(?:\.\d+){0,2}))?")
_EC2 = "ec2://"
_OUTPUT = "pylock.envsync.toml"
_SHOWN = 10  # lines of a list, unless --verbose


def target_for(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse what cannot be a target."""
    if value is not None and (value.startswith("ssh://") or value == "local"):
        demand_hosts([value])
    elif value is not None and value.partition("://")[0] in SYSTEMS:
        from envsync.runner.probing import nodes_of

        try:
            nodes_of(value)
        except (ValueError, HostError) as error:
            raise click.BadParameter(str(error)) from None
    elif value is not None and value.startswith(_EC2):
        from envsync.runner.ahead import machines_of

        try:
            machines_of(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    elif value is not None and _DESCRIBED.fullmatch(value) is None:
        raise click.BadParameter(
            f"{value!r} is no target\n  Name a host (ssh://host), nodes (slurm://?partition=gpu), or a"
            " machine, its libc and its driver, if it has one: x86_64-manylinux_2_28+nvidia-550.54."
        )
    return value


@make_command("snapshot", short_help="Look at this environment, and lock it.")
@click.option(
    "--python",
    metavar="PATH",
    callback=python_there,
    help="Look at this interpreter or environment folder, not at the one that envsync runs in.",
)
@click.option(
    "--for",
    "target",
    metavar="TARGET",
    callback=target_for,
    help="Lock for another machine: ssh://[user@]host, which is probed; nodes of a batch system, one of which"
    " is probed by a job, such as 'slurm://[user@login]?partition=gpu&gres=gpu:1'; machines that are rented"
    " later, such as 'ec2://g5.xlarge?region=eu-west-1', as the cloud describes them; or its kind and libc,"
    " such as x86_64-manylinux_2_28, and +nvidia-550.54 for its driver.",
)
@click.option("--no-lock", is_flag=True, help="Only look; write nothing.")
@click.option("--verify", is_flag=True, help="Hash every installed file, and name those edited in place.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=_OUTPUT,
    show_default=True,
    callback=lock_to_write,
    help="Where to write the lock: pylock.toml or pylock.<name>.toml.",
)
@click.option(
    "--allow-substitutes",
    is_flag=True,
    help="Where an installed version has no wheel for the target, lock another, and say so in the lock.",
)
@cache_option
def command(
    python: str | None,
    target: str | None,
    no_lock: bool,
    verify: bool,
    output: str,
    allow_substitutes: bool,
    cache: str | None,
) -> None:
    """Look at this environment and lock it, exactly, for the machines that will run it.

    The lock is a PEP 751 file, for machines of this kind unless --for names another. Local code (editable
    projects, loose modules, the working directory) is listed, and goes along when the lock is pushed or run.
    """
    from envsync.snapshot import capture

    if no_lock:
        if target is not None or allow_substitutes:
            raise click.UsageError("--for and --allow-substitutes say how to lock; --no-lock says not to")
        snapshot = capture(python, cwd=str(Path.cwd()))
        snapshot, verified = verify_files(snapshot) if verify else (snapshot, {})
        result(
            {**snapshot.to_dict(), **verified},
            lambda: "\n".join([*describe_snapshot(snapshot), *describe_verified(verified)]),
        )
        return
    if cache is not None and target is None:
        raise click.UsageError("--cache is the cache folder of a host: name one with --for")
    file = Path(output)
    with watch() as hooks, terminated_as_interrupted():
        snapshot = capture(python, cwd=str(Path.cwd()))
        if verify:
            hooks.step("here", "hashing every installed file")
        snapshot, verified = verify_files(snapshot) if verify else (snapshot, {})
        lock, manifests = make_lock(
            snapshot, target, cache=cache, file=file, allow_substitutes=allow_substitutes, hooks=hooks
        )
    result(
        {
            "lock": str(file),
            "digest": lock.digest,
            "target": lock.target.to_dict(),
            "packages": len(lock.pylock.packages),
            "local_wheels": [one.filename for one in lock.artifacts() if one.path is not None],
            "trees": [
                {"name": one.name, "files": len(one.files), "left_out": [list(each) for each in one.left_out]}
                for one in manifests
            ],
            "excluded": [
                {"name": one.name, "version": one.version, "reason": one.reason} for one in lock.excluded
            ],
            "substitutions": [
                {"name": one.name, "installed": one.installed, "locked": one.locked, "reason": one.reason}
                for one in lock.substitutions
            ],
            "findings": [
                {"severity": one.severity, "subject": one.subject, "text": one.text}
                for one in snapshot.findings
            ],
            **verified,
        },
        lambda: "\n".join(describe_lock(snapshot, lock, manifests, file, verified)),
    )


def verify_files(snapshot: Snapshot) -> tuple[Snapshot, dict[str, Any]]:
    """Hash every installed file.

    Returns
    -------
    Snapshot
        With what was edited or is missing among its findings.
    dict
        ``verified``: how many packages and files were looked at, and how many of these are not as installed.
    """
    from dataclasses import replace

    from envsync.edited import edited_files

    looked_at = [one for one in snapshot.distributions if one.record is not None and not one.shadowed_by]
    edited = edited_files(looked_at)
    order = ("error", "warning", "note")
    findings = sorted(
        (*snapshot.findings, *edited), key=lambda one: (order.index(one.severity), one.subject, one.text)
    )
    files = sum(_recorded(Path(one.location)) for one in looked_at)
    found = {"packages": len(looked_at), "files": files, "edited": len(edited)}
    return replace(snapshot, findings=tuple(findings)), {"verified": found}


def _recorded(info: Path) -> int:
    """Count the files of a RECORD that have a hash there; bytecode is not looked at."""
    with (info / "RECORD").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return sum(len(row) > 1 and bool(row[1]) and not row[0].endswith(".pyc") for row in csv.reader(file))


def describe_verified(verified: dict[str, Any]) -> list[str]:
    """Return what came of `verify_files`, for reading."""
    if not verified:
        return []
    found = verified["verified"]
    said = f"{found['edited']} edited or missing, see the findings" if found["edited"] else "none edited"
    return [
        f"verified     {plural(found['files'], 'file')} of {plural(found['packages'], 'package')}: {said}"
    ]


def make_lock(
    snapshot: Snapshot,
    target: str | None,
    *,
    cache: str | None,
    file: Path,
    allow_substitutes: bool,
    hooks: Hooks,
) -> tuple[Lock, list[Manifest]]:
    """Resolve, whatever the cache remembers, and write the lock's file.

    Return the lock and what goes with it file by file.
    """
    from envsync.indexes import read_settings
    from envsync.runner.locking import lock_anew
    from envsync.store import default_store

    store = default_store()
    settings = read_settings(prefix=snapshot.interpreter.prefix)
    chosen = snapshot.target
    if target is not None:
        chosen = find_target(target, snapshot, store, settings, hooks, cache=cache)
    manifests: list[Manifest] = []
    if snapshot.source_trees:
        from envsync.trees import pack_all

        manifests += pack_all(snapshot, store)
    lock = lock_anew(
        snapshot,
        chosen,
        store=store,
        settings=settings,
        manifests=manifests,
        allow_substitutes=allow_substitutes,
        hooks=hooks,
    )
    lock.write(file, store)
    return lock, manifests


def find_target(
    text: str,
    snapshot: Snapshot,
    store: Store,
    settings: IndexSettings,
    hooks: Hooks,
    *,
    cache: str | None = None,
) -> Target:
    """Return what to lock for: a host, or a node in a job, which is probed; or a machine and its libc.

    The Python is always the snapshot's: a cluster's processes must have the client's.

    Raises
    ------
    HostError, BatchError, CloudError
        The host, the batch system or the cloud cannot be used.
    """
    import asyncio

    from envsync.target import Target

    python, implementation = snapshot.interpreter.version, snapshot.interpreter.implementation
    if text.startswith(_EC2):
        from envsync.runner.ahead import target_there

        return asyncio.run(target_there(text, python=python, implementation=implementation))
    if "://" in text or text == "local":
        facts = asyncio.run(_probe(text, snapshot, store, settings, hooks, cache))
        return Target.from_probe(facts, python=python, implementation=implementation)
    match = _DESCRIBED.fullmatch(text)
    assert match is not None, text
    machine, family, major, minor, driver = match.groups()
    return Target(
        python=python,
        implementation=implementation,
        machine=machine,
        libc=("glibc" if family == "manylinux" else "musl", f"{major}.{minor}"),
        accelerators=(f"nvidia {driver}",) if driver else (),
    )


async def _probe(
    text: str,
    snapshot: Snapshot,
    store: Store,
    settings: IndexSettings,
    hooks: Hooks,
    cache: str | None,
) -> dict[str, Any]:
    from envsync.runner.hosts import parse_host
    from envsync.runner.session import Session
    from envsync.supply import Supply

    supply = Supply(store, settings, snapshot, hooks=hooks)
    if text.partition("://")[0] in SYSTEMS:
        from envsync.runner.probing import nodes_of, probe_node

        backend, wait = nodes_of(text)
        backend.cache = cache or backend.cache
        return await probe_node(backend, supply=supply, wait=wait, hooks=hooks)
    async with (
        parse_host(text) as host,
        await Session.open(host, cache=cache, supply=supply, hooks=hooks) as session,
    ):
        return dict(session.facts)


def _listed(lines: list[str]) -> list[str]:
    """Shorten a list for reading, and say so."""
    if current().verbose or len(lines) <= _SHOWN + 1:
        return lines
    return [*lines[:_SHOWN], f"    ... and {len(lines) - _SHOWN} more (-v shows all)"]


def describe_snapshot(snapshot: Snapshot) -> list[str]:
    """Return the summary of a snapshot, line by line."""
    winners = [one for one in snapshot.distributions if not one.shadowed_by]
    direct = [one for one in winners if one.direct_url is not None and not one.editable]
    editable = [one for one in winners if one.editable]
    lines = [
        f"Python       {snapshot.interpreter.version} ({snapshot.interpreter.implementation}), "
        f"{snapshot.interpreter.prefix}",
        f"machine      {snapshot.target.describe()}",
        f"packages     {len(winners)}"
        + (f", of which from a URL, an archive or git: {len(direct)}" if direct else "")
        + (f", editable: {len(editable)}" if editable else ""),
    ]
    if snapshot.conda:
        lines.append(f"conda        {plural(len(snapshot.conda), 'package')}")
    if snapshot.accelerators:
        lines.append(f"accelerators {len(snapshot.accelerators)}")
    trees = [f"    {tree.name}  {tree.root}" for tree in snapshot.source_trees]
    if trees:
        lines += [f"local code   {plural(len(trees), 'source tree')}", *_listed(trees)]
    return lines + describe_findings(snapshot)


def describe_findings(snapshot: Snapshot) -> list[str]:
    """Return what a person should know of an environment, line by line."""
    findings = [f"    {one.severity}: {one.subject}: {one.text}" for one in snapshot.findings]
    return [f"findings     {len(findings)}", *_listed(findings)] if findings else []


def describe_lock(
    snapshot: Snapshot, lock: Lock, manifests: list[Manifest], file: Path, verified: dict[str, Any]
) -> list[str]:
    """Return the summary of a lock, line by line."""
    artifacts = lock.artifacts()
    local = [one for one in artifacts if one.path is not None]
    lines = [
        f"Python       {lock.target.python} ({lock.target.implementation}), "
        f"from {snapshot.interpreter.prefix}",
        f"locked for   {lock.target.describe()}",
        f"packages     {len(artifacts) - len(local)} from indexes, "
        f"{len(local)} as {'a local wheel' if len(local) == 1 else 'local wheels'}",
        *_listed([f"    {one.filename}" for one in local]),
    ]
    if manifests:
        lines.append(f"local code   {plural(len(manifests), 'source tree')}")
    for manifest in manifests:
        left_out = manifest.left_out
        lines.append(
            f"    {manifest.name}: {plural(len(manifest.files), 'file')}"
            + (f", {len(left_out)} left out:" if left_out else ", nothing left out")
        )
        lines += _listed([f"        {path}: {reason}" for path, reason in left_out])
    if lock.excluded:
        lines.append(f"left out     {len(lock.excluded)}")
        lines += _listed([f"    {one.name} {one.version}: {one.reason}" for one in lock.excluded])
    if lock.substitutions:
        lines.append(f"substituted  {len(lock.substitutions)}")
        lines += [
            f"    {one.name}: {one.installed} here, {one.locked} locked. {one.reason}".rstrip(". ")
            for one in lock.substitutions
        ]
    lines += describe_findings(snapshot)
    lines += describe_verified(verified)
    return [*lines, f"written      {file}  (environment {lock.digest[:12]})"]
