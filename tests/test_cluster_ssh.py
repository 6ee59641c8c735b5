"""A cluster on bare SSH hosts: no Python, no packages, no open ports but sshd's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.core import Status

from envsync.errors import ConnectError
from envsync.plugins.compare import CORE
from envsync.runner import SSH, SyncedCluster
from envsync.uv import find_uv
from tests.forwarded import asking, lend
from tests.lab.machines import Lab, Machine
from tests.small import equal_but_for_the_client

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[list[Machine]]:
    machines = [lab.host("bare") for _ in range(3)]
    yield machines
    for each in machines:
        if each.alive:
            each.kill()


@pytest.fixture
def ssh(lab: Lab, hosts: list[Machine]) -> Any:
    def backend(*names: str, **more: Any) -> SSH:
        named = names or tuple(machine.name for machine in hosts)
        return SSH(named, config=lab.config, identities=lab.key, **more)

    return backend


@pytest.fixture
def keywords(small_lock: Path) -> dict[str, Any]:
    return {"lock": small_lock, "n_workers": 3, "threads_per_worker": 1, "asynchronous": True}


async def test_three_bare_hosts(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = lend(monkeypatch)
    async with (
        SyncedCluster(ssh(), **keywords, credentials="forward") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        first = hosts[0]
        assert re.fullmatch(rf"tls://{re.escape(first.address)}:\d+", cluster.scheduler_address)
        assert set(cluster.workers) == {f"{machine.name}-0" for machine in hosts}
        where = await client.run(lambda: (os.uname().nodename, sys.prefix))
        assert {name for name, _ in where.values()} == {machine.name for machine in hosts}
        assert {prefix.rpartition("/")[0] for _, prefix in where.values()} == {"/root/.cache/envsync/envs"}
        assert all(address.startswith("tls://") for address in where)
        assert await client.submit(sum, [1, 2]) == 3
        answers = await client.run(asking())  # each host's own agent
        assert [*answers.values()] == [(200, lent.to_dict(), 403)] * 3

        # the dashboard is on the host's loopback, and one link away
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        link = cluster.dashboard_link.replace("/status", "/health")
        assert await asyncio.to_thread(lambda: urllib.request.urlopen(link).read()) == b"ok"
        listening = first.exec("ss", "-tlnH").decode()
        assert not re.search(rf"(0\.0\.0\.0|\*|{re.escape(first.address)}):8787", listening)

        verification = await cluster.verify(on_mismatch="ignore")
        assert equal_but_for_the_client(verification)
        assert verification.summary().startswith("1 scheduler, 3 workers and 1 client")

        for machine in hosts:
            modes = machine.exec("find", "/root/.cache/envsync/runs", "-name", "*.pem", "-printf", "%m\n")
            assert set(modes.decode().split()) == {"600"}

        await cluster.scale(5)
        await client.wait_for_workers(5, timeout=150)
        await until(lambda: len(cluster.workers) == 5)
        assert {f"{machine.name}-1" for machine in hosts[:2]} < set(cluster.workers)
        await cluster.scale(2)
        await until(lambda: len(cluster.workers) == 2)
        assert len({name.rpartition("-")[0] for name in cluster.workers}) == 2
    await no_survivors(hosts, 50)


async def test_the_layout_is_from_the_probe(ssh: Any, keywords: dict[str, Any], hosts: list[Machine]) -> None:
    del keywords["n_workers"], keywords["threads_per_worker"]
    async with SyncedCluster(ssh(hosts[1].name), **keywords, threads_per_worker=100) as cluster:
        [info] = cluster.scheduler_info["workers"].values()
        assert info["nthreads"] == 100
        assert info["name"] == f"{hosts[1].name}-0"
        assert info["memory_limit"] == cluster.places[0].session.facts["memory"]
    await no_survivors(hosts, 50)


async def test_a_scheduler_on_a_host_of_its_own(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine]
) -> None:
    def hasten(dask_scheduler: Any) -> None:  # an hour takes long
        limits = dask_scheduler.handlers["envsync_cost"].__self__
        limits.life = time.monotonic() - limits._began + 2

    backend = ssh(hosts[1].name, hosts[2].name, scheduler=hosts[0].name)
    async with SyncedCluster(backend, **{**keywords, "n_workers": 2, "max_lifetime": "1 h"}) as cluster:
        assert cluster.scheduler_address.startswith(f"tls://{hosts[0].address}:")
        assert set(cluster.workers) == {f"{machine.name}-0" for machine in hosts[1:]}
        async with Client(cluster, asynchronous=True) as client:  # it would look for a scheduler that is gone
            await client.run_on_scheduler(hasten)
        await until(lambda: cluster.status == Status.closed, 90)
        assert cluster.ending == "its time is over (max_lifetime)"
    await no_survivors(hosts, 50)


async def test_blocked_ports_are_tunnelled_to(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine], lab: Lab
) -> None:
    for machine in hosts:
        machine.block(source=lab.gateway)
    try:
        async with (
            SyncedCluster(ssh(), **keywords, dashboard_address="0.0.0.0:0") as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
            assert await client.submit(sum, [1, 2]) == 3
            assert len(await client.run(os.getpid)) == 3
            link = cluster.dashboard_link.replace("/status", "/health")
            assert link.startswith("http://127.0.0.1:")
            assert await asyncio.to_thread(lambda: urllib.request.urlopen(link).read()) == b"ok"
            assert equal_but_for_the_client(await cluster.verify(on_mismatch="ignore"))
    finally:
        for machine in hosts:
            machine.unblock()
    await no_survivors(hosts, 50)


async def test_the_client_killed_leaves_no_survivor(small_lock: Path, hosts: list[Machine], lab: Lab) -> None:
    script = (
        "import sys, time\n"
        "if __name__ == '__main__':\n"
        "    from envsync.runner import SSH, SyncedCluster\n"
        "    cluster = SyncedCluster(SSH(sys.argv[2:], grace=10), lock=sys.argv[1], n_workers=3,\n"
        "                            threads_per_worker=1)\n"
        "    client = cluster.get_client()\n"
        "    busy = client.map(time.sleep, [600, 600, 600], pure=False)\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    client: Any = subprocess.Popen(
        [sys.executable, "-c", script, str(small_lock), *(machine.name for machine in hosts)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(lab.home)},
    )
    try:
        assert await asyncio.to_thread(client.stdout.readline) == "up\n"
        assert all(len(machine.processes()) >= 3 for machine in hosts)
    finally:
        client.kill()
        client.wait()
    await no_survivors(hosts, 50)


async def test_a_host_that_is_lost_takes_only_its_workers(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine], lab: Lab
) -> None:
    doomed = lab.host("bare")
    backend = ssh(hosts[0].name, doomed.name)
    async with (
        SyncedCluster(backend, **{**keywords, "n_workers": 2}) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        doomed.kill()
        await until(lambda: set(cluster.workers) == {f"{hosts[0].name}-0"}, 90)
        assert await asyncio.wait_for(client.submit(sum, [1, 2]), 90) == 3
        # what comes next goes to the host that is left
        await cluster.scale(2)
        await until(lambda: set(cluster.workers) == {f"{hosts[0].name}-{seat}" for seat in (0, 1)}, 90)
    await no_survivors(hosts, 50)


async def test_one_host_that_is_not_there_stops_the_start(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine]
) -> None:
    with pytest.raises(ConnectError, match="no-such-host"):
        async with SyncedCluster(ssh(hosts[0].name, "no-such-host.invalid"), **keywords):
            pass
    await no_survivors(hosts, 50)


async def test_a_worker_added_by_hand_with_another_version_is_refused(
    ssh: Any, keywords: dict[str, Any], hosts: list[Machine], lab: Lab, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    uv = str(find_uv())
    pins = [f"{name}=={version(name)}" for name in sorted(CORE)]
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(other)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", str(other), *pins, "partd==1.4.1"], check=True)
    laptop = lab.host("here")
    async with (
        SyncedCluster(ssh(hosts[0].name), **{**keywords, "n_workers": 0}, security=False) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        queued = client.map(lambda x: x, range(10))
        command = [str(other / "bin/dask"), "worker", cluster.scheduler_address, "--name", "by-hand"]
        # ends by itself: its nanny is closed with it
        await asyncio.to_thread(laptop.exec, "timeout", "150", *command)
        state = await client.scheduler.envsync_state()
        [refused] = state["refused"]
        assert refused["name"] == "by-hand"
        assert {one["subject"] for one in refused["differences"] if one["severity"] == "error"} == {"partd"}
        assert {future.status for future in queued} == {"pending"}
        await cluster.scale(1)
        assert await asyncio.wait_for(client.gather(queued), 90) == list(range(10))
    laptop.kill()
    await no_survivors(hosts, 50)


async def no_survivors(machines: list[Machine], seconds: float) -> None:
    """Wait until no machine runs anything but sshd."""
    left: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = {machine.name: machine.processes() for machine in machines if machine.alive}
        if not any(left.values()):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"still there after {seconds} s: {left}")


async def until(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
