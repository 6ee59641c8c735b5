"""Buckets that speak S3: what is small goes through botocore alone.

s3fs, which moves what is large, takes half a second to be imported, twice the CPU time for each request, and
two requests for each record that it reads. Many records are read to list clusters, and few blobs moved.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from envsync.store import blob_name
from envsync.stores import Entry
from envsync.stores.answering import give_up_soon
from envsync.stores.remote import FsspecStore

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Bucket", "Models", "moment", "open_bucket"]

_CONFIG = ("key", "secret", "token", "username", "password", "endpoint_url", "profile", "use_ssl")
_UNDERSTOOD = frozenset({*_CONFIG, "client_kwargs", "config_kwargs", "use_listings_cache"})
_NAMES = {
    "key": "aws_access_key_id",
    "username": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "password": "aws_secret_access_key",
    "token": "aws_session_token",
}
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 15}  # seconds: s3fs's own
_AGENT = {"user_agent": "envsync"}  # botocore puts its own together for each request, out of thirty parts
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "404"})
_READS = 5  # times that a record is asked for whose bytes break off


def open_bucket(url: str, options: Mapping[str, Any] | None) -> FsspecStore:
    """Return the store in a bucket.

    Where fsspec's configuration asks for what only s3fs knows, it is s3fs that does it all.
    """
    parts = urlsplit(url)
    if importlib.util.find_spec("s3fs") is not None and parts.netloc and not parts.query:
        given = {**_configured(), **(options or {})}
        if given.keys() <= _UNDERSTOOD and "@" not in parts.netloc:
            return Bucket(url, given)
    return FsspecStore(url, options)


def _configured() -> dict[str, Any]:
    """Return what fsspec's configuration says of S3, without fsspec where there is none: it takes a while."""
    folder = Path(os.environ.get("FSSPEC_CONFIG_DIR") or "~/.config/fsspec").expanduser()
    set_here = any(name.startswith("FSSPEC_") for name in os.environ)
    if "fsspec" not in sys.modules and not set_here and not folder.is_dir():
        return {}
    from fsspec.config import conf

    return {**conf.get("s3", {}), **conf.get("s3a", {})}


class Bucket(FsspecStore):
    """A bucket, or a folder in one. See `FsspecStore`.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/folder``.
    options : mapping, optional
        As s3fs takes them; those that `open_bucket` understands.
    """

    def _connect(self, url: str, options: dict[str, Any]) -> str:
        self._url, self._options = url, options
        self._opening = threading.Lock()
        self._opened: Any = None
        self._session: Any = None
        super()._settings(url, options)  # the secrets are known from now on
        return url.partition("://")[2].strip("/")

    def _settings(self, url: str, given: Mapping[str, Any]) -> dict[str, Any]:
        settings = super()._settings(url, given)
        return {**settings, "config_kwargs": {**_without_checksums(), **settings["config_kwargs"]}}

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self._settings(self._url, self._options)

    @cached_property
    def _fs(self) -> Any:
        return self._file_system(self._url, dict(self._options))[0]

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:
        """Return a presigned URL; None where there are no credentials to sign with."""
        key = self._key(blob_name(digest))
        try:
            return str(
                self._client().generate_presigned_url(
                    "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=int(seconds)
                )
            )
        except Exception:  # noqa: BLE001 - as for other stores
            return None

    def exists(self, folder: str = "") -> bool:
        """Return whether it has such a folder; whether there is such a bucket if none is named."""
        asked = {"Bucket": self._bucket, "Prefix": self._key(f"{folder}/" if folder else ""), "MaxKeys": 1}
        with self._telling("listed"):
            try:
                with _translated():
                    found = self._client().list_objects_v2(**asked)
            except FileNotFoundError:
                return False
        return not folder or found["KeyCount"] > 0

    def read(self, name: str) -> bytes:
        """Return a record."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        with self._telling("read", f"there is no {name}"), _translated():
            for attempt in range(_READS):
                answer = self._client().get_object(Bucket=self._bucket, Key=self._key(name))
                try:
                    return bytes(answer["Body"].read())
                except (HTTPClientError, IncompleteReadError):  # botocore asks again for whole answers alone
                    if attempt == _READS - 1:
                        raise
        raise AssertionError

    def entries(self, folder: str) -> list[Entry]:
        """Return all that lies below a folder, sorted by name."""
        found = []
        with self._telling("listed"), contextlib.suppress(FileNotFoundError), _translated():
            for page in self._pages(folder):
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(self._key(""))
                    if "/." not in name and not name.endswith("/"):
                        modified = one["LastModified"].timestamp()
                        found.append(Entry(name=name, size=int(one["Size"]), modified=modified))
        return sorted(found, key=lambda entry: entry.name)

    def remove(self, name: str) -> None:
        """Remove a record or a blob; silent if it is gone already."""
        with self._telling("written"), contextlib.suppress(FileNotFoundError), _translated():
            self._client().delete_object(Bucket=self._bucket, Key=self._key(name))

    def _list(self, folder: str) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        with self._telling("listed"), contextlib.suppress(FileNotFoundError), _translated():
            for page in self._pages(folder, Delimiter="/"):
                found += [(one["Key"], int(one["Size"])) for one in page.get("Contents", ())]
                found += [(one["Prefix"], 0) for one in page.get("CommonPrefixes", ())]
        return [(name.rstrip("/").rpartition("/")[2], size) for name, size in found]

    def _send(self, data: bytes | Path, target: str) -> None:
        if not isinstance(data, bytes):
            super()._send(data, target)
            return
        with _translated():
            self._client().put_object(Bucket=self._bucket, Key=target.partition("/")[2], Body=data)

    def _authority(self) -> Any:
        named = self._options.get("client_kwargs", {}).get("verify")
        if named is None:
            with self._telling("opened"):
                self._client()
                named = self._session.get_config_variable("ca_bundle")
        return named

    def _pages(self, folder: str, **more: Any) -> Iterator[Mapping[str, Any]]:
        pages = self._client().get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=self._bucket, Prefix=self._key(f"{folder}/"), **more)

    @property
    def _bucket(self) -> str:
        return self._root.partition("/")[0]

    def _key(self, name: str) -> str:
        return self._at(name).partition("/")[2]

    def _client(self) -> Any:
        """Return botocore's client, one for all threads, made as s3fs makes its own."""
        with self._opening:
            if self._opened is None:
                from botocore.config import Config
                from botocore.exceptions import ConnectionError as Unreachable
                from botocore.session import Session

                given = self._config
                named = {_NAMES.get(key, key): given[key] for key in _CONFIG if given.get(key) is not None}
                profile = named.pop("profile", None)
                self._session = Session(profile=profile)
                self._session.get_component("data_loader").file_loader = Models()
                parsing = self._session.get_component("response_parser_factory")
                parsing.set_parser_defaults(timestamp_parser=moment)
                self._opened = self._session.create_client(
                    "s3",
                    config=Config(**{**_TIMEOUTS, **_AGENT, **given["config_kwargs"]}),
                    **{**named, **given.get("client_kwargs", {})},
                )
                _read_authorities_once(self._opened)
                give_up_soon(self._opened, Unreachable)
            return self._opened


