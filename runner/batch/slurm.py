"""Slurm: sbatch, squeue, sacct, scancel. See https://slurm.schedmd.com/."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from envsync.runner.batch.request import Call, Job, JobRequest, JobState, mebibytes, safe_name, seconds_of
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

__all__ = ["Slurm"]

_LISTED = "JobArrayID:|,State:|,RestartCnt:|,exit_code:|,TimeLeft:|,NodeList:|,Name:|,Reason:|"
_NO_LOG = 53
_PAST = "JobID,State,ExitCode,NodeList"  # its Reason is why a job once waited, not how it ended
_SIGNALLED = 300  # seconds of walltime from which on a job is signalled a minute before its end
_STATES: dict[str, JobState] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "RESV_DEL_HOLD": "pending",
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out-of-memory",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node-failed",
    "BOOT_FAIL": "node-failed",
}


class Slurm(BatchSystem):
    """Slurm 20.11 and newer."""

    name = "slurm"
    programs = ("sbatch", "squeue", "scancel")
    lingers = True
    hopeless = frozenset(
        (
            "AccountNotAllowed",
            "BadConstraints",
            "DependencyNeverSatisfied",
            "InvalidAccount",
            "InvalidQOS",
            "MaxCpuPerJob",
            "MaxGRESPerJob",
            "MaxMemPerJob",
            "MaxNodePerJob",
            "MaxWallDurationPerJob",
            "JobHeldAdmin",
            "PartitionNodeLimit",
            "PartitionTimeLimit",
            "QOSNotAllowed",
            "launch_failed_requeued_held",
            "launch failed requeued held",
        )
    )
    stuck = frozenset(
        ("JobHeldUser", "NodeDown", "PartitionDown", "PartitionInactive", "ReqNodeNotAvail", "Nodes required")
    )
    variables = JobVariables(
        identity="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
        index="SLURM_ARRAY_TASK_ID",
        nodes="SLURM_JOB_NODELIST",
        restarts="SLURM_RESTART_COUNT",
        gpus="CUDA_VISIBLE_DEVICES",
    )

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of sbatch, which reads the script."""
        array = f"--array=0-{request.count - 1}"
        argv = ("sbatch", "--parsable", array, *self._options(request), *options(request.extra))
        return Call(argv=argv, input=script.encode(), folder=request.folder)

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17_0`` and so on."""
        lines = output(done).split()
        number = lines[-1].split(";")[0] if lines else ""
        if done.returncode != 0 or not number.isdigit():
            raise refused("Slurm", done)
        return tuple(f"{number}_{index}" for index in range(request.count))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of squeue. It shows jobs that ended some minutes ago as well."""
        return _squeue(f"--jobs={','.join(arrays(ids, '_'))}")

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that squeue shows."""
        if done.returncode != 0 and "Invalid job id" not in words(done):
            raise unreadable("squeue", done)
        lines = output(done).splitlines()
        rows = [row for row in (_fields(line, 8) for line in lines) if row]
        if not rows and any(line.strip() for line in lines):
            raise unreadable("squeue", done)
        return {row[0]: _listed(row) for row in rows}

    def search(self, name: str) -> Call:
        """Return the call of squeue for a name."""
        return _squeue(f"--name={safe_name(name)}")

    def found(self, done: Completed, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the jobs that squeue shows."""
        return tuple(sorted(self.listed(done), key=_place))

    def past(self, ids: Collection[str]) -> Call:
        """Return the call of sacct; where accounting is off it fails, and squeue has told already."""
        jobs = f"--jobs={','.join(arrays(ids, '_'))}"
        # without that variable it cuts the members of an array at 64 letters
        sacct = ("env", "SLURM_BITSTR_LEN=0", "sacct", "--allocations", "--noheader", "--parsable2")
        return Call(argv=(*sacct, f"--format={_PAST}", jobs))

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that sacct says have ended. Those of an array that never ran are one line."""
        rows = (_fields(line, 4) for line in output(done).splitlines())
        jobs = [_past([id_, *row[1:]]) for row in rows if row for id_ in _members(row[0])]
        return {job.id: job for job in jobs if job.ended}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of scancel."""
        return Call(argv=("scancel", *ids))

    def unseen(self, job: Job, folder: str) -> bool:
        """Slurm ends a job with this signal when its log cannot be opened."""
        return super().unseen(job, folder) or job.signal == _NO_LOG

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's place in its array."""
        return f"{request.log}.{job.partition('_')[2]}"

    def refuses(self, request: JobRequest) -> Call:
        """Return the call of sbatch that submits nothing."""
        argv = ("sbatch", "--test-only", *self._options(request), *options(request.extra))
        return Call(argv=argv, input=f"#!{request.shell}\n".encode(), folder=request.folder)

    def refusal(self, done: Completed, request: JobRequest) -> str:  # noqa: ARG002
        """Return sbatch's words where it would not take the job."""
        return words(done) if done.returncode != 0 else ""

    def _options(self, request: JobRequest) -> list[str]:
        log = request.log.replace("\\", "\\\\").replace("%", "%%")
        asked = {
            "job-name": safe_name(request.name),
            "chdir": request.folder,
            "output": f"{log}.%a" if log else NOWHERE,
            "time": f"{math.ceil(request.walltime / 60)}" if request.walltime else "",
            "cpus-per-task": request.cores or "",
            "mem": f"{mebibytes(request.memory)}M" if request.memory else "",
            "gpus-per-node": "" if request.gres else request.gpus or "",
            "gres": request.gres,
            "partition": request.queue,
            "account": request.account,
            "wckey": request.project,
            "constraint": request.constraint,
            # a moment in which to leave, whoever made its time shorter
            "signal": "B:USR1@60" if (request.walltime or 0) >= _SIGNALLED else "",
        }
        fixed = ["--nodes=1", "--ntasks=1", "--open-mode=append", "--requeue"]
        return [*fixed, *(f"--{key}={value}" for key, value in asked.items() if value)]


