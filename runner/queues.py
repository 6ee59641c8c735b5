"""Backends whose hosts are the nodes of jobs: what to ask a batch system for, and from where."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from envsync.runner import batch
from envsync.runner.amounts import seconds
from envsync.runner.backends import GRACE, SSH, Backend, Local
from envsync.runner.batch import SYSTEMS, BatchSystem
from envsync.runner.batch.request import amount, text, variables, whole
from envsync.runner.groups import groups_of, lines, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.hosts.base import Host

__all__ = ["BACKENDS", "LSF", "OAR", "PBS", "SGE", "Batch", "HTCondor", "Slurm", "Torque"]

Where = Literal["client", "login", "job"]
Placed = Literal["auto", "shared", "node"]


class Batch(Backend):
    """Jobs of a batch system, each with a node's share of it.

    Parameters
    ----------
    system : str or BatchSystem
        Which: ``slurm sge pbs torque lsf htcondor oar``.
    queue, account, project, constraint, gres : str
        As the system calls them; a Slurm partition is a queue.
    time : str, float or timedelta, optional
        How long a job may run: ``"04:00:00"``, ``"2 h"`` or seconds. The system's own default if not given.
    cores, gpus : int, optional
        Of each job.
    memory : str or int, optional
        Of each job, such as ``"16 GB"``.
    workers_per_job : int, optional
        One for each GPU if not given; without GPUs one.
    resources : mapping, optional
        What each worker offers to tasks, besides ``GPU``, such as ``{"licence": 1}``.
    groups : mapping, optional
        Several kinds of jobs in one cluster: by the name of each, what it asks for instead of the above,
        such as ``{"cpu": {}, "gpu": {"queue": "gpu", "gpus": 1}}``. The first is the default one.
    via : SSH or str, optional
        The login host; the machine that this runs on if not given.
    scheduler : {"client", "login", "job"}, optional
        Where the scheduler runs: here, on the login host, or in a job of its own. By default here where this
        is the login host, else in a job: login hosts end what runs long.
    scheduler_cores : int
        Of the scheduler's own job.
    scheduler_memory : str or int, optional
        Of the scheduler's own job; `memory` if not given.
    scheduler_time : str, float or timedelta, optional
        How long the scheduler's own job may run, and the cluster with it; `time` if not given.
    scheduler_extra : sequence of str, optional
        Further options of the scheduler's own job; `extra` if not given, and never a group's own.
    extra : sequence of str
        Further options of the submission, as one would write them behind the command.
    prologue : sequence of str
        Lines of the job's shell that run first, such as ``module load cuda``.
    shell : str
        That shell's path, such as ``"/bin/bash"``.
    interface : str, optional
        The login host's address on the network of the nodes, if they do not find it by themselves.
    cache : str, optional
        The cache folder, on the login host; ``$ENVSYNC_CACHE`` or ``~/.cache/envsync`` there if not given.
    placement : {"auto", "shared", "node"}
        Where the environment lies: once in the cache folder, which nodes see too; or on each node, once for
        all jobs there. By default that is found out by the first job.
    scratch : str, optional
        The folder of a node in which ``"node"`` puts it, such as ``"/local/$USER"``: variables of the job's
        environment count. Not given, it is the system's folder for the job, ``$TMPDIR`` or ``/tmp``.
    submissions_per_minute : int
        How many there may be; any number of workers that are asked for together is one.
    poll : float
        Seconds between two looks at the jobs.
    grace : float
        Seconds without a sign of life from here after which a job ends.
    environment : mapping, optional
        Variables that the system's programs need on the login host.

    Raises
    ------
    ValueError
        A number or a name makes no sense.
    TypeError
        A group asks for what there is not, or something is no number or no text.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        system: str | BatchSystem,
        *,
        queue: str = "",
        account: str = "",
        project: str = "",
        constraint: str = "",
        gres: str = "",
        time: Any = None,
        cores: int | None = None,
        memory: str | int | None = None,
        gpus: int | None = None,
        workers_per_job: int | None = None,
        resources: Mapping[str, float] | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        via: SSH | str | None = None,
        scheduler: Where | None = None,
        scheduler_cores: int = 1,
        scheduler_memory: str | int | None = None,
        scheduler_time: Any = None,
        scheduler_extra: Sequence[str] | None = None,
        extra: Sequence[str] = (),
        prologue: Sequence[str] = (),
        shell: str = "/bin/sh",
        interface: str | None = None,
        cache: str | None = None,
        placement: Placed = "auto",
        scratch: str | None = None,
        submissions_per_minute: int = 30,
        poll: float = 5.0,
        grace: float = GRACE,
        environment: dict[str, str] | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(self._not_known(next(iter(unknown))))
        if isinstance(system, str):
            if system not in SYSTEMS:
                raise ValueError(f"the batch system is one of {', '.join(SYSTEMS)}, not {system!r}")
            system = SYSTEMS[system]()
        if scheduler not in (None, "client", "login", "job"):
            raise ValueError(f"scheduler must be 'client', 'login' or 'job', not {scheduler!r}")
        if placement not in ("auto", "shared", "node"):
            raise ValueError(f"placement must be 'auto', 'shared' or 'node', not {placement!r}")
        if scratch and placement == "shared":
            raise ValueError(
                "scratch= is for an environment on the nodes, and placement='shared' has it shared"
            )
        if not isinstance(shell, str) or not re.fullmatch(r"/\S+", shell):
            raise ValueError(f"shell={shell!r}: the path of a shell, without options, such as '/bin/bash'")
        if via is not None and not isinstance(via, str | SSH):
            raise TypeError(f"via is the login host, such as 'me@login.example.org', not {via!r}")
        for what, said in (("interface", interface), ("cache", cache), ("scratch", scratch)):
            text(what, said or "")
        for what, number in (("poll", poll), ("grace", grace)):
            amount(what, number)
        whole("submissions_per_minute", submissions_per_minute)
        whole("scheduler_cores", scheduler_cores)
        variables("environment", environment)
        self.system: BatchSystem = system
        self.via = SSH([via]) if isinstance(via, str) else via
        self.scheduler: Where = scheduler or ("job" if self.via else "client")
        self.scheduler_cores = scheduler_cores
        self.scheduler_memory = size("scheduler_memory", scheduler_memory)
        self.scheduler_time = None if scheduler_time is None else seconds(scheduler_time, "scheduler_time")
        if self.scheduler_time is not None:
            amount("scheduler_time", self.scheduler_time)
        asked = {
            "queue": queue,
            "account": account,
            "project": project,
            "constraint": constraint,
            "gres": gres,
            "time": time,
            "cores": cores,
            "memory": memory,
            "gpus": gpus,
            "workers_per_job": workers_per_job,
            "extra": extra,
            "prologue": prologue,
            "shell": shell,
            "resources": resources,
        }
        self.groups = groups_of(asked, groups, self.aliases)
        self.group = next(iter(self.groups.values()))
        """The default one."""
        own = extra or () if scheduler_extra is None else scheduler_extra
        own = lines("extra" if scheduler_extra is None else "scheduler_extra", own)
        self.scheduler_extra = replace(self.group.request, extra=own).extra  # what cannot be read is told now
        self.interface = interface
        self.cache = cache
        self.placement: Placed = placement
        self.scratch = scratch or ""
        self.grace = grace
        self.submissions_per_minute = submissions_per_minute
        self.poll = poll
        self.environment = environment

    def _not_known(self, name: str) -> str:
        """Say of a keyword that there is none of this name, and which one may have been meant."""
        kinds = [one for one in type(self).__mro__ if issubclass(one, Batch)]
        known = {key for one in kinds for key in inspect.signature(one).parameters}
        close = get_close_matches(name, known - {"system", "rest", "unknown"}, 1)
        meant = f": did you mean {close[0]}=?" if close else ": extra= takes further options of a submission"
        return f"{type(self).__name__} has no {name}={meant}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.system.name}{f', via={self.via}' if self.via else ''})"

    def hosts(self) -> list[Host]:
        """Return the scheduler's host if that is this machine, then the login host if that is another."""
        login = (self.via or Local()).hosts()[:1]
        return [*Local().hosts(), *login] if self.via is not None and self.scheduler == "client" else login

    async def described(self) -> Mapping[str, Any] | None:
        """Return the system, and where it is. See `Backend.described`."""
        return {"backend": self.system.name, "hosts": self.via.names if self.via else ()}

    @property
    def workers_on_first(self) -> bool:
        """False: they run in jobs."""
        return False


