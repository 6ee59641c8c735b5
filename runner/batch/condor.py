"""HTCondor: condor_submit, condor_q, condor_history, condor_rm."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from envsync.errors import BatchError
from envsync.runner.batch.request import Call, Job, JobRequest, JobState, mebibytes, safe_name
from envsync.runner.batch.system import BatchSystem, JobVariables, arrays, output, refused, unreadable

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = ["HTCondor"]

_ATTRIBUTES = (
    "ClusterId ProcId JobStatus JobBatchName HoldReason HoldReasonCode LastHoldReason LastHoldReasonCode "
    "RemoveReason ExitCode ExitBySignal ExitSignal RemoteHost LastRemoteHost NumJobStarts AllowedJobDuration "
    "JobCurrentStartDate ServerTime LastRejMatchReason"
).replace(" ", ",")
_STATES: dict[int, JobState] = {1: "pending", 3: "cancelled", 4: "completed", 5: "pending"}
_DURATION, _MEMORY = (46, 47), (34,)
"""Codes of the reasons why a job is held: it ran too long, it used too much memory."""


class HTCondor(BatchSystem):
    """HTCondor 9.4 and newer, whose nodes and login node share a file system or take files."""

    takes = "all"

    name = "htcondor"
    programs = ("condor_submit", "condor_q", "condor_history", "condor_rm")
    hopeless = frozenset(("held: ",))
    variables = JobVariables(
        identity="${ENVSYNC_JOB}",
        index="ENVSYNC_JOB_INDEX",
        gpus="CUDA_VISIBLE_DEVICES",
        scratch="_CONDOR_SCRATCH_DIR",
    )

    def script(self, request: JobRequest, body: str) -> str:
        """Return what each job runs; what it writes to either stream goes into one log."""
        return super().script(request, f"exec 2>&1\n{body}")

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of condor_submit, which reads the description; the script is a file beside it."""
        name = safe_name(request.name)
        path = f"{request.folder}/{name}.sh"
        description = {
            "universe": "vanilla",
            "executable": _plain(path),
            "initialdir": _plain(request.folder),
            "batch_name": name,
            "output": _plain(f"{request.log}.$(ProcId)", macros=True),
            "stream_output": "True",
            "should_transfer_files": "IF_NEEDED",
            "environment": '"ENVSYNC_JOB=$(ClusterId).$(ProcId) ENVSYNC_JOB_INDEX=$(ProcId)"',
            "request_cpus": str(request.cores or ""),
            "request_memory": f"{mebibytes(request.memory)}MB" if request.memory else "",
            "request_gpus": str(request.gpus or ""),
            "accounting_group": request.account,
            "+ProjectName": json.dumps(request.project) if request.project else "",
            "requirements": request.constraint,
        }
        if request.walltime:
            held = " || ".join(f"HoldReasonCode == {code}" for code in (*_DURATION, *_MEMORY))
            description["allowed_job_duration"] = str(math.ceil(request.walltime))
            description["periodic_remove"] = f"JobStatus == 5 && ({held})"
        lines = [f"{key} = {value}" for key, value in description.items() if value]
        text = "\n".join([*lines, *request.extra, f"queue {request.count}", ""])
        files = ((path, script.encode()),)
        argv = ("condor_submit", "-terse", "-")
        return Call(argv=argv, input=text.encode(), folder=request.folder, files=files)

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17.0`` and so on."""
        found = re.search(r"^(\d+)\.\d+ - \d+\.(\d+)\s*$", output(done), re.MULTILINE)
        if done.returncode != 0 or not found:
            raise refused("HTCondor", done)
        return tuple(f"{found[1]}.{process}" for process in range(request.count))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of condor_q."""
        return Call(argv=("condor_q", "-json", "-attributes", _ATTRIBUTES, *arrays(ids, ".")))

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that condor_q shows."""
        return {_identity(ad): _job(ad) for ad in _ads("condor_q", done)}

    def search(self, name: str) -> Call:
        """Return the call of condor_q for a name."""
        which = f'JobBatchName == "{safe_name(name)}"'
        return Call(argv=("condor_q", "-json", "-attributes", _ATTRIBUTES, "-constraint", which))

    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the jobs with that name."""
        ads = sorted(_ads("condor_q", done), key=lambda ad: (ad["ClusterId"], ad["ProcId"]))
        return tuple(_identity(ad) for ad in ads if ad.get("JobBatchName") == safe_name(name))

    def past(self, ids: Collection[str]) -> Call:
        """Return the call of condor_history."""
        return Call(argv=("condor_history", "-json", "-attributes", _ATTRIBUTES, *arrays(ids, ".")))

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that condor_history knows."""
        jobs = {_identity(ad): _job(ad) for ad in _ads("condor_history", done)}
        return {each: job for each, job in jobs.items() if job.ended}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of condor_rm."""
        return Call(argv=("condor_rm", *ids))

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's place in its cluster."""
        return f"{request.log}.{job.partition('.')[2]}"

    def refuses(self, request: JobRequest) -> Call:  # noqa: ARG002
        """Return the call of condor_status: what slots have in all."""
        wanted = "Machine,TotalSlotCpus,TotalSlotMemory,TotalSlotGPUs,TotalCpus,TotalMemory,TotalGPUs"
        return Call(argv=("condor_status", "-json", "-attributes", wanted))

    def refusal(self, done: Completed, request: JobRequest) -> str:
        """Return what no slot has enough of."""
        try:
            ads = list(_ads("condor_status", done))
        except BatchError:
            return ""
        wanted = (
            ("Cpus", request.cores),
            ("Memory", mebibytes(request.memory) if request.memory else None),
            ("GPUs", request.gpus),
        )
        for key, asked in wanted:
            have = [float(ad.get(f"TotalSlot{key}", ad.get(f"Total{key}", 0)) or 0) for ad in ads]
            if asked and have and asked > max(have):
                return (
                    f"no machine has {key} >= {asked}: the most that one has is {max(have):g} (condor_status)"
                )
        return ""


