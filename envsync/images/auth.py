"""Who we are to a registry: what `docker login`, `podman login` and their credential helpers keep.

Looked for in this order; the first that knows the registry counts:

1. the file that ``$REGISTRY_AUTH_FILE`` names, as podman and skopeo have it;
2. ``config.json`` in ``$DOCKER_CONFIG``, or in ``~/.docker``;
3. ``containers/auth.json`` in ``$XDG_RUNTIME_DIR``, in ``$XDG_CONFIG_HOME`` or in ``~/.config``.

Nothing found is shown by a ``repr`` or put into an argument; a helper is told the registry's name on its
standard input.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.errors import RegistryError
from envsync.images.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["HUB", "HUB_KEYS", "Found", "Login", "find_login"]

HUB = DEFAULT_REGISTRY
HUB_KEYS = (f"https://index.{HUB}/v1/", f"index.{HUB}", HUB, f"registry-1.{HUB}")
"""What files of logins call it, the usual name first."""

_SECONDS = 60.0
_NOT_FOUND = "credentials not found"  # what a helper says of a registry that it does not know
_IDENTITY = "<token>"  # the user name under which helpers keep identity tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a registry is told.

    Attributes
    ----------
    username : str
        Not shown.
    password : str
        A password, or an identity token; not shown.
    identity : bool
        Whether it is an identity token, which is exchanged for others.
    """

    username: str = field(repr=False)
    password: str = field(repr=False)
    identity: bool = False

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found for a registry.

    Attributes
    ----------
    login : Login or None
        None: nobody logged in.
    source : str
        The file it is from, or that names its helper.
    trouble : str
        Why it may be that nothing was found: a helper that is not there, for instance.
    """

    login: Login | None = None
    source: str = ""
    trouble: str = ""


def find_login(registry: str, repository: str = "", *, environ: Mapping[str, str] | None = None) -> Found:
    """Return how to log in to a registry.

    Parameters
    ----------
    registry : str
        Its name, with the port if there is one.
    repository : str
        What is wanted of it: podman's files may have a login for a part of a registry.
    environ : mapping, optional
        Where the variables are; this process's if not given.

    Raises
    ------
    RegistryError
        A file is there, and is not what it should be.
    """
    environ = os.environ if environ is None else environ
    trouble = ""
    for path in _files(environ):
        found = _look_into(path, registry, repository, environ)
        if found.login is not None:
            return found
        trouble = trouble or found.trouble
    return Found(trouble=trouble)


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that are there."""
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    config = Path(environ.get("XDG_CONFIG_HOME") or Path(home, ".config"))
    named = environ.get("REGISTRY_AUTH_FILE")
    runtime = environ.get("XDG_RUNTIME_DIR")
    folders = [folder for folder in (runtime, config) if folder]
    paths = [Path(named)] if named else []
    paths.append(Path(environ.get("DOCKER_CONFIG") or Path(home, ".docker"), "config.json"))
    paths += [Path(folder, "containers", "auth.json") for folder in folders]
    for path in paths:
        if path.is_file():
            yield path


def _look_into(path: Path, registry: str, repository: str, environ: Mapping[str, str]) -> Found:
    document = _read(path)
    helpers, logins = _table(document, "credHelpers"), _table(document, "auths")
    keys = HUB_KEYS if registry == HUB else (registry,)
    helper = next((helpers[key] for key in keys if key in helpers), document.get("credsStore"))
    trouble = ""
    if helper:
        for key in keys[:1] if registry == HUB else keys:
            login, trouble = _ask(str(helper), key, environ)
            if login is not None:
                return Found(login=login, source=f"{path}, by docker-credential-{helper}")
    entry = _entry(logins, keys, repository)
    login = None if entry is None else _login(entry, path)
    return Found(login=login, source=str(path) if login else "", trouble=trouble)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = (error.strerror or "unreadable") if isinstance(error, OSError) else "it is not JSON"
        raise RegistryError(  # from None: the cause may quote what is in the file
            f"the logins to registries cannot be read: {why}",
            where=str(path),
            hint="Mend or remove the file; docker login and podman login write a new one.",
        ) from None
    return document if isinstance(document, dict) else {}


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name)
    return table if isinstance(table, dict) else {}


def _entry(logins: Mapping[str, Any], keys: tuple[str, ...], repository: str) -> dict[str, Any] | None:
    """Return the entry for the longest part of a repository's name, at last the registry's own."""
    parts = repository.split("/") if repository else []
    for length in range(len(parts), -1, -1):
        for key in keys:
            wanted = "/".join([key, *parts[:length]])
            for name, entry in logins.items():
                if isinstance(entry, dict) and entry and (name == wanted or _plain(name) == wanted):
                    return entry
    return None


def _plain(name: str) -> str:
    """Return a key without what old clients wrote around the registry's name."""
    return re.sub(r"/v[12]/?$", "", re.sub(r"^https?://", "", name)).rstrip("/")


def _login(entry: Mapping[str, Any], path: Path) -> Login | None:
    if entry.get("identitytoken"):
        return Login(username="", password=str(entry["identitytoken"]), identity=True)
    if entry.get("auth"):
        try:
            text = base64.b64decode(str(entry["auth"])).decode()
        except ValueError:
            text = ""
        username, colon, password = text.partition(":")
        if not colon:
            raise RegistryError(
                "a login to a registry in it is not base64 of user:password",
                where=str(path),
                hint="Log in again: docker login or podman login.",
            ) from None
        return Login(username=username, password=password.strip("\0"))
    if entry.get("username") and entry.get("password"):
        return Login(username=str(entry["username"]), password=str(entry["password"]))
    return None


def _ask(helper: str, server: str, environ: Mapping[str, str]) -> tuple[Login | None, str]:
    """Ask a credential helper; return what it has, or what is the matter with it."""
    program = f"docker-credential-{helper}"
    where = shutil.which(program, path=environ.get("PATH")) if re.fullmatch(r"[\w.-]+", helper) else None
    if where is None:
        return None, f"{program} is not there"
    try:
        done = subprocess.run(
            [where, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env=dict(environ),
        )
    except subprocess.TimeoutExpired:
        return None, f"{program} did not answer within {_SECONDS:.0f} s"
    except OSError as error:
        return None, f"{program} cannot be run: {error.strerror}"
    if done.returncode != 0:
        known = _NOT_FOUND in (done.stdout + done.stderr).decode(errors="replace")
        return None, "" if known else f"{program} failed (exit status {done.returncode})"
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        return None, f"{program} gave no user name and secret"
    if username == _IDENTITY:
        return Login(username="", password=secret, identity=True), ""
    return Login(username=username, password=secret), ""