def _squeue(which: str) -> Call:
    return Call(argv=("squeue", "--noheader", "--array", "--states=all", f"--Format={_LISTED}", which))


def _fields(line: str, count: int) -> list[str]:
    """Return a line's fields; nothing of a line that is torn. The last one may have bars in it."""
    fields = line.split("|", count - 1)
    return fields if len(fields) == count and fields[0].strip() and fields[1].strip() else []


def _state(text: str) -> JobState:
    return _STATES.get(text.split()[0], "running")  # what is not listed has its nodes: COMPLETING, SUSPENDED


def _status(text: str) -> tuple[int | None, int | None]:
    """Read how a script ended: ``3:0`` (code and signal), or a wait status."""
    code, colon, signal = text.partition(":")
    if not code.isdigit() or (colon and not signal.isdigit()):
        return None, None
    both = (int(code), int(signal)) if colon else (int(code) >> 8, int(code) & 127)
    return (None, both[1]) if both[1] else (both[0], None)


def _listed(row: list[str]) -> Job:
    id_, state, restarts, status, left, nodes, _, reason = row
    job = _job(id_, state, status, nodes, restarts, reason.rstrip("|"))
    return job if job.ended else _with_time(job, seconds_of(left))


def _with_time(job: Job, left: float | None) -> Job:
    nodes, again = job.nodes, job.restarts
    return Job(id=job.id, state=job.state, reason=job.reason, nodes=nodes, walltime_left=left, restarts=again)


def _past(row: list[str]) -> Job:
    id_, state, status, nodes = row
    return _job(id_, state, status, nodes, "", "")


def _members(id_: str) -> list[str]:
    """Return the jobs that ``17_[0,2-4,6-10:2%1]`` are, or the one that it is."""
    array, bracket, rest = id_.partition("_[")
    if not bracket:
        return [id_]
    ranges = re.findall(r"(?:^|,)(\d+)(?:-(\d+)(?::(\d+))?)?(?=[,%\]])", rest)
    return [
        f"{array}_{index}"
        for first, last, step in ranges
        for index in range(int(first), int(last or first) + 1, int(step or 1))
    ]


def _job(id_: str, text: str, status: str, nodes: str, restarts: str, reason: str) -> Job:
    state = _state(text)
    code, signal = _status(status) if state not in ("pending", "running") else (None, None)
    why = "" if reason in ("None", "NonZeroExitCode") else reason
    if state not in ("pending", "completed") and text != "RUNNING" and not why:
        why = text
    return Job(
        id=id_,
        state=state,
        reason=why,
        nodes=_nodes(nodes),
        exit_code=code,
        signal=signal,
        restarts=int(restarts) if restarts.isdigit() else 0,
    )


def _nodes(text: str) -> tuple[str, ...]:
    """Return the node's name; jobs have one each."""
    return () if text in ("", "None assigned", "n/a", "(null)") else (text,)


def _place(id_: str) -> int:
    place = id_.partition("_")[2]
    return int(place) if place.isdigit() else 0
