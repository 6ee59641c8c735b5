"""Progress in a notebook: a table below the cell, which takes a minute where machines are rented.

It is HTML that replaces itself (`update_display_data` of Jupyter's messaging protocol), and needs no widgets.
What is logged is logged as well.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from envsync.hooks import Hooks
from envsync.progress import Line, Lines
from envsync.runner.logged import LoggedHooks

__all__ = ["NotebookHooks", "hooks_here"]

_PATIENCE = 2.0  # seconds: what is quicker needs no table
_EVERY = 0.5  # seconds between two looks of it
_MOST = 12  # lines, and notes
_LEFT = 'style="text-align: left"'
_MARKS = {"done": "✓", "failed": "✗"}


def hooks_here() -> Hooks:
    """Return what hears of progress where no hooks were given: the logger, and in a notebook a table."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # a script, or a terminal
        return LoggedHooks()
    display: Any = importlib.import_module("IPython.display").display
    # now, while the cell runs that it belongs to; a console shows what is plain, and that is nothing
    shown = display({"text/html": "", "text/plain": ""}, raw=True, display_id=True)

    def show(table: str) -> None:
        with contextlib.suppress(Exception):  # a kernel of any kind may go away: no start fails by it
            shown.update({"text/html": table, "text/plain": ""}, raw=True)

    return NotebookHooks(show)


class NotebookHooks(Lines, LoggedHooks):
    """Shows a line for each host, and notes, until the start is over. What is quick is not shown.

    Parameters
    ----------
    show : callable
        Replaces what is shown by other HTML; must not raise.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show
        self._began = time.monotonic()
        self._notes: list[tuple[str, str]] = []
        self._over, self._well = threading.Event(), False
        self._drawing: threading.Thread | None = None

    def note(self, where: str, text: str) -> None:
        """See `Hooks.note`."""
        super().note(where, text)
        with self._lock:
            self._notes.append((where, text))

    def changed(self) -> None:
        """See `Lines.changed`."""
        with self._lock:
            if self._drawing is None and not self._over.is_set():
                self._drawing = threading.Thread(target=self._draw, name="envsync-progress", daemon=True)
                self._drawing.start()

    def over(self, *, well: bool) -> None:
        """See `Hooks.over`."""
        self._well = well
        self._over.set()

    def _draw(self) -> None:
        if self._over.wait(_PATIENCE):
            return
        while not self._over.wait(_EVERY):
            self._show(self._table())
        table, took = self._table(), f"started in {time.monotonic() - self._began:.0f} s"
        self._show(f"<details><summary>{took}</summary>{table}</details>" if self._well else table)

    def _table(self) -> str:
        now = time.monotonic()
        lines, left_out = _few(self.lines())
        rows = [
            _row(_MARKS.get(line.state, "…"), where, line.text, f"{line.lasted(now):.0f} s")
            for where, line in lines.items()
        ]
        if left_out:
            rows.append(_row("", "", left_out, ""))
        with self._lock:
            notes = self._notes[-_MOST:]
        said = "".join(f"<div>{html.escape(where)}: {html.escape(text)}</div>" for where, text in notes)
        return f"<table>{''.join(rows)}</table>{said}"


def _row(*cells: str) -> str:
    return "".join(["<tr>", *(f"<td {_LEFT}>{html.escape(cell)}</td>" for cell in cells), "</tr>"])


def _few(lines: dict[str, Line]) -> tuple[dict[str, Line], str]:
    """Return as many lines as one looks at, those that are done last, and a sentence about the others."""
    first = sorted(lines, key=lambda where: lines[where].state == "done")[:_MOST]
    others = [line.state for where, line in lines.items() if where not in first]
    if not others:
        return lines, ""
    done = others.count("done")
    shown = {where: line for where, line in lines.items() if where in first}
    return shown, f"and {len(others)} others, of which {done} are ready"
