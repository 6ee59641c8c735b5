"""What machines cost: whoever was hired, at what price, for how long. Nothing in here asks anybody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from envsync.errors import ConfigurationError
from envsync.runner.cloud.provider import Market, Price

__all__ = ["Bill", "Hired", "Sum", "duration", "in_time", "listed_price", "money", "summed"]

_HOUR = 3600.0
_LATEST = float(2**32)
_SOURCE = "your configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hired:
    """A machine, and what it costs.

    Attributes
    ----------
    id, region, zone, type : str
        Which it is, where, and what.
    market : {"on-demand", "spot"}
        How it is paid for.
    price : Price or None
        What an hour of it costs; None if nobody knows, or not yet.
    disk : Price or None
        What an hour of its root disk costs, for all of its size; None if that is not known.
    begun, ended : float, float or None
        When, in seconds since 1970 by one clock; None while it is there.
    """

    id: str
    region: str
    zone: str
    type: str
    market: Market = "on-demand"
    price: Price | None = None
    disk: Price | None = None
    begun: float = 0.0
    ended: float | None = None

    def hours(self, now: float) -> float:
        """Return how long it has been there, in hours."""
        end = now if self.ended is None else min(self.ended, now)
        return max(0.0, end - self.begun) / _HOUR

    @property
    def called(self) -> str:
        """Return its type, and that it is a spot machine."""
        return f"{self.type} (spot)" if self.market == "spot" else self.type

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "price": _plain(self.price), "disk": _plain(self.disk)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hired:
        """Read what `to_dict` returned.

        KeyError, TypeError, ValueError or OverflowError if it is something else.
        """
        ended = data["ended"]
        return cls(
            **{key: str(data[key]) for key in ("id", "region", "zone", "type")},
            market="spot" if data["market"] == "spot" else "on-demand",
            price=_price(data["price"]),
            disk=_price(data.get("disk")),
            begun=in_time(data["begun"]),
            ended=None if ended is None else in_time(ended),
        )


@dataclass(frozen=True, slots=True)
class Bill:
    """What the machines of a cluster cost, those that have ended too.

    Attributes
    ----------
    hired : tuple of Hired
        In the order in which they were made.
    """

    hired: tuple[Hired, ...] = ()

    @property
    def currency(self) -> str:
        """The currency of all sums; empty if no price is known. What is priced in another is not priced."""
        found = Counter(one.price.currency for one in self.hired if one.price is not None)
        return found.most_common(1)[0][0] if found else ""

    @property
    def unpriced(self) -> tuple[Hired, ...]:
        """The machines whose price nobody knows: no sum has them in it."""
        currency = self.currency
        return tuple(one for one in self.hired if not _is_in(one.price, currency))

    @property
    def without_disk(self) -> tuple[Hired, ...]:
        """The machines whose disk no sum has in it."""
        currency = self.currency
        return tuple(one for one in self.hired if not _is_in(one.disk, currency))

    @property
    def sources(self) -> tuple[str, ...]:
        """Who has said what the prices are, and when: ``"AWS price list, 2026-11-01"``."""
        said = [price for one in self.hired for price in (one.price, one.disk) if price is not None]
        return tuple(dict.fromkeys(f"{price.source}, {price.date}" for price in said))

    def cost(self, now: float) -> float:
        """Return what it comes to until a time (seconds since 1970), in `currency`.

        Machines in `unpriced` and disks in `without_disk` are not in it.
        """
        currency = self.currency
        return sum(_hourly(one, currency) * one.hours(now) for one in self.hired)

    def rate(self, now: float) -> float:
        """Return what an hour costs as things stand, in `currency`."""
        currency = self.currency
        return sum(
            _hourly(one, currency)
            for one in self.hired
            if one.begun <= now and (one.ended is None or one.ended > now)
        )

    def summary(self, now: float) -> str:
        """Return one line, such as ``"8 x g5.xlarge, 41 min, 5.52 USD"``.

        That is the most machines of each type that were there at the same time, and from the first's begin to
        the last's end.
        """
        if not self.hired:
            return "no machines"
        most = {called: self._most(called) for called in dict.fromkeys(one.called for one in self.hired)}
        machines = " + ".join(f"{number} x {called}" for called, number in most.items())
        ends = [now if one.ended is None else min(one.ended, now) for one in self.hired]
        took = duration(max(0.0, max(ends) - min(one.begun for one in self.hired)))
        unpriced = len(self.unpriced)
        if unpriced == len(self.hired):
            return f"{machines}, {took}, price not known"
        cost = money(self.cost(now), self.currency)
        if unpriced:
            cost += f" without {unpriced} of {len(self.hired)} machines, whose price is not known"
        elif self.without_disk:
            cost += " without disks"
        return f"{machines}, {took}, {cost}"

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain JSON types."""
        return [one.to_dict() for one in self.hired]

    @classmethod
    def from_list(cls, data: Sequence[Mapping[str, Any]]) -> Bill:
        """Read what `to_list` returned; KeyError, TypeError or ValueError if it is something else."""
        return cls(tuple(map(Hired.from_dict, data)))

    def _most(self, called: str) -> int:
        """Return how many of a type were there at the same time."""
        steps: list[tuple[float, int]] = []
        for one in self.hired:
            if one.called == called:
                steps += [(one.begun, 1), *([] if one.ended is None else [(one.ended, -1)])]
        most = there = 0
        for _, step in sorted(steps):  # at the same moment one ends before another begins
            there += step
            most = max(most, there)
        return max(most, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What several machines have cost.

    Attributes
    ----------
    of : str
        A cluster, a user, or a day.
    currency : str
        Empty if no price is known.
    cost : float
        In it.
    hours : float
        Of all machines together.
    machines, unpriced, without_disk : int
        How many there were, how many of them are not in `cost`, and of how many the disk is not.
    """

    of: str
    currency: str
    cost: float
    hours: float
    machines: int
    unpriced: int
    without_disk: int


def summed(
    bills: Iterable[tuple[str, Bill, float]], *, since: float = 0.0, by_day: bool = False
) -> list[Sum]:
    """Sum bills up.

    Parameters
    ----------
    bills : iterable of (str, Bill, float)
        What each is summed up under, and until when.
    since : float
        What came before is left out. Seconds since 1970.
    by_day : bool
        Whether they are summed up by local day instead, a machine's hours under the day in which they were.
    """
    parts: dict[tuple[str, str], list[tuple[float, float, str, bool, bool]]] = {}
    for of, bill, until in bills:
        currency = bill.currency
        for one in bill.hired:
            priced, disk = _is_in(one.price, currency), _is_in(one.disk, currency)
            begin, end = max(one.begun, since), until if one.ended is None else min(one.ended, until)
            cuts = _days(begin, end) if by_day else [(of, begin, end)]
            for name, start, stop in cuts:
                hours = (stop - start) / _HOUR
                if hours > 0:
                    part = (hours, hours * _hourly(one, currency), one.id, priced, disk)
                    parts.setdefault((name, currency), []).append(part)
    return [
        Sum(
            of=name,
            currency=currency,
            cost=sum(cost for _, cost, *_ in own),
            hours=sum(hours for hours, *_ in own),
            machines=len({identity for _, _, identity, *_ in own}),
            unpriced=len({identity for _, _, identity, priced, _ in own if not priced}),
            without_disk=len({identity for _, _, identity, _, disk in own if not disk}),
        )
        for (name, currency), own in sorted(parts.items())
    ]


def _days(begin: float, end: float) -> list[tuple[str, float, float]]:
    """Cut a time at midnights."""
    found = []
    while begin < end:
        day = datetime.fromtimestamp(begin).date()
        midnight = datetime.combine(day + timedelta(days=1), datetime.min.time()).timestamp()
        found.append((day.isoformat(), begin, min(midnight, end)))
        begin = midnight
    return found


def in_time(value: Any) -> float:
    """Return a time in seconds, since 1970 or from one moment to another, as somebody has written it.

    Raises
    ------
    ValueError
        It is none that clocks show: before 1970, or after 2106.
    """
    seconds = float(value)
    if not 0 <= seconds < _LATEST:
        raise ValueError(f"{seconds} is no time")
    return seconds


def money(amount: float, currency: str) -> str:
    """Return an amount for people: ``"5.52 USD"``, and four digits where two would be nothing."""
    digits = 2 if amount == 0 or amount >= 0.1 else 4
    return f"{amount:.{digits}f} {currency}".rstrip()


def duration(seconds: float) -> str:
    """Return a time for people: ``"41 min"``, ``"3 h 05 min"``, ``"12 s"``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def listed_price(table: Any, provider: str, region: str, machine_type: str, market: Market) -> Price | None:
    """Return what the user's own table says an hour costs, None if it says nothing.

    Parameters
    ----------
    table : mapping
        ``envsync.cloud.prices`` of Dask's configuration: below a provider's name ``date``, perhaps ``source``
        and ``currency`` (USD), and prices by type, for all regions or below a region's name;
        ``"m7i.large spot"`` for spot machines.
    provider, region, machine_type : str
        What it is about.
    market : {"on-demand", "spot"}
        How it is paid for.

    Raises
    ------
    ConfigurationError
        The table makes no sense.
    """
    where = "envsync.cloud.prices"
    if not table:
        return None
    mine = table.get(provider) if isinstance(table, Mapping) else table
    if mine is None:
        return None
    where = f"{where}.{provider}"
    if not isinstance(mine, Mapping) or not mine.get("date"):
        raise ConfigurationError(
            "prices need a date, and are written by type",
            where=where,
            hint="Write it as {date: 2026-11-01, m7i.large: 0.1008}: USD an hour.",
        )
    key = machine_type if market == "on-demand" else f"{machine_type} spot"
    there = mine.get(region)
    amount = there.get(key) if isinstance(there, Mapping) else None
    amount = mine.get(key) if amount is None else amount
    if amount is None:
        return None
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
        raise ConfigurationError(
            f"{key}: {amount!r} is no price", where=where, hint="Write what an hour costs, as 0.1008."
        )
    return Price(
        amount=float(amount),
        currency=str(mine.get("currency", "USD")),
        source=str(mine.get("source", _SOURCE)),
        date=str(mine["date"]),
    )


def _is_in(price: Price | None, currency: str) -> bool:
    return price is not None and price.currency == currency


def _hourly(one: Hired, currency: str) -> float:
    """Return what an hour costs of what is priced in a currency."""
    prices = (one.price, one.disk)
    return sum(price.amount for price in prices if price is not None and price.currency == currency)


def _plain(price: Price | None) -> dict[str, Any] | None:
    return None if price is None else {name: getattr(price, name) for name in price.__slots__}


def _price(data: Any) -> Price | None:
    if data is None:
        return None
    amount = float(data["amount"])
    if not 0 <= amount < math.inf:
        raise ValueError(f"{amount} is no price")
    return Price(
        amount=amount,
        currency=str(data["currency"]),
        source=str(data["source"]),
        date=str(data["date"]),
    )
