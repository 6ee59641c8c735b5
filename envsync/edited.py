"""Which installed files are no longer what their RECORD says (PEP 376)."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import ST_MTIME, ST_SIZE
from typing import TYPE_CHECKING

from envsync.snapshot import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envsync.snapshot import Distribution

__all__ = ["edited_files", "touched_files"]

_INERT = (".pyc", ".pyi", "py.typed", ".h", ".hpp", ".c", ".pxd", ".pxi", ".po", ".pot")
_BESIDE = os.stat in os.supports_dir_fd  # a short path is found in half the time
_RACY = 2.0  # seconds: installers write RECORD last, and not all clocks of file systems are fine


def edited_files(distributions: Iterable[Distribution]) -> list[Finding]:
    """Hash every file that a RECORD names, and report those that differ or are gone.

    Parameters
    ----------
    distributions : iterable of Distribution
        Those that are shadowed, or have no RECORD, are passed over.

    Returns
    -------
    list of Finding
        One for each file, in the order of the distributions.
    """
    looked_at = [one for one in distributions if one.record is not None and not one.shadowed_by]
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return [finding for found in pool.map(_edited, looked_at) for finding in found]


def touched_files(distributions: Iterable[Distribution]) -> list[Finding]:
    """Report what `edited_files` does, but hash only files of another size, or younger than their RECORD.

    That is quick, and finds what an editor did; not what hides its traces. What no running process reads is
    passed over: stubs, headers, sources of translations, metadata.

    Parameters
    ----------
    distributions : iterable of Distribution
        As for `edited_files`.

    Returns
    -------
    list of Finding
        One for each file, in the order of the distributions.
    """
    looked_at = [one for one in distributions if one.record is not None and not one.shadowed_by]
    return [finding for one in looked_at for finding in _check(one, list(_touched(one)))]


def _edited(distribution: Distribution) -> list[Finding]:
    return _check(distribution, _rows(_record(distribution.location)))


def _record(info: str) -> str:
    return Path(info, "RECORD").read_bytes().decode("utf-8", "surrogateescape")


def _lines(record: str) -> list[str]:
    """Return the lines of a RECORD without quotes: the last two commas part path, hash and size."""
    if '"' in record or "\r" in record:
        rows = csv.reader(io.StringIO(record, newline=""))
        return [",".join((*row, "", "")[:3]) for row in rows]
    return record.split("\n")


def _rows(record: str) -> Iterator[tuple[str, str]]:
    """Return path and hash of the files that have one; bytecode is made anew as Python likes."""
    for line in _lines(record):
        path = line.rpartition(",")[0]
        path, _, hashed = path.rpartition(",")
        if hashed and path[-4:] != ".pyc":
            yield path, hashed


def _touched(distribution: Distribution) -> Iterator[tuple[str, str]]:
    """Return what is to be hashed. Of tens of thousands of files, each step of Python counts."""
    info = distribution.location
    site, stat = os.path.dirname(info), os.stat  # noqa: PTH120
    written = int(stat(f"{info}/RECORD").st_mtime + _RACY)
    folder = os.open(site, os.O_RDONLY) if _BESIDE else None
    start = "" if _BESIDE else f"{site}/"
    try:
        for line in _lines(_record(info)):
            path, _, size = line.rpartition(",")
            path, _, hashed = path.rpartition(",")
            if not hashed or path.endswith(_INERT) or ".dist-info/" in path:
                continue
            try:
                status = stat(start + path, dir_fd=folder)
            except OSError:
                yield path, hashed
                continue
            if status[ST_MTIME] > written or (size.isdigit() and int(size) != status[ST_SIZE]):
                yield path, hashed
    finally:
        if folder is not None:
            os.close(folder)


def _check(distribution: Distribution, rows: Iterable[tuple[str, str]]) -> list[Finding]:
    site = Path(distribution.location).parent
    found = []
    for path, hashed_then in rows:
        algorithm, _, wanted = hashed_then.partition("=")
        try:
            with (site / path).open("rb") as content:
                hashed = hashlib.file_digest(content, algorithm) if _FAST else _digest(content, algorithm)
        except FileNotFoundError:
            found.append(_finding(distribution, path, "is missing"))
            continue
        except (OSError, ValueError) as error:
            found.append(_finding(distribution, path, f"cannot be checked: {error}"))
            continue
        if base64.urlsafe_b64encode(hashed.digest()).rstrip(b"=").decode() != wanted.rstrip("="):
            found.append(_finding(distribution, path, "was edited after it was installed"))
    return found


_FAST = hasattr(hashlib, "file_digest")  # Python 3.11


def _digest(content: object, algorithm: str) -> hashlib._Hash:
    hashed = hashlib.new(algorithm)
    while block := content.read(1 << 18):  # type: ignore[attr-defined]
        hashed.update(block)
    return hashed


def _finding(distribution: Distribution, path: str, what: str) -> Finding:
    text = f"{distribution.version}: {path} {what}"
    return Finding(severity="warning", subject=distribution.name, text=text)
