"""How the jobs of a cluster ended: by what the batch system, the carrier and the log say."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Literal

from envsync.errors import EnvsyncError
from envsync.runner.batch.calling import NO_FOLDER, NO_PYTHON, NO_WAY
from envsync.runner.batch.system import printable
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from envsync.runner.batch import Driver, Job, JobRequest
    from envsync.runner.batch.calling import Switchboard
    from envsync.runner.jobscripts import JobScripts

__all__ = ["End", "JobEnds", "cause"]

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

_CLOSELY = 5  # jobs that ended alike whose logs are looked at
_TAIL, _LINE = 16384, 500  # bytes of a job's log that are read, and letters of a line that are shown
_LOOK = 10.0  # seconds that the system has to say why a job ended
_ENDS = 60.0  # and that a job ends whose node was lost: it has half a minute, an epilogue may follow


class JobEnds:
    """Says how jobs ended, in as many words as there are.

    Parameters
    ----------
    driver : Driver
        Whom the batch system tells.
    board : Switchboard
        Where carriers leave their last words.
    scripts : JobScripts
        What jobs run.
    requests : mapping
        What each job asked for, by its id.
    job : callable
        What is known of a job.
    look : callable
        ``await look()`` has the batch system looked at, and waits a moment.
    """

    def __init__(
        self,
        driver: Driver,
        board: Switchboard,
        scripts: JobScripts,
        *,
        requests: Mapping[str, JobRequest],
        job: Callable[[str], Job],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._driver = driver
        self._board = board
        self._scripts = scripts
        self._requests = requests
        self._job = job
        self._look = look
        self._looks: defaultdict[tuple[Any, ...], deque[float]] = defaultdict(lambda: deque(maxlen=_CLOSELY))

    async def why(self, id_: str) -> str:
        """Return how a job ended, in as many words as there are: the system's, its carrier's, its log's."""
        job = await self.at_end(id_)
        if self._scripts.unseen(job):
            code = f"the node does not see {self._board.folder}: {self._scripts.instead()}"
        else:
            code = {
                NO_PYTHON: "the node has no Python 3.8 or newer for the carrier:"
                " prologue=['module load python'] may bring one",
                NO_WAY: "the node does not reach the login host: interface= names its address there",
                NO_FOLDER: "the node has no folder for temporary files: prologue=['export TMPDIR=...']",
            }.get(job.exit_code or 0, "")
        closely = self._worth_a_look(job)
        said = await self._board.last_words(id_) if closely else {}
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

    async def at_end(self, id_: str) -> Job:
        """Return what is known of a job that ends, or has ended; the system may take a while to say."""
        if not self._job(id_).ended and not self._driver.system.never(self._job(id_)):
            with contextlib.suppress(EnvsyncError, asyncio.TimeoutError, TimeoutError):
                await wait_for(self._until_ended(id_), _LOOK)
        return self._job(id_)

    async def runs_again(self, id_: str, restarts: int, *, lost: bool = False) -> bool:
        """Return whether the system took a job's node and starts it again; it has a moment to say so.

        Parameters
        ----------
        id_ : str
            The job.
        restarts : int
            How often it had been started again before.
        lost : bool
            Whether its node is not connected any more: then the job ends, if the system says so or not yet.
        """
        until = asyncio.get_running_loop().time() + (_ENDS if lost else _LOOK)
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(EnvsyncError):
                await self._look()
            job = self._job(id_)
            if job.ended:
                return False
            if job.state == "pending" or job.restarts > restarts:
                return True
        return False

    async def log_tail(self, id_: str, lines: int = 15) -> list[str]:
        """Return the last lines of what a job printed."""
        request = self._requests[id_]
        if not request.log:
            return []
        path = self._driver.system.log(request, id_)
        with contextlib.suppress(EnvsyncError):
            done = await self._driver.host.run(
                f"tail -c {_TAIL} {shlex.quote(path)} | tail -n {lines}", check=False, timeout=10
            )
            return [line[:_LINE] for line in printable(done.stdout).splitlines()]
        return []

    def _worth_a_look(self, job: Job) -> bool:
        """Whether few have ended alike within a minute: of a thousand, a few logs tell all."""
        looks = self._looks[job.state, job.reason, job.exit_code]
        now = asyncio.get_running_loop().time()
        if len(looks) == _CLOSELY and now - looks[0] < 60.0:
            return False
        looks.append(now)
        return True

    async def _until_ended(self, id_: str) -> None:
        while not self._job(id_).ended:
            await self._look()


def cause(lines: Sequence[str]) -> str:
    """Return why a job was ended, where its log says more of that than its state; empty if it does not."""
    text = "\n".join(lines)
    found = [words for pattern, words in _CAUSES.items() if re.search(pattern, text, re.IGNORECASE)]
    return found[0] if found else ""
