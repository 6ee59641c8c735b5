"""Wheels as an installer lays them, without laying them: a layer reads its files straight from them."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from zlib_ng import zlib_ng

from envsync.errors import ImageError
from envsync.images.deflate import BROKEN, CHUNK, deflated, stored
from envsync.images.tar import Entry
from envsync.plugins.scan import record_digest
from envsync.plugins.wheel import (
    UNREADABLE,
    Listing,
    hash_of,
    headers_of,
    is_written,
    list_wheel,
    record_of,
    scheme_of,
    with_shebang,
    wrappers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envsync.artifacts import Artifact
    from envsync.store import Store

__all__ = ["Place", "files_of"]

_LOCAL = struct.Struct("<4s22xHH")  # of a zip's local file header: signature, lengths of name and extra
_TOGETHER = 1 << 22  # bytes of a file that is read at once
_MARK = b"#!python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image has its environment.

    Attributes
    ----------
    prefix : str
        From the image's root.
    minor : str
        Of its Python, such as ``"3.11"``.
    """

    prefix: str = "opt/envsync/env"
    minor: str

    @property
    def python(self) -> str:
        """The interpreter that scripts are for."""
        return f"/{self.prefix}/bin/python"

    @property
    def site(self) -> str:
        """The folder of packages, from the prefix."""
        return f"lib/python{self.minor}/site-packages"


def files_of(artifact: Artifact, store: Store, place: Place, *, record: str = "") -> Iterator[Entry]:
    """Yield what a wheel puts into an environment: its files, its scripts, and what an installer writes.

    Each file is checked against the wheel's RECORD while its content is read.

    Parameters
    ----------
    artifact : Artifact
        The wheel, which the store holds.
    store : Store
        Where it is.
    place : Place
        Where it goes.
    record : str
        The digest that its RECORD must have; any if empty.

    Raises
    ------
    ImageError
        It is no wheel, or one that lies: the message names the file in it. Also while a content is read.
    StoreError
        It is not in the store.
    """
    label = artifact.filename
    path = store.path(artifact.sha256)
    with (
        path.open("rb") if path is not None else store.open(artifact.sha256) as file,
        _telling(label),
        zipfile.ZipFile(file) as archive,
    ):
        yield from _files(archive, file, place, artifact.name, label, record)


@contextlib.contextmanager
def _telling(label: str) -> Iterator[None]:
    """Say of which wheel it is what cannot be read."""
    hint = "Remove it from the cache and try again; if that does not help, do not use this wheel."
    try:
        yield
    except (*UNREADABLE, BROKEN, struct.error) as error:
        raise ImageError(f"{label} cannot be read as a wheel: {error}", hint=hint) from error
    except ValueError as error:
        raise ImageError(str(error), hint=hint) from error


def _files(
    archive: zipfile.ZipFile, file: BinaryIO, place: Place, name: str, label: str, record: str
) -> Iterator[Entry]:
    listing = list_wheel(archive, name=name, label=label)
    info, rows, site = listing.info, listing.rows, f"{place.prefix}/{place.site}"
    if record and record_digest(archive.read(listing.members[f"{info}/RECORD"]).decode()) != record:
        raise ValueError(f"{label}: its RECORD is not the one that the lock has")
    listed: list[tuple[str, str, str]] = []

    def written(path: str, data: bytes, inner: str = "") -> Entry:
        listed.append((inner or f"../../../{path}", hash_of(hashlib.sha256(data).digest()), str(len(data))))
        executable = not inner
        return Entry(f"{place.prefix}/{path}", data, executable)

    for path in sorted(listing.members):
        member = listing.members[path]
        scheme, inner = scheme_of(path, info, label)
        content = Packed(file, member, listing, label)
        executable = bool(member.external_attr >> 16 & 0o111)
        if scheme == "site":
            if not is_written(inner, info):
                listed.append((inner, *rows.get(path, ("", ""))))
                yield Entry(f"{site}/{inner}", content, executable)
        elif scheme == "scripts":
            with archive.open(member) as script:
                ours = script.read(len(_MARK)) == _MARK
            if ours:
                text = with_shebang(b"".join(plain for _, plain in content.pieces()), place.python)
                yield written(f"bin/{inner}", text)
            else:
                listed.append((f"../../../bin/{inner}", *rows[path]))
                yield Entry(f"{place.prefix}/bin/{inner}", content, executable=True)
        else:
            target = inner if scheme == "data" else f"{headers_of(info, place.minor)}/{inner}"
            listed.append((f"../../../{target}", *rows[path]))
            yield Entry(f"{place.prefix}/{target}", content, executable)
    if (points := f"{info}/entry_points.txt") in listing.members:
        text = archive.read(listing.members[points])
        for script_name, data in wrappers(text, place.python, place.site, f"{label}: {points}"):
            yield written(f"bin/{script_name}", data)
    yield written(f"{place.site}/{info}/INSTALLER", b"envsync\n", f"{info}/INSTALLER")
    yield Entry(f"{site}/{info}/RECORD", record_of(listed, info))


