"""Ends that nobody asked for: money that is spent, a scheduler's machine that is lost, a link that is cut."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client
from distributed.core import Status

from envsync.runner import EC2, SyncedCluster
from envsync.runner.records import local_records
from tests.lab.cloud import Cloud
from tests.running import until

pytestmark = [pytest.mark.lab, pytest.mark.slow]
DEAR = {"envsync.cloud.prices": {"ec2": {"date": "2026-11-01", "m7i.large": 3600.0}}}
"""A dollar a second."""


async def test_money_that_is_spent_ends_it_in_the_middle_of_a_computation(
    cloud: Cloud, keywords: dict[str, Any]
) -> None:
    backend = EC2("m7i.large", region="eu-west-1")
    with dask.config.set(DEAR):
        async with SyncedCluster(backend, n_workers=1, max_cost="170 USD", **keywords) as cluster:
            client = await Client(cluster, asynchronous=True)
            assert await client.submit(sum, [1, 2]) == 3
            running = client.submit(time.sleep, 600)
            with pytest.raises(Exception, match=r"(?i)cost|170"):
                await asyncio.wait_for(running, 90)
            await until(lambda: cluster.status == Status.closed, 90)
            assert "170" in cluster.ending
            await client.close()
    assert (cloud.vms(), cloud.api.left()) == ([], {})
    assert 0 < backend.bill().cost(time.time()) < 170


async def test_a_lost_machine_of_the_scheduler_ends_it_and_the_others_if_the_store_does_not_answer_too(
    cloud: Cloud, keywords: dict[str, Any], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    backend = EC2("m7i.large", region="eu-west-1", workers_per_machine=1)
    async with (
        SyncedCluster(backend, n_workers=2, store=store.as_uri(), **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2)
        store.rename(tmp_path / "away")
        store.write_text("no folder")  # whoever writes there is refused
        cloud.api.client().terminate_instances(InstanceIds=[backend.machines[0].id])
        await until(lambda: cluster.status == Status.closed, 90)
        assert "its scheduler was lost" in cluster.ending
    assert (cloud.vms(), cloud.api.left()) == ([], {})
    (record,) = [one for one in local_records().ended() if one.cluster == cluster._run_name]
    assert "its scheduler was lost" in record.how
    assert [one.ended is not None for one in record.bill.hired] == [True, True]


async def test_a_link_that_is_cut_for_too_long_ends_the_machines_and_closing_does_not_hang(
    cloud: Cloud, keywords: dict[str, Any]
) -> None:
    backend = EC2("m7i.large", region="eu-west-1", client_timeout="15 s")
    async with (
        SyncedCluster(backend, n_workers=1, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        vm = cloud.vm(backend.machines[0].id)
        vm.cut()
        await asyncio.sleep(2)  # and TCP tries again a second later; after four it took two
        vm.heal()
        assert await asyncio.wait_for(client.submit(sum, [1, 2]), 90) == 3, "a short one is survived"
        vm.cut()
        await until(lambda: not vm.alive, 60)
        await until(lambda: cluster.status == Status.closed, 90)
    assert (cloud.vms(), cloud.api.left()) == ([], {})
