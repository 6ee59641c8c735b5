"""Short-lived tokens of a service account of Google's that the user may be, through google-auth.

That comes with google-cloud-compute, google-cloud-storage and gcsfs.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.gce_messages import SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["TAKEN", "Identity", "Token", "variables"]

LIFE = 3600
"""Seconds that tokens live which Google is asked for: no more are given without a policy of its own."""

_WHERE = "google credentials"
_CALL = 20.0  # seconds that Google may take to answer
_BUSY = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token of a service account.

    Attributes
    ----------
    value : str
        The token.
    expires : datetime
        When, in UTC.
    account : str
        Whose it is.
    project, universe : str
        The project that is the default one of who has it, and the universe that Google calls its clouds.
    """

    value: str = field(repr=False)
    expires: datetime.datetime
    account: str
    project: str
    universe: str

    @property
    def own(self) -> bool:
        """False: each was asked for."""
        return False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of it nobody else may read."""
        return (self.value,)

    def left(self) -> float:
        """Return how many seconds it has."""
        return (self.expires - datetime.datetime.now(datetime.timezone.utc)).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """Return it as the agent's metadata server takes it: in seconds, as clocks differ."""
        return {
            "token": self.value,
            "seconds": self.left(),
            "account": self.account,
            "project": self.project,
            "universe": self.universe,
            "scopes": [SCOPE],
        }


class Identity:
    """A service account that the user may be: by impersonating it, or by being logged in as it.

    Nothing else of the login here is ever returned: what a person may is far more than a task needs.

    Parameters
    ----------
    account : str
        The service account's address.

    Raises
    ------
    CloudError
        google-auth is missing.
    """

    def __init__(self, account: str) -> None:
        try:
            import google.auth.transport.requests  # noqa: F401 - it needs requests
        except ImportError as error:
            raise CloudError(
                "impersonate= needs google-auth and requests",
                where=_WHERE,
                hint="pip install 'dask-envsync[gce]'",
            ) from error
        self._account = account

    def variables(self, port: int, folder: str) -> dict[str, str | None]:
        """Return the environment of a process: see `variables`."""
        return variables(port, folder)

    def files(self, token: str) -> dict[str, bytes]:  # noqa: ARG002
        """Return nothing: Google's SDKs show no token to a metadata server."""
        return {}

    def temporary(self) -> Token:
        """Return a token of the service account.

        Raises
        ------
        CloudError
            There is none to be had, or nobody is logged in here.
        """
        import stamina

        with _translated(self._account):
            caller = stamina.RetryingCaller(attempts=4, timeout=30.0, wait_initial=0.5, wait_max=5.0)
            return caller.on(_worth_another_try)(self._ask)

    def _ask(self) -> Token:
        import google.auth
        from google.auth import impersonated_credentials
        from google.auth.transport.requests import Request

        request = partial(Request(), timeout=_CALL)
        own, project = google.auth.default(scopes=[SCOPE])  # anew: somebody may have logged in again
        if getattr(own, "service_account_email", None) == "default":  # a machine's: it asks for its name
            own.refresh(request)
        given = own
        if getattr(own, "service_account_email", None) != self._account:
            given = impersonated_credentials.Credentials(
                own, self._account, [SCOPE], lifetime=LIFE, iam_endpoint_override=_endpoint(self._account)
            )
        given.refresh(request)
        return Token(
            value=given.token,
            expires=_by_this_clock(given.expiry.replace(tzinfo=datetime.timezone.utc)),
            account=self._account,
            project=project or _project_of(self._account),
            universe=given.universe_domain,
        )


def variables(port: int, folder: str) -> dict[str, str | None]:
    """Return the environment in which google-auth asks a host's agent, whoever else the host is for Google.

    Parameters
    ----------
    port : int
        Where the agent listens.
    folder : str
        The run folder of the process.
    """
    here = f"127.0.0.1:{port}"
    return {
        "GOOGLE_APPLICATION_CREDENTIALS": None,
        "CLOUDSDK_CONFIG": f"{folder}/gcloud",  # nobody has logged in there
        "NO_GCE_CHECK": None,
        "GCE_METADATA_MTLS_MODE": None,
        "GCE_METADATA_HOST": here,
        "GCE_METADATA_ROOT": here,
        "GCE_METADATA_IP": here,
    }


