"""Look at a cluster that envsync did not start, and say how it differs from this environment."""

from __future__ import annotations

from dask.distributed import LocalCluster

from envsync import verify


def main() -> None:
    # stands for a cluster of somebody else's; `verify` also takes a client, or an address
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = verify(cluster, on_mismatch="ignore")
    print(found)
    print("usable as it is" if found.ok else "do not use it")


if __name__ == "__main__":
    main()
