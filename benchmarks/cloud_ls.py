"""How long ``envsync ls`` takes with 100 clusters in the store: a folder, and two S3 on loopback.

moto is one Python process, which answers one request after the other. Ceph's gateway, of the tests' lab, is a
real S3, and speaks TLS, with as many authorities to choose from as a client of Amazon's has.

``python -m benchmarks.cloud_ls`` prints one line for each; the whole command, the interpreter's start too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import botocore

from envsync.runner.cloud.costs import Bill, Hired
from envsync.runner.cloud.provider import Price
from envsync.runner.records import Record, Records, owner
from envsync.stores import open_store
from tests.lab.ceph import Ceph
from tests.lab.install import CEPH, missing
from tests.lab.registry import Authority
from tests.s3 import S3, VARIABLES, end, start

_CLUSTERS, _TIMES = 100, 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        _measure("a folder", (Path(folder) / "store").as_uri(), folder)
        server, endpoint = start(Path(folder))
        try:
            os.environ.update({**VARIABLES, "AWS_ENDPOINT_URL": endpoint})
            _measure("S3 (moto on loopback)", f"{S3(endpoint).bucket('records')}/team", folder)
        finally:
            end(server)
        _measure_ceph(Path(folder))


def _measure_ceph(folder: Path) -> None:
    what = "S3 (Ceph's gateway on loopback, TLS)"
    if lacking := missing(CEPH):
        print(f"{what}: the lab lacks {' '.join(lacking)}")
        return
    authority = Authority(folder / "authority")
    with authority.ca.open("ab") as bundle:
        bundle.write(Path(botocore.__file__).with_name("cacert.pem").read_bytes())
    gateway = Ceph(authority)
    try:
        os.environ.update(gateway.variables)
        gateway.client().create_bucket(Bucket="records")
        _measure(what, "s3://records/team", str(folder))
    finally:
        gateway.close()


def _measure(what: str, url: str, folder: str) -> None:
    records = Records(open_store(url))
    for number in range(_CLUSTERS):
        records.keep(_record(number))
    command = [Path(sys.executable).parent / "envsync", "ls", "--json", "--store", url]
    took = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "ENVSYNC_CACHE": folder}, capture_output=True, check=True, text=True
        )
        took.append(time.perf_counter() - began)
        assert len(json.loads(done.stdout)["clusters"]) == _CLUSTERS
    print(f"{what}: median {statistics.median(took):.2f} s, {min(took):.2f} to {max(took):.2f} s")


def _record(number: int) -> Record:
    price = Price(amount=1.0, currency="USD", source="made up", date="2026-11-01")
    hired = (
        Hired(id=f"i-{number}-{one}", region="eu-west-1", zone="a", type="g5.xlarge", price=price)
        for one in range(8)
    )
    return Record(
        cluster=f"study-{number:04}",
        name="study",
        owner=owner(),
        backend="ec2",
        regions=("eu-west-1",),
        begun=0.0,
        seen=2460.0,
        bill=Bill(tuple(hired)),
    )


if __name__ == "__main__":
    main()
