"""A cluster's start until Dask's own: hosts, the environment on them, and what is to run there.

::

    read      what its user named: a lock, an image, a store; refused before anything is rented or reached
    acquire   hosts; what rented machines need is made ready while these boot
    prepare   the environment is on them, and verified
    lay out   seats on hosts, or jobs, or machines: SpecCluster's specifications
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import dask.config

from envsync.runner.cloud.costs import duration
from envsync.runner.forwarding import forwardings
from envsync.runner.gpus import demand_dask_cuda, tell_missing
from envsync.runner.locking import Locks, read_lock
from envsync.runner.options import plain_config
from envsync.runner.places import Place, wanted_of
from envsync.runner.processes import Launch, SchedulerProcess
from envsync.runner.queues import Batch
from envsync.runner.seats import Seats
from envsync.runner.warming import Warm, begin_first
from envsync.store import default_store
from envsync.stores import open_store
from envsync.stores.pulling import Pulled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from envsync.lock import Lock
    from envsync.runner.clouds import Cloud
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.containers import ImageName
    from envsync.runner.filling import Filling
    from envsync.runner.hosts.base import Host
    from envsync.runner.provision import Prepared
    from envsync.runner.taking import Giver
    from envsync.stores import SharedStore

__all__ = ["provision"]

_QUEUE = 1e9  # seconds that jobs may wait: for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What a user named, read.

    Attributes
    ----------
    wanted : Lock, Pulled or None
        What to run in; None: this environment, as it is now.
    image : ImageName or None
        What to run from.
    shared : SharedStore or None
        What hosts may take from it by themselves.
    """

    wanted: Lock | Pulled | None
    image: ImageName | None
    shared: SharedStore | None

    @property
    def lock(self) -> Lock | None:
        """The lock of what is wanted."""
        return self.wanted.lock if isinstance(self.wanted, Pulled) else self.wanted


async def provision(cluster: SyncedCluster) -> None:
    """Make the environment exist on every host of a cluster, and lay out what will run there.

    What there is to close is the cluster's as soon as it is there.

    Parameters
    ----------
    cluster : SyncedCluster
        Its `wanted_lock` is what was read, and its `scheduler_spec` and `worker_spec` are SpecCluster's.

    Raises
    ------
    EnvsyncError
        Something was named that is not there, a host is not reached or not fit, ...
    """
    named = await _read(cluster)
    await cluster._watch.demand(cluster.options.n_workers)
    if cluster.backend.rents:
        idle = cluster._watch.limits.idle
        end = "does not end by itself" if idle is None else f"ends after {duration(idle)}"
        cluster.hooks.note("cluster", f"when nothing is computed it {end} (idle_timeout)")
    cluster._forwardings = forwardings(
        cluster.credentials, cluster.impersonate, cluster.backend.profile, cluster.hooks
    )
    for forwarding in cluster._forwardings:
        await forwarding.open()
    await cluster._begin_record(cluster.options.n_workers)
    made = Locks(cluster.hooks)
    filling, giver = _aside(cluster, named.shared)
    cluster._hosts = await _acquire(cluster, named.lock, made, filling)
    preparing = _preparing(cluster, named, made)
    cluster.prepared = await preparing(cluster._hosts, giver=giver)
    if named.image is not None:
        await _judge_image(cluster, cluster.prepared[0])
    cluster.places = tuple(Place.of(prepared) for prepared in cluster.prepared)
    cluster.wanted = wanted_of(cluster.prepared)
    cluster.launch = _launch(cluster, cluster.wanted)
    if cluster.backend.rents:
        from envsync.runner.machines import Machines

        cluster.queue = Machines.of(cluster, preparing)
        scheduler = cluster.places[0]
    elif isinstance(cluster.backend, Batch):
        scheduler = await _open_jobs(cluster, cluster.backend, named, made)
    else:
        scheduler = _take_seats(cluster)
    cluster.scheduler_spec = _scheduler_spec(cluster, scheduler)
    if cluster.queue is not None:
        cluster._plan_jobs(cluster.queue.fleet(cluster.worker_spec, cluster.workers))
    else:
        assert cluster.seats is not None
        cluster.new_spec = cluster._spec(*cluster.seats.form())
        for _ in range(cluster.seats.initial):
            cluster.worker_spec.update(cluster.new_worker_spec())
    begin_first(cluster)


async def _read(cluster: SyncedCluster) -> _Named:
    """Read what was named, and refuse what this process or the lock has not."""
    from envsync.runner.verifying import demand_client

    options = cluster.options
    wanted = cluster.wanted_lock = await asyncio.to_thread(read_lock, cluster.wanted_lock)
    lock = wanted.lock if isinstance(wanted, Pulled) else wanted
    if lock is not None and options.on_mismatch != "ignore":
        await asyncio.to_thread(demand_client, lock, options.on_mismatch, cluster.hooks)
    if options.gpu_worker is not None and cluster.image is None:
        demand_dask_cuda(lock)
    image = None
    if cluster.image is not None:
        from envsync.runner.containers import image_of

        image = await asyncio.to_thread(image_of, cluster.image, cluster.engine)
    shared = await asyncio.to_thread(open_store, cluster.store) if cluster.store else None
    return _Named(wanted=wanted, image=image, shared=shared)


