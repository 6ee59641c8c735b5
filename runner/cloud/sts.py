"""Short-lived credentials of the user's AWS identity, through botocore, which boto3 and s3fs bring along."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TAKEN", "TOKEN", "Identity", "Temporary", "variables"]

TOKEN = "aws-token"  # noqa: S105 - a file's name
"""The file in a process's run folder that the SDKs read what opens the endpoint from."""
_IDENTITIES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    *("AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN"),
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
"""Variables that SDKs look at before they ask an endpoint."""
LIFE = 3600
"""Seconds that session tokens live which STS is asked for: as many as every identity may have, root too."""

_UNKNOWN = datetime.timedelta(minutes=30)  # for which those are given out whose end nobody has told
_PATIENCE = 5  # seconds in which STS has to answer who they are
_ENDED = ("ExpiredToken", "ExpiredTokenException")
_WHERE = "aws credentials"
_LOG_IN = (
    "Log in again (aws sso login, aws configure), or look at AWS_PROFILE."
    " What a cluster that runs finds then, it takes."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Temporary:
    """Credentials that end by themselves.

    Attributes
    ----------
    access_key, secret_key, token : str
        As AWS calls them.
    expires : datetime
        When, in UTC.
    own : bool
        Whether they are the ones that the user's process works with: botocore gets the next ones when it is
        time. Others were asked for.
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(repr=False)
    expires: datetime.datetime
    own: bool

    def left(self) -> float:
        """Return how many seconds they have."""
        return (self.expires - datetime.datetime.now(datetime.timezone.utc)).total_seconds()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of them nobody else may read."""
        return self.secret_key, self.token

    def to_dict(self) -> dict[str, str]:
        """Return them as an endpoint of container credentials gives them out."""
        return {
            "AccessKeyId": self.access_key,
            "SecretAccessKey": self.secret_key,
            "Token": self.token,
            "Expiration": self.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class Identity:
    """Who the user is for AWS, as botocore finds it: variables, profile, SSO, an assumed role.

    Methods block.

    Parameters
    ----------
    profile : str, optional
        A profile of the user's AWS configuration.

    Raises
    ------
    CloudError
        There is none, or botocore is missing.
    """

    def __init__(self, profile: str | None = None) -> None:
        self._profile = profile
        self._session, self._credentials = self._open()

    def variables(self, port: int, folder: str) -> dict[str, str | None]:
        """Return the environment of a process: see `variables`."""
        return variables(port, folder, self.region)

    def files(self, token: str) -> dict[str, bytes]:
        """Return what lies in a process's run folder: the token that opens its host's endpoint."""
        return {TOKEN: token.encode()}

    @property
    def region(self) -> str:
        """The region that is configured for it; empty if none is."""
        return str(self._session.get_config_variable("region") or "")

    def temporary(self) -> Temporary:
        """Return short-lived credentials: its own if it has such, a session token of STS otherwise.

        Raises
        ------
        CloudError
            There are none to be had. Long-lived keys are never returned.
        """
        with _translated():
            if not hasattr(self._credentials, "refresh_needed"):  # nobody changes them: look again
                self._session, self._credentials = self._open()
            now = self._credentials.get_frozen_credentials()
            if now.token:
                expires = getattr(self._credentials, "_expiry_time", None)
                if expires is None:
                    self._demand_living()
                return Temporary(
                    access_key=now.access_key,
                    secret_key=now.secret_key,
                    token=now.token,
                    expires=(expires or _now() + _UNKNOWN).astimezone(datetime.timezone.utc),
                    own=True,
                )
            sts = self._session.create_client("sts", region_name=self.region or "us-east-1")
            try:
                made = sts.get_session_token(DurationSeconds=LIFE)["Credentials"]
            finally:
                sts.close()
        return Temporary(
            access_key=made["AccessKeyId"],
            secret_key=made["SecretAccessKey"],
            token=made["SessionToken"],
            expires=made["Expiration"].astimezone(datetime.timezone.utc),
            own=False,
        )

    def _demand_living(self) -> None:
        """Raise what AWS says of those that have ended; where nobody answers that, they may live."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        times = {"connect_timeout": _PATIENCE, "read_timeout": _PATIENCE}
        once = Config(**times, retries={"total_max_attempts": 1})
        sts = self._session.create_client("sts", region_name=self.region or "us-east-1", config=once)
        try:
            sts.get_caller_identity()  # which nobody needs a permission for
        except ClientError as error:
            if (error.response.get("Error") or {}).get("Code") in _ENDED:
                raise
        except (BotoCoreError, ResponseParserError):  # the second: no STS, but a proxy's page, or such
            pass
        finally:
            sts.close()

    def _open(self) -> tuple[Any, Any]:
        try:
            from botocore.session import Session
        except ImportError as error:
            raise CloudError(
                "credentials='forward' needs botocore",
                where=_WHERE,
                hint="pip install 'dask-envsync[s3]', or [ec2]. For Google's, name a service account:"
                " impersonate='...'.",
            ) from error
        with _translated():
            session = Session(profile=self._profile)
            credentials = session.get_credentials()
        if credentials is None:
            raise CloudError(
                "there are none here that could be forwarded",
                where=_WHERE,
                hint="Log in: aws configure, aws sso login, or set AWS_PROFILE; or leave out credentials=."
                " For Google's, name a service account: impersonate='...'.",
            )
        return session, credentials


def variables(port: int, folder: str, region: str) -> dict[str, str | None]:
    """Return the environment in which an SDK asks the endpoint, whoever else its host is for AWS.

    Parameters
    ----------
    port : int
        Where the host's agent listens.
    folder : str
        The run folder of the process.
    region : str
        The client's; the host's own if empty.
    """
    return {
        **dict.fromkeys(_IDENTITIES),
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{port}/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": f"{folder}/{TOKEN}",
        **({"AWS_DEFAULT_REGION": region} if region else {}),
    }


TAKEN = frozenset(variables(0, "", ""))
"""Variables that a user cannot set at the same time."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what botocore raises as ours."""
    from botocore.exceptions import BotoCoreError, ClientError, RefreshWithMFAUnsupportedError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        said = error.response.get("Error") or error.response  # Ceph's gateway has no envelope around it
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        code = said.get("Code") or f"HTTP {status}"  # some that speak S3 say no more
        asked = error.operation_name == "GetSessionToken"
        what = "STS refused a session token" if asked else "AWS refuses what you are logged in with"
        raise CloudError(
            f"{what}: {said.get('Message') or 'without a reason'} ({code})",
            where=_WHERE,
            hint="The keys here are long-lived, and such are never sent to machines. Allow"
            " sts:GetSessionToken, or log in by SSO or with a role: what that gives is short-lived."
            if asked
            else f"{_LOG_IN} Variables, such as AWS_SESSION_TOKEN, are those of this process.",
        ) from error
    except RefreshWithMFAUnsupportedError as error:
        raise CloudError(
            "the role's session ends, and for another one a code of MFA is asked for, once in a process",
            where=_WHERE,
            hint="Start the cluster again. `duration_seconds` in the profile says how long a session lasts.",
        ) from error
    # RuntimeError: it has got others, and they are expired
    except (BotoCoreError, ResponseParserError, OSError, RuntimeError) as error:
        raise CloudError(
            f"they could not be had: {str(error) or type(error).__name__}", where=_WHERE, hint=_LOG_IN
        ) from error
