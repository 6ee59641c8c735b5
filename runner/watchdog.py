"""A process beside a client that rents machines: it ends the cluster if the client dies.

A client that is killed ends nothing. Its machines end themselves when their leases are over, but what they
shared (a key, a security group) is then there still, and at some clouds they cost as before. Only who has the
account's login ends all of it. This process has it, as it is the same user's on the same machine: the client
starts it before anything is rented, and sends it home when nothing is left. It acts if its parent is another
than the client: then that has died, whatever of. One that hangs, sleeps, or is cut off has not.

Until then it is a bare Python: what it needs to act is imported when it acts.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from envsync.runner.cloud.provider import Provider
    from envsync.runner.records import Record

__all__ = ["Watchdog", "watch"]

_LOOK = 1.0  # seconds between two looks at who its parent is
_PAUSE = 1.0  # seconds in which the cloud does what the client asked for last
_HOME = 5.0  # seconds that it may take to go home
_POLL = 2.0
_GONE = 300.0  # seconds that machines may take to be gone, and what they shared to be removable
_AGAIN = 30.0  # seconds until it tries again what failed: the network may be down
_PATIENCE = 3600.0  # seconds for all of that
_HOW = "its process ended without closing it"

# what it is told comes by its standard input: nobody else reads that. No module of the working directory's
# is taken for the standard library's
_BEGIN = (
    "import sys; sys.path = [one for one in sys.path if one]; import json; "
    "told = json.loads(sys.stdin.buffer.raw.readline()); sys.path = told['path']; "
    "from envsync.runner.watchdog import watch; watch(told)"
)


class Watchdog:
    """The client's side of it.

    Parameters
    ----------
    process : Popen
        What `begin` has started.
    """

    _out: ClassVar[set[Watchdog]] = set()  # those that watch: one that is forgotten is not sent home

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._out.add(self)

    @classmethod
    def begin(cls, record: Record, store: str | None) -> Watchdog | None:
        """Have a cluster watched; None where that cannot be: its machines have their leases.

        Parameters
        ----------
        record : Record
            Of the cluster, with the account and the regions.
        store : str, optional
            The URL of the store that the record is in; the cache folder if not given.
        """
        from envsync.runner import CLOUDS

        if record.backend not in CLOUDS or os.name != "posix" or not sys.executable:
            return None
        told = {
            "client": os.getpid(),
            "path": [one for one in sys.path if one and isinstance(one, str)],
            "record": record.to_dict(),
            "store": store,
        }
        with contextlib.suppress(OSError):  # there is no room for one more process
            process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the client's
            )
            dog = cls(process)
            dog._say(json.dumps(told).encode() + b"\n")
            return dog
        return None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def dismiss(self) -> None:
        """Send it home: nothing of the cluster is left. Silent if it has gone."""
        self._say(b"\n")
        try:
            self._process.wait(_HOME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._out.discard(self)

    def _say(self, text: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it was killed, or is at home
            self._process.stdin.write(text)


def watch(told: dict[str, Any]) -> None:
    """Wait until the client says that nothing is left, or has died; then end what is.

    Parameters
    ----------
    told : dict
        What `Watchdog.begin` has sent.
    """
    if os.getppid() == 0:  # it is outside of this process's namespace: whether it lives is not seen here
        return
    listens = [0]
    while os.getppid() == told["client"]:
        if select.select(listens, [], [], _LOOK)[0]:
            if os.read(0, 1):
                return
            listens = []  # it is dying, or has become another program: who the parent is will tell
    time.sleep(_PAUSE)
    _end(told["record"], told["store"])


def _end(described: dict[str, Any], store: str | None) -> None:
    """End a cluster, and close its record. What fails is tried again, for an hour."""
    from envsync.errors import EnvsyncError
    from envsync.runner.records import Record
    from envsync.runner.stopping import open_provider

    record = Record.from_dict(described)
    until = time.monotonic() + _PATIENCE
    left = list(record.regions)
    while left:
        for region in tuple(left):
            with contextlib.suppress(EnvsyncError):
                _end_in(open_provider(record), region, record.cluster)
                left.remove(region)
        if left and time.monotonic() > until:
            return
        if left:
            time.sleep(_AGAIN)
    _close(record, store)


def _end_in(provider: Provider, region: str, cluster: str) -> None:
    """End what a cluster has in a region as its client does: with no more permissions than that has."""
    from envsync.errors import CloudError

    until = time.monotonic() + _GONE
    asked: set[str] = set()
    while True:
        there = {one.id for one in provider.describe(region, cluster) if one.state != "ended"}
        if there - asked:
            provider.terminate(region, sorted(there - asked))
            asked |= there
        elif not there and not provider.close(region, cluster):
            return
        if time.monotonic() > until:
            raise CloudError("not all of it was gone in time", where=f"{provider.name} {region}")
        time.sleep(_POLL)


def _close(record: Record, store: str | None) -> None:
    """Write into its record that it has ended, where that is."""
    from envsync.errors import EnvsyncError
    from envsync.runner.records import Records, Seen, local_records
    from envsync.runner.stopping import Living, close_record
    from envsync.stores import open_store

    places = [lambda: Records(open_store(store))] if store else []
    for opened in (*places, local_records):  # here, if the store took none
        with contextlib.suppress(EnvsyncError):
            place = opened()
            now = place.of(record.cluster)
            if now is not None and now.ended is None:
                age = max(0.0, time.time() - now.seen)
                close_record(Living(seen=Seen(record=now, age=age), place=place), _HOW, after=age)
