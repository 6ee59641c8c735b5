"""dask-jobqueue's configuration, the ``jobqueue:`` section of Dask's YAML, as options of what is here.

Its keywords have the same names. `tests/test_batch_jobqueue_config.py` has all of them, as of version 0.9.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envsync.runner.batch.request import seconds_of

__all__ = ["Mapped", "from_jobqueue", "says_something"]

_SYSTEMS = {"moab": "torque"}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_WALLTIME = "00:30:00"

_DEFAULTS: Mapping[str, object] = {
    "name": "dask-worker",
    "death-timeout": 60,
    "worker-command": "distributed.cli.dask_worker",
    "shebang": "#!/usr/bin/env bash",
    "use-stdin": True,
}
"""What dask-jobqueue's own file has: nobody has asked for it."""

_NO_NEED = {
    "python": "the environment is made on the nodes: no Python of theirs is asked for",
    "worker-command": "workers are started by envsync's agent",
    "death-timeout": "workers end by themselves when their cluster is gone",
    "shared-temp-directory": "certificates go to each process over its own channel",
    "log-directory": "logs are told when a job fails, and by cluster.get_logs()",
    "lsf-units": "memory is asked for with its unit",
    "use-stdin": "scripts always go through standard input",
}
"""Keys that stand for what needs no saying here, with the reason."""

_LOST = {
    "job-script-epilogue": "a job that is cancelled or killed would not reach it",
    "job-directives-skip": "nothing is asked for that is not said: leave the option out",
    "header-skip": "nothing is asked for that is not said: leave the option out",
    "submit-command-extra": "use extra: lines of the submit description",
    "cancel-command-extra": "jobs are cancelled by their ids",
}
"""Keys whose meaning there is none of here, with what to do instead."""

