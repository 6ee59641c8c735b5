"""A batch system that runs nothing, and clusters in it: what a client does with a thousand jobs, counted.

`Site` answers Slurm's programs in this process. All else is real: the driver, `Jobs`, `SyncedCluster`'s
scaling and Dask's scheduler; only what would happen on nodes is replaced: a job that runs has workers here.
"""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import distributed
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from envsync import SyncedCluster
from envsync.hooks import Hooks
from envsync.runner import Slurm
from envsync.runner.batch import Driver
from envsync.runner.fleet import Fleet
from envsync.runner.hosts.base import Completed
from envsync.runner.jobprocess import JobProcess
from envsync.runner.jobs import Jobs


@dataclass(slots=True)
class Entry:
    """One job of the site."""

    id: str
    name: str
    state: str = "PENDING"
    reason: str = "Resources"
    node: str = ""
    restarts: int = 0


class Site:
    """A login host whose Slurm is a dictionary; it stands for a `Host`.

    Attributes
    ----------
    jobs : dict
        By id, in the order in which they were submitted.
    calls : Counter
        How often each program was run.
    argv : list
        What was run, but for listings.
    """

    name = "login"

    def __init__(self) -> None:
        self.jobs: dict[str, Entry] = {}
        self.calls: Counter[str] = Counter()
        self.argv: list[list[str]] = []
        self.board = Board()
        self._number = 0

    async def run(self, command: str, *, input: bytes = b"", **_: Any) -> Completed:  # noqa: A002
        """Answer as the program does."""
        words = shlex.split(command.rpartition("exec ")[2]) if "exec " in command else [command.split()[0]]
        if words[0] == "env":
            words = words[2:]  # behind one variable
        program, *arguments = words
        self.calls[program] += 1
        answer = getattr(self, f"_{program}", None)
        if program not in ("squeue", ":", "command"):
            self.argv.append(words)
        code, text = answer(arguments) if answer else (0, "")
        return Completed(code, text.encode(), b"" if code == 0 else b"no")

    def start(self, number: int = 1, nodes: int = 10) -> list[str]:
        """Have some of those that wait run, and call."""
        ids = [id_ for id_, job in self.jobs.items() if job.state == "PENDING"][:number]
        for index, id_ in enumerate(ids):
            self.jobs[id_].state, self.jobs[id_].node = "RUNNING", f"node{index % nodes}"
            self.board.call(id_)
        return ids

    def end(self, id_: str, state: str = "FAILED", reason: str = "NonZeroExitCode") -> None:
        """End a job."""
        self.jobs[id_].state, self.jobs[id_].reason = state, reason

    def states(self) -> Counter[str]:
        return Counter(job.state for job in self.jobs.values())

    def _sbatch(self, arguments: list[str]) -> tuple[int, str]:
        asked = dict(word.removeprefix("--").partition("=")[::2] for word in arguments)
        if "test-only" in asked:
            self.calls["sbatch"] -= 1
            return 0, ""
        self._number += 1
        for index in range(int(asked["array"].rpartition("-")[2]) + 1):
            id_ = f"{self._number}_{index}"
            self.jobs[id_] = Entry(id_, asked["job-name"])
        return 0, f"{self._number}\n"

    def _squeue(self, arguments: list[str]) -> tuple[int, str]:
        key, _, value = arguments[-1].partition("=")
        arrays = set(value.split(","))
        shown = [
            job
            for job in self.jobs.values()
            if (job.id.partition("_")[0] in arrays if key == "--jobs" else job.name == value)
        ]
        lines = (
            f"{job.id}|{job.state}|{job.restarts}|0|1:00:00|{job.node}|{job.name}|{job.reason}|"
            for job in shown
        )
        return 0, "\n".join(lines)

    def _scancel(self, ids: list[str]) -> tuple[int, str]:
        for id_ in ids:
            self.end(id_, "CANCELLED", "None")
        return 0, ""


class Board:
    """Stands for the `Switchboard`."""

    folder = "/runs"
    mark = "/runs/seen"

    def __init__(self) -> None:
        self._arrived: defaultdict[str, asyncio.Queue[None]] = defaultdict(asyncio.Queue)

    def body(self, identity: str) -> str:
        return identity

    def call(self, id_: str) -> None:
        self._arrived[id_].put_nowait(None)

    async def answer(self, id_: str, **_: Any) -> None:
        await self._arrived[id_].get()

    async def last_words(self, id_: str) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


class LocalWorker(ProcessInterface):  # type: ignore[misc]
    """A worker in this process, where a job would have one on its node."""

    def __init__(self, scheduler: str, name: str, resources: dict[str, float]) -> None:
        super().__init__()
        self.name = name
        self.remote = SimpleNamespace(lost=None, returncode=None)
        self.differences = ()
        self.options = {"name": name, "nthreads": 1, "resources": resources, "dashboard": False}
        self._scheduler = scheduler

    async def start(self) -> None:
        self.worker = await distributed.Worker(self._scheduler, host="127.0.0.1", **self.options)
        await super().start()

    async def close(self) -> None:
        if self.status == Status.running:
            await self.worker.close()
        await super().close()


class LocalJob(JobProcess):
    """A job whose workers are here."""

    async def _come_up(self) -> asyncio.Event:
        await self.jobs.board.answer(self.id)
        offered = dict.fromkeys(self.group.offers, 1.0)
        self.workers = [
            LocalWorker(self.scheduler_address, self.name + suffix, offered) for suffix in self.group.suffixes
        ]
        await asyncio.gather(*(worker.start() for worker in self.workers))
        self.came_up = True
        self.up_since = asyncio.get_running_loop().time()
        self.jobs.failures_in_a_row = 0
        return asyncio.Event()


class LocalFleet(Fleet):
    """A fleet of `LocalJob`."""

    def spec(self, group: Any) -> dict[str, Any]:
        return {**super().spec(group), "cls": LocalJob}


class SimulatedCluster(SyncedCluster):  # type: ignore[misc]
    """A SyncedCluster in a `Site`; asynchronous."""

    def __init__(self, site: Site, n_workers: Any = 0, *, hooks: Hooks | None = None, **asked: Any) -> None:
        self.site = site
        super().__init__(
            Slurm(poll=0.05, **asked), n_workers=n_workers, asynchronous=True, security=False, hooks=hooks
        )

    async def _provision(self) -> None:
        backend, site = self.backend, self.site
        assert isinstance(backend, Slurm)
        self.queue = Jobs(
            backend=backend,
            driver=Driver(
                backend.system,
                site,  # type: ignore[arg-type]
                interval=backend.poll,
                per_minute=backend.submissions_per_minute,
                hooks=self.hooks,
            ),
            board=site.board,  # type: ignore[arg-type]
            first=SimpleNamespace(session=SimpleNamespace(host=site), lock=None),  # type: ignore[arg-type]
            launch=SimpleNamespace(  # type: ignore[arg-type]
                cluster="lab", hooks=self.hooks, retire=self._retire, start_timeout=self._start_timeout
            ),
            options=self.options,
            encrypted=False,
            snapshot=None,
            left=self._job_left,
        )
        self.scheduler_spec = {
            "cls": distributed.Scheduler,
            "options": {"host": "127.0.0.1", "dashboard_address": ":0"},
        }
        self._plan_jobs(LocalFleet(self.queue, self.worker_spec, self.workers))
