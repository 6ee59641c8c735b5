"""How a command speaks: the options that all of them take, messages of errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envsync import errors
from envsync.cli.terminal import harmless
from envsync.hooks import Hooks

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator
    from types import FrameType

    _F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "Output",
    "cache_option",
    "current",
    "exit_code",
    "output_options",
    "plural",
    "result",
    "say_ended",
    "say_error",
    "terminated_as_interrupted",
    "watch",
]

_LOOKING = frozenset({"diff", "check"})  # commands whose exit code 1 answers a question
_CODES: tuple[tuple[type[errors.EnvsyncError], int], ...] = (
    (errors.MismatchError, 1),
    (errors.HostError, 4),
    (errors.AgentError, 4),
    (errors.RegistryError, 4),
    (errors.ClusterError, 5),
)


@dataclass
class Output:
    """What the user asked of our output.

    Attributes
    ----------
    quiet : bool
        Nothing but results and errors.
    json : bool
        Results as one JSON document on stdout; progress and errors as JSON lines on stderr.
    verbose : bool
        Log lines of the libraries beneath, and tracebacks.
    """

    quiet: bool = False
    json: bool = False
    verbose: bool = False


def current() -> Output:
    """Return the output settings of the command that runs."""
    output = click.get_current_context().ensure_object(Output)
    assert isinstance(output, Output)
    return output


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        assert parameter.name is not None
        setattr(ctx.ensure_object(Output), parameter.name, True)


def output_options(function: _F) -> _F:
    """Add ``--quiet``, ``--json`` and ``--verbose``; they may stand before or after the command's name."""
    options = [
        ("-q", "--quiet", "Say nothing but results and errors."),
        ("--json", "--json", "Results as JSON on stdout; progress and errors as JSON lines on stderr."),
        ("-v", "--verbose", "Also log lines and tracebacks; lists are not shortened."),
    ]
    for short, long, text in reversed(options):
        names = dict.fromkeys([short, long])
        option = click.option(*names, is_flag=True, expose_value=False, callback=_remember, help=text)
        function = option(function)
    return function


cache_option = click.option(
    "--cache",
    metavar="FOLDER",
    help="The cache folder on the hosts, if not $ENVSYNC_CACHE or ~/.cache/envsync there.",
)


def exit_code(error: errors.EnvsyncError, command: str = "") -> int:
    """Return the exit code for an error that a command ended with."""
    if command in _LOOKING:
        return 2
    return next((code for kind, code in _CODES if isinstance(error, kind)), 3)


def say_error(error: errors.EnvsyncError, output: Output) -> None:
    """Write an error to stderr: what, where, what next."""
    differences = [one.to_dict() for one in getattr(error, "differences", ())]
    if output.json:
        document: dict[str, Any] = {
            "event": "error",
            "kind": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        }
        if differences:
            document["differences"] = differences
        click.echo(json.dumps(document), err=True)
        return
    if output.verbose:
        import traceback

        text = "".join(traceback.format_exception(error))
        click.echo(harmless(_without_passwords(text)), err=True, nl=False)
    else:
        # click drops the colour where stderr is no terminal
        colour = None if "NO_COLOR" not in os.environ else False
        text = harmless(str(error))
        click.echo(click.style("error: ", fg="red", bold=True) + text, err=True, color=colour)


def say_ended(number: int) -> None:
    """Write to stderr that a signal ended the command: one line, whatever was going on."""
    name = signal.Signals(number).name
    if current().json:
        click.echo(json.dumps({"event": "ended", "signal": name}), err=True)
    else:
        how = "interrupted" if number == signal.SIGINT else f"ended by {name}"
        click.echo(f"{how}: what was started is ended too", err=True)


@contextmanager
def watch() -> Iterator[Hooks]:
    """Show progress while the block runs, as the user asked; yields the hooks to report to."""
    import logging

    from envsync.cli.display import JsonLines, Live, LogLines, Plain

    output = current()
    if output.verbose or output.json:
        handler = LogLines(sys.stderr) if output.json else logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        handler.addFilter(_scrubbed)
        level = logging.INFO if output.verbose else logging.WARNING
        logging.basicConfig(handlers=[handler], level=level)
    logging.getLogger("asyncio").addFilter(_is_news)
    if output.quiet:
        yield Hooks()
        return

    hooks: Hooks
    if output.json:
        hooks = JsonLines(sys.stderr)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        hooks = Live()
    else:
        hooks = Plain(sys.stderr)
    hooks.verbose = output.verbose
    with hooks if isinstance(hooks, Live) else nullcontext():
        yield hooks


def _scrubbed(record: logging.LogRecord) -> bool:
    """Take passwords out of the URLs that a library logs; it is logged all the same."""
    record.msg, record.args = _without_passwords(record.getMessage()), ()
    return True


def _without_passwords(text: str) -> str:
    from envsync.uv import scrub

    return scrub(text)


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether it is more than what distributed leaves in a loop that ends: a wait for its next batch."""
    error = record.exc_info[1] if record.exc_info else None
    left = type(error).__name__ == "TimeoutError" and str(error) == "Timeout"  # tornado's words
    return not (left and str(record.msg).startswith("Future exception was never retrieved"))


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the block as Ctrl-C does, so that what it started is ended."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler = signal.getsignal(signal.SIGINT)  # asyncio puts its own there while it runs
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    # what is ignored, by nohup for instance, stays so
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    previous: dict[int, Any] = {number: signal.signal(number, interrupt) for number in numbers}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As in a job that a script began with &. asyncio ends in order only where it may handle SIGINT: so it
        # may, and no real one comes through.
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    except KeyboardInterrupt:
        if received:
            say_ended(received[0])
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        if signal.SIGINT in previous:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def plural(number: int, noun: str, plural: str = "") -> str:
    """Return ``"1 package"`` or ``"2 packages"``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def result(document: dict[str, Any], text: Callable[[], str]) -> None:
    """Write a command's result to stdout: JSON if the user asked for it, else text."""
    click.echo(json.dumps(document, indent=2) if current().json else harmless(text()))


def command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command that takes the output options too, after its own."""
    make: Callable[[Callable[..., Any]], click.Command] = click.command(name, **settings)

    def decorate(function: Callable[..., Any]) -> click.Command:
        made = make(function)
        made.params += click.command()(output_options(lambda: None)).params
        return made

    return decorate
