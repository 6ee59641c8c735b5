"""``envsync ls``: what clusters there are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from envsync.cli.clusters import document, everyone_option, store_option, tell
from envsync.cli.output import command as make_command
from envsync.cli.output import plural, result
from envsync.cli.table import columns

if TYPE_CHECKING:
    from envsync.runner.records import Record
    from envsync.runner.stopping import Living

__all__ = ["command"]

_HEAD = ("CLUSTER", "BACKEND", "HOSTS", "WORKERS", "AGE", "IDLE", "COST", "WHO", "FROM", "STATE")
_NUMBERS = ("HOSTS", "WORKERS", "AGE", "IDLE", "COST")


@make_command("ls", short_help="List clusters: where, since when, at what cost.")
@click.option("--all", "ended", is_flag=True, help="Those that have ended too.")
@everyone_option
@store_option
def command(ended: bool, everyone: bool, store: str | None) -> None:
    """List your clusters, wherever they were started.

    Clusters on this machine alone are not listed: they end with their process. The cost is what machines have
    cost so far, where any are rented.
    """
    from envsync.runner.records import is_mine, owner
    from envsync.runner.stopping import Clusters
    from envsync.stores.working import begin

    clusters = Clusters(store)
    asking = begin(clusters.alive)
    owner()  # while the store answers: Dask's configuration says who we are, and takes a while to be read
    living = asking.result()
    there = {one.record.cluster for one in living}  # one that has ended since is listed as we saw it
    over = [one for one in clusters.ended() if one.cluster not in there] if ended else []
    mine = [one for one in living if everyone or is_mine(one.record.owner)]
    past = [one for one in over if everyone or is_mine(one.owner)]
    others = len(living) - len(mine)
    places = ", ".join(place.shown for place in clusters.places)
    told = [
        document(one.record, one.state, one.seen.cost(), age=_age(one), seen=one.seen.age) for one in mine
    ]
    told += [document(one, "ended", one.cost()) for one in past]

    def text() -> str:
        rows = [*map(_living, mine), *map(_ended, past)]
        more = [f"{plural(others, 'more cluster')} of others: --everyone"] if others else []
        return "\n".join(
            [columns(_HEAD, rows, right=_NUMBERS) if rows else f"no clusters in {places}", *more]
        )

    alive = [one.record for one in mine if one.state == "alive" and one.record.trouble]
    tell([*clusters.troubles, *(f"{one.cluster}: {one.trouble}" for one in alive)])
    result({"places": [place.shown for place in clusters.places], "clusters": told, "others": others}, text)


def _age(one: Living) -> float:
    """Return how long it has been there: by its own clock until it was seen, since then by the store's."""
    return one.record.seen - one.record.begun + one.seen.age


def _living(one: Living) -> tuple[str, ...]:
    from envsync.runner.cloud.costs import duration

    state = {
        "lost": f"lost: heard of {duration(one.seen.age)} ago",
        "stopping": f"stopping: {one.record.how or one.seen.stopping}",
        "alive": "",
    }[one.state]
    idle = duration(one.record.idle) if one.record.idle >= 60 else ""
    return _row(one.record, duration(_age(one)), idle, one.seen.cost(), state)


def _ended(one: Record) -> tuple[str, ...]:
    from envsync.runner.cloud.costs import duration

    end = one.ended or one.seen
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
    return _row(one, duration(end - one.begun), "", one.cost(), f"ended {when}: {one.how}")


def _row(record: Record, age: str, idle: str, cost: float, state: str) -> tuple[str, ...]:
    from envsync.runner.cloud.costs import money

    priced = len(record.bill.unpriced) < len(record.bill.hired)
    price = money(cost, record.bill.currency) if priced else "?" if record.bill.hired else ""
    if priced and record.bill.unpriced:
        price = f">{price}"
    who, _, host = record.owner.partition("@")
    where = f"{record.backend} {','.join(record.regions)}".strip()
    return (
        *(record.cluster, where, str(len(record.hosts)), str(record.workers)),
        *(age, idle, price, who, host, state),
    )
