"""What is known of each host while something goes on: a line, drawn in a terminal or in a notebook."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from envsync.hooks import Hooks

__all__ = ["Line", "Lines", "amount"]


def amount(done: int, total: int, unit: str) -> str:
    """Return ``"3 of 10 packages"`` or ``"1.2 of 84.0 MB"``."""
    if unit == "B":
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
    return f"{done} of {total} {unit}"


@dataclass(slots=True)
class Line:
    """What is known of one host.

    Attributes
    ----------
    what : str
        What it does, or did last.
    state : {"running", "done", "failed"}
        How that goes.
    amount : str
        How far it is.
    fraction : float or None
        The same, of 1.
    since : float
        When it began, by the monotonic clock.
    seconds : float or None
        How long it took.
    """

    what: str = ""
    state: str = "running"
    amount: str = ""
    fraction: float | None = None
    since: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    @property
    def text(self) -> str:
        """What is shown of it."""
        return f"{self.what}  {self.amount}" if self.amount and self.state == "running" else self.what

    def lasted(self, now: float) -> float:
        """Return for how many seconds it has gone on, or how long it took."""
        return now - self.since if self.seconds is None else self.seconds


class Lines(Hooks):
    """Keeps one line for each host. Subclass it, and draw them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, Line] = {}
        self._lock = threading.Lock()  # never held while something is drawn

    def lines(self) -> dict[str, Line]:
        """Return the lines as they are now, by host, in the order in which hosts were first heard of."""
        with self._lock:
            return {where: replace(line) for where, line in self._lines.items()}

    def changed(self) -> None:
        """A line is there or has changed; does nothing here."""

    def step(self, where: str, what: str) -> None:
        """See `Hooks.step`."""
        super().step(where, what)
        with self._lock:
            self._lines[where] = Line(what)
        self.changed()

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        """See `Hooks.progress`."""
        super().progress(where, done, total, unit)
        with self._lock:
            line = self._lines.setdefault(where, Line())
            line.amount, line.fraction = amount(done, total, unit), done / total if total else None
        self.changed()

    def done(self, where: str, what: str, seconds: float) -> None:
        """See `Hooks.done`."""
        super().done(where, what, seconds)
        with self._lock:
            line = self._lines.setdefault(where, Line())
            line.state, line.what, line.seconds = "done", what, seconds
        self.changed()

    def failed(self, where: str, why: str) -> None:
        """See `Hooks.failed`."""
        super().failed(where, why)
        with self._lock:
            line = self._lines.setdefault(where, Line())
            line.state, line.what = "failed", why.splitlines()[0] if why else "failed"
            line.seconds = line.lasted(time.monotonic())
        self.changed()
