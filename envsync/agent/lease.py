"""The lease of a rented machine: a file that says until when it lives, moved on while the client is heard.

The machine itself ends when the time is over; see `envsync.runner.cloud.userdata`.
"""

from __future__ import annotations

import contextlib
import os
import threading

from .layout import Problem

__all__ = ["Lease"]

_EVERY = 0.1  # of its length: how often it is moved on, at most


class Lease:
    """A lease that is held.

    Parameters
    ----------
    path : str
        Its file, which is there: the machine looks at it.
    seconds : float
        How long the machine lives after each sign of life.

    Raises
    ------
    Problem
        The file is not there, or not to be written: this is no rented machine, or not ours.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self._renewed = 0.0
        self._over = False
        self._writing = threading.Lock()
        try:
            self._write(self.seconds)
        except OSError as error:
            raise Problem(
                "unfit",
                f"the machine's lease cannot be renewed: {path}: {error.strerror}",
                "What the machine ran first has not made it: see its console, and cloud-init's log.",
            ) from error

    def renew(self, now: float) -> None:
        """Move it on, if that is due; `now` is the monotonic clock's."""
        if now - self._renewed >= self.seconds * _EVERY:
            self._renewed = now
            # the next one may do it; if none does, the machine ends
            with self._writing, contextlib.suppress(OSError):
                if not self._over:
                    self._write(self.seconds)

    def end(self, within: float) -> None:
        """Have the machine end within so many seconds, whoever is heard from now on."""
        with self._writing, contextlib.suppress(OSError):
            if not self._over:
                self._over = True
                self._write(min(within, self.seconds))

    def _write(self, seconds: float) -> None:
        """Write the time since boot at which it is over: in one piece, as it is read at any time."""
        with open("/proc/uptime", encoding="ascii") as file:  # noqa: PTH123 - no more is imported than that
            up = float(file.read().split()[0])
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(handle, b"%-20d\n" % int(up + seconds), 0)
        finally:
            os.close(handle)
