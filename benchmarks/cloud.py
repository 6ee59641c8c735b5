"""Rented machines: from sshd's first answer to a verified worker, and sixteen machines for the time of one.

The machines are those of the lab's EC2, which boot. Without the lab only the calls are timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from benchmarks.timing import Action, Row, Table, compare

MACHINES = 16
LATENCY = 0.5  # seconds of each call that makes a machine: RunInstances takes one to two
ROUNDS = 3
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
SAID = f"-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@a\n-----END SSH HOST KEY KEYS-----\n"
UP = "SyncedCluster(EC2(...)): from sshd's first answer to a worker that is verified"
TAKEN = "the same, and the machine takes what it lacks from a store that has it"
STORE = "s3://bench/team"
SMALL = 300_000  # bytes: files that are smaller than a request for them is worth come from the client


def cloud() -> list[Table]:
    """Time both."""
    return [_calls(), _up()]


def _calls() -> Table:
    def rent(count: int) -> Action:
        return lambda: asyncio.run(_rent(count))

    rows = compare({f"{MACHINES} machines": rent(MACHINES), "one machine": rent(1)}, rounds=ROUNDS)
    note = (
        f"A cloud that is not there, which takes {LATENCY} s for each machine: what is timed is our own part."
    )
    return Table(f"Making {MACHINES} machines at once", "at most 1.3 of one machine's time", rows, [note])


async def _rent(count: int) -> float:
    from envsync.runner.cloud.provider import Machine, MachineRequest, Tags
    from envsync.runner.cloud.renting import Plan, Rented
    from tests.cloud_fake import FakeProvider

    class Slow(FakeProvider):
        def create(self, request: MachineRequest) -> Machine:
            time.sleep(LATENCY)
            made = super().create(request)
            self.consoles[made.id] = SAID
            return made

    tags = Tags(cluster="bench", owner="bench@here")
    rented = Rented(Slow(), Plan(type="small", count=count, tags=tags, poll=0.05))
    began = time.perf_counter()
    await rented.start()
    for _ in range(count - 1):
        await rented.another()
    took = time.perf_counter() - began
    await rented.close()
    return took


def _up() -> Table:
    title, target = "A worker on a machine that has just booted", "at most 3 s beyond the machine's own boot"
    try:
        from tests.lab.cloud import Cloud
        from tests.lab.install import CLOUD, PROGRAMS, missing, obstacle
    except ImportError as error:
        return Table(title, target, [Row(UP, trouble=str(error))])
    lacking = missing({**PROGRAMS, **CLOUD})
    why = obstacle() or ("the lab lacks " + " ".join(lacking) if lacking else "")
    if why:
        return Table(title, target, [Row(UP, trouble=why)])
    from envsync.plugins.compare import CORE
    from tests.small import lock_of

    lab = Cloud()
    try:
        with lab.api.used(), tempfile.TemporaryDirectory() as folder:
            lock = lock_of(Path(folder), [f"{name}=={version(name)}" for name in sorted(CORE)])
            # not in turns: a store that nobody needs would take its part of the cores
            rows = compare({UP: lambda: asyncio.run(_first_worker(lab, lock))}, rounds=ROUNDS)
            with _store(lab, lock) as (store, trouble):
                taken: Action = lambda: asyncio.run(_first_worker(lab, lock, store=store))  # noqa: E731
                rows += compare({TAKEN: taken}, rounds=ROUNDS) if store else [Row(TAKEN, trouble=trouble)]
    finally:
        lab.close()
    notes = [
        "A bare Debian without uv and without the environment's Python packages, which go there over the "
        "lab's link: Dask, distributed and what they need. The machine has its own Python.",
        "The store is Ceph's S3 beside the client, from which the machine takes by signed addresses.",
        "The lab's machines share this one's cores.",
    ]
    return Table(title, target, rows, notes)


@contextlib.contextmanager
def _store(lab: Any, lock: Path) -> Iterator[tuple[str, str]]:
    """Yield the URL of a store that has what the lock needs and that machines reach; or none, and why."""
    from tests.lab.ceph import Ceph
    from tests.lab.install import CEPH, missing

    if lacking := missing(CEPH):
        yield "", "the lab lacks " + " ".join(lacking)
        return
    gateway = Ceph(address=lab.gateway)
    try:
        gateway.client().create_bucket(Bucket=urlsplit(STORE).netloc)
        used = {**gateway.variables, "NO_PROXY": f"127.0.0.1,{lab.gateway}"}
        used["AWS_ENDPOINT_URL_S3"] = used.pop("AWS_ENDPOINT_URL")
        used["AWS_DEFAULT_REGION"] = lab.api.variables["AWS_DEFAULT_REGION"]
        with patch.dict(os.environ, used):
            envsync = Path(sys.executable).with_name("envsync")
            subprocess.run(
                [envsync, "push", "--quiet", "--lock", lock, f"{STORE}#small"], check=True, cwd=lock.parent
            )
            yield STORE, ""
    finally:
        gateway.close()


async def _first_worker(lab: Any, lock: Path, **more: Any) -> float:
    from distributed import Client

    from envsync.runner import EC2, SyncedCluster

    answered: list[float] = []
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(lab, answered, over))
    watching.start()
    backend = EC2("m7i.large", region="eu-west-1")
    try:
        async with (
            SyncedCluster(
                backend, lock=lock, n_workers=1, threads_per_worker=1, asynchronous=True, **more
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(1)
            took = time.perf_counter() - answered[0]
            if "store" in more and cluster.prepared[0].sent > SMALL:
                raise RuntimeError(f"{cluster.prepared[0].sent} bytes came from here, not from the store")
            return took
    finally:
        over.set()
        watching.join()


def _watch(lab: Any, answered: list[float], over: threading.Event) -> None:
    """Note when sshd answers first."""
    while not over.is_set():
        for vm in lab.vms():
            with contextlib.suppress(OSError), socket.create_connection((vm.address, 22), 0.2) as connection:
                connection.settimeout(1)
                if connection.recv(4).startswith(b"SSH"):
                    answered.append(time.perf_counter())
                    return
        time.sleep(0.02)
