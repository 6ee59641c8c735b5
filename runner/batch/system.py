"""The seam between envsync and a batch system: what to run, and what its answers mean. Nothing runs here.

One file a system implements it; ``tests/contracts/test_batch.py`` says what it means.
"""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from envsync.errors import BatchError, SubmitError
from envsync.runner.batch.request import Call, Job, JobRequest

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = [
    "NOT_SHARED",
    "NOWHERE",
    "BatchSystem",
    "JobVariables",
    "arrays",
    "options",
    "output",
    "printable",
    "refused",
    "unreadable",
    "words",
]


NOT_SHARED = 73
"""Exit code of a job that does not see the login host's folder."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")

NOWHERE = "/dev/null"
"""Where the output of a job goes that has no log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVariables:
    """What a job finds in its environment.

    Parameters
    ----------
    identity : str
        What the shell makes the job's id of, just as `BatchSystem.submitted` names it.
    index : str
        The variable of its place in the array; empty where there is none.
    nodes : str
        The variable of its nodes, or of a file that lists them.
    restarts : str
        The variable that counts how often it was started again; empty where nothing does.
    gpus : str
        The variable of the GPUs that the system gave it; empty where it sets none.
    scratch : str
        The variable of a folder of the job's own on the node; empty where there is none.
    """

    identity: str
    index: str = ""
    nodes: str = ""
    restarts: str = ""
    gpus: str = ""
    scratch: str = ""


class BatchSystem(ABC):
    """How one batch system is spoken to.

    Attributes
    ----------
    name : str
        As users write it: ``slurm``.
    programs : tuple of str
        What has to be on the login host's PATH.
    limit : int
        How long a job's name may be.
    hopeless : frozenset of str
        Words in the reason of a pending job that say that it will never start.
    stuck : frozenset of str
        Words in it that say that somebody has to act first: the queue is closed, the job is held.
    variables : JobVariables
        What a job finds in its environment.
    takes : {"script", "all", "nothing"}
        What the system itself takes to nodes that share no folder with the login host: the script, but the
        job's folder and log are theirs; the log too; or not even the script.
    private : bool
        Whether a job's script can be read by its owner only, on nodes too.
    at_once : int
        How many jobs one submission asks for at most.
    lingers : bool
        Whether what has run is listed for some minutes: what leaves the listing while it waits has not run.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    limit: ClassVar[int] = 64
    hopeless: ClassVar[frozenset[str]] = frozenset()
    stuck: ClassVar[frozenset[str]] = frozenset()
    variables: JobVariables
    takes: ClassVar[Literal["script", "all", "nothing"]] = "script"
    private: ClassVar[bool] = True
    at_once: int = 1000  # Slurm's arrays have no more than 1001
    lingers: ClassVar[bool] = False

    def script(self, request: JobRequest, body: str) -> str:
        """Return what each job runs: the prologue, then `body`. What is asked for goes with `submit`."""
        return "\n".join([f"#!{request.shell}", *request.prologue, body, ""])

    @abstractmethod
    def submit(self, request: JobRequest, script: str) -> Call:
        """Return what submits the jobs, all at once."""

    @abstractmethod
    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return the ids of the jobs, one for each.

        Raises
        ------
        SubmitError
            The system refused; the message has its own words.
        """

    @abstractmethod
    def listing(self, ids: Collection[str]) -> Call:
        """Return what lists jobs that wait or run."""

    @abstractmethod
    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that a listing shows: others may be among them, and some that have ended.

        Raises
        ------
        BatchError
            The system did not answer, or not in a way that can be read. (That it knows none of the jobs any
            more is an empty answer.)
        """

    @abstractmethod
    def search(self, name: str) -> Call:
        """Return what lists the jobs of a name: what became of a submission whose answer was lost."""

    @abstractmethod
    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the ids of the jobs with that name."""

    def past(self, ids: Collection[str]) -> Call | None:  # noqa: ARG002
        """Return what tells of jobs that have ended; None where nothing does."""
        return None

    def ended(self, done: Completed) -> dict[str, Job]:  # noqa: ARG002
        """Return the jobs that have ended, as the accounting knows them; it may not know them yet."""
        return {}

    @abstractmethod
    def cancel(self, ids: Collection[str]) -> Call:
        """Return what ends jobs, whether they wait or run; it may fail for those that are gone."""

    @abstractmethod
    def log(self, request: JobRequest, job: str) -> str:
        """Return where a job's output goes."""

    def refuses(self, request: JobRequest) -> Call | None:  # noqa: ARG002
        """Return what tells whether the system would ever run this; None where nothing does."""
        return None

    def refusal(self, done: Completed, request: JobRequest) -> str:  # noqa: ARG002
        """Return why it never would, in the system's own words; empty if it would."""
        return ""

    def never(self, job: Job) -> bool:
        """Return whether a job waits for what will not come."""
        return job.state == "pending" and any(word in job.reason for word in self.hopeless)

    def unseen(self, job: Job, folder: str) -> bool:  # noqa: ARG002
        """Return whether a job cannot run because its node does not see its folder, or its log's."""
        return job.exit_code == NOT_SHARED


def words(done: Completed) -> str:
    """Return what a program said, in a few lines: its errors, else its output."""
    return _tail(printable(done.stderr)) or _tail(printable(done.stdout)) or f"exit status {done.returncode}"


def _tail(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines()[-8:])


def output(done: Completed) -> str:
    """Return what a program printed."""
    return printable(done.stdout)


def printable(data: bytes) -> str:
    """Return what a program or a job wrote, without what would do something to a terminal."""
    return _CONTROL.sub(" ", data.decode(errors="replace").replace("\r\n", "\n"))


def refused(system: str, done: Completed) -> SubmitError:
    """Return the error of a submission that failed; some say why where others say what they submitted."""
    both = _tail(f"{printable(done.stdout)}\n{printable(done.stderr)}")
    return SubmitError(
        f"{system} refused the job: {both or words(done)}",
        hint="The words are the system's own: change what is asked for, or ask those who run it.",
    )


def unreadable(program: str, done: Completed, why: object = "") -> BatchError:
    """Return the error of an answer that cannot be read, or of none."""
    said = words(done) if done.returncode else f"{why or 'its answer is not in the known form'}"
    return BatchError(
        f"`{program}` does not say how jobs stand: {said}",
        hint="Run it on the login host by hand to see more.",
    )


def options(extra: Iterable[str]) -> list[str]:
    """Return the arguments that further options are."""
    return [argument for option in extra for argument in shlex.split(option)]


def arrays(ids: Collection[str], separator: str) -> Sequence[str]:
    """Return the arrays that jobs are of, each once."""
    return list(dict.fromkeys(each.split(separator, 1)[0] for each in ids))
