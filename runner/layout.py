"""From what a host has and what the user asked for, to its workers. Nothing here looks at a host.

The facts are those of the agent's probe: ``cores``, ``affinity``, ``memory``, ``numa``, ``gpus``, ``nics``
and ``cuda_visible_devices``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask.utils import parse_bytes
from distributed.deploy.utils import nprocesses_nthreads

from envsync.agent.gpus import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Device", "WorkerSpec", "devices", "layout", "local_layout", "memory_bytes", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One thing that CUDA_VISIBLE_DEVICES can name.

    Attributes
    ----------
    uuid : str
        Of a GPU, or of a MIG instance on one.
    numa : int or None
        The NUMA node that it hangs on.
    mig : bool
        Whether it is a MIG instance. CUDA shows a process one of them at most.
    """

    uuid: str
    numa: int | None = None
    mig: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker of a host.

    Attributes
    ----------
    nthreads : int
        Threads for tasks.
    memory_limit : int
        Bytes; 0 for no limit.
    cpus : tuple of int
        The cores that it is bound to; empty for all.
    gpus : tuple of str
        UUIDs of the devices that it sees; None leaves them alone.
    interface : str or None
        The network interface that it listens on; None where there is no reason to choose.
    resources : mapping of str to float
        What it offers to tasks that ask.
    """

    nthreads: int
    memory_limit: int
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] | None = None
    interface: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that pin it."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def layout(
    facts: Mapping[str, Any],
    *,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | float | None = "auto",
    resources: Mapping[str, float] | None = None,
    scheduler: str = "",
) -> tuple[WorkerSpec, ...]:
    """Lay out one host.

    Parameters
    ----------
    facts : mapping
        What the probe found.
    n_workers : int, optional
        How many; by default one per GPU (or MIG instance), without GPUs as many as LocalCluster would start.
    threads_per_worker : int, optional
        By default 1 where there are GPUs, else the cores shared evenly.
    memory_limit : str, float, int or None
        Per worker: ``"auto"`` shares the host's memory evenly, a float up to 1 is that fraction of it, an int
        or a string an amount, None or 0 no limit.
    resources : mapping, optional
        Added to each worker's own.
    scheduler : str
        The scheduler's IPv4 address, if it is on another host: of several interfaces on its network a worker
        takes the one that is beside its GPU.

    Raises
    ------
    ValueError
        A number that makes no sense.
    """
    if n_workers is not None and n_workers < 0:
        raise ValueError(f"n_workers must not be negative, not {n_workers}")
    if threads_per_worker is not None and threads_per_worker < 1:
        raise ValueError(f"threads_per_worker must be at least 1, not {threads_per_worker}")
    cores = max(1, int(facts.get("cores") or 1))
    gpus = devices(facts)
    if n_workers is None:
        if gpus:
            n_workers = len(gpus)
        elif threads_per_worker is None:
            n_workers, threads_per_worker = nprocesses_nthreads(cores)
        else:
            n_workers = max(1, cores // threads_per_worker)
    if n_workers == 0:
        return ()
    if threads_per_worker is None:
        threads_per_worker = 1 if gpus else max(1, math.ceil(cores / n_workers))
    limit = memory_bytes(memory_limit, int(facts.get("memory") or 0), n_workers)
    nodes = _nodes(facts)
    shares = [_share(gpus, index, n_workers) for index in range(n_workers)]
    beside = [
        tuple(sorted({one.numa for one in mine if one.numa is not None and one.numa in nodes}))
        for mine in shares
    ]
    specs = []
    for index, mine in enumerate(shares):
        own: dict[str, float] = {
            "GPU": max(1.0, len(mine)) if n_workers <= len(gpus) else len(gpus) / n_workers
        }
        specs.append(
            WorkerSpec(
                nthreads=threads_per_worker,
                memory_limit=limit,
                cpus=_beside(nodes, beside[index], beside.count(beside[index]) * threads_per_worker)
                if gpus
                else _cpus(nodes, index, n_workers),
                gpus=tuple(device.uuid for device in mine) if gpus else None,
                interface=_interface(facts, mine, scheduler),
                resources={**(own if gpus else {}), **(resources or {})},
            )
        )
    return tuple(specs)


def local_layout(
    *,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | float | None = "auto",
    cores: int,
    memory: int,
    resources: Mapping[str, float] | None = None,
) -> tuple[tuple[WorkerSpec, ...], WorkerSpec]:
    """Lay out this machine as LocalCluster does.

    Returns
    -------
    tuple of WorkerSpec, WorkerSpec
        The workers to start, and the form of any later one.
    """
    if n_workers is None and threads_per_worker is None:
        n_workers, threads_per_worker = nprocesses_nthreads(cores)
    if n_workers is None:
        assert threads_per_worker is not None
        n_workers = max(1, cores // threads_per_worker)
    if threads_per_worker is None:
        # rather too many threads than too few
        threads_per_worker = max(1, math.ceil(cores / n_workers)) if n_workers else cores
    spec = WorkerSpec(
        nthreads=threads_per_worker,
        memory_limit=memory_bytes(memory_limit, memory, max(1, n_workers)),
        resources=dict(resources or {}),
    )
    return (spec,) * n_workers, spec


def devices(facts: Mapping[str, Any]) -> tuple[Device, ...]:
    """Return what a worker can be pinned to: each GPU, or in its place its MIG instances.

    Where the host's own CUDA_VISIBLE_DEVICES names some, only those, as CUDA understands it.
    """
    found = visible(facts.get("gpus") or [], facts.get("cuda_visible_devices"))
    return tuple(Device(uuid=one["uuid"], numa=one["numa"], mig=one["mig"]) for one in found)


def memory_bytes(limit: str | float | None, memory: int, n_workers: int) -> int:
    """Return a worker's memory limit in bytes; 0 for none."""
    if limit is None or limit == 0:
        return 0
    if isinstance(limit, str):
        if limit == "auto":
            return memory // n_workers
        limit = parse_bytes(limit)
    if isinstance(limit, float) and limit <= 1:
        return int(limit * memory)
    amount = int(limit)
    return min(amount, memory) if memory else amount


