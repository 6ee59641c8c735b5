"""Requests to one registry: over TLS or not, with what it wants to know of us, redirected, and tried again.

A registry gets a login only over TLS, on this machine's own loopback, or where the user said that plain HTTP
will do; whoever it redirects to gets none. Messages and logs name addresses without their queries, which hold
the state of uploads and signatures.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from envsync.download import reason, trusted
from envsync.errors import RegistryError
from envsync.images import answers
from envsync.images.answers import Again, Answer, demand_hope, demand_patience, origin, shown
from envsync.images.auth import HUB
from envsync.images.challenges import Logins

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["Connection"]

ATTEMPTS = 5
TIMEOUT = httpx.Timeout(60.0, connect=15.0, pool=None)
HEADERS = {"User-Agent": "envsync", "Accept-Encoding": "identity"}
_REDIRECTIONS = frozenset((301, 302, 303, 307, 308))
_FARTHEST = 5
_T = TypeVar("_T")


class Connection:
    """A registry, as one of its repositories is talked to; from several threads at once.

    Parameters
    ----------
    registry : str
        Its name, with the port if there is one.
    repository : str
        What logins are for.
    plain_http : bool
        Whether it is talked to without TLS. On loopback it is where it does not speak TLS.

    Attributes
    ----------
    requests : int
        How many were sent.
    """

    def __init__(self, registry: str, repository: str, *, plain_http: bool = False) -> None:
        self.registry = registry
        self.requests = 0
        self.logins = Logins(registry, repository, self._ask_token_server)
        self._host = f"registry-1.{HUB}" if registry == HUB else registry
        self._plain = plain_http
        self._base = ""
        self._client: httpx.Client | None = None
        self._elsewhere: httpx.Client | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._reached = False
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"Connection({self.registry!r})"

    def close(self) -> None:
        """End it; what other threads are asking ends with an error, at once."""
        self._ended.set()
        for one in list(self._sockets):  # closing a socket would not wake who waits for it
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        with self._guard:
            for client in {self._client, self._elsewhere} - {None}:
                assert client is not None
                client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        scope: str = "",
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> Answer:
        """Ask, once or several times.

        Parameters
        ----------
        method, path, scope, headers, content, timeout
            As for `once`.

        Raises
        ------
        RegistryError
            It was not reached, will not let us, or has troubles of its own.
        """

        def ask() -> Answer:
            options = {"scope": scope, "headers": headers, "content": content, "timeout": timeout}
            with self.once(method, path, **options) as response:  # type: ignore[arg-type]
                return Answer.read(response)

        return self.persist(ask, f"{method} {urlsplit(path).path}")

    def persist(self, function: Callable[[], _T], what: str) -> _T:
        """Call a function until it does not raise `Again`, or trying is no use."""
        try:
            return function()
        except Again as error:
            failed = [error]
        import stamina  # mostly nobody needs it, and it takes as long as the request

        try:
            for attempt in stamina.retry_context(
                on=_when, attempts=ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=8.0, wait_jitter=0.3
            ):
                with attempt:
                    if failed:
                        raise failed.pop()  # so that the first failure is waited for, too
                    return function()
        except Again as error:
            raise RegistryError(
                f"{error} ({what}, {ATTEMPTS} tries)",
                where=self.registry,
                hint="Try again later: what arrived whole is not sent again. Or ask whoever runs it.",
            ) from error
        raise AssertionError("the last attempt raises")  # pragma: no cover

    def pause(self, times: int) -> None:
        """Wait before another try, longer after more of them; not at all once it is ended."""
        self._ended.wait(min(8.0, 0.2 * 2 ** (times - 1)))

    @contextlib.contextmanager
    def once(
        self,
        method: str,
        path: str,
        *,
        scope: str = "",
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> Iterator[httpx.Response]:
        """Ask once; the body is to be read within the block.

        Parameters
        ----------
        method : str
            Of HTTP.
        path : str
            ``/v2/...``, or what a Location header said.
        scope : str
            What is to be done, as token servers are asked for it.
        headers, content, timeout
            Of the request.

        Raises
        ------
        Again
            It was not reached, cut off, or asks us to come again.
        RegistryLoginError
            It does not let us.
        RegistryError
            It will not work that way.
        """
        with self._told(), contextlib.ExitStack() as stack:
            url = self.url(path)
            response = self._with_login(method, url, scope, dict(headers or {}), content, timeout)
            stack.callback(response.close)
            demand_patience(response, "the registry")
            yield response

    def url(self, path: str) -> str:
        """Return the whole of an address. One on the registry itself is never plain where it speaks TLS."""
        base = self._connect()
        try:
            url = urljoin(base, path)
            ours, its = urlsplit(base), urlsplit(url)
            origin(url)
        except ValueError as error:
            raise self._no_address() from error
        if ours.scheme == "https" and its.scheme == "http" and its.hostname == ours.hostname:
            # it does not know that something before it speaks TLS
            return its._replace(scheme="https", netloc=ours.netloc).geturl()
        return url

    def _with_login(
        self,
        method: str,
        url: str,
        scope: str,
        headers: dict[str, str],
        content: bytes | Iterable[bytes] | None,
        timeout: httpx.Timeout,
    ) -> httpx.Response:
        """Send, and tell the registry who we are if it asks; once more if a token has expired meanwhile."""
        if not self._ours(url):
            return self._redirected(method, url, headers, content, timeout)
        for last in (False, False, True):
            used = self.logins.header(scope, plain=self._plain)
            with_login = {**headers, "Authorization": used} if used else headers
            response = self._redirected(method, url, with_login, content, timeout)
            asked = response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            if not asked or not self._ours(str(response.url)):
                return response
            with contextlib.closing(response):
                answer = Answer.read(response)
            if last or answer.status == HTTPStatus.FORBIDDEN:
                raise self.logins.refused(answer, scope)
            self.logins.answer(answer, scope, used, plain=self._plain)
            if content is not None and iter(content) is content:
                raise Again("the registry wanted to know who we are")
        raise AssertionError("the last one returns or raises")  # pragma: no cover

    def _redirected(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None,
        timeout: httpx.Timeout,
    ) -> httpx.Response:
        """Send, and go where it leads; our login stays behind where that is another server."""
        for _ in range(_FARTHEST):
            response = self._send(method, url, headers, content, timeout)
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTIONS or not location or method not in ("GET", "HEAD"):
                return response
            response.close()
            try:
                target = self.url(urljoin(url, location))
            except ValueError as error:
                raise self._no_address() from error
            if urlsplit(target).scheme != "https" and urlsplit(url).scheme == "https":
                raise RegistryError(
                    f"it redirects to {shown(target)}, which is not over TLS",
                    where=self.registry,
                    hint="Ask whoever runs the registry.",
                )
            if origin(target) != origin(url):
                headers = {key: value for key, value in headers.items() if key != "Authorization"}
            url = target
        raise RegistryError("it redirects in circles", where=self.registry, hint="Ask whoever runs it.")

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None,
        timeout: httpx.Timeout,
    ) -> httpx.Response:
        client = self._client if self._ours(url) else self._other_client()
        assert client is not None
        request = client.build_request(
            method,
            url,
            headers=headers,
            content=content,
            timeout=timeout,
            extensions={"trace": self._note},
        )
        self.requests += 1
        response = client.send(request, stream=True)
        self._reached = True
        return response

    def _note(self, event: str, about: Mapping[str, Any]) -> None:
        """Take note of a connection's socket when httpx has made it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._sockets.add(about["return_value"].get_extra_info("socket"))

    def _ours(self, url: str) -> bool:
        return origin(url) == origin(self._base)

    def _ask_token_server(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Answer:
        def ask() -> Answer:
            with self._told(), contextlib.closing(self._send(method, url, headers, content, TIMEOUT)) as one:
                demand_patience(one, "its token server")
                return Answer.read(one)

        return self.persist(ask, "asking for a token")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say in our words what httpx raises."""
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_address() from error
        except httpx.TransportError as error:
            self._demand_open(error)
            demand_hope(error, self.registry, self._host, reached=self._reached)
            raise Again(reason(error)) from error
        except RuntimeError as error:  # httpx, of a client that was closed
            self._demand_open(error)
            raise

    def _no_address(self) -> RegistryError:
        return RegistryError(
            "it named an address that is none", where=self.registry, hint="Ask whoever runs the registry."
        )

    def _demand_open(self, error: Exception | None = None) -> None:
        if self._ended.is_set():
            raise RegistryError("what was asked of it was ended from here", where=self.registry) from error

    def _connect(self) -> str:
        """Return the beginning of its addresses; how it is talked to is found out at the first one."""
        with self._guard:
            self._demand_open()
            if self._client is None:
                local = answers.is_loopback(self._host)
                plain = self._plain or (local and not answers.speaks_tls(self._host))
                self._client = _client(False if plain else self._context(), trust_env=not local)
                self._base = f"{'http' if plain else 'https'}://{self._host}"
            return self._base

    def _other_client(self) -> httpx.Client:
        """Return what talks to other servers: it checks them, though the registry be plain."""
        with self._guard:
            self._demand_open()
            if self._elsewhere is None:
                plain = urlsplit(self._base).scheme == "http"
                self._elsewhere = _client(self._context(), trust_env=True) if plain else self._client
            assert self._elsewhere is not None
            return self._elsewhere

    def _context(self) -> ssl.SSLContext:
        """Return what servers are checked by: everybody's certificates, and those for this registry."""
        files = answers.certificates_for(self._host)
        context = trusted(*(str(file) for file in files if file.suffix == ".crt"))
        for file in files:
            if file.suffix == ".cert" and file.with_suffix(".key").is_file():
                try:
                    context.load_cert_chain(file, file.with_suffix(".key"))
                except OSError as error:
                    raise RegistryError(
                        f"the certificate that shows who we are cannot be used: {error.strerror or error}",
                        where=str(file),
                        hint="Mend or remove it and its key.",
                    ) from error
        return context


def _client(verify: ssl.SSLContext | bool, *, trust_env: bool) -> httpx.Client:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    return httpx.Client(verify=verify, timeout=TIMEOUT, trust_env=trust_env, headers=HEADERS, limits=limits)


def _when(error: Exception) -> bool | float:
    """Tell stamina whether to try again, and in how many seconds if somebody said so."""
    if not isinstance(error, Again):
        return False
    return True if error.wait is None else error.wait
