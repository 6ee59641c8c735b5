"""Ends what rented things are left: found by their tags, judged by the records, ended until nothing is there.

`judge` decides and asks nobody; `look`, `end` and `end_cluster` do what is decided. Methods block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from envsync.errors import CloudError
from envsync.runner.cloud.costs import duration
from envsync.runner.cloud.provider import CLUSTER
from envsync.stores.working import each

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.runner.cloud.provider import Found, Provider
    from envsync.runner.records import Seen

__all__ = ["Verdict", "end", "end_cluster", "judge", "look"]

_AT_ONCE = 16
_YOUNG = 900.0  # seconds in which a start without a record may have made a key, and no machine yet
_SLACK = 600.0  # seconds that a deadline's clock and ours may differ
_GONE = 300.0  # seconds that things may take to be gone
_POLL = 2.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of a cluster's things.

    Attributes
    ----------
    cluster, owner : str
        Whose they are.
    things : tuple of (str, Found)
        Each with its region.
    ends : bool
        Whether they are to be ended.
    why : str
        Why, or why not.
    """

    cluster: str
    owner: str
    things: tuple[tuple[str, Found], ...]
    ends: bool
    why: str

    @property
    def counted(self) -> str:
        """What there is, for people: ``"2 machines, 1 group"``."""
        kinds = [found.kind for _, found in self.things]
        return ", ".join(
            f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}"
            for kind in dict.fromkeys(kinds)
        )


def judge(
    found: Mapping[str, Sequence[Found]],
    *,
    alive: Mapping[str, Seen],
    ended: Collection[str],
    mine: Callable[[str], bool],
    now: float,
    sure: bool = True,
) -> list[Verdict]:
    """Decide what belongs to no living cluster.

    Parameters
    ----------
    found : mapping of str to sequence of Found
        What there is, by region.
    alive : mapping of str to Seen
        The records of clusters that have not ended, by cluster.
    ended : collection of str
        Clusters that have ended by their records.
    mine : callable
        Whether an owner's things may be ended.
    now : float
        Seconds since 1970. It is compared with what the cloud says of when things were made, and with
        deadlines: generously.
    sure : bool
        Whether all records could be read: what has none is left alone otherwise.
    """
    things: dict[str, list[tuple[str, Found]]] = {}
    for region, there in found.items():
        for one in there:
            things.setdefault(one.cluster, []).append((region, one))
    verdicts = []
    for cluster, own in sorted(things.items()):
        owner = next((one.owner for _, one in own if one.owner), "")
        if mine(owner):
            ends, why = _decide([one for _, one in own], alive.get(cluster), cluster in ended, now, sure)
        else:
            ends, why = False, f"it is {owner or 'somebody'}'s"
        verdicts.append(Verdict(cluster=cluster, owner=owner, things=tuple(own), ends=ends, why=why))
    return verdicts


def look(
    provider: Provider, regions: Sequence[str], hooks: Hooks
) -> tuple[dict[str, tuple[Found, ...]], list[CloudError]]:
    """Return what has our tags in each region, and what kept us from looking in some."""
    answers: dict[str, tuple[Found, ...] | CloudError] = {}

    def one(region: str) -> None:
        try:
            answers[region] = provider.found(region)
        except CloudError as error:
            answers[region] = error

    where = regions[0] if len(regions) == 1 else f"{len(regions)} regions"
    hooks.step(provider.name, f"looking for what has envsync's tags in {where}")
    each(regions, one, _AT_ONCE)
    said = {region: answers[region] for region in regions}
    found = {region: there for region, there in said.items() if not isinstance(there, CloudError)}
    return found, [answer for answer in said.values() if isinstance(answer, CloudError)]


def end(
    provider: Provider, things: Mapping[str, Collection[str]], hooks: Hooks, *, poll: float = _POLL
) -> None:
    """End all that clusters have in regions, and wait until it is gone.

    Parameters
    ----------
    provider : Provider
        The account.
    things : mapping of str to collection of str
        The names of the clusters, by region.
    hooks : Hooks
        Told about progress.
    poll : float
        Seconds between two looks.

    Raises
    ------
    CloudError
        Something could not be ended; all else was.
    """
    failed: list[CloudError] = []

    def one(item: tuple[str, Collection[str]]) -> None:
        try:
            _end_in(provider, *item, hooks, poll)
        except CloudError as error:
            failed.append(error)

    each(things.items(), one, _AT_ONCE)
    if failed:
        raise failed[0]


def end_cluster(provider: Provider, regions: Sequence[str], cluster: str, hooks: Hooks) -> None:
    """End all that one cluster has, and wait until it is gone.

    Raises
    ------
    CloudError
        Something could not be ended.
    """
    end(provider, dict.fromkeys(regions, (cluster,)), hooks)


def _end_in(provider: Provider, region: str, clusters: Collection[str], hooks: Hooks, poll: float) -> None:
    deadline = time.monotonic() + _GONE
    told = False
    while True:
        left = [one for one in provider.found(region) if one.cluster in clusters]
        if not left:
            return
        if time.monotonic() > deadline:
            names = ", ".join(f"{one.kind} {one.id}" for one in left)
            raise CloudError(
                f"not all of it was gone within {_GONE:g} s: {names}",
                where=f"{provider.name} {region}",
                hint=f"Ask again, or look for the tag {CLUSTER} there.",
            )
        if not told:
            hooks.step(
                f"{provider.name} {region}", f"ending {len(left)} things of {', '.join(sorted(clusters))}"
            )
        told = True
        refused: list[CloudError] = []
        for one in left:
            try:
                if one.state != "ending":
                    provider.remove(region, one)
            except CloudError as error:  # noqa: PERF203 - of few; the others are ended all the same
                refused.append(error)
        if len(refused) == len(left):
            raise refused[0]
        time.sleep(poll)


def _decide(
    things: Sequence[Found], seen: Seen | None, ended: bool, now: float, sure: bool
) -> tuple[bool, str]:
    if seen is not None and not seen.lost:
        return False, f"its client lives: heard of {duration(seen.age)} ago"
    if ended:
        return True, "it has ended, by its record"
    if seen is not None:
        return True, f"its client was heard of {duration(seen.age)} ago, and never again"
    if not sure:
        return False, "not all records could be read: it may have one"
    deadline = max((_time(one.deadline) for one in things), default=0.0)
    if deadline and now > deadline + _SLACK:
        return True, f"its time was over {duration(now - deadline)} ago"
    # one that is stopped has ended itself, and nobody starts it again: at some clouds it costs as before
    if any(one.kind == "machine" and one.state not in ("stopped", "ending") for one in things):
        return False, (
            "no record of it here, and its machines run: they end themselves when nobody uses them "
            "(`envsync stop` ends them now; --store names another store)"
        )
    youngest = max(one.created for one in things)
    if youngest and now - youngest < _YOUNG:
        return False, f"no record of it here, and {duration(now - youngest)} old: it may be starting"
    return True, "no record of it here, and no machine of it runs"


def _time(deadline: str) -> float:
    try:
        return datetime.strptime(deadline, _TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0
