"""The help of a command with many options: they stand in sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["sections"]


def sections(titled: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """Return the class of a command whose help has its options below titles.

    Parameters
    ----------
    titled : mapping
        The names of the options below each title. Those that none names come last, as ``Output``.
    """

    class Command(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            options = (one for one in self.get_params(ctx) if isinstance(one, click.Option))
            records = ((one.name, one.get_help_record(ctx)) for one in options)
            left = {name: record for name, record in records if record is not None}
            for title, names in titled.items():
                with formatter.section(title):
                    formatter.write_dl([left.pop(name) for name in names])
            with formatter.section("Output"):
                formatter.write_dl(list(left.values()))

    return Command
