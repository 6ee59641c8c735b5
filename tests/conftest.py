"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

from tests.lab.fixtures import (
    authority,
    condor,
    docker_engine,
    docker_registry,
    lab,
    lab_bases,
    machine,
    oar,
    sge,
    slurm,
)
from tests.makes import makes, uv_asked_for
from tests.running import elsewhere, others
from tests.s3 import s3, s3_server
from tests.small import small_lock

__all__ = [
    "authority",
    "condor",
    "docker_engine",
    "docker_registry",
    "elsewhere",
    "lab",
    "lab_bases",
    "machine",
    "makes",
    "oar",
    "others",
    "s3",
    "s3_server",
    "sge",
    "slurm",
    "small_lock",
    "uv_asked_for",
]
