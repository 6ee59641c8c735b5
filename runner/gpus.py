"""GPUs that were asked for: given to a job, or taken by it on its node; and why there are not enough."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, ClusterError
from envsync.runner.layout import devices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.layout import WorkerSpec
    from envsync.runner.session import Session

__all__ = ["demand_dask_cuda", "demand_one_each", "tell_missing", "with_gpus"]


async def with_gpus(session: Session, asked: int, *, told: bool, name: str) -> dict[str, Any]:
    """Return a node's facts, with the GPUs in them that its job may use.

    Parameters
    ----------
    session : Session
        The job's agent.
    asked : int
        How many GPUs each job was to have.
    told : bool
        Whether the batch system tells jobs by CUDA_VISIBLE_DEVICES which are theirs.
    name : str
        Who they are for.

    Raises
    ------
    ClusterError
        There are fewer.
    """
    facts = dict(session.facts)
    names = facts.get("cuda_visible_devices")
    if not asked:
        # nobody asked: those that the system names all the same are ours, others are not
        return facts if names is not None else {**facts, "gpus": []}
    if names is None or not told:
        try:
            taken = await session.request("allot_gpus", count=asked, name=name)
        except AgentError as error:
            raise ClusterError(error.message, where=error.where, hint=error.hint) from error
        for note in taken["notes"]:
            session.hooks.warning(session.host.name, note)
        return {**facts, "cuda_visible_devices": ",".join(taken["gpus"])}
    if len(devices(facts)) < asked:
        raise _too_few(facts, where=session.host.name, asked=str(asked))
    return facts


def tell_missing(name: str, facts: Mapping[str, Any], hooks: Hooks) -> None:
    """Warn of a host whose driver does not give its GPUs: nobody asked for them, but it was to be expected.

    A host without a driver, or with nothing but its library, has no GPUs to miss.
    """
    missing = str(facts.get("gpus_missing") or "")
    if missing.startswith(("nvml", "device")) and "DRIVER_NOT_LOADED" not in missing:
        hooks.warning(name, f"there are GPUs that cannot be used: {missing}")


def demand_dask_cuda(lock: Lock | None) -> None:
    """Make sure that workers will have dask-cuda: it is in the lock, or here if there is none yet.

    Raises
    ------
    ClusterError
        It is not.
    """
    if lock is not None:
        there = any(artifact.name == "dask-cuda" for artifact in lock.artifacts())
    else:
        try:
            there = bool(version("dask-cuda"))
        except PackageNotFoundError:
            there = False
    if not there:
        raise ClusterError(
            "gpu_worker='dask-cuda' was asked for, and there is no dask-cuda in "
            f"{f'the lock {lock.name}' if lock is not None else 'this environment'}",
            hint="Install dask-cuda (and rmm, for its memory pool), or leave gpu_worker= out.",
        )


def demand_one_each(specs: Sequence[WorkerSpec], facts: Mapping[str, Any], where: str) -> None:
    """Make sure that each worker has one GPU, as dask-cuda's have.

    Raises
    ------
    ClusterError
        One has none, or several.
    """
    if any(not spec.gpus for spec in specs):
        raise _too_few(facts, where=where, asked="at least 1, by gpu_worker='dask-cuda'")
    if any(len(spec.gpus or ()) > 1 for spec in specs):
        raise ClusterError(
            "gpu_worker='dask-cuda' has one worker for each GPU, and workers here would have several",
            where=where,
            hint="Leave workers_per_job= out: it is the number of GPUs.",
        )


def _too_few(facts: Mapping[str, Any], *, where: str, asked: str) -> ClusterError:
    names = facts.get("cuda_visible_devices")
    parts = (
        f"asked for {asked}, {len(devices(facts))} to be seen here",
        ""
        if names is None
        else f"CUDA_VISIBLE_DEVICES is {names!r}, NVML sees {len(facts.get('gpus') or ())}",
        str(facts.get("gpus_missing") or ""),
    )
    return ClusterError(
        f"there are not enough GPUs: {'; '.join(part for part in parts if part)}",
        where=where,
        hint="Look at what nvidia-smi sees there. GPUs that are not NVIDIA's are asked for by extra=.",
    )
