"""Clusters on machines that come, go and are lost, in an EC2 whose machines boot; nothing of them is left."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.errors import BootError, CapacityError, CloudError
from envsync.hooks import Hooks
from envsync.runner import EC2, SyncedCluster
from tests.lab.cloud import SHORTER, Cloud
from tests.running import until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.texts.append(f"{where}: {text}")

    note = warning

    def failed(self, where: str, why: str) -> None:
        self.warning(where, why)

    def has(self, *words: str) -> bool:
        return any(all(word in text for word in words) for text in self.texts)


async def test_machines_come_and_go_and_none_of_their_results_is_computed_twice(
    cloud: Cloud, keywords: dict[str, Any]
) -> None:
    heard = Heard()
    backend = EC2("m7i.large", region="eu-west-1", spot="prefer", client_timeout="90 s")
    async with (
        SyncedCluster(backend, n_workers=1, hooks=heard, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        (scheduler,) = backend.machines
        cluster.scale(2)
        await client.wait_for_workers(2)
        assert [one.market for one in backend.machines] == ["on-demand", "spot"]
        assert [row.id for row in cluster.jobs] == [one.id for one in backend.machines]

        # half of the workers is taken back in the middle: what it holds moves, another comes
        addresses = await cluster.addresses()
        held = client.map(
            pow, range(40), [2] * 40, workers=[addresses["machine-2-0"]], allow_other_workers=True
        )
        await client.gather(held)
        slow = client.map(lambda number: __import__("time").sleep(0.2) or number, range(40))
        taken = cluster.workers["machine-2"].machine
        cloud.interrupt(taken.id, 60)
        await until(lambda: heard.has(taken.id, "takes this spot machine back"), 60)
        # long before it was taken
        await until(lambda: taken.id not in {one.id for one in backend.machines}, 60)
        assert not heard.has("run again")
        assert await client.gather(held) == [number**2 for number in range(40)]
        assert await client.gather(slow) == list(range(40))

        def computed(dask_scheduler: Any, keys: list[Any]) -> dict[Any, int]:
            done = ("processing", "memory")
            return {key: sum(event[1:3] == done for event in dask_scheduler.story(key)) for key in keys}

        stories = await client.run_on_scheduler(computed, keys=[future.key for future in (*held, *slow)])
        assert set(stories.values()) == {1}
        await until(lambda: set(cluster.workers) == {"machine-1", "machine-3"}, 60)
        await client.wait_for_workers(2)

        # one is ended by somebody: told with the cloud's reason, and replaced
        lost = cluster.workers["machine-3"].machine
        cloud.api.client().terminate_instances(InstanceIds=[lost.id])
        await until(lambda: "machine-4" in cluster.workers, 60)
        assert heard.has("machine-3", "was lost", "Client.UserInitiatedShutdown")
        await until(
            lambda: "machine-3-0" not in {one["name"] for one in cluster.scheduler_info["workers"].values()},
            60,
        )

        # machines that are not wanted any more end while they boot, and while the cluster goes on
        cluster.scale(1)
        await until(lambda: {one.id for one in backend.machines} == {scheduler.id}, 60)
        await until(lambda: [vm.instance.id for vm in cloud.vms()] == [scheduler.id], 60)
        await until(lambda: set(cluster.workers) == {"machine-1"}, 60)
        await until(
            lambda: [one.id for one in backend.bill().hired if one.ended is None] == [scheduler.id], 60
        )
        assert len(backend.bill().hired) == 4

        # the scheduler's machine stays without workers
        cluster.scale(0)
        await until(lambda: not cluster.scheduler_info["workers"], 60)
        cluster.scale(1)
        await client.wait_for_workers(1)
        assert [one.id for one in backend.machines] == [scheduler.id]

        # one that does not boot is replaced, then given up, and whoever waits for it hears why
        backend.rented.plan = replace(backend.rented.plan, boot=1.0)
        cloud.unbootable = 2
        cluster.scale(2)
        with pytest.raises(CloudError, match="was not up"):
            await cluster._wait_for_workers(2, 60)
        cloud.unbootable = 0  # one that was ended before its turn to boot came did not count
        backend.rented.plan = replace(backend.rented.plan, boot=120.0)
        cluster.adapt(minimum=2, maximum=2, interval="200 ms")
        await client.wait_for_workers(2)
        assert await client.submit(sum, [1, 2]) == 3
    assert (cloud.vms(), cloud.api.left()) == ([], {})


async def test_a_start_that_fails_leaves_nothing(cloud: Cloud, keywords: dict[str, Any]) -> None:
    cloud.api.fail("RunInstances", "InsufficientInstanceCapacity", times=3)  # in every zone
    with pytest.raises(CapacityError, match="could not be had anywhere"):
        async with SyncedCluster(EC2("m7i.large", region="eu-west-1"), n_workers=1, **keywords):
            pass
    assert (cloud.vms(), cloud.api.left()) == ([], {})
    backend = EC2(
        "m7i.large", region="eu-west-1", commands=["echo before it", "ls /unlucky", "echo after it"]
    )
    with pytest.raises(BootError, match="cloud-init failed there") as told:
        async with SyncedCluster(backend, n_workers=1, **keywords):
            pass
    assert any("/unlucky" in line for line in told.value.tail), told.value.tail
    assert not any("after it" in line for line in told.value.tail)
    assert (cloud.vms(), cloud.api.left()) == ([], {})


CLIENT = """
import os, signal, sys, threading, time
from envsync import SyncedCluster
from envsync.runner import EC2
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.watchdog import Watchdog

