"""Records of clusters, in a store: what there is, whose, since when, at what cost, and how it ended.

::

    clusters/alive/<cluster>.json                     written again and again by its client, while it lives
    clusters/stop/<cluster>.json                      somebody wants it to end: its client reads that
    clusters/ended/<utc time of its begin>-<cluster>.json
    clusters/clock/<random>                           for a moment: what the store's clock says

How long ago a record was written is told by the store's clock alone: it has the time of both writes. No two
machines' clocks are compared.
"""

from __future__ import annotations

import getpass
import json
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from envsync.errors import StoreError
from envsync.runner.cloud.costs import Bill, in_time
from envsync.runner.configured import configured
from envsync.store import cache_root
from envsync.stores import demand_there, open_store
from envsync.stores.working import begin, each

if TYPE_CHECKING:
    from envsync.stores import Entry, SharedStore

__all__ = ["Record", "Records", "Seen", "is_mine", "open_records", "owner"]

SCHEMA = 1
_CLUSTERS = "clusters"
_ALIVE, _ENDED, _STOP, _CLOCK = "clusters/alive", "clusters/ended", "clusters/stop", "clusters/clock"
_AT_ONCE = 28  # some stores take 50 ms for an answer; botocore keeps 32 connections, and some ask for lists
_LARGEST = 64 << 20  # bytes: that of ten thousand machines is a tenth of it
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # as `run_name` makes them
_STAMP = "%Y%m%dT%H%M%SZ"
_ANYBODY = frozenset(
    {"root", "ubuntu", "debian", "ec2-user", "admin", "user", "nobody", "jovyan", "runner", "docker"}
)
"""Names of users that many people have: only with the host's name do they say who it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A cluster.

    Attributes
    ----------
    cluster : str
        Its name, which no other has.
    name : str
        What its user calls it.
    owner : str
        Who started it, such as ``"ada@laptop"``: from there.
    backend : str
        ``"ec2"``, ``"ssh"``, ``"slurm"``, ...
    account : mapping
        With which keywords the backend finds its machines again. Never a credential.
    regions : tuple of str
        Where it has machines, or may have.
    spec : mapping
        What was asked for: plain values, for people.
    begun, seen : float
        When, in seconds since 1970 by its client's clock.
    ended : float or None
        When it ended, by the clock of who ended it.
    how : str
        How it ended, in words; empty while it lives.
    deadline : str
        When it has to be gone, as in the tags; empty if there is none.
    patience : float
        Seconds without a sign of life after which it counts as lost.
    hosts : tuple of str
        Its machines.
    workers : int
        How many there were when it was seen.
    idle : float
        For how many seconds nothing had been computed when it was seen.
    bill : Bill
        Its rented machines; empty where none are.
    trouble : str
        What its user has to see to while it lives; empty if nothing.
    """

    cluster: str
    name: str
    owner: str
    backend: str
    account: Mapping[str, Any] = field(default_factory=dict)
    regions: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    begun: float
    seen: float
    ended: float | None = None
    how: str = ""
    deadline: str = ""
    patience: float = 300.0
    hosts: tuple[str, ...] = ()
    workers: int = 0
    idle: float = 0.0
    bill: Bill = field(default_factory=Bill)
    trouble: str = ""

    def cost(self) -> float:
        """Return what it had come to when it was seen last, or has ended."""
        return self.bill.cost(self.ended or self.seen)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        told = {"cost": self.cost(), "currency": self.bill.currency, "summary": self.bill.summary(self.seen)}
        return {
            "schema": SCHEMA,
            **plain,
            **(told if self.bill.hired else {}),
            "account": dict(self.account),
            "spec": dict(self.spec),
            "regions": list(self.regions),
            "hosts": list(self.hosts),
            "bill": self.bill.to_list(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict` returned.

        KeyError, TypeError, ValueError or OverflowError if it is something else.
        """
        if data["schema"] != SCHEMA:
            raise ValueError(f"it is of schema {data['schema']}, and this envsync knows {SCHEMA}")
        if not isinstance(data["regions"], list) or not isinstance(data["hosts"], list):
            raise TypeError("regions and hosts are lists")
        ended = data["ended"]
        known: dict[str, Any] = {
            **{key: str(data[key]) for key in ("cluster", "name", "owner", "backend", "how", "deadline")},
            **{key: in_time(data[key]) for key in ("begun", "seen", "patience", "idle")},
            **{key: dict(data[key]) for key in ("account", "spec")},
            **{key: tuple(map(str, data[key])) for key in ("regions", "hosts")},
        }
        if not _NAME.fullmatch(
            known["cluster"]
        ):  # it becomes the names of files, and others may have written it
            raise ValueError(f"{known['cluster']!r} is no cluster's name")
        return cls(
            **known,
            ended=None if ended is None else in_time(ended),
            workers=int(data["workers"]),
            bill=Bill.from_list(data["bill"]),
            trouble=str(data.get("trouble", "")),  # younger than the schema
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The record of a cluster that has not ended by it.

    Attributes
    ----------
    record : Record
        As it was written last.
    age : float
        Seconds since then, by the store's clock.
    stopping : str
        Who wants it to end; empty if nobody does.
    """

    record: Record
    age: float
    stopping: str = ""

    @property
    def lost(self) -> bool:
        """Whether its client has not been heard of for too long."""
        return self.age > self.record.patience

    @property
    def bill(self) -> Bill:
        """What it costs."""
        return self.record.bill

    @property
    def until(self) -> float:
        """Until when it counts as there, by its client's clock: now, or where it is lost when that was known.

        So its cost does not fall when it is lost, and is what it is closed with if its machines have ended.
        """
        return self.record.seen + min(self.age, self.record.patience)

    def cost(self) -> float:
        """Return what it has come to until then."""
        return self.bill.cost(self.until)


class Records:
    """The records in a store. Methods block: callers use threads.

    Parameters
    ----------
    store : SharedStore
        Where.
    needed : bool
        Whether it is told of a store that is not there.

    Attributes
    ----------
    troubles : list of str
        Records that could not be read, and why.
    ahead : float
        Seconds that the store's clock was ahead of ours at the last look.
    """

    def __init__(self, store: SharedStore, *, needed: bool = True) -> None:
        self._store = store
        self._needed = needed
        self.shown = store.shown
        self.ahead = 0.0
        self.troubles: list[str] = []

    def keep(self, record: Record) -> None:
        """Write a record. One that has ended takes the place of the one that had not."""
        data = json.dumps(record.to_dict(), separators=(",", ":"), sort_keys=True).encode()
        if record.ended is None:
            self._store.write(_alive(record.cluster), data)
            return
        self._store.write(_ended(record), data)
        self._store.remove(_alive(record.cluster))

    def drop(self, cluster: str) -> None:
        """Forget a cluster that lives: another place has its record."""
        self._store.remove(_alive(cluster))

    def alive(self) -> list[Seen]:
        """Return the clusters that have not ended by their records, the oldest first."""
        return self.look()[0]

    def look(self) -> tuple[list[Seen], dict[str, float]]:
        """Return what `alive` does; and which have ended by the names of their records, and how long ago.

        Seconds are by the store's clock, as of the look's begin: one that takes long makes nothing older.
        """
        if self._store.makes_folders and not self._store.exists(_CLUSTERS):  # nor does a look make one
            if self._needed:
                self._demand_used()
            return [], {}
        began, asked = time.time(), begin(self._ask_time)
        wished, closed = (begin(partial(self._store.entries, folder)) for folder in (_STOP, _ENDED))
        entries = self._store.entries(_ALIVE)
        found = self._read_all([one for one in entries if one.name.endswith(".json")])
        wishes = {entry.name.rpartition("/")[2] for entry in wished.result()}
        self.ahead, refused = asked.result()
        if refused and not entries:  # or the bucket is not there, and the URL is somebody's slip
            self.troubles.append(f"{self.shown} has no records, and takes none: {refused}")

        def age(entry: Entry) -> float:
            now = began + self.ahead
            return max(0.0, now - (entry.modified or now))

        seen = [
            Seen(
                record=record,
                age=age(entry),
                stopping=self._wish_of(record.cluster) if f"{record.cluster}.json" in wishes else "",
            )
            for entry, record in found
        ]
        ended = {_ended_name(entry): age(entry) for entry in closed.result()}
        return sorted(seen, key=lambda one: (one.record.begun, one.record.cluster)), ended

    def of(self, cluster: str) -> Record | None:
        """Return a cluster's record: as it lives, else as it ended; None if there is none."""
        living = [entry for entry in self._store.entries(_ALIVE) if entry.name == _alive(cluster)]
        found = [record for record in map(self._read, living) if record is not None]
        if found:
            return found[0]
        over = [one for one in self._store.entries(_ENDED) if _ended_name(one) == cluster]
        return next(filter(None, map(self._read, reversed(over))), None)

    def ended(self, since: float = 0.0) -> list[Record]:
        """Return the clusters that ended after a time (seconds since 1970), by their begin."""
        # one that began long before may have ended after it: what is read is what may matter
        found = self._read_all(self._store.entries(_ENDED))
        records = [record for _, record in found if (record.ended or record.seen) >= since]
        return sorted(records, key=lambda one: (one.begun, one.cluster))

    def wish_end(self, cluster: str, who: str) -> None:
        """Ask a cluster's client to end it."""
        self._store.write(_wish(cluster), json.dumps({"by": who}).encode())

    def wished_by(self, cluster: str) -> str:
        """Return who wants a cluster to end; empty if nobody does.

        Raises
        ------
        StoreError
            The store cannot be asked.
        """
        wanted = _wish(cluster)
        there = any(entry.name == wanted for entry in self._store.entries(_STOP))
        return self._wish_of(cluster) if there else ""

    def ended_names(self) -> set[str]:
        """Return the names of the clusters that have ended by their records: none of them is read."""
        return {_ended_name(entry) for entry in self._store.entries(_ENDED)}

    def forget_wish(self, cluster: str) -> None:
        """Remove the wish: it is fulfilled."""
        self._store.remove(_wish(cluster))

    # -- inner

    def _wish_of(self, cluster: str) -> str:
        try:
            return str(json.loads(self._store.read(_wish(cluster)))["by"])
        except (StoreError, ValueError, KeyError, TypeError):
            return "somebody"

    def _ask_time(self) -> tuple[float, str]:
        """Return how far ahead of ours the store's clock is, at least; 0 and why, if it takes no mark."""
        mark = f"{_CLOCK}/{secrets.token_hex(8)}"
        try:
            self._store.write(mark, b"")
        except StoreError as error:  # it may only be read
            return 0.0, error.message
        written = time.time()
        try:
            entries = self._store.entries(_CLOCK)
        finally:
            self._store.remove(mark)
        return next((one.modified - written for one in entries if one.name == mark and one.modified), 0.0), ""

    def _demand_used(self) -> None:
        """Tell of a folder that is no store: its URL is somebody's slip, or it is not mounted."""
        try:
            demand_there(self._store)
        except StoreError as error:
            self.troubles.append(f"{self.shown}: {error.message}")
            return
        if not any(map(self._store.exists, ("pushes", "blobs"))):
            self.troubles.append(f"{self.shown} has nothing of envsync's in it: is it the right folder?")

    def _read_all(self, entries: Sequence[Entry]) -> list[tuple[Entry, Record]]:
        read: dict[str, Record | None] = {}

        def one(entry: Entry) -> None:
            read[entry.name] = self._read(entry)

        each(entries, one, _AT_ONCE)
        return [(entry, record) for entry in entries if (record := read[entry.name]) is not None]

    def _read(self, entry: Entry) -> Record | None:
        """Read one; None if it has ended while we looked, or if nobody can read it: then that is told."""
        where = f"{self.shown}/{entry.name}"
        if entry.size > _LARGEST:
            self.troubles.append(
                f"{where} is not the record of a cluster: it has {entry.size} bytes. Remove it"
            )
            return None
        try:
            data = self._store.read(entry.name)
        except StoreError as error:
            there = self._store.entries(entry.name.rpartition("/")[0])
            if any(one.name == entry.name for one in there):
                self.troubles.append(f"{where} cannot be read: {error.message}")
            return None
        try:
            record = Record.from_dict(json.loads(data))
            if entry.name not in (_alive(record.cluster), _ended(record)):
                raise ValueError(f"it is that of {record.cluster}")
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            self.troubles.append(
                f"{where} is not the record of a cluster: {type(error).__name__}: {error}. Remove it, if no "
                "newer envsync has written it"
            )
            return None
        return record


def open_records(store: str | None = None) -> list[Records]:
    """Return where records may be, the place for new ones first.

    Parameters
    ----------
    store : str, optional
        The URL of a store. If not given: Dask's setting ``envsync.store`` if there is one, and the cache
        folder in any case.

    Raises
    ------
    StoreError
        It is no store's URL.
    """
    if store is not None:
        return [Records(open_store(store))]
    named = configured("envsync.store")
    return [*([Records(open_store(named))] if named else []), local_records()]


def local_records() -> Records:
    """Return the records in the cache folder: where there is no store, `ls` works all the same."""
    from envsync.stores.folder import SharedFolder

    return Records(SharedFolder(cache_root() / "clusters"), needed=False)


def owner() -> str:
    """Return who this is: Dask's setting ``envsync.owner``, else the user and the host."""
    named = configured("envsync.owner")
    if named:
        return str(named)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = "nobody"
    return f"{user}@{socket.gethostname()}"


def is_mine(whose: str) -> bool:
    """Whether an owner is this user, here or on another machine."""
    mine = owner()
    user = mine.partition("@")[0]
    return whose == mine or (user not in _ANYBODY and whose.partition("@")[0] == user)


def _alive(cluster: str) -> str:
    return f"{_ALIVE}/{cluster}.json"


def _ended(record: Record) -> str:
    stamp = datetime.fromtimestamp(record.begun, timezone.utc).strftime(_STAMP)
    return f"{_ENDED}/{stamp}-{record.cluster}.json"


def _ended_name(entry: Entry) -> str:
    """Return the cluster of which this is the end."""
    return entry.name.rpartition("/")[2].partition("-")[2].removesuffix(".json")


def _wish(cluster: str) -> str:
    return f"{_STOP}/{cluster}.json"
