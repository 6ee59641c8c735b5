"""Processes of workers that start beside the scheduler: they import, and are told the rest later."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from envsync.errors import EnvsyncError
from envsync.plugins.spare import AT_START
from envsync.runner.processes import MOMENT, WorkerProcess, process_name, worker_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.clouds import Cloud
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.places import Place
    from envsync.runner.remote import Remote

__all__ = ["Warm", "begin_first"]

_FIRST = "first.json"


class Warm:
    """The processes that were begun ahead, each for one worker.

    Parameters
    ----------
    cluster : str
        Whose they are.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._begun: dict[tuple[Place, str], tuple[_Essentials, asyncio.Future[Remote]]] = {}

    def begin(
        self, place: Place, name: str, variables: Mapping[str, str | None], config: Mapping[str, Any]
    ) -> None:
        """Start one; it waits for `Remote.hand`.

        Parameters
        ----------
        place : Place
            Where, with the environment on it.
        name : str
            What the worker's process is called there.
        variables : mapping
            Its environment variables.
        config : mapping
            Its configuration as far as it is known: what is read when distributed is imported.
        """
        essentials = _Essentials.of(variables, config)
        argv = [place.python, place.session.agent, "process", "worker", "-", _FIRST]
        files = {_FIRST: json.dumps(essentials.first).encode()}
        spawning = place.session.spawn(name, argv, env=variables, files=files, cluster=self._cluster)
        task = asyncio.ensure_future(spawning)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._begun[place, name] = essentials, task

    async def take(
        self, place: Place, name: str, variables: Mapping[str, str | None], config: Mapping[str, Any]
    ) -> Remote | None:
        """Return the one that is of this name, if it is as it would be if it started now."""
        begun = self._begun.pop((place, name), None)
        if begun is None:
            return None
        known, task = begun
        try:
            remote = await task
        except EnvsyncError:  # whoever starts it now hears why
            return None
        if known == _Essentials.of(variables, config) and remote.running:
            return remote
        await remote.stop(MOMENT)
        return None

    async def close(self) -> None:
        """End those that nobody took."""
        await asyncio.gather(*(self.take(place, name, {}, {}) for place, name in [*self._begun]))


@dataclass(frozen=True, slots=True)
class _Essentials:
    """What a process cannot be told any more when it has imported distributed."""

    variables: Mapping[str, str | None]
    first: Mapping[str, Any]

    @classmethod
    def of(cls, variables: Mapping[str, str | None], config: Mapping[str, Any]) -> _Essentials:
        later = {
            name: value for name, value in (config.get("env") or {}).items() if name.startswith(AT_START)
        }
        # as it arrives there; what is empty says no more than what is not there
        first = json.loads(json.dumps({name: config.get(name) or None for name in ("cpus", "dask")}))
        return cls({**variables, **later}, first)


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
    first: list[tuple[Place, Any, Mapping[str, Any]]] = []
    if cluster.backend.rents:  # the others boot still
        suffixes = cast("Cloud", cluster.backend).group.suffixes
        first = [
            (cluster.places[0], name + suffix, {})
            for name in [*cluster.worker_spec][:1]
            for suffix in suffixes
        ]
    elif cluster.queue is None:
        specs = {name: spec["options"] for name, spec in cluster.worker_spec.items()}
        first = [(spec["place"], name, spec["config"]) for name, spec in specs.items()]
    for place, name, config in first:
        variables = {**place.environment(), **worker_variables(launch.common)}
        label = process_name(f"{WorkerProcess.role} {name}")
        launch.warm.begin(place, label, variables, {**launch.common, **config})
