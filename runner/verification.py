"""What was found when the processes of a cluster were compared with what is wanted: data, and one table."""

from __future__ import annotations

import html
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from envsync.plugins.compare import ERROR, FATAL, RANK, Difference
from envsync.runner.table import Row, rows, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.runner.processes import DaskProcess
    from envsync.runner.table import Paint

__all__ = ["Checked", "Verification", "in_words", "tell_let_in", "warn"]

_NOT_THEIRS = frozenset(
    ["asyncio", "concurrent", "distributed", "envsync", "functools", "threading", "tornado"]
)

_HEAD = ("", "", "wanted", "there", "where", "next step")


def in_words(differences: Sequence[Difference], *, few: int = 3) -> list[str]:
    """Return what differs, shortly, for one line: a few, and how many more there are; all if `few` is 0."""
    shown = differences[: few or None]
    parts = [f"{one.subject} {one.right or 'missing'}, not {one.left or 'there'}" for one in shown]
    return parts + ([f"and {len(differences) - len(shown)} more"] if len(shown) < len(differences) else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One process that was looked at.

    Attributes
    ----------
    kind : str
        ``"scheduler"``, ``"worker"`` or ``"client"``.
    process : str
        What it is called.
    differences : tuple of Difference
        How it differs, the worst first.
    trouble : str
        What went wrong with it; empty if nothing did.
    """

    kind: str
    process: str
    differences: tuple[Difference, ...] = ()
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "kind": self.kind,
            "process": self.process,
            "differences": [difference.to_dict() for difference in self.differences],
            "trouble": self.trouble,
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification:
    """How the processes of a cluster differ from what is wanted.

    Attributes
    ----------
    processes : tuple of Checked
        The scheduler, the workers, and the client where it was compared too.
    wanted : str
        What they were compared with.
    """

    processes: tuple[Checked, ...]
    wanted: str = ""

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All differences of all processes, the worst first."""
        found = [difference for one in self.processes for difference in one.differences]
        return tuple(sorted(found, key=lambda one: (RANK.get(one.severity, 9), one.subject, one.process)))

    @property
    def ok(self) -> bool:
        """Whether every process could be looked at and none differs in what tasks can reach."""
        return not any(
            one.trouble or any(difference.severity in (FATAL, ERROR) for difference in one.differences)
            for one in self.processes
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "ok": self.ok,
            "wanted": self.wanted,
            "processes": [one.to_dict() for one in self.processes],
        }

    def rows(self) -> list[Row]:
        """Return the table: identical differences of several processes are one row."""
        troubled = [
            Row(ERROR, one.process, "(all)", "a report", one.trouble, "look at its log")
            for one in self.processes
            if one.trouble
        ]
        return [*troubled, *rows(self.differences, [one.process for one in self.processes])]

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        counts = Counter(one.kind for one in self.processes)
        parts = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]
        who = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "no process"
        if self.ok:
            return f"{who}: {'usable' if self.differences else 'all as wanted'}"
        return f"{who}: not as wanted"

    def describe(
        self,
        wanted: str = "",
        there: str = "the cluster",
        paint: Paint = lambda text, _: text,
        *,
        singly: bool = False,
    ) -> str:
        """Return the table and the verdict.

        Parameters
        ----------
        wanted, there : str
            What the two sides are called.
        paint : callable
            Colours severities; see `envsync.runner.table.Paint`.
        singly : bool
            Whether processes are named, however many they are.
        """
        lines = [
            f"{paint(ERROR, ERROR)}: {one.process}: {one.trouble}" for one in self.processes if one.trouble
        ]
        if self.differences:
            names = [one.process for one in self.processes]
            lines += [
                table(
                    self.differences,
                    wanted or self.wanted or "the wanted environment",
                    there,
                    processes=names,
                    paint=paint,
                    singly=singly,
                )
            ]
        return "\n".join([*lines, self.summary()])

    def __str__(self) -> str:
        return self.describe()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = []
        for _, group in groupby(self.rows(), key=lambda row: (row.place, row.advice)):
            those = list(group)
            for number, row in enumerate(those):
                cells = [
                    _cell(text) for text in (row.severity, f"{row.subject} {row.note}", row.left, row.right)
                ]
                if number == 0:
                    cells += [_cell(text, rows=len(those)) for text in (row.place, row.advice)]
                lines.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(_cell(name, kind="th") for name in _HEAD)
        body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return f"{body if lines else ''}<p>{html.escape(self.summary())}</p>"


def tell_let_in(processes: Iterable[DaskProcess]) -> None:
    """Warn, once, about processes of a cluster that were let in although they differ."""
    told = [process for process in processes if process.differences]
    checked = tuple(Checked(kind=one.role, process=one.label, differences=one.differences) for one in told)
    for process in told:
        process.differences = ()
    verification = Verification(processes=checked)
    if not verification.ok:
        warn(verification)


def warn(verification: Verification) -> None:
    """Warn whoever called us: of their line, and not of one of ours or Dask's."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THEIRS:
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(str(verification), stacklevel=level)


def _cell(text: str, *, kind: str = "td", rows: int = 1) -> str:
    span = f" rowspan='{rows}'" if rows > 1 else ""
    return f"<{kind}{span} style='text-align: left; vertical-align: top'>{html.escape(text)}</{kind}>"
