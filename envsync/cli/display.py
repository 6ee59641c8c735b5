"""Progress, shown three ways: live lines in a terminal, plain lines elsewhere, JSON lines for scripts."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from envsync.cli.terminal import harmless, one_line
from envsync.hooks import Hooks
from envsync.progress import Lines, amount

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TextIO

    from rich.console import Console, RenderableType
    from rich.live import Live as RichLive
    from rich.spinner import Spinner
    from typing_extensions import Self

__all__ = ["JsonLines", "Live", "LogLines", "Plain"]

_REFRESH = 10  # times a second


class JsonLines(Hooks):
    """One JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def _write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def step(self, where: str, what: str) -> None:
        self._write("step", where=where, what=what)

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        self._write("progress", where=where, done=done, total=total, unit=unit)

    def done(self, where: str, what: str, seconds: float) -> None:
        self._write("done", where=where, what=what, seconds=round(seconds, 3))

    def failed(self, where: str, why: str) -> None:
        self._write("failed", where=where, why=why)

    def note(self, where: str, text: str) -> None:
        self._write("note", where=where, text=text)

    def warning(self, where: str, text: str) -> None:
        self._write("warning", where=where, text=text)

    def log(self, level: str, text: str) -> None:
        """Tell what a library logs."""
        self._write("log", level=level, text=text)


class LogLines(logging.Handler):
    """What libraries log as JSON lines too: whoever reads these can read all of stderr.

    Parameters
    ----------
    stream : text stream
        Usually stderr.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._lines = JsonLines(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self._lines.log(record.levelname.lower(), self.format(record))


class Plain(Hooks):
    """One line for each thing that begins or ends, and for long ones every few seconds.

    Parameters
    ----------
    stream : text stream
        Usually stderr.
    every : float
        Seconds between two lines of progress.
    """

    def __init__(self, stream: TextIO, *, every: float = 5.0) -> None:
        self._stream = stream
        self._every = every
        self._spoke: dict[str, float] = {}
        self._lock = threading.Lock()

    def _write(self, where: str, text: str) -> None:
        with self._lock:
            self._spoke[where] = time.monotonic()
            self._stream.write(harmless(f"{where}: {text}\n"))
            self._stream.flush()

    def step(self, where: str, what: str) -> None:
        self._write(where, what)

    def progress(self, where: str, done: int, total: int, unit: str) -> None:
        if time.monotonic() - self._spoke.get(where, 0.0) >= self._every:
            self._write(where, amount(done, total, unit))

    def done(self, where: str, what: str, seconds: float) -> None:
        self._write(where, f"{what}: done in {seconds:.1f} s")

    def failed(self, where: str, why: str) -> None:
        self._write(where, f"FAILED: {why}")

    def note(self, where: str, text: str) -> None:
        self._write(where, text)

    def warning(self, where: str, text: str) -> None:
        self._write(where, f"warning: {text}")


class Live(Lines):
    """One line per host, redrawn in place; notes and warnings scroll above them.

    What draws is imported and started when there is something to show: often there is nothing.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to draw; stderr if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._given = console
        self._spinners: dict[str, Spinner] = {}
        self._starting = threading.Lock()
        self._live: RichLive | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._starting:
            if self._live is not None:
                self._live.stop()

    def _drawing(self) -> Console:
        """Return where to draw, the lines drawn there from now on."""
        with self._starting:
            if self._live is None:
                from rich.console import Console
                from rich.live import Live as RichLive

                console = self._given or Console(stderr=True)
                self._live = RichLive(
                    get_renderable=self._render, console=console, refresh_per_second=_REFRESH, transient=False
                )
                self._live.start()
            return self._live.console

    def _render(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(width=20)
        table.add_column(justify="right", no_wrap=True)
        now = time.monotonic()
        for where, line in self.lines().items():
            mark: RenderableType
            if line.state == "done":
                mark = Text("✓", style="green")
            elif line.state == "failed":
                mark = Text("✗", style="red")
            else:
                mark = self._spinners.setdefault(where, Spinner("dots", style="cyan"))
            bar: RenderableType = ""
            if line.state == "running" and line.fraction is not None:
                bar = ProgressBar(total=1.0, completed=line.fraction, width=20)
            style = "red" if line.state == "failed" else ""
            text, seconds = one_line(line.text), line.lasted(now)
            table.add_row(mark, Text(one_line(where)), Text(text, style=style), bar, f"{seconds:.1f} s")
        return table

    def changed(self) -> None:
        """See `Lines.changed`."""
        self._drawing()

    def note(self, where: str, text: str) -> None:
        from rich.text import Text

        self._drawing().print(Text(harmless(f"  {where}: {text}"), style="dim"))

    def warning(self, where: str, text: str) -> None:
        from rich.text import Text

        self._drawing().print(Text(harmless(f"! {where}: {text}"), style="yellow"))
