"""The systems that clouds' plain images are of, and what is known of each from its name alone. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SYSTEMS", "System", "system_of"]


@dataclass(frozen=True, slots=True)
class System:
    """A release of a distribution.

    Attributes
    ----------
    name : str
        For people.
    called : re.Pattern
        How images of it are called.
    libc : str
        The version of its glibc.
    python : str
        The version of its own Python.
    """

    name: str
    called: re.Pattern[str]
    libc: str
    python: str


SYSTEMS = (
    System("Debian 12", re.compile(r"debian[^0-9a-z]*12(?!\d)|bookworm", re.IGNORECASE), "2.36", "3.11"),
    System("Debian 13", re.compile(r"debian[^0-9a-z]*13(?!\d)|trixie", re.IGNORECASE), "2.41", "3.13"),
    System("Ubuntu 24.04", re.compile(r"ubuntu.*(?<!\d)24\.?04(?!\d)|noble", re.IGNORECASE), "2.39", "3.12"),
    System("Ubuntu 22.04", re.compile(r"ubuntu.*(?<!\d)22\.?04(?!\d)|jammy", re.IGNORECASE), "2.35", "3.10"),
)
"""Those that are known, the one that machines are tried with most first."""


def system_of(name: str) -> System | None:
    """Return the system of an image by its name, None if that does not tell."""
    return next((one for one in SYSTEMS if one.called.search(name)), None)
