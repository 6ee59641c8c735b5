"""Which installed files are no longer what their RECORD says (PEP 376)."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.snapshot import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envsync.snapshot import Distribution

__all__ = ["edited_files", "touched_files"]

_INERT = (".pyi", "py.typed", ".h", ".hpp", ".c", ".pxd", ".pxi", ".po", ".pot")
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
    return _check(distribution, _rows(distribution))


def _rows(distribution: Distribution) -> Iterator[list[str]]:
    """Return the files of a RECORD that have a hash there; bytecode is made anew as Python likes."""
    text = Path(distribution.location, "RECORD").read_bytes().decode("utf-8", "surrogateescape")
    if '"' in text or "\r" in text:
        rows: Iterable[list[str]] = csv.reader(io.StringIO(text, newline=""))
    else:  # of tens of thousands of lines, what csv makes of them in twice the time
        rows = (line.rsplit(",", 2) for line in text.split("\n"))
    yield from (row for row in rows if len(row) > 1 and row[1] and row[0][-4:] != ".pyc")


def _touched(distribution: Distribution) -> Iterator[list[str]]:
    info = distribution.location
    site = os.path.dirname(info)  # noqa: PTH120 - much quicker, for tens of thousands of files
    stat = os.stat
    written = stat(f"{info}/RECORD").st_mtime + _RACY
    for row in _rows(distribution):
        path = row[0]
        if path.endswith(_INERT) or ".dist-info/" in path:
            continue
        try:
            status = stat(f"{site}/{path}")
        except OSError:
            yield row
            continue
        size = row[2] if len(row) > 2 else ""
        if status.st_mtime > written or (size.isdigit() and int(size) != status.st_size):
            yield row


def _check(distribution: Distribution, rows: Iterable[list[str]]) -> list[Finding]:
    site = Path(distribution.location).parent
    found = []
    for row in rows:
        path, (algorithm, _, wanted) = row[0], row[1].partition("=")
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
