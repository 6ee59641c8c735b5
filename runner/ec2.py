"""Amazon EC2 as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import given
from envsync.runner.clouds import Cloud

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import Provider

__all__ = ["EC2"]


class EC2(Cloud):
    """Machines of Amazon EC2, with the account that boto3 finds (``pip install 'dask-envsync[ec2]'``).

    Parameters
    ----------
    type : str
        The instance type, such as ``"m7i.large"``.
    region : str or sequence of str, optional
        Where; more than one are tried in this order where one has no room. boto3's default if not given.
    zones : sequence of str
        Only in these availability zones, in this order.
    image : str
        An image's id, or a name pattern whose newest image is taken. If not given it is Debian 12, and for
        types with NVIDIA GPUs Amazon's Deep Learning Base image with their driver.
    image_owner : str
        Whose images a name pattern is about: an account, ``"self"`` or ``"amazon"``.
    subnets : sequence of str
        Subnets instead of each zone's default one.
    instance_profile : str
        The name of an instance profile, for machines that use AWS themselves.
    placement_group : str
        The name of a placement group.
    reached_from : sequence of str
        Networks that may reach the machines' sshd: any by default; only the cluster's key opens it.
    profile : str, optional
        A profile of your AWS configuration.
    **rest
        See `Cloud`.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import EC2
    >>> with SyncedCluster(EC2("m7i.large", region="eu-west-1"), n_workers=2) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        type: str,  # noqa: A002 - what EC2 calls it
        *,
        region: str | Sequence[str] = (),
        zones: Sequence[str] = (),
        image: str = "",
        image_owner: str = "",
        subnets: Sequence[str] = (),
        instance_profile: str = "",
        placement_group: str = "",
        reached_from: Sequence[str] = ("0.0.0.0/0",),
        profile: str | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(type, **rest)
        self.profile = given.text(profile, "profile") or None
        self.instance_identity = given.text(instance_profile, "instance_profile")
        self._regions = given.names(region, "region")
        self._options: dict[str, Any] = {
            "zones": given.names(zones, "zones"),
            "image": given.text(image, "image"),
            "image_owner": given.text(image_owner, "image_owner"),
            "subnets": given.names(subnets, "subnets"),
            "instance_profile": self.instance_identity,
            "placement_group": given.text(placement_group, "placement_group"),
            "reached_from": given.networks(reached_from, "reached_from"),
            "profile": self.profile,
        }

    @property
    def account(self) -> Mapping[str, Any]:
        """The profile. See `Cloud.account`."""
        return {"profile": self._options["profile"]}

    def provider(self) -> Provider:
        """Return EC2."""
        from envsync.runner.cloud.ec2 import EC2Provider

        return EC2Provider(self._regions, **self._options)
