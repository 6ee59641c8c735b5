"""Stores behind fsspec: buckets, and whatever else it knows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from envsync.errors import CorruptBlobError, EnvsyncError, StoreError
from envsync.scratch import scratch
from envsync.store import EMPTY, blob_name, check, digest_of
from envsync.stores import Entry, shown
from envsync.uv import scrub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from envsync.store import Store

__all__ = ["FsspecStore"]

_LISTINGS = 16  # folders that are listed at the same time
_UNFINISHED = "blobs/.unfinished"
# Where an object is there once all of it is: no name of its own is needed until then.
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"})
_S3 = frozenset({"s3", "s3a"})
_S3_CONFIG = {
    "retries": {"mode": "standard", "max_attempts": 5},
    "max_pool_connections": 32,
    "signature_version": "s3v4",  # of presigned URLs too: newer regions take no other
}
_S3_UPLOAD = {"chunksize": 8 << 20, "max_concurrency": 4}  # of one blob: bytes of a part, parts at once
_SMALL = 16 << 20  # bytes; so large a file is read once, and what was hashed is what is sent
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_SECRET = re.compile(r"key|secret|token|password|sas|credential|connection_string", re.I)
_SIGNED = re.compile(r"(?i)(X-Amz-[\w-]+|Signature|AWSAccessKeyId|sig|token)=[^&\s'\"]+")
_PACKAGES = {"s3": "dask-envsync[s3]", "s3a": "dask-envsync[s3]"}
_CREDENTIALS = (
    "Credentials come from fsspec's configuration, and from where the vendor's library looks"
    " (for S3: AWS_PROFILE, ~/.aws, AWS_ACCESS_KEY_ID)."
)


class FsspecStore:
    """Blobs and records behind any URL that fsspec knows. Every blob that is read is checked.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/folder``.
    options : mapping, optional
        For fsspec's file system.

    Raises
    ------
    StoreError
        No store has that scheme, or its library is not installed.
    """

    at_once = 8

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.shown = shown(url)
        self._scheme = urlsplit(url).scheme
        self.makes_folders = self._scheme not in _WHOLE
        self._secrets: set[str] = set()
        self._made: set[str] = set()
        self._root = self._connect(url, dict(options or {})).rstrip("/")
        if not self._root.strip("/") and self._scheme in _WHOLE - {"memory"}:
            raise StoreError(f"{self.shown} names no bucket", hint="Write s3://bucket/folder.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown!r})"

    def _connect(self, url: str, options: dict[str, Any]) -> str:
        """Make ready what speaks to the store; return the path there."""
        self._fs, root = self._file_system(url, options)
        return root

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of `digests` that are held: folders are listed, no more than there are digests."""
        folders: dict[str, set[str]] = {}
        for digest in digests:
            folders.setdefault(blob_name(digest).rpartition("/")[0], set()).add(digest)
        if not folders:
            return set()
        there = {name for name, _ in self._list("blobs")}
        asked = [folder for folder in folders if folder.rpartition("/")[2] in there]
        with ThreadPoolExecutor(_LISTINGS) as pool:
            listings = pool.map(self._list, asked)
            return {
                name
                for folder, listing in zip(asked, listings, strict=True)
                for name, size in listing
                if name in folders[folder] and (size or name == EMPTY)
            }

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        """Keep bytes, or a file's contents, and return their digest.

        They are sent whether they are held or not: whoever sends many asks `has` before.
        """
        source, status = data, None
        if isinstance(data, Path):
            try:
                status = data.stat()
                source = data.read_bytes() if status.st_size <= _SMALL else data
                found = digest_of(data) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
            except OSError as error:
                raise StoreError(
                    f"it cannot be read: {error.strerror}",
                    where=str(data),
                    hint="Make it readable and try again.",
                ) from error
        else:
            found = hashlib.sha256(data).hexdigest()
        if digest not in (None, found):
            what = data if isinstance(data, Path) else f"{len(data)} bytes"
            raise CorruptBlobError(
                f"{what}: sha256 is {found}, not {digest}",
                hint="They changed on the way, or the digest is of something else: fetch or make them again.",
            )
        self._write(blob_name(found), source)
        if isinstance(source, Path) and status is not None and _changed(source, status):
            self.remove(blob_name(found))
            raise CorruptBlobError(
                f"it changed while it was sent, and is not {found} any more",
                where=str(data),
                hint="Try again.",
            )
        return found

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading: it is fetched whole, and checked."""
        with scratch("reading") as folder:
            path = folder / "blob"
            self._download(digest, path)
            file = path.open("rb")
        try:
            check(file, digest, where=f"{self.shown}/{blob_name(digest)}", hint=self._remedy())
        except BaseException:
            file.close()
            raise
        return file

    def path(self, digest: str) -> Path | None:
        """Return None: no local file has it."""
        blob_name(digest)
        return None

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        """Return a presigned URL, where the file system makes such; else None."""
        name = self._at(blob_name(digest))
        try:
            return str(self._fs.sign(name, expiration=int(seconds)))
        except Exception:  # noqa: BLE001 - none can be had, each SDK says so in its own way
            return None

    def fetch(self, digest: str, into: Store) -> int:
        """Put a blob into another store, checked on its way; return its size."""
        with scratch("fetching") as folder:
            path = folder / "blob"
            self._download(digest, path)
            try:
                into.put(path, digest)
            except CorruptBlobError as error:
                where = f"{self.shown}/{blob_name(digest)}"
                message = error.message.replace(str(path), f"blob {digest}")
                raise CorruptBlobError(message, where=where, hint=self._remedy()) from error
            return path.stat().st_size

    def authority(self) -> str:
        """Return the certificates that fsspec's or the vendor's configuration names for this store."""
        named = self._authority()
        if not isinstance(named, str):
            return ""
        try:
            return Path(named).expanduser().read_text(encoding="ascii", errors="ignore")
        except OSError as error:
            raise StoreError(
                f"the certificates of its authority cannot be read: {error.strerror}",
                where=named,
                hint="Correct ca_bundle, AWS_CA_BUNDLE or fsspec's client_kwargs.",
            ) from error

    def exists(self, folder: str = "") -> bool:
        """Return whether it has such a folder; whether it is there at all if none is named."""
        if folder:
            place = self._at(folder)
        else:
            place = self._root if self.makes_folders else self._root.partition("/")[0]
        with self._telling("listed"):
            self._fs.invalidate_cache()
            return (self._scheme == "memory" and not folder) or bool(self._fs.exists(place))

    def read(self, name: str) -> bytes:
        """Return a record."""
        with self._telling("read", f"there is no {name}"):
            return bytes(self._fs.cat_file(self._at(name)))

    def write(self, name: str, data: bytes) -> None:
        """Keep a record: whole or not at all."""
        self._write(name, data)

    def entries(self, folder: str) -> list[Entry]:
        """Return all that lies below a folder, sorted by name."""
        with self._telling("listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._at(folder), detail=True)
            except FileNotFoundError:
                found = {}
        root = f"{self._root.strip('/')}/"
        named = ((path.strip("/").partition(root)[2], info) for path, info in found.items())
        return sorted(
            (
                Entry(name=name, size=int(info.get("size") or 0), modified=_modified(info))
                for name, info in named
                if "/." not in name
            ),
            key=lambda entry: entry.name,
        )

    def remove(self, name: str) -> None:
        """Remove a record or a blob; silent if it is gone already."""
        with self._telling("written"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def sweep(self, before: float) -> int:
        """Remove unfinished writes that began before a time; return how many there were."""
        count = 0
        with self._telling("written"), contextlib.suppress(FileNotFoundError):
            for path, info in self._fs.find(self._at(_UNFINISHED), detail=True).items():
                if (_modified(info) or before) < before:
                    self._fs.rm_file(path)
                    count += 1
        return count + (self._sweep_uploads(before) if self._scheme in _S3 else 0)

    def _authority(self) -> Any:
        """Return what the configuration says of certificates: a file's path, if it names one."""
        named = (getattr(self._fs, "client_kwargs", None) or {}).get("verify")
        if named is None and self._scheme in _S3:
            with self._telling("opened"):
                self._fs.connect()
                named = self._fs.session.get_config_variable("ca_bundle")  # AWS_CA_BUNDLE, or a profile's
        return named

    def _sweep_uploads(self, before: float) -> int:
        """Abort multipart uploads that nobody completed: they are kept, and paid for, until somebody does."""
        bucket, _, prefix = self._at("").partition("/")
        count = 0
        more: dict[str, Any] = {}
        with self._telling("written"):
            while True:
                answer = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
                for upload in answer.get("Uploads", ()):
                    if upload["Initiated"].timestamp() < before:
                        self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                        count += 1
                if not answer.get("IsTruncated"):
                    return count
                more = {
                    "KeyMarker": answer["NextKeyMarker"],
                    "UploadIdMarker": answer["NextUploadIdMarker"],
                }

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _list(self, folder: str) -> list[tuple[str, int]]:
        """Return names and sizes in a folder."""
        with self._telling("listed"):
            self._fs.invalidate_cache()
            try:
                listing = self._fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return []
        return [(str(one["name"]).rstrip("/").rpartition("/")[2], int(one["size"] or 0)) for one in listing]

    def _write(self, name: str, data: bytes | Path) -> None:
        target = self._at(name)
        with self._telling("written"):
            if self._scheme in _WHOLE:
                self._send(data, target)
                return
            part = self._at(f"{_UNFINISHED}/{secrets.token_hex(16)}")
            for path in (target, part):
                folder = path.rpartition("/")[0]
                if folder not in self._made:
                    self._fs.makedirs(folder, exist_ok=True)
                    self._made.add(folder)
            try:
                self._send(data, part)
                self._fs.mv(part, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._fs.rm_file(part)
                raise

    def _send(self, data: bytes | Path, target: str) -> None:
        if self._scheme == "memory" and isinstance(data, Path):
            data = data.read_bytes()  # else it would be there by halves
        if isinstance(data, bytes):
            self._fs.pipe_file(target, data)
        else:
            self._fs.put_file(str(data), target, **(_S3_UPLOAD if self._scheme in _S3 else {}))

    def _download(self, digest: str, path: Path) -> None:
        with self._telling("read", f"there is no blob {digest}"):
            if self._scheme == "memory":  # where all readers of a file share its position
                path.write_bytes(self._fs.cat_file(self._at(blob_name(digest))))
            else:
                self._fs.get_file(self._at(blob_name(digest)), str(path))

    def _remedy(self) -> str:
        return f"See what else is damaged: envsync store verify {self.shown} (--remove, then push again)."

    def _settings(self, url: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the store is opened with, as configured; know the secrets in it."""
        self._secrets = _secrets_of(url, given)
        if self._scheme not in _S3:
            return dict(given)
        return {**given, "config_kwargs": {**_S3_CONFIG, **given.get("config_kwargs", {})}}

    def _file_system(self, url: str, options: dict[str, Any]) -> tuple[Any, str]:
        """Return fsspec's file system for a URL, shared with nobody in this process, and the path there."""
        try:
            import fsspec
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise StoreError(f"stores need fsspec: {error}", hint="python -m pip install fsspec") from error
        if self._scheme not in fsspec.available_protocols():
            raise StoreError(
                f"no store has the scheme {self._scheme}://",
                where=self.shown,
                hint="Write file:///folder, s3://bucket/folder, or another URL that fsspec knows.",
            )
        settings = self._settings(url, {**fsspec.config.conf.get(self._scheme, {}), **options})
        if self._scheme in _S3:
            options["config_kwargs"] = settings["config_kwargs"]
            options.setdefault("use_listings_cache", False)
        with self._telling("opened"):
            try:
                file_system, path = url_to_fs(url, skip_instance_cache=True, **options)
            except ImportError as error:
                package = _PACKAGES.get(self._scheme)
                raise StoreError(
                    f"what speaks {self._scheme}:// is not installed ({error})",
                    where=self.shown,
                    hint=f'python -m pip install "{package}"' if package else f"{error}.".rstrip(".") + ".",
                ) from error
        return file_system, str(path)

    @contextlib.contextmanager
    def _telling(self, done: str, missing: str = "") -> Iterator[None]:
        """Turn what a file system raises into one error that says what, where and what next."""
        try:
            yield
        except EnvsyncError:
            raise
        except Exception as error:  # noqa: BLE001 - each SDK has a tree of its own
            said, clean = self._said(error)
            message, hint = _explained(error, done, missing, said)
            raise StoreError(message, where=self.shown, hint=hint) from (error if clean else None)

    def _said(self, error: Exception) -> tuple[str, bool]:
        """Return an error's first line without secrets, and whether there were none in it."""
        whole = str(error)
        text = _SIGNED.sub(r"\1=***", scrub(whole, self._secrets))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        line = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
        return line or type(error).__name__, text == whole


def _explained(error: Exception, done: str, missing: str, said: str) -> tuple[str, str]:
    """Return message and hint for what a file system raised."""
    if isinstance(error, FileNotFoundError):
        return missing or f"it cannot be {done}: {said}", (
            "Push the environment again from the machine that has it."
            if missing
            else "Make the bucket or folder first, or correct the URL."
        )
    if isinstance(error, PermissionError):
        return f"it may not be {done}: {said}", _CREDENTIALS
    if isinstance(error, NotImplementedError):
        return f"stores of this kind cannot be {done}", "Use another store: a folder, or a bucket."
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"it cannot be {done}: there is no room left", "Make room there, or use another store."
    if number == errno.EROFS:
        return f"it cannot be {done}: it is read-only", "Use another store, or mount it writable."
    return f"it cannot be {done}: {said}", f"Is the address right, and reachable from here? {_CREDENTIALS}"


def _changed(path: Path, before: os.stat_result) -> bool:
    now = path.stat()
    return (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino)


def _modified(info: Mapping[str, Any]) -> float | None:
    """Return when an object was written, however its file system says it."""
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _secrets_of(url: str, options: Mapping[str, Any]) -> set[str]:
    """Return what must not be said of a store: passwords, keys and tokens, wherever they are from."""
    parts = urlsplit(url)
    found = {parts.password, *(value for _, value in parse_qsl(parts.query))}
    pending: list[Mapping[str, Any]] = [options]
    while pending:
        for key, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            elif isinstance(value, str) and _SECRET.search(str(key)):
                found.add(value)
    found |= {os.environ.get(name) for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    return {value for value in found if value}
