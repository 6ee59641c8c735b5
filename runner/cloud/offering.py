"""What would be rented, and at what price: asked before anything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envsync.errors import CapacityError
from envsync.runner.cloud.costs import money
from envsync.runner.cloud.prices import price_of

if TYPE_CHECKING:
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
    """

    cloud: str
    region: str
    type: str
    zones: tuple[str, ...]
    count: int
    market: Market
    price: Price | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        price = self.price
        said = price and {
            "amount": price.amount,
            "currency": price.currency,
            "source": price.source,
            "date": price.date,
        }
        return {
            "cloud": self.cloud,
            "region": self.region,
            "type": self.type,
            "zones": list(self.zones),
            "machines": self.count,
            "market": self.market,
            "hourly_price_of_one": said,
        }

    def __str__(self) -> str:
        kind = f"{self.type} (spot)" if self.market == "spot" else self.type
        first = f"{self.count} x {kind} of {self.cloud} in {self.region}: {', '.join(self.zones)}"
        if self.price is None:
            return f"{first}\nwhat they cost nobody says: write prices as envsync.cloud.prices"
        one, currency = self.price.amount, self.price.currency
        each, all_of_them = money(one, currency), money(one * self.count, currency)
        return (
            f"{first}\n{each} an hour each, {all_of_them} in all, without disks and traffic "
            f"({self.price.source}, {self.price.date})"
        )


def offer(provider: Provider, machine_type: str, count: int, market: Market) -> Offer:
    """Ask for the first region that has a type.

    Raises
    ------
    CapacityError
        None has it.
    CloudError
        The cloud refused to say.
    """
    for region in provider.regions:
        zones = provider.zones(region, machine_type)
        if zones:
            return Offer(
                cloud=provider.name,
                region=region,
                type=machine_type,
                zones=zones,
                count=count,
                market=market,
                price=price_of(provider, region, machine_type, market, zones[0]),
            )
    raise CapacityError(
        f"there is no {machine_type} in {', '.join(provider.regions)}",
        where=provider.name,
        hint="Is the type's name right? Name other zones or regions.",
        scope="region",
    )
