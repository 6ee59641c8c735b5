"""``envsync diff``: two environments, side by side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.check import look_at_cluster, tls_options
from envsync.cli.output import command as make_command
from envsync.cli.output import result
from envsync.cli.sides import is_cluster, look
from envsync.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.plugins.compare import Difference

__all__ = ["command"]


@make_command("diff")
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@tls_options
def command(left: str, right: str, **tls: str | None) -> None:
    """Compare two environments.

    The exit code is 0 if they are equal, 1 if not, 2 if one cannot be looked at.

    \b
    A and B are each
      pylock.<name>.toml            a lock
      .                             the environment that envsync runs in
      /path/to/prefix               an environment here, or its python
      ssh://[user@]host[/path]      python3 there, or the Python or prefix that the path names
      tcp://scheduler:8786          the processes of a running cluster; not on both sides

    Severities: fatal (Python or Dask's own packages do not fit), error (code that tasks can reach differs),
    warning, note. Each counts as a difference, but for notes.
    """  # noqa: D301
    from envsync.cli.table import table

    found = compare_sides(left, right, tls)
    names = ["here" if side == "." else side for side in (left, right)]
    result(
        {"left": left, "right": right, "differences": [one.to_dict() for one in found]},
        lambda: table(found, *names),
    )
    sys.exit(any(one.severity != "note" for one in found))


def compare_sides(left: str, right: str, tls: dict[str, Any]) -> Sequence[Difference]:
    """Look at both sides and compare them.

    Raises
    ------
    EnvsyncError
        One of them cannot be looked at.
    """
    if is_cluster(left) and is_cluster(right):
        raise CaptureError(
            "two clusters cannot be compared with each other",
            hint="Compare each with one environment: envsync diff . tcp://...",
        )
    if is_cluster(left):
        return [_swapped(one) for one in look_at_cluster(left, tls, wanted=look(right)).differences]
    if is_cluster(right):
        return look_at_cluster(right, tls, wanted=look(left)).differences
    from envsync.plugins.compare import compare

    return compare(look(left), look(right))


def _swapped(difference: Difference) -> Difference:
    from dataclasses import replace

    other = {"missing": "extra", "extra": "missing"}.get(difference.kind, difference.kind)
    return replace(difference, kind=other, left=difference.right, right=difference.left, advice="")
