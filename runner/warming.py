"""Processes of workers that start beside the scheduler: they import, and are told the rest later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from envsync.errors import EnvsyncError
from envsync.runner.processes import WorkerProcess, process_name, worker_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.clouds import Cloud
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.places import Place
    from envsync.runner.remote import Remote

__all__ = ["Warm", "begin_first"]

_MOMENT = 0.5  # seconds that one which nobody wants has to end by itself


class Warm:
    """The processes that were begun ahead, each for one worker.

    Parameters
    ----------
    cluster : str
        Whose they are.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._begun: dict[tuple[Place, str], tuple[Mapping[str, str | None], asyncio.Future[Remote]]] = {}

    def begin(self, place: Place, name: str, variables: Mapping[str, str | None]) -> None:
        """Start one; it waits for `Remote.hand`.

        Parameters
        ----------
        place : Place
            Where, with the environment on it.
        name : str
            What the worker's process is called there.
        variables : mapping
            Its environment variables.
        """
        argv = [place.python, place.session.agent, "process", "worker", "-"]
        spawning = place.session.spawn(name, argv, env=variables, cluster=self._cluster)
        task = asyncio.ensure_future(spawning)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._begun[place, name] = dict(variables), task

    async def take(self, place: Place, name: str, variables: Mapping[str, str | None]) -> Remote | None:
        """Return the one that is of this name, if it is as it would be if it started now."""
        begun = self._begun.pop((place, name), None)
        if begun is None:
            return None
        known, task = begun
        try:
            remote = await task
        except EnvsyncError:  # whoever starts it now hears why
            return None
        if known == variables and remote.running:
            return remote
        await remote.stop(_MOMENT)
        return None

    async def close(self) -> None:
        """End those that nobody took."""
        await asyncio.gather(*(self.take(place, name, {}) for place, name in [*self._begun]))


def begin_first(cluster: SyncedCluster) -> None:
    """Begin the workers that a cluster has from its start, on hosts that are there.

    Parameters
    ----------
    cluster : SyncedCluster
        Whose environment is on its places, and whose scheduler is about to start.
    """
    launch, options = cluster.launch, cluster.options
    assert launch is not None
    assert launch.warm is not None
    if cluster.image is not None or options.worker_class is not None or options.gpu_worker is not None:
        return
    first: list[tuple[Place, Any]] = []
    if cluster.backend.rents:  # the others boot still
        suffixes = cast("Cloud", cluster.backend).group.suffixes
        first = [
            (cluster.places[0], name + suffix) for name in [*cluster.worker_spec][:1] for suffix in suffixes
        ]
    elif cluster.queue is None:
        first = [(spec["options"]["place"], name) for name, spec in cluster.worker_spec.items()]
    for place, name in first:
        variables = {**place.environment(), **worker_variables(launch.common)}
        launch.warm.begin(place, process_name(f"{WorkerProcess.role} {name}"), variables)
