"""Where blobs live: bytes named by their sha256.

`Store` is the seam. `FolderStore` keeps blobs in a folder; `Verified` wraps any store and reads nothing that
does not have its digest. `remember` and `recall` keep small results of slow work beside the default store.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from envsync.errors import CorruptBlobError, StoreError
from envsync.unfinished import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "FolderStore",
    "Store",
    "Verified",
    "blob_name",
    "cache_root",
    "check",
    "default_store",
    "digest_of",
    "recall",
    "remember",
    "size_of",
]

CHUNK = 1 << 18  # what fits into a processor's cache is hashed and written from there
EMPTY = hashlib.sha256().hexdigest()
STALE = 24 * 3600.0  # seconds after which an unfinished write was left behind by a crash
_DIGEST = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


class Store(Protocol):
    """Holds blobs. Every method may be called from several threads and processes at once."""

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of `digests` that are held.

        Raises
        ------
        StoreError
            One of them is not a sha256, or the store cannot be asked.
        """
        ...

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        """Keep bytes, or a file's contents, and return their digest.

        Putting what is held already changes nothing.

        Parameters
        ----------
        data : bytes or Path
            A file is read as it is now; later changes to it do not reach the blob.
        digest : str, optional
            What the sha256 must be.

        Raises
        ------
        CorruptBlobError
            The bytes do not have the digest; nothing was kept.
        StoreError
            They could not be read or written.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading.

        Raises
        ------
        StoreError
            It is not held.
        """
        ...

    def path(self, digest: str) -> Path | None:
        """Return the file that holds a blob, to be read only, or None if no local file does."""
        ...

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        """Return an address that gives a blob for some time to whoever has it, without a credential.

        The blob need not be there. None if the store has no such addresses. They are secrets: whoever
        reads one can read the blob.
        """
        ...


