"""``envsync check``: this environment against a running cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from envsync.cli.arguments import lock_there, scheduler
from envsync.cli.gateway import SCHEME, gateway_security
from envsync.cli.output import command as make_command
from envsync.cli.output import current, plural, result, watch
from envsync.errors import ClusterError
from envsync.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed.security import Security

    from envsync.runner.verification import Verification

    _F = TypeVar("_F", bound=Callable[..., Any])

TIMEOUT = 10.0  # seconds

__all__ = ["TIMEOUT", "command", "describe", "look_at_cluster", "reach", "timeout_option", "tls_options"]


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


timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT,
    show_default=True,
    help="How long to try to connect to the scheduler.",
)


@make_command("check", short_help="Compare a running cluster with this environment.")
@click.argument("address", metavar="tcp://SCHEDULER:PORT", callback=scheduler)
@click.option(
    "--lock",
    "lock_file",
    metavar="FILE",
    callback=lock_there,
    help="Compare with this lock, not with this environment.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT,
    help="How long to try to connect to the scheduler; 10 by default.",
)
@tls_options
def command(address: str, lock_file: str | None, timeout: float, **tls: str | None) -> None:
    """Compare every process of a running cluster with this environment.

    The workers need no envsync, and nothing is changed there. The exit code is 0 if all is as it is here
    (warnings and notes may remain), 1 if code that tasks can reach differs, 2 if the cluster, or one of its
    processes, could not be looked at. Without TLS options, Dask's own configuration counts.
    """
    wanted = None
    if lock_file is not None:
        from envsync.lock import Lock

        wanted = Lock.read(lock_file).report()
    with watch() as hooks:
        found = look_at_cluster(address, tls, wanted=wanted, timeout=timeout, hooks=hooks)
    name = "this environment" if lock_file is None else lock_file
    result({"scheduler": address, **found.to_dict()}, lambda: describe(found, name, address))
    differs = any(one.severity in ("fatal", "error") for one in found.differences)
    unseen = any(one.trouble for one in found.processes)
    sys.exit(1 if differs else 2 if unseen else 0)


def describe(found: Verification, wanted: str, address: str) -> str:
    """Return how a cluster differs, for reading.

    Parameters
    ----------
    found : Verification
        What was seen.
    wanted, address : str
        What the two sides are called.
    """
    from envsync.cli.table import paint

    return found.describe(wanted, address, paint, singly=current().verbose)


def look_at_cluster(
    address: str,
    tls: dict[str, Any],
    *,
    wanted: dict[str, Any] | None,
    timeout: float = TIMEOUT,
    hooks: Hooks | None = None,
) -> Verification:
    """Compare the processes of a cluster with what is wanted; this environment if that is None.

    Parameters
    ----------
    address : str
        The scheduler's.
    tls : dict
        What the options of `tls_options` gave.
    wanted : Report or None
        What to compare with.
    timeout : float
        Seconds to connect in.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    ClusterError
        The scheduler was not reached, or went away.
    """
    from dataclasses import replace

    from distributed.comm import CommClosedError

    from envsync.runner.verifying import verify

    hooks = hooks or Hooks()
    began = time.monotonic()
    security = reach(address, tls, timeout=timeout, hooks=hooks)
    hooks.step(address, "comparing its processes")
    try:
        found = verify(address, on_mismatch="ignore", wanted=wanted, security=security, cwd=str(Path.cwd()))
    except CommClosedError as error:
        raise ClusterError(
            f"the scheduler went away while it was looked at: {error}",
            where=address,
            hint="See whether it still runs, and look again.",
        ) from error
    found = replace(found, processes=tuple(one for one in found.processes if one.kind != "client"))
    hooks.done(
        address, f"compared {plural(len(found.processes), 'process', 'processes')}", time.monotonic() - began
    )
    return found


def reach(address: str, tls: dict[str, Any], *, timeout: float, hooks: Hooks) -> Security:
    """Connect to a scheduler once, and return what to speak to it with.

    Parameters
    ----------
    address, tls, timeout, hooks
        As for `look_at_cluster`.

    Raises
    ------
    ClusterError
        The scheduler was not reached.
    """
    import asyncio

    hooks.step(address, f"connecting, for up to {timeout:g} s")
    from distributed.security import Security

    given = {
        "tls_ca_file": tls.get("tls_ca_file"),
        "tls_client_cert": tls.get("tls_cert"),
        "tls_client_key": tls.get("tls_key"),
    }
    given = {key: value for key, value in given.items() if value is not None}
    if urlsplit(address).scheme == SCHEME:
        if given:
            raise ClusterError(
                "a gateway gives the certificates itself", where=address, hint="Leave the --tls options out."
            )
        security = gateway_security(address, timeout)
    else:
        security = Security(**given)
    arguments = security.get_connection_args("client")
    if urlsplit(address).scheme in ("tls", "wss") and not arguments.get("ssl_context"):
        raise ClusterError(
            "it speaks TLS, and there are no certificates to speak to it with",
            where=address,
            hint="Give --tls-ca-file, --tls-cert and --tls-key, or set Dask's distributed.comm.tls.",
        )
    try:
        asyncio.run(_reach(address, timeout, arguments))
    except (OSError, TypeError, ValueError) as error:  # also schemes and certificates that do not fit
        raise ClusterError(
            f"the scheduler was not reached: {_why(error, timeout)}",
            where=address,
            hint="See that it runs, that this is its address, and that no firewall is between; if it speaks "
            "TLS, write tls:// and name the certificates by the --tls options.",
        ) from error
    return security


async def _reach(address: str, timeout: float, arguments: dict[str, Any]) -> None:
    """Connect to a scheduler and hang up: whatever goes wrong later is not the address."""
    from distributed.comm import connect

    comm = await connect(address, timeout=timeout, **arguments)
    await comm.close()


def _why(error: BaseException, timeout: float) -> str:
    """Return the reason beneath distributed's own words, which say that it tried, and for how long."""
    import asyncio

    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)):
        return f"no answer within {timeout:g} s"
    return str(error) or type(error).__name__
