"""How many jobs of each group a cluster should have, and which of them go first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dask.utils import parse_bytes

from envsync.runner.groups import counts
from envsync.runner.jobprocess import JobProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envsync.runner.groups import Group

__all__ = ["Fleet"]


class Fleet:
    """Edits SpecCluster's specification: a name for each job that there should be.

    Parameters
    ----------
    jobs : Jobs
        What they share; `Machines` are as good.
    specs : dict
        The cluster's ``worker_spec``, which is changed.
    processes : mapping
        The cluster's ``workers``: the jobs that have been submitted.
    """

    kind: type[Any] = JobProcess

    def __init__(self, jobs: Any, specs: dict[Any, Any], processes: Mapping[Any, Any]) -> None:
        self.jobs = jobs
        self.groups: Mapping[str, Group] = jobs.backend.groups
        self._specs = specs
        self._processes = processes

    def spec(self, group: Group) -> dict[str, Any]:
        """Return a job of a group, as SpecCluster has it."""
        return {
            "cls": self.kind,
            "options": {"jobs": self.jobs, "group": group},
            "group": group.suffixes,
        }

    def new(self, group: Group) -> dict[str, dict[str, Any]]:
        """Return another job of a group, by its name."""
        return {self.jobs.next_name(group): self.spec(group)}

    def names(self, group: Group) -> list[str]:
        """Return the jobs of a group that there should be, the oldest first."""
        return [name for name, spec in [*self._specs.items()] if spec["options"]["group"] is group]

    def first_to_go(self, names: Iterable[str]) -> list[str]:
        """Sort jobs: what is not submitted yet, what waits, what comes up, what runs; the youngest first."""

        def rank(name: str) -> int:
            process = self._processes.get(name)
            return 0 if process is None else self.rank(process)

        youngest = list(names)[::-1]
        return sorted(youngest, key=rank)

    def rank(self, process: Any) -> int:
        """Return a number: the larger it is, the later a job goes."""
        if process.workers:
            return 3
        return 1 if self.jobs.job(process.id).state == "pending" else 2

    def idle_to_go(self, names: Iterable[str]) -> list[str]:
        """Sort jobs that have nothing to do, the least loaded first: any may go."""
        return list(names)

    def have(self, wanted: Mapping[str, int]) -> None:
        """Have so many jobs of each group that is named.

        Parameters
        ----------
        wanted : mapping
            How many jobs, by the name of a group.
        """
        for name, number in wanted.items():
            group = self.groups[name]
            names = self.names(group)
            if surplus := len(names) - number:
                self.end(self.first_to_go(names)[: max(0, surplus)])
            for _ in range(number - len(names)):
                self._specs.update(self.new(group))

    def end(self, names: Iterable[str]) -> None:
        """Have these jobs no longer; what is not submitted yet never is."""
        names = [name for name in names if self._specs.pop(name, None)]
        self.jobs.withdraw(names)

    def group(self, name: str | None) -> Group:
        """Return a group by its name; the default one if none is given.

        Raises
        ------
        ValueError
            There is none of that name.
        """
        if name is None:
            return next(iter(self.groups.values()))
        return self.groups[next(iter(counts(self.groups, {name: 0})))]

    def bounds(self, group: Group, asked: dict[str, Any]) -> dict[str, Any]:
        """Take minimum and maximum out of the arguments of `adapt`, in workers, jobs, cores or memory.

        Raises
        ------
        ValueError
            The backend does not say how much of it a job has.
        """
        found: dict[str, Any] = {}
        for bound, start, stricter, rounded in (
            ("minimum", 0, max, math.ceil),
            ("maximum", math.inf, min, math.floor),
        ):
            number = asked.pop(bound, None)
            number = start if number is None else number
            for what, each in _amounts(group).items():
                amount = asked.pop(f"{bound}_{what}", None)
                if amount is not None:
                    jobs = rounded(_per_job(what, amount, each))
                    number = stricter(number, jobs * group.workers_per_job)
            found[bound] = number
        return found

    def wanted(
        self,
        n: int | Mapping[str, int] | None,
        *,
        jobs: int | Mapping[str, int] | None = None,
        cores: float | None = None,
        memory: Any = None,
    ) -> dict[str, int]:
        """Return how many jobs a user asks for, by group.

        Parameters
        ----------
        n, jobs : int or mapping, optional
            Workers, or jobs: a number of the default group, or of each that is named.
        cores, memory : optional
            Of the default group's jobs together.

        Raises
        ------
        TypeError, ValueError
            It makes no sense, or cannot be told.
        """
        found = {name: self.groups[name].jobs_for(number) for name, number in counts(self.groups, n).items()}
        found.update(counts(self.groups, jobs))
        group = self.jobs.backend.group
        for what, amount in (("cores", cores), ("memory", memory)):
            if amount is not None:
                number = math.ceil(_per_job(what, amount, _amounts(group)[what]))
                found[group.name] = max(found.get(group.name, 0), number)
        return found


def _amounts(group: Group) -> dict[str, int | None]:
    """Return what each job is one of, or has."""
    return {"jobs": 1, "cores": group.request.cores, "memory": group.request.memory}


def _per_job(what: str, amount: Any, each: int | None) -> float:
    """Return how many jobs have so much together."""
    if not each:
        raise ValueError(
            f"the backend does not say how much {what} a job has: give it {what}=, or count workers"
        )
    return float((parse_bytes(amount) if what == "memory" else amount) / each)
