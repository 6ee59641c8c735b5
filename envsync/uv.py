"""Runs uv, the program that resolves and builds for us.

uv gets its settings from its environment only: what configures uv, pip or the shell on this machine was read
by `envsync.indexes` and is passed on explicitly, so that the same snapshot gives the same lock everywhere.
Credentials are in that environment too, never in arguments, and are removed from whatever uv says.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envsync.errors import ToolError
from envsync.store import recall, remember

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["default_index", "find_uv", "run_uv", "scrub"]

# What a person may set for uv and that cannot change what it resolves to.
_KEPT = re.compile(
    r"UV_(CACHE_DIR|NO_CACHE|OFFLINE|HTTP_.*|REQUEST_TIMEOUT|CONCURRENT_.*|NATIVE_TLS|SYSTEM_CERTS|INSECURE_HOST"
    r"|KEYRING_PROVIDER|CREDENTIALS_DIR|LINK_MODE|LOCK_TIMEOUT|PYTHON_.+)\Z"
)
_LOUD = ("FORCE_COLOR", "CLICOLOR_FORCE", "RUST_LOG", "RUST_BACKTRACE", "TRACING_DURATIONS_FILE")
_ALWAYS = {
    "UV_PREVIEW_FEATURES": "pylock",
    "UV_NO_CONFIG": "1",
    "UV_NO_ENV_FILE": "1",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "NO_COLOR": "1",
}
_USERINFO = re.compile(r"(?<=://)[^/@\s'\"`]+@")
_TOKEN = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:token|signature|password|secret|credential)|sig|key)=)[^&\s'\"`)]+"
)


@functools.cache
def find_uv() -> str:
    """Return the path of the uv that was installed with envsync.

    Raises
    ------
    ToolError
        There is none.
    """
    from uv import find_uv_bin

    try:
        return os.fspath(find_uv_bin())
    except FileNotFoundError as error:
        raise ToolError(
            "the uv program is missing, though its package is installed",
            hint="Reinstall it: python -m pip install --force-reinstall uv",
        ) from error


def run_uv(
    args: Sequence[str],
    *,
    env: Mapping[str, str],
    input: str | None = None,  # noqa: A002 - as subprocess calls it
    cwd: str | os.PathLike[str] | None = None,
) -> str:
    """Run uv and return what it wrote to its standard output.

    Parameters
    ----------
    args : sequence of str
        Such as ``["pip", "compile", "-"]``. Seen by everyone on the machine: no credentials here.
    env : mapping of str to str
        Settings, as `IndexSettings.uv_environment` gives them, on top of this process's environment
        (of whose ``UV_`` variables only those are kept that do not change a resolution).
    input : str, optional
        For its standard input.
    cwd : path, optional
        The folder it runs in.

    Returns
    -------
    str
        Its standard output, as it is.

    Raises
    ------
    ToolError
        It failed. ``returncode`` is 1 where requirements cannot be met or a hash is wrong, and 2 for
        wrong usage, an unreachable index or a failed build.
    """
    environ = _environment(os.environ, env)
    try:
        done = subprocess.run(
            [find_uv(), *args],
            input=(input or "").encode(),
            capture_output=True,
            env=environ,
            cwd=cwd,
            check=False,
        )
    except OSError as error:
        raise ToolError(f"uv does not start: {error.strerror}", where=str(error.filename or "")) from error
    if done.returncode != 0:
        output = scrub(done.stderr.decode(errors="replace"), secrets_in(environ.items()))
        message, hint = explain(output)
        raise ToolError(
            f"uv: {message or f'ended with status {done.returncode} and said nothing'}",
            hint=hint,
            returncode=done.returncode,
            output=output,
        )
    return done.stdout.decode()


def default_index() -> str:
    """Return the index that uv uses where nothing is configured. uv is asked once, then it is remembered."""
    binary = Path(find_uv())
    status = binary.stat()
    key = hashlib.sha256(f"{binary} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    known = recall("uv-default-index", key)
    if not isinstance(known, str):
        text = run_uv(["pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"], env={})
        known = next((line.split()[1] for line in text.splitlines() if line.startswith("--index-url ")), "")
        remember("uv-default-index", key, known)
    return known


def _environment(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    kept = {
        key: value
        for key, value in base.items()
        if key not in _LOUD and (not key.startswith("UV_") or _KEPT.match(key))
    }
    return {**kept, **_ALWAYS, **extra}


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the credentials in its URLs, and without the given secrets."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _TOKEN.sub(r"\1***", _USERINFO.sub("***@", text))


def secrets_in(items: Iterable[tuple[str, str]]) -> set[str]:
    """Return the credentials in environment variables: secret values, and users and passwords in URLs."""
    found: set[str] = set()
    for key, value in items:
        if key.endswith(("_PASSWORD", "_TOKEN", "_SECRET")):
            found.add(value)
        for word in re.split(r"[\s,]+", value) if "@" in value and "://" in value else ():
            try:
                userinfo, at, _ = urlsplit(
                    word[word.find("=") + 1 :] if _named(word) else word
                ).netloc.rpartition("@")
            except ValueError:
                continue
            if at:
                user, colon, password = userinfo.partition(":")
                secret = password if colon else user
                found |= {secret, unquote(secret)}
    return {secret for secret in found if len(secret) >= 4}


def _named(word: str) -> bool:
    """Whether it is uv's ``name=url``."""
    return 0 < word.find("=") < word.find("://")


def explain(output: str) -> tuple[str, str]:
    """Split what uv said on failing into one message and its hints."""
    message: list[str] = []
    hints: list[str] = []
    into: list[str] | None = None
    for line in output.splitlines():
        head, _, rest = line.strip().partition(": ")
        if head in ("error", "cause", "Caused by"):
            into = message
            message.append(rest)
        elif head == "hint":
            into = hints
            hints.append(rest)
        elif head == "warning" or not line.strip():
            into = None
        elif into is not None:
            into[-1] = f"{into[-1]}\n{line.rstrip()}" if into is message else f"{into[-1]} {line.strip()}"
    if not message and not hints:
        return output.strip(), ""
    return ": ".join(part.rstrip(":") for part in message), "\n  ".join(hints)
