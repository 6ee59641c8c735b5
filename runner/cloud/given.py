"""What a user says of machines, as plain values; what makes no sense is refused before anything is made."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dask.utils import parse_bytes

from envsync.errors import CloudError
from envsync.runner.amounts import span

__all__ = ["commands", "disk", "flag", "lease", "names", "networks", "tags", "text", "zones_of"]

_LEAST_LEASE = 5.0  # seconds between two looks of a machine at its lease
_LEAST_DISK, _LARGEST_DISK = 10**9, 10**15  # bytes


def text(value: Any, what: str, *, needed: bool = False) -> str:
    """Return a name; empty if none is given.

    Parameters
    ----------
    value : str or None
        What was given.
    what : str
        The keyword that it was given for, for the error.
    needed : bool
        Whether there has to be one.

    Raises
    ------
    ValueError
        It is no text, or none that could be a name.
    """
    if value is None or value == "":
        if needed:
            raise ValueError(f"{what} is not given")
        return ""
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise ValueError(f"{what} has to be a name, not {value!r}")
    return value


def names(value: Any, what: str) -> tuple[str, ...]:
    """Return one name, or several; none if None or an empty text is given. Zones may be numbers.

    Raises
    ------
    ValueError
        One of them is no text, or none that could be a name.
    """
    if value is None or value == "":
        return ()
    several = (value,) if isinstance(value, str) or type(value) is int else value
    if not isinstance(several, Sequence):
        raise ValueError(f"{what} has to be a name, or several, not {value!r}")
    return tuple(text(str(one) if type(one) is int else one, what, needed=True) for one in several)


def zones_of(zones: Sequence[str], regions: Sequence[str], cloud: str) -> tuple[str, ...]:
    """Return zones whose names begin with their regions'.

    Raises
    ------
    CloudError
        None is of any of the regions: nobody would ask for them, and others would be taken in their place.
    """
    if zones and not any(zone.startswith(tuple(regions)) for zone in zones):
        raise CloudError(
            f"no zone of {', '.join(regions)} is called {' or '.join(zones)}",
            where=cloud,
            hint="Name zones of the regions that are given, or leave zones out.",
        )
    return tuple(zones)


def networks(value: Any, what: str) -> tuple[str, ...]:
    """Return networks as clouds write them; an address alone is the network that has it and no other.

    Raises
    ------
    ValueError
        One of them is no network, or there is none.
    """
    found = names(value, what)
    if not found:
        raise ValueError(
            f"{what} is empty: nobody could log in to the machines, nor could envsync. "
            "Name the networks that you come from, such as '203.0.113.0/24', or leave it out"
        )
    try:
        return tuple(str(ipaddress.ip_network(one, strict=False)) for one in found)
    except ValueError as error:
        raise ValueError(f"{what}: {error}. Write networks as 203.0.113.0/24") from error


def disk(value: Any) -> int:
    """Return the size of a root disk in GiB; 0, for the image's own, if none is given.

    Raises
    ------
    ValueError
        It is no size, or none that a disk has.
    """
    if value is None:
        return 0
    try:
        size = float(parse_bytes(value))
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"disk={value!r} is no size: write 100 GB") from error
    if isinstance(value, bool) or not _LEAST_DISK <= size <= _LARGEST_DISK:
        raise ValueError(f"disk={value!r} is not the size of a disk: write 100 GB")
    return math.ceil(size / 2**30)


def lease(value: Any) -> float:
    """Return how long machines live without a sign of life from here, in seconds.

    Raises
    ------
    ValueError
        It is no time, or a shorter one than machines can count.
    """
    seconds = span(value, "client_timeout")
    if seconds < _LEAST_LEASE:
        raise ValueError(
            f"client_timeout must be at least {_LEAST_LEASE:g} s, not {value!r}: "
            "machines would end themselves before the first sign of life"
        )
    return seconds


def flag(value: Any, what: str) -> bool:
    """Return whether something is to be so.

    Raises
    ------
    ValueError
        It is neither True nor False: any text would count as True, ``"no"`` too.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what} has to be True or False, not {value!r}")
    return value


def commands(value: Any) -> tuple[str, ...]:
    """Return shell commands: one, or several.

    Raises
    ------
    ValueError
        One of them is no text.
    """
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not all(isinstance(one, str) and "\0" not in one for one in given):
        raise ValueError(f"commands has to be a list of shell commands, not {value!r}")
    return tuple(given)


def tags(value: Any) -> dict[str, str]:
    """Return tags: numbers, as YAML has them, are text.

    Raises
    ------
    ValueError
        They are no keys with values, or some are those that machines are found by.
    """
    if not isinstance(value or {}, Mapping):
        raise ValueError(f"tags has to be keys with values, such as {{'team': 'genomics'}}, not {value!r}")
    found = {}
    for key, said in (value or {}).items():
        if not all(isinstance(one, str | int | float) and str(one).isprintable() for one in (key, said)):
            raise ValueError(f"tags: {key!r}: {said!r} is no tag: keys and values are text of one line")
        if not str(key).strip():
            raise ValueError("tags: a key is empty")
        if str(key) == "Name" or str(key).lower().startswith("envsync"):
            raise ValueError(f"tags: {key} is envsync's own, by which machines are found: take another key")
        found[str(key)] = str(said)
    return found
