"""Batch systems: what a job asks for, how each system is spoken to, and the driver, which does it.

Nothing here knows of Dask or of clusters. `SYSTEMS` names the systems, each in a file of its own.
"""

from __future__ import annotations

from envsync.runner.batch.condor import HTCondor
from envsync.runner.batch.driver import Driver
from envsync.runner.batch.lsf import LSF
from envsync.runner.batch.oar import OAR
from envsync.runner.batch.pbs import PBS, Torque
from envsync.runner.batch.request import Call, Job, JobRequest
from envsync.runner.batch.sge import SGE
from envsync.runner.batch.slurm import Slurm
from envsync.runner.batch.system import BatchSystem, JobVariables

__all__ = [
    "LSF",
    "OAR",
    "PBS",
    "SGE",
    "SYSTEMS",
    "BatchSystem",
    "Call",
    "Driver",
    "HTCondor",
    "Job",
    "JobRequest",
    "JobVariables",
    "Slurm",
    "Torque",
]

SYSTEMS: dict[str, type[BatchSystem]] = {
    system.name: system for system in (Slurm, SGE, PBS, Torque, LSF, HTCondor, OAR)
}
"""Every batch system by its name."""
