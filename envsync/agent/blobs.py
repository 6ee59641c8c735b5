"""Blobs that arrive on a host: a stream of frames, each checked before it counts."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, Mapping

from .layout import Cache, Problem, checked_digest, disk_problem, fresh, taken_back

__all__ = ["lacking", "receive"]

_CHUNK = 1 << 20


def lacking(cache: Cache, digests: Iterable[str]) -> list[str]:
    """Return those digests whose blobs are not here."""
    return [digest for digest in digests if not cache.has(checked_digest(digest))]


def receive(cache: Cache, source: BinaryIO, answers: BinaryIO) -> int:
    """Store a stream of blobs.

    A frame is a line ``{"digest": ..., "size": ...}`` and so many bytes, or with ``"packed": n`` as many
    bytes of a zlib stream; the line ``{"end": true}`` ends the stream, and without it the stream was cut off.
    Each frame is answered by a line ``{"stored": digest}`` or ``{"error": ...}``. A blob appears whole or not
    at all: after a stream that broke, what is lacking is asked for again.

    Parameters
    ----------
    cache : Cache
        Where they go.
    source, answers : binary files
        The stream, and where its answers go.

    Returns
    -------
    int
        The exit status: 0 if every blob was stored.
    """
    status = 0
    answer: dict[str, Any]
    while True:
        line = source.readline(4096)
        if not line:
            return 1  # cut off
        frame = json.loads(line)
        if frame.get("end"):
            return status
        try:
            answer = {"stored": _keep(cache, frame["digest"], int(frame["size"]), _body(frame, source))}
        except Problem as problem:
            answer, status = {"error": problem.to_dict(), "digest": frame["digest"]}, 1
        except EOFError:
            return 1
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _keep(cache: Cache, digest: str, size: int, body: Iterator[bytes]) -> str:
    written, problem = 0, None
    sha = hashlib.sha256()
    with taken_back(fresh(cache.blobs, ".unfinished-")) as part:
        try:
            target = cache.blob(checked_digest(digest))
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for data in body:
                    written += len(data)
                    if written > size:
                        break
                    sha.update(data)
                    file.write(data)
        except Problem as error:
            problem = error
        except OSError as error:
            problem = disk_problem(error, "what was sent could not be kept")
        for _ in body:  # the next frame starts behind this one, whatever happened to it
            pass
        if problem is not None:
            raise problem
        if sha.hexdigest() != digest:
            raise Problem(
                "corrupt",
                f"blob {digest} arrived as other bytes (sha256 {sha.hexdigest()})",
                "Try again; if it stays so, the client's own copy is damaged: remove it from its store.",
            )
        part.replace(target)
    return digest


def _body(frame: Mapping[str, Any], source: BinaryIO) -> Iterator[bytes]:
    """Yield a frame's bytes, unpacked. At its end the stream stands behind the frame, whatever was in it."""
    left = int(frame.get("packed", frame["size"]))
    unpacker = zlib.decompressobj() if "packed" in frame else None
    while left:
        data = source.read(min(_CHUNK, left))
        if not data:
            raise EOFError
        left -= len(data)
        if unpacker is not None:
            try:
                data = unpacker.decompress(data)
            except zlib.error:
                data = b""  # the digest will tell
        yield data


def link(source: Path, target: Path) -> None:
    """Give a blob another name: a hard link, or a copy where that is not possible."""
    part = fresh(target.parent, f".{target.name[:64]}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with taken_back(part):
        try:
            os.link(source, part)
        except OSError:
            from shutil import copyfile

            copyfile(source, part)
        part.replace(target)
