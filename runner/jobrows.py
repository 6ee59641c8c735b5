"""How the jobs of a cluster stand, for people: as text, in a notebook, as data."""

from __future__ import annotations

import html
import io
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["JobTable", "MachineTable", "Row", "duration"]

_SHOWN = 20  # rows; of more than these only how many there are of a kind
_KINDS = 15  # rows of kinds; what they leave out is counted
_NODES = 3  # that are named of those of a kind
_PIPED = (110, 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job, for people.

    Attributes
    ----------
    name, id : str
        Of the cluster, and of the batch system.
    state, reason : str
        As the batch system says it; of a job that failed here, why.
    node : str
        Where it runs.
    left : float or None
        Seconds that it may still run.
    workers : int
        How many are there.
    restarts : int
        How often the batch system has started it again.
    group : str
        What it is one of; empty where a cluster has one kind of jobs.
    """

    name: str
    id: str
    state: str
    reason: str
    node: str
    left: float | None
    workers: int
    restarts: int = 0
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


class JobTable(tuple[Row, ...]):
    """Jobs, the oldest first: a tuple of `Row` that prints as a table, shortened where there are many."""

    __slots__ = ()
    noun = "job"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return plain JSON types, one dictionary for each row, as ``pandas.DataFrame`` takes them."""
        return [row.to_dict() for row in self]

    @property
    def summary(self) -> str:
        """How many there are of each state, such as ``"3 running, 97 pending (Resources)"``."""
        states = Counter(row.state for row in self)
        parts = []
        for state in sorted(states, key=_order):
            reasons = Counter(row.reason for row in self if row.state == state == "pending" and row.reason)
            why = (
                f" ({', '.join(_short(reason, 40) for reason, _ in reasons.most_common(3))})"
                if reasons
                else ""
            )
            parts.append(f"{states[state]} {state}{why}")
        return ", ".join(parts) or f"no {self.noun}s"

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def text(self, width: int | None = None) -> str:
        """Return the table.

        Parameters
        ----------
        width : int, optional
            Of the terminal, if not the one that there is.
        """
        if not self:
            return f"no {self.noun}s"
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        heads, rows = self._cells()
        for head in heads:
            long = head == "reason"
            table.add_column(
                head,
                justify="right" if head in _NUMBERS else "left",
                no_wrap=not long,
                overflow="fold",
                ratio=1 if long else None,
            )
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        file = io.StringIO()
        width = width or shutil.get_terminal_size(_PIPED).columns
        Console(file=file, width=width, color_system=None, force_terminal=False).print(table)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        return "\n".join([*lines, "", _count(self)])

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>no {self.noun}s</p>"
        heads, rows = self._cells()
        head = "".join(f"<th style='text-align: left'>{html.escape(one)}</th>" for one in heads)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align: left'>{html.escape(one)}</td>" for one in row) + "</tr>"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"{table}<p>{html.escape(_count(self))}</p>"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows: of each job, or of each kind where there are many."""
        grouped = any(row.group for row in self)
        again = any(row.restarts for row in self)
        if len(self) > _SHOWN:
            return _kinds(self, grouped, f"{self.noun}s")
        heads = [self.noun, "id", "state", "reason", "node", "left", "workers"]
        heads += ["restarts"] if again else []
        cells = [
            [
                *(row.name, row.id, row.state, row.reason, row.node, duration(row.left), str(row.workers)),
                *([str(row.restarts)] if again else []),
            ]
            for row in self
        ]
        return heads, cells


class MachineTable(JobTable):
    """Rented machines, which are no jobs of anybody's."""

    __slots__ = ()
    noun = "machine"


_NUMBERS = ("left", "workers", "restarts", "jobs", "machines")
_STATES = ("running", "pending")


def _kinds(rows: Sequence[Row], grouped: bool, what: str) -> tuple[list[str], list[list[str]]]:
    """Put those together that are of one group and state, and wait or ended for the same reason."""
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        reason = "" if row.state == "running" else row.reason
        kinds.setdefault((row.group, row.state, reason), []).append(row)
    order = sorted(kinds, key=lambda kind: (kind[0], _order(kind[1]), -len(kinds[kind])))
    cells = []
    for group, state, reason in order[:_KINDS]:
        those = kinds[group, state, reason]
        lefts = [row.left for row in those if row.left is not None]
        nodes = list(dict.fromkeys(row.node for row in those if row.node))
        more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
        cells.append(
            [
                *([group] if grouped else []),
                *(state, str(len(those)), reason, ", ".join(nodes[:_NODES]) + more),
                *(duration(min(lefts, default=None)), str(sum(row.workers for row in those))),
            ]
        )
    if left_out := order[_KINDS:]:
        number = sum(len(kinds[kind]) for kind in left_out)
        workers = str(sum(row.workers for kind in left_out for row in kinds[kind]))
        words = f"{len(left_out)} other reasons"
        cells.append([*([""] if grouped else []), *("", str(number), words, "", "", workers)])
    heads = [*(["group"] if grouped else []), "state", what, "reason", "nodes", "left", "workers"]
    return heads, cells


def _count(table: JobTable) -> str:
    workers = sum(row.workers for row in table)
    number = f"{len(table)} {table.noun}{'s' * (len(table) != 1)}"
    return f"{number}: {table.summary}; {workers} worker{'s' * (workers != 1)}"


def _order(state: str) -> tuple[int, str]:
    return (_STATES.index(state) if state in _STATES else len(_STATES), state)


def _short(text: str, limit: int) -> str:
    text = _printable(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _printable(text: str) -> str:
    """Return a batch system's words in a form that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def duration(seconds: float | None) -> str:
    """Return ``"1-02:00:00"`` or ``"3:59:20"``; nothing for None."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock:0>8}" if days else clock
