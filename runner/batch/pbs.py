"""PBS: qsub, qstat, qdel, pbsnodes, in the dialects of PBS Professional (OpenPBS) and of Torque."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

from envsync.errors import SubmitError
from envsync.runner.batch.request import (
    Call,
    Job,
    JobRequest,
    JobState,
    clock,
    mebibytes,
    safe_name,
    seconds_of,
)
from envsync.runner.batch.system import (
    NOT_SHARED,
    NOWHERE,
    BatchSystem,
    JobVariables,
    options,
    output,
    refused,
    unreadable,
    words,
)

if TYPE_CHECKING:
    from envsync.runner.hosts.base import Completed

__all__ = ["PBS", "Torque"]

# Of a script that comes by standard input, a file: some commands in Torque's place read nothing else.
_FROM_FILE = """script=$(mktemp) || exit
trap 'rm -f "$script"' EXIT
trap 'exit 1' HUP INT TERM
cat > "$script" || exit
"$0" "$@" "$script"
"""
_NOT_SAID = "it has ended, and nothing tells how"
_UNKNOWN = 153
"""Exit code of a qstat that knows none of the jobs; some say nothing besides."""

_GONE = re.compile(r"Unknown Job Id|has finished|Job Has Finished|Unknown Job Array", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class PBS(BatchSystem):
    """PBS Professional and OpenPBS, 14 and newer."""

    name = "pbs"
    programs: ClassVar[tuple[str, ...]] = ("qsub", "qstat", "qdel", "pbsnodes")
    hopeless = frozenset(
        (
            "can never run",
            "Can Never Run",
            "would violate resource limit",
            "No matching queue",
            "unknown node",
        )
    )
    stuck = frozenset(("Queue not started", "Queue not enabled", "Job held", "Job is held"))
    variables = JobVariables(
        identity="${PBS_JOBID}",
        index="PBS_ARRAY_INDEX",
        nodes="PBS_NODEFILE",
        gpus="CUDA_VISIBLE_DEVICES",
        scratch="TMPDIR",
    )
    _kills: ClassVar[Mapping[int, JobState]] = {-26: "out-of-memory", -27: "out-of-memory", -29: "timeout"}

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of qsub, which reads the script."""
        argv = ["qsub", "-N", safe_name(request.name, self.limit), "-j", "oe", "-r", "y"]
        argv += [*self._array(request), "-S", request.shell, *self._resources(request)]
        chosen = (("-q", request.queue), ("-A", request.account), ("-P", request.project))
        argv += [argument for key, value in chosen if value for argument in (key, value)]
        return Call(
            argv=(*argv, *options(request.extra)),
            input=_in_folder(request, script).encode(),
            folder=request.folder,
        )

    def submitted(self, done: Completed, request: JobRequest) -> tuple[str, ...]:
        """Return ``17[0].server`` and so on; ``17.server`` for a single job, which is no array there."""
        found = re.search(r"^(\d+)(\[\])?(\.\S+)?\s*$", output(done), re.MULTILINE)
        if done.returncode != 0 or not found or (request.count > 1 and not found[2]):
            raise refused("PBS", done)
        number, array, server = found[1], found[2], found[3] or ""
        if not array:
            return (f"{number}{server}",)
        return tuple(f"{number}[{index}]{server}" for index in range(request.count))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of qstat, with an array's members."""
        return Call(argv=("qstat", "-f", "-t", "-F", "json", *_wholes(ids)))

    def listed(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that qstat shows."""
        return {each: self._job(each, job) for each, job in self._read(done) if "[]" not in each}

    def search(self, name: str) -> Call:  # noqa: ARG002
        """Return the call of qstat: it shows all names."""
        return self.listing(())

    def found(self, done: Completed, name: str) -> tuple[str, ...]:
        """Return the jobs with that name."""
        safe = safe_name(name, self.limit)
        return tuple(
            each for each, job in self._read(done) if job.get("Job_Name") == safe and "[]" not in each
        )

    def past(self, ids: Collection[str]) -> Call | None:
        """Return the call of qstat for jobs that have finished."""
        return Call(argv=("qstat", "-x", "-f", "-t", "-F", "json", *_wholes(ids)))

    def ended(self, done: Completed) -> dict[str, Job]:
        """Return the jobs that qstat says have finished; none where no history is kept."""
        if done.returncode != 0 and not output(done).strip():
            return {}
        return {each: job for each, job in self.listed(done).items() if job.ended}

    def cancel(self, ids: Collection[str]) -> Call:
        """Return the call of qdel."""
        return Call(argv=("qdel", *ids))

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's place in its array."""
        found = re.search(r"\[(\d+)\]", job)
        return f"{request.log}.{found[1] if found else 0}"

    def refuses(self, request: JobRequest) -> Call | None:  # noqa: ARG002
        """Return the call of pbsnodes: what nodes have."""
        return Call(argv=("pbsnodes", "-a", "-F", "json"))

    def refusal(self, done: Completed, request: JobRequest) -> str:
        """Return what no node has enough of. A pbsnodes that may not be asked refuses nothing."""
        try:
            nodes = json.loads(output(done), strict=False)["nodes"].values()
            have = [node.get("resources_available", {}) for node in nodes]
        except (ValueError, KeyError, AttributeError, TypeError):
            return ""
        wanted = (("ncpus", request.cores), ("mem", request.memory), ("ngpus", request.gpus))
        for key, asked in wanted:
            most = max((_size(str(node.get(key, 0))) for node in have), default=0)
            if asked and have and asked > most:
                return f"no node has {key}={asked}: the most that one has is {most} (pbsnodes)"
        return ""

    def _array(self, request: JobRequest) -> list[str]:
        several = request.count > 1
        log = f"{request.log}.{'^array_index^' if several else 0}" if request.log else NOWHERE
        return [*(["-J", f"0-{request.count - 1}"] if several else []), "-o", log]

    def _resources(self, request: JobRequest) -> list[str]:
        chunk = ["select=1", f"ncpus={request.cores or 1}"]
        chunk += [f"mem={mebibytes(request.memory)}mb"] if request.memory else []
        chunk += [f"ngpus={request.gpus}"] if request.gpus else []
        chunk += [request.constraint] if request.constraint else []
        limit = ["-l", f"walltime={clock(request.walltime)}"] if request.walltime else []
        return ["-l", ":".join(chunk), *limit]

    def _read(self, done: Completed) -> Iterator[tuple[str, dict[str, Any]]]:
        _expect(done)
        text = output(done).strip()
        if not text:
            return
        try:
            rows = [(str(each), {**job}) for each, job in json.loads(text, strict=False)["Jobs"].items()]
        except KeyError:
            return  # none is left
        except (ValueError, AttributeError, TypeError) as error:
            raise unreadable("qstat", done, error) from None
        yield from rows

    def _job(self, id_: str, job: Mapping[str, Any]) -> Job:
        letter, comment = str(job.get("job_state", "")), str(job.get("comment", "") or "")
        status = _number(job.get("Exit_status", job.get("exit_status")))
        limit = seconds_of(str(_part(job, "Resource_List").get("walltime", "")))
        used = seconds_of(str(_part(job, "resources_used").get("walltime", "")))
        state: JobState = "pending"
        if letter in "RESU" and letter:
            state = "running"
        elif letter in ("F", "X", "C", "M"):
            state = self._end(status, limit, used)
        code = status if status is not None and 0 <= status < 256 else None
        signal = status - 256 if status is not None and status >= 256 else None
        return Job(
            id=id_,
            state=state,
            reason=_NOT_SAID if state == "lost" else "" if state in ("running", "completed") else comment,
            nodes=tuple(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+]+)", str(job.get("exec_host", ""))))),
            exit_code=code if state not in ("pending", "running") else None,
            signal=signal if state not in ("pending", "running") else None,
            walltime_left=max(limit - (used or 0), 0) if state == "running" and limit else None,
            restarts=max((_number(job.get("run_count")) or 1) - 1, 0),
        )

    def _end(self, status: int | None, limit: float | None, used: float | None) -> JobState:
        if status is None:
            return "cancelled"  # it never ran
        if status in self._kills:
            return self._kills[status]
        if status == 0:
            return "completed"
        if status >= 256 and limit and used and used >= limit:
            return "timeout"
        return "cancelled" if status in (256 + 15, 256 + 9) else "failed"