TAKEN = frozenset(variables(0, ""))
"""Variables that a user cannot set at the same time."""


def _project_of(account: str) -> str:
    """Return the project that a service account is in; empty if its address does not say."""
    found = re.fullmatch(r"[^@]+@([^.]+)\.iam\.gserviceaccount\.com", account)  # not of Google's own making
    return found[1] if found else ""


def _by_this_clock(expires: datetime.datetime) -> datetime.datetime:
    """Return when a new token ends here, where Google's clock may not be right."""
    now = datetime.datetime.now(datetime.timezone.utc)
    left, life = expires - now, datetime.timedelta(seconds=LIFE)
    return now + (min(left, life) if left > datetime.timedelta() else life)


def _endpoint(account: str) -> str | None:
    """Return where tokens of a service account are had, if it is not Google's usual place."""
    # gcloud's own variable, for a private endpoint
    place = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS", "").rstrip("/")
    return f"{place}/v1/projects/-/serviceAccounts/{account}:generateAccessToken" if place else None


def _said(error: Exception) -> Mapping[str, Any]:
    """Return what Google says of why there is no token of another; empty if the login here is the matter."""
    try:
        said = json.loads(error.args[1])["error"]
        return said if isinstance(said, dict) else {}
    except (IndexError, KeyError, TypeError, ValueError):
        return {}


def _worth_another_try(error: Exception) -> bool:
    from google.auth.exceptions import RefreshError, TransportError

    if isinstance(error, RefreshError):
        return error.retryable or _said(error).get("code") in _BUSY
    return isinstance(error, TransportError)


@contextlib.contextmanager
def _translated(account: str) -> Iterator[None]:
    """Raise what google-auth raises as ours."""
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError

    try:
        yield
    except DefaultCredentialsError as error:
        raise CloudError(
            f"nobody is logged in here: {error.args[0] if error.args else 'google-auth finds nothing'}",
            where=_WHERE,
            hint="Log in: `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        ) from error
    except RefreshError as error:
        if said := _said(error):
            raise _refused(account, said) from error
        why = error.args[0] if error.args else "without a reason"
        raise CloudError(
            f"Google does not take the login that is here: {why}",
            where=_WHERE,
            hint="Log in again: `gcloud auth application-default login`.",
        ) from error
    except (GoogleAuthError, OSError, ValueError) as error:  # the last: a file that makes no sense
        raise CloudError(
            f"no token could be had: {type(error).__name__}",
            where=_WHERE,
            hint="Is there a network? Does `gcloud auth application-default print-access-token` work?",
        ) from error


def _refused(account: str, said: Mapping[str, Any]) -> CloudError:
    code = said.get("code")
    details = [one for one in said.get("details") or () if isinstance(one, dict)]
    if any(one.get("reason") == "SERVICE_DISABLED" for one in details):
        hint = "Switch that interface on: `gcloud services enable iamcredentials.googleapis.com`."
    elif code == 401:
        hint = "Log in again: `gcloud auth application-default login`."
    elif code in (403, 404):
        hint = (
            "Is its name right? You need roles/iam.serviceAccountTokenCreator on it, which an owner of the"
            f" project has not: `gcloud iam service-accounts add-iam-policy-binding {account}"
            " --member=user:YOU@example.org --role=roles/iam.serviceAccountTokenCreator`, and some minutes."
        )
    else:
        hint = "See Google's documentation of that error."
    what = f"{said.get('message') or 'without a reason'} ({said.get('status') or code})"
    return CloudError(f"Google refused a token of {account}: {what}", where=_WHERE, hint=hint)
