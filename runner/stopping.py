"""Clusters as their records say, wherever these are; and their end, asked for from another machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError, ClusterError, StoreError
from envsync.runner.cloud.costs import Bill
from envsync.runner.records import is_mine, open_records, owner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.cloud.provider import Provider
    from envsync.runner.cloud.reaping import Verdict
    from envsync.runner.records import Record, Records, Seen

__all__ = ["Clusters", "Living", "Reaped", "Reaper", "close_record", "open_provider", "stop"]

_POLL = 0.5
_LATER = 10.0  # seconds after an end in which a write of before may still have come
_CLOSES = 330.0  # seconds that a client may take to end its machines


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """A cluster that has not ended by its record.

    Attributes
    ----------
    seen : Seen
        The record.
    place : Records
        Where it is.
    """

    seen: Seen
    place: Records

    @property
    def record(self) -> Record:
        """The record."""
        return self.seen.record

    @property
    def state(self) -> str:
        """``"alive"``, ``"stopping"``, or ``"lost"``: its client has not been heard of for too long."""
        if self.seen.lost:
            return "lost"
        return "stopping" if self.seen.stopping or self.record.how else "alive"


class Clusters:
    """The records of all places, as one: a cluster that has ended in one of them has ended.

    Parameters
    ----------
    store : str, optional
        The URL of a store; see `open_records`.

    Attributes
    ----------
    places : list of Records
        Where they are.
    troubles : list of str
        Places and records that could not be read.
    unread : bool
        Whether there are any: a cluster without a record may have one then.
    """

    def __init__(self, store: str | None = None) -> None:
        self.places = open_records(store)
        self.troubles: list[str] = []
        self.unread = False

    def alive(self) -> list[Living]:
        """Return the clusters that have not ended, the oldest first."""
        found: dict[str, Living] = {}
        over: dict[str, float] = {}
        for place, (living, ended) in self._ask(lambda place: [place.look()]):
            for seen in living:
                before = found.get(seen.record.cluster)
                if before is None or seen.age < before.seen.age:
                    found[seen.record.cluster] = Living(seen=seen, place=place)
            for name, age in ended.items():
                over[name] = min(age, over.get(name, age))
        left = [one for cluster, one in found.items() if not _is_over(one.seen, over.get(cluster))]
        return sorted(left, key=lambda one: (one.record.begun, one.record.cluster))

    def ended_names(self) -> set[str]:
        """Return the names of those that have ended."""
        return {name for _, name in self._ask(lambda place: place.ended_names())}

    def ended(self, since: float = 0.0) -> list[Record]:
        """Return those that ended after a time (seconds since 1970), by their begin."""
        found = {one.cluster: one for _, one in self._ask(lambda place: place.ended(since))}
        return sorted(found.values(), key=lambda one: (one.begun, one.cluster))

    @property
    def now(self) -> float:
        """Seconds since 1970, by the clock of the first place."""
        return time.time() + self.places[0].ahead

    def named(self, name: str, living: Sequence[Living]) -> list[Living]:
        """Return the clusters that a user may mean: that one, or those that he has called so."""
        exactly = [one for one in living if one.record.cluster == name]
        return exactly or [one for one in living if name in (one.record.name, _called(one.record.cluster))]

    def _ask(self, question: Any) -> Iterable[tuple[Records, Any]]:
        failed: list[StoreError] = []
        for place in self.places:
            try:
                answers = question(place)
            except StoreError as missed:
                failed.append(missed)
                self.unread = True
                continue
            if place.troubles:
                self.unread = True
            self.troubles += place.troubles
            place.troubles = []
            yield from ((place, answer) for answer in answers)
        if len(failed) == len(self.places):
            raise failed[0]
        for error in failed:
            text = f"{error.where}: {error.message}"
            if text not in self.troubles:
                self.troubles.append(text)


def stop(living: Living, hooks: Hooks, account: Mapping[str, Any] | None = None) -> str:
    """End a cluster, and wait until it is gone; return how.

    Its client is asked first, as it ends what it has in order. If it does not react, what is rented is ended
    by its tags, in the account that the record names; `account` counts instead of its keywords.

    Raises
    ------
    ClusterError
        Its client does not react, and nothing of it is rented.
    CloudError
        Something could not be ended.
    """
    from envsync.runner.cloud.reaping import end_cluster
    from envsync.runner.recording import FAILED, look_every

    record, place, began = living.record, living.place, time.monotonic()
    asked = _ask(living, hooks)
    if asked and not living.seen.lost:
        hooks.step(record.cluster, "asking its client to end it")
        now = _await_client(living, 3 * look_every(record) + 5)
        if now is not None and not now.how.startswith(FAILED):
            place.forget_wish(record.cluster)  # it ended without having read it, perhaps
            return now.how
    if not record.account and not record.regions:
        raise ClusterError(
            "its client does not react, and the record does not say how to end it from here",
            where=record.cluster,
            hint="What runs elsewhere ends by itself when its client has gone, within a minute or so.",
        )
    why = "its client does not react" if asked else "its client cannot be asked"
    hooks.step(record.cluster, f"{why}: ending what has its tags")
    provider = open_provider(record, account)
    end_cluster(provider, record.regions, record.cluster, hooks)
    how = f"stopped by {owner()}, without its client"
    try:
        close_record(living, how, after=living.seen.age + time.monotonic() - began)
    except StoreError as error:  # it has ended all the same
        hooks.warning(record.cluster, f"its record cannot be closed: {error.message}")
    return how


def _ask(living: Living, hooks: Hooks) -> bool:
    """Write that it is to end; False if the store takes nothing, and its machines end by their tags."""
    record = living.record
    try:
        living.place.wish_end(record.cluster, owner())
    except StoreError as error:
        if not record.account and not record.regions:
            raise
        hooks.warning(record.cluster, f"its client cannot be asked to end it: {error.message}")
        return False
    return True


def open_provider(record: Record, account: Mapping[str, Any] | None = None) -> Provider:
    """Return the account that a record names, with other keywords where they are given."""
    from envsync.runner.clouds import open_account

    return open_account(record.backend, {**record.account, **(account or {})}, record.regions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What `Reaper.look` has found in one account.

    Attributes
    ----------
    provider : Provider
        The account.
    verdicts : list of Verdict
        What becomes of each cluster's things.
    failed : list of CloudError
        Regions that could not be looked at.
    """

    provider: Provider
    verdicts: list[Verdict]
    failed: list[CloudError]


