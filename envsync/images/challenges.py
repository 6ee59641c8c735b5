"""How a registry asks who we are (RFC 9110, 11.6.1), and what it is told: a login, or a token for one."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list

from envsync.errors import RegistryLoginError
from envsync.images.answers import is_loopback, origin, shown
from envsync.images.auth import Found, find_login

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from envsync.images.answers import Answer

__all__ = ["Challenge", "Logins", "Token", "read_challenges"]

_SCHEME = re.compile(r"([\w!#$%&'*+.^`|~-]+)(?:\s+(?=[^\s=])|$)")
_LEAST = 60.0  # seconds that a token is good for, if it says nothing else
_MARGIN = 0.1  # of that, so that it does not expire on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way that a registry offers.

    Attributes
    ----------
    scheme : str
        In lower case: ``"basic"``, ``"bearer"``.
    realm, service, scope, error : str
        What it says with it.
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""
    error: str = ""


def read_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers: each holds one or more ways, each with parameters."""
    found: list[tuple[str, dict[str, str]]] = []
    for item in (item for header in headers for item in parse_http_list(header)):
        scheme = _SCHEME.match(item)  # it stands before the first of its parameters
        if scheme:
            found.append((scheme[1].lower(), {}))
        name, equals, value = item[scheme.end() if scheme else 0 :].partition("=")
        if equals and found:
            found[-1][1][name.strip().lower()] = value.strip().strip('"')
    known = ("realm", "service", "scope", "error")
    return [
        Challenge(scheme=scheme, **{key: value for key, value in values.items() if key in known})
        for scheme, values in found
    ]


