"""Restart workers that run, and lose nothing: no running task is cut, no task blamed, no result gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from distributed.comm import connect
from distributed.core import Status, rpc

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Restarts"]

SETTLED = 10.0  # seconds
SILENT = 10.0  # seconds for which a nanny that lives may be too busy to be spoken to
ADMITTED = ("equal", "different", "restart-needed")


class Restarts:
    """Restarts workers of a scheduler through their nannies.

    Parameters
    ----------
    scheduler : Scheduler
        Of those workers.
    gate : Gate or alike
        In front of it: it keeps tasks from workers that are to restart, and looks at those that come back.
    patience : float
        Seconds that running tasks have to end.
    timeout : float
        Seconds that a worker has to come back.
    """

    def __init__(self, scheduler: Scheduler, gate: Any, *, patience: float, timeout: float = 120.0) -> None:
        self.scheduler: Any = scheduler
        self.gate = gate
        self.patience = patience
        self.timeout = timeout

    async def restart(self, addresses: list[str]) -> dict[str, tuple[str, str]]:
        """Restart workers: at once those that hold no data, then one by one those that do.

        Returns
        -------
        dict
            By the address that it had: the new one, and "" or why it was not restarted.
        """
        state = self.scheduler.workers
        free = [address for address in addresses if address in state and not state[address].has_what]
        told = await asyncio.gather(*(self._one(address, data=False) for address in free))
        answers = {address: answer for address, answer in zip(free, told) if answer is not None}
        for address in addresses:
            if address not in answers:
                answers[address] = await self._one(address, data=True) or ("", "")
        return answers

    async def _one(self, address: str, *, data: bool) -> tuple[str, str] | None:
        """Restart a worker; None if it holds data and is not to be restarted then."""
        known = self.scheduler.workers.get(address)
        if known is None:
            return "", "it has left"
        if not await self._emptied(address):
            return address, f"its tasks still ran after {self.patience:g} s: sync again when they have ended"
        if known.has_what and not data:
            self._open(address)  # others that restart now could not take it
            return None
        trouble = await self._data_moved(address)
        if trouble:
            self._open(address)
            return address, trouble
        nanny, name, server = known.nanny, known.name, known.server_id
        seen = len(self.gate.refused)
        try:
            async with rpc(nanny, connection_args=self.scheduler.connection_args) as comm:
                await asyncio.wait_for(comm.kill(reason="envsync-restart"), self.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            self._open(address)
            return address, f"its nanny did not restart it: {type(error).__name__}: {error}"
        return await self._back(nanny, name, server, seen)

    async def _emptied(self, address: str) -> bool:
        """Give it no new task, and wait until it has none; whether that happened in time.

        While one of its tasks has seceded it goes on: such a task may wait for others that only run here.
        """
        end = time.monotonic() + self.patience
        wait = 0.005
        while True:
            known = self.scheduler.workers.get(address)
            if known is None:
                return True
            if known.long_running:
                self._open(address)
            else:
                self._shut(address)
                if not known.processing:
                    return True
            if time.monotonic() > end:
                self._open(address)
                return False
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.1)

    async def _data_moved(self, address: str) -> str:
        """Have copies elsewhere of all that only this worker holds; "" or why not."""
        known = self.scheduler.workers.get(address)
        if known is None or not (known.has_what or known.actors):
            return ""
        if known.actors:
            return "it holds actors, which cannot be moved"
        end = time.monotonic() + SETTLED
        while not self.scheduler.running - {known} and time.monotonic() < end:
            if len(self.scheduler.workers) < 2:
                break
            await asyncio.sleep(0.02)  # one that was just let go on has not yet said so
        done = await self.scheduler.retire_workers(
            workers=[address],
            close_workers=False,
            remove=False,
            stimulus_id=f"envsync-restart-{time.time()}",
        )
        if address in done:
            return ""
        alone = [task for task in known.has_what if len(task.who_has or ()) < 2]
        lost = [task for task in alone if not task.run_spec]
        others = [one for one in self.scheduler.workers if one != address]
        if others or lost:
            return f"what it holds ({len(alone)} results) could not be moved to another worker"
        return ""  # the only worker: what it holds can be computed again, and will be

    async def _back(self, nanny: str, name: Any, server: str, seen: int) -> tuple[str, str]:
        end = time.monotonic() + self.timeout
        gone = asyncio.ensure_future(self._gone(nanny))
        try:
            return await self._awaited(nanny, name, server, seen, end, gone)
        finally:
            gone.cancel()

    async def _gone(self, nanny: str) -> None:
        """Wait until a nanny does not answer any more: its job was cancelled, or its machine went off."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            while True:
                # connect's own timeout does not end where somebody listens and says nothing
                comm = await asyncio.wait_for(connect(nanny, **self.scheduler.connection_args), SILENT)
                await comm.close()
                await asyncio.sleep(1)

    async def _awaited(
        self, nanny: str, name: Any, server: str, seen: int, end: float, gone: asyncio.Future[None]
    ) -> tuple[str, str]:
        while time.monotonic() < end:
            for address, known in list(self.scheduler.workers.items()):
                again = known.nanny == nanny and known.server_id != server
                if again and self.gate.workers.get(address, {}).get("state") in ADMITTED:
                    return address, ""
            for past in self.gate.refused[seen:]:
                if past["name"] == name:
                    return past["address"], ""
            if gone.done():
                return "", "its nanny has gone, and the worker with it"
            await asyncio.sleep(0.02)
        return "", f"it did not come back within {self.timeout:g} s"

    def _shut(self, address: str) -> None:
        if address in self.gate.shut:
            return
        self.gate.shut.add(address)
        known = self.scheduler.workers[address]
        if known.status == Status.running:
            self.scheduler.handle_worker_status_change("paused", known, f"envsync-shut-{time.time()}")

    def _open(self, address: str) -> None:
        known = self.scheduler.workers.get(address)
        if address not in self.gate.shut or known is None:
            return
        self.gate.shut.discard(address)
        # It may have been told to pause or to close gracefully, which we never finish.
        with contextlib.suppress(KeyError, OSError):
            self.scheduler.stream_comms[address].send(
                {
                    "op": "worker-status-change",
                    "status": "running",
                    "stimulus_id": f"envsync-open-{time.time()}",
                }
            )
