"""What Google refuses, as errors of ours: in its own words, and with what to do."""

from __future__ import annotations

import contextlib
import textwrap
from typing import TYPE_CHECKING, Any

from envsync.errors import CapacityError, CloudError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OperationFailed", "but_for", "check", "missing", "translated", "unreachable", "worth_another_try"]

_LACKS = (
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "resourcepoolexhausted",
    "STOCKOUT",
    "UNSUPPORTED_OPERATION",
    "does not exist in zone",
)
_SAID = 1000  # characters: a proxy's page is longer
_LIMITS = ("QUOTA_EXCEEDED", "quotaExceeded", "QUOTA_LIMIT")
_BUSY = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError"})


class OperationFailed(Exception):  # noqa: N818 - it is caught in here
    """An operation was begun, and has come to nothing.

    Parameters
    ----------
    code, message : str
        As Google says it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def missing() -> CloudError:
    """Return the error that says that the SDK is not there."""
    return CloudError(
        "GCE needs google-cloud-compute, which is not installed",
        where="gce",
        hint="Install it: pip install 'dask-envsync[gce]'",
    )


def check(operation: Any) -> None:
    """Raise OperationFailed for an operation that has ended badly."""
    for error in operation.error.errors:
        raise OperationFailed(str(error.code), str(error.message) or str(error.code))
    if operation.http_error_status_code:
        raise OperationFailed(str(operation.http_error_status_code), str(operation.http_error_message))


def worth_another_try(error: Exception) -> bool:
    """Whether Google was busy, or nobody knows what it did: requests have identities."""
    from google.api_core.exceptions import GoogleAPICallError
    from requests import ConnectionError as LostConnection
    from requests import Timeout

    if isinstance(error, GoogleAPICallError):
        if any(one in str(error) for one in _LACKS):
            return False
        return error.code in (429, 500, 502, 503, 504) or bool(_reasons(error) & _BUSY)
    return isinstance(error, (LostConnection, Timeout))


def unreachable(error: Exception) -> bool:
    """Whether no connection came about, to Google's interface or to where tokens are from."""
    from google.auth.exceptions import TransportError
    from requests import ConnectionError as LostConnection

    return isinstance(error, (LostConnection, TransportError))


@contextlib.contextmanager
def but_for(reason: str) -> Iterator[None]:
    """Pass over an error that says that all is as it should be."""
    from google.api_core.exceptions import GoogleAPICallError

    status, ended = {
        "notFound": (404, "RESOURCE_NOT_FOUND"),
        "alreadyExists": (409, "RESOURCE_ALREADY_EXISTS"),
    }[reason]
    try:
        yield
    except GoogleAPICallError as error:
        if error.code != status or (_reasons(error) and reason not in _reasons(error)):
            raise
    except OperationFailed as error:
        if error.code != ended:
            raise


@contextlib.contextmanager
def translated(place: str, machine_type: str = "") -> Iterator[None]:
    """Raise what Google's libraries raise as ours, said of a place and a type of machine."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from google.protobuf.json_format import ParseError
    from requests import RequestException

    where = f"gce {place}"
    try:
        yield
    except OperationFailed as error:
        raise _refused(error.code, error.message, where, machine_type) from error
    except GoogleAPICallError as error:
        reason = next(iter(sorted(_reasons(error))), str(error.code))
        said = textwrap.shorten(str(error.message), _SAID)
        raise _refused(reason, said, where, machine_type, status=int(error.code or 0)) from error
    except ParseError as error:
        raise CloudError(
            "what answers is not Google: it is no JSON of its interface",
            where=where,
            hint="Does this network want a login first, or is there a proxy? See https_proxy.",
        ) from error
    except GoogleAuthError as error:
        raise CloudError(
            f"there are no credentials that Google takes: {type(error).__name__}",
            where=where,
            hint="Log in: `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        ) from error
    except RequestException as error:
        raise CloudError(
            f"Google could not be asked: {type(error).__name__}", where=where, hint="Is there a network?"
        ) from error


def _reasons(error: Any) -> set[str]:
    return {str(one["reason"]) for one in error.errors or () if isinstance(one, dict) and one.get("reason")}


def _refused(code: str, said: str, where: str, machine_type: str, status: int = 0) -> CloudError:
    what = f"{said} ({code})"
    if any(one in code or one in said for one in _LIMITS):
        return CapacityError(
            f"the project may not have more {machine_type}: {what}",
            where=where,
            hint="Have the quota raised (Google Cloud console, IAM, Quotas), or take another region or type.",
            scope="region",
        )
    if any(one in code or one in said for one in _LACKS):
        return CapacityError(
            f"no {machine_type} is to be had: {what}", where=where, hint="Try another zone, region or type."
        )
    hint = "See Google's documentation of that error."
    if status == 401:
        hint = "The credentials are not valid, or have expired: `gcloud auth application-default login`."
    elif status == 403:
        hint = (
            "Give this identity the permissions that docs/howto-gce.md lists; is the Compute Engine API on?"
        )
    elif status == 429 or code in _BUSY:
        hint = "The project makes too many calls: wait a minute."
    elif "image" in said.lower():
        hint = "Is the image's name right? It is projects/P/global/images/I, or .../images/family/F."
    return CloudError(f"Google refused: {what}", where=where, hint=hint)
