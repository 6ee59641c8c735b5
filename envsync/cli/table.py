"""Differences as a table that a person can read, however wide the terminal."""

from __future__ import annotations

import os
import shutil
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

import click

from envsync.cli.output import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.plugins.compare import Difference

__all__ = ["count", "table"]

_COLOURS = {"fatal": "red", "error": "red", "warning": "yellow", "note": "bright_black"}
_ORDER = tuple(_COLOURS)
_SEVERITY = max(map(len, _ORDER))
_SUBJECT = 30  # characters of a package's name, before its line has a column of its own
_PIPED = (100, 24)
_PLAIN = ("version", "python", "missing", "extra")  # what the two columns show by themselves
_KINDS = {"source": "local code", "content": "other files", "imported": "as imported"}

_Key = tuple[str, str, str, str, str, str]  # severity, advice, subject, kind, left, right


def table(
    differences: Iterable[Difference],
    left: str,
    right: str,
    *,
    processes: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Return one line for each difference, the worst first, where it is, and what to do about it.

    What is the same for several processes is one line; what is to be done about several differences is said
    once, below them.

    Parameters
    ----------
    differences : iterable of Difference
        Of one comparison or of several.
    left, right : str
        What the two sides are called: what is wanted, and what is there.
    processes : sequence of str
        All that were compared, where a side is a cluster.
    width : int, optional
        Of the terminal, if not the one that there is.
    """
    rows: dict[_Key, dict[str, str]] = {}
    for one in differences:
        key = (one.severity, one.advice, one.subject, one.kind, one.left or "-", one.right or "-")
        rows.setdefault(key, {})[one.process] = one.where
    if not rows:
        return f"no difference between {left} and {right}"
    width = width or shutil.get_terminal_size(_PIPED).columns
    keys = sorted(rows, key=lambda key: (_rank(key[0]), _first_of(key, rows), key[2:4]))
    subject = min(max(len(key[2]) for key in keys), _SUBJECT)
    side = max(12, (width - _SEVERITY - subject - 8) // 2)
    first = min(side, max(len("wanted"), *(len(key[4]) for key in keys if len(key[4]) <= side), 0))
    lines = [f"wanted: {left}", f"there:  {right}", ""]
    lines.append(click.style(f"{'':{_SEVERITY}}  {'':{subject}}  {'wanted':{first}}  there", bold=True))
    indent = " " * (_SEVERITY + 2)
    for (advice, place), those in groupby(keys, key=lambda key: (key[1], _place(rows[key], processes))):
        for key in those:
            lines += _row(key, subject, first, width)
        if place:
            lines += textwrap.wrap(f"in {place}", width, initial_indent=indent, subsequent_indent=indent)
        if advice:
            lines += textwrap.wrap(
                f"-> {advice}", width, initial_indent=indent, subsequent_indent=indent + "   "
            )
    text = "\n".join([*lines, "", count(key[0] for key in keys)])
    return click.unstyle(text) if "NO_COLOR" in os.environ else text


def count(severities: Iterable[str]) -> str:
    """Return ``"3 differences: 1 error, 2 notes"``."""
    found = list(severities)
    parts = [
        plural(found.count(one), one, "fatal" if one == "fatal" else "") for one in _ORDER if one in found
    ]
    return f"{plural(len(found), 'difference')}: {', '.join(parts)}"


def _rank(severity: str) -> int:
    return _ORDER.index(severity) if severity in _ORDER else 0


def _first_of(key: _Key, rows: Iterable[_Key]) -> str:
    """Return the first subject of those with the same advice: they stand together."""
    return min(other[2] for other in rows if other[:2] == key[:2])


def _row(key: _Key, subject: int, first: int, width: int) -> list[str]:
    """Return a difference in one line, or in more where that would be too long."""
    severity, _, name, kind, left, right = key
    note = "" if kind in _PLAIN else f"  ({_KINDS.get(kind, kind)})"
    begin = f"{severity:{_SEVERITY}}  {name:{subject}}"
    line = f"{begin}  {left:{first}}  {right}{note}"
    short = len(name) <= subject and len(left) <= first and len(line) <= width
    indent = " " * (_SEVERITY + 4)
    lines = [line] if short else [f"{begin}{note}", f"{indent}wanted  {left}", f"{indent}there   {right}"]
    styled = click.style(severity, fg=_COLOURS.get(severity), bold=severity == "fatal")
    return [styled + lines[0][len(severity) :], *lines[1:]]


def _place(found: dict[str, str], processes: Sequence[str]) -> str:
    """Name the processes that a difference was found in: singly while they are few."""
    if not any(found):
        return ", ".join(sorted({where for where in found.values() if where}))
    if len(found) == len(processes) > 1:
        return f"all {len(processes)} processes"
    workers = {name for name in found if name.startswith("worker")}
    total = sum(name.startswith("worker") for name in processes)
    together = workers if len(workers) > 2 or 1 < len(workers) == total else set()
    parts = [f"{name} on {where}" if where else name for name, where in found.items() if name not in together]
    if together:
        parts.append(f"{len(together)} of {total} workers" if total else f"{len(together)} workers")
    return ", ".join(parts)
