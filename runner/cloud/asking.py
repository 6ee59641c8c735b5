"""A cloud, asked by many at once: its calls block, and go on in threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from envsync.runner.cloud.provider import Machine, Provider

__all__ = ["Asking"]

T = TypeVar("T")

_AT_ONCE = 32  # calls: all machines of a usual cluster are asked for at the same time


class Asking:
    """A provider, asked for one cluster.

    Parameters
    ----------
    provider : Provider
        Who is asked.
    cluster : str
        The cluster's name.

    Attributes
    ----------
    threads : ThreadPoolExecutor
        In which it is asked.
    """

    def __init__(self, provider: Provider, cluster: str) -> None:
        self.threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="envsync-cloud")
        self._provider = provider
        self._cluster = cluster
        self._described: dict[str, asyncio.Future[tuple[Machine, ...]]] = {}

    async def call(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call it in a thread. Whoever cancels waits for its end: what it makes is then known to be there."""
        task = self.begin(call, *arguments)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    def begin(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Call it in a thread, and return what becomes of it."""
        return asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    async def describe(self, region: str) -> tuple[Machine, ...]:
        """Describe the machines, once however many ask at the same time."""
        asked = self._described.get(region)
        if asked is None:
            asked = asyncio.ensure_future(self.call(self._provider.describe, region, self._cluster))
            self._described[region] = asked
            asked.add_done_callback(lambda _: self._described.pop(region, None))
        return await asyncio.shield(asked)

    async def console(self, machine: Machine) -> str:
        """Return a machine's console; nothing where a cloud has none."""
        if not self._provider.has_console:
            return ""
        return await self.call(self._provider.console, machine.region, machine.id)

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        self.threads.shutdown(wait=False)
