"""Times and money as people write them: one reading of each, for keywords, options and files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_timedelta

__all__ = ["Money", "money", "seconds", "span"]

_CLOCK = re.compile(r"(?:\d+-)?\d+(?::\d+){1,2}")
# Dask knows minutes by that word alone
_MINUTES = re.compile(r"(?<![a-z])mins?$", re.IGNORECASE)
_LONGEST = 10 * 365.25 * 86400
_MONEY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]{3})?")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of money.

    Attributes
    ----------
    amount : float
        More than 0.
    currency : str
        Its code by ISO 4217, such as ``"USD"``; empty for the one that prices are in, whatever that is.
    """

    amount: float
    currency: str = ""

    def __str__(self) -> str:
        return f"{self.amount:g} {self.currency}".rstrip()


def seconds(time: Any, what: str = "time") -> float:
    """Return a time in seconds: ``"20 min"``, ``"8h"``, ``"1-12:00:00"``, ``"30:00"`` (minutes), or a number.

    Parameters
    ----------
    time : str, float or timedelta
        What somebody wrote.
    what : str
        The keyword or option that it was written for, for the error.

    Raises
    ------
    ValueError
        It is no time.
    """
    try:
        if isinstance(time, bool):
            raise TypeError
        if isinstance(time, str) and _CLOCK.fullmatch(time.strip()):
            found = _by_clock(time.strip())
        else:
            found = float(
                parse_timedelta(_MINUTES.sub("minutes", time.strip()) if isinstance(time, str) else time)
            )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{what}={time!r} is no time: write 04:00:00, 2 h, 20 min, or seconds") from error
    if not math.isfinite(found):
        raise ValueError(f"{what}={time!r} is no time that ends")
    if found > _LONGEST:  # a machine's shell counts seconds, and what it cannot count would end nothing
        raise ValueError(f"{what}={time!r} is longer than ten years")
    return found


def _by_clock(text: str) -> float:
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if len(parts) == 2:
        parts = [*parts, 0] if days else [0, *parts]
    return float(int(days or 0) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2])


def span(time: Any, what: str = "time") -> float:
    """Return a time in seconds that is more than none, as `seconds` reads it.

    Raises
    ------
    ValueError
        It is no time, or none.
    """
    found = seconds(time, what)
    if found <= 0:
        raise ValueError(f"{what} must be more than 0 s, not {time!r}")
    return found


def money(amount: Any, what: str = "amount") -> Money:
    """Return an amount of money: of ``"50 USD"``, or a number, which is in the currency of the prices.

    Parameters
    ----------
    amount : str, float or Money
        What somebody wrote.
    what : str
        The keyword or option that it was written for, for the error.

    Raises
    ------
    ValueError
        It is none.
    """
    if isinstance(amount, Money):
        return amount
    found = None
    if isinstance(amount, str):
        found = _MONEY.fullmatch(amount.strip())
    elif isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount):
        found = _MONEY.fullmatch(f"{amount:f}")
    if found is None:
        raise ValueError(
            f"{what}={amount!r} is no amount of money: write 50 USD, the currency by its three letters"
        )
    if float(found[1]) <= 0:
        raise ValueError(f"{what} must be more than 0, not {amount!r}")
    return Money(float(found[1]), (found[2] or "").upper())
