"""Code that names LocalCluster takes SyncedCluster in its place: the same keywords, the same methods."""

from __future__ import annotations

from typing import Any

from dask.distributed import Client, LocalCluster

from envsync import SyncedCluster


def mean_of_squares(cluster_class: type[Any], **keywords: Any) -> float:
    """A library function that takes the class of the cluster, as many do."""
    with cluster_class(**keywords) as cluster, Client(cluster) as client:
        squares = client.map(lambda x: x * x, range(100))
        return float(client.submit(lambda values: sum(values) / len(values), squares).result())


def main() -> None:
    keywords = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "memory_limit": "512MiB",
        "dashboard_address": None,
    }
    plain = mean_of_squares(LocalCluster, **keywords)
    synced = mean_of_squares(SyncedCluster, **keywords)
    print("LocalCluster: ", plain)
    print("SyncedCluster:", synced)
    assert plain == synced


if __name__ == "__main__":
    main()
