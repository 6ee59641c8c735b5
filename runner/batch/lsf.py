"""IBM Spectrum LSF: bsub, bjobs, bhist, bkill."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

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
)

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = ["LSF"]

_FIELDS = "jobid jobindex stat job_name exec_host pend_reason exit_code exit_reason kill_reason time_left"
_STATES: dict[str, JobState] = {
    "PEND": "pending",
    "PSUSP": "pending",
    "WAIT": "pending",
    "PROV": "pending",
    "DONE": "completed",
    "EXIT": "failed",
}
_TERMS: dict[str, JobState] = {
    "TERM_RUNLIMIT": "timeout",
    "TERM_DEADLINE": "timeout",
    "TERM_WINDOW": "timeout",
    "TERM_MEMLIMIT": "out-of-memory",
    "TERM_SWAP": "out-of-memory",
    "TERM_PREEMPT": "preempted",
    "TERM_OWNER": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_ADMIN": "cancelled",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_REMOVE_HUNG_JOB": "node-failed",
    "TERM_ZOMBIE": "node-failed",
}
_WRAPPED = re.compile(r"\n {21}")
"""How bhist folds its lines."""


class LSF(BatchSystem):
    """LSF 10.1 and newer."""

    name = "lsf"
    programs = ("bsub", "bjobs", "bkill", "bhist")
    hopeless = frozenset(
        (
            "exceeds the maximum",
            "not a member of",
            "There are no suitable hosts for the job",
            "Job's requirements for resource reservation cannot be met",
        )
    )
    stuck = frozenset(("inactivated by the administrator", "The queue has been closed", "suspended by"))
    variables = JobVariables(
        identity="${LSB_JOBID}[${LSB_JOBINDEX}]",
        index="LSB_JOBINDEX",
        nodes="LSB_HOSTS",
        gpus="CUDA_VISIBLE_DEVICES",
    )

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of bsub, which reads the script."""
        name = f"{safe_name(request.name)}[1-{request.count}]"
        log = f"{request.log.replace('%', '%%')}.%I" if request.log else NOWHERE
        argv = ["bsub", "-J", name, "-oo", log, "-cwd", request.folder, "-r"]
        cores = request.cores or 1
        needs = ["span[hosts=1]"] if cores > 1 else []
        if request.memory:
            size = f"{mebibytes(request.memory)}MB"
            argv += ["-M", size]
            needs.append(f"rusage[mem={size}]")
        needs += [f"select[{request.constraint}]"] if request.constraint else []
        argv += ["-n", str(cores)]
        argv += ["-R", " ".join(needs)] if needs else []
        argv += ["-W", str(math.ceil(request.walltime / 60))] if request.walltime else []
        argv += ["-gpu", f"num={request.gpus}"] if request.gpus else []
        chosen = (("-q", request.queue), ("-P", request.project), ("-G", request.account))
        argv += [argument for key, value in chosen if value for argument in (key, value)]
        argv += options(request.extra)
        return Call(argv=tuple(argv), input=script.encode(), folder=request.folder)

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17[1]`` and so on."""
        found = re.search(r"Job <(\d+)> is submitted", output(done))
        if done.returncode != 0 or not found:
            raise refused("LSF", done)
        return tuple(f"{found[1]}[{index}]" for index in range(1, request.count + 1))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of bjobs. It shows jobs that ended within the last hour as well."""
        return Call(argv=("bjobs", "-a", "-json", "-o", _FIELDS, *arrays(ids, "[")))

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that bjobs shows."""
        return {each: _job(each, record) for each, record in _records(done)}

    def search(self, name: str) -> Call:
        """Return the call of bjobs for a name."""
        return Call(argv=("bjobs", "-a", "-json", "-o", _FIELDS, "-J", safe_name(name)))

    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the jobs with that name."""
        safe = safe_name(name)
        return tuple(each for each, record in _records(done) if str(record["JOB_NAME"]).split("[")[0] == safe)

    def past(self, ids: Collection[str]) -> Call:
        """Return the call of bhist."""
        return Call(argv=("bhist", "-l", "-a", *ids))

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that bhist says have ended."""
        text = _WRAPPED.sub("", output(done))
        blocks = re.split(r"^(?=Job <)", text, flags=re.MULTILINE)
        jobs = [job for block in blocks if (job := _past(block))]
        return {job.id: job for job in jobs}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of bkill."""
        return Call(argv=("bkill", *ids))

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's number in its array."""
        return f"{request.log}.{job.partition('[')[2].rstrip(']')}"


