"""A store in Ceph's S3, over TLS: uploads with trailers, which botocore makes over TLS, are refused there."""

from __future__ import annotations

import secrets
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from envsync.store import FolderStore
from envsync.stores import open_store
from tests.lab.ceph import Ceph
from tests.lab.fixtures import demand
from tests.lab.install import CEPH
from tests.lab.registry import Authority


@pytest.mark.lab
@pytest.mark.slow
def test_a_folder_of_a_bucket(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demand(CEPH)
    gateway = Ceph(authority)
    try:
        for name, value in gateway.variables.items():
            monkeypatch.setenv(name, value)
        gateway.client().create_bucket(Bucket="team")
        read = ssl.SSLContext.load_verify_locations
        reads: list[object] = []

        def count(context: ssl.SSLContext, *rest: Any, **more: Any) -> None:
            reads.append(context)
            read(context, *rest, **more)

        store = open_store("s3://team/tls")
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLContext, "load_verify_locations", count)
            names = [f"records/{number}" for number in range(8)]
            together = threading.Barrier(len(names))

            def write(name: str) -> None:
                together.wait(30)  # so many connections
                store.write(name, name.encode())

            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(write, names))
        assert len(reads) == 1
        assert [entry.name for entry in store.entries("records")] == names
        assert [store.read(name) for name in names] == [name.encode() for name in names]
        large = tmp_path / "large"
        large.write_bytes(secrets.token_bytes(1 << 20) * 17)  # s3fs sends it, in parts
        digest = store.put(large)
        assert store.fetch(digest, FolderStore(tmp_path / "cache")) == 17 << 20
    finally:
        survivors = gateway.close()
    assert not survivors
