"""How many workers of a group of jobs the tasks of a scheduler want: Dask's own count knows no groups."""

from __future__ import annotations

import math
from typing import Any, Collection

__all__ = ["demand"]

_UNKNOWN = 0.5  # seconds that a task takes that none was like
_FULL = 0.6  # part of the memory from which on more workers come, as Dask has it


def demand(
    jobs: Collection[str], offered: Collection[str], default: bool, duration: float, dask_scheduler: Any
) -> int:
    """Count as `Scheduler.adaptive_target` does, with the workers and the tasks of one group alone.

    Parameters
    ----------
    jobs : collection of str
        The names of the group's jobs.
    offered : collection of str
        Resources that its workers offer. A task that asks for some of these only is the group's.
    default : bool
        Whether tasks that ask for no resource are the group's, too.
    duration : float
        Seconds in which what there is should be done.
    dask_scheduler : Scheduler
        Where this runs.
    """
    scheduler: Any = dask_scheduler
    names, resources = set(jobs), set(offered)
    ours = [ws for ws in scheduler.workers.values() if str(ws.name).rpartition("-")[0] in names]
    seconds_of = getattr(scheduler, "_get_prefix_duration", lambda _: _UNKNOWN)
    waiting, seconds = 0, 0.0
    for tasks in (scheduler.unrunnable, scheduler.queued):
        for task in tasks:
            asked = set(task.resource_restrictions or ())
            if asked <= resources if asked else default:
                waiting += 1
                seconds += seconds_of(task.prefix)
    wanted = math.ceil((sum(ws.occupancy for ws in ours) + seconds) / duration)
    wanted = min(wanted, waiting + sum(len(ws.processing) for ws in ours))
    if ours:
        wanted = math.ceil(wanted / sum(ws.nthreads for ws in ours) * len(ours))
    elif waiting:
        wanted = max(1, wanted)
    limit = sum(ws.memory_limit for ws in ours)
    if limit and sum(ws.nbytes for ws in ours) > _FULL * limit:
        wanted = max(wanted, 2 * len(ours))
    if wanted >= len(ours):
        return int(wanted)
    free = set(scheduler.workers_to_close(attribute="name"))  # idle, and what they hold has room elsewhere
    return len(ours) - len([ws for ws in ours if ws.name in free])