class Torque(PBS):
    """Torque: the older tongue, XML, and nothing that tells of jobs that have gone.

    Parameters
    ----------
    arrays : bool
        Whether its commands know arrays, and XML. Those that other systems have in Torque's place do not,
        such as Slurm's: each job is a submission of its own then, and nothing tells how jobs ended.
    """

    name = "torque"
    programs = ("qsub", "qstat", "qdel")
    limit = 15
    variables = JobVariables(identity="${PBS_JOBID}", index="PBS_ARRAYID", nodes="PBS_NODEFILE")
    _kills: ClassVar[Mapping[int, JobState]] = {-10: "out-of-memory", -11: "timeout"}

    def __init__(self, *, arrays: bool = True) -> None:
        self.arrays = arrays
        if not arrays:
            self.at_once = 1
            self.variables = replace(self.variables, identity="${PBS_JOBID:-$SLURM_JOB_ID}")

    def submit(self, request: JobRequest, script: str) -> Call:
        """Return the call of qsub; it reads the script, from a file where it would have no other."""
        if request.project:
            raise SubmitError(
                f"Torque has no projects, and its qsub would take {request.project!r} for a user",
                hint="Say account=, or with extra= what the site has instead.",
            )
        call = super().submit(request, script)
        return call if self.arrays else replace(call, argv=("sh", "-c", _FROM_FILE, *call.argv))

    def listing(self, ids: Collection[str]) -> Call:
        """Return the call of qstat, with an array's members."""
        if not self.arrays:
            return Call(argv=("qstat", "-f", *ids))
        return Call(argv=("qstat", "-x", "-t", *_wholes(ids)))

    def past(self, ids: Collection[str]) -> Call | None:  # noqa: ARG002
        """Return nothing: what has ended is listed for some minutes, then gone."""
        return None

    def refuses(self, request: JobRequest) -> Call | None:  # noqa: ARG002
        """Return nothing: qsub says it, or the queue never starts the job."""
        return None

    def _array(self, request: JobRequest) -> list[str]:
        # Torque appends -<place> to an array's log by itself
        several = ["-t", f"0-{request.count - 1}"] if request.count > 1 else []
        return [*several, "-o", f"{request.log}{'' if several else '-0'}" if request.log else NOWHERE]

    def log(self, request: JobRequest, job: str) -> str:
        """Return the log with the job's place in its array, as Torque writes it."""
        found = re.search(r"\[(\d+)\]|^\d+-(\d+)", job)
        return f"{request.log}-{(found[1] or found[2]) if found else 0}"

    def _resources(self, request: JobRequest) -> list[str]:
        node = f"nodes=1:ppn={request.cores or 1}"
        node += f":gpus={request.gpus}" if request.gpus else ""
        node += f":{request.constraint}" if request.constraint else ""
        memory = f",mem={mebibytes(request.memory)}mb" if request.memory else ""
        limit = f",walltime={clock(request.walltime)}" if request.walltime else ""
        return ["-l", f"{node}{memory}{limit}"]

    def _end(self, status: int | None, limit: float | None, used: float | None) -> JobState:
        # one that never ran has a status too: 271
        return "lost" if status is None else super()._end(status, limit, used)

    def _read(self, done: Completed) -> Iterator[tuple[str, dict[str, Any]]]:
        _expect(done)
        text = output(done).strip()
        if not text:
            return
        if not self.arrays:
            yield from _full(done)
            return
        try:
            root = ElementTree.fromstring(text)  # noqa: S314 - the batch system's own
        except ElementTree.ParseError as error:
            raise unreadable("qstat", done, error) from None
        for job in root.iter("Job"):
            rows = (
                (item.tag, {each.tag: each.text for each in item} if len(item) else item.text) for item in job
            )
            found = dict(rows)
            yield str(found.pop("Job_Id", "")), found