def _aside(cluster: SyncedCluster, shared: SharedStore | None) -> tuple[Filling | None, Giver | None]:
    """Return what fills a store while machines boot, and who gives them what it has then."""
    if shared is None or not cluster.backend.rents:
        return None, None
    from envsync.runner.filling import Filling
    from envsync.runner.taking import Taking

    filling = Filling(default_store(), shared, cluster.hooks)
    return filling, Taking(shared, cluster.hooks, filling=filling)


async def _acquire(
    cluster: SyncedCluster, lock: Lock | None, locks: Locks, filling: Filling | None
) -> list[Host]:
    """Have the hosts; what rented machines need is made ready while they come up."""
    acquiring = cluster.backend.acquire(
        cluster=cluster._run_name, n_workers=cluster.options.n_workers, hooks=cluster.hooks
    )
    if not cluster.backend.rents or cluster.image is not None or isinstance(cluster.wanted_lock, Pulled):
        return await acquiring
    from envsync.runner.ahead import while_booting

    return await while_booting(
        acquiring,
        cast("Cloud", cluster.backend),
        locks,
        lock=lock,
        filling=filling,
        cwd=cluster.cwd,
        hooks=cluster.hooks,
    )


def _preparing(
    cluster: SyncedCluster, named: _Named, locks: Locks
) -> Callable[..., Awaitable[list[Prepared]]]:
    """Return what makes the environment on hosts of this cluster, now and later."""
    from envsync.runner.provision import prepare

    return partial(
        prepare,
        lock=named.wanted,
        locks=locks,
        image=named.image,
        shared=named.shared,
        cache=cluster.backend.cache,
        grace=cluster.backend.grace,
        lease=cluster.backend.lease,
        on_mismatch="raise" if cluster.options.on_mismatch == "raise" else "warn",
        hooks=cluster.hooks,
        cwd=cluster.cwd,
    )


async def _judge_image(cluster: SyncedCluster, prepared: Prepared) -> None:
    """Take the lock that is in an image, and compare this process with it."""
    from envsync.runner.verifying import demand_client, tell_image_code

    options, hooks = cluster.options, cluster.hooks
    lock = cluster.wanted_lock = prepared.lock
    if options.gpu_worker is not None:
        demand_dask_cuda(lock)
    if options.on_mismatch != "ignore":
        trees = [tree for tree, _ in prepared.trees]
        await asyncio.to_thread(demand_client, lock, options.on_mismatch, hooks)
        await asyncio.to_thread(tell_image_code, trees, cluster.cwd, hooks)


def _launch(cluster: SyncedCluster, wanted: dict[str, Any]) -> Launch:
    on_mismatch = cluster.options.on_mismatch
    return Launch(
        cluster=cluster._run_name,
        common={
            "dask": plain_config(dask.config.global_config, cluster.hooks),
            "wanted": None if on_mismatch == "ignore" else wanted,
            "on_mismatch": on_mismatch,
            "report_timeout": cluster._report_timeout,
        },
        credentials=cluster.trust.credentials,
        start_timeout=cluster._start_timeout,
        hooks=cluster.hooks,
        lost=cluster._process_lost,
        terminate=cluster._terminate,
        retire=cluster._retire,
        remove=cluster._remove,
        forwardings=cluster._forwardings,
        warm=Warm(cluster._run_name),
    )


async def _open_jobs(cluster: SyncedCluster, backend: Batch, named: _Named, made: Locks) -> Place:
    """Have a batch system take jobs; return where the scheduler runs."""
    from envsync.runner.jobs import Jobs

    assert cluster.launch is not None
    jobs = cluster.queue = await Jobs.open(
        backend=backend,
        first=cluster.prepared[-1],
        launch=cluster.launch,
        options=cluster.options,
        encrypted=cluster.trust.encrypted,
        snapshot=made.snapshot,
        locks=made if named.wanted is None and named.image is None else None,
        want=cluster._want,
        left=cluster._job_left,
    )
    return await jobs.scheduler_place() if backend.scheduler == "job" else cluster.places[0]


def _take_seats(cluster: SyncedCluster) -> Place:
    """Lay out the hosts that are there; return where the scheduler runs."""
    if not cluster.backend.local:
        for place in cluster.places:
            tell_missing(place.name, place.session.facts, cluster.hooks)
    cluster.seats = Seats.of(
        cluster.options, cluster.places, workers_on_first=cluster.backend.workers_on_first
    )
    return cluster.places[0]


def _scheduler_spec(cluster: SyncedCluster, place: Place) -> dict[str, Any]:
    options = cluster.options
    return {
        "cls": SchedulerProcess,
        "options": {
            "launch": cluster.launch,
            "place": place,
            "config": {
                "options": options.scheduler(encrypted=cluster.trust.encrypted),
                "addresses": list(place.addresses),
                "limits": cluster._watch.to_scheduler(
                    waits=_QUEUE if isinstance(cluster.backend, Batch) else cluster._start_timeout,
                    nanny=options.nanny,
                ),
            },
            "reach": cluster._reach,
            "said": cluster._scheduler_said,
        },
    }
