"""The jobs of a cluster: submitted together, watched by one listing, each a host once it has called."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envsync.errors import (
    AgentError,
    EnvsyncError,
    JobFailed,
    SubmitError,
    UnfitHostError,
)
from envsync.hooks import Hooks
from envsync.runner.batch import Driver, Job
from envsync.runner.batch.calling import Switchboard
from envsync.runner.jobends import JobEnds
from envsync.runner.jobrows import JobTable, Row
from envsync.runner.jobscripts import JobScripts
from envsync.runner.passing import Passing
from envsync.runner.placement import Placement
from envsync.runner.provision import prepare
from envsync.runner.schedulerjob import SchedulerJob
from envsync.runner.submitting import Submissions
from envsync.runner.tls import Authority
from envsync.runner.turnstile import Turnstile
from envsync.runner.watching import Watching
from envsync.runner.workergroup import with_code_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from envsync.runner.batch import JobRequest
    from envsync.runner.fleet import Fleet
    from envsync.runner.groups import Group
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.jobends import End
    from envsync.runner.jobprocess import JobProcess
    from envsync.runner.locking import Locks
    from envsync.runner.options import Options
    from envsync.runner.places import Place
    from envsync.runner.processes import Launch
    from envsync.runner.provision import Prepared
    from envsync.runner.queues import Batch
    from envsync.snapshot import Snapshot

__all__ = ["NOTICE", "Jobs"]

NOTICE = 20.0
"""Seconds that a job's carrier goes on after the job was told to end; systems kill after 30, mostly."""

_SOON = 0.05  # seconds until what has ended is forgotten
_KEPT = 200  # jobs that have ended and are remembered
_BRIEF, _IN_VAIN = 60.0, 5  # seconds that a job's workers were there, and how many such jobs are enough


