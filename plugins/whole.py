"""Whether what is laid over a process is as it was laid: temp folders are swept by others too, or edited."""

from __future__ import annotations

import csv
import json
import os
from typing import Dict, Iterable, List, Tuple

from .disk import disturbed
from .unpack import site_of

__all__ = ["altered_here", "altered_in", "overlay_of"]

Altered = Dict[str, Tuple[List[str], List[str]]]
"""By distribution: its files that were written to, and those that are gone."""


def altered_here(folders: Iterable[str]) -> dict[str, str]:
    """Return what is the matter with distributions that these folders lay over: files altered or gone."""
    overlay = next(filter(None, map(overlay_of, folders)), "")
    return {name: _said(*files) for name, files in sorted(altered_in(overlay).items())} if overlay else {}


def altered_in(overlay: str) -> Altered:
    """Return the distributions of an overlay whose files are not as they were laid."""
    written, gone = disturbed(overlay)
    if not written and not gone:
        return {}
    owners = _owners(overlay)
    found: Altered = {}
    for kind, paths in enumerate((written, gone)):
        for path in paths:
            # what belongs to none (`.seen`, a RECORD that is gone) is known of none
            for name in owners.get(path) or {name for names in owners.values() for name in names}:
                found.setdefault(name, ([], []))[kind].append(path)
    return found


def overlay_of(site: str) -> str:
    """Return the overlay that a folder of packages is in, "" if it is none."""
    tail = os.sep + site_of()
    return site[: -len(tail)] if site.endswith(tail) else ""


def _owners(overlay: str) -> dict[str, list[str]]:
    """Return by file the distributions that have it."""
    try:
        with open(f"{overlay}/overlay.json", encoding="utf-8") as file:
            packages = json.load(file)["packages"]
    except (OSError, ValueError, KeyError):
        return {}
    owners: dict[str, list[str]] = {}
    for name, one in packages.items():
        info = f"{site_of()}/{one['info']}"
        paths = [f"{one['info']}/RECORD"]
        try:
            with open(f"{overlay}/{info}/RECORD", encoding="utf-8", newline="") as file:
                paths += [row[0] for row in csv.reader(file) if row]
        except (OSError, ValueError, csv.Error):
            pass
        for path in paths:
            owners.setdefault(os.path.normpath(f"{site_of()}/{path}"), []).append(name)
    return owners


def _said(written: list[str], gone: list[str]) -> str:
    def said(files: list[str], how: str) -> str:
        name = os.path.relpath(files[0], site_of())
        shown = name if name.isprintable() else ascii(name)
        return f"{len(files)} file{'s' * (len(files) > 1)} {how} ({shown})"

    parts = [said(files, how) for files, how in ((written, "altered"), (gone, "gone")) if files]
    return ", ".join(parts)
