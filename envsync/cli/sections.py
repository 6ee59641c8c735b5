"""The help of a command with many options: they stand in sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["OptionTable", "sections"]


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


@dataclass(frozen=True)
class OptionTable:
    """Options that belong together, as rows: what `click.option` takes.

    Attributes
    ----------
    rows : tuple of (names, attributes)
        The last name of each says as which keyword it comes.
    """

    rows: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords that they come as."""
        return tuple(names[-1].lstrip("-").replace("-", "_") for names, _ in self.rows)

    def add(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """Add them to a command: a decorator."""
        for names, attributes in reversed(self.rows):
            command = click.option(*names, **attributes)(command)
        return command

    def first_of(self, given: Iterable[str]) -> str:
        """Return how the first of these options is written that was given; empty if none was."""
        keys = set(given)
        written = zip(self.keywords, self.rows, strict=True)
        return next((names[0] for keyword, (names, _) in written if keyword in keys), "")