class Slurm(Batch):
    """Jobs of Slurm; ``partition`` is its word for a queue. See `Batch`."""

    aliases: ClassVar[Mapping[str, str]] = {"partition": "queue"}

    def __init__(self, *, partition: str = "", queue: str = "", **rest: Any) -> None:
        if partition and queue and partition != queue:
            raise ValueError(f"partition={partition!r} and queue={queue!r} are the same thing: give one")
        super().__init__("slurm", queue=partition or queue, **rest)


class SGE(Batch):
    """Jobs of Grid Engine, where each site has names of its own for what is asked.

    Parameters
    ----------
    parallel_environment : str
        The parallel environment of jobs with more than one core: ``qconf -spl`` lists them.
    memory_resource : str
        The resource by which memory is asked for, a share for each core: ``mem_free``, ``h_vmem``,
        ``m_mem_free``... Memory is not asked for if it is empty.
    gpu_resource : str
        The resource by which GPUs are asked for.
    gpu_per_core : bool
        Whether that one counts for each core, as consumables do unless they are of the kind ``JOB``.
    **rest
        See `Batch`.
    """

    def __init__(
        self,
        *,
        parallel_environment: str = "smp",
        memory_resource: str = "mem_free",
        gpu_resource: str = "gpu",
        gpu_per_core: bool = True,
        **rest: Any,
    ) -> None:
        system = batch.SGE(
            parallel=parallel_environment,
            memory=memory_resource,
            gpu=gpu_resource,
            gpu_per_core=gpu_per_core,
        )
        super().__init__(system, **rest)


