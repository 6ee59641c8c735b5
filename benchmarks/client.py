"""Starts a cluster on SSH hosts and prints how long that took; runs in the benchmarks' environment."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


def main(kind: str, hosts: Sequence[str]) -> None:
    """Start a cluster and print how long it took."""
    if kind == "synced":
        from envsync import SyncedCluster
        from envsync.runner import SSH

        began = time.perf_counter()
        cluster = SyncedCluster(SSH(hosts), n_workers=len(hosts), threads_per_worker=1)
    else:
        from distributed import SSHCluster

        began = time.perf_counter()
        cluster = SSHCluster([hosts[0], *hosts], worker_options={"nthreads": 1}, remote_python=sys.executable)
    with cluster:
        cluster.get_client().wait_for_workers(len(hosts), timeout=120)
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