class Jobs:
    """What all jobs of a cluster share. Made by `open`."""

    failure = JobFailed
    """What is raised where workers are waited for that will not come."""
    noun = "jobs"
    may_grow = True
    """Whether it makes sense to ask for more by itself: queues have room, some day."""

    def __init__(
        self,
        *,
        backend: Batch,
        driver: Driver,
        board: Switchboard,
        first: Prepared,
        launch: Launch,
        options: Options,
        encrypted: bool,
        snapshot: Snapshot | None,
        left: Callable[[JobProcess, str, End], None],
        locks: Locks | None = None,
        want: Callable[[Prepared], Awaitable[None]] | None = None,
    ) -> None:
        self.backend = backend
        self.driver = driver
        self.board = board
        self.first = first
        self.launch = launch
        self.options = options
        self.encrypted = encrypted
        self.snapshot = snapshot  # of this environment, looked at once
        self.locks = locks  # None: all nodes have the login host's lock
        self._want = want
        self._wanting = asyncio.Lock()
        self._finding_out = asyncio.Lock()
        self._left = left
        self._leaving: set[JobProcess] = set()
        self.failures: deque[str] = deque(maxlen=_KEPT)  # what was told of jobs that failed
        self._whys: dict[str, str] = {}  # the same shortly, by their ids
        self.failures_in_a_row = 0  # since one came up
        self._in_vain = 0  # jobs in a row whose time was over as soon as they were up
        self.known: dict[str, JobProcess | SchedulerJob] = {}
        self.requests: dict[str, JobRequest] = {}  # what each job asked for
        watching = Watching(self)
        self.scripts = JobScripts(
            board, driver, alone=backend.placement == "node", look=watching.look, hooks=launch.hooks
        )
        self.ends = JobEnds(
            driver,
            board,
            self.scripts,
            requests=self.requests,
            job=self.job,
            look=watching.look,
        )
        self.passing = Passing(
            first.session,
            first.lock,
            cluster=launch.cluster,
            interface=backend.interface,
            hooks=launch.hooks,
        )
        self.placement = Placement(
            backend.placement,
            scratch=backend.scratch,
            variables=(backend.system.variables.scratch,),
            first=first,
            mark=board.mark,
            passing=self.passing,
            hooks=launch.hooks,
        )
        self.submissions = Submissions(self)
        self.watching = watching
        self._logs = 0  # how many names of logs were given away
        self._loop = asyncio.get_running_loop()
        self.turnstile = Turnstile()  # jobs come up, or code is synced
        self._guarding: asyncio.Task[None] | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._numbers = 0
        self._lost: EnvsyncError | None = None  # why no job can call any more
        self._scheduler: SchedulerJob | None = None

    @classmethod
    async def open(cls, *, backend: Batch, first: Prepared, launch: Launch, **rest: Any) -> Jobs:
        """Have the batch system say that it would run such jobs, and begin to take their calls.

        Parameters
        ----------
        backend : Batch
            What to ask for.
        first : Prepared
            The login host.
        launch : Launch
            What the processes of the cluster have in common.
        **rest
            As the attributes.

        Raises
        ------
        BatchError
            It cannot be used, or would never run them.
        """
        session = first.session
        authority = Authority(launch.cluster)  # of the carriers alone, whatever Dask's processes speak
        board = await Switchboard.open(
            session,
            cluster=launch.cluster,
            credentials=authority.issue("worker"),
            context=authority.issue("client").client_context(),
            enrolling=authority.issue("scheduler"),
            addresses=[backend.interface] if backend.interface else (),
            variables=[backend.system.variables.gpus] if backend.system.variables.gpus else (),
            grace=backend.grace,
            notice=NOTICE,
        )
        driver = Driver(
            backend.system,
            session.host,
            per_minute=backend.submissions_per_minute,
            interval=backend.poll,
            environment=backend.environment,
            hooks=launch.hooks,
            heard_of=lambda id_: jobs.hears(id_),
        )
        jobs = cls(backend=backend, driver=driver, board=board, first=first, launch=launch, **rest)
        try:
            await driver.check()
            for group in backend.groups.values():
                await jobs._demand(group)
        except BaseException:
            await board.close()
            raise
        jobs._guarding = asyncio.ensure_future(jobs._guard())
        return jobs

    async def _guard(self) -> None:
        """Say so when the way to all jobs is lost: they end by themselves then."""
        error = await self.board.ended()
        if error is not None:
            self._lost = error
            host = self.first.session.host.name
            text = f"lost, and with it the way to all jobs, which end by themselves: {error.message}"
            self.failures.append(f"{host}: {text}")
            self.launch.hooks.failed(host, text)

    async def _demand(self, group: Group) -> None:
        """Ask whether the system would ever run a group's jobs."""
        try:
            await self.driver.demand(self.request(group))
        except SubmitError as error:
            error.message = f"group {group.name}: {error.message}" if group.name else error.message
            raise

    async def scheduler_place(self) -> Place:
        """Ask for a job for the scheduler, and return its node once it has called and has the environment.

        Raises
        ------
        JobFailed
            It ended first, or will never start.
        """
        place = None
        while place is None:
            self._scheduler = await SchedulerJob.submit(self)
            place = await self._scheduler.place()
        return place

    async def prepare(self, host: CarriedHost, id_: str) -> Prepared:
        """Make the environment on a job's node; where the cache is shared it is there already."""
        host.name = f"{host.hello['host']} ({id_})"
        settled = await self.placement.settle(host)
        try:
            async with settled.turn:
                [prepared] = await prepare(
                    [host],
                    lock=None if self.locks is not None else self.first.lock,
                    locks=self.locks,
                    giver=settled.giver,
                    cache=settled.cache,
                    grace=self.backend.grace,
                    hooks=_Quiet(self.launch.hooks),
                    snapshot=self.snapshot,
                    manifests=[manifest for manifest, _ in self.first.trees],
                )
        except UnfitHostError as error:
            if settled.on_node:
                error.hint = f"It was to be in {settled.cache}: scratch= names another folder. {error.hint}"
            raise
        prepared.session.taking = settled.giver  # code that is synced later goes the same way
        if self._want is not None:
            async with self._wanting:  # before its workers are there to be asked
                await self._want(prepared)
        return prepared

    async def unseen(self, id_: str) -> bool:
        """Return whether a job has ended because its node does not see the login host's folder.

        Then all that have not begun are cancelled, and jobs bring along from now on what they need: whoever
        asks submits again.
        """
        if self.backend.placement != "auto":
            return False
        job = await self.ends.at_end(id_)
        async with self._finding_out:  # nobody submits again before the others know that they are cancelled
            if id_ not in self.known:  # cancelled below, for another
                return True
            found_out = self.scripts.alone  # by another, while this one was being submitted
            if not self.go_alone(job):
                return False
            if found_out:
                return True
            waiting = [other for other, process in self.known.items() if not process.has_called]
            again = [self.known.pop(other) for other in waiting]
            with contextlib.suppress(EnvsyncError):
                await self.driver.cancel(waiting)
            self.driver.forget(waiting)
            for process in again:
                process.ended.set()
            return True

    def go_alone(self, job: Job) -> bool:
        """Have jobs bring along what they need from now on, if this one ended for want of it; say whether."""
        came_alone = self.scripts.came_alone(job.id) or not self.scripts.may_be_alone
        if self.backend.placement != "auto" or came_alone or not self.scripts.unseen(job):
            return False
        if not self.scripts.alone:
            self.scripts.alone = True
            self.launch.hooks.note(
                "cluster",
                f"nodes do not see {self.board.folder} (job {job.id}): jobs are submitted again and bring"
                " along what they need; placement='node' has them do so from the start",
            )
        return True

    async def with_code(self, prepared: Prepared) -> Prepared:
        """Return a node with the cluster's local code as it is now: it may have been synced meanwhile."""
        return await with_code_of(self.first, prepared)

    def request(self, group: Group) -> JobRequest:
        """Return what to submit for jobs of a group; each submission has logs of its own."""
        self._logs += 1
        folder = self.board.folder
        log = f"{folder}/{group.label}-{self._logs}"
        return replace(group.request, name=self.launch.cluster, log=log, folder=folder)

    def fleet(self, specs: dict[Any, Any], processes: Mapping[Any, Any]) -> Fleet:
        """Return what edits SpecCluster's specification."""
        from envsync.runner.fleet import Fleet  # which is about processes that need this

        return Fleet(self, specs, processes)

    def next_name(self, group: Group) -> str:
        """Return a name for a job that no other had."""
        self._numbers += 1
        return f"{group.label}-{self._numbers}"

    def demand_way(self) -> None:
        """Make sure that jobs can call.

        Raises
        ------
        AgentError
            None can.
        """
        if self._lost is not None:
            raise AgentError(
                f"no more jobs: the way to them is lost ({self._lost.message})",
                where=self._lost.where,
                hint="Close the cluster, and start another one.",
            )

    def asked_again(self) -> None:
        """Hear that the user has it adapt anew, and has seen to what went wrong."""
        self.failures_in_a_row = 0

    def withdraw(self, names: Collection[str]) -> None:
        """Submit these no more, if they have not been yet. From any thread."""
        self.submissions.withdraw(names)

    def left(self, process: JobProcess, why: str, end: End) -> None:
        """Hear from a job that it is over, or that it retires: what it still does is seen to here."""
        if process in self._leaving:
            self._leaving.discard(process)
            return
        if end == "retired":
            self._leaving.add(process)
        if end == "taken" and self.job(process.id).state == "timeout":
            brief = self._loop.time() - process.up_since < _BRIEF
            self._in_vain = self._in_vain + 1 if brief else 0
            if self._in_vain >= _IN_VAIN:
                end = "failed"
                why += f"; {self._in_vain} jobs in a row had no time left when they were up: ask for more"
        if end == "failed":
            self.failures.append(f"{process.name}: {why}")
            self._whys[process.id] = why.split("\n", 1)[0]
            self.failures_in_a_row += not process.came_up
        self._left(process, why, end)

    def tidy(self) -> None:
        """Forget in a moment all but the last of the jobs that have ended."""
        if self._tidying is None:
            self._tidying = self._loop.call_later(_SOON, self._forget)

    def _forget(self) -> None:
        self._tidying = None
        ended = [id_ for id_, process in self.known.items() if process.over and self.job(id_).ended]
        for id_ in ended[:-_KEPT]:
            del self.known[id_], self.requests[id_]
            self._whys.pop(id_, None)
        self.driver.forget(ended[:-_KEPT])
        self.watching.forget(ended[:-_KEPT])

    def job(self, id_: str) -> Job:
        """Return what is known of a job."""
        return self.driver.jobs.get(id_) or Job(id=id_, state="lost")

    def hears(self, id_: str) -> bool:
        """Whether a job's node is connected: then it runs, whatever the batch system's listing leaves out."""
        process = self.known.get(id_)
        return process is not None and not isinstance(process, SchedulerJob) and process.has_called

    def row(self, id_: str, name: str, workers: int, group: str = "", node: str = "") -> Row:
        """Return one job as people want to see it; it runs on `node`, if that has called."""
        job = self.job(id_)
        if (node or workers) and job.state == "pending":  # it was, when the system was last asked
            job = replace(job, state="running", reason="", nodes=(node,) if node else ())
        return Row(
            name=name,
            id=id_,
            state=job.state,
            reason=self._whys.get(id_) or (job.reason if job.reason.lower() != job.state else ""),
            node=", ".join(job.nodes),
            left=job.walltime_left,
            workers=workers,
            restarts=job.restarts,
            group=group,
        )

    def rows(self) -> JobTable:
        """Return every job as people want to see it."""
        return JobTable(process.row() for process in dict.fromkeys([*self.known.values()]))

    async def close_leaving(self) -> None:
        """End the jobs whose workers retire: nobody else knows them any more."""
        await asyncio.gather(*(process.close() for process in list(self._leaving)))

    async def close(self) -> None:
        """End all jobs."""
        self.submissions.close()
        self.watching.close()
        if self._guarding is not None:
            self._guarding.cancel()
        await self.close_leaving()
        if self._scheduler is not None:
            await self._scheduler.close()
        try:
            await self.driver.close()
        except EnvsyncError as error:
            self.launch.hooks.warning(error.where or "cluster", f"{error.message}: they end by themselves")
        await self.board.close()


class _Quiet(Hooks):
    """Passes on what goes wrong: of a thousand jobs nobody wants to hear of each step."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def failed(self, where: str, why: str) -> None:
        self._hooks.failed(where, why)
