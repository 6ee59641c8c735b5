"""A cluster at Amazon, which costs money: ENVSYNC_EXAMPLE_TYPE=m7i.large python examples/ec2_cluster.py"""

from __future__ import annotations

import os
import platform
import time

from envsync import SyncedCluster
from envsync.runner import EC2


def main() -> None:
    machine_type = os.environ.get("ENVSYNC_EXAMPLE_TYPE", "")
    if not machine_type:
        print("Set ENVSYNC_EXAMPLE_TYPE to a type of machine, such as m7i.large, and AWS_DEFAULT_REGION.")
        print(
            "Two of them are rented for a few minutes, with the account that boto3 finds. Nothing was done."
        )
        return
    machines = EC2(machine_type, max_lifetime="30 min")
    print(machines.offer(2))
    with SyncedCluster(machines, n_workers=2, threads_per_worker=1, idle_timeout="10 min") as cluster:
        client = cluster.get_client()
        client.wait_for_workers(2)
        print(cluster.jobs)
        for address, name in sorted(client.run(platform.node).items()):
            print("worker   ", address, "on", name)
        print("sum      ", client.submit(sum, range(1000)).result())
        print(cluster.verify())
    print("it was   ", cluster.bill.summary(time.time()))


if __name__ == "__main__":
    main()
