"""What can be compared, and the Report of it: a lock, an environment here, a host's, or an image's."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from envsync.errors import CaptureError
from envsync.images.places import ImagePlace, is_image

if TYPE_CHECKING:
    from envsync.hooks import Hooks

__all__ = ["demand_side", "is_cluster", "is_image", "look"]

_CLUSTER_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "ucxx", "gateway")
_NO_PYTHON = 127


def is_cluster(text: str) -> bool:
    """Tell whether the user named the scheduler of a cluster."""
    return "://" in text and text.partition("://")[0] in _CLUSTER_SCHEMES


def demand_side(text: str) -> None:
    """Refuse what cannot be looked at, as far as that is known without looking.

    Raises
    ------
    CaptureError
        There is no such thing.
    """
    if is_image(text):
        ImagePlace.parse(text)
    elif "://" in text:
        if not text.startswith("ssh://") and not is_cluster(text):
            raise CaptureError(f"{text!r} is nothing that can be looked at", hint=_WHAT)
    elif not Path(text).exists():
        if text.endswith(".toml"):
            _report_here(text)  # raises what is said of a lock
        raise CaptureError("there is no such file or folder", where=text, hint=_WHAT)


def look(text: str, hooks: Hooks, *, plain_http: bool = False) -> dict[str, Any]:
    """Return the Report of what the user named.

    Parameters
    ----------
    text : str
        ``.``, a lock's file, an interpreter or prefix, ``ssh://[user@]host[:port][/path/to/python]``, or an
        image's name.
    hooks : Hooks
        Told about progress.
    plain_http : bool
        Whether an image's registry may be talked to without TLS.

    Raises
    ------
    EnvsyncError
        It cannot be looked at.
    """
    if text.startswith("ssh://"):
        import asyncio

        from envsync.plugins import scan

        assert scan.__file__ is not None
        return asyncio.run(_scan_there(text, Path(scan.__file__).read_bytes(), hooks))
    if is_image(text):
        return _report_of_image(text, plain_http=plain_http)
    return _report_here(text)


_WHAT = (
    "Name a lock (pylock.<name>.toml), . for this environment, a Python or its prefix, "
    "ssh://host[/path/to/python], an image (registry.example.org/team/name:tag), or a scheduler "
    "(tcp://host:8786)."
)


def _report_here(text: str) -> dict[str, Any]:
    if text == ".":
        return _live(None)
    path = Path(text)
    if path.suffix == ".toml":
        from envsync.lock import Lock

        return Lock.read(path).report()
    return _live(text)


def _report_of_image(text: str, *, plain_http: bool) -> dict[str, Any]:
    """Look at what an image says of itself."""
    from envsync.cli.inspect import look_at_image

    found = look_at_image(text, plain_http=plain_http)
    return {**found.report(), "who": text, "trees": {tree.name: tree.digest for tree in found.trees}}


def _live(python: str | None) -> dict[str, Any]:
    """Look at an environment of this machine, and at its local code."""
    from envsync.snapshot import capture
    from envsync.store import default_store
    from envsync.trees import pack

    snapshot, store = capture(python, cwd=str(Path.cwd())), default_store()
    manifests = [pack(tree, store, soabi=snapshot.interpreter.soabi) for tree in snapshot.source_trees]
    return {**snapshot.report(), "trees": {one.name: one.digest for one in manifests}}


async def _scan_there(text: str, scanner: bytes, hooks: Hooks) -> dict[str, Any]:
    """Send the scanner to a host's Python over its standard input; nothing is left there."""
    from envsync.runner.hosts import parse_host

    began = time.monotonic()

    parts = urlsplit(text)
    path = parts.path.rstrip("/")
    async with parse_host(parts._replace(path="", query="", fragment="").geturl()) as host:
        hooks.step(host.name, "looking at its Python")
        done = await host.run(_find_python(path), input=scanner, check=False, timeout=60)
        if done.returncode == _NO_PYTHON:
            raise CaptureError(
                f"there is no {path}" if path else "there is no python3 on its PATH",
                where=host.name,
                hint="Name one: ssh://host/path/to/python, or the prefix of an environment.",
            )
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise CaptureError(
                f"its Python could not be looked at: {' '.join(last) or f'status {done.returncode}'}",
                where=host.name,
                hint="Python 3.8 and newer can be looked at; name another: ssh://host/path/to/python.",
            )
    hooks.done(host.name, "looked at its Python", time.monotonic() - began)
    report: dict[str, Any] = json.loads(done.stdout)
    report["who"] = text
    return report


def _find_python(path: str) -> str:
    """Return shell text that runs standard input in a host's Python."""
    find = f'p={shlex.quote(path)}; if [ -d "$p" ]; then p=$p/bin/python; fi' if path else "p=python3"
    return f'{find}; command -v "$p" >/dev/null 2>&1 || exit {_NO_PYTHON}; exec "$p" -I -'
