"""What EC2 says when it refuses, as errors of ours: in its own words, and with what to do."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from envsync.errors import CapacityError, CloudError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "any_error",
    "but_for",
    "client_error",
    "code_of",
    "translated",
    "unreachable",
    "worth_another_try",
]

_ZONE_LACKS = frozenset(
    {"InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "Unsupported"}
)
_REGION_LACKS = frozenset({"InstanceLimitExceeded", "VcpuLimitExceeded", "MaxSpotInstanceCountExceeded"})
_DENIED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
_UNKNOWN = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException"}
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException"})
_SKEWED = frozenset({"RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"})
_AGAIN = frozenset(
    {"RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError", "InternalFailure"}
) | {"Unavailable", "ServiceUnavailable"}
_LACKING = {
    "NoCredentialsError": "Log in (aws configure, aws sso login), or set AWS_PROFILE.",
    "ProfileNotFound": "Correct its name, or AWS_PROFILE: `aws configure list-profiles` shows them.",
    "InvalidRegionError": "Is the region's name right? eu-west-1 is one.",
}
"""What to do about botocore's own errors, by their names: what they say is enough of the rest."""
_NOT_EC2 = "Does this network want a login first, or is there a proxy? See https_proxy and AWS_ENDPOINT_URL."


def client_error() -> Any:
    """Return botocore's error for what AWS refuses. It is imported when it is needed: boto3 is an extra."""
    from botocore.exceptions import ClientError

    return ClientError


def any_error() -> Any:
    """Return botocore's errors, those of the network and of the configuration too."""
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError  # what is no answer of AWS's, such as a proxy's page

    return (client_error(), BotoCoreError, ResponseParserError)


def unreachable() -> Any:
    """Return botocore's error for a connection that did not come about."""
    from botocore.exceptions import ConnectionError as Unreachable

    return Unreachable


def worth_another_try(error: Exception) -> bool:
    """Whether EC2 was too busy, or nobody knows what it did: the token makes that safe."""
    from botocore.exceptions import HTTPClientError

    return isinstance(error, HTTPClientError) or (
        isinstance(error, client_error()) and code_of(error) in _AGAIN
    )


def code_of(error: Any) -> str:
    """Return AWS's own name of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def but_for(code: str) -> Iterator[None]:
    """Pass over an error that says that all is as it should be."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, client_error()) or code_of(error) != code:
            raise


@contextlib.contextmanager
def translated(region: str, machine_type: str = "", zone: str = "") -> Iterator[None]:
    """Raise what botocore raises as ours, said of a place and a type of machine."""
    try:
        yield
    except KeyError as error:  # botocore takes a proxy's page for an answer with nothing in it
        raise CloudError(
            f"what answers is not EC2: there is no {error} in what it says",
            where=f"ec2 {zone or region}",
            hint=_NOT_EC2,
        ) from error
    except Exception as error:
        if not isinstance(error, any_error()):
            raise
        raise _translate(error, region, machine_type, zone) from error


def _translate(error: Any, region: str, machine_type: str, zone: str) -> CloudError:
    where = f"ec2 {zone or region}"
    if not isinstance(error, client_error()):
        hint = _LACKING.get(type(error).__name__, "Are there credentials, and is the region's name right?")
        if isinstance(error, unreachable()):
            hint = "Is there a network, and is the region's name right?"
        return CloudError(f"EC2 could not be asked: {error}", where=where, hint=hint)
    code = code_of(error)
    said = str(error.response.get("Error", {}).get("Message", "")) or code
    if not said:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "no status")
        return CloudError(f"what answers is not EC2: it says HTTP {status}", where=where, hint=_NOT_EC2)
    what = f"{said} ({code})"
    if code in _ZONE_LACKS or "No default subnet" in said:
        return CapacityError(
            f"no {machine_type} is to be had: {what}",
            where=where,
            hint="Try another region or type.",
            scope="zone",
        )
    if code in _REGION_LACKS:
        return CapacityError(
            f"the account may not have more {machine_type}: {what}",
            where=where,
            hint="Have the quota raised (Service Quotas, EC2), or take another region or type.",
            scope="region",
        )
    hints: list[tuple[Callable[[], bool], str]] = [
        (lambda: code in _DENIED, "Give this identity the permissions that docs/howto-ec2.md lists."),
        (
            lambda: code in _SKEWED,
            "Set this machine's clock: AWS refuses what is minutes off. If it is right, "
            "the credentials have expired: log in again, then start again.",
        ),
        (lambda: code in _UNKNOWN, "The credentials are not valid: look at `aws sts get-caller-identity`."),
        (lambda: code in _EXPIRED, "The credentials have expired: log in again, then start again."),
        (
            lambda: code.startswith("InvalidAMI"),
            "Is the image in this region? Give its id there, or its name.",
        ),
        (lambda: "InstanceType" in said or code == "InvalidInstanceType", "Is the type's name right?"),
        (lambda: code == "RequestLimitExceeded", "The account makes too many calls: wait a minute."),
    ]
    hint = next((text for fits, text in hints if fits()), "See EC2's documentation of that error.")
    return CloudError(f"EC2 refused: {what}", where=where, hint=hint)
