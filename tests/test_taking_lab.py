"""A cluster whose hosts take its wheels from a bucket: next to nothing goes over the client's own link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.lock import Lock
from envsync.runner import SSH, SyncedCluster
from envsync.stores import open_store
from tests.lab.machines import Lab, Machine
from tests.makes import Told
from tests.s3 import S3, SECRET, VARIABLES, Between
from tests.small import equal_but_for_the_client

pytestmark = [pytest.mark.lab, pytest.mark.slow]
BIN = Path(sys.executable).parent


@pytest.fixture
def server(lab: Lab, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """A bucket's server that the lab's machines reach."""
    with Between(s3.url, address=lab.gateway) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, f"127.0.0.1,{lab.gateway}")
        s3.bucket("lab")
        yield between


def count_ssh(machine: Machine) -> Callable[[], int]:
    """Count what a machine gets over SSH from now on, in bytes."""
    machine.inside("iptables", "-w", "-I", "INPUT", "-p", "tcp", "--dport", "22")

    def count() -> int:
        rule = machine.inside("iptables", "-w", "-L", "INPUT", "1", "-v", "-x", "-n")
        return int(rule.split()[1])

    return count


async def test_two_hosts_with_empty_caches(
    lab: Lab,
    machine: Callable[..., Machine],
    server: Between,
    small_lock: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("envsync.runner.realising._FEW", -1)  # uv, too
    store = "s3://lab/team"
    done = subprocess.run(
        [BIN / "envsync", "push", "--lock", small_lock, f"{store}#small"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hosts = [machine("python"), machine("python")]
    counts = [count_ssh(host) for host in hosts]
    hooks = Told()
    backend = SSH([host.name for host in hosts], config=lab.config, identities=lab.key)
    keywords: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "asynchronous": True, "hooks": hooks}
    async with (
        SyncedCluster(backend, lock=small_lock, store=store, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert len(set((await client.run(os.uname)).values())) == 2
        assert equal_but_for_the_client(await cluster.verify(on_mismatch="ignore"))
        assert max(one.sent for one in cluster.prepared) < 200_000  # small wheels
    assert [note for note in hooks.notes if store in note] == []

    paths = [path for method, path in server.requests if method == "GET" and "X-Amz-Signature" in path]
    taken = [path.partition("?")[0].rpartition("/")[2] for path in paths]
    sizes = {one.name.rpartition("/")[2]: one.size for one in open_store(store).entries("blobs")}
    for artifact in Lock.read(small_lock).artifacts():
        small = sizes[artifact.sha256] < 32 << 10
        assert taken.count(artifact.sha256) == (0 if small else len(hosts))
    size = sum(sizes[digest] for digest in set(taken))
    told = f"taken by each: {size} bytes; over SSH: {[count() for count in counts]}"
    assert size > 10_000_000, told
    assert max(count() for count in counts) < 1_000_000, told

    signatures = {signature for path in paths for signature in re.findall(r"X-Amz-Signature=(\w+)", path)}
    patterns = "\n".join([SECRET, VARIABLES["AWS_ACCESS_KEY_ID"], *signatures])
    for host in hosts:
        assert host.exec("sh", "-c", "env | grep AWS_; true") == b""
        (folder,) = host.exec("sh", "-c", "ls -d /root/.cache/envsync").split()
        found = host.exec("grep", "-rlFf", "-", folder.decode(), "/tmp", stdin=patterns.encode(), check=False)
        assert found == b""
