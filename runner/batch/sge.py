"""Grid Engine (SGE, Son of Grid Engine, Univa): qsub, qstat, qacct, qdel."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from envsync.errors import BatchError
from envsync.runner.batch.request import Call, Job, JobRequest, JobState, mebibytes, safe_name
from envsync.runner.batch.system import (
    NOWHERE,
    BatchSystem,
    JobVariables,
    arrays,
    options,
    output,
    refused,
    unreadable,
    words,
)

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = ["SGE"]

# Jobs and why they wait come from two listings; one of jobs that are gone is no error.
_LIST = (
    'qstat -u "$(id -un)" -xml -r -g d || exit; for job; do qstat -xml -j "$job" 2> /dev/null; done; exit 0'
)
_PAST = 'for job; do qacct -j "$job" 2> /dev/null; done; exit 0'
_LIMIT, _KILLED = 37, 100
"""What accounting says of a job that went over a limit, and of one that a signal ended."""


class SGE(BatchSystem):
    """Grid Engine.

    Parameters
    ----------
    parallel : str
        The parallel environment of jobs with more than one core.
    memory : str
        The resource by which memory is asked for, for each core: ``mem_free``, ``h_vmem``, ``m_mem_free``...
    gpu : str
        The resource by which GPUs are asked for.
    gpu_per_core : bool
        Whether that one counts for each core, as consumables do unless they are of the kind ``JOB``.
    """

    name = "sge"
    programs = ("qsub", "qstat", "qdel", "qacct")
    private = False  # what nodes keep of a script, everybody there can read
    hopeless = frozenset(("Eqw", "Eqhw"))
    stuck = frozenset(("hqw", "hRwq"))
    variables = JobVariables(
        identity="${JOB_ID}.${SGE_TASK_ID}",
        index="SGE_TASK_ID",
        nodes="PE_HOSTFILE",
        restarts="RESTARTED",
        scratch="TMPDIR",
    )

    def __init__(
        self, *, parallel: str = "smp", memory: str = "mem_free", gpu: str = "gpu", gpu_per_core: bool = True
    ) -> None:
        self.parallel, self.memory, self.gpu, self.gpu_per_core = parallel, memory, gpu, gpu_per_core

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of qsub, which reads the script."""
        # -notify: a signal comes some time before it is ended or suspended
        argv = ("qsub", "-terse", "-r", "y", "-notify", *self._options(request), *options(request.extra))
        return Call(argv=argv, input=script.encode(), folder=request.folder)

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17.1`` and so on."""
        found = re.search(r"^(\d+)(?:\.\d+-\d+:\d+)?\s*$", output(done), re.MULTILINE)
        if done.returncode != 0 or not found:
            raise refused("Grid Engine", done)
        return tuple(f"{found[1]}.{task}" for task in range(1, request.count + 1))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the calls of qstat: what there is, and why these wait."""
        return Call(argv=("sh", "-c", _LIST, "sh", *arrays(ids, ".")))

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that qstat shows."""
        return {job.id: job for _, job in _listed(done)}

    def search(self, name: str) -> Call:  # noqa: ARG002
        """Return the call of qstat: it shows all names."""
        return self.listing(())

    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the jobs with that name."""
        return tuple(job.id for named, job in _listed(done) if named == safe_name(name))

    def past(self, ids: Collection[str]) -> Call:
        """Return the calls of qacct, which takes one job at a time."""
        return Call(argv=("sh", "-c", _PAST, "sh", *arrays(ids, ".")))

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that qacct knows; the last of several records of one counts."""
        blocks = re.split(r"^=+\s*$", output(done), flags=re.MULTILINE)
        jobs = [_past(dict(re.findall(r"^(\w+) +(.*?) *$", block, re.MULTILINE))) for block in blocks]
        return {job.id: job for job in jobs if job}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of qdel."""
        return Call(argv=("qdel", *ids))

    def unseen(self, job: Job, folder: str) -> bool:
        """Return also whether Grid Engine holds a job that could not begin, and names the folder."""
        return super().unseen(job, folder) or ("E" in job.reason.partition(":")[0] and folder in job.reason)

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's number in its array."""
        return f"{request.log}.{job.partition('.')[2]}"

    def refuses(self, request: JobRequest) -> Call:
        """Return the call of qsub that only verifies, as if the cluster were empty."""
        argv = ("qsub", "-w", "v", *self._options(request), *options(request.extra))
        return Call(argv=argv, input=f"#!{request.shell}\n".encode(), folder=request.folder)

    def refusal(self, done: Completed, request: JobRequest) -> str:  # noqa: ARG002
        """Return qsub's words where no queue would ever take the job."""
        text = f"{output(done)}\n{done.stderr.decode(errors='replace')}".strip()
        return text if "no suitable queues" in text else words(done) if done.returncode != 0 else ""

    def _options(self, request: JobRequest) -> list[str]:
        argv = ["-N", safe_name(request.name), "-t", f"1-{request.count}", "-j", "y"]
        argv += [
            "-o",
            f"{request.log}.$TASK_ID" if request.log else NOWHERE,
            "-wd",
            request.folder,
            "-S",
            request.shell.split()[0],
        ]
        cores = request.cores or 1
        limits = [f"h_rt={math.ceil(request.walltime)}"] if request.walltime else []
        if request.memory and self.memory:
            limits.append(f"{self.memory}={mebibytes(-(-request.memory // cores))}M")
        if request.gpus:
            limits.append(f"{self.gpu}={self._gpus(request.gpus, cores)}")
        if request.constraint:
            limits.append(request.constraint)
        argv += ["-pe", self.parallel, str(cores)] if cores > 1 else []
        argv += ["-l", ",".join(limits)] if limits else []
        chosen = (("-q", request.queue), ("-P", request.project), ("-A", request.account))
        return argv + [argument for key, value in chosen if value for argument in (key, value)]

    def _gpus(self, gpus: int, cores: int) -> int:
        if not self.gpu_per_core:
            return gpus
        if gpus % cores:
            raise BatchError(
                f"{gpus} GPUs do not go with {cores} cores: Grid Engine counts {self.gpu!r} for each core",
                hint="Ask for as many cores as GPUs, or say gpu_per_core=False if it counts per job there.",
            )
        return gpus // cores


