"""Google Compute Engine as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import given
from envsync.runner.clouds import Cloud

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import Provider

__all__ = ["GCE"]


class GCE(Cloud):
    """Machines of Google Compute Engine (``pip install 'dask-envsync[gce]'``).

    The account is that of Google's default credentials (``gcloud auth application-default login``).
    A machine that shuts itself down is kept, and its disk is billed, until it is deleted by `close` or
    ``envsync reap``. One that still runs when `max_lifetime` is over is deleted by Google.

    Parameters
    ----------
    type : str
        The machine type, such as ``"n2-standard-4"``; with GPUs, ``"g2-standard-4"``.
    region : str or sequence of str
        Where, such as ``"europe-west1"``; more than one are tried in this order where one has no room.
    zones : str or sequence of str
        Only in these zones, in this order.
    project : str
        The project; that of the credentials if not given.
    image : str
        ``"projects/P/global/images/I"``, or ``".../images/family/F"``, with cloud-init. Ubuntu 24.04 if not
        given, with NVIDIA's driver for types that have GPUs.
    network, subnetwork : str
        The names of the network, and of the region's subnet of it.
    service_account : str
        The address of a service account for machines that use Google Cloud themselves.
    reached_from : sequence of str
        Networks that may reach the machines' sshd: any by default; only the cluster's key opens it.
    **rest
        See `Cloud`.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import GCE
    >>> machines = GCE("n2-standard-4", region="europe-west1", max_lifetime="8 h")
    >>> with SyncedCluster(machines, n_workers=2) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    anywhere = ("us-central1",)

    def __init__(
        self,
        type: str,  # noqa: A002 - what everybody calls it
        *,
        region: str | Sequence[str] = (),
        zones: str | Sequence[str] = (),
        project: str = "",
        image: str = "",
        network: str = "default",
        subnetwork: str = "",
        service_account: str = "",
        reached_from: str | Sequence[str] = ("0.0.0.0/0",),
        **rest: Any,
    ) -> None:
        super().__init__(type, **rest)
        self.instance_identity = given.text(service_account, "service_account")
        self._regions = given.names(region, "region")
        self._options: dict[str, Any] = {
            "zones": given.names(zones, "zones"),
            "project": given.text(project, "project"),
            "image": given.text(image, "image"),
            "network": given.text(network, "network") or "default",
            "subnetwork": given.text(subnetwork, "subnetwork"),
            "service_account": self.instance_identity,
            "reached_from": given.networks(reached_from, "reached_from"),
        }

    @property
    def account(self) -> Mapping[str, Any]:
        """The project. See `Cloud.account`."""
        return {"project": self._options["project"]} if self._options["project"] else {}

    def provider(self) -> Provider:
        """Return Compute Engine."""
        from envsync.runner.cloud.gce import GCEProvider

        return GCEProvider(self._regions, **self._options)
