"""Where an environment runs: hosts, backends, clusters.

The names below load on first use: hosts can be had without Dask, and Dask without asyncssh.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envsync.runner.azure import Azure
    from envsync.runner.backends import SSH, Backend, Local
    from envsync.runner.clouds import Cloud
    from envsync.runner.cluster import SyncedCluster
    from envsync.runner.ec2 import EC2
    from envsync.runner.existing import SyncEnvironment
    from envsync.runner.gce import GCE
    from envsync.runner.hetzner import Hetzner
    from envsync.runner.openstack import OpenStack
    from envsync.runner.profiles import backend_from_config
    from envsync.runner.queues import LSF, OAR, PBS, SGE, Batch, HTCondor, Slurm, Torque
    from envsync.runner.verification import Verification
    from envsync.runner.verifying import verify

_HOMES = {
    "EC2": "envsync.runner.ec2",
    "Cloud": "envsync.runner.clouds",
    "SSH": "envsync.runner.backends",
    "Azure": "envsync.runner.azure",
    "Backend": "envsync.runner.backends",
    "GCE": "envsync.runner.gce",
    "Hetzner": "envsync.runner.hetzner",
    "Local": "envsync.runner.backends",
    "OpenStack": "envsync.runner.openstack",
    **dict.fromkeys(
        ("Batch", "HTCondor", "LSF", "OAR", "PBS", "SGE", "Slurm", "Torque"), "envsync.runner.queues"
    ),
    "SyncEnvironment": "envsync.runner.existing",
    "SyncedCluster": "envsync.runner.cluster",
    "Verification": "envsync.runner.verification",
    "backend_from_config": "envsync.runner.profiles",
    "verify": "envsync.runner.verifying",
}

CLOUDS = {name.lower(): name for name in ("EC2", "GCE", "Azure", "Hetzner", "OpenStack")}
"""The class of each cloud, by what profiles, records and ``--on`` call it: `Cloud.kind`."""

__all__ = [
    "CLOUDS",
    "EC2",
    "GCE",
    "LSF",
    "OAR",
    "PBS",
    "SGE",
    "SSH",
    "Azure",
    "Backend",
    "Batch",
    "Cloud",
    "HTCondor",
    "Hetzner",
    "Local",
    "OpenStack",
    "Slurm",
    "SyncEnvironment",
    "SyncedCluster",
    "Torque",
    "Verification",
    "backend_from_config",
    "verify",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
