"""Progress: live in a terminal, lines elsewhere, JSON for scripts. Differences and errors, for people."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import click
import pytest
from rich.console import Console

from envsync import errors
from envsync.cli.display import JsonLines, Live, LogLines, Plain
from envsync.cli.output import Output, _scrubbed, exit_code, say_error, watch
from envsync.hooks import Hooks
from envsync.plugins.compare import Difference
from envsync.runner.table import table


def report(hooks: Hooks) -> None:
    """What two hosts may have to tell."""
    hooks.step("node1", "connecting")
    hooks.done("node1", "connected", 0.26)
    hooks.step("node1", "installing 34 packages")
    hooks.progress("node1", 42_000_000, 84_000_000, "B")
    hooks.step("node2", "connecting")
    hooks.warning("node2", "its clock is an hour late")
    hooks.note("here", "toolz 1.0 is left out: a legacy egg")
    hooks.done("node1", "installed 34 packages", 1.23)
    hooks.failed("node2", "no route to host\nand more")


def test_plain_lines() -> None:
    stream = io.StringIO()
    report(Plain(stream))
    assert stream.getvalue().splitlines() == [
        "node1: connecting",
        "node1: connected: done in 0.3 s",
        "node1: installing 34 packages",
        "node2: connecting",
        "node2: warning: its clock is an hour late",
        "here: toolz 1.0 is left out: a legacy egg",
        "node1: installed 34 packages: done in 1.2 s",
        "node2: FAILED: no route to host",
        "and more",
    ]


def test_plain_lines_tell_progress_now_and_then_only() -> None:
    stream = io.StringIO()
    hooks = Plain(stream, every=3600)
    hooks.step("node1", "sending")
    for done in range(1000):
        hooks.progress("node1", done, 1000, "files")
    assert stream.getvalue() == "node1: sending\n"
    often = Plain(stream, every=0)
    often.progress("node1", 7, 10, "files")
    assert stream.getvalue().endswith("node1: 7 of 10 files\n")


def test_json_lines() -> None:
    stream = io.StringIO()
    report(JsonLines(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "step", "where": "node1", "what": "connecting"}
    assert {"event": "done", "where": "node1", "what": "installed 34 packages", "seconds": 1.23} in events
    assert events[-1] == {"event": "failed", "where": "node2", "why": "no route to host\nand more"}


def test_what_libraries_log_is_json_too() -> None:
    stream = io.StringIO()
    logger = logging.Logger("urllib3")
    logger.addHandler(LogLines(stream))
    logger.warning("a connection %s", "broke\nand came back")
    assert json.loads(stream.getvalue()) == {
        "event": "log",
        "level": "warning",
        "text": "a connection broke\nand came back",
    }


def test_what_distributed_leaves_in_a_loop_that_ends_is_nobodys_business(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def leave(error: Exception) -> None:
        loop = asyncio.new_event_loop()
        loop.create_future().set_exception(error)
        loop.close()
        gc.collect()

    with click.Context(click.Command("sync"), obj=Output()), watch():
        leave(TimeoutError("Timeout"))
        assert caplog.messages == []
        leave(OSError("a disk broke"))
    assert "a disk broke" in caplog.text


def test_live_has_one_line_for_each_host() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Live(console) as live:
        live.step("node1", "connecting")
        live.progress("node1", 1, 4, "packages")
        report(live)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    last = click.unstyle(shown).rstrip().splitlines()[-2:]
    assert last[0].split("  ")[0].startswith("✓ node1 installed 34 packages")
    assert last[0].rstrip().endswith("1.2 s")
    assert last[1].startswith("✗ node2 no route to host")
    assert "! node2: its clock is an hour late" in click.unstyle(shown)


def test_live_keeps_colours_out_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Live(console) as live:
        report(live)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[31m" not in console.file.getvalue()
    assert "\x1b[32m" not in console.file.getvalue()


def difference(severity: str = "error", **rest: str) -> Difference:
    fields = {"kind": "version", "subject": "pandas", "left": "2.2.1", "right": "2.1.0", **rest}
    return Difference(severity=severity, **fields)


DIFFERENCES = [
    difference("fatal", kind="python", subject="python", left="3.11.7", right="3.10.2", process="scheduler"),
    difference(where="node1", process="worker 1", advice="Install it there."),
    difference(where="node1", process="worker 2", advice="Install it there."),
    difference(where="node2", process="worker 3", advice="Install it there."),
    difference(subject="toolz", where="node2", process="worker 3", advice="Rename a module."),
    difference(
        "error", kind="source", subject="mine", right="", process="scheduler", advice="Rename a module."
    ),
    difference("note", kind="extra", subject="zict", left="", right="1.0"),
]
TABLE = """\
wanted: this environment
there:  cluster

                 wanted  there
fatal    python  3.11.7  3.10.2
         in scheduler
error    mine    2.2.1   -  (local code)
         in scheduler
         -> Rename a module.
error    toolz   2.2.1   2.1.0
         in worker 3 on node2
         -> Rename a module.
