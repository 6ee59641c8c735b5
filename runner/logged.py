"""Progress for scripts and notebooks: to the logger ``envsync``, which shows warnings by default."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from envsync.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LoggedHooks", "logger", "unsaid"]

logger = logging.getLogger("envsync")


class LoggedHooks(Hooks):
    """Tells the logger."""

    def step(self, where: str, what: str) -> None:
        """See `Hooks.step`."""
        logger.info("%s: %s", where, what)

    def done(self, where: str, what: str, seconds: float) -> None:
        """See `Hooks.done`."""
        logger.info("%s: %s (%.1f s)", where, what, seconds)

    def failed(self, where: str, why: str) -> None:
        """See `Hooks.failed`."""
        logger.error("%s: %s", where, why)

    def note(self, where: str, text: str) -> None:
        """See `Hooks.note`."""
        logger.info("%s: %s", where, text)

    def warning(self, where: str, text: str) -> None:
        """See `Hooks.warning`."""
        logger.warning("%s: %s", where, text)


@contextlib.contextmanager
def unsaid(name: str, message: str) -> Iterator[None]:
    """Keep a logger from saying what the error that is raised says better.

    Parameters
    ----------
    name : str
        The logger's.
    message : str
        What it would say.
    """
    log = logging.getLogger(name)

    def other(record: logging.LogRecord) -> bool:
        return record.msg != message

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)