class FolderStore:
    """Blobs as files: ``<root>/blobs/<first 2 hex>/<digest>``.

    A blob appears whole or not at all, however many write it at once. Folders are made with mode 0700,
    blobs with 0600.

    Parameters
    ----------
    root : str or Path
        Made on the first `put`.
    """

    _called = "the cache folder"
    _elsewhere = "set ENVSYNC_CACHE to a folder that you can write"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._blobs = self.root / "blobs"
        self._unfinished = self._blobs / ".unfinished"
        self._swept = False

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of `digests` that are held."""
        return {digest for digest in digests if self._size(digest) is not None}

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        """Keep bytes, or a file's contents, and return their digest."""
        if isinstance(data, bytes):
            found = hashlib.sha256(data).hexdigest()
            _demand(found, digest, f"{len(data)} bytes")
            if self._size(found) != len(data):
                self._keep(iter((data,)), found, "")
            return found
        if digest is None or self._size(digest) is None:
            return self._keep(_chunks(data), digest, str(data))
        return digest

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading."""
        path = self._where(digest)
        try:
            if self._size(digest) is not None:
                return path.open("rb")
        except OSError as error:
            raise StoreError(
                f"blob {digest} cannot be read: {error.strerror}",
                where=str(path),
                hint="Make the file readable for you, or set ENVSYNC_CACHE to another folder.",
            ) from error
        raise StoreError(
            f"there is no blob {digest}",
            where=str(self.root),
            hint="Make the lock again on the machine whose environment it describes (envsync snapshot).",
        )

    def path(self, digest: str) -> Path | None:
        """Return the file that holds a blob, or None if it is not held."""
        return self._where(digest) if self._size(digest) is not None else None

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:  # noqa: ARG002 - the seam's
        """Return None: a folder has no addresses."""
        self._where(digest)
        return None

    def _where(self, digest: str) -> Path:
        return self.root / blob_name(digest)

    def _size(self, digest: str) -> int | None:
        path = self._where(digest)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        # A machine that lost power may have kept the name and lost the bytes.
        return size if size or digest == EMPTY else None

    def _keep(self, chunks: Iterator[bytes | memoryview], digest: str | None, source: str) -> str:
        sha = hashlib.sha256()
        with self._writing(), Part(self._within(self._unfinished, self._part), buffering=0) as part:
            self._sweep()
            for chunk in chunks:
                sha.update(chunk)
                part.write(chunk)
            found = sha.hexdigest()
            _demand(found, digest, source or "the bytes")
            target = self._where(found)
            self._within(target.parent, lambda: part.keep(target))
        return found

    def _within(self, folder: Path, act: Callable[[], _T]) -> _T:
        """Do something in a folder, which is made if it is not there."""
        self._folder(folder)
        return act()

    def _part(self) -> tuple[int, str]:
        """Open a new file for what is not whole yet."""
        return tempfile.mkstemp(dir=self._unfinished)

    def _folder(self, folder: Path) -> None:
        if not folder.is_dir():
            for each in (self.root, self._blobs, folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sweep(self) -> None:
        """Remove what crashed writers left, once per store object."""
        if self._swept:
            return
        self._swept = True
        for path in self._unfinished.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full else error.strerror or str(error)
            hint = f"Make room there, or {self._elsewhere}." if full else f"{self._elsewhere}."
            raise StoreError(
                f"{self._called} cannot be written: {why}",
                where=str(self.root),
                hint=hint[0].upper() + hint[1:],
            ) from error


class Verified:
    """A store whose blobs are checked against their digest every time they are read.

    Parameters
    ----------
    store : Store
        The one that holds the blobs.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of `digests` that are held, unread."""
        return self.store.has(digests)

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        """Keep bytes, or a file's contents, and return their digest."""
        return self.store.put(data, digest)

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading.

        Raises
        ------
        CorruptBlobError
            Its bytes do not have the digest.
        StoreError
            It is not held.
        """
        file = self.store.open(digest)
        try:
            path = self.store.path(digest)
            hint = f"Remove it ({path}) and try again." if path else "Remove it and try again."
            check(file, digest, where=str(path or ""), hint=hint)
        except BaseException:
            file.close()
            raise
        return file

    def path(self, digest: str) -> Path | None:
        """Return the file that holds a blob, once its bytes are checked; None if no local file does."""
        path = self.store.path(digest)
        if path is not None:
            self.open(digest).close()
        return path

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        """Return an address for a blob, or None; whoever reads there has to check for himself."""
        return self.store.url(digest, seconds)


def blob_name(digest: str) -> str:
    """Return where every store has a blob: ``blobs/<first 2 hex>/<digest>``.

    Raises
    ------
    StoreError
        It is not a sha256.
    """
    if not _DIGEST.fullmatch(digest):
        raise StoreError(
            f"{digest!r} is not a sha256 digest (64 lower-case hexadecimal digits)",
            hint="Make the lock again with envsync snapshot if it was edited by hand.",
        )
    return f"blobs/{digest[:2]}/{digest}"


def check(file: BinaryIO, digest: str, *, where: str, hint: str) -> None:
    """Read a blob to its end, compare its sha256, and go back to its beginning.

    Raises
    ------
    CorruptBlobError
        It holds other bytes.
    """
    sha = hashlib.sha256()
    while chunk := file.read(CHUNK):
        sha.update(chunk)
    if sha.hexdigest() != digest:
        raise CorruptBlobError(
            f"blob {digest} holds other bytes: their sha256 is {sha.hexdigest()}", where=where, hint=hint
        )
    file.seek(0)


def digest_of(path: Path) -> str:
    """Return the sha256 of a file's contents; raises OSError if it cannot be read."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def cache_root() -> Path:
    """Return the folder for everything that can be had again: ``$ENVSYNC_CACHE``, or ``~/.cache/envsync``.

    Raises
    ------
    StoreError
        Neither is there.
    """
    try:
        return Path(os.environ.get("ENVSYNC_CACHE") or "~/.cache/envsync").expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(
            "there is no home folder for the cache", hint="Set ENVSYNC_CACHE to a folder that you can write."
        ) from error


def default_store() -> FolderStore:
    """Return the store in the cache folder."""
    return FolderStore(cache_root())


def size_of(store: Store, digest: str) -> int:
    """Return how many bytes a blob of a store has."""
    path = store.path(digest)
    if path is not None:
        return path.stat().st_size
    with store.open(digest) as file:
        return file.seek(0, os.SEEK_END)


def remember(kind: str, key: str, value: Any) -> None:
    """Keep a small result for `recall`. Where it cannot be kept, the work is done again next time.

    Parameters
    ----------
    kind : str
        What sort of result, a plain word.
    key : str
        Everything that the result depends on, hashed.
    value : JSON types
        The result.
    """
    path = _memory(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Part(tempfile.mkstemp(dir=path.parent, prefix=".")) as part:
            part.write(json.dumps(value, separators=(",", ":")).encode())
            part.keep(path)


def recall(kind: str, key: str) -> Any:
    """Return what was remembered under a key, or None."""
    try:
        return json.loads(_memory(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _memory(kind: str, key: str) -> Path:
    return cache_root() / "memory" / kind / f"{key}.json"


def _demand(found: str, wanted: str | None, what: str) -> None:
    if wanted is not None and found != wanted:
        raise CorruptBlobError(
            f"{what}: sha256 is {found}, not {wanted}",
            hint="They changed on the way, or the digest is of something else: fetch or make them again.",
        )


def _chunks(path: Path) -> Iterator[memoryview]:
    """Read a file into one buffer, again and again: each piece is for use before the next."""
    try:
        with path.open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(CHUNK))
            while size := file.readinto(buffer):
                yield buffer[:size]
    except OSError as error:
        raise StoreError(
            f"it cannot be read: {error.strerror}", where=str(path), hint="Make it readable and try again."
        ) from error
