"""``envsync stop``: ends clusters, from any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from envsync.cli.clusters import account_options, everyone_option, not_all_ended, store_option, tell
from envsync.cli.output import command as make_command
from envsync.cli.output import result, terminated_as_interrupted, watch
from envsync.cli.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.hooks import Hooks
    from envsync.runner.stopping import Clusters, Living

__all__ = ["command"]

_AT_ONCE = 8
_MANY = 5  # regions whose names nobody reads


@make_command("stop", short_help="End clusters, from any machine.")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "every", is_flag=True, help="All of yours.")
@everyone_option
@store_option
@account_options
def command(
    names: Sequence[str],
    every: bool,
    everyone: bool,
    store: str | None,
    on: str | None,
    region: Sequence[str],
    profile: str | None,
) -> None:
    """End clusters, and wait until nothing of them is there.

    NAME is a cluster's as `envsync ls` shows it, or what its user calls it if only one is. Its process is
    asked first, wherever it runs; if it does not react, rented machines are ended by their tags. A cluster
    that has no record is looked for by its tags with --on.
    """
    if bool(names) == every or not all(names):  # an empty one is a variable that is not set
        raise click.UsageError("name clusters, or all of yours with --all: envsync ls shows them")
    from envsync.errors import EnvsyncError
    from envsync.runner.stopping import Clusters, stop
    from envsync.stores.working import each

    clusters = Clusters(store)
    account = {} if profile is None else {"profile": profile}
    with watch() as hooks, terminated_as_interrupted():
        chosen, tagged = _chosen(clusters, names, everyone, bool(on))
        done: dict[str, str] = {}
        failed: list[EnvsyncError] = []

        def one(living: Living) -> None:
            cluster = living.record.cluster
            try:
                done[cluster] = stop(living, hooks, account)
            except EnvsyncError as error:
                failed.append(error)
                hooks.failed(cluster, error.message)

        with not_all_ended():
            each(chosen, one, _AT_ONCE)
            for name in tagged:
                done[name] = _stop_tagged(str(on), account, region, name, everyone, hooks)
    result(
        {"stopped": done},
        lambda: (
            "\n".join(f"{cluster}: {how}" for cluster, how in done.items())
            or "nothing was stopped" + ("" if failed or names else f": {_none_of(clusters, everyone)}")
        ),
    )
    if failed:
        raise failed[0]


def _none_of(clusters: Clusters, everyone: bool) -> str:
    """Say why there is nothing to stop: what a user takes for theirs may be another's by its record."""
    from envsync.runner.records import owner

    where = ", ".join(place.shown for place in clusters.places)
    return f"there is no cluster{'' if everyone else f' of {owner()}'} in {where}"


def _chosen(
    clusters: Clusters, names: Sequence[str], everyone: bool, by_tags: bool
) -> tuple[list[Living], list[str]]:
    """Return what is to be stopped by its record, and what by its tags alone."""
    from envsync.runner.records import is_mine

    living = clusters.alive()
    tell(clusters.troubles)
    if not names:
        return [one for one in living if everyone or is_mine(one.record.owner)], []
    chosen: dict[str, Living] = {}
    tagged = []
    for name in names:
        found = clusters.named(name, living)
        if len(found) > 1:
            which = "\n".join(f"  {one.record.cluster}  of {one_line(one.record.owner)}" for one in found)
            raise click.UsageError(f"{name} is the name of {len(found)} clusters: which?\n{which}")
        if not found and not by_tags:
            where = ", ".join(place.shown for place in clusters.places)
            raise click.UsageError(
                f"there is no record of a living cluster {name} in {where}\n"
                "  envsync ls --everyone --all shows what there is; --store names another store, and "
                "--on ec2 looks for its tags"
            )
        tagged += [] if found else [name]
        for one in found:
            if not everyone and not is_mine(one.record.owner):
                raise click.UsageError(
                    f"{one.record.cluster} is {one_line(one.record.owner)}'s: --everyone if you mean it"
                )
            chosen[one.record.cluster] = one
    return list(chosen.values()), tagged


def _stop_tagged(
    kind: str, account: dict[str, Any], regions: Sequence[str], name: str, everyone: bool, hooks: Hooks
) -> str:
    from envsync.runner.cloud.reaping import end_cluster, look
    from envsync.runner.clouds import open_account
    from envsync.runner.records import is_mine, owner

    hooks.step(kind, "looking for the account")  # which takes some SDKs a while
    provider = open_account(kind, account, regions)
    if not regions:
        hooks.step(provider.name, "asking for the account's regions")
    found, failed = look(provider, regions or provider.everywhere(), hooks)
    there = [(where, one) for where, things in found.items() for one in things if one.cluster == name]
    if not there:
        if failed:
            raise failed[0]
        where = ", ".join(found) if len(found) < _MANY else f"{len(found)} regions"
        raise click.UsageError(f"nothing in {where} has the tag of a cluster {name}")
    whose = next((one.owner for _, one in there if one.owner), "")
    if not everyone and not is_mine(whose):
        raise click.UsageError(f"{name} is {one_line(whose)}'s: --everyone if you mean it")
    end_cluster(provider, sorted({where for where, _ in there}), name, hooks)
    return f"stopped by {owner()}, by its tags"
