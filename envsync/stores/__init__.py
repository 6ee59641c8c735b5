"""Stores that machines share: what one pushes, others start from.

`open_store` makes one of a URL; `envsync.stores.pushing`, `pulling` and `keeping` work with any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from envsync.errors import StoreError
from envsync.indexes import without_credentials
from envsync.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry", "SharedStore", "demand_there", "is_store", "open_store", "parse", "shown"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_CUT = re.compile(
    r"[^:/]+://[^/?@\[]*:(?!\d*(?:[/?]|\Z))[^/?@]*(?:[/?]|\Z)"
)  # "user:pass" and no "@" before a "/"
_SLASHES = re.compile(r"(?<=[^/:])/+\Z")
_NO_STORES = frozenset({"ssh", "local"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a store holds under a name.

    Attributes
    ----------
    name : str
        With forward slashes, from the store's root.
    size : int
        Bytes.
    modified : float or None
        Seconds since 1970; None where the store does not say.
    """

    name: str
    size: int
    modified: float | None


class SharedStore(Store, Protocol):
    """A store with records beside its blobs.

    Attributes
    ----------
    shown : str
        Its URL, without credentials: for messages.
    at_once : int
        How many blobs are best moved at the same time.
    makes_folders : bool
        Whether a write leaves folders: who only looks writes nothing there, then.
    """

    shown: str
    at_once: int
    makes_folders: bool

    def exists(self, folder: str = "") -> bool:
        """Return whether it has such a folder; whether it is there at all if none is named."""
        ...

    def fetch(self, digest: str, into: Store) -> int:
        """Put a blob into another store, checked on its way; return its size.

        Raises
        ------
        CorruptBlobError
            It holds other bytes; its URL is named.
        StoreError
            It is not held, or cannot be read.
        """
        ...

    def authority(self) -> str:
        """Return the certificates (PEM) of the store's own authority; empty if the system's do."""
        ...

    def read(self, name: str) -> bytes:
        """Return a record.

        Raises
        ------
        StoreError
            There is none of that name.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Keep a record: whole or not at all."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """Return all that lies below a folder in any depth, by name; not what is unfinished."""
        ...

    def remove(self, name: str) -> None:
        """Remove a record or a blob; silent if it is gone already."""
        ...

    def sweep(self, before: float) -> int:
        """Remove unfinished writes that began before a time; return how many there were."""
        ...


def is_store(text: str) -> bool:
    """Whether what a user wrote names a store: a URL whose scheme is not that of a host."""
    match = _SCHEME.match(text)
    return match is not None and match[1] not in _NO_STORES


def parse(text: str) -> tuple[str, str]:
    """Cut a store's URL from the name behind it: ``s3://bucket/team#analysis``."""
    url, _, name = text.partition("#")
    return url, unquote(name)


def shown(url: str) -> str:
    """Return a store's URL for messages and records: no user, password, query or name."""
    if _CUT.match(parse(url)[0]):
        return f"{url.partition('://')[0]}://***"
    text = without_credentials(parse(url)[0], query=False)
    return _SLASHES.sub("", text)


def demand_there(store: SharedStore) -> None:
    """Refuse a store that is somebody's slip: nothing could be found there.

    Raises
    ------
    StoreError
        There is no such folder or bucket; or it cannot be asked.
    """
    if not store.exists():
        kind = "folder" if store.makes_folders else "bucket"
        first = "The first push makes it" if store.makes_folders else "Make it first"
        raise StoreError(
            f"there is no such {kind}", where=store.shown, hint=f"{first}, if the URL is as it should be."
        )


def open_store(url: str, options: Mapping[str, Any] | None = None) -> SharedStore:
    """Return the store at a URL. Nothing is asked of it yet.

    Parameters
    ----------
    url : str
        ``file:///folder``, or any URL that fsspec knows, such as ``s3://bucket/folder``. Credentials come
        from where fsspec and the vendor's library look for them.
    options : mapping, optional
        For fsspec's file system, before its configuration.

    Raises
    ------
    StoreError
        No store has that scheme, or its library is not installed.
    """
    if not isinstance(url, str):  # such as what a file of Dask's configuration says
        raise StoreError(f"{url!r} is not the URL of a store", hint="Write file:///folder, or s3://bucket.")
    url, _ = parse(url)
    if not is_store(url):
        raise StoreError(
            f"{shown(url)!r} is not the URL of a store",
            hint="Write file:///folder, s3://bucket/folder, or another URL that fsspec knows.",
        )
    if _CUT.match(url):
        raise StoreError(
            "what stands before the first / is neither a bucket nor a host",
            where=shown(url),
            hint="In a password write / as %2F, # as %23, ? as %3F; or leave it to the usual files.",
        )
    parts = urlsplit(url)
    if parts.scheme == "file":
        from envsync.stores.folder import SharedFolder

        folder = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or len(folder) < 2 or not folder.isprintable():
            raise StoreError(
                f"{shown(url)!r} names no folder of this machine",
                hint="Write file:///folder, with three slashes.",
            )
        return SharedFolder(folder)
    if parts.scheme in ("s3", "s3a"):
        from envsync.stores.buckets import open_bucket

        return open_bucket(url, options)
    from envsync.stores.remote import FsspecStore

    return FsspecStore(url, options)
