"""The clusters of a dask-gateway: whoever may use one gets its certificates from the gateway itself."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envsync.errors import ClusterError

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = ["SCHEME", "gateway_security"]

SCHEME = "gateway"


def gateway_security(address: str, timeout: float) -> Security:
    """Ask a gateway for what its cluster is spoken to with.

    Parameters
    ----------
    address : str
        The scheduler's: ``gateway://proxy:port/name``. Where the gateway itself is, and how to log in there,
        is said by Dask's configuration, as for dask-gateway's own ``Gateway()``.
    timeout : float
        Seconds that the gateway has to answer.

    Raises
    ------
    ClusterError
        There is no such gateway, or no such cluster of this user's.
    """
    try:
        gateways = import_module("dask_gateway")
    except ImportError as error:
        raise ClusterError(
            "it is a gateway's cluster, and dask-gateway is not installed here",
            where=address,
            hint="Install it in this environment: a client cannot speak to the cluster without it either.",
        ) from error
    name = urlsplit(address).path.strip("/")
    if not name:
        raise ClusterError(
            "it names no cluster",
            where=address,
            hint="Take cluster.scheduler_address, which ends in its name.",
        )

    async def ask() -> Security | None:
        async with gateways.Gateway(asynchronous=True) as gateway:
            report = await asyncio.wait_for(gateway.get_cluster(name), timeout)
        security: Security | None = report.security
        return security

    try:
        security = asyncio.run(ask())
    except Exception as error:
        why = getattr(error, "message", "") or str(error) or f"no answer within {timeout:g} s"
        raise ClusterError(
            f"its gateway did not give the certificates: {why}",
            where=address,
            hint="Set Dask's gateway.address (DASK_GATEWAY__ADDRESS=http://...) and gateway.auth as for "
            "Gateway(), and take the address of a cluster of yours: cluster.scheduler_address.",
        ) from error
    if security is None:
        raise ClusterError("the cluster does not run", where=address, hint="Start it, and look again.")
    return security
