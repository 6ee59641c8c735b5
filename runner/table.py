"""Differences as a table that a person can read, however wide the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from envsync.plugins.compare import RANK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.plugins.compare import Difference

__all__ = ["Paint", "Row", "count", "rows", "table"]

Paint = Callable[[str, str], str]
"""Gives a text the colour of a severity, or of ``"head"``."""

_SEVERITY = max(map(len, RANK))
_SUBJECT = 30  # characters of a package's name, before its line has a column of its own
_PIPED = (100, 24)
_PLAIN = ("version", "python", "missing", "extra")  # what the two columns show by themselves
_KINDS = {"source": "local code", "content": "other files", "imported": "as imported"}


@dataclass(frozen=True, slots=True)
class Row:
    """What is the same for all processes in `place`."""

    severity: str
    place: str
    subject: str
    left: str
    right: str
    advice: str
    kind: str = ""

    @property
    def note(self) -> str:
        """What the two sides do not show by themselves, in brackets."""
        return "" if self.kind in _PLAIN else f"({_KINDS.get(self.kind, self.kind)})"


def rows(
    differences: Iterable[Difference], processes: Sequence[str] = (), *, singly: bool = False
) -> list[Row]:
    """Put what is the same for several processes together, the worst first, and the same advice together.

    Parameters
    ----------
    differences : iterable of Difference
        Of one comparison or of several.
    processes : sequence of str
        All that were compared, where a side is a cluster.
    singly : bool
        Whether they are named, however many they are.
    """
    found: dict[tuple[str, str, str, str, str, str], dict[str, str]] = {}
    for one in differences:
        key = (one.severity, one.advice, one.subject, one.kind, one.left or "-", one.right or "-")
        found.setdefault(key, {})[one.process] = one.where
    first: dict[tuple[str, str], str] = {}  # of those with the same advice, which stand together
    for severity, advice, subject, *_ in found:
        first[severity, advice] = min(subject, first.get((severity, advice), subject))
    return [
        Row(
            key[0],
            _place(found[key], () if singly else processes, singly),
            key[2],
            key[4],
            key[5],
            key[1],
            key[3],
        )
        for key in sorted(found, key=lambda key: (_rank(key[0]), first[key[:2]], key[2:4]))
    ]


def table(
    differences: Iterable[Difference],
    left: str,
    right: str,
    *,
    processes: Sequence[str] = (),
    width: int | None = None,
    paint: Paint = lambda text, _: text,
    singly: bool = False,
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
    paint : callable
        Colours severities and the head; plain text if not given.
    singly : bool
        Whether processes are named, however many they are.
    """
    found = rows(differences, processes, singly=singly)
    if not found:
        return f"no difference between {left} and {right}"
    width = width or shutil.get_terminal_size(_PIPED).columns
    subject = min(max(len(row.subject) for row in found), _SUBJECT)
    side = max(12, (width - _SEVERITY - subject - 8) // 2)
    first = min(side, max(len("wanted"), *(len(row.left) for row in found if len(row.left) <= side), 0))
    lines = [f"wanted: {left}", f"there:  {right}", ""]
    lines.append(paint(f"{'':{_SEVERITY}}  {'':{subject}}  {'wanted':{first}}  there", "head"))
    indent = " " * (_SEVERITY + 2)
    for (advice, place), those in groupby(found, key=lambda row: (row.advice, row.place)):
        for row in those:
            lines += _lines(row, subject, first, width, paint)
        if place:
            lines += textwrap.wrap(f"in {place}", width, initial_indent=indent, subsequent_indent=indent)
        if advice:
            lines += textwrap.wrap(
                f"-> {advice}", width, initial_indent=indent, subsequent_indent=indent + "   "
            )
    return "\n".join([*lines, "", count(row.severity for row in found)])


def count(severities: Iterable[str]) -> str:
    """Return ``"3 differences: 1 error, 2 notes"``."""
    found = list(severities)
    parts = [_plural(found.count(one), one, "" if one == "fatal" else "s") for one in RANK if one in found]
    return f"{_plural(len(found), 'difference')}: {', '.join(parts)}"


def _plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending * (number != 1)}"


def _rank(severity: str) -> int:
    return RANK.get(severity, 0)


def _lines(row: Row, subject: int, first: int, width: int, paint: Paint) -> list[str]:
    """Return a difference in one line, or in more where that would be too long."""
    note = f"  {row.note}" if row.note else ""
    begin = f"{row.severity:{_SEVERITY}}  {row.subject:{subject}}"
    line = f"{begin}  {row.left:{first}}  {row.right}{note}"
    short = len(row.subject) <= subject and len(row.left) <= first and len(line) <= width
    indent = " " * (_SEVERITY + 4)
    lines = (
        [line] if short else [f"{begin}{note}", f"{indent}wanted  {row.left}", f"{indent}there   {row.right}"]
    )
    return [paint(row.severity, row.severity) + lines[0][len(row.severity) :], *lines[1:]]


def _place(found: dict[str, str], processes: Sequence[str], singly: bool) -> str:
    """Name the processes that a difference was found in: singly while they are few."""
    if not any(found):
        return ", ".join(sorted({where for where in found.values() if where}))
    if len(found) == len(processes) > 1:
        return f"all {len(processes)} processes"
    workers = {name for name in found if name.startswith("worker")}
    total = sum(name.startswith("worker") for name in processes)
    together = set() if singly else workers if len(workers) > 2 or 1 < len(workers) == total else set()
    parts = [f"{name} on {where}" if where else name for name, where in found.items() if name not in together]
    if together:
        parts.append(f"{len(together)} of {total} workers" if total else f"{len(together)} workers")
    return ", ".join(parts)
