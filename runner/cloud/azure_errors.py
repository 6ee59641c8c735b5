"""What Azure refuses, as errors of ours: in its own words, and with what to do."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from envsync.errors import CapacityError, CloudError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OperationFailed", "gone", "missing", "taken", "translated", "unreachable", "worth_another_try"]

_LACKS = frozenset(
    {
        "AllocationFailed",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "SkuNotAvailable",
        "ZonalAllocationFailed",
    }
)
_LIMITS = frozenset(
    {"PublicIPCountLimitReached", "QuotaExceeded", "ResourceGroupQuotaExceeded", "ResourceQuotaExceeded"}
)
_BUSY = frozenset(
    {
        "AnotherOperationInProgress",
        "ReferencedResourceNotProvisioned",
        "RetryableError",
        "RetryableErrorDueToAnotherOperation",
        "TooManyRequests",
    }
)
_UNREACHED = "Failed to resolve"  # in what azure-identity says without a network: it has no error for that
_LONGEST = 120.0  # seconds that one answer may have us wait


class OperationFailed(Exception):  # noqa: N818 - it is caught in here
    """Something was begun, and has come to nothing.

    Parameters
    ----------
    code, message : str
        As Azure says it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def missing() -> CloudError:
    """Return the error that says that the SDK is not there."""
    return CloudError(
        "Azure needs its SDK, which is not installed",
        where="azure",
        hint="Install it: pip install 'dask-envsync[azure]'",
    )


def worth_another_try(error: Exception) -> bool | float:
    """Whether Azure was busy, or nobody knows what it did, and in how many seconds if it says so."""
    from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

    if isinstance(error, (ServiceRequestError, ServiceResponseError)):
        return True
    if not isinstance(error, HttpResponseError) or _codes(error) & _LACKS:
        return False
    if error.status_code not in (408, 429, 500, 502, 503, 504) and not _codes(error) & _BUSY:
        return False
    try:
        wait = float(error.response.headers.get("Retry-After", ""))
    except (AttributeError, ValueError):
        return True
    return min(wait, _LONGEST) if wait > 0 else True


def unreachable(error: Exception) -> bool:
    """Whether no connection came about."""
    from azure.core.exceptions import ServiceRequestError

    return isinstance(error, ServiceRequestError)


@contextlib.contextmanager
def gone(*also: int) -> Iterator[None]:
    """Pass over an error that says that it is not there, or has another status that means as much."""
    from azure.core.exceptions import HttpResponseError

    try:
        yield
    except HttpResponseError as error:
        if error.status_code not in (404, *also):
            raise


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Pass over an error that says that it is there already."""
    from azure.core.exceptions import HttpResponseError

    try:
        yield
    except HttpResponseError as error:
        if error.status_code != 412:
            raise


@contextlib.contextmanager
def translated(place: str, machine_type: str = "") -> Iterator[None]:
    """Raise what Azure's libraries raise as ours, said of a place and a type of machine."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    where = f"azure {place}"
    try:
        yield
    except OperationFailed as error:
        if "Internal" in error.code:  # a fault of Azure's own, where it was: the next try may be elsewhere
            raise CapacityError(
                f"Azure could not make {machine_type or 'it'}: {error.message} ({error.code})",
                where=where,
                hint="Try again, or another zone or region.",
            ) from error
        raise _refused({error.code}, error.message, where, machine_type) from error
    except HttpResponseError as error:
        if isinstance(error, ClientAuthenticationError) and not _said(error):
            if _UNREACHED in str(error):
                raise CloudError(
                    "Azure could not be asked for a token", where=where, hint="Is there a network?"
                ) from error
            raise CloudError(
                f"there are no credentials that Azure takes: {type(error).__name__}",
                where=where,
                hint="Log in: `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET.",
            ) from error
        message = str(getattr(_said(error), "message", "") or error.reason or "no words")
        raise _refused(
            _codes(error) or {str(error.status_code)},
            message,
            where,
            machine_type,
            status=error.status_code or 0,
        ) from error
    except AzureError as error:
        raise CloudError(
            f"Azure could not be asked: {type(error).__name__}", where=where, hint="Is there a network?"
        ) from error


def _said(error: Any) -> Any:
    """Return what the answer says is wrong; None if it is no answer of Azure's Resource Manager."""
    said = getattr(error, "error", None)
    return said if getattr(said, "code", None) or getattr(said, "message", None) else None


def _codes(error: Any) -> set[str]:
    said = _said(error)
    if said is None:
        return set()
    return {str(one.code) for one in (said, *(getattr(said, "details", None) or ())) if one.code}


def _refused(codes: set[str], said: str, where: str, machine_type: str, status: int = 0) -> CloudError:
    what = f"{said} ({', '.join(sorted(codes))})"
    # the one code says many things
    if codes & _LIMITS or ("OperationNotAllowed" in codes and "quota" in said.lower()):
        return CapacityError(
            f"the subscription may not have more {machine_type}: {what}",
            where=where,
            hint="Have the quota raised (Azure portal, Quotas), or take another region or type.",
            scope="region",
        )
    if codes & _LACKS:
        return CapacityError(
            f"no {machine_type} is to be had: {what}", where=where, hint="Try another zone, region or type."
        )
    hint = "See Azure's documentation of that error."
    if status == 401:
        hint = "The credentials are not valid, or have expired: `az login`."
    elif status == 403 or "AuthorizationFailed" in codes:
        hint = "Give this identity the permissions that docs/howto-azure.md lists."
    elif status == 429 or codes & _BUSY:
        hint = "The subscription makes too many calls: wait a minute."
    elif "SubscriptionNotFound" in codes or "InvalidSubscriptionId" in codes:
        hint = "Is it the right subscription? `az account list` shows them."
    elif "MissingSubscriptionRegistration" in codes:
        name = re.search(r"Microsoft\.\w+", said)
        hint = f"Register it, once: `az provider register --namespace {name[0] if name else 'NAMESPACE'}`."
    elif "RequestDisallowedByPolicy" in codes:
        hint = "A policy of the subscription forbids it: private=True, subnet= or tags= may be what it wants."
    elif "ScopeLocked" in codes:
        hint = "Somebody has locked it against being deleted: remove the lock, then `envsync reap`."
    elif "disk size" in said.lower():
        hint = "disk= is what it wants otherwise; left out, it is as large as the image's."
    elif "VMMarketplaceInvalidInput" in codes:
        hint = "Images with a plan of their own are not supported: take another, or one of yours."
    elif "SecurityRuleInvalidAddressPrefix" in codes:
        hint = "Are the networks in reached_from right? '203.0.113.0/24' is one."
    elif "image" in said.lower():
        hint = "Is the image's name right? It is publisher:offer:sku:version, or an id that begins with /."
    return CloudError(f"Azure refused: {what}", where=where, hint=hint)
