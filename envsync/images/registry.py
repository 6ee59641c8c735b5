"""A registry's repository as a place of images: the requests of the OCI distribution specification.

Written here on httpx, since oras (0.2.43) sends whole files only: nothing while it is made, no resuming, no
mounting. `Connection` asks and logs in, `Upload` sends; this module knows paths and media types.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import httpx

from envsync.errors import CorruptBlobError, ImageError, RegistryError, RegistryLoginError
from envsync.hooks import Hooks
from envsync.images.answers import Again, Answer, status_of
from envsync.images.connection import Connection
from envsync.images.oci import INDEX, MANIFEST_TYPES, Descriptor, Index, document, documents_of, sha256_of
from envsync.images.uploading import Upload, UploadLost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

    from envsync.images.reference import Reference

__all__ = ["Registry"]

_ATTEMPTS = 3  # times that an upload is begun anew
_CHUNK = 1 << 17
_BROKEN = 5  # connections in a row that broke before they brought anything
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PAGES = 100  # of a list of what is attached to an image
_NO_LIST = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
)
_MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class Registry:
    """One repository of a registry; an `Images`.

    Parameters
    ----------
    reference : Reference
        Its registry and repository count. Nothing is asked of it yet.
    plain_http : bool
        Whether it may be talked to without TLS; on loopback it may anyhow.
    hooks : Hooks, optional
        Told how many bytes have been sent, with the repository's name.
    """

    def __init__(self, reference: Reference, *, plain_http: bool = False, hooks: Hooks | None = None) -> None:
        self.repository = reference.repository
        self.connection = Connection(reference.registry, reference.repository, plain_http=plain_http)
        self.sent = 0
        self._name = reference.name
        self._hooks = hooks or Hooks()
        self._expected = 0
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"Registry({self._name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Registry and repository."""
        return self._name

    def close(self) -> None:
        """End it, and what other threads are sending."""
        self.connection.close()

    # blobs

    def size(self, digest: str) -> int | None:
        """Return how many bytes a blob has; None if it is not there."""
        answer = self.connection.call("HEAD", self._blob(digest), scope=self._scope("pull"))
        if answer.status in _MISSING:
            return None
        if answer.status != HTTPStatus.OK:
            raise self._unexpected(answer, "does not say whether it has a blob")
        try:
            return int(answer.headers["content-length"])
        except (KeyError, ValueError):
            return sum(map(len, self.open(digest)))  # it does not say: then it has to be read

    def put(
        self, chunks: Iterable[bytes], *, digest: str | None = None, size: int | None = None
    ) -> tuple[str, int]:
        """Send a blob while it is made, and return its digest and size.

        Parameters
        ----------
        chunks : iterable of bytes
            About eight megabytes of them are held. They are asked for again if the registry loses what it
            has, unless they are an iterator, which cannot be.
        digest, size : optional
            What it must be.

        Raises
        ------
        CorruptBlobError
            It is something else; nothing was kept.
        RegistryError
            The registry does not take it.
        """
        once = iter(chunks) is chunks
        pieces = True
        self._expect(size or 0)
        for attempt in range(1, _ATTEMPTS + 1):
            upload = Upload(
                self.connection, f"/v2/{self.repository}/blobs/", self._scope("pull,push"), self._count
            )
            try:
                return upload.run(chunks, digest, size, pieces=pieces)
            except UploadLost as error:
                pieces = pieces and error.pieces
                if once or attempt == _ATTEMPTS:
                    tries = "" if once else f", {attempt} times"
                    raise RegistryError(
                        f"sending broke off, and could not be taken up again{tries}: {error}",
                        where=self._name,
                        hint="Push again: what arrived whole is not sent again.",
                    ) from error
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def mount(self, digest: str, repository: str) -> bool:
        """Take a blob from another repository of the same registry; False if it is to be sent."""
        query = f"mount={quote(digest, safe='')}&from={quote(repository, safe='')}"
        scope = f"{self._scope('pull,push')} repository:{repository}:pull"
        headers = {"Content-Length": "0"}
        path = f"/v2/{self.repository}/blobs/uploads/"
        try:
            answer = self.connection.call("POST", f"{path}?{query}", scope=scope, headers=headers)
        except RegistryLoginError:
            return False  # not allowed to take it from there: that says nothing of sending it
        if answer.status == HTTPStatus.ACCEPTED and "location" in answer.headers:
            # instead it began an upload, which nobody will use
            begun = str(httpx.URL(answer.url).join(answer.headers["location"]))
            with contextlib.suppress(RegistryError):
                self.connection.call("DELETE", begun, scope=self._scope("pull,push"))
        return answer.status == HTTPStatus.CREATED

    def open(self, digest: str) -> Iterator[bytes]:
        """Read a blob in chunks; a connection that breaks is taken up again where it did.

        Raises
        ------
        ImageError
            It is not there.
        CorruptBlobError
            At its end: it was not what its digest says.
        RegistryError
            It did not come.
        """
        sha, size, broken = hashlib.sha256(), 0, 0
        while True:
            before, why = size, ""
            try:
                for chunk in self._received(digest, size):
                    sha.update(chunk)
                    size += len(chunk)
                    yield chunk
                break
            except Again as error:
                why = str(error)
            broken = 0 if size > before else broken + 1
            if broken == _BROKEN:
                raise RegistryError(
                    f"the blob {digest} did not come whole: {why}",
                    where=self._name,
                    hint="Try again later, or ask whoever runs the registry.",
                )
            if broken:
                self.connection.pause(broken)
        if "sha256:" + sha.hexdigest() != digest:
            raise CorruptBlobError(
                f"what came as the blob {digest} is another: sha256:{sha.hexdigest()}, {size} bytes",
                where=self._name,
                hint="The registry, or a proxy before it, is damaged: ask whoever runs it.",
            )

    def _received(self, digest: str, start: int) -> Iterator[bytes]:
        """Yield what comes of a blob by one request, from a byte on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        once = self.connection.once("GET", self._blob(digest), scope=self._scope("pull"), headers=headers)
        with once as response:
            skip = 0
            if response.status_code == HTTPStatus.OK:
                skip = start  # it sends all of it again
            elif response.status_code in _MISSING:
                raise ImageError(f"there is no blob {digest}", where=self._name, hint=_GONE)
            elif response.status_code != HTTPStatus.PARTIAL_CONTENT or not response.headers.get(
                "content-range", ""
            ).startswith(f"bytes {start}-"):
                raise RegistryError(
                    f"it does not give us the blob {digest} ({status_of(response.status_code)})",
                    where=self._name,
                    hint="Ask whoever runs the registry.",
                )
            for chunk in response.iter_raw(_CHUNK):
                if skip < len(chunk):
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    # manifests

    def manifest(self, reference: str) -> tuple[str, str, bytes] | None:
        """Return media type, digest and bytes of the manifest of a tag or digest; None if there is none.

        Raises
        ------
        CorruptBlobError
            It is not what its digest says.
        """
        answer = self._ask_manifest("GET", reference)
        if answer is None:
            return None
        digest = sha256_of(answer.body)
        wanted = reference if ":" in reference else answer.headers.get("docker-content-digest", digest)
        if wanted.startswith("sha256:") and digest != wanted:
            raise CorruptBlobError(
                f"what came as the manifest {wanted} is another: {digest}",
                where=self._name,
                hint="The registry, or a proxy before it, is damaged: ask whoever runs it.",
            )
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        if kind not in MANIFEST_TYPES:  # some say application/json of all
            with documents_of(self):
                kind = str(document(answer.body, "manifest").get("mediaType") or kind)
        return kind, digest, answer.body

    def manifest_digest(self, reference: str) -> str | None:
        """Return the digest of the manifest of a tag or digest; None if there is none. One ``HEAD``."""
        answer = self._ask_manifest("HEAD", reference)
        if answer is None:
            return None
        digest = answer.headers.get("docker-content-digest", "")
        if digest.startswith("sha256:"):
            return str(digest)
        found = self.manifest(reference)
        return None if found is None else found[1]

    def put_manifest(self, data: bytes, media_type: str, tag: str | None = None) -> str:
        """Keep a manifest whose blobs are there already, under a tag if one is given; return its digest."""
        digest = sha256_of(data)
        answer = self.connection.call(
            "PUT",
            f"/v2/{self.repository}/manifests/{quote(tag or digest, safe=':')}",
            scope=self._scope("pull,push"),
            headers={"Content-Type": media_type},
            content=data,
        )
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise self._unexpected(answer, "does not take the manifest")
        kept = answer.headers.get("docker-content-digest", digest)
        if kept.startswith("sha256:") and kept != digest:
            raise RegistryError(
                f"it keeps another manifest than it was sent: {kept}, not {digest}",
                where=self._name,
                hint="Something before the registry changes what is pushed: ask whoever runs it.",
            )
        self._count(len(data))
        return digest

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Return the manifests whose subject one is; None if the registry keeps no list of them."""
        found: list[Descriptor] = []
        path = f"/v2/{self.repository}/referrers/{digest}"
        seen = {path}
        while True:
            answer = self.connection.call("GET", path, scope=self._scope("pull"), headers={"Accept": INDEX})
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            if answer.status in _NO_LIST or (answer.status == HTTPStatus.OK and kind != INDEX):
                return None  # before version 1.1 of the specification a path like any other
            if answer.status != HTTPStatus.OK:
                raise self._unexpected(answer, "does not list what is attached to an image")
            found += Index.from_bytes(answer.body).manifests
            more = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
            if more is None or len(seen) == _PAGES:
                return tuple(found)
            path = str(httpx.URL(answer.url).join(more[1]))
            if path in seen:
                return tuple(found)
            seen.add(path)

    def _ask_manifest(self, method: str, reference: str) -> Answer | None:
        answer = self.connection.call(
            method,
            f"/v2/{self.repository}/manifests/{quote(reference, safe=':')}",
            scope=self._scope("pull"),
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
        )
        if answer.status in _MISSING:
            return None
        if answer.status != HTTPStatus.OK:
            raise self._unexpected(answer, "does not give us the manifest")
        return answer

    def _unexpected(self, answer: Answer, what: str) -> RegistryError:
        words = self.connection.logins.without_secrets(answer.words)
        return RegistryError(
            f"it {what} ({words}; {urlsplit(answer.url).path})",
            where=self._name,
            hint="Is it a registry at all? Otherwise ask whoever runs it.",
        )

    def _scope(self, actions: str) -> str:
        return f"repository:{self.repository}:{actions}"

    def _blob(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise ImageError(f"{digest!r} is not a digest that can be asked for", where=self._name)
        return f"/v2/{self.repository}/blobs/{digest}"

    def _expect(self, size: int) -> None:
        with self._guard:
            self._expected += size

    def _count(self, size: int) -> None:
        with self._guard:
            self.sent += size
            sent, expected = self.sent, max(self.sent, self._expected)
        self._hooks.progress(self._name, sent, expected, "B")


_GONE = "The image is not whole there any more: push it again, or use another one."
