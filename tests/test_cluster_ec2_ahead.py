"""A cluster on rented machines of this environment as it is: while they boot it is locked for, and what they
will lack is put into a bucket, from which they take it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync import snapshot as snapshots
from envsync.hooks import Hooks
from envsync.runner import EC2, SyncedCluster, ahead, locking, provision
from envsync.stores import open_store
from tests.lab.cloud import Cloud
from tests.running import until
from tests.s3 import Between

pytestmark = [pytest.mark.lab, pytest.mark.slow]


SIGNATURE = re.compile(r"X-Amz-Signature=([0-9a-f]{64})")


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def step(self, where: str, text: str) -> None:
        self.texts.append(text)

    def done(self, where: str, text: str, seconds: float) -> None:
        self.texts.append(text)

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def bucket(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """The cloud's buckets, where its machines reach them."""
    cloud.api.client(service="s3").create_bucket(
        Bucket="team", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with Between(cloud.api.url, address=cloud.gateway) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, f"127.0.0.1,{cloud.gateway}")
        yield between


async def test_the_lock_is_made_while_the_machine_boots_and_what_it_lacks_is_put_into_the_store(
    cloud: Cloud, bucket: Between, small_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_lock.parent / "environment" / "bin" / "python"
    capture, before, after = snapshots.capture, [], []
    lock_for: Any = locking.lock_for

    def while_it_boots(*rest: Any, **more: Any) -> Any:
        before.append(rest[1])
        return lock_for(*rest, **more)

    def once_it_is_there(*rest: Any, **more: Any) -> Any:
        after.append(rest[1])
        return lock_for(*rest, **more)

    monkeypatch.setattr(snapshots, "capture", lambda *_, **__: capture(str(small)))
    monkeypatch.setattr(ahead, "lock_for", while_it_boots)
    monkeypatch.setattr(provision, "lock_for", once_it_is_there)
    heard = Heard()

    async def booted(*_: Any) -> None:  # not sooner than all is in the bucket: the wheels, then compiled code
        await until(lambda: sum(text.startswith("put ") for text in heard.texts) >= 2, 60)

    monkeypatch.setattr(EC2, "finished", booted)
    async with (
        SyncedCluster(
            EC2("m7i.large", region="eu-west-1"),
            n_workers=1,
            threads_per_worker=1,
            store="s3://team/envsync",
            hooks=heard,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert await client.submit(sum, [1, 2]) == 3
        locked, up = (
            next(number for number, text in enumerate(heard.texts) if said in text)
            for said in ("while it boots", "is up in")
        )
        assert locked < up
        assert len(before) == 1
        assert after == []
        assert not any("locked anew" in text for text in heard.texts)

        # all but small files was taken from the bucket, by addresses that only the agent was told
        assert cluster.prepared[0].sent < 300_000
        paths = [path for method, path in bucket.requests if method == "GET"]
        signatures = {found[1] for found in map(SIGNATURE.search, paths) if found}
        assert signatures
        blobs = open_store("s3://team/envsync").entries("blobs")
        assert len(signatures) == len(blobs)
        assert not any("X-Amz" in text for text in heard.texts)
        vm = cloud.vm(cluster.backend.machines[0].id)
        places = ("/home", "/var", "/etc", "/run", "/tmp", "/root")
        for secret in (signatures.pop(), cloud.api.variables["AWS_SECRET_ACCESS_KEY"]):
            assert vm.exec("grep", "-rlF", secret, *places, check=False) == b""
            assert vm.processes(secret) == []
    assert (cloud.vms(), cloud.api.left()) == ([], {})