moment, lock = sys.argv[1:]
create = EC2Provider.create
def dying(self, request):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    made = create(self, request)
    if moment == "during":  # it is made, and nobody has heard; the power is off, so that nobody else ends it
        for one in Watchdog._out:
            os.kill(one.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return made
EC2Provider.create = dying
terminate = EC2Provider.terminate
def slow(self, region, ids):
    print("ending", flush=True)
    time.sleep(60)
if moment == "twice":
    EC2Provider.terminate = slow
starts = moment in ("after", "twice")
times = {"boot_timeout": "2 min"} if starts else {"boot_timeout": 6, "client_timeout": "8 s"}
backend = EC2("m7i.large", region="eu-west-1", **times)
cluster = SyncedCluster(backend, lock=lock, n_workers=1, threads_per_worker=1)
shorter(cluster, 8)
print("up", flush=True)
cluster.close() if moment == "twice" else time.sleep(600)
"""


async def test_whenever_a_client_dies_nothing_is_left_and_nothing_runs_if_all_died_with_it(
    cloud: Cloud, small_lock: Path
) -> None:
    """Before a machine is made, while it is, when the cluster is up; and by Ctrl-C, while it ends them.

    Its watchdog ends all of it. Where that died too, the machine ends itself, and what costs nothing stays.
    """
    moments = ("before", "during", "after", "twice")
    clients: dict[str, Any] = {
        moment: subprocess.Popen(
            [sys.executable, "-c", SHORTER + CLIENT, moment, str(small_lock)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if moment == "twice" else None,
            text=True,
        )
        for moment in moments
    }

    def left() -> dict[str, int]:
        return {kind: len(things) for kind, things in cloud.api.left().items()}

    async def dies(moment: str) -> None:
        client = clients[moment]
        if moment in ("after", "twice"):
            assert (await asyncio.to_thread(client.stdout.readline)).strip() == "up"
        if moment == "after":
            assert cloud.vms()
            client.kill()
        if moment == "twice":
            assert (await asyncio.to_thread(client.stdout.readline)).strip() == "ending"
            while client.poll() is None:
                client.send_signal(signal.SIGINT)
                await asyncio.sleep(0.5)
        status = await asyncio.to_thread(client.wait, 120)
        assert status == -(signal.SIGINT if moment == "twice" else signal.SIGKILL), moment

    try:
        await asyncio.gather(*map(dies, moments))
    finally:
        for client in clients.values():
            client.kill()
            client.wait()
    try:
        await until(lambda: not cloud.vms() and left() == {"groups": 1, "keys": 1}, 120)
    except AssertionError:
        vms = {vm.instance.id for vm in cloud.vms()}
        those = [
            (one.id, one._state.name, one.id in vms, cloud.text(one)[-500:]) for one in cloud.api.machines
        ]
        raise AssertionError(f"{left()} is left of {those}; the lab: {cloud.broken}") from None
    provider = EC2("m7i.large", region="eu-west-1").provider()
    (cluster,) = {one.cluster for one in provider.found("eu-west-1")}
    provider.close("eu-west-1", cluster)
    assert cloud.api.left() == {}