def _without_checksums() -> dict[str, str]:
    """Return what keeps botocore from sending checksums beside ours: many servers refuse them."""
    from botocore.config import Config

    return {
        name: "when_required"
        for name in ("request_checksum_calculation", "response_checksum_validation")
        if name in Config.OPTION_DEFAULTS and f"AWS_{name.upper()}" not in os.environ
    }


class Models:
    """What a loader of botocore's reads descriptions of services with: into plain dicts.

    Its own reads them into ordered dicts, which is a fifth of what a client takes to be made.
    """

    _OPENED: ClassVar[dict[str, Callable[..., Any]]] = {".json": open, ".json.gz": gzip.open}

    def exists(self, path: str) -> bool:
        """Return whether there is such a file; the ending is left out."""
        return any(os.path.isfile(path + ending) for ending in self._OPENED)  # noqa: PTH113 - many are asked for

    def load_file(self, path: str) -> Any:
        """Return what is in it, None if there is none."""
        for ending, opened in self._OPENED.items():
            with contextlib.suppress(FileNotFoundError), opened(path + ending, "rb") as file:
                return json.loads(file.read())
        return None


def moment(text: Any) -> datetime:
    """Return the time that botocore reads there, in a tenth of its time: each object in a list has one."""
    from botocore.utils import parse_timestamp

    with contextlib.suppress(AttributeError, TypeError, ValueError):
        if text.endswith("Z"):
            return datetime.fromisoformat(f"{text[:-1]}+00:00")
        if text.endswith(" GMT"):
            return parsedate_to_datetime(text)
    read: datetime = parse_timestamp(text)
    return read


def _read_authorities_once(client: Any) -> None:
    """Have botocore read the authorities' certificates once, not for each connection: it takes 30 ms."""
    with contextlib.suppress(AttributeError, KeyError):  # where it lies is botocore's own affair
        context = client._endpoint.http_session._manager.connection_pool_kw["ssl_context"]
        read, reading = cache(context.load_verify_locations), threading.Lock()

        def load(*places: Any, **named: Any) -> None:
            with reading:
                read(*places, **named)

        context.load_verify_locations = load


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what a server refuses into the errors that s3fs makes of it."""
    try:
        yield
    except Exception as error:
        said = getattr(error, "response", None)
        if said is None:
            raise
        code = said.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise FileNotFoundError(said["Error"].get("Message", code)) from error
        from s3fs.errors import translate_boto_error

        raise translate_boto_error(error) from error
