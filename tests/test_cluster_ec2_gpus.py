"""Booted machines with GPUs, as a library of the tests' own tells, and with credentials of the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.runner import EC2, SyncedCluster
from envsync.runner.cloud.sts import Identity, Temporary
from tests.lab.cloud import Cloud
from tests.nvml import Card, driver_library

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARDS = (Card(uuid="GPU-aaaa", bus=0x1E), Card(uuid="GPU-bbbb", bus=0x1F))


@pytest.fixture
def cards(cloud: Cloud, tmp_path: Path) -> Iterator[None]:
    place = f"usr/lib/{os.uname().machine}-linux-gnu/libnvidia-ml.so.1"
    cloud.more = {place: driver_library(tmp_path / "driver", CARDS)}
    yield
    cloud.more = {}


ASK = """
import json, os, urllib.error, urllib.request
request = urllib.request.Request(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
try:
    without = urllib.request.urlopen(request, timeout=5).status
except urllib.error.HTTPError as error:
    without = error.code
with open(os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]) as file:
    request.add_header("Authorization", file.read())
with urllib.request.urlopen(request, timeout=5) as answer:
    found = [answer.status, json.load(answer), without]
"""
"""What an SDK asks the endpoint; then without its token."""


async def test_a_worker_for_each_gpu_with_credentials(
    cloud: Cloud, cards: None, small_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Temporary] = []
    ask = Identity.temporary

    def temporary(self: Identity) -> Temporary:
        given.append(ask(self))
        return given[-1]

    monkeypatch.setattr(Identity, "temporary", temporary)
    backend = EC2("g5.12xlarge", region="eu-west-1", image="ami-0000000000000de12", workers_per_machine=2)
    keywords: dict[str, Any] = {
        "lock": small_lock,
        "threads_per_worker": 1,
        "asynchronous": True,
    }
    async with (
        SyncedCluster(backend, n_workers=2, credentials="forward", **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=60)
        seen = await client.run(lambda: __import__("os").environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["GPU-aaaa", "GPU-bbbb"]
        assert {info["resources"]["GPU"] for info in cluster.scheduler_info["workers"].values()} == {1}
        assert await client.submit(sum, range(10), resources={"GPU": 1}) == 45

        status, values, without = await client.submit(
            lambda text, to: (eval(compile(text, "ask", "exec"), to), to["found"])[1], ASK, {}
        )
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