class Packed:
    """A file of a wheel, deflated as it is there, and checked.

    Parameters
    ----------
    file : binary file
        The wheel.
    member : ZipInfo
        Which of its files.
    listing : Listing
        What the wheel says of it.
    label : str
        What to call the wheel in errors.
    """

    __slots__ = ("_file", "_label", "_listing", "_member", "size")

    def __init__(self, file: BinaryIO, member: zipfile.ZipInfo, listing: Listing, label: str) -> None:
        self._file = file
        self._member = member
        self._listing = listing
        self._label = label
        self.size = member.file_size

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the deflated bytes, and what they hold."""
        with _telling(self._label):
            yield from self._checked()

    def _checked(self) -> Iterator[tuple[bytes, bytes]]:
        path = self._member.orig_filename
        sha = hashlib.new(self._listing.algorithm(path))
        size = 0
        for packed, plain in self._read():
            sha.update(plain)
            size += len(plain)
            if size > self.size:
                break
            yield packed, plain
        self._listing.check(path, hash_of(sha.digest(), sha.name), self._label)
        if size != self.size:
            raise ValueError(f"{self._label}: {path} has not the {self.size} bytes that the wheel says")

    def _read(self) -> Iterator[tuple[bytes, bytes]]:
        member = self._member
        if member.flag_bits & 1:
            raise ValueError(f"{self._label}: {member.orig_filename} is encrypted")
        if member.compress_type == zipfile.ZIP_DEFLATED:
            unpacker = zlib_ng.decompressobj(-15)
            once = self.size <= _TOGETHER
            for packed in self._raw(_TOGETHER if once else CHUNK):
                plain = unpacker.decompress(packed, self.size + 1 if once else CHUNK)
                yield packed, plain
                while unpacker.unconsumed_tail:
                    plain = unpacker.decompress(unpacker.unconsumed_tail, CHUNK)
                    yield b"", plain
            while not unpacker.eof and (plain := unpacker.decompress(b"", CHUNK)):
                yield b"", plain
            if not unpacker.eof or unpacker.unused_data:
                raise ValueError(f"{self._label}: {member.orig_filename} does not end where the wheel says")
        elif member.compress_type == zipfile.ZIP_STORED:
            for plain in self._raw(CHUNK):
                yield stored(plain, last=False), plain
            yield stored(b"", last=True), b""
        else:
            with zipfile.ZipFile(self._file) as archive, archive.open(member) as content:
                yield from deflated(iter(lambda: content.read(CHUNK), b""))

    def _raw(self, most: int) -> Iterator[bytes]:
        """Yield the member's bytes as they are in the file."""
        self._file.seek(self._member.header_offset)
        signature, *lengths = _LOCAL.unpack(self._file.read(_LOCAL.size))
        if signature != b"PK\x03\x04":
            raise ValueError(f"{self._label}: {self._member.orig_filename} is not where the wheel says")
        self._file.seek(sum(lengths), 1)
        left = self._member.compress_size
        at = self._file.tell()
        while left:
            self._file.seek(at)  # others read from it too
            data = self._file.read(min(left, most))
            if not data:
                raise ValueError(f"{self._label}: {self._member.orig_filename} is cut off")
            left -= len(data)
            at += len(data)
            yield data
