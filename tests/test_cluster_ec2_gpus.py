"""Booted machines with GPUs, as a library of the tests' own tells: the user's code and credentials there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from distributed import Client

from envsync.artifacts import Artifact
from envsync.errors import UnfitHostError
from envsync.lock import Lock
from envsync.runner import EC2, SyncedCluster
from envsync.runner.cloud.sts import Identity, Temporary
from envsync.snapshot import capture
from envsync.store import default_store
from envsync.trees import pack
from tests.forwarded import asking
from tests.lab.cloud import Cloud
from tests.nvml import Card, driver_library

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARDS = (Card(uuid="GPU-aaaa", bus=0x1E), Card(uuid="GPU-bbbb", bus=0x1F))


DRIVER = f"usr/lib/{os.uname().machine}-linux-gnu/libnvidia-ml.so.1"
"""Where it lies on a machine."""

COUNTING = """
import os

def primes(start, stop):
    found = sum(all(one % part for part in range(2, int(one**0.5) + 1)) for one in range(start, stop))
    return found, os.environ["CUDA_VISIBLE_DEVICES"]
"""


@pytest.fixture
def cards(cloud: Cloud, tmp_path: Path) -> Iterator[None]:
    cloud.more = {DRIVER: driver_library(tmp_path / "driver", CARDS)}
    yield
    cloud.more = {}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package of the laptop's own, in a source tree that nothing is installed of."""
    (tmp_path / "survey/numbers_of_ada").mkdir(parents=True)
    (tmp_path / "survey/numbers_of_ada/__init__.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path / "survey")
    yield importlib.import_module("numbers_of_ada")
    del sys.modules["numbers_of_ada"]


def lock_with(small: Lock, package: ModuleType) -> Lock:
    """Lock the small environment with the tree of a package."""
    (root,) = {str(Path(folder).parent) for folder in package.__path__}
    (tree,) = [one for one in capture().source_trees if one.root == root]
    trees = (pack(tree, default_store()).reference(),)
    return Lock.of(small.artifacts(), small.target, records=small.records, trees=trees)


async def test_a_local_package_computes_on_a_worker_for_each_gpu_with_credentials(
    cloud: Cloud, cards: None, small_lock: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Temporary] = []
    ask = Identity.temporary

    def temporary(self: Identity) -> Temporary:
        given.append(ask(self))
        return given[-1]

    monkeypatch.setattr(Identity, "temporary", temporary)
    backend = EC2("g5.12xlarge", region="eu-west-1", image="ami-0000000000000de12", workers_per_machine=2)
    keywords: dict[str, Any] = {
        "lock": lock_with(Lock.read(small_lock), package),
        "threads_per_worker": 1,
        "asynchronous": True,
    }
    async with (
        SyncedCluster(backend, n_workers=2, credentials="forward", **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=150)
        seen = await client.run(lambda: __import__("os").environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["GPU-aaaa", "GPU-bbbb"]
        assert {info["resources"]["GPU"] for info in cluster.scheduler_info["workers"].values()} == {1}
        starts = range(2, 40_002, 2500)
        counted = client.map(package.primes, starts, [one + 2500 for one in starts], resources={"GPU": 1})
        total = client.submit(lambda parts: sum(found for found, _ in parts), counted)
        assert await total == 4203
        assert {device for _, device in await client.gather(counted)} == {"GPU-aaaa", "GPU-bbbb"}

        status, values, without = await client.submit(asking())
        (lent,) = given
        assert [status, values, without] == [200, lent.to_dict(), 403]
        (vm,) = cloud.vms()
        for secret in (lent.token, lent.secret_key, cloud.api.variables["AWS_SECRET_ACCESS_KEY"]):
            folders = ("/home", "/var", "/etc", "/run", "/tmp", "/dev/shm")
            assert vm.exec("grep", "-rlF", "-e", secret, *folders, check=False) == b""
            assert secret not in vm.console() + vm.metadata.user_data().decode()
            environments = vm.exec("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline", check=False)
            assert b"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" in environments
            assert secret.encode() not in environments
        path = vm.exec("sh", "-c", "ls /home/*/.cache/envsync/runs/*/worker*/aws-token").split()[0].decode()
        tried = vm.exec("runuser", "-u", "nobody", "--", "cat", path, check=False)
        assert tried == b""
        assert vm.exec("cat", path)
    assert (cloud.vms(), cloud.api.left()) == ([], {})


async def test_a_driver_that_is_too_old_for_the_lock_ends_the_start(
    cloud: Cloud, cards: None, small_lock: Path, tmp_path: Path
) -> None:
    cloud.more = {DRIVER: driver_library(tmp_path / "old", CARDS, version="470.57.02", cuda=11040)}
    small = Lock.read(small_lock)
    name = "nvidia_cuda_runtime_cu12-12.4.127-py3-none-manylinux2014_x86_64.whl"
    cuda = Artifact(
        name="nvidia-cuda-runtime-cu12",
        version="12.4.127",
        filename=name,
        sha256="0" * 64,
        url=f"https://wheels.example.org/{name}",
    )
    lock = Lock.of((*small.artifacts(), cuda), small.target, records=small.records)
    backend = EC2("g5.12xlarge", region="eu-west-1", image="ami-0000000000000de12", workers_per_machine=2)
    with pytest.raises(UnfitHostError, match=r"470\.57\.02.*nvidia-cuda-runtime-cu12 12\.4\.127") as told:
        await SyncedCluster(backend, lock=lock, n_workers=2, threads_per_worker=1, asynchronous=True)
    for part in ("525.60.13", "CUDA 12.4"):
        assert part in told.value.message
    assert told.value.where == cloud.api.machines[-1].id
    assert "+nvidia-470.57.02" in str(told.value.hint)
    assert (backend.machines, cloud.vms(), cloud.api.left()) == ((), [], {})
