"""``envsync push``: the environment exists on other machines, verified, before anybody needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import demand_hosts, lock_there
from envsync.cli.output import cache_option, result, terminated_as_interrupted, watch
from envsync.cli.output import command as make_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.provision import Prepared

__all__ = ["command"]


@make_command("push", short_help="Make this environment exist on other machines.")
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option(
    "--lock",
    "lock_file",
    metavar="FILE",
    callback=lock_there,
    help="Push the packages of this lock, not those installed now; local code goes along as it is now.",
)
@click.option(
    "--allow-substitutes",
    is_flag=True,
    help="Where an installed version has no wheel for a host, push another version of that package.",
)
@cache_option
def command(
    hosts: tuple[str, ...], lock_file: str | None, allow_substitutes: bool, cache: str | None
) -> None:
    """Make this environment exist on every HOST, and verify it there.

    A HOST is ssh://[user@]host[:port], a name of your ~/.ssh/config, or local. It needs neither Python nor uv
    nor the internet: what it lacks is sent. An environment that is there already is verified and left alone.
    """
    import asyncio

    demand_hosts(hosts, "HOST")
    from envsync.lock import Lock

    lock = None if lock_file is None else Lock.read(lock_file)
    with watch() as hooks, terminated_as_interrupted():
        prepared = asyncio.run(_push(hosts, lock, allow_substitutes, cache, hooks))
    result({"hosts": [_to_dict(one) for one in prepared]}, lambda: "\n".join(map(_describe, prepared)))


async def _push(
    names: Sequence[str], lock: Lock | None, allow_substitutes: bool, cache: str | None, hooks: Hooks
) -> list[Prepared]:
    import asyncio

    from envsync.runner.hosts import parse_host
    from envsync.runner.provision import prepare

    hosts = [parse_host(name) for name in dict.fromkeys(names)]
    try:
        prepared = await prepare(
            hosts,
            lock=lock,
            cache=cache,
            allow_substitutes=allow_substitutes,
            hooks=hooks,
            cwd=str(Path.cwd()),
        )
        await asyncio.gather(*(one.session.close() for one in prepared))
    finally:
        await asyncio.gather(*(host.close() for host in hosts))
    return prepared


def _describe(one: Prepared) -> str:
    how = "made" if one.environment.created else "was there"
    sent = f", {one.sent / 1e6:.1f} MB sent" if one.sent else ""
    return f"{one.session.host.name}: {how}, verified{sent}, {one.seconds:.1f} s: {one.environment.prefix}"


def _to_dict(one: Prepared) -> dict[str, Any]:
    return {
        "host": one.session.host.name,
        "environment": one.environment.digest,
        "prefix": one.environment.prefix,
        "python": one.environment.python,
        "created": one.environment.created,
        "sent": one.sent,
        "seconds": round(one.seconds, 3),
        "trees": [
            {"name": manifest.name, "folder": folder, "left_out": [list(each) for each in manifest.left_out]}
            for manifest, folder in one.trees
        ],
        "differences": [difference.to_dict() for difference in one.differences],
    }
