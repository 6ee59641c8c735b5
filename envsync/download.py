"""Files over HTTP, whole or not at all: taken up again when cut off, tried again when that helps, hashed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import ssl
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import httpx

from envsync.errors import CorruptBlobError, StoreError
from envsync.hooks import Hooks
from envsync.indexes import without_credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.artifacts import Artifact
    from envsync.indexes import IndexSettings
    from envsync.store import Store

__all__ = ["Downloader", "is_untrusted", "reason", "trusted"]

AT_ONCE = 16
ATTEMPTS = 6
PROGRESS = 1 << 20  # a connection that brought this much before it broke is not counted as a failure
TIMEOUT = httpx.Timeout(30.0, pool=None)
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "envsync"}
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}

# stamina reports every retry to its logger; without a handler, logging would print it.
logging.getLogger("stamina").addHandler(logging.NullHandler())


def _without_query(record: logging.LogRecord) -> bool:
    """Keep from logs the queries of what httpx requests: a redirection's may be all that it takes."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            without_credentials(str(one), query=False) if isinstance(one, httpx.URL) else one
            for one in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_without_query)


class _Again(Exception):  # noqa: N818 - never leaves this module
    """A try failed; another may not."""


class _Part:
    """A file that is being written, and the hash of what it holds so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO = path.open("wb")
        self.restart()

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self.tag = ""
        self._sha = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self._sha.update(chunk)
        self.file.write(chunk)
        self.size += len(chunk)

    def digest(self) -> str:
        return self._sha.hexdigest()


class Downloader:
    """Downloads wheels, a bounded number of them at once, over one pool of connections.

    An ``async with`` block holds the connections. Credentials go into the request's header and nowhere else,
    and stay behind when a server redirects to another.

    Parameters
    ----------
    settings : IndexSettings
        Credentials and certificates; proxies come from the environment.
    hooks : Hooks, optional
        Told how many bytes have come, as ``"here"``.
    at_once : int
        How many downloads run at the same time.
    """

    def __init__(
        self, settings: IndexSettings, *, hooks: Hooks | None = None, at_once: int = AT_ONCE
    ) -> None:
        self.settings = settings
        self.hooks = hooks or Hooks()
        self._slots = asyncio.Semaphore(at_once)
        self._auth: dict[str, asyncio.Task[tuple[str, str] | None]] = {}
        self._client: httpx.AsyncClient | None = None
        self._done = 0
        self._total = 0

    async def __aenter__(self) -> Downloader:
        settings = self.settings
        context = await asyncio.to_thread(trusted, settings.cert, client_cert=settings.client_cert)
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        proxy = self.settings.proxy
        trusting = {
            f"https://{host}": httpx.AsyncHTTPTransport(verify=False, limits=limits, proxy=proxy)
            for host in self.settings.trusted_hosts  # the user said so, in pip's or uv's own words
        }
        self._client = httpx.AsyncClient(
            verify=context,
            timeout=TIMEOUT,
            follow_redirects=True,
            headers=HEADERS,
            limits=limits,
            proxy=proxy,
            mounts=trusting,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def fetch_all(self, artifacts: Sequence[Artifact], store: Store, folder: Path | str) -> None:
        """Download wheels into a store, the largest first; the first failure ends the others.

        Parameters
        ----------
        artifacts : sequence of Artifact
            Each with a URL.
        store : Store
            Where they go.
        folder : path
            Holds what is not whole yet; on the store's disk at best.
        """

        async def one(artifact: Artifact) -> None:
            path = await self.fetch(artifact, folder)
            await asyncio.to_thread(store.put, path, artifact.sha256)
            path.unlink()

        self._total = sum(artifact.size or 0 for artifact in artifacts)
        order = sorted(artifacts, key=lambda artifact: -(artifact.size or 0))
        tasks = [asyncio.ensure_future(one(artifact)) for artifact in order]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch(self, artifact: Artifact, folder: Path | str) -> Path:
        """Download one wheel into a folder and return its path there.

        Raises
        ------
        CorruptBlobError
            What came is not what was locked.
        StoreError
            It did not come.
        """
        async with self._slots:
            try:
                part = _Part(Path(folder) / artifact.sha256)
                with contextlib.closing(part.file):
                    await self._persist(artifact, part)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise StoreError(
                    "the disk is full" if full else f"a download cannot be written: {error.strerror}",
                    where=str(folder),
                    hint="Make room, or set ENVSYNC_CACHE to a folder on another disk.",
                ) from error
        if part.digest() != artifact.sha256:
            raise CorruptBlobError(
                f"{_called(artifact)}: what the index sent is not what was locked"
                f" (sha256 {part.digest()}, {part.size} bytes; wanted {artifact.sha256})",
                where=_shown(artifact.url),
                hint="The file was replaced on the index, or a proxy answers in its place. Ask who runs it;"
                " to take the new file: envsync snapshot",
            )
        return part.path

    async def _persist(self, artifact: Artifact, part: _Part) -> None:
        """Try until the file is whole or trying is no use."""
        import stamina

        try:
            async for attempt in stamina.retry_context(
                on=_Again, attempts=ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=10.0
            ):
                with attempt:
                    await self._advance(artifact, part)
        except _Again as error:
            raise StoreError(
                f"{_called(artifact)} could not be downloaded in {ATTEMPTS} tries: {error}",
                where=_shown(artifact.url),
                hint=f"Is {_host(artifact.url)} reachable from here? Proxies are taken from HTTPS_PROXY, a"
                " company's certificates from SSL_CERT_FILE.",
            ) from error

    async def _advance(self, artifact: Artifact, part: _Part) -> None:
        """One try; a connection that brought something before it broke is taken up again at once."""
        while True:
            before = part.size
            try:
                return await self._receive(artifact, part)
            except (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise StoreError(
                    f"{_called(artifact)} cannot be downloaded: {error}",
                    where=_shown(artifact.url),
                    hint="Ask whoever runs the index, or use another one.",
                ) from error
            except httpx.TransportError as error:
                if is_untrusted(error):
                    raise StoreError(
                        f"{_called(artifact)} cannot be downloaded: {_host(artifact.url)} shows a certificate"
                        " that is not trusted here",
                        where=_shown(artifact.url),
                        hint="Name your company's certificates in SSL_CERT_FILE.",
                    ) from error
                if part.size - before < PROGRESS:
                    raise _Again(reason(error)) from error

    async def _receive(self, artifact: Artifact, part: _Part) -> None:
        assert self._client is not None
        assert artifact.url is not None
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        if part.size and part.tag:
            headers["If-Range"] = part.tag
        auth = await self._auth_for(artifact.url)
        request = self._client.build_request("GET", artifact.url, headers=headers)
        response = await self._client.send(request, auth=auth, stream=True)
        try:
            if response.status_code in TRY_AGAIN:
                raise _Again(f"the server answered {_status(response)}")
            whole = response.status_code == HTTPStatus.OK
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT and response.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {part.size}-")
            if not whole and not resumed:
                if part.size:  # it will not go on from there: once more from the start
                    self._count(-part.size)
                    part.restart()
                    raise _Again(f"the server answered {_status(response)} when asked to go on")
                raise _refusal(artifact, response)
            if whole and part.size:
                self._count(-part.size)
                part.restart()
            tag = response.headers.get("ETag", "")
            part.tag = "" if tag.startswith("W/") else tag or response.headers.get("Last-Modified", "")
            async for chunk in response.aiter_raw(1 << 17):
                part.add(chunk)
                self._count(len(chunk))
        finally:
            await response.aclose()

    async def _auth_for(self, url: str) -> tuple[str, str] | None:
        """Return the credentials for a URL, looked up once per folder of the server."""
        key = url.rpartition("/")[0]
        if key not in self._auth:
            self._auth[key] = asyncio.ensure_future(asyncio.to_thread(self.settings.auth_for, url))
        return await self._auth[key]

    def _count(self, size: int) -> None:
        self._done += size
        self.hooks.progress("here", self._done, max(self._total, self._done), "B")


def trusted(*also: str | None, client_cert: str | None = None) -> ssl.SSLContext:
    """Return what servers are checked by: the system's certificates, certifi's, and those that are named.

    Parameters
    ----------
    *also : str or None
        Files or folders of certificates that are trusted besides.
    client_cert : str, optional
        A certificate and its key, for servers that ask for one.

    Raises
    ------
    StoreError
        Certificates that are named cannot be read.
    """
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    named = [*also]
    named += [os.environ.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")]
    for path in dict.fromkeys(filter(None, named)):
        _trust_also(context, str(path))
    if client_cert:
        context.load_cert_chain(client_cert)
    return context


def _trust_also(context: ssl.SSLContext, path: str) -> None:
    try:
        if Path(path).is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:
        raise StoreError(
            f"the certificates cannot be read: {error.strerror or error}",
            where=path,
            hint="SSL_CERT_FILE, REQUESTS_CA_BUNDLE, PIP_CERT or pip's configuration (cert) names it.",
        ) from error


def is_untrusted(error: BaseException) -> bool:
    """Whether a connection failed because the server's certificate is not trusted."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _refusal(artifact: Artifact, response: httpx.Response) -> StoreError:
    host = response.url.host
    index = artifact.index or host
    status = response.status_code
    if status in (401, 403):
        # What the user can set is named by the host that the lock names, not by one that it redirects to.
        message = f"{index} does not let us have {_called(artifact)} ({_status(response)})"
        hint = (
            f"Give the credentials for {_host(artifact.url)}: in ~/.netrc, in the keyring, or in the index's"
            " URL in pip's or uv's configuration. They are read here and never written down."
        )
    elif status in (404, 410):
        message = f"{index} has {_called(artifact)} no more ({_status(response)})"
        hint = (
            f"{artifact.filename} was removed there, or the index has moved."
            " To lock what it has now: envsync snapshot"
        )
    else:
        message = f"{index} does not give us {_called(artifact)} ({_status(response)})"
        hint = "Ask whoever runs the index, or use another one."
    return StoreError(message, where=_shown(artifact.url), hint=hint)


def _called(artifact: Artifact) -> str:
    return f"{artifact.name} {artifact.version}"


def _shown(url: str | None) -> str:
    return without_credentials(url or "", query=False)


def _host(url: str | None) -> str:
    return urlsplit(url or "").hostname or "the index"


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def reason(error: httpx.TransportError) -> str:
    """Return in words why a server was not reached, or not to the end."""
    kind: dict[type[Any], str] = {
        httpx.ConnectTimeout: "it did not answer in time",
        httpx.ReadTimeout: "it stopped sending",
        httpx.ConnectError: "it cannot be connected to",
        httpx.ReadError: "the connection broke",
        httpx.RemoteProtocolError: "the connection was closed before the end",
    }
    text = str(error)
    said = kind.get(type(error), type(error).__name__)
    return f"{said} ({text})" if text else said
