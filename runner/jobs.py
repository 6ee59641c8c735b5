"""The jobs of a cluster: submitted together, watched by one listing, each a host once it has called."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shlex
import signal
from collections import defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from envsync.errors import (
    AgentError,
    BatchError,
    EnvsyncError,
    HostError,
    JobFailed,
    SubmitError,
    UnfitHostError,
)
from envsync.hooks import Hooks
from envsync.runner.batch import Driver, Job
from envsync.runner.batch.calling import NO_FOLDER, NO_PYTHON, NO_WAY, Switchboard
from envsync.runner.batch.system import printable
from envsync.runner.jobrows import JobTable, Row
from envsync.runner.jobscripts import JobScripts
from envsync.runner.passing import Passing
from envsync.runner.placement import Placement
from envsync.runner.places import Place
from envsync.runner.provision import prepare
from envsync.runner.timeouts import wait_for
from envsync.runner.tls import Authority
from envsync.runner.turnstile import Turnstile
from envsync.runner.workergroup import with_code_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from envsync.runner.batch import JobRequest
    from envsync.runner.fleet import Fleet
    from envsync.runner.groups import Group
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.jobprocess import JobProcess
    from envsync.runner.locking import Locks
    from envsync.runner.options import Options
    from envsync.runner.processes import Launch
    from envsync.runner.provision import Prepared
    from envsync.runner.queues import Batch
    from envsync.snapshot import Snapshot

__all__ = ["NOTICE", "End", "Jobs", "cause", "let_go"]

NOTICE = 20.0
"""Seconds that a job's carrier goes on after the job was told to end; systems kill after 30, mostly."""

End = Literal["failed", "taken", "retired", "closed"]
"""How a job went: it failed; the system took its node; its time is nearly over; its workers closed."""

_CAUSES = {
    r"exceeded.{0,20}memory limit|oom[-_ ]kill|out[ -]of[ -]memory|mem .*exceeded limit|TERM_MEMLIMIT": (
        "it used more memory than it had asked for"
    ),
    r"due to time limit|walltime .*exceeded limit|TERM_RUNLIMIT": "its walltime was over",
    r"due to preemption": "it was preempted",
    r"due to node failure": "its node failed",
}
"""What systems write into a job's log, and what that means."""

