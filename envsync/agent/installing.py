"""What uv is told on a host, and what its failures mean."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from .layout import Cache, Problem, disk_problem

__all__ = ["explain", "is_network", "mismatched", "not_given", "pylock", "reachable", "uv_settings"]

Artifact = Mapping[str, Any]

_NETWORK = re.compile(
    r"error sending request|dns error|failed to fetch|connect(?:ion)? |timed out|offline|network", re.I
)
_MISMATCH = re.compile(r"hash mismatch for `([^`]+)`", re.I)
_FULL = re.compile(r"no space left|os error 28|disk quota|os error 122", re.I)
_GONE = re.compile(r"\((?:404|410) ")
_DULL = re.compile(
    r"^(Using Python|Using CPython|Creating virtual|warning:|Resolved|Prepared|Installed|\s*$)"
)


def pylock(artifacts: Iterable[Artifact], paths: Mapping[str, Path]) -> str:
    """Return a PEP 751 file for one host.

    Parameters
    ----------
    artifacts : iterable of mapping
        Each ``{"name", "version", "filename", "sha256", "url"?, "index"?}``.
    paths : mapping of str to Path
        Where the wheel of a sha256 is; the others are named by their URL.
    """
    text = ['lock-version = "1.0"', 'created-by = "envsync"']
    packages = []
    for artifact in artifacts:
        path = paths.get(artifact["sha256"])
        place = f"path = {_quoted(str(path))}" if path else f"url = {_quoted(artifact['url'])}"
        sha256 = _quoted(artifact["sha256"])
        wheel = f"name = {_quoted(artifact['filename'])}, {place}, hashes = {{ sha256 = {sha256} }}"
        packages.append("[[packages]]")
        packages += [f"{key} = {_quoted(artifact[key])}" for key in ("name", "version")]
        if not path and artifact.get("index"):
            packages.append(f"index = {_quoted(artifact['index'])}")
        packages.append(f"wheels = [{{ {wheel} }}]")
    return "\n".join(text + (packages or ["packages = []"])) + "\n"


def reachable(artifacts: Iterable[Artifact], seconds: float = 2.0) -> list[Artifact]:
    """Return those artifacts to whose servers (or their proxies) this host can connect."""
    servers: dict[tuple[str, int], list[Artifact]] = {}
    for artifact in artifacts:
        servers.setdefault(_server(artifact["url"]), []).append(artifact)
    found = []
    for address in sorted(servers):
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=seconds).close()
            found += servers[address]
    return found


def not_given(stderr: bytes, artifacts: Sequence[Artifact]) -> Sequence[Artifact]:
    """Return those artifacts that uv did not get, so far as its words tell, which name the first one.

    A file that the server does not have says nothing of the others; else they share the fate of the first.
    """
    text = stderr.decode(errors="replace")
    named = [a for a in artifacts if a["url"] in text or f"`{a['name']}=={a['version']}`" in text]
    if _GONE.search(text):
        return named or artifacts
    servers = {_server(artifact["url"]) for artifact in named}
    return [a for a in artifacts if _server(a["url"]) in servers] or artifacts


def is_network(stderr: bytes) -> bool:
    """Return whether uv failed because it did not reach a server."""
    return bool(_NETWORK.search(stderr.decode(errors="replace")))


def mismatched(stderr: bytes) -> str | None:
    """Return the name of the package whose hash uv found wrong."""
    found = _MISMATCH.search(stderr.decode(errors="replace"))
    return re.split(r"[=\s@]", found.group(1))[0] if found else None


def explain(stderr: bytes, doing: str, cache: Cache) -> Problem:
    """Return what uv's failure means for a person."""
    text = stderr.decode(errors="replace")
    if _FULL.search(text):
        return disk_problem(OSError(errno.ENOSPC, "", str(cache.root)), doing)
    package = mismatched(stderr)
    if package:
        return Problem(
            "realise",
            f"{doing}: the wheel of {package} is not the one that was locked (its sha256 differs)",
            "Make the lock again if it was edited; else try again, the damaged file is fetched anew.",
        )
    useful = [line.rstrip() for line in text.splitlines() if not _DULL.match(line)]
    hint = "Make the lock for this very host if it was made for another one: envsync snapshot --for HOST"
    if "os error 13" in text or "Permission denied" in text:
        hint = (
            "Look at the permissions there, or set cache= (or ENVSYNC_CACHE on that host) to another folder."
        )
    return Problem("realise", "\n  ".join([f"{doing}: uv failed:", *useful[-12:]]), hint)


def _server(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    proxy = os.environ.get(f"{parts.scheme}_proxy") or os.environ.get(f"{parts.scheme.upper()}_PROXY")
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _quoted(text: str) -> str:
    return json.dumps(text)  # every JSON string is a TOML string


def uv_settings(cache: Cache, request: Mapping[str, Any]) -> dict[str, str]:
    """Return uv's environment: the client's settings where it sent some, and envsync's own cache.

    On the client's machine too: what uv installs from its cache are hard links, and the user may edit what
    was installed from his own.
    """
    return {
        "NO_COLOR": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        **request.get("environment", {}),
        "UV_CACHE_DIR": str(cache.uv),
    }
