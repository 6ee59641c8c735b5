"""Differences as a table that a person can read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.plugins.compare import Difference

__all__ = ["table"]

_COLOURS = {"fatal": "red", "error": "red", "warning": "yellow", "note": "bright_black"}
_ORDER = tuple(_COLOURS)
_WIDEST = 44  # characters of one side's column


def table(differences: Sequence[Difference], left: str, right: str) -> str:
    """Return one line for each difference, the worst first, and what to do about it.

    What is the same for several processes is one line that counts them.

    Parameters
    ----------
    differences : sequence of Difference
        Of one comparison or of several.
    left, right : str
        What the two sides are called.
    """
    if not differences:
        return f"no difference between {left} and {right}"
    places: dict[tuple[str, ...], list[str]] = {}
    for one in differences:
        key: tuple[str, ...] = (
            one.severity,
            one.subject,
            _kind(one),
            _side(one.left),
            _side(one.right),
            one.advice,
        )
        place = " ".join(part for part in (one.where, one.process) if part)
        places.setdefault(key, [])
        if place and place not in places[key]:
            places[key].append(place)
    keys = sorted(places, key=lambda key: (_ORDER.index(key[0]) if key[0] in _ORDER else 0, key[1:3]))
    rows = [("", "", "", left, right), *((key[0], key[1], key[2], key[3], key[4]) for key in keys)]
    widths = [min(max(len(row[column]) for row in rows), _WIDEST) for column in range(5)]
    lines = [click.style(_line(rows[0], widths), bold=True)]
    for key, row in zip(keys, rows[1:], strict=True):
        text = _line(row, widths)
        cut = len(row[0])
        lines.append(click.style(text[:cut], fg=_COLOURS.get(row[0]), bold=row[0] == "fatal") + text[cut:])
        lines += [f"{'':{widths[0]}}    on {text}" for text in _together(places[key])]
        if key[5]:
            lines.append(f"{'':{widths[0]}}    {key[5]}")
    text = "\n".join([*lines, summary([key[0] for key in keys])])
    return click.unstyle(text) if "NO_COLOR" in os.environ else text


def summary(severities: Sequence[str]) -> str:
    """Return ``"3 differences: 1 error, 2 notes"``."""
    if not severities:
        return "no differences"
    counts = [(severities.count(one), one) for one in _ORDER if one in severities]
    parts = [f"{count} {one}{'s' if count > 1 and one != 'fatal' else ''}" for count, one in counts]
    return f"{len(severities)} difference{'s' if len(severities) > 1 else ''}: " + ", ".join(parts)


def _kind(difference: Difference) -> str:
    return "" if difference.kind in ("version", "python") else difference.kind


def _side(value: object) -> str:
    return "-" if value in (None, "") else str(value)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        f"{cell if len(cell) <= width else cell[: width - 1] + '…':{width}}"
        for cell, width in zip(row, widths, strict=True)
    ]
    return "  ".join(cell for cell, width in zip(cells, widths, strict=True) if width).rstrip()


def _together(places: Sequence[str]) -> list[str]:
    """One line for a few places, a count for many."""
    if len(places) <= 2:
        return [", ".join(places)] if places else []
    return [f"{places[0]} and {len(places) - 1} more"]
