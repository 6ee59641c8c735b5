"""Tables in a terminal: of columns, and of differences in its colours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from envsync.cli.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["columns", "paint"]

_COLOURS = {"fatal": "red", "error": "red", "warning": "yellow", "note": "bright_black"}


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Return rows below a head, each column as wide as it has to be; cells may be of others' making.

    Parameters
    ----------
    head : sequence of str
        The columns' names.
    rows : sequence of sequence of str
        What stands in them.
    right : sequence of str
        Columns of numbers, which stand to the right.
    """
    lines = [tuple(head), *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    told = [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([paint(told[0], "head"), *told[1:]])


def paint(text: str, severity: str) -> str:
    """Colour a severity, or the head of a table; see `envsync.runner.table.Paint`."""
    if "NO_COLOR" in os.environ:
        return text
    return click.style(text, fg=_COLOURS.get(severity), bold=severity in ("fatal", "head"))
