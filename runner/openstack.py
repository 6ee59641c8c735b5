"""OpenStack as a backend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import given
from envsync.runner.clouds import Cloud

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import Provider

__all__ = ["OpenStack"]


class OpenStack(Cloud):
    """Servers of an OpenStack cloud (``pip install 'dask-envsync[openstack]'``).

    The account is a cloud of ``clouds.yaml``, or what ``OS_*`` variables say. A server that shuts itself down
    is kept, and usually billed, until it is deleted by `close` or ``envsync reap``.

    Parameters
    ----------
    type : str
        The flavor, by its name or id, such as ``"m1.large"``.
    region : str or sequence of str
        Where; more than one are tried in this order where one has no room. The account's own if not given.
    cloud : str
        The name of the cloud in ``clouds.yaml``; what ``OS_CLOUD``, or the other ``OS_*`` variables, say if
        not given.
    zones : str or sequence of str
        Only in these availability zones, in this order.
    image : str
        The name or the id of an image with systemd and cloud-init; the newest plain Debian or Ubuntu of the
        cloud's if not given.
    network : str
        The name or the id of the network that servers are put in; the project's only one if not given.
    floating_network : str
        The name or the id of the network that each server gets a floating address of. Without it servers are
        reached by the address that they have in `network`.
    config_drive : bool
        Whether servers read what they run first from a drive, where a cloud has no metadata service.
    reached_from : str or sequence of str
        Networks that may reach the servers' sshd: any by default; only the cluster's key opens it.
    **rest
        See `Cloud`. With `disk` servers boot from a volume of that size, which goes with them.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import OpenStack
    >>> machines = OpenStack("m1.large", cloud="mycloud", floating_network="public")
    >>> with SyncedCluster(machines, n_workers=2) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        type: str,  # noqa: A002 - what everybody calls it
        *,
        region: str | Sequence[str] = (),
        cloud: str = "",
        zones: str | Sequence[str] = (),
        image: str = "",
        network: str = "",
        floating_network: str = "",
        config_drive: bool = False,
        reached_from: str | Sequence[str] = ("0.0.0.0/0", "::/0"),
        **rest: Any,
    ) -> None:
        super().__init__(type, **rest)
        self._regions = given.names(region, "region")
        self._options: dict[str, Any] = {
            "cloud": given.text(cloud, "cloud"),
            "zones": given.names(zones, "zones"),
            "image": given.text(image, "image"),
            "network": given.text(network, "network"),
            "floating_network": given.text(floating_network, "floating_network"),
            "config_drive": given.flag(config_drive, "config_drive"),
            "reached_from": given.networks(reached_from, "reached_from"),
        }

    @property
    def account(self) -> Mapping[str, Any]:
        """The name of the cloud in ``clouds.yaml``. See `Cloud.account`."""
        cloud = self._options["cloud"] or os.environ.get("OS_CLOUD")
        return {"cloud": cloud} if cloud else {}

    @classmethod
    def reopen(cls, account: Mapping[str, Any], regions: Sequence[str]) -> Provider:
        """Return the project of a record. See `Cloud.reopen`.

        ``profile``, as commands call a name in a cloud's own configuration, is one in ``clouds.yaml``.
        """
        given = dict(account)
        if profile := given.pop("profile", None):
            given["cloud"] = profile
        return super().reopen(given, regions)

    def provider(self) -> Provider:
        """Return the project."""
        from envsync.runner.cloud.openstack import OpenStackProvider

        return OpenStackProvider(self._regions, **self._options)
