"""What the core tells whoever is watching. The core itself never prints."""

from __future__ import annotations

__all__ = ["Hooks"]


class Hooks:
    """Told about progress; every method here does nothing.

    Subclass and override what you want to show. Methods are called from the
    event loop's thread and from worker threads (locking, packing), also at the
    same time: guard what they share with a lock. They must return at once and
    must not raise.

    Attributes
    ----------
    verbose : bool
        Whether texts have their lists whole; by default they name a few and count the rest.
    """

    verbose = False

    def step(self, where: str, what: str) -> None:
        """A phase begins.

        Parameters
        ----------
        where : str
            The host's name, or ``"here"`` for this machine.
        what : str
            Such as ``"connecting"`` or ``"installing 34 packages"``.
        """

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        """The announced phase is so far along (`unit` is ``"B"`` for bytes, else a plural noun)."""

    def done(self, where: str, what: str, seconds: float) -> None:
        """The phase ended well after so many seconds."""

    def failed(self, where: str, why: str) -> None:
        """The phase ended badly; the error itself is raised as well."""

    def note(self, where: str, text: str) -> None:
        """Something that a person should know, and nothing has to be done about."""

    def warning(self, where: str, text: str) -> None:
        """Something that a person should look at."""

    def over(self, *, well: bool) -> None:
        """All that was begun has ended, such as a cluster's start: well, or it was given up."""
