"""``envsync check``: this environment against a running cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envsync.cli.output import command as make_command
from envsync.cli.output import result
from envsync.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from envsync.runner.verify import Verification

    _F = TypeVar("_F", bound=Callable[..., Any])

__all__ = ["command", "look_at_cluster", "tls_options"]


def tls_options(function: _F) -> _F:
    """Add the options of the same names that dask's own commands have."""
    for name, text in (
        ("--tls-key", "This client's private key (PEM)."),
        ("--tls-cert", "This client's certificate (PEM)."),
        ("--tls-ca-file", "Certificate authority of the cluster (PEM)."),
    ):
        function = click.option(
            name, metavar="FILE", type=click.Path(exists=True, dir_okay=False), help=text
        )(function)
    return function


@make_command("check")
@click.argument("scheduler", metavar="tcp://SCHEDULER:PORT")
@click.option(
    "--lock", "lock_file", metavar="FILE", help="Compare with this lock, not with this environment."
)
@tls_options
def command(scheduler: str, lock_file: str | None, **tls: str | None) -> None:
    """Compare every process of a running cluster with this environment.

    The exit code is 0 if all is as it is here (warnings and notes may remain), 1 if code that tasks can
    reach differs, 2 if the cluster, or one of its processes, could not be looked at. Without TLS options,
    Dask's own configuration counts.
    """
    from envsync.cli.sides import is_cluster

    if not is_cluster(scheduler):
        raise click.BadParameter(f"{scheduler!r} is not a scheduler's address, such as tcp://host:8786")
    wanted = None
    if lock_file is not None:
        from envsync.lock import Lock

        wanted = Lock.read(lock_file).report()
    found = look_at_cluster(scheduler, tls, wanted=wanted)
    result({"scheduler": scheduler, **found.to_dict()}, lambda: str(found))
    differs = any(one.severity in ("fatal", "error") for one in found.differences)
    unseen = any(one.trouble for one in found.processes)
    sys.exit(1 if differs else 2 if unseen else 0)


def look_at_cluster(address: str, tls: dict[str, Any], *, wanted: dict[str, Any] | None) -> Verification:
    """Compare the processes of a cluster with what is wanted; this environment if that is None.

    Raises
    ------
    ClusterError
        The scheduler was not reached, or went away.
    """
    import asyncio
    from dataclasses import replace

    from distributed.comm import CommClosedError
    from distributed.security import Security

    from envsync.runner.verify import verify

    given = {
        "tls_ca_file": tls.get("tls_ca_file"),
        "tls_client_cert": tls.get("tls_cert"),
        "tls_client_key": tls.get("tls_key"),
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    security = Security(**chosen)
    try:
        asyncio.run(_reach(address, security.get_connection_args("client")))
    except (OSError, TypeError, ValueError) as error:  # also schemes and certificates that do not fit
        raise ClusterError(
            f"the scheduler was not reached: {error}",
            where=address,
            hint="Check the address; for tls:// the --tls options too.",
        ) from error
    try:
        found = verify(address, on_mismatch="ignore", wanted=wanted, security=security, cwd=str(Path.cwd()))
    except CommClosedError as error:
        raise ClusterError(
            f"the scheduler went away while it was looked at: {error}",
            where=address,
            hint="See whether it still runs, and look again.",
        ) from error
    return replace(found, processes=tuple(one for one in found.processes if one.kind != "client"))


async def _reach(address: str, arguments: dict[str, Any]) -> None:
    """Connect to a scheduler and hang up: whatever goes wrong later is not the address."""
    from distributed.comm import connect

    comm = await connect(address, **arguments)
    await comm.close()
