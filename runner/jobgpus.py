"""The GPUs of a job: those that its system gave it, or those that it takes on its node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, ClusterError
from envsync.runner.layout import devices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.session import Session

__all__ = ["no_gpus", "with_gpus"]


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
        raise no_gpus(facts, where=session.host.name, asked=asked)
    return facts


def no_gpus(facts: Mapping[str, Any], *, where: str, asked: int) -> ClusterError:
    """Return the error of a host that has fewer GPUs than were asked for."""
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
