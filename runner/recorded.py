"""What a cluster has because it is recorded: a record that others can read, and what it costs."""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from envsync.runner.queued import QueuedCluster
from envsync.runner.recording import Recording
from envsync.runner.records import Record, Records, local_records, owner
from envsync.runner.timeouts import wait_for
from envsync.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.backends import Backend
    from envsync.runner.cloud.costs import Bill

__all__ = ["RecordedCluster"]

_BUSY = ("executing", "ready", "waiting", "flight", "fetch", "long-running", "constrained", "resumed")
_LONGEST = 300  # characters of how it ended


class RecordedCluster(QueuedCluster):
    """A cluster that is in `envsync ls` while it lives, and in `envsync cost` afterwards.

    Attributes
    ----------
    ending : str
        Why it ends, where that is not that its user closes it.
    up : bool
        Whether its start is through.
    """

    backend: Backend
    store: str | None
    ending: str = ""
    up: bool = False
    _run_name: str
    _recording: Recording | None = None
    _idle_since: float | None = None

    @property
    def bill(self) -> Bill:
        """What its rented machines cost, those that have ended too; see `Bill`."""
        return self.backend.bill()

    async def _begin_record(self, n_workers: int | None) -> None:
        """Write its record, before anything of it is there; none of what ends with this process anyhow."""
        described = await self.backend.described()
        if described is None:
            return
        now = time.time()
        spec = {"n_workers": n_workers, **described.get("spec", {})}
        record = Record(
            **{
                "cluster": self._run_name,
                "name": str(self.name or ""),
                "owner": owner(),
                "begun": now,
                "seen": now,
                "patience": 5 * self.backend.grace,
                **described,
                "spec": {key: value for key, value in spec.items() if value is not None},
            }
        )
        store = self.store
        self._recording = Recording(
            record,
            lambda: Records(open_store(store)) if store else local_records(),
            store=store,
            rented="account" in described,
            stands=self._stands,
            end=self._end_for,
            hooks=self.hooks,
        )
        await self._recording.begin()

    def _record_soon(self) -> None:
        """Have what there is by now written."""
        if self._recording is not None:
            self._recording.write_soon()

    def _update_worker_status(self, op: str, msg: Any) -> None:
        super()._update_worker_status(op, msg)
        if op == "add" and self._recording is not None and not self._recording.record.workers:
            self._record_soon()  # the first have come: nobody shall see for half a minute that there are none

    async def _end_record(self) -> None:
        """Write how it ended."""
        recording, self._recording = self._recording, None
        if recording is not None:
            how = self.ending or ("closed" if self.up else "its start failed")
            await recording.close(how.splitlines()[0][:_LONGEST])

    def _end_for(self, who: str) -> None:
        """End it because somebody elsewhere wants that."""
        self.ending = f"stopped by {who}"
        self.loop.add_callback(self._close)

    async def _stands(self) -> Mapping[str, Any]:
        """Return what of its record changes while it lives."""
        found: dict[str, Any] = await self.backend.stands()
        workers: Mapping[str, Any] = self.scheduler_info.get("workers", {})
        if self.status == Status.running and self.scheduler_comm is not None:
            identity = await wait_for(self.scheduler_comm.identity(), 10)
            workers = identity["workers"]
            now = time.monotonic()
            if any(map(_computes, workers.values())):
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = now
            found["idle"] = 0.0 if self._idle_since is None else now - self._idle_since
        return {**found, "workers": len(workers)}

    # What a person sees

    def __repr__(self) -> str:
        text = str(super().__repr__())
        return f"{text[:-1]}, cost={self._cost()})" if self.bill.hired else text

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        return super()._repr_html_(cluster_status=(cluster_status or "") + self._cost_html(colspan=2))

    def _scaling_status(self) -> str:
        return f"{super()._scaling_status()}<table>{self._cost_html()}</table>"

    def _cost(self) -> str:
        return self.bill.summary(time.time())

    def _cost_html(self, colspan: int = 1) -> str:
        """Return rows of a table: what its machines cost, and what its user has to see to."""
        told = {"Cost": self._cost() if self.bill.hired else "", "Warning": self.backend.trouble}
        return "".join(
            f"<tr><td colspan={colspan} style='text-align: left;'>"
            f"<strong>{name}:</strong> {html.escape(text)}</td></tr>"
            for name, text in told.items()
            if text
        )


def _computes(worker: Mapping[str, Any]) -> bool:
    """Whether a worker has something to do, by what it told the scheduler last."""
    metrics = worker.get("metrics", {})
    counts = metrics.get("task_counts") or {key: metrics.get(key, 0) for key in ("executing", "ready")}
    return any(counts.get(state) for state in _BUSY if not isinstance(counts.get(state), str))
