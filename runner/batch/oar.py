"""OAR: oarsub, oarstat, oardel."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from envsync.runner.batch.request import Call, Job, JobRequest, JobState, clock, mebibytes, safe_name
from envsync.runner.batch.system import BatchSystem, JobVariables, options, output, refused, unreadable

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = ["OAR"]

_SIGNALLED = 300  # seconds of walltime from which on a job is signalled a minute before its end
_STATES: dict[str, JobState] = {
    "Waiting": "pending",
    "Hold": "pending",
    "toLaunch": "pending",
    "toAckReservation": "pending",
    "Launching": "pending",
    "Resuming": "pending",
    "Running": "running",
    "Finishing": "running",
    "Suspended": "running",
    "toError": "running",
    "Terminated": "completed",
    "Error": "failed",
}
_EVENTS: dict[str, JobState] = {
    "WALLTIME": "timeout",
    "BESTEFFORT_KILL": "preempted",
    "LOG_SUSPECTED": "node-failed",
    "PING_CHECKER_NODE_SUSPECTED": "node-failed",
    "FRAG_JOB_REQUEST": "cancelled",
    "USER_MOVE_TO_ERROR": "cancelled",
}
"""What an event says of a job's end; the first that is found counts, since each is followed by others."""


class OAR(BatchSystem):
    """OAR 2.5.

    Parameters
    ----------
    core : str
        The resource that stands for a core.
    gpu : str
        The resource that stands for a GPU; ``gpu=...`` with a value is a property that nodes must have.
    memory : str
        The property with a node's memory in MiB, by which nodes with enough are chosen: OAR has no other
        way to ask for memory. Nothing is asked if it is empty.
    """

    name = "oar"
    programs = ("oarsub", "oarstat", "oardel")
    hopeless = frozenset(("not enough resources", "Cannot find enough resources"))
    takes = "nothing"
    variables = JobVariables(identity="${OAR_JOB_ID}", index="OAR_ARRAY_INDEX", nodes="OAR_NODE_FILE")

    def __init__(self, *, core: str = "core", gpu: str = "gpu", memory: str = "") -> None:
        self.core, self.gpu, self.memory = core, gpu, memory

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of oarsub; nodes read the script, so its folder has to be one that they see."""
        name = safe_name(request.name)
        path = f"{request.folder}/{name}.sh"
        argv = ["oarsub", "-n", name, "-l", self._resources(request), "-d", request.folder]
        argv += ["-O", f"{request.log}.%jobid%", "-E", f"{request.log}.%jobid%"]
        properties = [f"({request.constraint})"] if request.constraint else []
        if request.memory and self.memory:
            properties.append(f"{self.memory} >= {mebibytes(request.memory)}")
        argv += ["-p", " and ".join(properties)] if properties else []
        argv += ["--array", str(request.count)] if request.count > 1 else []
        if (request.walltime or 0) >= _SIGNALLED:
            argv += ["--checkpoint", "60"]  # USR2 so many seconds before it is preempted, or out of time
        chosen = (("-q", request.queue), ("--project", request.project or request.account))
        argv += [argument for key, value in chosen if value for argument in (key, value)]
        argv += [*options(request.extra), f"{request.shell} {shlex.quote(path)}"]
        files = ((path, script.encode()),)
        return Call(argv=tuple(argv), folder=request.folder, files=files)

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17`` and so on: members of an array have numbers of their own."""
        ids = re.findall(r"^OAR_JOB_ID\s*=\s*(\d+)\s*$", output(done), re.MULTILINE)
        if done.returncode != 0 or len(ids) != request.count:
            raise refused("OAR", done)
        return tuple(ids)

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of oarstat for all that waits and runs."""
        states = "', '".join(state for state, ours in _STATES.items() if ours in ("pending", "running"))
        wanted = (
            f"job_id in ({', '.join(ids)}) and state in ('{states}')" if ids else f"state in ('{states}')"
        )
        return _oarstat(wanted)

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that oarstat shows."""
        return {each: _job(each, record) for each, record in _records(done)}

    def search(self, name: str) -> Call:
        """Return the call of oarstat for a name."""
        return _oarstat(f"job_name = '{safe_name(name)}'")

    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the jobs with that name."""
        rows = [each for each, record in _records(done) if record.get("name") == safe_name(name)]
        return tuple(sorted(rows, key=int))

    def past(self, ids: Collection[str]) -> Call:
        """Return the call of oarstat for jobs that have ended."""
        return _oarstat(f"job_id in ({', '.join(ids)})")

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that oarstat says have ended."""
        return {each: job for each, job in self.listed(done).items() if job.ended}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of oardel."""
        return Call(argv=("oardel", *ids))

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's number."""
        return f"{request.log}.{job}"

    def _resources(self, request: JobRequest) -> str:
        parts = ["/nodes=1"]
        cores = request.cores
        if request.gpus:
            parts.append(f"{self.gpu}={request.gpus}")
            cores = -(-cores // request.gpus) if cores else None  # of each GPU, down the tree
        parts += [f"{self.core}={cores}"] if cores else []
        limit = f",walltime={clock(request.walltime)}" if request.walltime else ""
        return "/".join(parts) + limit


def _oarstat(wanted: str) -> Call:
    """Return the call of oarstat, behind the time there: it says when jobs began, not how long they have."""
    script = 'date +%s && exec oarstat "$@"'
    return Call(argv=("sh", "-c", script, "sh", "-J", "-f", "--sql", wanted))


def _records(done: Completed) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if done.returncode != 0:
        raise unreadable("oarstat", done)
    now, _, text = output(done).partition("\n")
    try:
        rows = json.loads(text, strict=False).items() if text.strip() else ()
        seen = [(str(number), {**record, "now": _number(now)}) for number, record in rows]
    except (ValueError, AttributeError, TypeError) as error:
        raise unreadable("oarstat", done, error) from None
    yield from seen


def _job(id_: str, record: Mapping[str, Any]) -> Job:
    state = _STATES.get(str(record.get("state", "")), "running")
    why = str(record.get("message") or "") if state == "pending" else ""
    status, code, signal = _number(record.get("exit_code")), None, None
    if state in ("completed", "failed"):
        if status is not None:
            code, signal = (None, status & 127) if status & 127 else (status >> 8, None)
        events = {
            str(event.get("type")): str(event.get("description")) for event in record.get("events") or []
        }
        telling = [kind for kind in _EVENTS if kind in events]
        if telling:
            state, why = _EVENTS[telling[0]], f"{telling[0]}: {events[telling[0]]}"
        elif state == "failed":
            why = "; ".join(f"{kind}: {text}" for kind, text in events.items())
        elif code or signal:
            state = "failed"
    left = None
    walltime, began = _number(record.get("walltime")), _number(record.get("startTime"))
    if state == "running" and walltime and began and record["now"]:
        left = max(float(began + walltime - record["now"]), 0.0)
    return Job(
        id=id_,
        state=state,
        reason=why,
        nodes=tuple(dict.fromkeys(str(node) for node in record.get("assigned_network_address") or [])),
        exit_code=code,
        signal=signal,
        walltime_left=left,
    )


def _number(value: object) -> int | None:
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None
