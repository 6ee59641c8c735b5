"""A client that dies leaves nothing of what it rented, as long as somebody is there who has its login."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner import SyncedCluster
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.provider import MachineRequest, Tags
from envsync.runner.recording import FAILED, Recording
from envsync.runner.records import Record, Records
from envsync.runner.watchdog import Watchdog
from envsync.stores import open_store
from tests.lab.ec2_api import EC2Api
from tests.running import until
from tests.test_records import record

REGION = "eu-west-1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
CLIENT = """
import json, os, sys, time
from envsync.runner.records import Record
from envsync.runner.watchdog import Watchdog
dog = Watchdog.begin(Record.from_dict(json.loads(sys.argv[1])), sys.argv[2])
child = os.fork()  # it has all that is open here, and goes on
if not child:
    time.sleep(600)
    os._exit(0)
print(dog.pid, child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def api() -> Iterator[EC2Api]:
    with EC2Api() as api, api.used():
        yield api


def rent(cluster: str) -> str:
    """Have a cluster's machine made, and what it shares; return its id."""
    provider = EC2Provider((REGION,))
    tags = Tags(cluster=cluster, owner="ada@laptop")
    shared = provider.open(REGION, "m7i.large", tags, KEY)
    asked = MachineRequest(shared=shared, type="m7i.large", token=cluster, tags=tags, user_data="#!/bin/sh\n")
    return provider.create(asked).id


def of_ec2(cluster: str) -> Record:
    now = time.time()
    return record(cluster, backend="ec2", account={}, regions=(REGION,), begun=now, seen=now)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
async def test_what_a_killed_client_had_is_ended_and_no_others(api: EC2Api, tmp_path: Path) -> None:
    rent("ada-1")
    other = rent("ada-10")
    records = Records(open_store(tmp_path.as_uri()))
    for cluster in ("ada-1", "ada-10"):
        records.keep(of_ec2(cluster))
    client: Any = subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps(of_ec2("ada-1").to_dict()), tmp_path.as_uri()],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = 0
    try:
        dog, child = map(int, client.stdout.readline().split())
        assert b"ada-1" not in Path(f"/proc/{dog}/cmdline").read_bytes(), "everybody sees arguments"
        client.kill()
        client.wait()
        await until(lambda: not is_there(dog), 120)
        assert is_there(child)
    finally:
        client.kill()
        client.wait()
        if child:
            os.kill(child, signal.SIGKILL)
    left = api.left()
    assert left["instances"] == [other]
    assert left["keys"] == ["envsync-ada-10"]
    assert len(left["groups"]) == 1
    assert [one.record.cluster for one in records.alive()] == ["ada-10"]
    (ended,) = records.ended()
    assert (ended.cluster, ended.how) == ("ada-1", "its process ended without closing it")
    assert all(one.ended is not None for one in ended.bill.hired)


async def test_who_closes_a_cluster_sends_it_home_if_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # should this fail they ask nobody else
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    async def stands() -> Mapping[str, Any]:
        return {}

    place = Records(open_store(tmp_path.as_uri()))
    dogs = []
    for how, stays in (("closed", False), (f"{FAILED}: no network", True)):
        one = Recording(
            of_ec2("ada-1"), lambda: place, store=tmp_path.as_uri(), rented=True, stands=stands,
            end=lambda who: None, hooks=Hooks(),
        )  # fmt: skip
        await one.begin()
        assert one.watchdog is not None
        assert is_there(one.watchdog.pid)
        await one.close(how)
        assert is_there(one.watchdog.pid) == stays
        dogs.append(one.watchdog)
    os.kill(dogs[1].pid, signal.SIGKILL)
    for dog in dogs:
        dog.dismiss()  # silent: it is gone
        assert not is_there(dog.pid)
    assert Watchdog.begin(record(backend="fake"), None) is None, "nobody finds what that rents"


@pytest.mark.parametrize(
    "error", [CloudError("no network"), RuntimeError("no threads"), asyncio.CancelledError()]
)
async def test_it_stays_whatever_kept_machines_from_being_ended(error: BaseException) -> None:
    async def release() -> None:
        raise error

    cluster: Any = SimpleNamespace(
        backend=SimpleNamespace(release=release), hooks=Hooks(), ending="", up=True
    )
    with pytest.raises(type(error)):
        await SyncedCluster._release(cluster)
    assert cluster.ending.startswith(FAILED)
