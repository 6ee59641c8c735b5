"""Hetzner Cloud as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import given
from envsync.runner.clouds import Cloud

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.cloud.provider import Provider

__all__ = ["Hetzner"]


class Hetzner(Cloud):
    """Machines of Hetzner Cloud, by the token in ``HCLOUD_TOKEN`` (``pip install 'dask-envsync[hetzner]'``).

    A machine that shuts itself down is billed on there until it is deleted, by `close` or ``envsync reap``.

    Parameters
    ----------
    type : str
        The server type, such as ``"ccx23"``.
    location : str or sequence of str
        Where, such as ``"fsn1"``; more than one are tried in this order where one has no room.
    image : str
        The name of one of Hetzner's images, or the id or the description of a snapshot; with cloud-init.
    network : str
        The name of a private network of the project, which machines are put in beside their public address.
    reached_from : sequence of str
        Networks that may reach the machines' sshd: any by default; only the cluster's key opens it.
    **rest
        See `Cloud`. ``host_keys="first"`` has to be said: Hetzner shows no console that could be read.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import Hetzner
    >>> machines = Hetzner("ccx23", location="fsn1", host_keys="first")
    >>> with SyncedCluster(machines, n_workers=2) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    where = "location"
    anywhere = ("fsn1",)

    def __init__(
        self,
        type: str,  # noqa: A002 - what everybody calls it
        *,
        location: str | Sequence[str] = (),
        image: str = "debian-12",
        network: str = "",
        reached_from: str | Sequence[str] = ("0.0.0.0/0", "::/0"),
        **rest: Any,
    ) -> None:
        super().__init__(type, **rest)
        self._locations = given.names(location, "location")
        self._options: dict[str, Any] = {
            "image": given.text(image, "image") or "debian-12",
            "network": given.text(network, "network"),
            "reached_from": given.networks(reached_from, "reached_from"),
        }

    def provider(self) -> Provider:
        """Return Hetzner Cloud."""
        from envsync.runner.cloud.hetzner import HetznerProvider

        return HetznerProvider(self._locations, **self._options)
