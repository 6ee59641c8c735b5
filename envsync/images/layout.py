"""Images in a folder, as the OCI image layout has them: what skopeo calls ``oci:FOLDER:TAG``."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import CorruptBlobError, ImageError
from envsync.images.oci import Descriptor, Index, document, sha256_of
from envsync.unfinished import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TAG", "Layout"]

_ATTACHED = re.compile(r"sha256-[0-9a-f]{64}")  # a tag that lists what is attached to an image
TAG = "org.opencontainers.image.ref.name"
_VERSION = {"imageLayoutVersion": "1.0.0"}
_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Layout:
    """A folder with images, one `envsync.images.oci.Images`.

    Blobs appear whole or not at all; several processes may put images into one folder.

    Parameters
    ----------
    folder : path
        Made when something is put into it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Layout({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"oci:{self.folder}"

    def size(self, digest: str) -> int | None:
        """Return how many bytes a blob has; None if it is not there."""
        try:
            return self._blob(digest).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(
        self, chunks: Iterable[bytes], *, digest: str | None = None, size: int | None = None
    ) -> tuple[str, int]:
        """Keep a blob, and return its digest and size."""
        sha = hashlib.sha256()
        count = 0
        with self._writing():
            self._begin()
            with Part(tempfile.mkstemp(dir=self._blobs, prefix=".unfinished-")) as part:
                for chunk in chunks:
                    sha.update(chunk)
                    count += len(chunk)
                    part.write(chunk)
                found = f"sha256:{sha.hexdigest()}"
                if found != (digest or found) or count != (count if size is None else size):
                    raise CorruptBlobError(
                        f"a blob has the digest {found} and {count} bytes, not {digest} and {size}",
                        where=self.name,
                    )
                part.keep(self._blob(found), mode=0o644)
        return found, count

    def mount(self, digest: str, repository: str) -> bool:  # noqa: ARG002 - a folder knows no other one
        """Return False: a folder cannot take a blob from another one by name."""
        return False

    def open(self, digest: str) -> Iterator[bytes]:
        """Read a blob, in chunks, and check it."""
        sha = hashlib.sha256()
        try:
            with self._blob(digest).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    sha.update(chunk)
                    yield chunk
        except OSError as error:
            raise ImageError(
                f"the blob {digest} cannot be read: {error.strerror}",
                where=self.name,
                hint="The folder is not whole: put the image there again.",
            ) from error
        if f"sha256:{sha.hexdigest()}" != digest:
            raise CorruptBlobError(f"the blob {digest} holds other bytes", where=self.name)

    def manifest(self, reference: str) -> tuple[str, str, bytes] | None:
        """Return media type, digest and bytes of a manifest; None if there is none.

        Parameters
        ----------
        reference : str
            A tag or a digest; empty for the only image that the folder has.
        """
        entries = self._entries()
        if _DIGEST.fullmatch(reference):
            digest = reference
        elif not reference and len({entry.digest for entry in _images(entries)}) == 1:
            digest = _images(entries)[0].digest
        else:
            named = [entry for entry in entries if entry.annotations.get(TAG) == reference]
            if not named:
                return None
            digest = named[-1].digest
        if self.size(digest) is None:
            return None
        data = b"".join(self.open(digest))
        types = [entry.media_type for entry in entries if entry.digest == digest]
        return (types or [str(document(data, "manifest").get("mediaType", ""))])[0], digest, data

    def manifest_digest(self, reference: str) -> str | None:
        """Return the digest of a manifest; None if there is none."""
        found = self.manifest(reference)
        return None if found is None else found[1]

    def tags(self) -> list[str]:
        """Return the tags of the images in it."""
        entries = _images(self._entries())
        return sorted({entry.annotations[TAG] for entry in entries if TAG in entry.annotations})

    def put_manifest(self, data: bytes, media_type: str, tag: str | None = None) -> str:
        """Keep a manifest whose blobs are there already, under a tag if one is given; return its digest.

        One that is about another is no image of the folder: it is listed by `envsync.images.referrers` only.
        """
        self.put([data])
        if tag is None and "subject" in document(data, "manifest"):
            return sha256_of(data)
        made = Descriptor.of(data, media_type)
        with self._writing(), (self.folder / "oci-layout").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = [entry for entry in self._entries() if tag is None or entry.annotations.get(TAG) != tag]
            if tag is not None:
                entries = [one for one in entries if one.digest != made.digest or TAG in one.annotations]
                made = Descriptor(
                    media_type=media_type, digest=made.digest, size=made.size, annotations={TAG: tag}
                )
            if tag is not None or made.digest not in {entry.digest for entry in entries}:
                entries.append(made)
            self._replace("index.json", Index(manifests=tuple(entries)).to_bytes())
        return made.digest

    def referrers(self, digest: str) -> None:
        """Return None: a folder keeps no list of them."""

    def close(self) -> None:
        """Do nothing: there is nothing open."""

    @property
    def _blobs(self) -> Path:
        return self.folder / "blobs" / "sha256"

    def _blob(self, digest: str) -> Path:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise ImageError(f"{digest!r} is not a digest that can be read here", where=self.name)
        return self._blobs / found[1]

    def _begin(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "oci-layout").is_file():
            self._replace("oci-layout", json.dumps(_VERSION).encode())

    def _entries(self) -> tuple[Descriptor, ...]:
        try:
            return Index.from_bytes((self.folder / "index.json").read_bytes()).manifests
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise ImageError(f"it cannot be read: {error.strerror}", where=self.name) from error
        except ImageError as error:
            raise ImageError(
                f"its index.json is not that of an image layout: {error.message}",
                where=self.name,
                hint="Choose another folder, or remove that file.",
            ) from error

    def _replace(self, name: str, data: bytes) -> None:
        with Part(tempfile.mkstemp(dir=self.folder, prefix=".unfinished-")) as part:
            part.write(data)
            part.keep(self.folder / name, mode=0o644)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ImageError(
                f"the image cannot be written: {'the disk is full' if full else error.strerror or error}",
                where=self.name,
                hint="Make room there, or choose another folder." if full else "Choose another folder.",
            ) from error


def _images(entries: Iterable[Descriptor]) -> list[Descriptor]:
    return [one for one in entries if not _ATTACHED.fullmatch(one.annotations.get(TAG, ""))]
