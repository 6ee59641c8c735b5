"""dask-jobqueue's configuration, the ``jobqueue:`` section of Dask's YAML, as options of what is here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envsync.runner.batch.request import seconds_of

__all__ = ["Mapped", "from_jobqueue"]

_SYSTEMS = {"moab": "torque"}
_SAME = {"queue": "queue", "account": "account", "project": "project"}
_SIZES = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20}
_SIZES |= {"gi": 2**30, "ti": 2**40}

_NOTES = {
    "python": "the environment is reproduced on the nodes: no Python of theirs is asked for",
    "worker-command": "workers are started by envsync's agent",
    "extra": "workers are started by envsync's agent: use SyncedCluster's keywords",
    "worker-extra-args": "workers are started by envsync's agent: use SyncedCluster's keywords",
    "death-timeout": "workers end by themselves when their cluster is gone",
    "shared-temp-directory": "certificates go to each process over its own channel",
    "scheduler-options": "use SyncedCluster's keywords: dashboard_address, security, scheduler",
    "job-script-epilogue": "a job that is cancelled or killed would not reach it",
    "env-extra": "",
    "lsf-units": "memory is asked for with its unit",
    "use-stdin": "scripts always go through standard input",
    "submit-command-extra": "use extra=",
    "cancel-command-extra": "jobs are cancelled by their ids",
    "disk": "use extra=('request_disk = ...',)",
    "job-directives-skip": "",
}
"""Keys that have no meaning here, with what to do instead."""

_EMPTY: tuple[object, ...] = (None, "", [], {}, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a section of dask-jobqueue's configuration comes to.

    Parameters
    ----------
    system : str
        The batch system: a name of `SYSTEMS`.
    request : dict
        Fields of a `JobRequest`.
    options : dict
        Options of the backend: ``interface``, ``cache``, ``workers_per_job``...
    system_options : dict
        Arguments of the system's own class.
    notes : tuple of str
        What was set there and has no meaning here, a line each, with the reason.
    """

    system: str
    request: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    system_options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def from_jobqueue(section: Mapping[str, Any], system: str) -> Mapped:
    """Read one system's part of dask-jobqueue's configuration.

    Parameters
    ----------
    section : mapping
        What is below ``jobqueue: <system>:``; ``_`` and ``-`` in keys are the same.
    system : str
        The name of that part; sites have parts with names of their own, which say by their keys what they
        are of.

    Returns
    -------
    Mapped

    Raises
    ------
    ValueError
        A size or a duration that cannot be read; the message names the key.
    """
    given = {str(key).replace("_", "-"): value for key, value in section.items()}
    given = {key: value for key, value in given.items() if value not in _EMPTY}
    name = _SYSTEMS.get(system, system)
    request: dict[str, Any] = {}
    options: dict[str, Any] = {}
    site: dict[str, Any] = {}
    notes: list[str] = []

    request |= {ours: str(given.pop(theirs)) for theirs, ours in _SAME.items() if theirs in given}
    if "cores" in given:
        request["cores"] = int(given.pop("cores"))
    if "memory" in given:
        request["memory"] = _size("memory", given.pop("memory"))
    if "walltime" in given:
        request["walltime"] = _walltime(given.pop("walltime"), name)
    if "processes" in given:
        options["workers_per_job"] = int(given.pop("processes"))
    if "interface" in given:
        options["interface"] = str(given.pop("interface"))
    if "local-directory" in given:
        options["local_directory"] = str(given.pop("local-directory"))
    if "log-directory" in given:
        options["log_directory"] = str(given.pop("log-directory"))
    if (shebang := str(given.pop("shebang", ""))).startswith("#!"):
        shell = shebang.removeprefix("#!").strip()
        if "condor_submit" not in shell:
            request["shell"] = shell
    if "name" in given:
        request["name"] = str(given.pop("name"))

    prologue = [*_lines(given.pop("job-script-prologue", ())), *_lines(given.pop("env-extra", ()))]
    if prologue:
        request["prologue"] = tuple(prologue)
    extra = _directives(given.pop("job-extra-directives", ()), given.pop("job-extra", ()))
    for key, make in _RESOURCES.get(name, {}).items():
        if key in given:
            _put(make, given.pop(key), request, extra, site)
    if name in ("pbs", "torque", "oar") and "resource-spec" in given:
        left = _specified(str(given.pop("resource-spec")), request)
        notes += [f"jobqueue.{system}.resource-spec: {part!r} is not taken: use constraint=" for part in left]
    if extra:
        request["extra"] = tuple(extra)

    for key in sorted(given):
        why = _NOTES.get(key) or "it is not known here"
        notes.append(f"jobqueue.{system}.{key} has no meaning here: {why}")
    return Mapped(system=name, request=request, options=options, system_options=site, notes=tuple(notes))


_RESOURCES: Mapping[str, Mapping[str, str]] = {
    "slurm": {"job-cpu": "request cores int", "job-mem": "request memory size"},
    "lsf": {"ncpus": "request cores int", "mem": "request memory int"},
    "sge": {"resource-spec": "extra -l"},
    "oar": {"memory-per-core-property-name": "site memory str"},
}
"""What some systems have besides, and where it goes."""


_SPECIFIED = {
    "ncpus": "cores",
    "ppn": "cores",
    "core": "cores",
    "mem": "memory",
    "ngpus": "gpus",
    "gpus": "gpus",
    "gpu": "gpus",
}


def _specified(spec: str, request: dict[str, Any]) -> list[str]:
    """Take a job's size out of what PBS and OAR call its resources; return the parts that are no size."""
    left = []
    for part in filter(None, re.split(r"[:,+/]", spec)):
        key, _, value = part.partition("=")
        ours = _SPECIFIED.get(key)
        if ours == "memory":
            request[ours] = _size(key, value)
        elif ours and value.isdigit():
            request[ours] = int(value)
        elif part not in ("select=1", "nodes=1"):
            left.append(part)
    return left


def _put(how: str, value: Any, request: dict[str, Any], extra: list[str], site: dict[str, Any]) -> None:
    where, what, *kind = how.split()
    if where == "extra":
        extra.append(f"{what} {value}")
    elif where == "site":
        if value != "not_applicable":
            site[what] = str(value)
    else:
        request[what] = _size(what, value) if kind == ["size"] else int(value)


def _lines(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else [str(line) for line in value]


def _directives(*values: Any) -> list[str]:
    """Return further options; HTCondor's are a table."""
    found: list[str] = []
    for value in values:
        if isinstance(value, Mapping):
            found += [f"{key} = {content}" for key, content in value.items()]
        else:
            found += _lines(value)
    return found


def _size(key: str, value: Any) -> int:
    text = str(value).strip().lower().replace(" ", "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?i?)b?", text)
    if not found or found[2] not in _SIZES:
        raise ValueError(f"{key}: {value!r} is not a size, such as '16GB' or '16GiB'")
    return int(float(found[1]) * _SIZES[found[2]])


def _walltime(value: Any, system: str) -> float:
    """Read ``hh:mm:ss``; LSF has no seconds, and a plain number is minutes there and in Slurm."""
    minutes = {"lsf": r"(\d+:)?\d+", "slurm": r"\d+"}.get(system, "")
    text = str(value)
    seconds = seconds_of(f"{text}:00" if re.fullmatch(minutes, text) else text)
    if seconds is None:
        raise ValueError(f"walltime: {value!r} is not a duration, such as '02:00:00'")
    return seconds