def _full(done: Completed) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read what ``qstat -f`` shows: a line for each attribute, which may go on in the next."""
    found: dict[str, Any] | None = None
    id_ = ""
    for line in output(done).splitlines():
        if begun := re.match(r"Job Id:\s*(\S+)", line):
            if found is not None:
                yield id_, found
            id_, found = begun[1], {}
        elif (said := re.match(r"\s+(\w+)(?:\.(\w+))? = (.*)", line)) and found is not None:
            if said[2]:
                found.setdefault(said[1], {})[said[2]] = said[3]
            else:
                found[said[1]] = said[3]
        elif line.strip() and found is None:
            raise unreadable("qstat", done)
    if found is not None:
        yield id_, found


def _in_folder(request: JobRequest, script: str) -> str:
    """Return a script that runs in the request's folder: PBS starts it in the home folder."""
    first, _, rest = script.partition("\n")
    quoted = "'" + request.folder.replace("'", "'\\''") + "'"
    return f"{first}\ncd {quoted} || exit {NOT_SHARED}\n{rest}"


def _wholes(ids: Collection[str]) -> list[str]:
    """Return arrays instead of their members."""
    return list(dict.fromkeys(re.sub(r"\[\d+\]", "[]", each) for each in ids))


def _expect(done: Completed) -> None:
    """Raise unless all that went wrong is that jobs are gone."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    gone = all(_GONE.search(line) for line in lines) if lines else done.returncode == _UNKNOWN
    if done.returncode != 0 and not gone:
        raise unreadable(f"qstat: {words(done)}", done)


def _part(job: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = job.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> int | None:
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmgt]?)[bw]?", text.strip().lower())
    return int(found[1]) * _UNITS[found[2]] if found else 0