def _plain(text: str, *, macros: bool = False) -> str:
    """Return a path as a description takes it: its own dollars are not those of macros."""
    head, dollar, tail = text.rpartition("$(ProcId)") if macros else (text, "", "")
    return f"{head.replace('$', '$(DOLLAR)')}{dollar}{tail}"


def _ads(program: str, done: Completed) -> Iterator[Mapping[str, Any]]:
    if done.returncode != 0:
        raise unreadable(program, done)
    text = output(done).strip()
    try:
        ads = json.loads(text, strict=False) if text else []
        for ad in ads:
            if program != "condor_status":
                _identity(ad)
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(program, done, error) from None
    yield from ads


def _identity(ad: Mapping[str, Any]) -> str:
    return f"{ad['ClusterId']}.{ad['ProcId']}"


def _job(ad: Mapping[str, Any]) -> Job:
    status = ad.get("JobStatus", 0)
    state = _STATES.get(status, "running")
    held = status == 5
    why = ""
    if held:
        why = f"held: {ad.get('HoldReason', '')}"
    elif status == 3:
        why = str(ad.get("RemoveReason", ""))
    elif status == 1:
        why = str(ad.get("LastRejMatchReason", ""))
    code = ad.get("HoldReasonCode") if held else ad.get("LastHoldReasonCode") if status == 3 else None
    if code in (*_DURATION, *_MEMORY):
        state = "timeout" if code in _DURATION else "out-of-memory"
        why = str(ad.get("HoldReason") or ad.get("LastHoldReason") or why)
    signal = ad.get("ExitSignal") if ad.get("ExitBySignal") and status == 4 else None
    exit_code = ad.get("ExitCode") if status == 4 and signal is None else None
    if status == 4 and (signal or exit_code):
        state = "failed"
    left = None
    if state == "running" and "AllowedJobDuration" in ad and "ServerTime" in ad:
        began = ad.get("JobCurrentStartDate", ad["ServerTime"])
        left = max(float(began + ad["AllowedJobDuration"] - ad["ServerTime"]), 0.0)
    host = str(ad.get("RemoteHost") or ad.get("LastRemoteHost") or "").rpartition("@")[2]
    return Job(
        id=_identity(ad),
        state=state,
        reason=why,
        nodes=(host,) if host and state != "pending" else (),
        exit_code=exit_code,
        signal=signal,
        walltime_left=left,
        restarts=max(int(ad.get("NumJobStarts", 0)) - 1, 0)
        if state != "pending"
        else int(ad.get("NumJobStarts", 0)),
    )
