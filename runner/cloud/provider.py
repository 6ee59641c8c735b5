"""What envsync asks of a cloud, and the values that go to and fro.

A provider makes machines, says how they stand, ends them, and knows what they cost; nothing of SSH, Dask or
environments. Its methods block: callers run them in threads. What is asked for twice is done once, and ending
what has ended is silent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CLUSTER",
    "DEADLINE",
    "OWNER",
    "Expected",
    "Found",
    "Machine",
    "MachineRequest",
    "Market",
    "Price",
    "Provider",
    "Shared",
    "Tags",
]

Market = Literal["on-demand", "spot"]
State = Literal["pending", "running", "stopped", "ending", "ended"]

CLUSTER, OWNER, DEADLINE = "envsync:cluster", "envsync:owner", "envsync:deadline"
"""The tags that every resource has from the call on that makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Whose a resource is.

    Attributes
    ----------
    cluster : str
        The cluster's name, of one start: no other has it.
    owner : str
        Who started it, such as ``"ada@laptop"``.
    deadline : str
        When it has to be gone, as ``2026-11-29T18:00:00Z``; empty if its cluster has no maximum life.
    more : tuple of (str, str)
        The user's own.
    """

    cluster: str
    owner: str
    deadline: str = ""
    more: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, str]:
        """Return keys and values."""
        return {
            **dict(self.more),
            "Name": self.cluster,
            CLUSTER: self.cluster,
            OWNER: self.owner,
            DEADLINE: self.deadline,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the machines of a cluster share in a region, made before the first of them.

    Attributes
    ----------
    region : str
        Where.
    key : str
        The provider's name of the cluster's public key.
    group : str
        What says who reaches the machines: a security group, a firewall.
    image : str
        The image's identity.
    """

    region: str
    key: str
    group: str
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """A machine to be made.

    Attributes
    ----------
    shared : Shared
        The region, and what it shares with others.
    type : str
        Such as ``"m7i.large"``.
    zone : str
        Where in the region; empty for anywhere.
    market : {"on-demand", "spot"}
        A spot machine is cheaper, and may be taken back.
    token : str
        However often a request of this token is made, one machine comes of it.
    tags : Tags
        Whose it is, and all that comes with it.
    user_data : str
        What it runs first. Everything on it can read that: no secrets.
    disk : int
        GiB of its root disk, which goes with it; 0 for the image's own size.
    lease : float
        Seconds without a sign of life from here for which it goes on: see `Provider.renew`.
    """

    shared: Shared
    type: str
    zone: str = ""
    market: Market = "on-demand"
    token: str
    tags: Tags
    user_data: str = field(repr=False)
    disk: int = 0
    lease: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as the provider says it stands.

    Attributes
    ----------
    id, region, zone, type : str
        Which it is, where, and what.
    state : {"pending", "running", "stopped", "ending", "ended"}
        ``running`` says that it was switched on, not that it has booted.
    market : {"on-demand", "spot"}
        How it is paid for.
    public_address, private_address : str
        Empty where it has none (yet).
    reason : str
        Why it is in that state, in the provider's words.
    called_off : bool
        Whether somebody has ended it through the cloud's interface; False where the cloud does not tell.
    tags : mapping of str to str
        Its tags.
    """

    id: str
    region: str
    zone: str
    type: str
    state: State
    market: Market = "on-demand"
    public_address: str = ""
    private_address: str = ""
    reason: str = ""
    called_off: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it works no more, and never will again."""
        return self.state in ("stopped", "ending", "ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a machine costs.

    Attributes
    ----------
    amount : float
        For an hour, in `currency`.
    currency : str
        ``"USD"``.
    source : str
        Who says so.
    date : str
        Since when it has been so, as ``2026-11-29``.
    """

    amount: float
    currency: str
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that has envsync's tags.

    Attributes
    ----------
    kind : str
        ``"machine"``, ``"disk"``, ``"address"``, ``"group"``, ``"key"``, ``"spot request"``, or what else a
        cloud has, in the plainest words.
    id : str
        The provider's name of it.
    cluster, owner, deadline : str
        What the tags say; empty where they do not.
    created : float
        When it was made, in seconds since 1970 by the cloud's clock; 0 where the cloud does not say.
    state : str
        Of a machine as `Machine.state`, never ``"ended"``: what has ended is not found. Else in the cloud's
        words.
    """

    kind: str
    id: str
    cluster: str
    owner: str = ""
    deadline: str = ""
    created: float = 0.0
    state: str = ""

    @classmethod
    def of(cls, kind: str, identity: str, tags: Mapping[str, str], created: float, state: str) -> Found:
        """Return what has these tags."""
        return cls(
            kind=kind,
            id=identity,
            cluster=tags.get(CLUSTER, ""),
            owner=tags.get(OWNER, ""),
            deadline=tags.get(DEADLINE, ""),
            created=created,
            state=state,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a machine of a type will be, as far as that is known before there is one.

    Attributes
    ----------
    image, name : str
        The image's identity, and what it is called.
    machine : str
        As ``platform.machine()`` will say: ``"x86_64"``, ``"aarch64"``.
    libc : (str, str), optional
        Such as ``("glibc", "2.36")``; None if that is not known.
    python : str
        The version of the image's own Python, ``"3.11"``; empty if that is not known.
    gpus : int
        How many of NVIDIA's it has.
    driver : str
        The version of NVIDIA's driver in the image; empty if there is none, or that is not known.
    disk : int
        GiB that the root disk should have; 0 where the image's own size will do.
    """

    image: str
    name: str
    machine: str
    libc: tuple[str, str] | None = None
    python: str = ""
    gpus: int = 0
    driver: str = ""
    disk: int = 0


class Provider(ABC):
    """A cloud's account.

    Every method raises CloudError for what the cloud refuses, with its own words; CapacityError where another
    zone or region may have what this one lacks. What it throttles is asked again here.

    Attributes
    ----------
    name : str
        Such as ``"ec2"``.
    regions : tuple of str
        Where machines may be made, the first choice first.
    has_console : bool
        Whether machines' consoles can be read. Where they cannot, nobody vouches for the first connection.
    gone_on_shutdown : bool
        Whether a machine that shuts itself down is gone for good, and costs nothing from then on.
    left_on_shutdown : str
        What is left of it where it is not, and whether that costs; users read it when machines are rented.
    renews : float
        Seconds between two calls of `renew`; 0 where it does nothing.
    """

    name: str
    regions: tuple[str, ...]
    has_console: bool = True
    gone_on_shutdown: bool = True
    left_on_shutdown: str = ""
    renews: float = 0.0

    @abstractmethod
    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the zones of a region that machines of a type can be made in, in the order to try."""

    @abstractmethod
    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:
        """Make what a cluster's machines share, or find what an earlier try of this cluster has made."""

    @abstractmethod
    def create(self, request: MachineRequest) -> Machine:
        """Make a machine, tagged as it is made; gone for good when it shuts itself down, if the cloud can."""

    @abstractmethod
    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return the machines that have a cluster's tag; those that ended for as long as they are known."""

    @abstractmethod
    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Begin to end machines; those that are gone or unknown are left out silently."""

    def renew(self, region: str, ids: Sequence[str], tags: Tags, lease: float) -> None:  # noqa: B027
        """Put off the moment at which the cloud itself stops machines, so that they cost no more.

        It is for machines that have shut themselves down, where those are not gone. Whoever lives calls it,
        from the first machine on. Here nothing is done.

        Parameters
        ----------
        region : str
            Where they are.
        ids : sequence of str
            Which; those that are gone or unknown are left out silently.
        tags : Tags
            Whose they are.
        lease : float
            Seconds without a sign of life from here for which they go on: the cloud may not stop them before.

        Raises
        ------
        CloudError
            It could not be put off for all of them.
        """

    @abstractmethod
    def console(self, region: str, identity: str) -> str:
        """Return what a machine has written to its console so far; empty if there is nothing yet."""

    @abstractmethod
    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Remove what a cluster's machines shared, found by its tag; return what is still in use."""

    @abstractmethod
    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:
        """Return what an hour of a machine costs, None where the cloud does not tell this account."""

    def expected(self, region: str, machine_type: str) -> Expected | None:  # noqa: ARG002
        """Return what a machine will be, so that it can be prepared for while it boots.

        Probing confirms it once the machine is there. None, as here: nothing is known before.
        """
        return None

    def disk_price(self, shared: Shared, size: int) -> Price | None:  # noqa: ARG002
        """Return what an hour of a machine's root disk costs beside the machine itself.

        Parameters
        ----------
        shared : Shared
            Where, and the image.
        size : int
            GiB; 0 for the image's own size.

        Returns
        -------
        Price or None
            None where the cloud does not tell; an amount of 0 where the machine's price has it in.
        """
        return None

    # -- what is there of all clusters

    @abstractmethod
    def everywhere(self) -> tuple[str, ...]:
        """Return all regions that this account may make machines in."""

    @abstractmethod
    def found(self, region: str) -> tuple[Found, ...]:
        """Return everything in a region that has the tag `CLUSTER`, whoever's it is, and has not ended."""

    @abstractmethod
    def remove(self, region: str, found: Found) -> bool:
        """End one of what `found` returned; True as well if it is gone already.

        False: something still uses it, and it can be removed when that has ended. A machine that has begun to
        end is True.
        """
