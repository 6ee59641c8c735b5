"""What a job asks for, what is known of one, and what the driver runs: values, nothing else."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ENDED",
    "Call",
    "Job",
    "JobRequest",
    "JobState",
    "amount",
    "clock",
    "mebibytes",
    "safe_name",
    "seconds_of",
    "text",
    "variables",
    "whole",
]

JobState = Literal[
    "pending",
    "running",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "out-of-memory",
    "preempted",
    "node-failed",
    "lost",
]

ENDED: frozenset[JobState] = frozenset(
    ("completed", "failed", "cancelled", "timeout", "out-of-memory", "preempted", "node-failed", "lost")
)
"""States that a job does not leave any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """`count` jobs that are alike, each on one node; they are submitted as one array.

    Parameters
    ----------
    name : str
        Their name; what a system does not take in names is replaced.
    log : str
        The path that their logs begin with, on the nodes; each appends its own end: `BatchSystem.log`.
        They have none if it is empty.
    folder : str
        Where they run, and where files go that a system wants to read at submission.
    count : int
        How many.
    walltime : float, optional
        Seconds after which the system ends each; its own default if not given.
    cores, gpus : int, optional
        For each job.
    memory : int, optional
        Bytes for each job.
    queue : str
        Slurm's partition, the queue elsewhere.
    account, project, constraint : str
        Who pays, for what, and which nodes will do, in the system's own words.
    gres : str
        Slurm's generic resources, such as ``"gpu:a100:2"``; instead of `gpus`.
    extra : tuple of str
        Further options of the submission, each as one would write it behind the command, such as
        ``"--exclusive"`` or ``"-M ada@example.org"``.
    prologue : tuple of str
        Lines of the job's shell that run before anything else.
    shell : str
        What the script runs in.
    """

    name: str
    log: str
    folder: str
    count: int = 1
    walltime: float | None = None
    cores: int | None = None
    memory: int | None = None
    gpus: int | None = None
    queue: str = ""
    account: str = ""
    project: str = ""
    constraint: str = ""
    gres: str = ""
    extra: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    shell: str = "/bin/sh"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a request is for one job or more, not {self.count}")
        for what in ("cores", "memory"):
            whole(what, getattr(self, what))
        if self.walltime is not None:
            amount("walltime", self.walltime)
        whole("gpus", self.gpus, least=0)
        for what in ("log", "folder", "queue", "account", "project", "constraint", "gres", "shell"):
            text(what, getattr(self, what))
        for option in self.extra:
            text("extra", option)
            try:
                shlex.split(option)
            except ValueError as error:
                raise ValueError(f"extra={option!r} cannot be read as words of a command: {error}") from None
        for line in self.prologue:
            text("prologue", line.replace("\n", "").replace("\t", "") if isinstance(line, str) else line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known of one job.

    Parameters
    ----------
    id : str
        As its system names it, the member of its array included.
    state : JobState
        Where it stands.
    reason : str
        Why it waits, or how it ended, in the system's own words.
    nodes : tuple of str
        Where it runs or ran.
    exit_code, signal : int, optional
        How its script ended, where that is known.
    walltime_left : float, optional
        Seconds that it may still run.
    restarts : int
        How often the system has started it again.
    """

    id: str
    state: JobState
    reason: str = ""
    nodes: tuple[str, ...] = ()
    exit_code: int | None = None
    signal: int | None = None
    walltime_left: float | None = None
    restarts: int = 0

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A command for the login host; everybody there can read its arguments.

    Parameters
    ----------
    argv : tuple of str
        The program and its arguments.
    input : bytes
        Its standard input.
    folder : str
        Where it runs; the home folder if empty.
    files : tuple of (str, bytes)
        Files that have to be there before, which only their owner may read.
    """

    argv: tuple[str, ...]
    input: bytes = b""
    folder: str = ""
    files: tuple[tuple[str, bytes], ...] = ()


def whole(what: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no whole number, or too small; None is not asked for.

    Raises
    ------
    TypeError, ValueError
        `what` is named in it.
    """
    if value is None:
        return
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} is a whole number, not {value!r}")
    if value < least:
        most = "cannot be" if least == 0 else "has to be more than nothing, not"
        raise ValueError(f"{what} {most} {value}")


def amount(what: str, value: Any) -> None:
    """Refuse what is no number, endless, or not more than nothing.

    Raises
    ------
    TypeError, ValueError
        `what` is named in it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{what} has to be more than nothing, and a number, not {value}")


def text(what: str, value: Any) -> None:
    """Refuse what is no text of one line that a command can be given.

    Raises
    ------
    TypeError, ValueError
        `what` is named in it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is text, not {value!r}")
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 or ord(letter) == 127 for letter in value):
        raise ValueError(f"{what}: {value!r} has a line break or another control character")


def variables(what: str, value: Any) -> None:
    """Refuse what are no variables of a shell, by name; None is not asked for.

    Raises
    ------
    TypeError, ValueError
        `what` is named in it.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{what} is a dictionary of variables, not {value!r}")
    for name, said in (value or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{what}: {name!r} is no name of a variable")
        text(f"{what}[{name!r}]", said)


def safe_name(name: str, limit: int = 64) -> str:
    """Return a job's name that every system takes: letters, digits, ``_``, ``-`` and ``.``, a letter first.

    Names that differ stay different, also where they are cut.
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    if not safe[:1].isascii() or not safe[:1].isalpha():
        safe = f"j{safe}"
    if safe == name and len(safe) <= limit:
        return safe
    end = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{safe[: limit - 7]}-{end}"


def clock(seconds: float) -> str:
    """Return a duration as ``hours:minutes:seconds``, rounded up."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def seconds_of(text: str) -> float | None:
    """Read a duration: ``d-hh:mm:ss``, ``hh:mm:ss``, ``mm:ss`` or seconds; None for what is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)(?:\.\d+)?", text.strip())
    if not found:
        return None
    days, first, second, last = found.groups()
    hours, minutes = (first, second) if second is not None else (None, first)
    return float(int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(last))


def mebibytes(size: int) -> int:
    """Return a size in MiB, rounded up."""
    return -(-size // 2**20)
