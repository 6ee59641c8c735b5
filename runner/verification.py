"""What was found when the processes of a cluster were compared with what is wanted: data, and one table."""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envsync.plugins.compare import ERROR, FATAL, NOTE, WARNING, Difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Checked", "Verification", "table"]

_ORDER = {FATAL: 0, ERROR: 1, WARNING: 2, NOTE: 3}
_HEAD = ("severity", "where", "subject", "wanted", "there", "next step")


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
        Why it could not be looked at; empty if it could.
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
        return tuple(sorted(found, key=lambda one: (_ORDER.get(one.severity, 9), one.subject, one.process)))

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

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """Return the table: identical differences of several processes are one row."""
        totals = Counter(one.kind for one in self.processes)
        groups: dict[tuple[str, ...], list[tuple[Checked, Difference | None]]] = {}
        for one in self.processes:
            if one.trouble:
                groups.setdefault((ERROR, "", "", one.trouble, ""), []).append((one, None))
            for found in one.differences:
                key = (found.severity, found.subject, found.left or "-", found.right or "-", found.advice)
                groups.setdefault(key, []).append((one, found))
        rows = []
        for (severity, subject, left, right, advice), members in groups.items():
            if not subject:
                row = (severity, _where(members, totals), "(all)", "a report", right, "look at its log")
            else:
                row = (severity, _where(members, totals), subject, left, right, advice)
            rows.append(row)
        return sorted(rows, key=lambda row: (_ORDER.get(row[0], 9), row[2], row[1]))

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        counts = Counter(one.kind for one in self.processes)
        parts = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]
        who = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "no process"
        severities = Counter(row[0] for row in self.rows())
        if not severities:
            return f"{who}: all as wanted"
        found = ", ".join(f"{severities[name]} {name}" for name in _ORDER if severities[name])
        return f"{who}: {'usable' if self.ok else 'not as wanted'} ({found})"

    def __str__(self) -> str:
        rows = self.rows()
        return f"{table(rows)}\n{self.summary()}" if rows else self.summary()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            "<tr>"
            + "".join(f"<td style='text-align: left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self.rows()
        )
        head = "".join(f"<th style='text-align: left'>{name}</th>" for name in _HEAD)
        body = f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>" if cells else ""
        return f"{body}<p>{html.escape(self.summary())}</p>"


def table(rows: Sequence[Sequence[str]], width: int = 140) -> str:
    """Lay rows out as text, the last column wrapped within the width."""
    widths = [max(len(row[column]) for row in [_HEAD, *rows]) for column in range(len(_HEAD) - 1)]
    widths = [min(size, 34) for size in widths]
    last = max(24, width - sum(widths) - 2 * len(widths))
    lines = []
    for row in [_HEAD, *rows]:
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, [*widths, last], strict=True)]
        for index in range(max(map(len, cells))):
            parts = [cell[index] if index < len(cell) else "" for cell in cells]
            lines.append(
                "  ".join(f"{part:<{size}}" for part, size in zip(parts, [*widths, 0], strict=True)).rstrip()
            )
    return "\n".join(lines)


def _where(members: Iterable[tuple[Checked, Difference | None]], totals: Mapping[str, int]) -> str:
    """Name the processes of a row: singly while they are few, by number otherwise."""
    parts = []
    kinds: dict[str, list[tuple[Checked, Difference | None]]] = {}
    for one, found in members:
        kinds.setdefault(one.kind, []).append((one, found))
    for kind, those in kinds.items():
        if kind == "worker" and (len(those) > 2 or len(those) == totals[kind] > 1):
            parts.append(f"{len(those)} of {totals[kind]} workers")
        else:
            parts += [
                f"{one.process} on {found.where}"
                if found is not None and found.where and kind != "client"
                else one.process
                for one, found in those
            ]
    return ", ".join(parts)
