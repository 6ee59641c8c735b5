"""A blob into a registry while it is made: in pieces, each sent until the registry has it.

The OCI distribution specification's way to push in chunks: ``POST`` begins an upload, ``PATCH`` adds a piece,
``PUT`` ends it with the digest, which is known only then. After a connection broke, ``GET`` of the upload
says how much of it has arrived. Some registries forget an upload that broke, and some take no pieces: then it
begins anew, for the latter as one stream, if its bytes can be had again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx

from envsync.errors import CorruptBlobError, RegistryError
from envsync.images.answers import Again, Answer
from envsync.images.connection import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envsync.images.connection import Connection

__all__ = ["PIECE", "Upload", "UploadLost"]

PIECE = 8 << 20
"""Bytes that are sent, and held here, at a time."""

WRITE = 1 << 17

_LARGEST_PIECE = 64 << 20
_ENDING = httpx.Timeout(600.0, connect=15.0, pool=None)  # a registry may move the blob before it answers
_KIND = {"Content-Type": "application/octet-stream"}
_ACCEPTED = (HTTPStatus.ACCEPTED, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT)


class UploadLost(Exception):  # noqa: N818 - it is caught where it can be begun anew
    """An upload cannot go on.

    Parameters
    ----------
    why : str
        In words.
    pieces : bool
        Whether the next one may be in pieces.
    """

    def __init__(self, why: str, *, pieces: bool = True) -> None:
        super().__init__(why)
        self.pieces = pieces


class Upload:
    """One upload.

    Parameters
    ----------
    connection : Connection
        To the registry.
    path : str
        ``/v2/<repository>/blobs/``.
    scope : str
        What token servers are asked for.
    sent : callable
        Told how many bytes more have arrived; less than none if they are to be sent again.
    """

    def __init__(self, connection: Connection, path: str, scope: str, sent: Callable[[int], None]) -> None:
        self._connection = connection
        self._path = path
        self._scope = scope
        self._sent = sent
        self._sha = hashlib.sha256()
        self._size = 0  # of what was taken from the source
        self._arrived = 0
        self._location = ""
        self._piece = PIECE

    def run(
        self, chunks: Iterable[bytes], digest: str | None, size: int | None, *, pieces: bool = True
    ) -> tuple[str, int]:
        """Send a blob, and return its digest and size.

        Raises
        ------
        UploadLost
            It has to begin anew.
        CorruptBlobError
            The bytes are not those of the digest; nothing was kept.
        RegistryError
            The registry will not take it.
        """
        source = self._hashed(chunks)
        try:
            if pieces:
                return self._in_pieces(source, digest, size)
            return self._as_one(source, digest, size)
        except BaseException as error:
            self._sent(-self._arrived)
            if self._location and isinstance(error, Exception):
                with contextlib.suppress(Exception), self._once("DELETE", self._location):
                    pass
            raise

    def _hashed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._sha.update(chunk)
            self._size += len(chunk)
            yield chunk

    def _in_pieces(self, source: Iterator[bytes], digest: str | None, size: int | None) -> tuple[str, int]:
        piece, ended = _Piece.take(source, self._piece)
        if ended:
            found = self._demand(digest, size)
            self._connection.persist(lambda: self._whole(piece, found), f"POST {self._path}uploads/")
            self._count(len(piece))
            piece.forget()
            return found, self._size
        self._begin()
        while piece:
            self._add(piece, self._arrived)
            piece.forget()
            piece, ended = (_Piece([]), True) if ended else _Piece.take(source, self._piece)
        return self._end(digest, size)

    def _as_one(self, source: Iterator[bytes], digest: str | None, size: int | None) -> tuple[str, int]:
        """Send it in one go, as engines do; there is no way back in that."""
        self._begin()
        headers = {**_KIND, **({} if size is None else {"Content-Length": str(size)})}

        def counted() -> Iterator[bytes]:
            for chunk in source:
                yield chunk
                self._count(len(chunk))

        try:
            answer = self._ask("PATCH", self._location, headers, counted())
        except Again as error:
            raise UploadLost(str(error), pieces=False) from error
        self._demand_accepted(answer, "takes no blobs that are streamed")
        self._locate(answer)
        return self._end(digest, size)

    def _whole(self, data: _Piece, digest: str) -> None:
        """Send what fits into one request."""
        self._begin()
        headers = {**_KIND, "Content-Length": str(len(data))}
        answer = self._ask("PUT", _with_digest(self._location, digest), headers, data, _ENDING)
        if answer.status != HTTPStatus.CREATED:
            raise self._refusal(answer)
        self._location = ""

    def _begin(self) -> None:
        def ask() -> Answer:
            return self._ask("POST", f"{self._path}uploads/", {"Content-Length": "0"})

        answer = self._connection.persist(ask, f"POST {self._path}uploads/")
        if answer.status != HTTPStatus.ACCEPTED or "location" not in answer.headers:
            raise self._refusal(answer)
        self._locate(answer)
        with contextlib.suppress(KeyError, ValueError):
            least = int(answer.headers["oci-chunk-min-length"])
            self._piece = max(PIECE, min(least, _LARGEST_PIECE))

    def _add(self, piece: _Piece, start: int) -> None:
        """Send a piece until it is there."""

        def go_on() -> None:
            try:
                self._patch(piece, start)
            except Again:
                self._resume(start, start + len(piece))
                raise

        def ask() -> None:
            while self._arrived < start + len(piece):
                before = self._arrived
                try:
                    go_on()
                except Again:
                    if self._arrived == before:  # it brought nothing: not at once again
                        raise

        self._connection.persist(ask, f"PATCH {self._path}uploads/")

    def _patch(self, piece: _Piece, start: int) -> None:
        rest, end = piece.after(self._arrived - start), start + len(piece)
        headers = {**_KIND, "Content-Range": f"{self._arrived}-{end - 1}", "Content-Length": str(len(rest))}
        answer = self._ask("PATCH", self._location, headers, rest)
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise Again("the registry has another part of it")
        if answer.status not in _ACCEPTED:
            if self._arrived and answer.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise UploadLost(f"it takes no second piece ({answer.words})", pieces=False)
            raise self._refusal(answer)
        self._locate(answer)
        self._count(end - self._arrived)

    def _resume(self, start: int, end: int) -> None:
        """Ask how much has arrived, after it broke.

        Raises
        ------
        UploadLost
            The registry does not know any more, or has less than it said before.
        """
        try:
            answer = self._ask("GET", self._location)
        except Again:
            return  # it is not there at all: the next try finds out
        there = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("range", ""))
        if answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.OK, HTTPStatus.ACCEPTED) or not there:
            raise UploadLost(f"the registry has lost what was sent ({answer.words})")
        arrived = int(there[1]) + 1
        if arrived == 1 and start == 0:
            arrived = 0  # what an empty upload is said to have, too
        if not start <= arrived <= end:
            raise UploadLost(f"the registry has {arrived} bytes of it, not {start} to {end}")
        self._locate(answer)
        self._count(arrived - self._arrived)

    def _end(self, digest: str | None, size: int | None) -> tuple[str, int]:
        found = self._demand(digest, size)

        def ask() -> Answer | None:
            try:
                return self._ask("PUT", _with_digest(self._location, found), _KIND, b"", _ENDING)
            except Again:
                if self._is_there(found):
                    return None  # it was only its answer that did not come
                raise

        answer = self._connection.persist(ask, f"PUT {self._path}uploads/")
        if answer is not None and answer.status != HTTPStatus.CREATED:
            if self._is_there(found):
                return found, self._size
            if answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND):
                raise UploadLost(f"it does not take the blob as it arrived ({answer.words})")
            raise self._refusal(answer)
        self._location = ""
        return found, self._size

    def _is_there(self, digest: str) -> bool:
        try:
            return self._ask("HEAD", f"{self._path}{digest}").status == HTTPStatus.OK
        except Again:
            return False

    def _demand(self, digest: str | None, size: int | None) -> str:
        found = "sha256:" + self._sha.hexdigest()
        if found != (digest or found) or self._size != (self._size if size is None else size):
            raise CorruptBlobError(
                f"a blob changed while it was sent: it has {self._size} bytes, {found},"
                f" not {self._size if size is None else size} bytes, {digest or found}",
                hint="Nothing of it was kept there. Push again.",
            )
        return found

    def _demand_accepted(self, answer: Answer, otherwise: str) -> None:
        if answer.status not in _ACCEPTED:
            raise RegistryError(
                f"it {otherwise} ({answer.words})",
                where=self._connection.registry,
                hint="Ask whoever runs the registry.",
            )

    def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> Answer:
        scope = self._scope
        once = self._connection.once(
            method, path, scope=scope, headers=headers, content=content, timeout=timeout
        )
        with once as response:
            return Answer.read(response)

    def _once(self, method: str, path: str) -> contextlib.AbstractContextManager[httpx.Response]:
        return self._connection.once(method, path, scope=self._scope)

    def _locate(self, answer: Answer) -> None:
        if "location" in answer.headers:
            self._location = str(httpx.URL(answer.url).join(answer.headers["location"]))

    def _count(self, size: int) -> None:
        self._arrived += size
        self._sent(size)

    def _refusal(self, answer: Answer) -> RegistryError:
        words = self._connection.logins.without_secrets(answer.words)
        if answer.status == HTTPStatus.NOT_FOUND:
            return RegistryError(
                f"it has no such repository ({words})",
                where=self._connection.registry,
                hint="Make the repository there first: this registry does not make them by itself.",
            )
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return RegistryError(
                f"it, or something before it, takes no request of that size ({words})",
                where=self._connection.registry,
                hint="Ask whoever runs it to allow larger ones: layers may have gigabytes.",
            )
        return RegistryError(
            f"it does not take a blob ({words})",
            where=self._connection.registry,
            hint="Ask whoever runs the registry.",
        )


class _Piece:
    """What is sent by one request, and may be sent again: chunks as they came, never copied."""

    def __init__(self, chunks: list[bytes], start: int = 0) -> None:
        self._chunks = chunks
        self._start = start

    @classmethod
    def take(cls, source: Iterator[bytes], size: int) -> tuple[_Piece, bool]:
        """Take at least so many bytes of a source, if it has them, and tell whether it has ended."""
        chunks, taken = [], 0
        for chunk in source:
            chunks.append(chunk)
            taken += len(chunk)
            if taken >= size:
                return cls(chunks), False
        return cls(chunks), True

    def after(self, start: int) -> _Piece:
        """Return what comes after so many bytes."""
        return _Piece(self._chunks, start)

    def forget(self) -> None:
        """Let go of the bytes: the requests that held them may stay until garbage is collected."""
        self._chunks.clear()

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) - self._start

    def __iter__(self) -> Iterator[bytes]:
        skip = self._start
        for chunk in self._chunks:
            for begin in range(min(skip, len(chunk)), len(chunk), WRITE):
                yield chunk[begin : begin + WRITE]
            skip -= min(skip, len(chunk))


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}"
