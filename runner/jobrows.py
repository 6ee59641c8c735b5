"""How the jobs of a cluster stand, for people."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job, for people.

    Attributes
    ----------
    name, id : str
        Of the cluster, and of the batch system.
    state, reason : str
        As the batch system says it.
    node : str
        Where it runs.
    left : float or None
        Seconds that it may still run.
    workers : int
        How many are there.
    restarts : int
        How often the batch system has started it again.
    """

    name: str
    id: str
    state: str
    reason: str
    node: str
    left: float | None
    workers: int
    restarts: int = 0
