"""A cluster on machines that answer SSH: ENVSYNC_EXAMPLE_HOSTS=node1,node2 python examples/ssh_cluster.py"""

from __future__ import annotations

import os
import platform

from envsync import SyncedCluster
from envsync.runner import SSH


def main() -> None:
    hosts = [name for name in os.environ.get("ENVSYNC_EXAMPLE_HOSTS", "").split(",") if name]
    if not hosts:
        print("Set ENVSYNC_EXAMPLE_HOSTS to machines that `ssh` gets you into, such as node1,node2.")
        print("They need neither Python nor uv nor the internet. Nothing was done.")
        return
    with SyncedCluster(SSH(hosts), n_workers=len(hosts), threads_per_worker=1) as cluster:
        client = cluster.get_client()
        print("scheduler", cluster.scheduler_address)
        for address, name in sorted(client.run(platform.node).items()):
            print("worker   ", address, "on", name)
        print("sum      ", client.submit(sum, range(1000)).result())
        print(cluster.verify())


if __name__ == "__main__":
    main()