_TOGETHER = 0.05  # seconds: what is asked for within them is one submission
_AT_ONCE = 1000  # jobs that one command names, or asks for: Slurm's arrays have no more than 1001
_CLOSELY = 5  # jobs that ended alike whose logs are looked at
_KEPT = 200  # jobs that have ended and are remembered
_TAIL, _LINE = 16384, 500  # bytes of a job's log that are read, and letters of a line that are shown
_BRIEF, _IN_VAIN = 60.0, 5  # seconds that a job's workers were there, and how many such jobs are enough
_LOOK = 10.0  # seconds that the system has to say why a job ended
_SHORT = 300.0  # seconds before the end of the scheduler's job at which it is told


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
        cwd: str | None,
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
        self.cwd = cwd
        self.locks = locks  # None: all nodes have the login host's lock
        self._want = want
        self._wanting = asyncio.Lock()
        self._left = left
        self._leaving: set[JobProcess] = set()
        self.failures: deque[str] = deque(maxlen=_KEPT)  # what was told of jobs that failed
        self._whys: dict[str, str] = {}  # the same shortly, by their ids
        self.failures_in_a_row = 0  # since one came up
        self._in_vain = 0  # jobs in a row whose time was over as soon as they were up
        self._told: set[str] = set()  # why jobs wait
        self._restarts: dict[str, int] = {}
        self.known: dict[str, JobProcess | _SchedulerJob] = {}
        self.requests: dict[str, JobRequest] = {}  # what each job asked for
        self.scripts = JobScripts(
            board, driver, alone=backend.placement == "node", look=self._look_together, hooks=launch.hooks
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
        self._submissions = 0
        self._asked: list[tuple[JobProcess, asyncio.Future[str]]] = []
        self._submitting: asyncio.Task[None] | None = None
        self._looks: defaultdict[tuple[Any, ...], deque[float]] = defaultdict(lambda: deque(maxlen=_CLOSELY))
        self._loop = asyncio.get_running_loop()
        self.turnstile = Turnstile()  # jobs come up, or code is synced
        self._looking_here: asyncio.Task[Snapshot] | None = None
        self._ending: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._guarding: asyncio.Task[None] | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._numbers = 0
        self._lost: EnvsyncError | None = None  # why no job can call any more
        self._scheduler: Prepared | None = None
        self._scheduler_host: CarriedHost | None = None

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
        backend = self.backend
        request = replace(
            self.request(backend.group),
            cores=backend.scheduler_cores,
            memory=backend.scheduler_memory or backend.group.request.memory,
            gpus=None,
            gres="",
            walltime=backend.scheduler_time or backend.group.request.walltime,
        )
        self.launch.hooks.step("cluster", "waiting for the scheduler's job")
        request, (id_,) = await self.scripts.submit(request)
        self.requests[id_] = request
        job = self.known[id_] = _SchedulerJob(self, id_)
        self._begin_to_watch()
        call = asyncio.ensure_future(
            self.board.answer(id_, noticed=job.noticed, again=lambda: self.scripts.was_run_again(id_))
        )
        end = asyncio.ensure_future(job.ended.wait())
        try:
            await self._wait_for_scheduler({call, end}, id_)
            if not call.done():
                if await self.unseen(id_):
                    return await self.scheduler_place()
                raise JobFailed(
                    f"the scheduler's job is of no use: {await self.why(id_)}",
                    where=self.first.session.host.name,
                    hint="Ask for less, or for another queue; or run the scheduler elsewhere (scheduler=).",
                )
            self._scheduler_host = call.result()
            self._scheduler = await self.prepare(self._scheduler_host, id_)
            job.has_called = True
            return Place.of(self._scheduler)
        finally:
            call.cancel()
            end.cancel()

    async def _wait_for_scheduler(self, events: set[asyncio.Future[Any]], id_: str) -> None:
        """Wait until the scheduler's job calls or ends; one that runs and says nothing is told, once."""
        silent: float | None = None
        while not (await asyncio.wait(events, timeout=2.0, return_when=asyncio.FIRST_COMPLETED))[0]:
            if self.job(id_).state != "running":
                silent = None
            elif silent is None:
                silent = self._loop.time() + self.launch.start_timeout
            elif self._loop.time() > silent:
                silent = math.inf
                text = "the scheduler's job runs, and has not called yet: see its log, its prologue may hang"
                self.launch.hooks.warning(", ".join(self.job(id_).nodes) or id_, text)

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
                    snapshot=await self._snapshot(),
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

    async def runs_again(self, id_: str, restarts: int) -> bool:
        """Return whether the system took a job's node and starts it again; it has a moment to say so.

        Parameters
        ----------
        id_ : str
            The job.
        restarts : int
            How often it had been started again before.
        """
        until = self._loop.time() + _LOOK
        while self._loop.time() < until:
            with contextlib.suppress(EnvsyncError):
                await self._look_together()
            job = self.job(id_)
            if job.ended:
                return False
            if job.state == "pending" or job.restarts > restarts:
                return True
        return False

    async def unseen(self, id_: str) -> bool:
        """Return whether a job has ended because its node does not see the login host's folder.

        Then all that have not begun are cancelled, and jobs bring along from now on what they need: whoever
        asks submits again.
        """
        if self.backend.placement != "auto":
            return False
        job = await self._at_end(id_)
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

    async def _snapshot(self) -> Snapshot:
        """Return this environment, looked at once: a thousand jobs need it."""
        if self.locks is not None and self.locks.snapshot is not None:
            return self.locks.snapshot
        if self._looking_here is None:
            from envsync.snapshot import capture

            self._looking_here = asyncio.ensure_future(asyncio.to_thread(capture, cwd=self.cwd))
        return await asyncio.shield(self._looking_here)

    async def with_code(self, prepared: Prepared) -> Prepared:
        """Return a node with the cluster's local code as it is now: it may have been synced meanwhile."""
        return await with_code_of(self.first, prepared)

    def request(self, group: Group) -> JobRequest:
        """Return what to submit for jobs of a group; each submission has logs of its own."""
        self._submissions += 1
        folder = self.board.folder
        log = f"{folder}/{group.label}-{self._submissions}"
        return replace(group.request, name=self.launch.cluster, log=log, folder=folder)

    def fleet(self, specs: dict[Any, Any], processes: Mapping[Any, Any]) -> Fleet:
        """Return what edits SpecCluster's specification."""
        from envsync.runner.fleet import Fleet  # which is about processes that need this

        return Fleet(self, specs, processes)

    def next_name(self, group: Group) -> str:
        """Return a name for a job that no other had."""
        self._numbers += 1
        return f"{group.label}-{self._numbers}"

    async def submit(self, process: JobProcess) -> str:
        """Submit a job; those of a group that are asked for together are one array. Return its id.

        Raises
        ------
        SubmitError
            The system did not take them.
        AgentError
            None could call.
        """
        if self._lost is not None:
            raise AgentError(
                f"no more jobs: the way to them is lost ({self._lost.message})",
                where=self._lost.where,
                hint="Close the cluster, and start another one.",
            )
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append((process, future))
        if self._submitting is None or self._submitting.done():
            self._submitting = asyncio.ensure_future(self._submit_all())
        return await future

    def withdraw(self, names: Collection[str]) -> None:
        """Submit these no more, if they have not been yet; they have no id then. From any thread."""
        self._loop.call_soon_threadsafe(self._withdraw, set(names))

    def _withdraw(self, names: set[str]) -> None:
        gone = [future for process, future in self._asked if process.name in names]
        self._asked = [each for each in self._asked if each[0].name not in names]
        for future in gone:
            if not future.done():
                future.set_result("")

    async def _submit_all(self) -> None:
        await asyncio.sleep(_TOGETHER)
        while self._asked:
            await self.driver.turn()  # what is asked for, or given up, until then is no submission of its own
            if not self._asked:
                break
            self._asked.sort(key=lambda each: int(each[0].name.rpartition("-")[2]))  # ids are in this order
            group = self._asked[0][0].group
            asked = [each for each in self._asked if each[0].group is group][:_AT_ONCE]
            names = {process.name for process, _ in asked}
            self._asked = [each for each in self._asked if each[0].name not in names]
            request = replace(self.request(group), count=len(asked))
            try:
                request, ids = await self.scripts.submit(request)
            except Exception as error:  # noqa: BLE001 - who asked is told, whatever it is
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            many = f"{len(ids)} jobs" if len(ids) > 1 else "a job"
            of = f" of group {group.name}" if group.name else ""
            self.launch.hooks.note(
                "cluster", f"submitted {many}{of}: {ids[0]}{f' to {ids[-1]}' if ids[1:] else ''}"
            )
            for (process, future), job in zip(asked, ids, strict=True):
                self.known[job] = process
                self.requests[job] = request
                if not future.done():
                    future.set_result(job)
        self._begin_to_watch()

    async def cancel(self, id_: str) -> None:
        """End a job; what is asked for together is one command, or one for each thousand.

        Told if it fails.
        """
        self._ending.append(id_)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.ensure_future(self._cancel_all())
        await asyncio.shield(self._cancelling)

    async def _cancel_all(self) -> None:
        await asyncio.sleep(_TOGETHER)
        while self._ending:
            ids, self._ending = self._ending[:_AT_ONCE], self._ending[_AT_ONCE:]
            try:
                await self.driver.cancel(ids)
            except EnvsyncError as error:
                many = f"{ids[0]} to {ids[-1]}" if ids[1:] else ids[0]
                text = f"{many}: {error.message}; what starts all the same ends by itself"
                self.launch.hooks.warning(error.where or "cluster", text)

    def _begin_to_watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        told = False
        while True:
            try:
                return await self.driver.watch(self._news)
            except (HostError, BatchError) as error:
                if not told:
                    text = f"{error.message}: how jobs stand is not known until that is over"
                    self.launch.hooks.warning(error.where or "cluster", text)
                told = True
            await asyncio.sleep(self.driver.interval)

    def _news(self, news: Mapping[str, Job]) -> None:
        for id_, job in news.items():
            process = self.known.get(id_)
            if process is not None:
                process.heard(job)
        self._tell_waiting([job for id_, job in news.items() if job.state == "pending" and id_ in self.known])
        again = [job.id for job in news.values() if self._starts_again(job)]
        if again:
            text = f"{self.backend.system.name} starts again what it had ended: {', '.join(again)}"
            self.launch.hooks.note("cluster", text)
        if any(job.ended for job in news.values()):
            self.tidy()

    def _tell_waiting(self, waiting: Sequence[Job]) -> None:
        """Say why jobs wait, in the system's words, once for each reason: of a thousand jobs too."""
        for reason in dict.fromkeys(job.reason for job in waiting):
            if not reason or reason in self._told:
                continue
            self._told.add(reason)
            those = [job.id for job in waiting if job.reason == reason]
            many = f"{len(those)} jobs wait" if len(those) > 1 else f"job {those[0]} waits"
            stuck = any(word in reason for word in self.backend.system.stuck)
            text = f"{many}: {reason}{' (nothing starts until somebody changes that)' if stuck else ''}"
            (self.launch.hooks.warning if stuck else self.launch.hooks.note)("cluster", text)

    def _starts_again(self, job: Job) -> bool:
        """Whether a job has been started once more since it was looked at last."""
        before = self._restarts.get(job.id, 0)
        self._restarts[job.id] = job.restarts
        return job.restarts > before

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
            self._tidying = self._loop.call_later(_TOGETHER, self._forget)

    def _forget(self) -> None:
        self._tidying = None
        ended = [id_ for id_, process in self.known.items() if process.over and self.job(id_).ended]
        for id_ in ended[:-_KEPT]:
            del self.known[id_], self.requests[id_]
            self._restarts.pop(id_, None)
            self._whys.pop(id_, None)
        self.driver.forget(ended[:-_KEPT])

    def job(self, id_: str) -> Job:
        """Return what is known of a job."""
        return self.driver.jobs.get(id_) or Job(id=id_, state="lost")

    def hears(self, id_: str) -> bool:
        """Whether a job's node is connected: then it runs, whatever the batch system's listing leaves out."""
        process = self.known.get(id_)
        return process is not None and not isinstance(process, _SchedulerJob) and process.has_called

    async def log_tail(self, id_: str, lines: int = 15) -> list[str]:
        """Return the last lines of what a job printed."""
        request = self.requests[id_]
        if not request.log:
            return []
        path = self.backend.system.log(request, id_)
        with contextlib.suppress(EnvsyncError):
            done = await self.first.session.host.run(
                f"tail -c {_TAIL} {shlex.quote(path)} | tail -n {lines}", check=False, timeout=10
            )
            return [line[:_LINE] for line in printable(done.stdout).splitlines()]
        return []

    async def why(self, id_: str) -> str:
        """Return how a job ended, in as many words as there are: the system's, its carrier's, its log's."""
        job = await self._at_end(id_)
        if self.scripts.unseen(job):
            code = f"the node does not see {self.board.folder}: {self.scripts.instead()}"
        else:
            code = {
                NO_PYTHON: "the node has no Python 3.8 or newer for the carrier:"
                " prologue=['module load python'] may bring one",
                NO_WAY: "the node does not reach the login host: interface= names its address there",
                NO_FOLDER: "the node has no folder for temporary files: prologue=['export TMPDIR=...']",
            }.get(job.exit_code or 0, "")
        closely = self._worth_a_look(job)
        said = await self.board.last_words(id_) if closely else {}
        tail = await self.log_tail(id_) if closely else []
        parts = [
            f"{job.state}{f': {job.reason}' if job.reason and job.reason.lower() != job.state else ''}",
            f"exit status {job.exit_code}" if job.exit_code else "",
            f"signal {job.signal}" if job.signal else "",
            f"on {', '.join(job.nodes)}" if job.nodes else "",
            code,
            cause(tail) if job.state not in ("completed", "pending", "running") else "",
            str(said.get("why") or ""),
        ]
        text = f"job {id_} {'; '.join(part for part in parts if part)}"
        return "\n  | ".join([text, *tail])

    def _worth_a_look(self, job: Job) -> bool:
        """Whether few have ended alike within a minute: of a thousand, a few logs tell all."""
        looks = self._looks[job.state, job.reason, job.exit_code]
        now = asyncio.get_running_loop().time()
        if len(looks) == _CLOSELY and now - looks[0] < 60.0:
            return False
        looks.append(now)
        return True

    async def _at_end(self, id_: str) -> Job:
        """Return what is known of a job that ends, or has ended; the system may take a while to say."""
        if not self.job(id_).ended and not self.backend.system.never(self.job(id_)):
            with contextlib.suppress(EnvsyncError, asyncio.TimeoutError, TimeoutError):
                await wait_for(self._until_ended(id_), _LOOK)
        return self.job(id_)

    async def _until_ended(self, id_: str) -> None:
        while not self.job(id_).ended:
            await self._look_together()

    async def _look_together(self) -> None:
        """Have the batch system looked at, and wait a moment; whoever else waits looks with us."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            self._news(await self.driver.poll())
        finally:
            await asyncio.sleep(0.5)

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
        if self._submitting is not None:
            self._submitting.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._guarding is not None:
            self._guarding.cancel()
        await self.close_leaving()
        await let_go(self._scheduler, self._scheduler_host)
        try:
            await self.driver.close()
        except EnvsyncError as error:
            self.launch.hooks.warning(error.where or "cluster", f"{error.message}: they end by themselves")
        await self.board.close()


def cause(lines: Sequence[str]) -> str:
    """Return why a job was ended, where its log says more of that than its state; empty if it does not."""
    text = "\n".join(lines)
    found = [words for pattern, words in _CAUSES.items() if re.search(pattern, text, re.IGNORECASE)]
    return found[0] if found else ""


class _SchedulerJob:
    """The job that the scheduler runs in: when it ends, so does the cluster."""

    name = "scheduler"
    over = False  # it is not forgotten

    def __init__(self, jobs: Jobs, id_: str) -> None:
        self.jobs = jobs
        self.id = id_
        self.has_called = False
        self.ended = asyncio.Event()
        self._warned = False
        self._telling: asyncio.Task[None] | None = None

    def heard(self, job: Job) -> None:
        """Hear from the batch system how it stands."""
        if job.ended or self.jobs.backend.system.never(job):
            self.ended.set()
            if self.has_called and self._telling is None:
                self._telling = asyncio.ensure_future(self._tell_end())
        elif job.state == "running" and job.walltime_left is not None and job.walltime_left < _SHORT:
            self._warn(f"its time is over in {job.walltime_left:.0f} s")

    def noticed(self, number: int) -> None:
        """Hear from its carrier that it was sent a signal."""
        self._warn(f"it was sent {signal.Signals(number).name}")

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"the scheduler's job {self.id} is about to end, and the cluster with it: {why}"
            self.jobs.launch.hooks.warning("cluster", text)

    async def _tell_end(self) -> None:
        why = await self.jobs.why(self.id)
        self.jobs.launch.hooks.failed("cluster", f"the scheduler's job ended, and the cluster with it: {why}")

    def row(self) -> Row:
        """Return it for people."""
        return self.jobs.row(self.id, self.name, 0)


async def let_go(prepared: Prepared | None, host: CarriedHost | None) -> None:
    """Let go of a job's node, which ends the job; silent if it is gone."""
    with contextlib.suppress(EnvsyncError, OSError):
        if prepared is not None:
            await prepared.session.close()
        if host is not None:
            await host.close()


class _Quiet(Hooks):
    """Passes on what goes wrong: of a thousand jobs nobody wants to hear of each step."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def failed(self, where: str, why: str) -> None:
        self._hooks.failed(where, why)
