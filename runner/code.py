"""Ship local code that changed to a running cluster, and have every process read it anew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from envsync.errors import CaptureError, ClusterError
from envsync.plugins.activate import swap
from envsync.plugins.carried import Carried
from envsync.runner.places import wanted_of
from envsync.runner.telling import tell_left_out
from envsync.stores.pulling import Pulled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.places import Place
    from envsync.runner.processes import DaskProcess
    from envsync.snapshot import Snapshot
    from envsync.trees import Manifest

__all__ = ["code_now", "look_here", "ship", "with_code"]

Trees = tuple[tuple["Manifest", str], ...]


async def ship(cluster: SyncedCluster, *, timeout: float = 60.0) -> int:
    """Send what changed to all hosts, and restart the workers with it.

    Parameters
    ----------
    cluster : SyncedCluster
        A running one.
    timeout : float
        Seconds that the workers have to restart.

    Returns
    -------
    int
        How many source trees changed.

    Raises
    ------
    ClusterError
        A process could not be changed.
    """
    prepared = cluster.prepared
    before = {tree.name: tree.digest for tree, _ in prepared[0].trees}
    manifests = await code_now(cluster)
    after = {manifest.name: manifest.digest for manifest in manifests}
    changed = len({name for name in {**before, **after} if before.get(name) != after.get(name)})
    if not changed:
        return 0
    tell_left_out(manifests, cluster.hooks, before=[tree for tree, _ in prepared[0].trees])
    began = time.monotonic()
    places = [*dict.fromkeys([*cluster.places, *(process.place for process in _processes(cluster))])]
    folders = await asyncio.gather(*(place.session.place_trees(manifests) for place in places))
    trees = {
        place: tuple(zip(manifests, there, strict=True)) for place, there in zip(places, folders, strict=True)
    }
    cluster.prepared = [
        replace(one, trees=trees[place]) for one, place in zip(prepared, cluster.places, strict=True)
    ]
    if cluster.queue is not None:
        cluster.queue.first = cluster.prepared[-1]  # what later jobs get
    await _turn(cluster, trees, timeout)
    cluster.hooks.done("cluster", f"{changed} source trees changed", time.monotonic() - began)
    return changed


async def code_now(cluster: SyncedCluster) -> list[Manifest]:
    """Pack the local code of a cluster's client as it is now; where a lock was given, what that names.

    What was pulled from a store need not be here, and then stays as it was pushed.
    """
    trees = [tree for tree, _ in cluster.prepared[0].trees]
    names = None if cluster.wanted_lock is None else {tree.name for tree in trees}
    packed = await asyncio.to_thread(pack_code, cluster.cwd, names)
    if not isinstance(cluster.wanted_lock, Pulled):
        return packed
    here = {manifest.name: manifest for manifest in packed}
    return [here.get(tree.name, tree) for tree in trees]


def pack_code(cwd: str | None, wanted: set[str] | None = None) -> list[Manifest]:
    """Pack the source trees of this process; of `wanted` names only, if they are given."""
    from envsync.snapshot import capture
    from envsync.store import default_store
    from envsync.trees import pack_all

    return pack_all(capture(cwd=cwd), default_store(), lambda tree: wanted is None or tree.name in wanted)


def look_here(cwd: str | None) -> tuple[Snapshot, list[Manifest], dict[str, Any]]:
    """Return what a cluster needs that nobody shipped anything to: packages, and the local code in files.

    Parameters
    ----------
    cwd : str or None
        A working directory whose code tasks may import; code on ``sys.path`` counts anyhow.

    Returns
    -------
    Snapshot, list of Manifest, Report
        This environment, as it ships; its local code, put into the store; both as what is wanted.

    Raises
    ------
    CaptureError
        The working directory is not there.
    """
    from envsync.snapshot import capture
    from envsync.store import default_store
    from envsync.trees import pack_all
    from envsync.wheels import as_shipped

    if cwd is not None and not Path(cwd).is_dir():
        raise CaptureError(f"{cwd} is no folder", hint="cwd= is the folder of the modules that tasks import.")
    store = default_store()
    snapshot = as_shipped(capture(cwd=cwd), store)
    report = snapshot.report(tools=True)
    manifests = pack_all(snapshot, store, lambda tree: tree.distribution not in report["tools"])
    return snapshot, manifests, with_code(report, manifests)


def with_code(report: Mapping[str, Any], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Add local code to a Report, file by file, for processes that nobody shipped it to."""
    from envsync.trees import code_of

    code = code_of(manifests)
    return {**report, "trees": {name: one["digest"] for name, one in code.items()}, "code": code}


def _processes(cluster: SyncedCluster) -> list[DaskProcess]:
    """Return the scheduler and all workers: a job, or a host, has several."""
    workers = [each for worker in cluster.workers.values() for each in worker.workers]
    return [cluster.scheduler, *workers]


async def _turn(cluster: SyncedCluster, trees: Mapping[Place, Trees], timeout: float) -> None:
    """Have the scheduler and the nannies use the new folders, then start every worker anew."""
    assert cluster.launch is not None
    old = {place: [*place.front, *place.back] for place in trees}
    for place, found in trees.items():
        place.put(found)
    cluster.wanted = wanted_of(cluster.prepared, before=cluster.wanted)
    if cluster.launch.common.get("wanted") is not None:
        cluster.launch.common["wanted"] = cluster.wanted
        await cluster.scheduler_comm.envsync_expect(wanted=cluster.wanted)

    def call(place: Place) -> dict[str, Any]:
        return {
            "function": pickle.dumps(Carried(swap)),
            "args": pickle.dumps((old[place], place.front, place.back)),
            "kwargs": pickle.dumps({}),
            "wait": True,
        }

    answers = [await cluster.scheduler_comm.run_function(**call(cluster.scheduler.place))]
    addresses = await cluster.addresses()
    _, *workers = _processes(cluster)
    alike: dict[Any, tuple[Place, list[str]]] = {}  # on a folder that nodes share it is one message for all
    for worker in workers:
        place = worker.place
        if worker.name in addresses and place in old:
            key = (tuple(old[place]), place.front, place.back)
            alike.setdefault(key, (place, []))[1].append(addresses[worker.name])
    broadcasts = await asyncio.gather(
        *(
            cluster.scheduler_comm.broadcast(
                msg={"op": "run", **call(place)},
                workers=those,
                nanny=cluster.options.nanny,
                on_error="return_pickle",
            )
            for place, those in alike.values()
        )
    )
    answers += [answer for broadcast in broadcasts for answer in broadcast.values()]
    for answer in answers:
        if isinstance(answer, bytes):
            raise ClusterError("a process could not be given the new code") from pickle.loads(answer)
        if answer["status"] != "OK":
            raise ClusterError(
                f"a process could not be given the new code: {answer.get('exception_text') or answer}",
                hint="Start the cluster again.",
            )
    if cluster.options.nanny and alike:
        try:
            await cluster.scheduler_comm.restart(timeout=timeout, stimulus_id=f"envsync-sync-{time.time()}")
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise ClusterError(
                f"the code is there, but not all workers restarted with it within {timeout:g} s",
                hint="Restart them: client.restart(). Tasks that block a worker's process delay its end.",
            ) from error
