"""Run things in turns and keep the medians: what slows one down slows the others down too."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROUNDS = 5
WARM_UPS = 1

Action = Callable[[], float]
"""Does a thing once and returns how many seconds of it count."""


@dataclass
class Row:
    """One line of a table.

    Attributes
    ----------
    name : str
        What was timed.
    times : list of float
        Seconds.
    trouble : str
        Why there are none.
    """

    name: str
    times: list[float] = field(default_factory=list)
    trouble: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("nan")


@dataclass
class Table:
    """What was compared, the first row with all others.

    Attributes
    ----------
    title : str
    target : str
        What envsync means to reach.
    rows : list of Row
        envsync's first.
    notes : list of str
    unit : str
        Of what was measured.
    """

    title: str
    target: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    unit: str = "s"

    def markdown(self) -> str:
        ours = self.rows[0].median
        lines = [f"### {self.title}", "", "| | median | range | envsync takes |", "|---|---|---|---|"]
        for index, row in enumerate(self.rows):
            if not row.times:
                lines.append(f"| {row.name} | - | - | {row.trouble} |")
                continue
            ratio = f"{ours / row.median:.2f}x" if index and ours == ours else ""
            span = f"{min(row.times):.3f} - {max(row.times):.3f}" if len(row.times) > 1 else "once"
            lines.append(f"| {row.name} | {row.median:.3f} {self.unit} | {span} | {ratio} |")
        lines += ["", f"To reach: {self.target}."]
        return "\n".join([*lines, *(f"{note}" for note in self.notes)])


def compare(actions: Mapping[str, Action], *, rounds: int = ROUNDS, warm_ups: int = WARM_UPS) -> list[Row]:
    """Time actions in turns.

    Parameters
    ----------
    actions : mapping of str to callable
        What is timed, by name.
    rounds : int
        How often each counts.
    warm_ups : int
        How often each runs before.
    """
    rows = {name: Row(name) for name in actions}
    for turn in range(warm_ups + rounds):
        for name, action in actions.items():
            row = rows[name]
            if row.trouble:
                continue
            try:
                seconds = action()
            except Exception as error:  # noqa: BLE001 - one tool's failure is a line of the table
                row.trouble = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                row.times.clear()
                continue
            if turn >= warm_ups:
                row.times.append(seconds)
    return list(rows.values())


def command(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    before: Callable[[], object] | None = None,
) -> Action:
    """Return an action that runs a command to its end; `before` is not timed."""

    def act() -> float:
        if before is not None:
            before()
        with tempfile.TemporaryFile() as said:
            began = time.perf_counter()
            done = subprocess.run(
                arguments,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                check=False,
            )
            seconds = time.perf_counter() - began
            if done.returncode != 0:
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-3:]
                raise RuntimeError(" / ".join(last) or f"status {done.returncode}")
        return seconds

    return act
