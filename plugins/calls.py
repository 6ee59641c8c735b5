"""Run functions of ours in the workers and nannies of a scheduler, where our modules are not installed."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Callable, Collection, Mapping

from distributed.core import rpc
from distributed.metrics import time
from distributed.protocol.pickle import dumps

from .carried import by_value, other_python

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Calls"]

AT_ONCE = 64  # processes that are spoken to at the same time
LOOK = 5.0  # seconds between two looks at one that has not answered
MISSED = 12  # looks in a row at one that is not alive, after which no answer is waited for
SILENCE = 60.0  # seconds without a heartbeat after which a worker may not be alive


class Calls:
    """Speaks to the workers and nannies of a scheduler.

    Parameters
    ----------
    scheduler : Scheduler
        Whose workers they are.
    threads : Executor
        What travels is pickled there: the event loop has other things to do.
    """

    def __init__(self, scheduler: Scheduler, threads: Executor) -> None:
        self.scheduler: Any = scheduler
        self._threads = threads

    async def run(
        self,
        addresses: Collection[str],
        function: Callable[..., Any],
        argument: Any,
        options: Callable[[str], Mapping[str, Any]],
    ) -> dict[str, dict[str, Any]]:
        """Run ``function(argument, dask_worker=..., **options(address))`` in some processes at once.

        Those of another Python are passed over: what travels by value would end them. The gate knows them.

        Parameters
        ----------
        addresses : collection of str
            Of workers or nannies.
        function : coroutine function
            Returns a dict with ``trouble`` and others.
        argument : object
            Of plain types.
        options : callable
            Other arguments, by address.

        Returns
        -------
        dict
            What it returned, by address. Where it could not be run, ``trouble`` says why.
        """
        foreign = self.foreign()
        addresses = list(addresses)
        passed = {address: _nothing() for address in addresses if address in foreign}
        addresses = [address for address in addresses if address not in foreign]
        if not addresses:
            return passed
        loop = asyncio.get_running_loop()
        carried = await loop.run_in_executor(self._threads, lambda: (by_value(function), dumps((argument,))))
        room = asyncio.Semaphore(AT_ONCE)

        async def one(address: str) -> dict[str, Any]:
            async with room:
                return await self._one(address, carried, dumps(dict(options(address))))

        answers = await asyncio.gather(*(one(address) for address in addresses))
        return {**passed, **dict(zip(addresses, answers))}

    def foreign(self) -> set[Any]:
        """Return the workers, and their nannies, that run another Python minor version than the scheduler."""
        return {
            address
            for known in self.scheduler.workers.values()
            if other_python(known.versions)
            for address in (known.address, known.nanny)
        }

    async def _one(self, address: str, carried: tuple[bytes, bytes], kwargs: bytes) -> dict[str, Any]:
        trouble = ""
        call = asyncio.ensure_future(self._call(address, carried, kwargs))
        try:
            missed = 0
            while not call.done() and missed < MISSED:
                await asyncio.wait({call}, timeout=LOOK)
                missed = 0 if self._is_alive(address) else missed + 1
            if not call.done():
                return _nothing("it does not answer, and the scheduler has not heard of it for long")
            answer = call.result()
            if answer["status"] == "OK":
                return dict(answer["result"])
            trouble = str(answer.get("exception_text") or answer)
        except Exception as error:  # noqa: BLE001 - one process must not keep the others from being asked
            trouble = f"{type(error).__name__}: {error}"
        finally:
            call.cancel()
        return _nothing(trouble)

    async def _call(self, address: str, carried: tuple[bytes, bytes], kwargs: bytes) -> Any:
        async with rpc(address, connection_args=self.scheduler.connection_args) as comm:
            return await comm.run(function=carried[0], args=carried[1], kwargs=kwargs, wait=True)

    def _is_alive(self, address: str) -> bool:
        """Tell whether a worker, or a nanny's, was heard of lately: who is suspended says nothing."""
        since = time() - SILENCE
        return any(
            known.last_seen > since
            for known in self.scheduler.workers.values()
            if address in (known.address, known.nanny)
        )


def _nothing(trouble: str = "") -> dict[str, Any]:
    return {"differences": [], "trouble": trouble, "restart": [], "untouched": False}
