"""Which installed files are no longer what their RECORD says (PEP 376)."""

from __future__ import annotations

import base64
import csv
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.snapshot import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envsync.snapshot import Distribution

__all__ = ["edited_files"]


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


def _edited(distribution: Distribution) -> list[Finding]:
    info = Path(distribution.location)
    found = []
    with (info / "RECORD").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            if len(row) < 2 or not row[1]:
                continue
            path, (algorithm, _, wanted) = row[0], row[1].partition("=")
            try:
                with (info.parent / path).open("rb") as content:
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
