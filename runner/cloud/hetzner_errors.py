"""What Hetzner refuses, as errors of ours: in its own words, and with what to do."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from envsync.errors import CapacityError, CloudError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["but_for", "code_of", "translated", "unreachable", "worth_another_try"]

_LACKS = frozenset({"resource_unavailable", "placement_error", "no_space_left_in_location"})
_LIMITS = frozenset(
    {
        "resource_limit_exceeded",
        "server_limit_exceeded",
        "core_limit_exceeded",
        "dedicated_core_limit_exceeded",
    }
)
_HINTS = {
    "unauthorized": "The token is not valid: make one in the Hetzner Console, and set HCLOUD_TOKEN.",
    "token_readonly": "The token may only read: make one that may write.",
    "forbidden": "The token may not do that: make one that may read and write.",
    "rate_limit_exceeded": "The project makes too many calls: wait some minutes. It has 3600 an hour.",
}
_BUSY = frozenset({"unavailable", "locked", "conflict", "server_error", "service_error", 503})


def code_of(error: BaseException) -> str | int:
    """Return Hetzner's own name of an error, or HTTP's number."""
    return getattr(error, "code", "")


def worth_another_try(error: Exception) -> bool:
    """Whether Hetzner was busy, or nobody knows what it did: names are given once."""
    from requests import ConnectionError as LostConnection

    return isinstance(error, LostConnection) or code_of(error) in _BUSY


def unreachable(error: Exception) -> bool:
    """Whether no connection came about."""
    from requests import ConnectionError as LostConnection

    return isinstance(error, LostConnection)


@contextlib.contextmanager
def but_for(code: str) -> Iterator[None]:
    """Pass over an error that says that all is as it should be."""
    from hcloud import APIException

    try:
        yield
    except APIException as error:
        if error.code != code:
            raise


@contextlib.contextmanager
def translated(region: str, machine_type: str = "") -> Iterator[None]:
    """Raise what hcloud raises as ours."""
    from hcloud import HCloudException
    from requests import RequestException

    where = f"hetzner {region}"
    try:
        yield
    except RequestException as error:
        raise CloudError(
            f"Hetzner could not be asked: {type(error).__name__}",
            where=where,
            hint="Is there a network? https://status.hetzner.com tells of Hetzner's own troubles.",
        ) from error
    except HCloudException as error:
        code, said = code_of(error), getattr(error, "message", "") or str(error)
        what = f"{said} ({code})"
        if code in _LACKS or "unsupported location" in said.lower():
            raise CapacityError(
                f"no {machine_type} is to be had: {what}", where=where, hint="Try another location or type."
            ) from error
        if code in _LIMITS:
            raise CapacityError(
                f"the project may not have more {machine_type}: {what}",
                where=where,
                hint="Have the limit raised (Hetzner Console, Limits).",
                scope="region",
            ) from error
        raise CloudError(
            f"Hetzner refused: {what}",
            where=where,
            hint=_HINTS.get(str(code), "See the errors in Hetzner's API reference."),
        ) from error
