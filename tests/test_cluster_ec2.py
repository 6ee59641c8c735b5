"""Clusters on machines of an EC2 that boot: real systemd, cloud-init and sshd; nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.errors import BootError
from envsync.indexes import read_settings
from envsync.lock import Lock
from envsync.runner import EC2, SyncedCluster
from envsync.runner.cloud.provider import CLUSTER, OWNER
from envsync.runner.storing import gather
from envsync.snapshot import capture
from envsync.stores import open_store
from envsync.stores.pushing import push
from tests.lab.cloud import SHORTER, Cloud
from tests.running import until
from tests.small import equal_but_for_the_client

pytestmark = [pytest.mark.lab, pytest.mark.slow]
CANARY = "c4n4ry-in-the-clients-environment-77c1"


def contents(folder: Path) -> Iterator[bytes]:
    """Return all that is written below a folder, and what wheels there hold."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.name.encode() + b"\0" + file.read_bytes()
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as wheel:
                    yield from map(wheel.read, wheel.namelist())


async def test_two_machines_from_nothing_and_back(
    cloud: Cloud, keywords: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    store = open_store(tmp_path.as_uri())
    lock = Lock.read(keywords["lock"])
    made = await gather(capture(), lock=lock, settings=read_settings(), supplies=False)
    await asyncio.to_thread(push, made.lock, made.manifests, made.store, store, name="analysis")
    keywords["store"] = tmp_path.as_uri()
    cloud.api.fail("RunInstances", "InsufficientInstanceCapacity")  # of the first zone
    backend = EC2("m7i.large", region="eu-west-1", spot="prefer", client_timeout="90 s", max_lifetime="1 h")
    async with (
        SyncedCluster(backend, name="ada", n_workers=2, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2)
        machines = backend.machines
        assert [one.market for one in machines] == ["on-demand", "spot"]  # the scheduler's stays
        assert set(cluster.workers) == {"machine-1", "machine-2"}
        assert await client.submit(sum, [1, 2]) == 3
        where = await client.run(lambda: (os.getuid() != 0, os.environ.get("MY_TOKEN"), os.uname().nodename))
        assert len({name for _, _, name in where.values()}) == 2
        assert {(user, token) for user, token, _ in where.values()} == {(True, None)}
        assert all(address.startswith("tls://") for address in where)
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")  # through ssh: no other port is open
        assert equal_but_for_the_client(await cluster.verify(on_mismatch="ignore"))

        # the first connection was verified: the key that counts is the one on the console
        vm = cloud.vm(machines[0].id)
        host_key = vm.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[1].decode()
        rented = backend._rented
        assert rented is not None
        known = rented.config.with_name("known_hosts").read_text()
        assert f"{machines[0].id} ssh-ed25519 {host_key}\n" in known
        assert host_key in vm.console()

        # its switch is armed, and what is heard from here moves it on
        assert b"active" in vm.exec("systemctl", "is-active", "envsync-lease.timer")
        up = float(vm.exec("cat", "/proc/uptime").split()[0])
        over = int(vm.exec("cat", "/run/envsync/lease"))
        assert up + 70 < over < up + 95
        assert up < int(vm.exec("cat", "/run/envsync/life")) < up + 3605

        secrets = [
            CANARY,
            rented.key.read_text().splitlines()[2],
            cloud.api.variables["AWS_SECRET_ACCESS_KEY"],
        ]
        # all that the interface was told: tags, names, descriptions
        open_to_all = [vm.metadata.user_data().decode(), vm.console(), str(cloud.api.asked)]
        for secret in secrets:
            assert not any(secret in text for text in open_to_all)
        everywhere = ("--exclude-dir=proc", "--exclude-dir=sys", "/")
        words = [word for secret in secrets for word in ("-e", secret)]
        assert vm.exec("grep", "-rlF", *words, *everywhere, check=False) == b""
        assert vm.exec("grep", "-rlF", host_key, *everywhere, check=False) != b"", "it is looked at"
        assert machines[0].tags[OWNER].count("@") == 1
        assert machines[0].tags[CLUSTER].startswith("ada-")

        # one is lost: its worker is, the other goes on
        cloud.api.client().terminate_instances(InstanceIds=[machines[1].id])
        await until(lambda: len(cluster.scheduler_info["workers"]) == 1, 60)
        assert await asyncio.wait_for(client.submit(sum, [3, 4]), 90) == 7
    assert backend.machines == ()
    assert not rented.config.exists()
    written = [*contents(tmp_path)]
    for secret in secrets:
        assert not [one[:80] for one in written if secret.encode() in one]
    assert any(b"dask/__init__.py,sha256=" in one for one in written), "wheels are looked into"
    assert {part.name for part in (tmp_path / "clusters").iterdir()} >= {"ended"}, "so are records"
    assert (cloud.vms(), cloud.api.left()) == ([], {})


async def test_machines_of_a_client_that_was_killed_end_themselves(cloud: Cloud, small_lock: Path) -> None:
    script = SHORTER + (
        "import sys, time\n"
        "from envsync import SyncedCluster\n"
        "from envsync.runner import EC2\n"
        "backend = EC2('m7i.large', region='eu-west-1', boot_timeout='2 min')\n"
        "cluster = SyncedCluster(backend, lock=sys.argv[1], n_workers=1, threads_per_worker=1)\n"
        "shorter(cluster, 8)\n"
        "print(backend.machines[0].id, cluster._recording.watchdog.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    client: Any = subprocess.Popen(
        [sys.executable, "-c", script, str(small_lock)], stdout=subprocess.PIPE, text=True
    )
    try:
        identity, watchdog = (await asyncio.to_thread(client.stdout.readline)).split()
        vm = cloud.vm(identity)
        assert vm.alive
        os.kill(int(watchdog), signal.SIGKILL)  # the power is off: nobody is left who would end it
    finally:
        client.kill()
        client.wait()
    await until(lambda: not vm.alive, 90)
    await until(lambda: "instances" not in cloud.api.left(), 60)
    assert vm.survivors() == []
    (found,) = cloud.api.client().describe_instances(InstanceIds=[identity])["Reservations"][0]["Instances"]
    assert found["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    # nor is there who would remove what costs nothing
    assert set(cloud.api.left()) == {"groups", "keys"}
    for cluster in {tag["Value"] for tag in found["Tags"] if tag["Key"] == CLUSTER}:
        EC2("m7i.large", region="eu-west-1").provider().close("eu-west-1", cluster)
    assert cloud.api.left() == {}


async def test_a_machine_that_never_boots_is_an_error_that_leaves_nothing(
    cloud: Cloud, keywords: dict[str, Any]
) -> None:
    cloud.unbootable = 2
    backend = EC2("m7i.large", region="eu-west-1", boot_timeout=1)
    with pytest.raises(BootError, match="was not up") as told:
        async with SyncedCluster(backend, n_workers=1, **keywords):
            pass
    assert told.value.tail == ("Kernel panic - not syncing: VFS: Unable to mount root fs",)
    assert (cloud.vms(), cloud.api.left()) == ([], {})


def test_times_are_written_as_people_do() -> None:
    backend = EC2("m7i.large", client_timeout="90s", boot_timeout="10min", max_lifetime="8 h")
    assert (backend.client_timeout, backend.boot_timeout, backend.max_lifetime) == (90, 600, 28800)
    assert EC2("m7i.large").client_timeout == 120
    assert EC2("m7i.large").max_lifetime is None


@pytest.mark.parametrize(
    "wrong",
    [{"spot": "maybe"}, {"client_timeout": "soon"}, {"boot_timeout": 0}, {"workers_per_machine": 0}],
)
def test_what_makes_no_sense_is_refused_before_anything_is_rented(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EC2("m7i.large", **wrong)
