"""A Dask cluster whose processes all run in this environment, made to exist where they run."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import inspect
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask.config
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.utils import format_dashboard_link

from envsync.errors import ClusterError, EnvsyncError, LimitReached
from envsync.runner.backends import Backend, Local
from envsync.runner.closing import Closing
from envsync.runner.forwarding import Forwarding, demand_sense
from envsync.runner.groups import counts
from envsync.runner.keywords import demand, demand_known
from envsync.runner.limits import Limits, Watch, cancel_futures, said
from envsync.runner.logged import logger, unsaid
from envsync.runner.notebooks import hooks_here
from envsync.runner.options import Options, image_in, run_name, without_deprecated
from envsync.runner.places import Place, with_variant
from envsync.runner.processes import DaskProcess, Launch, SchedulerProcess, WorkerProcess
from envsync.runner.profiles import takes_profile
from envsync.runner.queues import Batch
from envsync.runner.recorded import RecordedCluster
from envsync.runner.recording import FAILED
from envsync.runner.starting import provision
from envsync.runner.timeouts import wait_for
from envsync.runner.trust import Trust
from envsync.runner.tunnel import reach_scheduler
from envsync.runner.verification import tell_let_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
    from pathlib import Path

    from distributed.security import Security

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.fleet import Fleet
    from envsync.runner.hosts.base import Host
    from envsync.runner.jobs import Jobs
    from envsync.runner.machines import Machines
    from envsync.runner.provision import Prepared
    from envsync.runner.seats import Seats
    from envsync.runner.verification import Verification
    from envsync.stores.pulling import Pulled

__all__ = ["SyncedCluster"]

_CLOSING = 20.0  # seconds that a scheduler has to close when it has said that it does


class SyncedCluster(RecordedCluster):
    """Start a scheduler and workers in a reproduction of this environment.

    Without a backend it is a cluster on this machine and takes LocalCluster's keywords; its processes run in
    an environment made from the lock in the cache, never in this process's own.

    Parameters
    ----------
    backend : Backend or str, optional
        Where, such as ``SSH(["node1", "node2"])``; this machine if not given. Or the name of a profile of
        Dask's configuration, whose other keywords count where they are not given here.
    name : str, optional
        What it is called.
    n_workers : int or mapping, optional
        How many workers in all. By default as many as LocalCluster would start, on each host; on hosts with
        GPUs one per GPU. On a batch system none by default; where there are groups of jobs, a number is of
        the first, and ``{"cpu": 10, "gpu": 2}`` of each.
    threads_per_worker : int, optional
        Threads of each worker.
    memory_limit : str, float, int or None
        Of each worker: ``"auto"``, a fraction of the host's memory, an amount, or None.
    security : bool or Security, optional
        True: TLS with certificates of this cluster's own; the default wherever bytes leave this machine.
        False: plain TCP. A Security object: its certificates, which are sent to the hosts.
    lock : Lock, Pulled, path or URL, optional
        The lock to run in; this environment as it is now if not given. What was pushed to a store
        (``"s3://bucket/team#analysis"``) comes from there alone, local code as it was then too.
    store : str, optional
        The URL of a store, such as ``"s3://bucket/team"``: what a host lacks and the store has, the host
        takes from there by itself; the rest is sent as always. Dask's setting ``envsync.store`` if not given.
    cwd : path, optional
        A working directory whose code goes along; code on ``sys.path`` does anyhow.
    on_mismatch : {"raise", "warn", "ignore"}
        What to do about a process whose environment is not the wanted one. With ``"raise"`` it never runs a
        task.
    dashboard_address : str or None
        As LocalCluster's. On other hosts a bare port is on their loopback, and reached through the tunnel.
    scheduler_port : int
        The scheduler's port; 0 for any.
    host, interface, protocol : str, optional
        Where the scheduler listens, if not where it would be looked for first.
    start_timeout : float
        Seconds that each process has to come up.
    report_timeout : float
        Seconds that each worker has to report its environment.
    idle_timeout : float, str or None
        How long nothing may be computed until the cluster ends, such as ``"20 min"``, or seconds; None or
        ``"never"``: it may be idle for ever. By default 4 hours on rented machines, which cost as much
        then, and for ever elsewhere. The scheduler's process sees to it, whatever becomes of this one; what
        tasks hold in memory is lost.
    max_lifetime : float or str, optional
        How long it may live in all, such as ``"8 h"``.
    client_timeout : float or str, optional
        How long there may be no sign of life from here until hosts end what was started there, and rented
        machines themselves; the backend's own if not given.
    max_cost : str or float, optional
        What rented machines may cost in all, such as ``"50 USD"``; a number is in the currency of the prices.
        The cluster ends before that. It is an error where nobody knows the prices.
    hooks : Hooks, optional
        Told about progress; by default the logger ``envsync`` is, and a notebook shows it.
    env : mapping or str, optional
        Environment variables of the workers; or ``"image:registry.example.org/team/analysis@sha256:..."``, a
        container image that scheduler and workers run from.
    gpu_worker : {"dask-cuda"}, optional
        One worker of dask-cuda for each GPU, with its spilling, RMM's pool and UCX, where the environment has
        dask-cuda. Its options are those of LocalCUDACluster: ``rmm_pool_size``, ``device_memory_limit``, ...
    engine : {"podman", "docker"}, optional
        What runs the image; by default what a host has.
    credentials : {"none", "forward", "instance"} or sequence of {"aws", "google"}
        Who workers and scheduler are for AWS. ``"forward"``: you, by short-lived session tokens, which are
        renewed while this process lives; never by long-lived keys. ``"instance"``: the role of their machine,
        where a cloud gives it one. ``"none"``: whoever they are without envsync. ``["aws", "google"]``: those
        of both clouds are forwarded.
    impersonate : str, optional
        The service account that workers and scheduler are for Google, such as
        ``"reader@my-project.iam.gserviceaccount.com"``. With ``credentials="forward"`` it is its tokens that
        are forwarded, instead of AWS's.
    processes : bool
        Taken for LocalCluster's sake; False is refused, as workers have processes of their own.
    loop, silence_logs, worker_dashboard_address, asynchronous, blocked_handlers, service_kwargs, \
