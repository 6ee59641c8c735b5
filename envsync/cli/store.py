"""``envsync store``: what is in a store, what nobody needs, what is damaged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from envsync.cli.arguments import store_url
from envsync.cli.clusters import tell
from envsync.cli.output import command as make_command
from envsync.cli.output import plural, result, terminated_as_interrupted, watch
from envsync.cli.terminal import one_line

if TYPE_CHECKING:
    from envsync.errors import StoreError
    from envsync.stores import SharedStore
    from envsync.stores.keeping import Damage, Swept
    from envsync.stores.records import Push

__all__ = ["command"]

_DAY = 24 * 3600.0
_DAMAGED = 1


@click.group("store", short_help="Look after a store: ls, gc, verify.")
def command() -> None:
    """Look after a store that environments were pushed to.

    STORE is file:///folder, s3://bucket/folder, or any URL that fsspec knows.
    """


_store_argument = click.argument("url", metavar="STORE", callback=store_url)


@make_command("ls", short_help="List what was pushed.")
@_store_argument
def ls(url: str) -> None:
    """List what was pushed to STORE, by name, the newest first.

    A name, or the digits of an environment, stands behind the URL where one is asked for: STORE#NAME. What
    cannot be read is said, and the others are listed.
    """
    from envsync.stores.keeping import pushes

    store = _opened(url)
    troubles: list[StoreError] = []
    found = pushes(store, troubles)
    nothing = "nothing that can be read" if troubles else "nothing"
    result(
        {"store": store.shown, "pushes": [{"file": one.file, **one.to_dict()} for one in found]},
        lambda: "\n".join(_listed(found)) if found else f"{store.shown}: {nothing} was pushed there",
    )
    tell(f"{error.where}: {error.message}" for error in troubles[1:])
    if troubles:
        raise troubles[0]


@make_command("gc", short_help="Remove old pushes, and what none needs any more.")
@_store_argument
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many pushes of each name stay, whatever their age.",
)
@click.option(
    "--older",
    metavar="DAYS",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Younger pushes stay too.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(url: str, keep: int, older: float, dry_run: bool) -> None:
    """Remove from STORE pushes that are old, and what no push needs any more.

    Others may push meanwhile. What is younger than a day stays.
    """
    from dataclasses import asdict

    from envsync.stores import open_store
    from envsync.stores.keeping import gc as sweep

    store = open_store(url)
    with watch() as hooks, terminated_as_interrupted():
        swept = sweep(store, keep=keep, older=older * _DAY, dry_run=dry_run, hooks=hooks)
    result(
        {"store": store.shown, "dry_run": dry_run, **asdict(swept)},
        lambda: f"{store.shown}: {_removed(swept, dry_run)}",
    )


@make_command("verify", short_help="Read everything, and name what is damaged.")
@_store_argument
@click.option("--remove", is_flag=True, help="Remove what is damaged, so that the next push sends it again.")
def verify(url: str, remove: bool) -> None:
    """Read everything in STORE, and compare it with the digest that it is named by.

    The exit code is 1 if something is damaged or missing.
    """
    from dataclasses import asdict

    from envsync.stores.keeping import verify as look

    store = _opened(url)
    with watch() as hooks, terminated_as_interrupted():
        damages = look(store, remove=remove, hooks=hooks)
    result(
        {"store": store.shown, "removed": remove, "damaged": [asdict(one) for one in damages]},
        lambda: "\n".join(
            [*(_described(store.shown, one) for one in damages), f"{store.shown}: {_judged(damages, remove)}"]
        ),
    )
    if damages:
        click.get_current_context().exit(_DAMAGED)


for _each in (ls, gc, verify):
    command.add_command(_each)


def _opened(url: str) -> SharedStore:
    """Return the store, which has to be there: in one that is not, all is as it should be."""
    from envsync.stores import demand_there, open_store

    store = open_store(url)
    demand_there(store)
    return store


def _listed(found: list[Push]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time)),
            one.lock[:12],
            f"{one.size / 1e6:.1f} MB",
            plural(len(one.trees), "source tree"),
            f"{one.user}@{one.host}",
            one.target,
        )
        for one in found
    ]
    rows = [tuple(map(one_line, row)) for row in rows]  # anybody may have pushed
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _removed(swept: Swept, dry_run: bool) -> str:
    parts = [
        plural(swept.pushes, "push", "pushes"),
        plural(swept.environments, "lock"),
        plural(swept.trees, "source tree"),
        f"{plural(swept.blobs, 'blob')} ({swept.size / 1e6:.1f} MB)",
    ]
    if swept.uploads:
        parts.append(plural(swept.uploads, "unfinished upload"))
    return f"{'would remove' if dry_run else 'removed'} {', '.join(parts)}"


def _described(where: str, one: Damage) -> str:
    needs = f"; {plural(len(one.pushes), 'push needs', 'pushes need')} it: {', '.join(one.pushes)}"
    return f"{where}/{one.name}: {one.why}{needs if one.pushes else '; no push needs it'}"


def _judged(damages: list[Damage], remove: bool) -> str:
    if not damages:
        return "everything is as it should be"
    missing = sum(one.why == "it is missing" for one in damages)
    text = f"{len(damages) - missing} damaged, {missing} missing"
    if remove:
        return f"{text}; what was damaged is removed: push the environments again"
    return f"{text}; --remove removes what is damaged, and the next push sends it again"
