"""``envsync diff``: two environments, side by side."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.check import look_at_cluster, tls_options
from envsync.cli.image import plain_http_option
from envsync.cli.output import command as make_command
from envsync.cli.output import result, watch
from envsync.cli.sides import demand_side, is_cluster, is_image, look
from envsync.errors import CaptureError, ClusterError
from envsync.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.plugins.compare import Difference

__all__ = ["command"]


@make_command("diff", short_help="Compare two environments.")
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@plain_http_option
@tls_options
def command(left: str, right: str, plain_http: bool, **tls: str | None) -> None:
    """Compare two environments: A, which is wanted, and B, which is there.

    What only A has is missing in B, an error. What only B has does no harm to code that runs with A: a note.
    The exit code is 0 if they are equal but for notes, 1 if not, 2 if one cannot be looked at.

    \b
    A and B are each
      pylock.<name>.toml            a lock
      .                             the environment that envsync runs in
      /path/to/prefix               an environment here, or its python
      ssh://[user@]host[/path]      python3 there, or the Python or prefix that the path names
      registry.example.org/x/y:tag  an image that envsync made; also oci:FOLDER
      tcp://scheduler:8786          the processes of a running cluster; not on both sides

    Severities: fatal (another Python, or another Dask, so that processes cannot work together), error (code
    that tasks can reach differs), warning (differs, and may not matter there), note.
    """  # noqa: D301
    remote = any(
        "://" in side or is_image(side) for side in (left, right)
    )  # what is here is looked at in no time
    with watch() if remote else nullcontext(Hooks()) as hooks:
        found, processes = compare_sides(left, right, tls, hooks, plain_http=plain_http)
    result(
        {"left": left, "right": right, "differences": [one.to_dict() for one in found]},
        lambda: describe(found, left, right, processes),
    )
    sys.exit(any(one.severity != "note" for one in found))


def describe(found: Sequence[Difference], left: str, right: str, processes: Sequence[str]) -> str:
    """Return the differences for reading, and how many things only one side has."""
    from envsync.cli.table import paint
    from envsync.runner.table import table

    names = ["this environment" if side == "." else side for side in (left, right)]
    text = table(found, *names, processes=processes, paint=paint)
    if not found:
        return text
    subjects = {(one.subject, one.kind, one.left, one.right) for one in found}
    only = [sum(not one[place] for one in subjects) for place in (3, 2)]
    both = len(subjects) - sum(only)
    return f"{text}\nonly in what is wanted: {only[0]}, only in what is there: {only[1]}, in both: {both}"


def compare_sides(
    left: str, right: str, tls: dict[str, Any], hooks: Hooks, *, plain_http: bool = False
) -> tuple[Sequence[Difference], Sequence[str]]:
    """Look at both sides and compare them.

    Returns
    -------
    sequence of Difference, sequence of str
        How the right side differs from the left, which is wanted; and the processes of a cluster.

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
    for side in (left, right):
        demand_side(side)
    if is_cluster(left) or is_cluster(right):
        address, other = (left, right) if is_cluster(left) else (right, left)
        # None: this environment, its local code too
        wanted = None if other == "." else look(other, hooks, plain_http=plain_http)
        cluster = look_at_cluster(address, tls, wanted=wanted, hooks=hooks)
        found = cluster.differences if address == right else [_swapped(one) for one in cluster.differences]
        for one in cluster.processes:
            if one.trouble:
                raise ClusterError(f"{one.process}: {one.trouble}", where=address)
        return found, [one.process for one in cluster.processes]
    from envsync.plugins.compare import compare

    return compare(*(look(side, hooks, plain_http=plain_http) for side in (left, right))), ()


def _swapped(difference: Difference) -> Difference:
    """Turn a difference round: what is wanted is what was there."""
    from dataclasses import replace

    from envsync.plugins.compare import CORE, ERROR, FATAL, NOTE

    kind = {"missing": "extra", "extra": "missing"}.get(difference.kind, difference.kind)
    severity = difference.severity
    if kind == "extra" or (kind == "source" and not difference.right):
        severity = NOTE
    elif kind == "missing" or (kind == "source" and not difference.left):
        severity = FATAL if difference.subject in CORE else ERROR
    return replace(
        difference, severity=severity, kind=kind, left=difference.right, right=difference.left, advice=""
    )