def spread(total: int, hosts: int) -> list[int]:
    """Share out a number of workers evenly, the first hosts taking what is left over."""
    each, rest = divmod(total, hosts)
    return [each + (index < rest) for index in range(hosts)]


def _share(gpus: Sequence[Device], index: int, n_workers: int) -> tuple[Device, ...]:
    """Return the worker's part of the devices; a device is shared only when there are more workers."""
    if not gpus:
        return ()
    if n_workers >= len(gpus):
        return (gpus[index * len(gpus) // n_workers],)
    first, last = index * len(gpus) // n_workers, (index + 1) * len(gpus) // n_workers
    mine = tuple(gpus[first:last])
    return mine[:1] if any(device.mig for device in mine) else mine


def _nodes(facts: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the cores of each NUMA node that may be used."""
    usable = facts.get("affinity")
    nodes = {}
    for node in facts.get("numa") or ():
        cores = tuple(core for core in node["cores"] if usable is None or core in usable)
        if cores:
            nodes[node["node"]] = cores
    return nodes


def _beside(nodes: Mapping[int, tuple[int, ...]], beside: Sequence[int], threads: int) -> tuple[int, ...]:
    """Return the cores beside a worker's devices, where there are enough for all that are to run there."""
    cores = tuple(sorted(core for node in beside for core in nodes[node]))
    return cores if len(nodes) > 1 and len(cores) >= threads else ()


def _cpus(nodes: Mapping[int, tuple[int, ...]], index: int, n_workers: int) -> tuple[int, ...]:
    """Return the cores of a NUMA node, where binding leaves no core unused."""
    if len(nodes) < 2 or n_workers % len(nodes):
        return ()
    return list(nodes.values())[index * len(nodes) // n_workers]


def _interface(facts: Mapping[str, Any], gpus: Sequence[Device], scheduler: str) -> str | None:
    """Return the one interface beside a worker's devices, of several on the scheduler's own network.

    Of other networks nobody here knows whether the scheduler and all workers reach them.
    """
    reaching = []
    with contextlib.suppress(ValueError):  # a name, which may have any address
        address = ipaddress.IPv4Address(scheduler)
        reaching = [
            nic
            for nic in facts.get("nics") or ()
            if nic["up"] and not nic["loopback"] and nic.get("network")
            if address in ipaddress.IPv4Network(nic["network"])
        ]
    numa = {device.numa for device in gpus} - {None}
    near = [nic["name"] for nic in reaching if nic.get("numa") in numa]
    here = any(scheduler in nic["addresses"] for nic in reaching)
    return near[0] if len(reaching) > 1 and len(near) == 1 and not here else None
