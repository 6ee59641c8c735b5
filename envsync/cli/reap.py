"""``envsync reap``: ends what belongs to no living cluster."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.clusters import account_options, everyone_option, not_all_ended, store_option, tell
from envsync.cli.output import command as make_command
from envsync.cli.output import result, terminated_as_interrupted, watch
from envsync.cli.table import columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.cloud.reaping import Verdict

__all__ = ["command"]


@make_command("reap", short_help="Find and end what belongs to no living cluster.")
@click.option("--dry-run", is_flag=True, help="Only say what would be ended.")
@everyone_option
@store_option
@account_options
def command(
    dry_run: bool,
    everyone: bool,
    store: str | None,
    on: str | None,
    region: Sequence[str],
    profile: str | None,
) -> None:
    """Find what has envsync's tags in all regions of the account, and end what belongs to no living cluster.

    A cluster lives while its record says that its client has been heard of. Without a record its machines are
    left alone as long as they run: they end by themselves. What others have rented is left alone.
    """
    from envsync.errors import EnvsyncError
    from envsync.runner.stopping import Clusters, Reaper

    clusters = Clusters(store)
    failed: list[EnvsyncError] = []
    with watch() as hooks, terminated_as_interrupted():
        reaper = Reaper(clusters, hooks, everyone=everyone)
        tell(clusters.troubles)
        looked = []
        for provider in reaper.accounts(on, {} if profile is None else {"profile": profile}, region):
            looked.append(reaper.look(provider, region))
            failed += looked[-1].failed
            if not dry_run:
                try:
                    with not_all_ended():
                        reaper.end(looked[-1])
                except EnvsyncError as error:
                    failed.append(error)
        verdicts = [one for each in looked for one in each.verdicts]
        lost = [] if region else reaper.lost(looked)
        if not dry_run and not failed:
            running = {
                one.cluster for one in verdicts if any(found.kind == "machine" for _, found in one.things)
            }
            for living in lost:
                reaper.close(living, running)
    closed = [one.record.cluster for one in lost] if not failed else []
    result(
        {"dry_run": dry_run, "clusters": list(map(_document, verdicts)), "records_closed": closed},
        lambda: _text(verdicts, closed, dry_run, seen=not failed),
    )
    if failed:
        raise failed[0]


def _document(one: Verdict) -> dict[str, Any]:
    things = [{"region": region, **asdict(found)} for region, found in one.things]
    return {"cluster": one.cluster, "owner": one.owner, "ends": one.ends, "why": one.why, "things": things}


def _text(verdicts: list[Verdict], closed: list[str], dry_run: bool, *, seen: bool) -> str:
    ends = "would end" if dry_run else "ended"
    rows = [
        (
            ends if one.ends else "left",
            one.cluster,
            one.owner,
            ",".join(dict.fromkeys(region for region, _ in one.things)),
            one.counted,
            one.why,
        )
        for one in verdicts
    ]
    lines = [columns(("", "CLUSTER", "OWNER", "WHERE", "WHAT", "WHY"), rows)] if rows else []
    lines += [
        f"{'would close' if dry_run else 'closed'} the record of {name}: its client has gone"
        for name in closed
    ]
    nothing = "nothing there has envsync's tags" if seen else "nothing was found, and not all was looked at"
    return "\n".join(lines or [nothing])
