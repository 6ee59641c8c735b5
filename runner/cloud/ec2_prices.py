"""What EC2 costs, by AWS's price list and by the history of spot prices. Clients of boto3 are given to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.provider import Price

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["listed", "machine", "spot", "volume"]

_MONTH = 730.0  # hours, as AWS counts


def machine(pricing: Any, region: str, machine_type: str) -> Price | None:
    """Return what an hour of a Linux machine costs on demand."""
    fields = {
        "regionCode": region,
        "instanceType": machine_type,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    return listed(_products(pricing, fields), "Hrs")


def volume(pricing: Any, region: str, kind: str, size: int) -> Price | None:
    """Return what an hour of a volume costs: its GiB, not what some kinds cost for being quick besides."""
    fields = {"regionCode": region, "productFamily": "Storage", "volumeApiName": kind}
    return listed(_products(pricing, fields), "GB-Mo", times=size / _MONTH)


def spot(client: Any, machine_type: str, zone: str = "") -> Price | None:
    """Return what an hour of a spot machine costs now; anywhere in the region if no zone is given."""
    asked: dict[str, Any] = {"AvailabilityZone": zone} if zone else {}
    history = client.describe_spot_price_history(
        InstanceTypes=[machine_type], ProductDescriptions=["Linux/UNIX"], MaxResults=20, **asked
    )["SpotPriceHistory"]
    if not history:
        return None
    latest = max(history, key=lambda one: one["Timestamp"])
    return Price(
        amount=float(latest["SpotPrice"]),
        currency="USD",
        source="EC2 spot price history",
        date=latest["Timestamp"].strftime("%Y-%m-%d"),
    )


def listed(price_list: Sequence[str], unit: str, *, times: float = 1.0) -> Price | None:
    """Return the price of what GetProducts has found, None if it says nothing.

    Parameters
    ----------
    price_list : sequence of str
        The products, each as JSON.
    unit : str
        Such as ``"Hrs"``: what is counted otherwise is passed over.
    times : float
        How many units an hour is.
    """
    for date, dimension in _dimensions(price_list):
        amount = float(dimension["pricePerUnit"].get("USD", 0))
        if amount > 0 and dimension["unit"] == unit:
            return Price(amount=amount * times, currency="USD", source="AWS price list", date=date)
    return None


def _dimensions(price_list: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for text in price_list:
        for offer in json.loads(text)["terms"].get("OnDemand", {}).values():
            for dimension in offer["priceDimensions"].values():
                yield str(offer["effectiveDate"])[:10], dimension


def _products(pricing: Any, fields: dict[str, str]) -> Sequence[str]:
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
    found: Sequence[str] = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    return found
