"""An account at Azure: its SDK's clients, called with patience. With `azure_errors` alone it imports that."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import stamina

from envsync.errors import CloudError
from envsync.runner.cloud.azure_errors import missing, unreachable, worth_another_try
from envsync.runner.cloud.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Account"]

_ENDPOINT = "https://management.azure.com"
logging.getLogger("azure.identity").addHandler(logging.NullHandler())  # its warnings are our errors
_EARLY = 300.0  # seconds before its end from which on a token is not used any more


class Account:
    """A subscription, with the credentials that Azure's own library finds.

    Parameters
    ----------
    subscription : str
        Its id; that of ``AZURE_SUBSCRIPTION_ID``, or the one that `az` is set to, if empty.

    Attributes
    ----------
    subscription : str
        Its id.
    """

    def __init__(self, subscription: str = "") -> None:
        try:
            import azure.identity
            import azure.mgmt.compute
            import azure.mgmt.network
            import azure.mgmt.resource.resources
        except ImportError as error:
            raise missing() from error
        self.subscription = subscription or os.environ.get("AZURE_SUBSCRIPTION_ID", "") or _chosen()
        if not self.subscription:
            raise CloudError(
                "no subscription is given",
                where="azure",
                hint="Name one: Azure(..., subscription='...'), or set AZURE_SUBSCRIPTION_ID. `az account "
                "list` shows them.",
            )
        # as other clouds' own variables for a private endpoint
        self._endpoint = os.environ.get("AZURE_RESOURCE_MANAGER_ENDPOINT", _ENDPOINT).rstrip("/")
        if not self._endpoint.startswith("https://"):
            raise CloudError("AZURE_RESOURCE_MANAGER_ENDPOINT has to begin with https://", where="azure")
        self._credential = _Credential(azure.identity.DefaultAzureCredential())
        self._kinds: dict[str, Any] = {
            "compute": azure.mgmt.compute.ComputeManagementClient,
            "network": azure.mgmt.network.NetworkManagementClient,
            "resources": azure.mgmt.resource.resources.ResourceManagementClient,
        }
        self._own = threading.local()
        caller = stamina.RetryingCaller(attempts=8, timeout=300.0, wait_initial=0.5, wait_max=20.0)
        self._patience = Patience(caller, worth=worth_another_try, unreachable=unreachable)
        self._ahead = 0.0  # seconds, of Azure's clock before ours

    @property
    def compute(self) -> Any:
        """Machines and what they are made of."""
        return self._client("compute")

    @property
    def network(self) -> Any:
        """Networks, addresses and who may reach what."""
        return self._client("network")

    @property
    def resources(self) -> Any:
        """Resource groups."""
        return self._client("resources")

    def now(self) -> float:
        """Return the time by Azure's clock, once it has been asked anything, in seconds since 1970."""
        return time.time() + self._ahead

    def call(self, call: Callable[..., Any], *words: Any, **asked: Any) -> Any:
        """Make a call, again if Azure was busy or the answer is lost."""
        return self._patience.call(call, *words, **asked)

    def listed(self, call: Callable[..., Any], *words: Any, **asked: Any) -> list[dict[str, Any]]:
        """Read a list to its end."""

        def read() -> list[dict[str, Any]]:
            return [one.as_dict() for one in call(*words, **asked)]

        return list(self.call(read))

    def begin(self, kind: Any, group: str, name: str, body: dict[str, Any], *, once: bool = False) -> None:
        """Have something made, and do not wait for it.

        Parameters
        ----------
        kind
            The operations of its kind.
        group, name : str
            Where, and what it is called.
        body : dict
            What it is.
        once : bool
            Whether one that is there already is an error, which `azure_errors.taken` passes over.
        """
        from azure.core import MatchConditions

        asked = {"match_condition": MatchConditions.IfMissing} if once else {}
        self.call(kind.begin_create_or_update, group, name, body, polling=False, **asked)

    def fetch(self, url: str, *, patient: bool = True) -> bytes | None:
        """Read what is not of the Resource Manager: it gets no credentials. None if there is no such thing.

        Parameters
        ----------
        url : str
            Which may be a secret: errors do not say it, nor do those behind them.
        patient : bool
            Whether it is asked for again where it does not answer.

        Raises
        ------
        CloudError
            It could not be read.
        """
        from azure.core import PipelineClient
        from azure.core.exceptions import AzureError, ServiceResponseError
        from azure.core.rest import HttpRequest

        def ask() -> bytes | None:
            said = ""
            try:
                answer = client.send_request(HttpRequest("GET", url), connection_timeout=10, read_timeout=30)
            except AzureError as error:
                said = type(error).__name__  # what it says has the link in it, and hooks may write that down
            if not said and answer.status_code in (200, 404):
                return bytes(answer.content) if answer.status_code == 200 else None
            if not said and answer.status_code < 500 and answer.status_code != 429:
                raise CloudError(f"{place} answered {answer.status_code}", where="azure")
            raise ServiceResponseError(said or f"it answered {answer.status_code}")

        place = urlsplit(url).hostname
        try:
            with PipelineClient("", policies=[]) as client:
                return self.call(ask) if patient else ask()
        except ServiceResponseError as error:
            raise CloudError(
                f"{place} could not be asked: {error.message}",
                where="azure",
                hint="Is there a network, and may it be reached from here?",
            ) from error

    def _client(self, kind: str) -> Any:
        """Return a client, one for each thread: its session is not made for several."""
        clients = vars(self._own)
        if kind not in clients:
            from azure.core.pipeline.policies import RetryPolicy

            clients[kind] = self._kinds[kind](
                self._credential,
                self.subscription,
                base_url=self._endpoint,
                credential_scopes=[f"{self._endpoint}/.default"],
                retry_policy=RetryPolicy.no_retries(),  # `call` does that, in one place
                raw_response_hook=self._heard,
                user_agent="envsync",
                connection_timeout=10,
                read_timeout=60,
            )
        return clients[kind]

    def _heard(self, response: Any) -> None:
        """Learn how late it is there."""
        with contextlib.suppress(TypeError, ValueError):  # it does not say
            said = parsedate_to_datetime(response.http_response.headers.get("Date"))
            self._ahead = said.timestamp() - time.time()


class _Credential:
    """Credentials whose token all clients share: `az` takes a second for each that it is asked for."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, ...], Any] = {}

    def get_token(self, *scopes: str, **asked: Any) -> Any:
        with self._lock:
            token = self._tokens.get(scopes)
            # after a refusal Azure says what a token has to have
            if token is None or asked.get("claims") or token.expires_on - time.time() < _EARLY:
                token = self._tokens[scopes] = self._inner.get_token(*scopes, **asked)
            return token


def _chosen() -> str:
    """Return the subscription that `az` is set to; empty if it is not here."""
    folder = os.environ.get("AZURE_CONFIG_DIR", "") or str(Path.home() / ".azure")
    try:
        said = json.loads((Path(folder) / "azureProfile.json").read_text(encoding="utf-8-sig"))
        return next((str(one["id"]) for one in said["subscriptions"] if one.get("isDefault")), "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