error    pandas  2.2.1   2.1.0
         in 3 of 4 workers
         -> Install it there.
note     zict    -       1.0

5 differences: 1 fatal, 3 errors, 1 note"""


def test_the_table_has_both_sides_the_places_and_the_advice() -> None:
    processes = ["scheduler", *(f"worker {number}" for number in range(4))]
    shown = click.unstyle(table(DIFFERENCES, "this environment", "cluster", processes=processes, width=80))
    assert shown == TABLE


def test_advice_for_several_is_said_once() -> None:
    several = [difference(subject=name, advice="Install it there.") for name in ("a", "b", "c")]
    shown = click.unstyle(table(several, "here", "there", width=80))
    assert shown.count("Install it there.") == 1
    assert [line[:10] for line in shown.splitlines()[4:8]] == [
        *(f"error    {one}" for one in "abc"),
        " " * 9 + "-",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_keeps_within_the_terminal(width: int) -> None:
    path = "/opt/conda/envs/prod/lib/python3.11/site-packages/x.py"
    long = difference(kind="shadowed", subject="requests", left=path, right=path, advice="word " * 40)
    lines = click.unstyle(table([*DIFFERENCES, long], "a", "b", width=width)).splitlines()
    assert max(len(line) for line in lines if path not in line) <= width
    assert sum(line.count(path) for line in lines) == 2


def test_all_processes_are_named_so() -> None:
    everywhere = [difference(process=name) for name in ("scheduler", "worker 0", "worker 1")]
    processes = [one.process for one in everywhere]
    assert "in all 3 processes" in table(everywhere, "a", "b", processes=processes)
    workers = [difference(process=name) for name in ("worker 0", "worker 1")]
    assert "in 2 of 2 workers" in table(workers, "a", "b", processes=processes)
    assert "in worker 0" in table(workers[:1], "a", "b", processes=processes)


def test_no_difference_is_said_too() -> None:
    assert table([], "here", "node1") == "no difference between here and node1"


ERRORS = [
    (errors.CaptureError, 3),
    (errors.LockVersionError, 3),
    (errors.NoWheelError, 3),
    (errors.BuildError, 3),
    (errors.CorruptBlobError, 3),
    (errors.ToolError, 3),
    (errors.HostKeyError, 4),
    (errors.CommandError, 4),
    (errors.RealiseError, 4),
    (errors.ProcessDied, 5),
    (errors.StartTimeout, 5),
    (errors.MismatchError, 1),
]


@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_exit_codes(kind: type[errors.EnvsyncError], code: int) -> None:
    error = kind("no", where="node1", hint="try again")
    assert exit_code(error) == code
    # these answer a question with 0 or 1: whatever kept them from looking is 2
    assert exit_code(error, "check") == exit_code(error, "diff") == 2


def test_errors_say_what_where_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.MismatchError("they differ", where="node1", hint="Start anew.", differences=[difference()])
    say_error(error, Output())
    assert capsys.readouterr().err == "error: node1: they differ\n  Start anew.\n"
    say_error(error, Output(json=True))
    said = json.loads(capsys.readouterr().err)
    assert said["kind"] == "MismatchError"
    assert (said["message"], said["where"], said["hint"]) == ("they differ", "node1", "Start anew.")
    assert said["differences"][0]["subject"] == "pandas"


class Halting(io.StringIO):
    """A stream that takes what it is given in two pieces, as a pipe may."""

    def write(self, text: str) -> int:
        for piece in (text[:5], text[5:]):
            super().write(piece)
            time.sleep(0.001)
        return len(text)


@pytest.mark.parametrize("kind", [JsonLines, Plain])
def test_lines_of_several_threads_stay_whole(kind: type[JsonLines] | type[Plain]) -> None:
    stream = Halting()
    hooks = kind(stream)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: hooks.note(f"node{number}", "here"), range(40)))
    lines = stream.getvalue().splitlines()
    if kind is JsonLines:
        lines = [f"{event['where']}: {event['text']}" for event in map(json.loads, lines)]
    assert sorted(lines) == sorted(f"node{number}: here" for number in range(40))


def test_live_takes_several_threads() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Live(console) as live, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: report(live), range(20)))
    assert isinstance(console.file, io.StringIO)
    assert click.unstyle(console.file.getvalue()).count("! node2: its clock is an hour late") == 20


def test_tracebacks_and_log_lines_have_no_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    """What libraries say of URLs is not ours."""
    url = "http://me:w0rdcanary@127.0.0.1:9/v3"
    try:
        raise errors.EnvsyncError("it does not answer") from ValueError(f"{url} \x1b[2J")
    except errors.EnvsyncError as error:
        say_error(error, Output(verbose=True))
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "127.0.0.1:9/v3 \\x1b[2J" in said
    record = logging.makeLogRecord({"name": "lib", "msg": "asking %s", "args": (url,)})
    assert _scrubbed(record)
    assert record.getMessage() == "asking http://***@127.0.0.1:9/v3"
    assert "w0rdcanary" not in said
