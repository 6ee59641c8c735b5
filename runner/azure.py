"""Azure as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import given
from envsync.runner.clouds import Cloud

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import Provider

__all__ = ["Azure"]


class Azure(Cloud):
    """Machines of Azure (``pip install 'dask-envsync[azure]'``).

    The account is that of Azure's default credentials: ``az login``, a service principal's variables, a
    managed identity. A machine that shuts itself down is kept, and billed as one that runs, until it is
    deleted by `close` or ``envsync reap``, or deallocated by a schedule of Azure's: within six hours, if
    nobody moves that on any more.

    Parameters
    ----------
    type : str
        The size, as Azure calls it: ``"Standard_D4s_v5"``.
    region : str or sequence of str
        Where, such as ``"westeurope"``; more than one are tried in this order where one has no room.
    zones : str or sequence of str
        Only in these availability zones, ``"1"`` or ``"westeurope-1"``, in this order.
    subscription : str
        Its id. That of ``AZURE_SUBSCRIPTION_ID``, or the one that `az` is set to, if not given.
    image : str
        ``"publisher:offer:sku:version"``, or the id of an image of yours or of a gallery; with cloud-init.
        Ubuntu 24.04 if not given. It has to be given for types with GPUs, as Ubuntu's has no driver for them.
    subnet : str
        The id of a subnet that machines are put in. Each cluster gets a network of its own if not given.
    identity : str
        The id of a user-assigned managed identity, for machines that use Azure themselves.
    reached_from : sequence of str
        Networks that may reach the machines' sshd: any by default; only the cluster's key opens it.
    **rest
        See `Cloud`. With ``private=True`` machines have no public address at all.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import Azure
    >>> machines = Azure("Standard_D4s_v5", region="westeurope", max_lifetime="8 h")
    >>> with SyncedCluster(machines, n_workers=2) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    anywhere = ("westeurope",)

    def __init__(
        self,
        type: str,  # noqa: A002 - what everybody calls it
        *,
        region: str | Sequence[str] = (),
        zones: str | Sequence[str] = (),
        subscription: str = "",
        image: str = "",
        subnet: str = "",
        identity: str = "",
        reached_from: str | Sequence[str] = ("0.0.0.0/0",),
        **rest: Any,
    ) -> None:
        super().__init__(type, **rest)
        self._regions = given.names(region, "region")
        self._options: dict[str, Any] = {
            "zones": given.names(zones, "zones"),
            "subscription": given.text(subscription, "subscription"),
            "image": given.text(image, "image"),
            "subnet": given.text(subnet, "subnet"),
            "identity": given.text(identity, "identity"),
            "public": not self.private,
            "reached_from": given.networks(reached_from, "reached_from"),
        }

    @property
    def account(self) -> Mapping[str, Any]:
        """The subscription: elsewhere another may be the one that is taken. See `Cloud.account`."""
        known = self._options["subscription"] or getattr(self._provider, "subscription", "")
        return {"subscription": known} if known else {}

    def provider(self) -> Provider:
        """Return Azure."""
        from envsync.runner.cloud.azure import AzureProvider

        return AzureProvider(self._regions, **self._options)
