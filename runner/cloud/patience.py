"""How often a cloud is asked: one that has answered with patience, one that never has a few times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from envsync.stores.answering import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable

    import stamina

__all__ = ["Patience"]

T = TypeVar("T")


class Patience:
    """Makes calls again, and knows whether there was an answer to any of them. For several threads.

    Parameters
    ----------
    caller : stamina.RetryingCaller
        How often a call is made, and how soon again.
    worth : callable
        Whether an error is worth another try.
    unreachable : callable
        Whether it says that no connection came about: without a network that is told after `FIRST` tries.
    """

    def __init__(
        self,
        caller: stamina.RetryingCaller,
        *,
        worth: Callable[[Exception], bool | float],
        unreachable: Callable[[Exception], bool],
    ) -> None:
        self._caller = caller
        self._worth = worth
        self._unreachable = unreachable
        self._answered = False

    def call(self, call: Callable[..., T], *words: Any, **asked: Any) -> T:
        """Make a call, and again as long as that is worth it."""
        failed = 0

        def worth(error: Exception) -> bool | float:
            nonlocal failed
            failed += 1
            if not self._unreachable(error):
                self._answered = True
            elif not self._answered and failed >= FIRST:
                return False
            return self._worth(error)

        found = self._caller.on(worth)(call, *words, **asked)
        self._answered = True
        return found
