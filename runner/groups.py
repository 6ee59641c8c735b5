"""Kinds of jobs in one cluster: what each asks for, and how many there should be. Nothing is asked here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask.utils import parse_bytes

from envsync.runner.amounts import seconds
from envsync.runner.batch.request import JobRequest, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Group", "counts", "gpus_of", "groups_of", "lines", "size"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
_RESERVED = ("scheduler",)
_TEXTS = ("queue", "account", "project", "constraint", "gres")
_KEYS = (*_TEXTS, *("time", "cores", "memory", "gpus", "workers_per_job", "extra", "prologue", "resources"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Jobs that are alike.

    Attributes
    ----------
    name : str
        Empty where a cluster has one kind of jobs only.
    request : JobRequest
        What each asks for; name, log and folder are the cluster's.
    workers_per_job : int
        How many workers each runs.
    resources : mapping
        What each of its workers offers to tasks, besides ``GPU``.
    """

    name: str = ""
    request: JobRequest
    workers_per_job: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the names of its jobs begin with."""
        return self.name or "job"

    @property
    def resource(self) -> str:
        """What tasks ask for to be run by its workers; empty where there is one kind only."""
        return f"group-{self.name}" if self.name else ""

    @property
    def offers(self) -> list[str]:
        """What its workers offer to tasks."""
        gpus = self.request.gpus or gpus_of(self.request.gres)
        return [*filter(None, [self.resource]), *self.resources, *(["GPU"] if gpus else [])]

    @property
    def suffixes(self) -> list[str]:
        """What the names of a job's workers have behind it."""
        return [f"-{number}" for number in range(self.workers_per_job)]

    def jobs_for(self, workers: int) -> int:
        """Return how many jobs so many workers take."""
        return -(-workers // self.workers_per_job)


def groups_of(
    asked: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Group]:
    """Return the groups of a cluster by name, the default one first.

    Parameters
    ----------
    asked : mapping
        What all ask for.
    groups : mapping, optional
        What each asks for instead, by its name; one group without a name if there are none.
    aliases : mapping, optional
        A batch system's own words for what is asked.

    Raises
    ------
    TypeError
        A group asks for what there is not.
    ValueError
        A name or an amount makes no sense.
    """
    if groups is None:
        return {"": _group("", asked)}
    if not groups:
        raise ValueError("groups= names at least one group, such as {'cpu': {}, 'gpu': {'gpus': 1}}")
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups= is a dictionary by name, such as {{'cpu': {{}}}}, not {groups!r}")
    found = {}
    for name, own in groups.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(
                f"a group cannot be called {name!r}: letters, digits, '_', '-' and '.', a letter first, "
                f"32 at most, and not {', '.join(_RESERVED)}"
            )
        if not isinstance(own, Mapping):
            raise TypeError(f"group {name}: a dictionary of what it asks for, not {own!r}")
        own = {(aliases or {}).get(key, key): value for key, value in own.items()}
        if unknown := [key for key in own if key not in _KEYS]:
            known = ", ".join((*(aliases or {}), *_KEYS))
            raise TypeError(f"group {name}: {', '.join(unknown)} cannot be asked for; it may name {known}")
        both = {**asked, **own}
        if "gpus" in own and "gres" not in own:  # one of them is meant
            both["gres"] = ""
        if "gres" in own and "gpus" not in own:
            both["gpus"] = None
        try:
            found[name] = _group(name, both)
        except (TypeError, ValueError) as error:
            raise type(error)(f"group {name}: {error}") from error
    return found


def _group(name: str, asked: Mapping[str, Any]) -> Group:
    per_job = asked.get("workers_per_job")
    if isinstance(per_job, int) and per_job < 1:
        raise ValueError(f"workers_per_job must be at least 1, not {per_job}")
    whole("workers_per_job", per_job)
    time, gpus = asked.get("time"), asked.get("gpus")
    whole("gpus", gpus, least=0)
    texts: dict[str, Any] = {key: "" if asked.get(key) is None else asked[key] for key in _TEXTS}
    gres = texts["gres"] if isinstance(texts["gres"], str) else ""
    return Group(
        name=name,
        request=JobRequest(
            name="envsync",
            log="",
            folder="",
            walltime=None if time is None else seconds(time),
            cores=asked.get("cores"),
            memory=size("memory", asked.get("memory")),
            gpus=gpus,
            extra=lines("extra", asked.get("extra") or ()),
            prologue=lines("prologue", asked.get("prologue") or ()),
            shell=asked.get("shell") or "/bin/sh",
            **texts,
        ),
        workers_per_job=per_job or gpus or gpus_of(gres) or 1,
        resources=_resources(asked.get("resources") or {}),
    )


def _resources(given: Any) -> dict[str, float]:
    """Return what workers offer, as Dask takes it."""
    if not isinstance(given, Mapping):
        raise TypeError(f"resources is a dictionary, such as {{'licence': 1}}, not {given!r}")
    for name, number in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^\s=,]+", name):
            raise ValueError(f"resources: {name!r} is no name: one word, without '=' and ','")
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ValueError(f"resources: how much of {name} is a number, not {number!r}")
    return dict(given)


def counts(groups: Mapping[str, Group], n: int | Mapping[str, int] | None) -> dict[str, int]:
    """Return how many are wanted of each group that is named; a plain number is of the first group.

    Raises
    ------
    TypeError, ValueError
        No such group, or a number that is none.
    """
    if n is None:
        return {}
    wanted = dict(n) if isinstance(n, Mapping) else {next(iter(groups)): n}
    for name, number in wanted.items():
        if name not in groups:
            named = ", ".join(filter(None, groups)) or "none: groups= of the backend names them"
            raise ValueError(f"there is no group {name!r}; there are {named}")
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TypeError(f"how many workers is a whole number, not {number!r}")
        if number < 0:
            raise ValueError(f"n_workers must not be negative, not {number}")
    return {name: int(number) for name, number in wanted.items()}


def lines(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return a list of texts as it was given.

    Raises
    ------
    TypeError, ValueError
        It is none; `name` is named in it.
    """
    if isinstance(given, str):
        raise ValueError(f"{name}={given!r}: a list of them, such as [{given!r}]")
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TypeError(f"{name}={given!r}: a list of texts")
    return tuple(given)


def size(what: str, given: Any) -> int | None:
    """Return an amount of memory in bytes: of ``"16 GB"``, or a number; None for None.

    Raises
    ------
    TypeError, ValueError
        It is none; `what` is named in it.
    """
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise TypeError(f"{what} is text such as '16 GB', or a number of bytes, not {given!r}")
    try:
        found = int(parse_bytes(given))
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{what}={given!r} is no size: write 16 GB") from error
    whole(what, found)
    return found


def gpus_of(gres: str) -> int:
    """Return how many GPUs generic resources name: 2 of ``gpu:a100:2``."""
    found = 0
    for one in gres.split(","):
        kind, *rest = one.split("(")[0].strip().removeprefix("gres/").split(":")
        if kind == "gpu":
            found += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return found