def _records(done: Completed) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = output(done).strip()
    try:
        records = json.loads(text, strict=False)["RECORDS"] if text else []
        good = [record for record in records if "ERROR" not in record]
        empty = dict.fromkeys(_FIELDS.upper().split(), "")
        found = [(_identity(record), {**empty, **record}) for record in good if record["STAT"]]
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable("bjobs", done, error) from None
    missing = re.search(r"not found|No .*job found", done.stderr.decode(errors="replace"))
    if done.returncode != 0 and not (records or missing):
        raise unreadable("bjobs", done)
    yield from found


def _identity(record: Mapping[str, Any]) -> str:
    number, index = str(record["JOBID"]), str(record.get("JOBINDEX", "") or 0)
    return number if "[" in number or index == "0" else f"{number}[{index}]"


def _job(id_: str, record: Mapping[str, Any]) -> Job:
    state = _STATES.get(record["STAT"], "running")
    why = str(record["PEND_REASON"]).strip("-; ") if state == "pending" else ""
    code = signal = None
    if state in ("completed", "failed"):
        why = "; ".join(
            filter(None, (str(record[key]).strip("- ") for key in ("EXIT_REASON", "KILL_REASON")))
        )
        state = _TERMS.get(why.split(":")[0].strip(), state)
        text = str(record["EXIT_CODE"])
        code, signal = _status(int(text) if text.isdigit() else 0 if state == "completed" else None)
    elif record["STAT"] in ("UNKWN", "ZOMBI", "PSUSP", "USUSP", "SSUSP"):
        why = "; ".join(filter(None, (str(record["STAT"]), why)))
    left = re.match(r"(\d+):(\d+)(?::(\d+))? L", str(record["TIME_LEFT"]))
    hosts = re.sub(r"\d+\*", "", str(record["EXEC_HOST"])).strip("- ")
    return Job(
        id=id_,
        state=state,
        reason=why,
        nodes=tuple(dict.fromkeys(host for host in hosts.split(":") if host)),
        exit_code=code,
        signal=signal,
        walltime_left=_left(left) if left and state == "running" else None,
    )


def _left(found: re.Match[str]) -> float:
    hours, minutes, seconds = found.groups()
    return float(int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0))


def _status(status: int | None) -> tuple[int | None, int | None]:
    return (None, status - 128) if status is not None and status > 128 else (status, None)


def _past(block: str) -> Job | None:
    name = re.match(r"Job <(\d+(?:\[\d+\])?)>", block)
    done = re.search(r"Done successfully", block)
    code = re.search(r"Exited (?:with exit code (\d+)|by signal (\d+))", block)
    ended = done or code or re.search(r"[:;] Exited|Completed <exit>|Completed <done>", block)
    if not name or not ended:
        return None
    term = re.search(r"TERM_\w+: [^;.]*", block)
    why = term[0].strip() if term else ""
    status = int(code[1]) if code and code[1] else 0 if done else None
    exit_code, signal = _status(status)
    host = re.findall(r"(?:[Dd]ispatched|Started).*? (?:to|on) .*?<(?:\d+\*)?([^>]+)>", block)
    state: JobState = "completed" if done else _TERMS.get(why.split(":")[0], "failed")
    return Job(
        id=name[1],
        state=state,
        reason=why,
        nodes=tuple(host[-1:]),
        exit_code=exit_code,
        signal=int(code[2]) if code and code[2] else signal,
    )
