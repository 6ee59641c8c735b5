"""What OpenStack refuses, as errors of ours: in its own words, and with what to do."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from envsync.errors import CapacityError, CloudError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["missing", "refused", "status_of", "translated", "worth_another_try"]

_LACKS = re.compile(
    r"no valid host|exhausted all hosts|insufficient compute resources|not enough hosts|"
    r"availability zone .* not available",
    re.IGNORECASE,
)
_LIMITS = re.compile(
    r"quota|maximum number of|exceeds available|limit exceeded|overlimit|no more ip addresses|"
    r"no fixed ip addresses",
    re.IGNORECASE,
)
_SAID = 200  # letters of either end
_BUSY = (429, 500, 502, 503, 504)


def missing() -> CloudError:
    """Return the error that says that the SDK is not there."""
    return CloudError(
        "OpenStack needs openstacksdk, which is not installed",
        where="openstack",
        hint="Install it: pip install 'dask-envsync[openstack]'",
    )


def status_of(error: BaseException) -> int:
    """Return HTTP's number of an answer; 0 if there was none."""
    return int(getattr(error, "status_code", None) or getattr(error, "http_status", None) or 0)


def worth_another_try(error: Exception) -> bool:
    """Whether it was busy, or nobody knows what it did: before anything is made it is looked for."""
    from keystoneauth1.exceptions import ConnectFailure, ConnectTimeout, UnknownConnectionError

    if isinstance(error, (ConnectFailure, ConnectTimeout, UnknownConnectionError)):
        return True
    return status_of(error) in _BUSY and not _LACKS.search(said_by(error))


def said_by(error: BaseException) -> str:
    """Return an error's own words, without the addresses of calls; what was sent is said back, and cut."""
    said = str(getattr(error, "details", None) or getattr(error, "message", None) or error).strip()
    return said if len(said) <= 2 * _SAID else f"{said[:_SAID]} ... {said[-_SAID:]}"


def refused(said: str, place: str, machine_type: str, status: int = 0) -> CloudError:
    """Return the error for what OpenStack says.

    Parameters
    ----------
    said : str
        Its words.
    place, machine_type : str
        What was asked for.
    status : int
        HTTP's; 0 for what a server came to.
    """
    where = f"openstack {place}"
    what = f"{said} ({status})" if status else said
    if _LIMITS.search(said):
        return CapacityError(
            f"the project may not have more {machine_type}".rstrip() + f": {what}",
            where=where,
            hint="`openstack limits show --absolute` tells the quota: have it raised, or end what is left "
            "(`envsync reap`).",
            scope="region",
        )
    if _LACKS.search(said):
        return CapacityError(
            f"no {machine_type} is to be had: {what}", where=where, hint="Try another zone, region or type."
        )
    hint = "`openstack server create --debug` with the same values shows whether it is the cloud's."
    if status == 401:
        hint = "The credentials are not valid, or have expired: clouds.yaml, or OS_* variables."
    elif status == 403:
        hint = (
            "The project's role has to allow that: member, usually. docs/howto-openstack.md lists the calls."
        )
    elif status in _BUSY:
        hint = "The cloud is busy, or has a trouble of its own: try again in some minutes."
    elif "flavor" in said.lower() and "disk" in said.lower():
        hint = "Take a larger type, or boot from a volume: disk='20 GB'."
    return CloudError(f"OpenStack refused: {what}", where=where, hint=hint)


@contextlib.contextmanager
def translated(place: str, machine_type: str = "") -> Iterator[None]:
    """Raise what the SDK and its libraries raise as ours, said of a place and a type of machine."""
    from keystoneauth1.exceptions import (
        AuthorizationFailure,
        AuthPluginException,
        ClientException,
        DiscoveryFailure,
    )
    from keystoneauth1.exceptions import ConnectionError as LostConnection
    from openstack.exceptions import ConfigException, SDKException
    from requests import RequestException

    where = f"openstack {place}"
    try:
        yield
    except ConfigException as error:
        raise CloudError(
            f"the account is not configured: {error}",
            where=where,
            hint="Write it into clouds.yaml and name it: OpenStack(..., cloud='...'); or set OS_* variables.",
        ) from error
    except LostConnection as error:
        raise CloudError(
            f"OpenStack could not be asked: {type(error).__name__}",
            where=where,
            hint="Is there a network? Does the cloud need a VPN?",
        ) from error
    except (AuthPluginException, AuthorizationFailure) as error:
        raise CloudError(
            f"there are no credentials that OpenStack takes: {said_by(error)}",
            where=where,
            hint="Write them into clouds.yaml and name it: OpenStack(..., cloud='...'); or set OS_* "
            "variables, as the cloud's own openrc file does.",
        ) from error
    except DiscoveryFailure as error:
        raise CloudError(
            f"nothing that answers as OpenStack does: {said_by(error)}",
            where=where,
            hint="Is auth_url right? It is what the cloud's openrc file has as OS_AUTH_URL.",
        ) from error
    except (ClientException, SDKException, RequestException) as error:
        raise refused(said_by(error), place, machine_type, status_of(error)) from error
    except Exception as error:
        if type(error) is not Exception:  # as keystoneauth says that there is no password
            raise
        raise CloudError(
            f"the account is not configured: {error}", where=where, hint="Is clouds.yaml complete?"
        ) from error
