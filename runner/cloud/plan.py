"""What a cluster rents: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from envsync.runner.cloud.provider import Market, Tags

__all__ = ["MARKETS", "HostKeys", "Plan", "Spot"]

Spot = Literal["never", "prefer", "only"]
HostKeys = Literal["console", "first"]

MARKETS: dict[Spot, tuple[Market, ...]] = {
    "never": ("on-demand",),
    "prefer": ("spot", "on-demand"),
    "only": ("spot",),
}
"""What to try, in this order."""
_POLL = 2.0  # seconds between two looks at machines that boot, or end
_WATCH = 15.0  # seconds between two looks at machines that work


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to rent.

    Attributes
    ----------
    type : str
        Of the machines, such as ``"m7i.large"``.
    count : int
        How many to begin with; the first is the scheduler's.
    tags : Tags
        Whose they are.
    spot : {"never", "prefer", "only"}
        ``"prefer"`` takes others where no spot machine is to be had. The first is one with ``"only"`` alone:
        nothing survives its end.
    disk : int
        GiB of each root disk; 0 for the image's own size.
    lease : float
        Seconds after the last sign of life from here at which a machine ends itself.
    life : float or None
        Seconds from boot after which it does so anyhow.
    boot : float
        Seconds that a machine has to come up, and to be known.
    commands : tuple of str
        Shell commands that each runs when it boots.
    private : bool
        Whether machines are reached by their private addresses.
    host_keys : {"console", "first"}
        What the first connection is verified with: what the machine says on its console, or nothing.
    """

    type: str
    count: int
    tags: Tags
    spot: Spot = "never"
    disk: int = 0
    lease: float = 120.0
    life: float | None = None
    boot: float = 300.0
    commands: tuple[str, ...] = ()
    private: bool = False
    host_keys: HostKeys = "console"
    poll: float = field(default=_POLL, repr=False)
    watch: float = field(default=_WATCH, repr=False)

    def markets(self, *, first: bool = False) -> tuple[Market, ...]:
        """What to try for a machine, in this order."""
        return MARKETS["never" if first and self.spot == "prefer" else self.spot]
