"""Where packages come from: pip's, uv's and the environment's index settings, read into one value."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

__all__ = ["without_credentials"]


def without_credentials(url: str, *, query: bool = True) -> str:
    """Return a URL without user, password and fragment; `query` says whether its query stays.

    Queries carry signatures and tokens often enough that nothing which is written down may keep one.
    """
    parts = urlsplit(url)
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query if query else "", "")
    )
