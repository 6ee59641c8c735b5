"""What Azure costs, by its public list of retail prices. Pure: the list is asked for elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.provider import Price

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envsync.runner.cloud.provider import Market

__all__ = ["disk", "disk_query", "machine", "machine_query"]

_MONTH = 730.0  # hours, as Azure counts
# sizes of standard SSDs, in GiB, each with its name: a disk costs what the next size does
_SIZES = (
    *((4, "E1"), (8, "E2"), (16, "E3"), (32, "E4"), (64, "E6"), (128, "E10"), (256, "E15"), (512, "E20")),
    *((1024, "E30"), (2048, "E40"), (4096, "E50"), (8192, "E60"), (16384, "E70"), (32767, "E80")),
)


def machine_query(region: str, machine_type: str) -> str:
    """Return the filter that finds a type's prices."""
    return (
        f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}' "
        f"and armSkuName eq '{machine_type}'"
    )


def machine(items: Iterable[Mapping[str, Any]], market: Market) -> Price | None:
    """Return what an hour of a Linux machine costs; the dearest, should the list say several things."""
    found = [
        one
        for one in items
        if "Windows" not in one.get("productName", "")
        and "Cloud Services" not in one.get("productName", "")
        and one.get("unitOfMeasure") == "1 Hour"
        and _market(one.get("skuName", "")) == market
    ]
    return _price(found, 1.0)


def disk_query(region: str, size: int) -> str:
    """Return the filter that finds the price of a standard SSD; empty if there are none so large."""
    name = _name(size)
    if not name:
        return ""
    return (
        f"serviceName eq 'Storage' and priceType eq 'Consumption' and armRegionName eq '{region}' "
        f"and productName eq 'Standard SSD Managed Disks' and skuName eq '{name} LRS'"
    )


def disk(items: Iterable[Mapping[str, Any]], size: int) -> Price | None:
    """Return what an hour of a disk costs, without what reading and writing costs."""
    wanted = f"{_name(size)} LRS Disk"
    return _price([one for one in items if one.get("meterName") == wanted], 1 / _MONTH)


def _name(size: int) -> str:
    return next((name for most, name in _SIZES if size <= most), "")


def _market(name: str) -> str:
    if name.endswith("Spot"):
        return "spot"
    return "" if name.endswith("Low Priority") else "on-demand"


def _price(found: list[Mapping[str, Any]], times: float) -> Price | None:
    priced = [one for one in found if float(one.get("retailPrice") or 0) > 0]
    if not priced:
        return None
    one = max(priced, key=lambda item: float(item["retailPrice"]))
    return Price(
        amount=float(one["retailPrice"]) * times,
        currency=str(one.get("currencyCode", "USD")),
        source="Azure's retail prices, without the public address",
        date=str(one.get("effectiveStartDate", ""))[:10],
    )