class PBS(Batch):
    """Jobs of PBS Professional or OpenPBS. See `Batch`."""

    def __init__(self, **rest: Any) -> None:
        super().__init__("pbs", **rest)


class Torque(Batch):
    """Jobs of Torque.

    Parameters
    ----------
    arrays : bool
        Whether its commands know arrays, and XML. Those that another system has in Torque's place do not,
        such as Debian's for Slurm: each job is a submission of its own then, and nothing tells how it ended.
    **rest
        See `Batch`.
    """

    def __init__(self, *, arrays: bool = True, **rest: Any) -> None:
        super().__init__(batch.Torque(arrays=arrays), **rest)


class LSF(Batch):
    """Jobs of LSF. See `Batch`."""

    def __init__(self, **rest: Any) -> None:
        super().__init__("lsf", **rest)


class HTCondor(Batch):
    """Jobs of HTCondor. See `Batch`."""

    def __init__(self, **rest: Any) -> None:
        super().__init__("htcondor", **rest)


class OAR(Batch):
    """Jobs of OAR, where each site has names of its own for what is asked.

    Parameters
    ----------
    core_resource : str
        The resource that stands for a core.
    gpu_resource : str
        The resource that stands for a GPU.
    memory_resource : str
        The property with a node's memory in MiB, by which nodes with enough are chosen. OAR has no other way
        to ask for memory: it is not asked for if this is empty.
    **rest
        See `Batch`.
    """

    def __init__(
        self,
        *,
        core_resource: str = "core",
        gpu_resource: str = "gpu",
        memory_resource: str = "",
        **rest: Any,
    ) -> None:
        system = batch.OAR(core=core_resource, gpu=gpu_resource, memory=memory_resource)
        super().__init__(system, **rest)


BACKENDS: dict[str, type[Batch]] = {
    "slurm": Slurm,
    "sge": SGE,
    "pbs": PBS,
    "torque": Torque,
    "lsf": LSF,
    "htcondor": HTCondor,
    "oar": OAR,
}
"""The backend of each batch system, by the system's name."""
