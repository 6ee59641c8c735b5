"""The ``envsync`` command, and ``dask envsync``.

Each command is one module beside this one, imported when it is called: ``envsync snapshot --no-lock`` takes a
fifth of a second because Dask, rich and the network stack stay out of its way.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import signal
import sys
from typing import Any, NoReturn

import click

import envsync
from envsync.cli.output import Output, exit_code, output_options, say_ended, say_error
from envsync.errors import EnvsyncError

__all__ = ["cli", "main"]

_COMMANDS = {
    "snapshot": "envsync.cli.snapshot",
    "diff": "envsync.cli.diff",
    "check": "envsync.cli.check",
    "sync": "envsync.cli.sync",
    "push": "envsync.cli.push",
    "store": "envsync.cli.store",
    "build": "envsync.cli.build",
    "inspect": "envsync.cli.inspect",
    "run": "envsync.cli.run",
    "ls": "envsync.cli.ls",
    "stop": "envsync.cli.stop",
    "reap": "envsync.cli.reap",
    "cost": "envsync.cli.cost",
}
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class _Commands(click.Group):
    """Imports a command when it is named, and turns what it raises into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], _COMMANDS, 1)
            if not near:
                raise
            text = f"There is no command {args[0]!r}. Did you mean {near[0]!r}?"
            raise click.UsageError(text, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        output = ctx.ensure_object(Output)  # the command's own, too, wherever its options stand
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except EnvsyncError as error:
            say_error(error, output)
            ctx.exit(exit_code(error, ctx.invoked_subcommand or ""))
        except KeyboardInterrupt:
            say_ended(signal.SIGINT)
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # whoever read us has gone; the interpreter must not find that out again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(_BROKEN_PIPE)
        return result


@click.group(
    name="envsync",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(envsync.__version__, prog_name="envsync")
@output_options
def cli() -> None:
    """Make your Python environment exist, exactly, on other machines, and a Dask cluster in it.

    \b
    Exit codes:
      0    fine, or the environments are equal
      1    they differ
      2    wrong usage, nothing was started; for diff and check also: could not look
      3    the environment cannot be captured, locked or built
      4    a host or registry cannot be used
      5    a cluster cannot be started
      130  interrupted (143: by SIGTERM); what was started is ended
    `envsync run` ends with the exit code of its command.

    \b
    A first round:
      envsync snapshot                             what is installed here -> pylock.envsync.toml
      envsync run -- python analysis.py            a cluster on this machine, while the script runs
      envsync push ssh://node1                     the environment exists there, verified
      envsync push s3://bucket/team#analysis       it lies there, for other machines to start from
      envsync push registry.example.org/team/x     it is there as a container image
      envsync run --on ssh --hosts node1,node2 -- python analysis.py
      envsync run --on slurm --partition cpu -n 8 -- python analysis.py
      envsync run --on ec2 --instance-type m7i.large -n 8 -- python analysis.py
    """  # noqa: D301 - click's mark for text that is not to be wrapped


def main() -> NoReturn:
    """Run the command and exit."""
    # what a command makes stays until its end, and goes with the process: looking for garbage takes a tenth
    gc.set_threshold(50_000)
    try:
        cli(prog_name="envsync")
    finally:
        gc.freeze()
    raise AssertionError("click exits")  # pragma: no cover