def _listed(done: Completed) -> Iterator[tuple[str, Job]]:
    """Read the listing of all jobs, and of each array what was said of it, into names and jobs."""
    first, *more = re.split(r"(?<!^)(?=<\?xml)", output(done).strip())
    try:
        root = ElementTree.fromstring(first if done.returncode == 0 else "")  # noqa: S314 - the system's own
    except ElementTree.ParseError as error:
        raise unreadable("qstat", done, error) from None
    reasons = dict(_reason(document) for document in more)
    for row in root.iter("job_list"):
        number, letters = row.findtext("JB_job_number", ""), row.findtext("state", "")
        node = row.findtext("queue_name", "").rpartition("@")[2]
        state: JobState = "pending" if re.search("[qhw]", letters) else "running"
        why = "" if letters in ("r", "qw", "t") else letters
        said = reasons.get(number, "") if state == "pending" else ""
        yield (
            row.findtext("full_job_name", "") or row.findtext("JB_name", ""),
            Job(
                id=f"{number}.{row.findtext('tasks', '') or 1}",
                state=state,
                reason=": ".join(part for part in (why, said) if part),
                nodes=(node,) if node else (),
                restarts=int("R" in letters),
            ),
        )


def _reason(document: str) -> tuple[str, str]:
    """Return an array's number and what holds it up; some versions' XML is not well formed."""
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - the batch system's own
    except ElementTree.ParseError:
        return "", ""
    number = root.findtext(".//JB_job_number", "")
    said = [text for tag in ("QIM_message", "MES_message") for each in root.iter(tag) if (text := each.text)]
    return number, "; ".join(dict.fromkeys(text.strip() for text in said))


def _past(record: dict[str, str]) -> Job | None:
    if not record.get("jobnumber", "").isdigit():
        return None
    task, host = record.get("taskid", ""), record.get("hostname", "")
    failed, _, why = record.get("failed", "0").partition(":")
    number = int(failed) if failed.strip().isdigit() else 0
    status = _leading(record.get("exit_status", ""))
    killed = status is not None and status > 128 and number == _KILLED
    limit = re.search(r"h_rt=(\d+)", record.get("category", ""))
    took = _leading(record.get("ru_wallclock", ""))
    state: JobState = "failed" if number or status else "completed"
    if number == _LIMIT:
        state = "timeout"
    elif number == _KILLED and limit and took is not None and took >= int(limit[1]):
        state, why = "timeout", f"{why.strip()}: it had run for h_rt={limit[1]} seconds"
    return Job(
        id=f"{record['jobnumber']}.{task if task.isdigit() else 1}",
        state=state,
        reason=why.strip(),
        nodes=(host,) if host else (),
        exit_code=None if killed else status,
        signal=status - 128 if killed and status is not None else None,
    )


def _leading(text: str) -> int | None:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None
