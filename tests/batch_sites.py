"""Where the batch systems of the tests are: real ones in the lab, stand-ins for those that cannot be had."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envsync.runner.batch import LSF, OAR, PBS, SGE, BatchSystem, HTCondor, JobRequest, Slurm, Torque
from envsync.runner.hosts import Host, SSHOptions, parse_host
from envsync.runner.hosts.local import Local
from tests.batch_fakes import Fake
from tests.lab.fixtures import demand, ended
from tests.lab.install import ACCOUNTING, PROGRAMS, SLURM, TORQUE

CORES = 4
"""What a node has, everywhere; there are two."""


@dataclass
class Site:
    """A batch system that is up.

    Parameters
    ----------
    system : BatchSystem
        How it is spoken to.
    environment : mapping
        What its programs need.
    folder : Path
        A folder that nodes and this machine share, where whoever submits may write.
    one_core : mapping
        What to ask for, for the least of jobs.
    node : mapping
        What to ask for, for a job that leaves no room beside it on its node.
    too_much : mapping
        What no node has.
    said_before : bool
        Whether that is known before submission, and not only by the reason why the job waits.
    nodes : int
        How many there are.
    tells_ends : bool
        Whether it says how jobs ended.
    login : str
        Whom to log in as by ssh, and where; empty if this machine submits.
    lab : object
        The fixture behind it.
    """

    system: BatchSystem
    environment: Mapping[str, str]
    folder: Path
    lab: Any = None
    login: str = ""
    one_core: Mapping[str, Any] = field(default_factory=lambda: {"cores": 1, "memory": 100 * 2**20})
    node: Mapping[str, Any] = field(default_factory=lambda: {"cores": CORES, "memory": 100 * 2**20})
    too_much: Mapping[str, Any] = field(default_factory=lambda: {"cores": 100 * CORES})
    said_before: bool = True
    nodes: int = 2
    tells_ends: bool = True

    def host(self) -> Host:
        """Return where one submits: here, or the lab's login node where root may not."""
        if self.login:
            return parse_host(self.login, SSHOptions(config=(self.lab.config,)))
        return Local()

    def request(self, name: str = "job", **asked: Any) -> JobRequest:
        """Return a request for the least of jobs, or for what is asked."""
        log = str(self.folder / f"{name}.log")
        return JobRequest(name=name, folder=str(self.folder), log=log, **{**self.one_core, **asked})


@contextmanager
def slurm(folder: Path, *, accounting: bool = False, **options: Any) -> Iterator[Site]:
    """The lab's own; `options` are the lab's."""
    from tests.lab.slurm import Slurm as Lab

    demand({**PROGRAMS, **(ACCOUNTING if accounting else SLURM)})
    with ended(Lab(2, shared=[folder], gpus=2, accounting=accounting, **options)) as lab:
        yield Site(Slurm(), lab.environment, folder, lab)


@contextmanager
def torque(folder: Path) -> Iterator[Site]:
    """Half a Torque: the lab's Slurm, spoken to with the commands that Debian has in Torque's place."""
    demand(TORQUE)
    with slurm(folder) as site:
        site.system, site.said_before, site.tells_ends = Torque(arrays=False), False, False
        site.too_much = {"memory": 900 * 2**30}  # of too many cores nobody says why they are waited for
        yield site


def labs(module: str, name: str, system: Callable[[], BatchSystem], **more: Any) -> Any:
    """One of the lab's that has a user of its own, whose home nodes share."""

    @contextmanager
    def site(folder: Path) -> Iterator[Site]:
        demand(PROGRAMS)
        with ended(getattr(importlib.import_module(f"tests.lab.{module}"), name)(2)) as lab:
            shared = lab.home / "work"
            shared.mkdir()
            home = lab.home.stat()
            os.chown(shared, home.st_uid, home.st_gid)
            if home.st_uid:
                yield Site(system(), {}, shared, lab, f"{lab.user}@head", **more)
            else:
                yield Site(system(), lab.environment, shared, lab, **more)

    return site


def fake(system: Callable[[], BatchSystem], **more: Any) -> Any:
    """A stand-in."""

    @contextmanager
    def site(folder: Path) -> Iterator[Site]:
        (folder / "fake").mkdir()
        lab = Fake(folder / "fake")
        try:
            yield Site(system(), lab.environment, folder, lab, **more)
        finally:
            lab.close()

    return site


SITES: dict[str, Any] = {
    "slurm": slurm,
    "sge": labs("sge", "SGE", SGE, one_core={}, node={"cores": CORES}),
    "oar": labs("oar", "OAR", OAR, one_core={"cores": 1}, node={"cores": CORES}, said_before=False),
    "htcondor": labs("condor", "Condor", HTCondor),
    "pbs": fake(PBS),
    "torque": torque,
    "lsf": fake(LSF, said_before=False),
}
FAKES = ("pbs", "lsf")


def there(kind: str) -> bool:
    """Whether the lab has this system."""
    module = {"htcondor": "condor", "torque": "slurm"}.get(kind, kind)
    return kind in FAKES or importlib.util.find_spec(f"tests.lab.{module}") is not None
