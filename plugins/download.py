"""From a store's address, or a folder that this machine sees, to its disk: streamed, resumed, checked.

An address may be a secret: whoever has it can read the blob. No error of this module repeats one, or what
the libraries below say of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.request
from typing import Any, BinaryIO, Iterator
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

__all__ = ["ABSENT", "CORRUPT", "FAILED", "REFUSED", "UNREACHABLE", "Downloads", "NotGiven", "copy"]

ABSENT, REFUSED, UNREACHABLE, CORRUPT, FAILED = "absent", "refused", "unreachable", "corrupt", "failed"

TRIES = 4
PAUSE = 0.5  # seconds before the second try, twice as long before each one after it
CONNECTING = 3.0  # seconds to the first word of a server, when it is looked for
SILENCE = 20.0  # seconds without a byte after which a connection is taken for broken
_CHUNK = 1 << 18
_BUNDLES = (  # where systems keep the authorities that they trust
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class NotGiven(Exception):  # noqa: N818 - it is what the other side is told
    """A blob cannot be had from there.

    Parameters
    ----------
    kind : str
        `ABSENT`: there is none. `REFUSED`: not to this address, which is forbidden or expired.
        `UNREACHABLE`: nothing is to be had from that server. `CORRUPT`: other bytes came. `FAILED`: the
        connection broke again and again.
    why : str
        In words, without the address.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why


class _Broken(Exception):  # noqa: N818 - it is worth another try
    pass


class Downloads:
    """Gets blobs by HTTP, through the proxies that this machine's environment names.

    Its methods may be called from several threads.

    Parameters
    ----------
    authority : str
        Certificates (PEM) to trust besides this machine's.
    direct : bool
        Whether servers are of this network: no proxy is asked, and nobody is trusted but by `authority`.
    """

    def __init__(self, authority: str = "", *, direct: bool = False) -> None:
        self._direct = direct
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler({} if direct else None),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=_context(authority, alone=direct)),
            urllib.request.HTTPDefaultErrorHandler(),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def reach(self, address: str) -> None:
        """Connect to the server of an address, or to the proxy in front of it, and close.

        Raises
        ------
        NotGiven
            It is not reached.
        """
        where = _server(address, direct=self._direct)
        try:
            socket.create_connection(where, timeout=CONNECTING).close()
        except OSError as error:
            raise NotGiven(UNREACHABLE, _said(error)) from None

    def get(self, address: str, sha256: str, path: str) -> int:
        """Write a blob into a new file, for its user only; return its size.

        Parameters
        ----------
        address : str
            Where it is: ``http://`` or ``https://``.
        sha256 : str
            Its digest.
        path : str
            The file, not there yet. It is left behind if this fails.

        Raises
        ------
        NotGiven
            It cannot be had from there.
        OSError
            It cannot be written.
        """
        with _new(path) as file:
            size, sha, why = 0, hashlib.sha256(), ""
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE * 2 ** (attempt - 1))
                try:
                    with contextlib.closing(self._open(address, size)) as answer:
                        if size and answer.status != http.client.PARTIAL_CONTENT:
                            file.seek(0)
                            file.truncate()
                            size, sha = 0, hashlib.sha256()
                        for data in _pieces(answer):
                            file.write(data)
                            sha.update(data)
                            size += len(data)
                except _Broken as broken:
                    why = str(broken)
                    continue
                if sha.hexdigest() != sha256:
                    raise NotGiven(CORRUPT, f"it holds other bytes (sha256 {sha.hexdigest()})")
                return size
        raise NotGiven(FAILED, why)

    def _open(self, address: str, offset: int) -> Any:
        try:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            request = urllib.request.Request(address, headers=headers)  # noqa: S310 - HTTP alone is opened
            answer = self._opener.open(request, timeout=SILENCE)
        except HTTPError as error:
            with contextlib.suppress(Exception):
                error.close()
            raise _refusal(error.code) from None
        except URLError as error:
            reason = error.reason
            if not isinstance(reason, OSError):
                raise NotGiven(UNREACHABLE, "its address is none of HTTP's") from None
            raise _trouble(reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise _trouble(error) from None
        except ValueError:
            raise NotGiven(UNREACHABLE, "its address is none of HTTP's") from None
        if answer is None:
            raise NotGiven(UNREACHABLE, "its address is none of HTTP's")
        begins = (answer.headers.get("Content-Range") or "").partition("-")[0]
        if answer.status == http.client.PARTIAL_CONTENT and begins != f"bytes {offset}":
            answer.close()
            raise NotGiven(FAILED, "its server gives other parts than it is asked for")
        return answer


def copy(source: str, sha256: str, path: str) -> int:
    """Write a file of a store's folder into a new one; return its size.

    Parameters
    ----------
    source : str
        The file.
    sha256 : str
        What it should be.
    path : str
        The new file, not there yet. It is left behind if this fails.

    Raises
    ------
    NotGiven
        It is not there, may not be read, or holds other bytes.
    OSError
        The new one cannot be written.
    """
    try:
        content = open(source, "rb")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise NotGiven(ABSENT, "there is none") from None
    except OSError as error:
        raise NotGiven(REFUSED, _said(error)) from None
    with content, _new(path) as file:
        size, sha = 0, hashlib.sha256()
        while True:
            try:
                data = content.read(_CHUNK)
            except OSError as error:
                raise NotGiven(FAILED, _said(error)) from None
            if not data:
                break
            file.write(data)
            sha.update(data)
            size += len(data)
    if sha.hexdigest() != sha256:
        raise NotGiven(CORRUPT, f"it holds other bytes (sha256 {sha.hexdigest()})")
    return size


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no server from TLS to plain text."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise NotGiven(UNREACHABLE, "it leads from TLS to plain HTTP")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pieces(answer: Any) -> Iterator[bytes]:
    """Yield what a server sends. `_Broken` if that is less than it said."""
    left = answer.length
    while True:
        try:
            data = answer.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_said(error)) from None
        if not data:
            break
        if left is not None:
            left -= len(data)
        yield data
    if left:
        raise _Broken("the connection broke off")


