"""Where packages come from: pip's, uv's and the environment's index settings, read into one value.

uv does not read pip's configuration, and envsync runs it without its own, so that nothing but the settings
below can change what is locked. What counts, first to last:

1. ``UV_*`` variables;
2. uv's configuration: the project's ``uv.toml`` or ``[tool.uv]``, the user's, the system's;
3. ``PIP_*`` variables;
4. pip's configuration: ``PIP_CONFIG_FILE``, the environment's, the user's, the system's.

Of a setting that has one value (the default index, no-index, certificates) the first counts; lists
(additional indexes, find-links, trusted hosts) are joined in that order.

Indexes are searched as uv does it: the additional ones in order, then the default one; those that uv's
configuration calls explicit come last. The first that has a package's *name* is the only one that is looked
at for it, so that nobody can slip a package in by its name. Where pip's additional indexes or explicit ones
take part, which are written on other terms, it is the first that has the pinned *version*.

Credentials (in URLs, ``UV_INDEX_<NAME>_USERNAME`` and ``_PASSWORD``, netrc, keyring) are held apart from the
URLs and given to uv in its environment only. No ``repr`` shows them.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Index", "IndexSettings", "read_settings", "without_credentials"]

_WEB = ("http", "https")
_PORTS = {"http": 80, "https": 443}


def without_credentials(url: str, *, query: bool = True) -> str:
    """Return a URL without user, password and fragment; `query` says whether its query stays.

    Queries carry signatures and tokens often enough that nothing which is written down may keep one.
    """
    if "@" not in url and "#" not in url and (query or "?" not in url):
        return url
    parts = urlsplit(url)
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query if query else "", "")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A place that packages come from: a package index (PEP 503, 691) or a find-links page or folder.

    Attributes
    ----------
    url : str
        Without credentials. Folders are ``file:`` URLs.
    name : str
        What the user calls it, or "".
    username, password : str or None
        What it is told; not shown.
    default : bool
        Whether it stands in the place of uv's default index.
    explicit : bool
        Whether it is meant for packages only that name it.
    """

    url: str
    name: str = ""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    default: bool = False
    explicit: bool = False

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        folder: str | os.PathLike[str] = ".",
        default: bool = False,
        explicit: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> Index:
        """Read ``url``, ``name=url`` or a path.

        Parameters
        ----------
        text : str
            As the user wrote it.
        folder : path
            What a relative path is relative to.
        default, explicit : bool
            As the attributes.
        environ : mapping, optional
            Where ``UV_INDEX_<NAME>_USERNAME`` and ``_PASSWORD`` may be.
        """
        named = re.match(r"([A-Za-z0-9._-]+)=(?=.)", text)
        name = named.group(1) if named else ""
        url = text[named.end() :] if named else text
        if "://" not in url and not url.startswith("file:"):
            path = Path(os.path.abspath(Path(folder) / Path(url).expanduser()))  # noqa: PTH100 - keeps links
            return cls(url="file://" + quote(str(path)), name=name, default=default, explicit=explicit)
        parts = urlsplit(url)
        username = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        if name and environ:
            key = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
            username = environ.get(f"{key}_USERNAME", username)
            password = environ.get(f"{key}_PASSWORD", password)
        return cls(
            url=without_credentials(url),
            name=name,
            username=username,
            password=password,
            default=default,
            explicit=explicit,
        )

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return urlsplit(self.url).scheme not in _WEB

    @property
    def path(self) -> Path | None:
        """The folder, if it is one."""
        return Path(unquote(urlsplit(self.url).path)) if self.local else None

    def _with_credentials(self) -> str:
        """Return the URL as it goes into a child's environment, and nowhere else."""
        if self.username is None and self.password is None:
            return self.url
        parts = urlsplit(self.url)
        userinfo = quote(self.username or "", safe="")
        if self.password is not None:
            userinfo += ":" + quote(self.password, safe="")
        return urlunsplit(parts._replace(netloc=f"{userinfo}@{parts.netloc}"))

    def _serves(self, url: str) -> int:
        """How well a URL fits: 0 for another server, else more for a longer common path."""
        mine, other = urlsplit(self.url), urlsplit(url)
        if _realm(self.url) != _realm(url):
            return 0
        pairs = zip(mine.path.split("/"), other.path.split("/"), strict=False)
        return 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _realm(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Where packages come from, and on what terms.

    Attributes
    ----------
    indexes : tuple of Index
        As configured; `searched` has them in the order in which they are searched.
    find_links : tuple of Index
        Pages and folders of files.
    no_index : bool
        Whether only `find_links` count.
    strategy : str
        uv's index strategy, or "" for its default.
    cert, client_cert : str or None
        Files of certificates.
    trusted_hosts : tuple of str
        Hosts that are talked to without TLS, or without checking their certificates.
    keyring : bool
        Whether the keyring is asked for passwords.
    netrc : str or None
        The file, if there is one.
    proxy : str or None
        For HTTP; it may hold credentials, and is not shown.
    uv : mapping of str to str
        Other variables for uv.
    notes : tuple of str
        What was found odd, for the user.
    """

    indexes: tuple[Index, ...] = ()
    find_links: tuple[Index, ...] = ()
    no_index: bool = False
    strategy: str = ""
    cert: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    keyring: bool = False
    netrc: str | None = None
    proxy: str | None = field(default=None, repr=False)
    uv: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def searched(self) -> tuple[Index, ...]:
        """Return the indexes in the order in which they are searched, uv's own default among them.

        Where nothing is configured uv is asked which that is.
        """
        if self.no_index:
            return ()
        indexes = [index for index in self.indexes if not index.default and not index.explicit]
        default = [index for index in self.indexes if index.default]
        if not default:
            from envsync.uv import default_index

            default = [Index(url=default_index(), default=True)]
        return (
            *indexes,
            *default,
            *(index for index in self.indexes if index.explicit and not index.default),
        )

    def uv_environment(self) -> dict[str, str]:
        """Return what uv is told, for its environment only: credentials are in it."""
        environ = dict(self.uv)
        if self.indexes and not self.no_index:
            explicit = any(index.explicit for index in self.indexes)
            default = any(index.default for index in self.indexes)
            order = list(self.searched() if explicit or default else self.indexes)
            # uv searches UV_INDEX in order and UV_DEFAULT_INDEX last, whatever we call them.
            last = order.pop() if explicit or default else None
            if order:
                environ["UV_INDEX"] = " ".join(index._with_credentials() for index in order)
            if last is not None:
                environ["UV_DEFAULT_INDEX"] = last._with_credentials()
        if self.find_links:
            links = [_escaped(link._with_credentials()) for link in self.find_links]
            environ["UV_FIND_LINKS"] = ",".join(links)
        settings = (
            ("UV_INDEX_STRATEGY", self.strategy),
            ("SSL_CERT_FILE", self.cert),
            ("SSL_CLIENT_CERT", self.client_cert),
            ("UV_INSECURE_HOST", " ".join(self.trusted_hosts)),
            ("UV_KEYRING_PROVIDER", "subprocess" if self.keyring and shutil.which("keyring") else ""),
            ("NETRC", self.netrc),
            ("ALL_PROXY", self.proxy),
            ("HTTPS_PROXY", self.proxy),
            ("HTTP_PROXY", self.proxy),
        )
        environ.update((key, value) for key, value in settings if value)
        return environ

    def uv_arguments(self) -> list[str]:
        """Return what uv is told by its arguments: what it has no variable for. No credentials."""
        return ["--no-index"] if self.no_index else []

    def auth_for(self, url: str) -> tuple[str, str] | None:
        """Return the user and password that a URL is fetched with.

        Parameters
        ----------
        url : str
            Of an index page or a file, without credentials.

        Returns
        -------
        (str, str) or None
            From the index that fits best, else netrc, else the keyring.
        """
        places = [place for place in (*self.indexes, *self.find_links) if place._serves(url)]
        best = sorted(places, key=lambda place: -place._serves(url))
        for place in best:
            if place.password is not None:
                return place.username or "", place.password
        username = next((place.username for place in best if place.username is not None), None)
        found = self._from_netrc(url, username) or self._from_keyring(url, best, username)
        if found is None and username:
            return username, ""
        return found

    def _from_netrc(self, url: str, username: str | None) -> tuple[str, str] | None:
        if self.netrc is None:
            return None
        from netrc import NetrcParseError, netrc

        try:
            entry = netrc(self.netrc).authenticators(urlsplit(url).hostname or "")
        except (OSError, NetrcParseError, UnicodeDecodeError):
            return None
        if entry is None or (username is not None and entry[0] != username):
            return None
        return entry[0] or "", entry[2] or ""

    def _from_keyring(self, url: str, places: list[Index], username: str | None) -> tuple[str, str] | None:
        if not self.keyring:
            return None
        services = [*(place.url for place in places), urlsplit(url).netloc.rpartition("@")[2]]
        try:
            keyring, errors = import_module("keyring"), import_module("keyring.errors")
        except ImportError:
            return _from_keyring_program(services, username)
        for service in services:
            try:
                credential = keyring.get_credential(service, username)
            except errors.KeyringError:
                continue
            if credential is not None:
                return credential.username, credential.password
        return None


def _from_keyring_program(services: list[str], username: str | None) -> tuple[str, str] | None:
    """Ask the ``keyring`` command, which needs to be told the user."""
    program = shutil.which("keyring")
    if program is None or username is None:
        return None
    for service in services:
        done = subprocess.run(
            [program, "get", service, username], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip():
            return username, done.stdout.rstrip("\n")
    return None


def _escaped(url: str) -> str:
    return url.replace(",", "%2C").replace(" ", "%20")


def read_settings(
    environ: Mapping[str, str] | None = None,
    *,
    project: str | os.PathLike[str] | None = None,
    prefix: str | os.PathLike[str] | None = None,
) -> IndexSettings:
    """Read what pip and uv are told on this machine.

    Parameters
    ----------
    environ : mapping, optional
        The environment; this process's if not given.
    project : path, optional
        The folder that uv's configuration is looked for in and above; the working directory if not given.
    prefix : path, optional
        Of the environment whose ``pip.conf`` counts; this process's if not given.

    Returns
    -------
    IndexSettings
        Nothing is contacted for it.

    Raises
    ------
    ResolveError
        A configuration file cannot be read.
    """
    from envsync.index_sources import read

    return read(os.environ if environ is None else environ, project=project, prefix=prefix)
