"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.command import forked, forking
from tests.lab.fixtures import (
    authority,
    ceph,
    cloud,
    condor,
    docker_engine,
    docker_registry,
    lab,
    lab_bases,
    machine,
    nova,
    oar,
    sge,
    slurm,
)
from tests.makes import makes, store_of_uv, uv_asked_for
from tests.overlays import real_wheels
from tests.running import elsewhere, others
from tests.s3 import s3, s3_server
from tests.small import keywords, small_lock

__all__ = [
    "authority",
    "ceph",
    "cloud",
    "condor",
    "docker_engine",
    "docker_registry",
    "elsewhere",
    "forked",
    "forking",
    "keywords",
    "lab",
    "lab_bases",
    "machine",
    "makes",
    "nova",
    "oar",
    "others",
    "real_wheels",
    "s3",
    "s3_server",
    "sge",
    "slurm",
    "small_lock",
    "store_of_uv",
    "uv_asked_for",
]


def pytest_configure() -> None:
    """Let what tests start be as it is for a user, whoever started pytest."""
    # the environments that tests make have no bytecode yet: each process would compile all that it imports
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # a shell has what it starts in the background ignore it, and so would all that tests interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while tests are collected, nor ever in what that has made: it stays to the end.

    Then as seldom as the command does: what clouds' SDKs are made of was gone through for six seconds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


LONGEST = (
    *("test_docker", "test_existing_versions", "test_existing", "test_cluster_image", "test_mend"),
    *("test_cli_hosts", "test_todays_failures", "test_provision", "test_cluster_ssh", "test_jobs_slurm"),
    *(
        "test_existing_gateway",
        "test_cluster",
        "test_images_run",
        "test_cli_clusters",
        "test_session_realise",
    ),
    *("test_docs", "test_hub", "test_gate", "test_bad_input_hosts", "test_bad_input"),
    "test_cloud",
)
"""The files that take most of a processor's time: from two minutes and a half to forty seconds.

The last is the longest of `make check`.
"""


CLOUDS = (
    *("contracts/test_cloud", "test_ahead", "test_cli_renting", "test_forwarding", "test_forwarding_google"),
    *("test_cloud_azure", "test_cloud_azure_schedules", "test_cloud_bad_days", "test_cloud_gce"),
    *("test_cloud_hetzner", "test_cloud_openstack", "test_cloud_portal", "test_watchdog"),
)
"""The files that use clouds' SDKs, each of which takes seconds to be imported: one process has them all."""


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """A file's tests stay together, and those of files that import much."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "clouds" if file.removeprefix("tests/").removesuffix(".py") in CLOUDS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Say which tests are for one process."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: begun last, one of them would keep everybody waiting."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(LONGEST)), -slow[item.path]))