def _new(path: str) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _context(authority: str, *, alone: bool = False) -> ssl.SSLContext:
    if alone:
        return ssl.create_default_context(cadata=authority)
    context = ssl.create_default_context()
    places = ssl.get_default_verify_paths()
    if not places.cafile and not (places.capath and os.listdir(places.capath)):
        # a Python that was built on another system
        for bundle in _BUNDLES:
            if os.path.isfile(bundle):
                context.load_verify_locations(cafile=bundle)
                break
    if authority:
        context.load_verify_locations(cadata=authority)
    return context


def _refusal(status: int) -> Exception:
    if status in (404, 410):
        return NotGiven(ABSENT, "there is none")
    if status in (408, 416, 429) or status >= 500:
        return _Broken(f"its server answers {status}")
    if status == 407:
        return NotGiven(UNREACHABLE, "the proxy wants a login (407)")
    return NotGiven(REFUSED, f"its server answers {status}: forbidden, or the address has expired")


def _trouble(error: BaseException) -> Exception:
    """Return what keeps a connection from being made: worth another try, or not."""
    lasting = isinstance(error, (socket.gaierror, ssl.SSLError)) or (
        isinstance(error, OSError)
        and error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES)
    )
    if lasting or _tunnel(error):
        return NotGiven(UNREACHABLE, _said(error))
    return _Broken(_said(error))


def _tunnel(error: BaseException) -> str:
    text = str(error)
    return text[:80] if isinstance(error, OSError) and text.startswith("Tunnel connection failed: ") else ""


def _said(error: BaseException) -> str:
    """Return a network's or a disk's error in words that quote nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, socket.timeout):
        return "it does not answer"
    if isinstance(error, http.client.HTTPException):
        return "the connection broke off"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return _tunnel(error) or "it is not reached"


def _server(address: str, *, direct: bool = False) -> tuple[str, int]:
    """Return whom to connect to for an address: its server, or this machine's proxy for it."""
    parts = urlsplit(address)
    proxy = None if direct else urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise NotGiven(UNREACHABLE, "its address is none of HTTP's") from None