worker_class, scheduler_kwargs, scheduler_sync_interval
        As LocalCluster's.
    **worker_kwargs
        Options of each worker, such as ``resources``, ``local_directory`` or ``lifetime``. What is passed to
        other processes has to be of plain types.

    Raises
    ------
    TypeError, ValueError
        A keyword makes no sense, or there is none of that name: nothing was started.
    EnvsyncError
        The environment could not be locked or made, or a process did not come up. What had started is ended.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import SSH
    >>> with SyncedCluster(SSH(["node1", "node2"]), threads_per_worker=4) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    status: Any

    @takes_profile
    def __init__(
        self,
        backend: Backend | str | None = None,
        *,
        name: str | None = None,
        n_workers: int | Mapping[str, int] | None = None,
        threads_per_worker: int | None = None,
        memory_limit: str | float | None = "auto",
        security: bool | Security | None = None,
        lock: Lock | Pulled | str | Path | None = None,
        env: Mapping[str, Any] | str | None = None,
        engine: str | None = None,
        credentials: str | Sequence[str] = "none",
        impersonate: str | None = None,
        store: str | None = None,
        cwd: str | Path | None = None,
        on_mismatch: str = "raise",
        processes: bool = True,
        loop: Any = None,
        host: str | None = None,
        scheduler_port: int = 0,
        silence_logs: int | bool | None = logging.WARN,
        dashboard_address: str | None = ":8787",
        worker_dashboard_address: str | None = None,
        asynchronous: bool = False,
        protocol: str | None = None,
        interface: str | None = None,
        blocked_handlers: list[str] | None = None,
        service_kwargs: dict[str, Any] | None = None,
        worker_class: type | str | None = None,
        gpu_worker: str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        scheduler_sync_interval: float = 1,
        start_timeout: float = 120,
        report_timeout: float = 60,
        idle_timeout: float | str | None = "auto",
        max_lifetime: float | str | None = None,
        client_timeout: float | str | None = None,
        max_cost: float | str | None = None,
        hooks: Hooks | None = None,
        **worker_kwargs: Any,
    ) -> None:
        assert not isinstance(backend, str), "a profile's name has become its backend"
        store = store if store is not None else dask.config.get("envsync.store", None)
        demand(name=name, lock=lock, store=store, cwd=cwd, hooks=hooks, silence_logs=silence_logs)
        demand(start_timeout=start_timeout, report_timeout=report_timeout)
        demand(scheduler_sync_interval=scheduler_sync_interval)
        backend = backend if backend is not None else Local()
        limits = Limits.of(
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime if max_lifetime is not None else getattr(backend, "max_lifetime", None),
            client_timeout=client_timeout,
            max_cost=max_cost,
            rents=backend.rents,
        )
        self.backend: Backend = backend.limited(limits)
        self._watch = Watch(limits, self.backend)
        host = without_deprecated(worker_kwargs, host)
        self.image, variables = image_in(env, engine=engine, lock=lock)
        self.engine = engine
        self.n_workers = n_workers
        if isinstance(self.backend, Batch):
            counts(self.backend.groups, n_workers)
            n_workers = None
        elif isinstance(n_workers, Mapping):
            raise TypeError("groups of workers are a batch system's: n_workers= is a number")
        self.options = Options(
            local=self.backend.local,
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            on_mismatch=on_mismatch,
            processes=processes,
            host=host,
            scheduler_port=scheduler_port,
            dashboard_address=dashboard_address,
            worker_dashboard_address=worker_dashboard_address,
            protocol=protocol,
            interface=interface,
            blocked_handlers=blocked_handlers,
            service_kwargs=service_kwargs,
            worker_class=worker_class,
            gpu_worker=gpu_worker,
            env=variables,
            scheduler_kwargs=scheduler_kwargs,
            worker_kwargs=worker_kwargs,
        )
        if worker_class is None and gpu_worker is None:  # others have options of their own
            demand_known(worker_kwargs, inspect.signature(SyncedCluster.__init__).parameters)
        demand_sense(credentials, self.backend, self.options.env or {}, impersonate)
        self.credentials, self.impersonate = credentials, impersonate
        self._forwardings: tuple[Forwarding, ...] = ()
        self.store = store
        self.wanted_lock: Lock | Pulled | str | Path | None = lock
        self.cwd = None if cwd is None else str(cwd)
        self.hooks = hooks or hooks_here()
        self.wanted: dict[str, Any] | None = None
        self.places: tuple[Place, ...] = ()
        self.seats: Seats | None = None
        self._start_timeout = start_timeout
        self._report_timeout = report_timeout
        self._run_name = run_name(name)
        self.trust = Trust.of(security, local=self.backend.local, name=self._run_name)
        self.prepared: list[Prepared] = []
        self._hosts: list[Host] = []
        self.launch: Launch | None = None
        self.queue: Jobs | Machines | None = None
        self.fleet: Fleet | None = None
        self._dashboard: tuple[str, int] | None = None
        self._starting, self._lock = asyncio.Lock(), asyncio.Lock()
        self._provisioning: asyncio.Task[None] | None = None
        self._correcting: asyncio.Task[None] | None = None
        self._closing = Closing(self._part, self._end)
        try:
            super().__init__(
                asynchronous=asynchronous,
                loop=loop,
                security=self.trust.client,
                silence_logs=silence_logs,
                name=name,
                scheduler_sync_interval=scheduler_sync_interval,
            )
        except BaseException:
            self._give_up()
            raise
        self.up = self.status == Status.running

    # Start and end

    def __await__(self) -> Generator[Any, Any, SyncedCluster]:
        first = self.status == Status.created
        try:
            yield from super().__await__()
        except (Exception, asyncio.CancelledError) as error:
            if first:  # nobody has it yet, who could close it
                yield from self._abandon(error).__await__()
            raise
        self.up = True
        return self

    async def _start(self) -> None:
        try:
            await self._start_all()
        finally:
            self.hooks.over(well=self.status == Status.running)

    async def _start_all(self) -> None:
        async with self._starting:
            if self.status == Status.running:
                return
            if self.status == Status.created:
                self._provisioning = asyncio.ensure_future(self._provision())
                try:
                    await self._watch.during(self._provisioning)
                    if self._closing.begun:
                        raise self._ended_early()
                    self._provisioning.result()
                except BaseException as error:
                    await self._abandon(error)
                    raise
            try:
                await super()._start()
            except RuntimeError as error:
                if self._watch.ended:
                    raise LimitReached(f"it ended: {self._watch.ended}", where="cluster") from error
                if isinstance(error.__cause__, EnvsyncError):
                    raise error.__cause__ from None
                raise
            if self._closing.begun:
                await self._close()
                raise self._ended_early()
            self._record_soon()  # others see its machines now
            self._watch.begin(self.scheduler_comm.envsync_cost)

    def _ended_early(self) -> ClusterError:
        return ClusterError(
            f"it ended before it was up: {self.ending or 'it was closed'}",
            where="cluster",
            hint="Start another.",
        )

    async def _provision(self) -> None:
        """Make the environment exist on every host, and lay out what will run there."""
        await provision(self)

    async def _want(self, prepared: Prepared) -> None:
        """Have the scheduler want of a node's processes what was locked for that node."""
        assert self.launch is not None
        assert self.wanted is not None
        wanted = with_variant(self.wanted, prepared)
        if wanted is self.wanted:
            return
        self.wanted = wanted
        if self.launch.common["wanted"] is not None:
            self.launch.common["wanted"] = wanted
            if self.scheduler_comm is not None:
                await self.scheduler_comm.envsync_expect(wanted=wanted)

    def _correct_state(self) -> Any:
        # who gives up waiting does not stop it half-way: what it starts would be nobody's
        self._correcting = super()._correct_state()
        return asyncio.shield(self._correcting)

    async def _correct_state_internal(self) -> None:
        leaving = [worker for name, worker in self.workers.items() if name not in self.worker_spec]
        running = [each for worker in leaving for each in worker.workers if each.status == Status.running]
        if running and self.status == Status.running:
            with contextlib.suppress(OSError):
                # what only they hold goes to others; they are closed, one by one, by their nannies
                await self.scheduler_comm.retire_workers(
                    names=[worker.name for worker in running], close_workers=False, remove=False
                )
        try:
            await super()._correct_state_internal()
        except EnvsyncError as error:
            if self._watch.ended:
                raise LimitReached(
                    f"it ended before its workers were up: {self._watch.ended}", where="cluster"
                ) from error
            self.hooks.failed(error.where or "cluster", error.message)
            if self.queue is not None:
                self.queue.failures.append(str(error))
                self.queue.failures_in_a_row += 1
                self._adapt_no_more()
            raise
        finally:
            for name, worker in list(self.workers.items()):
                if worker.status == Status.failed:
                    del self.workers[name]
                    self.worker_spec.pop(name, None)
            if self.launch is not None and self.launch.warm is not None:
                await self.launch.warm.close()
            if self.queue is not None and self.status == Status.closing:
                await self.queue.close_leaving()  # these are not among its workers any more
        self._tell_differences()

    async def _close(self) -> None:
        try:
            await self._closing.wait()
        finally:
            if self._closing.begun and not self._closing.under_way:
                self.status = Status.closed  # whatever a start that went on meanwhile made of it

    async def _part(self) -> None:
        """Begin nothing more, and close its processes in order."""
        if self._provisioning is not None:
            self._provisioning.cancel()
        if self.status in (Status.created, Status.starting):
            self.status = Status.failed
        await self._watch.close()
        with unsaid("distributed.deploy.spec", "Cluster closed without starting up"):
            await super()._close()

    async def _end(self) -> None:
        """End all that it has, whatever goes wrong with some of it."""
        self.worker_spec.clear()  # nothing more is asked for, if there was no time to say so
        queue, self.queue = self.queue, None
        prepared, self.prepared = self.prepared, []
        hosts, self._hosts = self._hosts, []
        async with contextlib.AsyncExitStack() as then:  # the last of these comes first
            then.push_async_callback(self._be_closed)
            then.push_async_callback(self._end_record)
            then.push_async_callback(self._release)
            then.push_async_callback(_all_of, [host.close for host in hosts])
            then.push_async_callback(_all_of, [one.session.close for one in prepared])
            then.push_async_callback(_all_of, [one.close for one in self._forwardings])
            if queue is not None:
                then.push_async_callback(queue.close)

    async def _be_closed(self) -> None:
        """Be closed for Dask too, where its processes had no time to close."""
        try:
            if self._provisioning is not None:
                await asyncio.wait({self._provisioning}, timeout=_CLOSING)
            if self.status != Status.closed:
                await wait_for(Cluster._close(self), _CLOSING)
        finally:
            self.status = Status.closed

    def close(self, timeout: float | None = None) -> Any:
        """Close the cluster, and wait until what was rented is gone.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for it.
        """
        if self.status == Status.closed and self._closing.under_way:
            # it closes by itself, and is not through with that
            waiting = super().sync(self._close, callback_timeout=timeout)
            if self.asynchronous:
                return waiting
        return super().close(timeout)

    async def _release(self) -> None:
        """End rented machines. What could not be ended is told, and raised if its start was through."""
        try:
            await self.backend.release()
        except EnvsyncError as error:
            self.hooks.failed(error.where or "cluster", error.message)
            logger.error("%s", error)
            self.ending = f"{FAILED}: {error.message}"
            if self.up:
                raise
        except BaseException as error:  # its watchdog ends them when this process has ended
            self.ending = f"{FAILED}: {error!r}"
            raise

    async def _abandon(self, error: BaseException | None = None) -> None:
        """End what a start that failed, or was interrupted, has left."""
        why = str(error) if error is not None else ""
        self.ending = self.ending or (f"its start failed: {why}" if why else "its start was interrupted")
        correcting, self._correct_state_waiting = self._correcting, None
        if correcting is not None and not correcting.done():
            correcting.cancel()
            for process in self._created:  # those that it was about to start are closed too
                self.workers.setdefault(process.name, process)
        await self._close()

    def _give_up(self) -> None:
        """End what an interrupted start left, and the loop's thread."""
        if not getattr(self, "asynchronous", True):
            with contextlib.suppress(Exception):
                # rented machines take a while to be gone; whoever interrupts again leaves them to it
                super().sync(self._abandon, callback_timeout=30 if self.backend.lease is None else 330)
            with contextlib.suppress(TimeoutError):  # what interrupted us is what its user is to see
                self._loop_runner.stop()

    def _scheduler_said(self, event: Mapping[str, Any]) -> None:
        """Tell of a limit that comes near; close when the scheduler ends because of one."""
        warning, end = said(event)
        if warning:
            self.hooks.warning("cluster", warning)
        if end and not self.ending:
            self.ending = self._watch.ended = end
            # its process ends in a moment, and the rest with it; not later than that if it hangs
            self.loop.call_later(_CLOSING, self._close_anyhow)
            self._cluster_manager_logs.append((datetime.datetime.now(), f"it ends: {end}"))
            self.hooks.warning("cluster", f"it ends: {end}")

    def _close_anyhow(self) -> None:
        if self.status not in (Status.closing, Status.closed, Status.failed):
            self.loop.add_callback(self._close)

    def _process_lost(self, process: DaskProcess) -> None:
        """Report a process that ended by itself, and forget it."""
        if self.status in (Status.closing, Status.closed, Status.failed):
            return
        remote = process.remote
        assert remote is not None
        why = str(remote.lost) if remote.lost is not None else f"ended with exit status {remote.returncode}"
        self._cluster_manager_logs.append((datetime.datetime.now(), f"{process.where}: {why}"))
        if process is self.scheduler:
            self.ending = self.ending or f"its scheduler was lost: {why}"
            cancel_futures(self, f"The cluster has ended: {self.ending}.")
            self.shutdown_scheduler = False  # nobody is there to be told
            self.loop.add_callback(self._close)
        elif self.workers.get(process.name) is process:
            del self.workers[process.name]
            self.worker_spec.pop(process.name, None)
        if remote.lost is None and remote.returncode == 0:
            self.hooks.note(process.place.name, f"{process.label} closed")
        elif (
            self.queue is None or remote.lost is None or process is self.scheduler
        ):  # else its job tells more
            self.hooks.failed(process.place.name, f"{process.label} {why}")
            lines = "".join(f"\n  | {line}" for line in remote.tail())
            logger.warning("%s: %s%s", process.where, why, lines)

    async def addresses(self) -> dict[Any, str]:
        """Return where each worker listens now, by its name: one that its nanny restarts has another port."""
        identity = await self.scheduler_comm.identity()
        return {info["name"]: address for address, info in identity["workers"].items()}

    async def _retire(self, names: Collection[str | int]) -> set[str | int]:
        """Have what workers hold moved to others; return the names of those that hold nothing any more."""
        there = (await self.addresses()).keys() & names
        done = await self.scheduler_comm.retire_workers(names=list(there), close_workers=False, remove=False)
        return {name for name in names if name not in there} | {info["name"] for info in done.values()}

    async def _remove(self, names: Collection[str | int]) -> None:
        """Have the scheduler know that workers are lost."""
        found = await self.addresses()
        for address in [found[name] for name in names if name in found]:
            await self.scheduler_comm.unregister(address=address, stimulus_id=f"envsync-lost-{time.time()}")

    async def _terminate(self, worker: WorkerProcess) -> None:
        address = (await self.addresses()).get(worker.name)
        if address is not None:
            await self.scheduler_comm.broadcast(
                msg={"op": "terminate", "reason": "cluster-closes-worker", "reply": False},
                workers=[address],
                nanny=self.options.nanny,
                on_error="ignore",
            )

    # Scaling

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """Return the name and the specification of the next worker, on the host with most room; of a job."""
        if self.fleet is not None:
            return self.fleet.new(self.fleet.jobs.backend.group)
        assert self.seats is not None
        name, place, spec = self.seats.take(self.worker_spec)
        return {name: self._spec(place, spec, name)}

    def _spec(self, place: Place, spec: Any, name: Any = None) -> dict[str, Any]:
        options = {
            "launch": self.launch,
            "place": place,
            "config": self.options.worker(spec, encrypted=self.trust.encrypted),
            "nthreads": spec.nthreads,
            "memory_limit": spec.memory_limit,
        }
        return {"cls": WorkerProcess, "options": options if name is None else {**options, "name": name}}

    # The way to it

    async def _reach(self, scheduler: SchedulerProcess, hello: Mapping[str, Any]) -> str | None:
        """Return the scheduler's address from here; a tunnel's where it cannot be reached straight."""
        if self.backend.local:
            return None
        way = await reach_scheduler(
            scheduler.place.session.host,
            hello["address"],
            hello.get("dashboard"),
            inside=self.options.dashboard_host(encrypted=self.trust.encrypted),
            context=self.security.get_connection_args("client").get("ssl_context"),
            straight=not self.backend.rents,  # from outside, rented machines are sshd and nothing else
            hooks=self.hooks,
        )
        self._dashboard = way.dashboard
        return way.address

    @property
    def dashboard_link(self) -> str:
        """Where the dashboard is, from here."""
        if self._dashboard is not None:
            return str(format_dashboard_link(*self._dashboard))
        return str(super().dashboard_link)

    # What runs in it

    def _tell_differences(self) -> None:
        """Warn about what was let in although it differs."""
        if self.options.on_mismatch == "warn" and self.scheduler is not None:
            workers = (each for worker in self.workers.values() for each in worker.workers)
            tell_let_in([self.scheduler, *workers])

    def verify(self, *, on_mismatch: str = "raise") -> Verification:
        """Compare every process, and this one, with the lock; see `envsync.runner.verifying`."""
        from envsync.runner.verifying import verify

        return verify(self, on_mismatch=on_mismatch)

    def sync(self, func: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Ship local code that changed, and restart the workers with it.

        What tasks hold in memory is lost, as with ``client.restart()``. Installed packages are not looked at:
        a cluster whose packages should change is started again.

        Returns
        -------
        int
            How many source trees changed. (With arguments this is distributed's ``sync(func, *args)``.)
        """
        if func is not None:
            return super().sync(func, *args, **kwargs)
        return super().sync(self._sync_code)

    async def _sync_code(self) -> int:
        from envsync.runner.code import ship

        if self.image is not None:
            raise ClusterError(
                "the cluster's code is in its image",
                hint="Push an image of it, and start a cluster from that.",
            )
        if self.status != Status.running:
            raise ClusterError("the cluster is not running", hint="Start it before its code is synced.")
        # workers that are just being started come up with the old code first
        async with self._lock, self.queue.turnstile.alone() if self.queue else contextlib.nullcontext():
            return await ship(self)


async def _all_of(actions: Sequence[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*(action() for action in actions), return_exceptions=True)
