"""Machines that are lost again and again: how many are replaced, and when `adapt` rents again."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OFTEN", "Losses"]

OFTEN = 600.0  # seconds within which not more machines are replaced than
_MOST = 8  # so many, or as many as there should be if that is more; as many in a row, while it adapts
_SOON = 600.0  # seconds: one that was up for as long was worth renting
_PAUSE, _LONGEST = 60.0, 1800.0  # seconds: the first pause; each further one is twice as long, at most


class Losses:
    """What became of machines that a cluster has lost.

    Attributes
    ----------
    until : float
        Until then, by the monotonic clock, a cluster that adapts rents no more.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._replaced: deque[float] = deque()
        self._row = 0  # lost soon after they came up, one after the other
        self._begun = 0.0  # when the first of them was
        self._pauses = 0

    def forget(self) -> None:
        """Pause no more: what was rented lasts, or the user has seen to it."""
        self._row = self._pauses = 0
        self._begun = self.until = 0.0

    def replaces(self, there: int) -> bool:
        """Return whether one that is lost is replaced, beside so many that are there."""
        now = time.monotonic()
        while self._replaced and now - self._replaced[0] > OFTEN:
            self._replaced.popleft()
        if len(self._replaced) >= max(_MOST, there):
            return False
        self._replaced.append(now)
        return True

    def pause(self, up_since: float, others: Iterable[float]) -> float:
        """Know one that was lost while the cluster adapts, which asks for another by itself.

        Parameters
        ----------
        up_since : float
            When it was up, by the monotonic clock; 0 if it never was.
        others : iterable of float
            The same of those that are there.

        Returns
        -------
        float
            For how many seconds from now on no more is rented; 0: as before.
        """
        now, others = time.monotonic(), list(others)
        lasted = [one for one in (up_since, *others) if one and now - one >= _SOON]
        if any(one > self._begun for one in lasted):
            self.forget()
        if up_since in lasted:
            return 0.0
        self._begun = self._begun or now
        self._row += 1
        if self._row <= max(_MOST, len(others)) or now < self.until:
            return 0.0
        length: float = min(_PAUSE * 2.0**self._pauses, _LONGEST)
        self._pauses += 1
        self.until = now + length
        return length