def joined(*texts: str) -> list[str]:
    """Join scopes such as ``repository:team/analysis:pull,push``: one for each thing, with all actions."""
    actions: dict[str, set[str]] = {}
    for scope in (scope for text in texts for scope in text.split()):
        thing, _, wanted = scope.rpartition(":")
        actions.setdefault(thing, set()).update(wanted.split(","))
    return [f"{thing}:{','.join(sorted(wanted))}" for thing, wanted in actions.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a token server gave.

    Attributes
    ----------
    text : str
        Not shown.
    until : float
        When a new one is to be had, by `time.monotonic`.
    """

    text: str = field(repr=False)
    until: float

    @classmethod
    def read(cls, data: bytes) -> Token | None:
        """Read a token server's answer; None if it is none."""
        try:
            found = json.loads(data)
            text = found.get("token") or found.get("access_token")
            seconds = float(found.get("expires_in") or _LEAST)
        except (ValueError, TypeError, AttributeError):
            return None
        if not isinstance(text, str):
            return None
        return cls(text=text, until=time.monotonic() + seconds * (1 - _MARGIN))

    @property
    def fresh(self) -> bool:
        """Whether it is still good, as far as is known."""
        return time.monotonic() < self.until

    @property
    def header(self) -> str:
        """The value of an Authorization header."""
        return f"Bearer {self.text}"


class Logins:
    """Who we are to one registry; for several threads at once.

    Parameters
    ----------
    registry, repository : str
        Whose logins count.
    ask : callable
        Sends method, URL, headers and body to a token server, and returns its `Answer`.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        ask: Callable[[str, str, Mapping[str, str], bytes | None], Answer],
    ) -> None:
        self.registry = registry
        self.repository = repository
        self._ask = ask
        self._found: Found | None = None
        self._bearer: Challenge | None = None
        self._tokens: dict[str, Token] = {}
        self._guard = threading.RLock()

    def __repr__(self) -> str:
        return f"Logins({self.registry!r})"

    @property
    def found(self) -> Found:
        """What this machine knows."""
        with self._guard:
            if self._found is None:
                self._found = find_login(self.registry, self.repository)
            return self._found

    def header(self, scope: str, *, plain: bool) -> str | None:
        """Return what the registry is told with a request, before it asks.

        Parameters
        ----------
        scope : str
            What is to be done.
        plain : bool
            Whether the user said that it need not be over TLS.
        """
        with self._guard:
            if self._bearer is not None:
                token = self._tokens.get(scope)
                if token is None or not token.fresh:
                    token = self._tokens[scope] = self._get(self._bearer, scope, plain)
                return token.header
            login = self.found.login
            return login.basic if login is not None and not login.identity else None

    def answer(self, refusal: Answer, scope: str, used: str | None, *, plain: bool) -> None:
        """Learn from a refusal (401) what the registry wants to be told next time.

        Parameters
        ----------
        refusal : Answer
            The registry's.
        scope : str
            What is to be done.
        used : str or None
            What it was told.
        plain : bool
            Whether the user said that it need not be over TLS.

        Raises
        ------
        RegistryLoginError
            There is nothing else to tell it.
        """
        offered = {one.scheme: one for one in read_challenges(refusal.headers.get_list("www-authenticate"))}
        bearer = offered.get("bearer")
        with self._guard:
            if bearer is None:
                if used is not None or self.found.login is None or "basic" not in offered:
                    raise self.refused(refusal, scope)
                return
            held = self._tokens.get(scope)
            if held is not None and used is not None and used != held.header:
                return  # another thread was quicker
            if held is not None and held.fresh and bearer.error == "insufficient_scope":
                raise self.refused(refusal, scope)
            self._bearer = bearer
            self._tokens[scope] = self._get(bearer, scope, plain)

    def _get(self, bearer: Challenge, scope: str, plain: bool) -> Token:
        """Ask the token server that the registry named."""
        try:
            realm = urlsplit(bearer.realm)
            origin(bearer.realm)
        except ValueError as error:
            raise RegistryLoginError(
                "it sends us for a token to an address that is none",
                where=self.registry,
                hint="Ask whoever runs the registry.",
            ) from error
        safe = realm.scheme == "https" or (realm.scheme == "http" and (plain or is_loopback(realm.netloc)))
        if not realm.hostname or not safe:
            raise RegistryLoginError(
                f"it sends us for a token to {shown(bearer.realm)}, which is not over TLS",
                where=self.registry,
                hint="Ask whoever runs the registry.",
            )
        login = self.found.login
        fields = [("service", bearer.service)] if bearer.service else []
        scopes = joined(bearer.scope, scope)
        if login is not None and login.identity:
            fields += [("grant_type", "refresh_token"), ("refresh_token", login.password)]
            fields += [("client_id", "envsync"), ("scope", " ".join(scopes))]
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._ask("POST", bearer.realm, kind, urlencode(fields).encode())
        else:
            query = urlencode([*fields, *(("scope", one) for one in scopes)])
            url = realm._replace(query="&".join(filter(None, (realm.query, query)))).geturl()
            headers = {} if login is None else {"Authorization": login.basic}
            answer = self._ask("GET", url, headers, None)
        token = Token.read(answer.body) if answer.status == HTTPStatus.OK else None
        if token is None:
            raise self.refused(answer, scope, by_token_server=True)
        return token

    def refused(self, answer: Answer, scope: str, *, by_token_server: bool = False) -> RegistryLoginError:
        """Return the error for what a registry, or its token server, will not have."""
        found = self.found
        words = self.without_secrets(answer.words)
        if found.login is None:
            because = f"; {found.trouble}" if found.trouble else ""
            return RegistryLoginError(
                f"it wants a login for {self.repository}, and there is none here{because} ({words})",
                where=self.registry,
                hint=f"Log in once: docker login {self.registry}, or podman login {self.registry}. "
                "Some registries say the same of repositories that are not there.",
            )
        known = self._bearer is not None and not by_token_server
        if known or answer.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST):
            what = "push to" if "push" in scope else "pull from"
            return RegistryLoginError(
                f"it does not let us {what} {self.repository} ({words})",
                where=self.registry,
                hint=f"The login is from {found.source}. Ask whoever runs the registry for that right.",
            )
        return RegistryLoginError(
            f"it does not take our user name and password ({words})",
            where=self.registry,
            hint=f"They are from {found.source}. Log in again: docker login {self.registry}",
        )

    def without_secrets(self, text: str) -> str:
        """Return what a server said without what it was told."""
        with self._guard:
            login = self._found.login if self._found else None
            secrets = [token.text for token in self._tokens.values()]
        secrets += [] if login is None else [login.password, login.basic.partition(" ")[2]]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text
