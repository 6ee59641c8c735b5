"""What would be rented, and at what price: asked before anything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envsync.errors import CapacityError
from envsync.runner.cloud.costs import money
from envsync.runner.cloud.prices import price_of

if TYPE_CHECKING:
    from envsync.runner.cloud.plan import Spot
    from envsync.runner.cloud.provider import Market, Price, Provider

__all__ = ["Offer", "offer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Machines that could be had.

    Attributes
    ----------
    cloud, region, type : str
        Whose, where and what.
    zones : tuple of str
        The zones that have the type, in the order to try.
    count : int
        How many machines.
    market : {"on-demand", "spot"}
        How they are paid for, where there is room.
    price : Price or None
        Of one for an hour, without its disk; None if nobody says.
    first : Price or None
        Of the first, which is the scheduler's, where it alone is no spot machine.
    first_apart : bool
        Whether that is so.
    """

    cloud: str
    region: str
    type: str
    zones: tuple[str, ...]
    count: int
    market: Market
    price: Price | None
    first: Price | None = None
    first_apart: bool = False

    @property
    def total(self) -> float | None:
        """What all of them cost for an hour; None if it is not known of each."""
        first = self.first if self.first_apart else self.price
        if self.price is None or first is None or first.currency != self.price.currency:
            return None
        return first.amount + self.price.amount * (self.count - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "cloud": self.cloud,
            "region": self.region,
            "type": self.type,
            "zones": list(self.zones),
            "machines": self.count,
            "market": self.market,
            "hourly_price_of_one": _plain(self.price),
            "hourly_price_of_first": _plain(self.first if self.first_apart else self.price),
            "hourly_price_of_all": self.total,
        }

    def __str__(self) -> str:
        spot = f"{self.type} (spot)"
        kinds = f"{self.count} x {spot if self.market == 'spot' else self.type}"
        if self.first_apart:
            kinds = f"1 x {self.type} + {self.count - 1} x {spot}"
        what = f"{kinds} of {self.cloud} in {self.region}: {', '.join(self.zones)}"
        if self.price is None or self.total is None:
            return (
                f"{what}\nwhat they cost is not known: the cloud says no price, and Dask's configuration "
                "none for them below envsync: cloud: prices:"
            )
        each = f"{money(self.price.amount, self.price.currency)} an hour each"
        if self.first is not None:
            each = f"{money(self.first.amount, self.first.currency)} an hour, and {each}"
        return (
            f"{what}\n{each}, {money(self.total, self.price.currency)} in all, without disks and traffic "
            f"({self.price.source}, {self.price.date})"
        )


def offer(provider: Provider, machine_type: str, count: int, spot: Spot) -> Offer:
    """Ask for the first region that has a type. With ``"prefer"`` the first machine is no spot machine.

    Raises
    ------
    CapacityError
        None has it.
    CloudError
        The cloud refused to say.
    """
    apart = spot == "prefer" and count > 1
    market: Market = "spot" if spot == "only" or apart else "on-demand"
    for region in provider.regions:
        zones = provider.zones(region, machine_type)
        if zones:
            full = price_of(provider, region, machine_type, "on-demand", zones[0]) if apart else None
            return Offer(
                cloud=provider.name,
                region=region,
                type=machine_type,
                zones=zones,
                count=count,
                market=market,
                price=price_of(provider, region, machine_type, market, zones[0]),
                first=full,
                first_apart=apart,
            )
    raise CapacityError(
        f"there is no {machine_type} in {', '.join(provider.regions)}",
        where=provider.name,
        hint="Is the type's name right? Name other zones or regions.",
        scope="region",
    )


def _plain(price: Price | None) -> dict[str, Any] | None:
    return (
        None
        if price is None
        else {
            "amount": price.amount,
            "currency": price.currency,
            "source": price.source,
            "date": price.date,
        }
    )
