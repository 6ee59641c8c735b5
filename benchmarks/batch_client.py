"""Scales a cluster on a Slurm from no worker to some and prints how that went, as JSON; for `batch.py`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

CORES, MEMORY = 1, "200 MB"


def main(kind: str, workers: int, address: str) -> None:
    """Start a cluster without workers, scale it, and print how long it took until all were there.

    Parameters
    ----------
    kind : {"synced", "jobqueue"}
        SyncedCluster or dask-jobqueue's SLURMCluster.
    workers : int
        How many, one a job.
    address : str
        Of this machine, as nodes reach it.
    """
    made: list[bool] = []
    cluster: Any
    if kind == "synced":
        from envsync import SyncedCluster
        from envsync.runner import Slurm
        from envsync.runner.session import Session

        realise = Session.realise

        async def counted(session: Session, *arguments: Any, **options: Any) -> Any:
            environment = await realise(session, *arguments, **options)
            made.append(environment.created)
            return environment

        Session.realise = counted  # type: ignore[method-assign,assignment]
        cluster = SyncedCluster(Slurm(cores=CORES, memory=MEMORY), n_workers=0, dashboard_address=None)
    else:
        from dask_jobqueue import SLURMCluster

        options = {"host": address, "dashboard_address": None}
        cluster = SLURMCluster(
            cores=CORES,
            memory=MEMORY,
            scheduler_options=options,
            local_directory="/tmp",
            log_directory="logs",
        )
    with cluster:
        client = cluster.get_client()
        began = time.perf_counter()
        cluster.scale(workers)
        client.wait_for_workers(workers, timeout=280)
        seconds = time.perf_counter() - began
        verified = kind == "synced" and all(not one.trouble for one in cluster.verify().processes)
    print(json.dumps({"seconds": seconds, "made": sum(made), "asked": len(made), "verified": verified}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
