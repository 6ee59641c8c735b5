"""Blobs in the scheduler: bytes on its disk by their sha256, in from clients and out to hosts, in chunks.

Nothing is held in memory but the chunk that passes, and nothing is given out whose hash was not checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import threading
import time
from typing import Any, Iterable, Mapping

__all__ = ["CHUNK", "Blobs", "blobs_of"]

CHUNK = 2 * 2**20  # bytes
ABANDONED = 3600.0  # seconds without a chunk, after which an upload is given up

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_UPLOAD = re.compile(r"[0-9A-Za-z_-]{0,64}\Z")


def blobs_of(state: Mapping[str, Any]) -> list[str]:
    """Return the digests of all that a state names, each once."""
    wheels = [one["sha256"] for packages in state["packages"].values() for one in packages.values()]
    files = [sha256 for tree in state["trees"] for _, sha256, _ in tree["files"]]
    return list(dict.fromkeys([*wheels, *files]))


class Blobs:
    """A folder of blobs. Every method does I/O: call them in a thread.

    Parameters
    ----------
    folder : str
        Made if it is not there, readable by its owner only.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(folder, 0o700)
        self._parts: dict[tuple[str, str], _Part] = {}
        self._lock = threading.Lock()

    def path(self, sha256: str) -> str:
        """Return where a blob is, or would be."""
        if not isinstance(sha256, str) or not _SHA256.match(sha256):
            raise ValueError(f"not a sha256: {sha256!r:.80}")
        return os.path.join(self.folder, sha256)

    def lacking(self, digests: Iterable[str]) -> list[str]:
        """Return those that are not here, each once."""
        return sorted({one for one in digests if not os.path.exists(self.path(one))})

    def put(self, sha256: str, offset: int, data: bytes, last: bool, upload: str = "") -> dict[str, Any]:
        """Take a chunk of a blob; chunks of one upload come in order.

        Parameters
        ----------
        sha256 : str
            Of the whole blob.
        offset : int
            Where the chunk belongs, in bytes; 0 starts anew.
        data : bytes
            The chunk.
        last : bool
            Whether the blob is whole with it: then its hash is checked.
        upload : str
            Tells uploads of the same blob by several clients apart.

        Returns
        -------
        dict
            ``size``, the bytes that are here; ``refused``, why the chunk was not taken, if it was not.
        """
        try:
            return self._put(sha256, offset, data, last, upload)
        except OSError as error:
            with self._lock:
                part = self._parts.pop((sha256, upload), None)
            if part is not None:
                part.remove()  # it takes room, and nobody knows how much of it is whole
            said = f"{error.strerror or error}: {self.folder} on {socket.gethostname()}"
            return {"size": 0, "refused": said}

    def _put(self, sha256: str, offset: int, data: bytes, last: bool, upload: str) -> dict[str, Any]:
        path = self.path(sha256)
        if not _UPLOAD.match(upload):
            return {"size": 0, "refused": "the name of an upload is letters and digits, 64 at most"}
        if os.path.exists(path):  # another client was quicker, perhaps
            with self._lock:
                part = self._parts.pop((sha256, upload), None)
            if part is not None:
                part.remove()
            return {"size": os.path.getsize(path)}
        with self._lock:
            self._give_up()
            part = self._parts.get((sha256, upload))
            if part is None or offset == 0:
                if part is not None:
                    part.remove()
                part = self._parts[sha256, upload] = _Part(f"{path}.{upload}.part")
        with part.lock:
            if offset != part.size:
                return {"size": part.size, "refused": f"the next byte is {part.size}, not {offset}"}
            part.write(data)
            if not last:
                return {"size": part.size}
            with self._lock:
                self._parts.pop((sha256, upload), None)
            found = part.digest.hexdigest()
            if found != sha256:
                part.remove()
                said = (
                    f"{part.size} bytes came whose sha256 is {found}, not {sha256}: cut or changed on the way"
                )
                return {"size": 0, "refused": said}
            part.commit(path)
            return {"size": part.size}

    def get(self, sha256: str, offset: int) -> dict[str, Any]:
        """Return a chunk of a blob: ``data``, and the ``size`` of the whole; -1 if it is not here."""
        try:
            with open(self.path(sha256), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return {"data": file.read(CHUNK), "size": size}
        except FileNotFoundError:
            return {"data": b"", "size": -1}

    def keep(self, digests: Iterable[str]) -> None:
        """Remove all blobs but these."""
        kept = set(digests)
        for name in os.listdir(self.folder):
            if _SHA256.match(name) and name not in kept:
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(self.folder, name))

    def remove(self) -> None:
        """Remove all blobs, and the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _give_up(self) -> None:
        now = time.monotonic()
        for key, part in list(self._parts.items()):
            if now - part.touched > ABANDONED:
                part.remove()
                del self._parts[key]


class _Part:
    """A blob that is not whole yet."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()
        self.touched = time.monotonic()
        with open(path, "wb"):
            os.chmod(path, 0o600)

    def write(self, data: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(data)
        self.digest.update(data)
        self.size += len(data)
        self.touched = time.monotonic()

    def commit(self, path: str) -> None:
        os.replace(self.path, path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.remove(self.path)
