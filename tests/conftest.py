"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

from collections import Counter

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: begun last, one of them would keep everybody waiting."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
