"""What a registry answers, and what is wrong with an address or a certificate: in words."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envsync.download import is_untrusted
from envsync.errors import RegistryError
from envsync.images.auth import HUB
from envsync.images.oci import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

__all__ = ["Again", "Answer", "demand_hope", "is_loopback", "origin", "shown", "speaks_tls"]

TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_LONGEST = 30.0  # seconds that we wait because a registry asks us to


class Again(Exception):  # noqa: N818 - it is caught where that can be helped
    """A try failed; another may not.

    Parameters
    ----------
    why : str
        In words.
    wait : float, optional
        Seconds that the registry asked for.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer whose body is small.

    Attributes
    ----------
    status : int
        Of HTTP.
    headers : httpx.Headers
        Not shown: they may hold addresses that are all that it takes.
    body : bytes
        All of it.
    url : str
        Who answered, after redirections.
    """

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)

    @classmethod
    def read(cls, response: httpx.Response) -> Answer:
        """Read an answer to its end."""
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > LARGEST:
                raise RegistryError(
                    f"it answers with more than {LARGEST >> 20} MB where a small document belongs",
                    where=response.url.host,
                    hint="Is it a registry at all? Otherwise ask whoever runs it.",
                )
        return cls(
            status=response.status_code,
            headers=response.headers,
            body=bytes(data),
            url=str(response.url),
        )

    @property
    def words(self) -> str:
        """Its status, and the registry's own words of what is wrong."""
        text = status_of(self.status)
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
            first = json.loads(self.body)["errors"][0]
            text += f": {first['code']}: {first['message']}"[:300].rstrip(": ")
        return text if text.isprintable() else ascii(text)


def status_of(code: int) -> str:
    """Return a status with its words."""
    with contextlib.suppress(ValueError):
        return f"{code} {HTTPStatus(code).phrase}"
    return str(code)


def demand_patience(response: httpx.Response, who: str) -> None:
    """Raise `Again` if an answer says that the next try may be better."""
    if response.status_code in TRY_AGAIN:
        wait = None
        with contextlib.suppress(KeyError, ValueError):
            wait = min(_LONGEST, max(0.0, float(response.headers["retry-after"])))
        raise Again(f"{who} answered {status_of(response.status_code)}", wait)


def demand_hope(error: Exception, registry: str, host: str, *, reached: bool) -> None:
    """Raise what another try would not mend.

    Parameters
    ----------
    error : Exception
        What a connection failed of.
    registry, host : str
        How the user calls it, and what is looked up.
    reached : bool
        Whether it answered before: if so, that it refuses us now may be for a moment only.

    Raises
    ------
    RegistryError
        It would not.
    """
    causes = list(_causes(error))
    if is_untrusted(error):
        raise RegistryError(
            "it shows a certificate that is not trusted here",
            where=registry,
            hint="Name your company's certificates in SSL_CERT_FILE, or put the registry's own into "
            f"/etc/docker/certs.d/{host}/ca.crt.",
        ) from error
    if any(isinstance(one, ssl.SSLError) and not isinstance(one, ssl.SSLEOFError) for one in causes):
        raise RegistryError(
            "it does not speak TLS as it should",
            where=registry,
            hint="A registry that speaks plain HTTP has to be asked for with --plain-http.",
        ) from error
    unknown = [one for one in causes if isinstance(one, socket.gaierror)]
    if unknown and unknown[0].errno != socket.EAI_AGAIN:
        raise RegistryError(
            f"there is no such registry: the name {host.rpartition(':')[0] or host} is not known",
            where=registry,
            hint=f"Is it spelt right? An image of the public hub is {HUB}/<user>/<name>.",
        ) from error
    if not reached and (unknown or any(isinstance(one, ConnectionRefusedError) for one in causes)):
        why = "its name cannot be looked up" if unknown else "nothing listens there"
        raise RegistryError(
            f"the registry is not reached: {why}",
            where=registry,
            hint="Is it running, and is the port right? Proxies are taken from HTTPS_PROXY.",
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def origin(url: str) -> tuple[str, str, int | None]:
    """Return whom an address is of: what is told to one is not told to another."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def shown(url: str) -> str:
    """Return an address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback(host: str) -> bool:
    """Tell whether a registry is on this machine, by its name alone."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def speaks_tls(host: str) -> bool:
    """Look whether a registry on this machine speaks TLS; whose certificate it shows is looked at later."""
    parts = urlsplit(f"//{host}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        address = (parts.hostname or "", parts.port or 443)
        with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain):
            return True
    except (OSError, ValueError):
        return False


def certificates_for(host: str) -> list[Path]:
    """Return the files that docker and podman would use for a registry alone, the user's own first."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    places = [config / "containers", config / "docker", Path("/etc/containers"), Path("/etc/docker")]
    folders = [place / "certs.d" / host for place in places]
    return [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
