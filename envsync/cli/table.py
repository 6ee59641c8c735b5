"""Differences in a terminal's colours."""

from __future__ import annotations

import os

import click

__all__ = ["paint"]

_COLOURS = {"fatal": "red", "error": "red", "warning": "yellow", "note": "bright_black"}


def paint(text: str, severity: str) -> str:
    """Colour a severity, or the head of a table; see `envsync.runner.table.Paint`."""
    if "NO_COLOR" in os.environ:
        return text
    return click.style(text, fg=_COLOURS.get(severity), bold=severity in ("fatal", "head"))