_EMPTY: tuple[object, ...] = (None, "", [], {}, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a section of dask-jobqueue's configuration comes to.

    Parameters
    ----------
    system : str
        The batch system: a name of `SYSTEMS`.
    backend : dict
        Keywords of its backend.
    cluster : dict
        Keywords of the cluster.
    notes : tuple of str
        What was set there and needs no saying here, a line each, with the reason.
    lost : tuple of str
        What was set there and is not done here, a line each, with the reason.
    """

    system: str
    backend: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def says_something(section: Mapping[str, Any]) -> bool:
    """Tell whether somebody has written such a section, or it has dask-jobqueue's own defaults alone."""
    defaults = {**_DEFAULTS, "walltime": _WALLTIME}
    short = {"walltime": "00:30", "shebang": "#!/usr/bin/env condor_submit"}  # LSF's, HTCondor's
    return any(
        value not in _EMPTY and value not in (defaults.get(key), short.get(key))
        for key, value in _keys(section).items()
    )


def from_jobqueue(section: Mapping[str, Any], system: str, *, name: str = "") -> Mapped:
    """Read one system's part of dask-jobqueue's configuration, or its keywords.

    Parameters
    ----------
    section : mapping
        What is below ``jobqueue: <system>:``; ``_`` and ``-`` in keys are the same.
    system : str
        Which system it is for, in dask-jobqueue's words.
    name : str, optional
        What the section is called, if not as the system.

    Returns
    -------
    Mapped

    Raises
    ------
    ValueError
        A size, a number or a duration that cannot be read; the message names the key.
    """
    reading = _Reading(section, system, name or system)
    reading.size()
    reading.places()
    reading.shell()
    reading.directives()
    reading.worker()
    reading.rest()
    return Mapped(
        system=reading.system,
        backend=reading.backend,
        cluster=reading.cluster,
        notes=tuple(reading.notes),
        lost=tuple(reading.lost),
    )


class _Reading:
    """Takes a section apart, part by part; what is left at the end has no meaning here."""

    def __init__(self, section: Mapping[str, Any], system: str, name: str) -> None:
        given = _keys(section)
        self.timed = "walltime" in given
        self.given = {
            key: value
            for key, value in given.items()
            if value not in _EMPTY and value != _DEFAULTS.get(key, object)
        }
        self.system = _SYSTEMS.get(system, system)
        self.label = f"jobqueue.{name}"
        self.cut = False  # whether it says into how many workers a job is cut
        self.backend: dict[str, Any] = {}
        self.cluster: dict[str, Any] = {}
        self.notes: list[str] = []
        self.lost: list[str] = []
        if system == "moab":
            self.notes.append(f"{self.label}: jobs are submitted by Torque's qsub, not by Moab's msub")

    def take(self, key: str, kind: Callable[[str, Any], Any]) -> Any:
        return kind(key, self.given.pop(key)) if key in self.given else None

    def lose(self, key: str, why: str) -> None:
        self.lost.append(f"{self.label}.{key} is not done here: {why}")

    def size(self) -> None:
        """How large a job is, for how long, and into how many workers it is cut."""
        cores, memory = self.take("cores", _number), self.take("memory", _size)
        processes = self.take("processes", _number)
        self.cut = processes is not None
        if processes is None and cores:
            from distributed.deploy.utils import nprocesses_nthreads

            processes, _ = nprocesses_nthreads(cores)
        asked = {"cores": cores, "memory": memory}
        if self.system == "slurm":
            asked["cores"] = self.take("job-cpu", _number) or cores
            asked["memory"] = self.take("job-mem", _binary_size) or memory
        elif self.system == "lsf":
            asked["cores"] = self.take("ncpus", _number) or cores
            asked["memory"] = self.take("mem", _number) or memory
        elif self.system in ("pbs", "torque") and "resource-spec" in self.given:
            asked = self._chunk(str(self.given.pop("resource-spec")))
        elif self.system == "oar":
            asked["memory"] = self._per_core(memory, cores)
            if "resource-spec" in self.given:
                asked |= self._chunk(str(self.given.pop("resource-spec")))
        elif self.system == "sge":
            asked = {}  # only what resource-spec and the directives say
            if "resource-spec" in self.given:
                self.backend["extra"] = [f"-l {self.given.pop('resource-spec')}"]
        self._skip(asked)
        self.backend |= {key: value for key, value in asked.items() if value is not None}
        workers = processes or 1
        if processes:
            self.backend["workers_per_job"] = processes
        if cores and self.backend.get("cores") != cores:
            self.cluster["threads_per_worker"] = max(1, cores // workers)
        if memory and self.backend.get("memory") != memory:
            self.cluster["memory_limit"] = memory // workers
        if self.system != "htcondor":
            self._time()
        if disk := self.take("disk", _size):
            self.backend["extra"] = [f"request_disk = {disk // 1024}"]  # KiB

    def _time(self) -> None:
        value = self.given.pop("walltime", None)
        if value is not None:
            self.backend["time"] = _walltime(value, self.system)
        elif not self.timed:
            self.backend["time"] = seconds_of(_WALLTIME)
            self.notes.append(f"{self.label}.walltime is not set: half an hour, as dask-jobqueue has it")

    def _skip(self, asked: dict[str, Any]) -> None:
        """Leave out what a site does not want to be asked."""
        lines = {"slurm": {"--mem": "memory", "--cpus-per-task": "cores"}, "lsf": {"-M": "memory"}}
        for key in ("job-directives-skip", "header-skip"):
            left = []
            for word in _lines(self.given.pop(key, ())):
                found = [ours for line, ours in lines.get(self.system, {}).items() if word.startswith(line)]
                for ours in found:
                    asked.pop(ours, None)
                left += [] if found else [word]
            if left:
                self.given[key] = left

    def _chunk(self, spec: str) -> dict[str, Any]:
        """Return a job's size out of what PBS, Torque and OAR call its resources."""
        asked: dict[str, Any] = {}
        chunk, *more = spec.split(",")
        if "+" in chunk:
            self.lose("resource-spec", f"a job is one node, and {chunk!r} is several")
            return asked
        nodes = []
        for part in filter(None, re.split("[:/]", chunk)):
            key, _, value = part.partition("=")
            ours = {"mem": "memory", "ncpus": "cores", "ppn": "cores", "core": "cores"}.get(key)
            ours = "gpus" if key in ("ngpus", "gpus", "gpu") else ours
            if ours == "memory":
                asked[ours] = _binary_size(key, value)
            elif ours and value.isdigit():
                asked[ours] = int(value)
            elif key in ("select", "nodes"):
                if value != "1":
                    self.lose("resource-spec", f"a job is one node, and {part!r} is not")
            elif self.system == "oar":
                self.lose("resource-spec", f"{part!r} cannot be asked for: use constraint")
            else:
                nodes.append(part)
        if nodes:
            self.backend["constraint"] = ":".join(nodes)
        for part in more:
            key, _, value = part.partition("=")
            if key == "mem":
                asked["memory"] = _binary_size(key, value)
            elif key == "walltime":
                self.given["walltime"] = value
            else:
                self.backend.setdefault("extra", []).append(f"-l {part}")
        return asked

    def _per_core(self, memory: int | None, cores: int | None) -> int | None:
        """Choose OAR's nodes by their memory for each core, where the site has a property of it."""
        name = self.given.pop("memory-per-core-property-name", None)
        if name and name != "not_applicable" and memory:
            least = math.ceil(memory / ((cores or 1) * 2**20))
            self.backend["constraint"] = f"{name} >= {least}"
        return None  # of a node in all it asks for nothing

    def places(self) -> None:
        """Who pays, and where jobs go."""
        account, project = self.take("account", _text), self.take("project", _text)
        if self.system in ("slurm", "pbs", "torque"):  # its older word for the same option
            account, project = account or project, None
        found = {"queue": self.take("queue", _text), "account": account, "project": project}
        self.backend |= {key: value for key, value in found.items() if value}

    def shell(self) -> None:
        """What runs in a job before anything else."""
        older = self.given.pop("env-extra", ())
        prologue = _lines(self.given.pop("job-script-prologue", ())) or _lines(older)
        if prologue:
            self.backend["prologue"] = tuple(prologue)
            self.backend["shell"] = "/bin/bash"  # theirs is bash, wherever it is
        words = str(self.given.pop("shebang", "")).removeprefix("#!").split()
        if words and not words[-1].endswith("condor_submit"):
            if words[0].endswith("/env"):
                words = [f"/bin/{words[1]}" if words[1:] else "/bin/sh", *words[2:]]
            self.backend["shell"] = words[0]
            if words[1:]:
                self.lose("shebang", f"{words[0]} gets no options; '. /etc/profile' may go first in prologue")

    def directives(self) -> None:
        """Further options; HTCondor's are a table."""
        newer, older = self.given.pop("job-extra-directives", ()), self.given.pop("job-extra", ())
        extra = self.backend.pop("extra", [])
        for line in _lines(newer) or _lines(older):
            words = shlex.split(line)
            if self.system == "sge" and len(words) == 3 and words[0] == "-pe" and words[2].isdigit():
                self.backend |= {"parallel_environment": words[1], "cores": int(words[2])}
                self.cluster.pop("threads_per_worker", None)
            elif self.system == "oar" and len(words) >= 2 and words[0] == "-p":
                mine = [self.backend["constraint"]] if "constraint" in self.backend else []
                self.backend["constraint"] = " AND ".join([" ".join(words[1:]), *mine])
            elif self.system == "slurm" and (found := re.fullmatch(r"--gres[= ](\S+)", line.strip())):
                self.backend["gres"] = found[1]
            else:
                extra.append(line)
        if extra:
            self.backend["extra"] = tuple(extra)
        if not self.cut and self.backend.keys() & {"gpus", "gres"}:
            self.backend.pop("workers_per_job", None)  # one for each GPU

    def worker(self) -> None:
        """What workers and scheduler are started with."""
        cluster = {"name": self.take("name", _text), "interface": self.take("interface", _text)}
        self.cluster |= {key: value for key, value in cluster.items() if value}
        folder = self.take("local-directory", _text)
        if folder and "$" not in folder:
            self.cluster["local_directory"] = folder
        elif folder in ("$TMPDIR", "${TMPDIR}"):
            self.notes.append(f"{self.label}.local-directory needs no saying here: it is $TMPDIR anyhow")
        elif folder:
            self.lose("local-directory", f"write out what {folder!r} is, in a profile")
        options = self.given.pop("scheduler-options", {})
        if isinstance(options, Mapping):
            scheduler = {str(key).replace("-", "_"): value for key, value in options.items()}
            for theirs, ours in (("dashboard_address", "dashboard_address"), ("port", "scheduler_port")):
                if theirs in scheduler:
                    self.cluster[ours] = scheduler.pop(theirs)
            if scheduler:
                self.cluster["scheduler_kwargs"] = scheduler
        older = _lines(self.given.pop("extra", ()))
        self._arguments(_lines(self.given.pop("worker-extra-args", ())) or older)

    def _arguments(self, lines: list[str]) -> None:
        """Take the options of ``dask worker`` that are keywords of workers too."""
        words = [word for line in lines for word in shlex.split(line)]
        while words:
            option, equals, value = words.pop(0).partition("=")
            if option in ("--lifetime", "--lifetime-stagger", "--resources") and (equals or words):
                value = value if equals else words.pop(0)
                key = option.removeprefix("--").replace("-", "_")
                self.cluster[key] = _resources(value) if key == "resources" else value
            elif option == "--lifetime-restart":
                self.cluster["lifetime_restart"] = True
            else:
                takes_one = words and not words[0].startswith("-") and not equals
                whole = f"{option}{equals}{value}" + (f" {words.pop(0)}" if takes_one else "")
                self.lose("worker-extra-args", f"{whole!r}: use the cluster's keywords")

    def rest(self) -> None:
        """Say what has no meaning here."""
        for key in sorted(self.given):
            if key in _NO_NEED:
                self.notes.append(f"{self.label}.{key} needs no saying here: {_NO_NEED[key]}")
            else:
                self.lose(key, _LOST.get(key) or "it is no key that is known here")


def _keys(section: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("_", "-"): value for key, value in section.items()}


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key} = {content}" for key, content in value.items()]
    return [value] if isinstance(value, str) else [str(line) for line in value or () if line]


def _text(_key: str, value: Any) -> str:
    return str(value)


def _number(key: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {value!r} is not a whole number") from None


def _size(key: str, value: Any) -> int:
    return _bytes(key, value, _DECIMAL)


def _binary_size(key: str, value: Any) -> int:
    """Read what the batch system itself would have read: its GB are GiB."""
    return _bytes(key, value, _BINARY)


def _bytes(key: str, value: Any, units: Mapping[str, int]) -> int:
    text = str(value).strip().lower().replace(" ", "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(i?)b?", text)
    if not found or (found[3] and not found[2]):
        raise ValueError(f"{key}: {value!r} is not a size, such as '16GB' or '16GiB'")
    return int(float(found[1]) * (_BINARY if found[3] else units)[found[2]])


def _resources(text: str) -> dict[str, float]:
    try:
        return {key: float(value) for key, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"worker-extra-args: --resources {text!r} is not such as 'GPU=1'") from None


def _walltime(value: Any, system: str) -> float:
    """Read ``hh:mm:ss``; LSF has no seconds, and a plain number is minutes there and in Slurm."""
    minutes = {"lsf": r"(\d+:)?\d+", "slurm": r"\d+"}.get(system, "")
    text = str(value)
    seconds = seconds_of(f"{text}:00" if re.fullmatch(minutes, text) else text)
    if seconds is None:
        raise ValueError(f"walltime: {value!r} is not a duration, such as '02:00:00'")
    return seconds
