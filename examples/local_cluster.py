"""A cluster on this machine, in a reproduction of the environment that runs this script."""

from __future__ import annotations

import sys

from envsync import SyncedCluster


def where() -> str:
    """Return the prefix of the environment that a task runs in."""
    return sys.prefix


def main() -> None:
    with SyncedCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        client = cluster.get_client()
        print("this script runs in   ", sys.prefix)
        print("the tasks run in      ", client.submit(where, pure=False).result())
        print("sum of the squares    ", sum(client.gather(client.map(pow, range(10), [2] * 10))))
        print(cluster.verify())


if __name__ == "__main__":
    main()
