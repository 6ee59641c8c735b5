"""What clients leave behind, and how others see and end it: on an EC2 whose machines boot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
import pytest

from envsync.runner import EC2, SyncedCluster, recording
from envsync.runner.cloud.provider import MachineRequest, Tags
from envsync.runner.records import Record, Records
from envsync.stores import open_store
from tests.lab.cloud import Cloud

pytestmark = [pytest.mark.lab, pytest.mark.slow]
REGION = "eu-west-1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
CLIENT = """
import sys, time
from envsync import SyncedCluster
from envsync.runner import EC2
backend = EC2('m7i.large', region='eu-west-1', client_timeout='90 s', boot_timeout='2 min')
cluster = SyncedCluster(
    backend, name="study", lock=sys.argv[1], store=sys.argv[2], n_workers=1, threads_per_worker=1
)
print(cluster._run_name, backend.machines[0].id, cluster._recording.watchdog.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def envsync(tmp_path: Path) -> Callable[..., str]:
    """Run the command with an empty home, as ada at another machine; return what it prints."""

    def run(*arguments: str, code: int = 0, owner: str = "ada@desk") -> str:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        variables = {"HOME": str(home), "ENVSYNC_CACHE": str(home / "cache"), "DASK_ENVSYNC__OWNER": owner}
        ended = subprocess.run(
            [Path(sys.executable).parent / "envsync", *arguments],
            cwd=home,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout if code == 0 else ended.stderr

    return run


def rent_bob(cloud: Cloud) -> str:
    """Have bob rent a machine, and return its id; nothing boots there."""
    provider = EC2("m7i.large", region=REGION).provider()
    tags = Tags(cluster="study-b0b", owner="bob@desk")
    shared = provider.open(REGION, "m7i.large", tags, KEY)
    cloud.unbootable = 1
    asked = MachineRequest(shared=shared, type="m7i.large", token="bob", tags=tags, user_data="#!/bin/sh\n")
    return provider.create(asked).id


def test_a_killed_clients_cluster_is_seen_and_reaped_from_elsewhere_and_no_others(
    cloud: Cloud, small_lock: Path, tmp_path: Path, envsync: Callable[..., str]
) -> None:
    bob = rent_bob(cloud)
    url = (tmp_path / "store").as_uri()
    client: Any = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(small_lock), url],
        env={**os.environ, "DASK_ENVSYNC__OWNER": "ada@laptop"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        cluster, machine, watchdog = client.stdout.readline().split()
        while True:  # its first record has no machine yet; the next one has
            (shown,) = json.loads(envsync("ls", "--json", "--store", url))["clusters"]
            if shown["hosts"]:
                break
        assert (shown["cluster"], shown["state"], shown["hosts"]) == (cluster, "alive", [machine])
        assert (shown["backend"], shown["regions"], shown["owner"]) == ("ec2", [REGION], "ada@laptop")
        assert "left" in envsync("reap", "--region", REGION, "--store", url)  # it lives
        assert cloud.vm(machine).alive
        os.kill(int(watchdog), signal.SIGKILL)  # the power is off: nobody is left who would end it
    finally:
        client.kill()
        client.wait()

    vm = cloud.vm(machine)
    (file,) = (tmp_path / "store/clusters/alive").glob("*.json")
    os.utime(file, (time.time() - 600,) * 2)  # ten minutes later
    assert "lost: heard of 10 min ago" in envsync("ls", "--store", url)
    assert "would end" in envsync("reap", "--dry-run", "--region", REGION, "--store", url)
    assert vm.alive
    cloud.api.client().allocate_address(
        Domain="vpc",
        TagSpecifications=[
            {"ResourceType": "elastic-ip", "Tags": [{"Key": "envsync:cluster", "Value": cluster}]}
        ],
    )
    told = json.loads(envsync("reap", "--json", "--store", url))  # in all regions of the account
    assert {one["cluster"]: one["ends"] for one in told["clusters"]} == {cluster: True, "study-b0b": False}
    assert told["records_closed"] == [cluster]
    assert not vm.alive
    assert vm.survivors() == []
    left = cloud.api.left()
    assert left["instances"] == [bob]
    assert set(left) == {"instances", "volumes", "interfaces", "groups", "keys"}, "no address"
    assert [len(left[kind]) for kind in ("groups", "keys")] == [1, 1]
    assert "no clusters" in envsync("ls", "--store", url)
    assert "its client had gone" in envsync("ls", "--all", "--store", url)
    (cost,) = json.loads(envsync("cost", "--json", "--store", url))["sums"]
    assert (cost["of"], cost["machines"]) == (cluster, 1)

    # bob's machine has no record here, and runs: whoever reaps for everyone leaves it too
    assert "left" in envsync("reap", "--everyone", "--region", REGION, "--store", url)
    assert cloud.api.left()["instances"] == [bob]
    named = ("stop", "study-b0b", "--on", "ec2", "--region", REGION, "--store", url)
    assert "bob@desk's" in envsync(*named, code=2)
    assert "by its tags" in envsync(*named, owner="bob@laptop")
    assert (cloud.vms(), cloud.api.left()) == ([], {})


async def test_stopped_from_elsewhere_with_a_store_that_was_not_there_at_first(
    cloud: Cloud,
    small_lock: Path,
    tmp_path: Path,
    envsync: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(dask.config.config, "envsync", {"owner": "ada@laptop"})
    store = tmp_path / "store"
    store.write_text("no folder")  # whoever writes there is refused
    for often in ("_LOOK", "_WRITE"):
        monkeypatch.setattr(recording, often, 2.0)
    backend = EC2("m7i.large", region=REGION)
    async with SyncedCluster(
        backend, name="study", lock=small_lock, store=store.as_uri(), n_workers=1, threads_per_worker=1,
        asynchronous=True,
    ) as cluster:  # fmt: skip
        assert len(backend.machines) == 1
        assert "1 x m7i.large" in repr(cluster)
        assert "Cost:" in cluster._repr_html_()
        store.unlink()
        records = Records(open_store(store.as_uri()))
        deadline = time.monotonic() + 60
        while not records.alive():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        (seen,) = records.alive()
        # another of that name, whose client's clock is a year ahead
        ahead = time.time() + 365 * 86400
        other = Record(
            cluster="study-other", name="study", owner="ada@desk", backend="ssh", begun=ahead, seen=ahead
        )
        records.keep(other)
        asked = ("stop", "study", "--store", store.as_uri())
        refused = await asyncio.to_thread(envsync, *asked, code=2)
        assert seen.record.cluster in refused
        assert "study-other" in refused
        name = seen.record.cluster
        told = await asyncio.to_thread(envsync, "stop", name, "--json", "--store", store.as_uri())
        assert json.loads(told)["stopped"] == {name: "stopped by ada@desk"}
        assert (cloud.vms(), cloud.api.left()) == ([], {})
    assert [one.record.cluster for one in records.alive()] == ["study-other"]
    (ended,) = records.ended()
    assert ended.how == "stopped by ada@desk"
    assert all(one.ended is not None for one in ended.bill.hired)
