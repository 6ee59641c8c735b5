"""The way from here to a port on a host: straight where that works, else through the host's own channel."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.runner.hosts.base import Host

__all__ = ["Way", "reach", "reach_scheduler", "reachable"]

PATIENCE = 1.5
"""Seconds to try the straight way for: a firewall that drops says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a scheduler is reached from here.

    Attributes
    ----------
    address : str or None
        Its address from here; None if that is its own.
    dashboard : tuple of str and int, or None
        Where its dashboard is from here; None if that is where it says itself.
    """

    address: str | None
    dashboard: tuple[str, int] | None


async def reachable(
    address: str, port: int, context: ssl.SSLContext | None = None, timeout: float = PATIENCE
) -> bool:
    """Tell whether a port answers from here, and with a certificate of the right authority.

    Parameters
    ----------
    address : str
        A host name or IP address.
    port : int
        The TCP port.
    context : ssl.SSLContext, optional
        What to speak TLS with: addresses of private networks are not unique, so another machine may answer.
    timeout : float
        Seconds.
    """
    try:
        _, writer = await wait_for(asyncio.open_connection(address, port, ssl=context), timeout)
    except (OSError, asyncio.TimeoutError, TimeoutError, ssl.SSLError):
        return False
    writer.close()
    with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
        await wait_for(writer.wait_closed(), 0.2)
    return True


async def reach(
    host: Host, address: str, port: int, context: ssl.SSLContext | None = None, *, straight: bool = True
) -> tuple[str, int, bool]:
    """Return an address and port here that lead to a port of a host, and whether they are a tunnel's.

    Parameters
    ----------
    host : Host
        Through whose channel a tunnel goes.
    address, port : str, int
        What to reach, as the host itself would.
    context : ssl.SSLContext, optional
        See `reachable`.
    straight : bool
        Whether the straight way may be open.

    Raises
    ------
    HostError
        No tunnel could be made either.
    """
    if straight and await reachable(address, port, context):
        return address, port, False
    return "127.0.0.1", await host.forward(address, port), True


async def reach_scheduler(
    host: Host,
    address: str,
    dashboard: int | None,
    *,
    inside: str | None,
    context: ssl.SSLContext | None,
    straight: bool = True,
    hooks: Hooks,
) -> Way:
    """Find the way to a scheduler and its dashboard.

    Parameters
    ----------
    host : Host
        Where it runs.
    address : str
        What it calls itself, such as ``"tls://10.0.0.1:8786"``.
    dashboard : int or None
        The port of its dashboard.
    inside : str or None
        Where the dashboard listens on its host, if not where the scheduler does.
    context : ssl.SSLContext or None
        What clients speak TLS with.
    straight : bool
        Whether the straight way may be open; trying one that a firewall silently closes takes `PATIENCE`.
    hooks : Hooks
        Told about tunnels.

    Raises
    ------
    HostError
        The scheduler cannot be reached.
    """
    scheme, _, rest = address.partition("://")
    ip, _, port = rest.rpartition(":")
    ip = ip.strip("[]")
    way, there, tunnel = await reach(host, ip, int(port), context, straight=straight)
    if tunnel and straight:
        hooks.note(host.name, f"port {port} cannot be reached from here: going through ssh")
    found = None
    if dashboard is not None:
        try:
            if inside is not None:
                found = ("127.0.0.1", await host.forward(inside, dashboard))
            else:
                page, page_port, through = await reach(host, ip, dashboard, straight=straight)
                found = (page, page_port) if through else None
        except EnvsyncError as error:
            hooks.warning(host.name, f"the dashboard cannot be reached: {error}")
    return Way(address=f"{scheme}://{way}:{there}" if tunnel else None, dashboard=found)
