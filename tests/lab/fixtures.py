"""The lab as pytest fixtures; the one place that skips its tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, TypeVar

import pytest

from tests.lab.batch import BatchLab
from tests.lab.ceph import Ceph
from tests.lab.cloud import Cloud
from tests.lab.condor import Condor
from tests.lab.docker import DockerEngine
from tests.lab.install import CEPH, CLOUD, DOCKER, IMAGES, PROGRAMS, REGISTRY, SLURM, missing, obstacle
from tests.lab.machines import Lab, Machine
from tests.lab.network import LabError
from tests.lab.nova import Nova
from tests.lab.oar import OAR
from tests.lab.registry import Authority, DockerRegistry
from tests.lab.sge import SGE
from tests.lab.slurm import Slurm
from tests.openstack_api import OpenStackApi

AnyLab = TypeVar("AnyLab", bound=Lab)


@contextlib.contextmanager
def ended(lab: AnyLab) -> Iterator[AnyLab]:
    """End a lab when it is not used any more; nothing of it may go on."""
    try:
        yield lab
    finally:
        survivors = lab.close()
    assert not survivors, f"{type(lab).__name__} is gone, but these go on: {survivors}"


def demand(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Skip where no lab can stand; in CI that is a failure."""
    why = obstacle()
    if not why and missing(programs):
        why = f"the lab lacks {' '.join(missing(programs))}: run `python -m tests.lab.install`"
    if why:
        _do_without(why)


def _do_without(why: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"in CI the lab must stand, but {why}", pytrace=False)
    pytest.skip(why)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab's network, for the whole session; machines started on it by hand run until the end."""
    demand()
    with ended(Lab()) as network:
        yield network


@pytest.fixture
def machine(lab: Lab) -> Iterator[Callable[..., Machine]]:
    """Start machines (the arguments are those of `Lab.host`) that end with the test."""
    started: list[Machine] = []

    def start(*args: object, **keywords: object) -> Machine:
        started.append(lab.host(*args, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in reversed(started):
        each.kill()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes, for the whole session; they see the tests' folders."""
    demand({**PROGRAMS, **SLURM})
    with ended(Slurm(2, shared=[tmp_path_factory.getbasetemp()])) as cluster:
        yield cluster


def _running(system: type[BatchLab], factory: pytest.TempPathFactory) -> Iterator[BatchLab]:
    demand()
    shared = factory.getbasetemp()
    shared.chmod(0o711)  # its user has to come by
    with ended(system(2, shared=[shared])) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchLab]:
    """An SGE of two nodes; a module's tests share it, its nodes see their folders. Jobs are root's."""
    yield from _running(SGE, tmp_path_factory)


@pytest.fixture(scope="module")
def oar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchLab]:
    """An OAR of two nodes; a module's tests share it, its nodes see their folders. Jobs are a user's."""
    yield from _running(OAR, tmp_path_factory)


@pytest.fixture(scope="module")
def condor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchLab]:
    """An HTCondor of two nodes; a module's tests share it, its nodes see their folders. Jobs are a user's."""
    yield from _running(Condor, tmp_path_factory)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """An EC2 whose machines boot; a module's tests share it, and boto3 in this process uses it."""
    demand({**PROGRAMS, **CLOUD})
    with ended(Cloud()) as network, network.api.used():
        yield network


@pytest.fixture(scope="module")
def ceph() -> Iterator[Ceph]:
    """An S3 and an STS whose credentials expire; a module's tests share it."""
    demand(CEPH)
    gateway = Ceph()
    try:
        yield gateway
    finally:
        survivors = gateway.close()
    assert not survivors, f"Ceph is gone, but these go on: {survivors}"


@pytest.fixture(scope="module")
def nova() -> Iterator[OpenStackApi]:
    """An OpenStack whose nova is a real one; a module's tests share it, and the SDK here uses it."""
    with OpenStackApi() as api:
        try:
            process = Nova(api)
        except LabError as error:
            _do_without(str(error))
        try:
            with api.used():
                yield api
        finally:
            survivors = process.close()
    assert not survivors, f"nova is gone, but these go on: {survivors}"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that nobody knows, and a certificate of it for this machine."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry on loopback that anybody may push to; a module's tests share it."""
    demand(REGISTRY)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """A Docker engine of the lab's own; a module's tests share it."""
    demand(DOCKER)
    engine = DockerEngine(tmp_path_factory.mktemp("docker"))
    try:
        yield engine
    finally:
        survivors, mounts = engine.close()
    assert not survivors, f"the Docker engine is gone, but these go on: {survivors}"
    assert not mounts, f"the Docker engine is gone, but these are mounted: {mounts}"


@pytest.fixture(scope="session")
def lab_bases() -> None:
    """Base images can be made here, and images run without an engine."""
    demand(IMAGES)
