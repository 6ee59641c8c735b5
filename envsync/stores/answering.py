"""Clients of botocore: who has answered is asked again with patience, who never has is given up soon.

Where there is no network, or a region's name is wrong, nobody shall wait for half a minute to be told so.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FIRST", "give_up_soon"]

FIRST = 3
"""How often a server is asked that has not answered yet."""


def give_up_soon(client: Any, unreachable: type[Exception]) -> None:
    """Have a client ask `FIRST` times, and no more often, as long as no connection comes about.

    What was answered once, refusals too, is asked for as often as the client's configuration says.

    Parameters
    ----------
    client : botocore's client
        Which.
    unreachable : type
        Botocore's ConnectionError.
    """
    answered = False

    def judge(*, attempts: int, caught_exception: Exception | None, **_: Any) -> None:
        nonlocal answered
        if not isinstance(caught_exception, unreachable):
            answered = True
        elif not answered and attempts >= FIRST:
            raise caught_exception

    client.meta.events.register("needs-retry", judge)
