"""``envsync cost``: what clusters have cost, from their records."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.clusters import everyone_option, store_option, tell
from envsync.cli.output import command as make_command
from envsync.cli.output import plural, result
from envsync.cli.table import columns

if TYPE_CHECKING:
    from envsync.runner.cloud.costs import Sum

__all__ = ["command"]

_DAYS = re.compile(r"(\d+) ?d(ays?)?")


def _since(_ctx: object, _parameter: object, value: str | None) -> float:
    """Take a day, or a number of days."""
    if value is None:
        return 0.0
    days = _DAYS.fullmatch(value)
    try:
        at = datetime.now() - timedelta(days=int(days[1])) if days else datetime.fromisoformat(value)
        return at.timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no day: write 2026-11-01, or 7d for the last seven") from None


@make_command("cost", short_help="Say what clusters have cost.")
@click.option(
    "--by",
    type=click.Choice(["user", "cluster", "day"]),
    default="cluster",
    show_default=True,
    help="What is summed up.",
)
@click.option("--since", metavar="DAY", callback=_since, help="Only what came after: 2026-11-01, or 7d.")
@everyone_option
@store_option
def command(by: str, since: float, everyone: bool, store: str | None) -> None:
    """Say what rented machines and their disks have cost, from the records of clusters.

    Prices are those of when the machines were made, with their sources. It is no bill: traffic, taxes and
    discounts are not in it.
    """
    from envsync.runner.cloud.costs import summed
    from envsync.runner.records import is_mine
    from envsync.runner.stopping import Clusters

    clusters = Clusters(store)
    living = {one.record.cluster: (one.record, one.seen.until) for one in clusters.alive()}
    ended = {one.cluster: (one, one.ended or one.seen) for one in clusters.ended(since)}
    records = {**ended, **living}.values()  # one that has ended since is not counted twice
    wanted = [one for one in records if everyone or by == "user" or is_mine(one[0].owner)]
    others = sum(bool(record.bill.hired) for record, _ in records) - sum(
        bool(record.bill.hired) for record, _ in wanted
    )
    entries = [
        (record.owner.partition("@")[0] if by == "user" else record.cluster, record.bill, until)
        for record, until in wanted
    ]
    sums = summed(entries, since=since, by_day=by == "day")
    sources = sorted({source for _, bill, _ in entries for source in bill.sources})
    tell(clusters.troubles)
    result(
        {"by": by, "sums": list(map(_document, sums)), "sources": sources, "others": others},
        lambda: _text(by, sums, sources, others),
    )


def _document(one: Sum) -> dict[str, Any]:
    return {
        "of": one.of,
        "cost": one.cost,
        "currency": one.currency,
        "machines": one.machines,
        "hours": one.hours,
        "unpriced": one.unpriced,
        "without_disk": one.without_disk,
    }


def _text(by: str, sums: list[Sum], sources: list[str], others: int) -> str:
    from envsync.runner.cloud.costs import money

    more = [f"{plural(others, 'more cluster')} of others: --everyone"] * bool(others)
    if not sums:
        return "\n".join(["nothing was rented", *more])
    rows = [
        (
            one.of,
            str(one.machines),
            f"{one.hours:.2f}",
            money(one.cost, one.currency) if one.currency else "?",
        )
        for one in sums
    ]
    lines = [columns((by.upper(), "MACHINES", "HOURS", "COST"), rows, right=("MACHINES", "HOURS", "COST"))]
    totals: dict[str, float] = {}
    for one in sums:
        if one.currency:
            totals[one.currency] = totals.get(one.currency, 0.0) + one.cost
    lines += [f"in all {', '.join(money(amount, currency) for currency, amount in totals.items())}"] * bool(
        totals
    )
    unpriced = sum(one.unpriced for one in sums)
    disks = sum(one.without_disk for one in sums if one.currency)
    lines += [f"without {plural(unpriced, 'machine')}, whose price is not known"] * bool(unpriced)
    lines += [f"without the disks of {plural(disks, 'machine')}, whose price is not known"] * bool(disks)
    lines += [f"prices: {'; '.join(sources)}"] * bool(sources)
    lines += more
    return "\n".join(lines)
