"""The way from here to a port on a host: straight where that works, else through the host's own channel."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Host

__all__ = ["reach", "reachable"]

PATIENCE = 1.5
"""Seconds to try the straight way for: a firewall that drops says nothing."""


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
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port, ssl=context), timeout)
    except (OSError, asyncio.TimeoutError, TimeoutError, ssl.SSLError):
        return False
    writer.close()
    with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), 0.2)
    return True


async def reach(
    host: Host, address: str, port: int, context: ssl.SSLContext | None = None
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

    Raises
    ------
    HostError
        No tunnel could be made either.
    """
    if await reachable(address, port, context):
        return address, port, False
    return "127.0.0.1", await host.forward(address, port), True