class Reaper:
    """Finds what belongs to no living cluster, and ends it.

    Parameters
    ----------
    clusters : Clusters
        The records.
    hooks : Hooks
        Told about progress.
    everyone : bool
        Whether what others have rented may be ended too.
    """

    def __init__(self, clusters: Clusters, hooks: Hooks, *, everyone: bool = False) -> None:
        self._clusters = clusters
        self._hooks = hooks
        self._everyone = everyone
        self._living = clusters.alive()
        self._ended = clusters.ended_names()

    def accounts(self, kind: str | None, account: dict[str, Any], regions: Sequence[str]) -> list[Provider]:
        """Return the accounts to look at: the one that is named, else those that records name.

        Parameters
        ----------
        kind : str or None
            Of the cloud.
        account : dict
            Its keywords.
        regions : sequence of str
            Where to ask first.
        """
        if kind or account or regions:
            return [self._open(kind or "ec2", account, regions)]
        rented = [one.record for one in self._living if one.record.regions]
        if not rented:
            try:
                return [self._open("ec2", {}, ())]
            except CloudError as error:
                error.hint = f"{error.hint} --on names another cloud: no record does."
                raise
        named = {json.dumps([one.backend, dict(one.account)], sort_keys=True): one for one in rented}
        return [self._open(one.backend, one.account, one.regions) for one in named.values()]

    def look(self, provider: Provider, regions: Sequence[str]) -> Reaped:
        """Look at an account: at these regions, or at all that it has."""
        from envsync.runner.cloud.reaping import judge, look

        found, failed = look(provider, regions or self._everywhere(provider), self._hooks)
        verdicts = judge(
            found,
            alive={one.record.cluster: one.seen for one in self._living},
            ended=self._ended,
            mine=self._may_end,
            now=self._clusters.now,
            sure=not self._clusters.unread,
        )
        return Reaped(provider=provider, verdicts=verdicts, failed=failed)

    def end(self, reaped: Reaped) -> None:
        """End what is to be ended.

        Raises
        ------
        CloudError
            Something could not be.
        """
        from envsync.runner.cloud.reaping import end

        things: dict[str, set[str]] = {}
        for verdict in reaped.verdicts:
            for region, _ in verdict.things if verdict.ends else ():
                things.setdefault(region, set()).add(verdict.cluster)
        end(reaped.provider, things, self._hooks)

    def lost(self, looked: Sequence[Reaped]) -> list[Living]:
        """Return the lost clusters of which nothing is left: their records can be closed."""
        kept = {one.cluster for each in looked for one in each.verdicts if not one.ends}
        seen = {each.provider.name for each in looked if not each.failed}
        return [
            one
            for one in self._living
            if one.seen.lost
            and self._may_end(one.record.owner)
            and one.record.cluster not in kept
            and (not one.record.regions or one.record.backend in seen)
        ]

    def close(self, living: Living, running: Collection[str]) -> None:
        """Close the record of a lost cluster; `running` are those that had machines until now."""
        record = living.record
        # machines that ended themselves did so when their leases were over: soon after it was seen
        after = living.seen.age if record.cluster in running else min(living.seen.age, record.patience)
        close_record(living, f"its client had gone; found by {owner()}", after=after)

    def _may_end(self, whose: str) -> bool:
        return self._everyone or is_mine(whose)

    def _open(self, kind: str, account: Mapping[str, Any], regions: Sequence[str]) -> Provider:
        from envsync.runner.clouds import open_account

        self._hooks.step(kind, "looking for the account")  # which takes some SDKs a while
        return open_account(kind, account, regions)

    def _everywhere(self, provider: Provider) -> tuple[str, ...]:
        named = {region for one in self._living for region in one.record.regions}
        self._hooks.step(provider.name, "asking for the account's regions")
        try:
            return provider.everywhere()
        except CloudError as error:
            self._hooks.warning(provider.name, f"only where it is known to be used: {error.message}")
            return tuple(sorted({*provider.regions, *named}))


def _await_client(living: Living, patience: float) -> Record | None:
    """Wait for a client to react, and then for its end; None if it does not."""
    cluster, place = living.record.cluster, living.place
    until = time.monotonic() + patience
    reacts = False
    while time.monotonic() < until:
        now = place.of(cluster)
        if now is None or now.ended is not None:
            return now
        if now.how and not reacts:
            reacts, until = True, time.monotonic() + _CLOSES
        time.sleep(_POLL)
    return None


def close_record(living: Living, how: str, *, after: float) -> None:
    """Close the record of a cluster that ended so many seconds after its client was seen."""
    record = living.record
    ended = record.seen + after  # by its client's clock, as the rest
    hired = tuple(one if one.ended is not None else replace(one, ended=ended) for one in record.bill.hired)
    living.place.keep(replace(record, ended=ended, how=how, bill=Bill(hired)))


def _is_over(seen: Seen, ended: float | None) -> bool:
    """Whether a cluster has ended, so many seconds ago by a record of that.

    That counts by its name. It is no end if the record of the living was moved on later, whoever wrote it.
    """
    return ended is not None and (seen.lost or seen.age + _LATER > ended)


def _called(cluster: str) -> str:
    return cluster.rpartition("-")[0]
