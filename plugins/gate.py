"""Keep tasks off workers until they are known to have what is wanted.

`Gate` sits in the scheduler. It turns away workers that could not even understand the question (another
Python, another comm or pickle), holds back every other one until it has told what it sees, and removes those
that differ. `Verify` travels to each worker by value, whoever started it, and does the telling.

A worker that is held has registered, but the scheduler does not know it as running: it is given no task, so
that none can be lost or blamed on it when it is removed.

The gate can be put into a scheduler that runs already: workers that are there stay, whatever they are, until
somebody asks them to report. Taken away again, it leaves the scheduler as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Collection, Dict, Mapping, cast

from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from .carried import by_value
from .compare import CORE, ERROR, FATAL
from .look import check_aside, refuses

if TYPE_CHECKING:
    from distributed import Scheduler, Worker

__all__ = ["Gate", "Verify"]

logger = logging.getLogger("distributed.envsync")

TOPIC = "envsync"
PLUGIN = "envsync-verify"
REMEMBERED = 100  # refused workers that are kept for the table

_OURS = {
    "register-worker": "register_worker",
    "envsync_report": "report",
    "envsync_state": "state",
    "envsync_verdict": "verdict",
    "envsync_expect": "expect",
}


class Verify(WorkerPlugin):  # type: ignore[misc]
    """Tell the scheduler's Gate how a worker's environment differs from the wanted one.

    Runs when the worker has registered and before it reads its first task.

    Parameters
    ----------
    wanted : Report
        What each worker should have.
    """

    name = PLUGIN

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.wanted = wanted

    async def setup(self, worker: Worker) -> None:
        """Look, compare, tell."""
        address = worker.contact_address or worker.address
        process = f"worker {address if worker.name is None else worker.name}"
        try:
            differences = await check_aside(self.wanted, process=process)
            trouble = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, the gate must hear of it
            differences = []
            trouble = f"{type(error).__name__}: {error}"
        answer = await worker.scheduler.envsync_report(
            address=address, differences=differences, trouble=trouble
        )
        if not answer.get("admitted", True):
            logger.error("This worker was refused: %s", answer.get("message", ""))


class Gate(SchedulerPlugin):  # type: ignore[misc]
    """Admit workers that have what is wanted, and no others.

    Parameters
    ----------
    wanted : Report
        What each process of the cluster should have.
    on_mismatch : {"raise", "warn"}
        Whether a worker with fatal or error differences is removed, or only remembered. A worker with another
        Python minor version is refused either way, as it cannot load `Verify`, unless `foreign`.
    report_timeout : float
        Seconds that a worker has for its report, from its registration.
    door : collection of str
        What a worker must have like the scheduler to be let in at all, and asked for its report.
    foreign : bool
        Whether ``"warn"`` lets in workers of another Python minor version, unasked: the plugin that is given
        to `install` does nothing there.
    """

    name = "envsync-gate"

    def __init__(
        self,
        wanted: Mapping[str, Any],
        *,
        on_mismatch: str = "raise",
        report_timeout: float = 60.0,
        door: Collection[str] = ("python", *CORE),
        foreign: bool = False,
    ) -> None:
        self.wanted = wanted
        self.foreign = foreign
        self.door = frozenset(door)
        self.on_mismatch = on_mismatch
        self.report_timeout = report_timeout
        self.scheduler: Any = None
        self.own: list[dict[str, Any]] = []
        self.workers: dict[str, dict[str, Any]] = {}
        self.refused: list[dict[str, Any]] = []
        self.shut: set[str] = set()  # workers that are to get no task for now
        self._held: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._before: dict[str, Any] = {}
        self._plugin = ""
        self._open = False

    def install(self, scheduler: Scheduler, plugin: tuple[str, bytes] | None = None) -> None:
        """Put the gate in front of a scheduler, which may run already.

        Parameters
        ----------
        scheduler : Scheduler
            Workers that it knows are let be: their state is ``unchecked`` until they report.
        plugin : (str, bytes), optional
            Name and pickle of the worker plugin that reports; `Verify` if not given.
        """
        self.scheduler = scheduler
        ours = {name: getattr(self, method) for name, method in _OURS.items()}
        self._before = {name: scheduler.handlers.get(name) for name in ours}
        self._register = scheduler.handlers["register-worker"]
        self._status = scheduler.stream_handlers["worker-status-change"]
        for address, known in scheduler.workers.items():
            self.workers[address] = {
                "name": known.name,
                "state": "unchecked",
                "door": self._versions(known.versions, known.name),
                "differences": [],
                "trouble": "",
            }
        scheduler.handlers.update(ours)
        scheduler.stream_handlers["worker-status-change"] = self.worker_status_change
        self._plugin, pickled = plugin or (PLUGIN, by_value(Verify(self.wanted)))
        scheduler.worker_plugins[self._plugin] = pickled
        scheduler.add_plugin(self, name=self.name)

    def uninstall(self) -> None:
        """Leave the scheduler as it was, and let in who is held. Doing it twice is silent."""
        scheduler, self.scheduler = self.scheduler, None
        if scheduler is None:
            return
        self._open = True  # should somebody have wrapped our handlers: they pass everything on
        for address in list(self._timers):
            self._stop_waiting(address)
        for name, before in self._before.items():
            if scheduler.handlers.get(name) != getattr(self, _OURS[name]):
                continue
            if before is None:
                del scheduler.handlers[name]
            else:
                scheduler.handlers[name] = before
        if scheduler.stream_handlers["worker-status-change"] == self.worker_status_change:
            scheduler.stream_handlers["worker-status-change"] = self._status
        scheduler.worker_plugins.pop(self._plugin, None)
        scheduler.plugins.pop(self.name, None)
        for address, stimulus in list(self._held.items()):
            if self.workers.get(address, {}).get("state") != "refused":
                self._status(status="running", worker=address, stimulus_id=stimulus)
        self._held.clear()

    # What the scheduler is asked through its comms

    async def register_worker(self, comm: Any, **message: Any) -> Any:
        """Refuse at the door, or register and hold."""
        if self._open:
            return await self._register(comm, **message)
        address = self.scheduler.coerce_address(message["address"], message.get("resolve_address", True))
        label = message.get("name", address)
        found = self._versions(message.get("versions") or {}, label)
        python = any(difference["kind"] == "python" for difference in found)
        if found and (self.on_mismatch == "raise" or (python and not self.foreign)):
            text = self._remember_refused(address, label, found, "")
            await comm.write({"status": "error", "message": text, "time": time.time()})
            return None
        taken = [
            f"{what} {value} taken"
            for what, value, known in (
                ("address", address, self.scheduler.workers),
                ("name", message.get("name"), self.scheduler.aliases),
            )
            if value in known
        ]
        if taken:  # who is there already keeps what is known of it
            logger.warning("A worker that wanted to register was refused: %s", taken[0])
            await comm.write({"status": "error", "message": taken[0], "time": time.time()})
            return None
        self._stop_waiting(address)
        self.workers[address] = {
            "name": label,
            "state": "waiting",
            "door": found,  # what it registered with, which no later report mends
            "differences": found,
            "trouble": "",
        }
        if python:  # it will not report
            self._admit(address)
            return await self._register(comm, **message)
        if message.get("status") == "running":
            message["status"] = "init"
            self._held[address] = message.get("stimulus_id", "")
        loop = asyncio.get_running_loop()
        self._timers[address] = loop.call_later(self.report_timeout, self._silent, address)
        return await self._register(comm, **message)

    async def report(
        self, address: str, differences: list[dict[str, Any]], trouble: str = ""
    ) -> dict[str, Any]:
        """Take a worker's report, and let it in or send it away; who is in already stays."""
        address = self.scheduler.coerce_address(address)
        entry = self.workers.get(address)
        if entry is None or entry["state"] == "refused":
            return {"admitted": False, "message": "not a worker of this scheduler"}
        known = {(one["kind"], one["subject"]) for one in differences}
        differences = [
            *differences,  # a tuple: comms know no lists
            *(one for one in entry["door"] if (one["kind"], one["subject"]) not in known),
        ]
        entry.update(differences=differences, trouble=trouble)
        late = entry["state"] == "waiting"
        if late and self.on_mismatch == "raise" and (trouble or refuses(differences)):
            return {"admitted": False, "message": self._refuse(address)}
        self._admit(address)
        return {"admitted": True}

    async def state(self) -> dict[str, Any]:
        """Return what is known of every process, as JSON types."""
        return {
            "on_mismatch": self.on_mismatch,
            "scheduler": self.own,
            "workers": {address: dict(entry) for address, entry in self.workers.items()},
            "refused": list(self.refused),
        }

    async def verdict(self, address: str) -> dict[str, Any]:
        """Return what is known of one worker, which may have been refused."""
        address = self.scheduler.coerce_address(address)
        past = [entry for entry in self.refused if entry["address"] == address]
        return dict(self.workers.get(address) or (past or [{"state": "unknown"}])[-1])

    async def expect(self, wanted: dict[str, Any]) -> None:
        """Want something else from now on."""
        self.wanted = wanted
        self.scheduler.worker_plugins[self._plugin] = by_value(Verify(self.wanted))

    def worker_status_change(self, status: str, worker: str, stimulus_id: str, **kwargs: Any) -> None:
        """Keep from the scheduler that a held worker is running."""
        entry = self.workers.get(worker)
        shut = entry is not None and (entry["state"] in ("waiting", "refused") or worker in self.shut)
        if status == "running" and shut and not self._open:
            self._held[worker] = stimulus_id
            return
        self._held.pop(worker, None)
        self._status(status=status, worker=worker, stimulus_id=stimulus_id, **kwargs)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget a worker that has gone."""
        self.workers.pop(worker, None)
        self._held.pop(worker, None)
        self.shut.discard(worker)
        self._stop_waiting(worker)

    # Verdicts

    def _stop_waiting(self, address: str) -> None:
        timer = self._timers.pop(address, None)
        if timer is not None:
            timer.cancel()

    def _admit(self, address: str) -> None:
        entry = self.workers[address]
        entry["state"] = "different" if refuses(entry["differences"]) or entry["trouble"] else "equal"
        self._stop_waiting(address)
        if entry["state"] == "different":
            logger.warning("%s", self._sentence(entry["name"], entry["differences"], entry["trouble"]))
            self.scheduler.log_event(TOPIC, {"action": "admitted-different", "worker": address, **entry})
        held = self._held.pop(address, None)
        if held is not None:
            self._status(status="running", worker=address, stimulus_id=f"envsync-admit-{time.time()}")

    def _refuse(self, address: str) -> str:
        entry = self.workers[address]
        entry["state"] = "refused"
        text = self._remember_refused(address, entry["name"], entry["differences"], entry["trouble"])
        task = asyncio.ensure_future(self._remove(address))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return text

    async def _remove(self, address: str) -> None:
        await self.scheduler.remove_worker(
            address=address, stimulus_id=f"envsync-refused-{time.time()}", close=True
        )

    def _silent(self, address: str) -> None:
        entry = self.workers.get(address)
        if entry is None or entry["state"] != "waiting":
            return
        entry["trouble"] = f"it did not report its environment within {self.report_timeout:g} s"
        if self.on_mismatch == "raise":
            self._refuse(address)
        else:
            self._admit(address)

    def _versions(self, versions: Mapping[str, Any], label: Any) -> list[dict[str, Any]]:
        """Compare what a worker registers with: enough to know whether it can be talked to at all."""
        theirs = dict(versions.get("packages") or {})
        ours = dict(self._own_versions()["packages"])
        where = str((versions.get("host") or {}).get("node", ""))
        found = []
        for name in sorted(self.door, key=lambda name: (name != "python", name)):
            left, right = ours.get(name), theirs.get(name)
            if name == "python":
                left, right = (".".join(str(value or "").split(".")[:3]) for value in (left, right))
                differs = left.split(".")[:2] != right.split(".")[:2]
            else:
                differs = left != right
            if differs:
                found.append(
                    {
                        "severity": FATAL,
                        "kind": "python" if name == "python" else "version",
                        "subject": name,
                        "left": str(left or ""),
                        "right": str(right or ""),
                        "where": where,
                        "process": f"worker {label}",
                        "advice": "start this worker in the cluster's environment",
                    }
                )
        return found

    def _own_versions(self) -> dict[str, Any]:
        from distributed.versions import get_versions

        return cast(Dict[str, Any], get_versions())

    def _remember_refused(
        self, address: str, label: Any, differences: list[dict[str, Any]], trouble: str
    ) -> str:
        text = "envsync refused " + self._sentence(label, differences, trouble)
        logger.error("%s", text)
        entry = {
            "address": address,
            "name": label,
            "state": "refused",
            "differences": differences,
            "trouble": trouble,
            "time": time.time(),
        }
        self.refused.append(entry)
        del self.refused[:-REMEMBERED]
        self.scheduler.log_event(TOPIC, {"action": "refused", **entry})
        return text

    @staticmethod
    def _sentence(label: Any, differences: list[dict[str, Any]], trouble: str) -> str:
        bad = [one for one in differences if one["severity"] in (FATAL, ERROR)]
        parts = [
            "{} is {} there and {} is wanted".format(
                one["subject"], one["right"] or "missing", one["left"] or "none"
            )
            for one in bad[:5]
        ]
        if len(bad) > 5:
            parts.append(f"and {len(bad) - 5} more")
        if trouble:
            parts.append(trouble)
        return "worker {}: {}".format(label, "; ".join(parts))
