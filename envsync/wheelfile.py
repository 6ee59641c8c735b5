"""Wheels written so that the same contents give the same bytes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import os
import time
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["EPOCH", "Entry", "build_date", "compressed_tags", "rewrite", "write"]

EPOCH = 315532800  # 1980-01-01, the first day that a zip knows
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a wheel.

    Attributes
    ----------
    name : str
        Its path in the archive.
    source : bytes or Path
        Its contents.
    executable : bool
        Whether it keeps an executable bit.
    """

    name: str
    source: bytes | Path
    executable: bool = False


def build_date() -> int:
    """Return the date of everything that is built: ``SOURCE_DATE_EPOCH`` if it is set, else 1980-01-01."""
    value = os.environ.get("SOURCE_DATE_EPOCH", "")
    return max(int(value), EPOCH) if value.isdecimal() else EPOCH


def write(target: BinaryIO, entries: Iterable[Entry], info: str) -> dict[str, str]:
    """Write a wheel with a new RECORD.

    Parameters
    ----------
    target : binary file
        Open for writing.
    entries : iterable of Entry
        In any order, without the RECORD.
    info : str
        The name of the .dist-info folder.

    Returns
    -------
    dict of str to str
        What RECORD says of each entry's contents: ``sha256=...``.
    """
    hashes: dict[str, str] = {}
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        # The metadata comes last, as the wheel specification recommends.
        for entry in sorted(entries, key=lambda one: (one.name.startswith(f"{info}/"), one.name)):
            sha, size = hashlib.sha256(), 0
            with _source(entry) as source, archive.open(_header(entry, source), "w") as file:
                while chunk := source.read(CHUNK):
                    sha.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            hashes[entry.name] = "sha256=" + base64.urlsafe_b64encode(sha.digest()).decode().rstrip("=")
            sizes[entry.name] = size
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows((name, hashes[name], sizes[name]) for name in hashes)
        rows.writerow((f"{info}/RECORD", "", ""))
        archive.writestr(_info(f"{info}/RECORD", executable=False), text.getvalue().encode())
    return hashes


def rewrite(wheel: Path, target: BinaryIO) -> None:
    """Copy a wheel, RECORD and all, so that its bytes depend on its contents only."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        files = [info for info in old.infolist() if not info.is_dir()]
        for info in sorted(files, key=lambda one: (".dist-info/" in one.filename, one.filename)):
            header = _info(info.filename, executable=bool(info.external_attr >> 16 & 0o111))
            header.file_size = info.file_size
            with old.open(info) as source, new.open(header, "w") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)


def compressed_tags(tags: Sequence[str]) -> str:
    """Return tags as a file name has them: ``py2-none-any`` and ``py3-none-any`` are ``py2.py3-none-any``.

    Tags that are no product of their parts cannot be written in one file name: then the first one stands.
    """
    parts = [tag.split("-") for tag in tags]
    columns = [sorted({part[column] for part in parts}) for column in range(3)]
    product = {"-".join(each) for each in itertools.product(*columns)}
    return "-".join(".".join(column) for column in columns) if product == set(tags) else sorted(tags)[0]


def _source(entry: Entry) -> BinaryIO:
    return io.BytesIO(entry.source) if isinstance(entry.source, bytes) else entry.source.open("rb")


def _header(entry: Entry, source: BinaryIO) -> zipfile.ZipInfo:
    info = _info(entry.name, executable=entry.executable)
    # Tells zipfile beforehand whether sizes need 64 bits.
    info.file_size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return info


def _info(name: str, *, executable: bool) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, time.gmtime(build_date())[:6])
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3
    info.external_attr = (0o100755 if executable else 0o100644) << 16
    return info
