"""What a client asks of the Hub in a scheduler that somebody else started."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from dask import config
from dask.utils import parse_timedelta
from distributed.comm import CommClosedError

from envsync.errors import ClusterError
from envsync.plugins.blobs import blobs_of
from envsync.plugins.carried import by_value
from envsync.plugins.hub import Hub
from envsync.plugins.mend import Orders
from envsync.runner.shipment import upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from distributed.client import Client

    from envsync.hooks import Hooks
    from envsync.store import Store

__all__ = ["NAME", "apply", "has_hub", "install_hub", "not_lost", "owned", "scheduler_of"]

NAME = "envsync"
"""Of the plugin, in whatever cluster."""

_ROUNDS = 3
_LOST = "distributed.deploy.lost-worker-timeout"
_AWAY = 600.0  # seconds, that a worker may be away because of us


@functools.cache
def _hub() -> bytes:
    return by_value(Hub(Orders().classes))


def scheduler_of(client: Client) -> str:
    """Return what the scheduler that a client is connected to is called, as no other is."""
    return str(getattr(client, "_scheduler_identity", {}).get("id") or "")


async def has_hub(client: Client) -> bool:
    """Tell whether a client's scheduler has it."""
    # a lambda goes by value: the scheduler has nothing of ours to import
    return bool(await client.run_on_scheduler(lambda dask_scheduler: NAME in dask_scheduler.plugins))


async def install_hub(client: Client) -> None:
    """Have a client's scheduler have it.

    Raises
    ------
    ClusterError
        envsync started that cluster, which keeps its own environment.
    """
    if await has_hub(client):
        return  # it is half a megabyte to send, and to load
    try:
        await client.scheduler.register_scheduler_plugin(plugin=_hub(), name=NAME, idempotent=True)
    except RuntimeError as error:  # the Hub's own words, where envsync started the cluster
        raise ClusterError(str(error)) from None


def owned(owner: Mapping[str, Any], process: int = 0) -> ClusterError:
    """Return the error for a cluster, or a process with several, that has somebody's environment."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("since", 0)))
    whose = f"the environment of {owner.get('user')} on {owner.get('host')} is in place"
    if process:
        return ClusterError(
            f"{whose} in another cluster of the same process (pid {process}), since {since}",
            hint="A process has one environment: have that one given back, or clusters started in their own.",
        )
    return ClusterError(
        f"{whose} in this cluster, since {since}",
        hint="Agree with them; take_over=True (envsync sync --take-over) takes its place, for all tasks.",
    )


async def apply(
    scheduler: Any, state: dict[str, Any], store: Store, hooks: Hooks, *, restart: str, take_over: bool
) -> dict[str, Any]:
    """Send what a scheduler lacks, and have it make a state true; see `Hub.apply`.

    Parameters
    ----------
    scheduler : rpc
        Of a client's, that has the Hub.
    state : State
        What is wanted.
    store : Store
        Has the blobs.
    hooks : Hooks
        Told about what is sent.
    restart : {"auto", "never", "always"}
        Which workers restart.
    take_over : bool
        Whether it takes the place of another client's.

    Raises
    ------
    ClusterError
        Another client's environment is in place, or the scheduler went away.
    """
    lacking = await scheduler.envsync_lacking(digests=blobs_of(state))
    for _ in range(_ROUNDS):
        await upload(scheduler, list(lacking), store, hooks)
        with not_lost():
            try:
                result: dict[str, Any] = await scheduler.envsync_apply(
                    state=state, restart=restart, take_over=take_over
                )
            except CommClosedError as error:
                raise ClusterError(
                    "the scheduler went away while the environment was laid over the cluster",
                    hint="See whether it still runs; sync again when it does.",
                ) from error
        if result.get("refused"):
            raise owned(**result["refused"])
        lacking = result.get("lacking")
        if not lacking:
            return result
    raise ClusterError(
        "the scheduler still lacks what was sent to it",
        hint="Something removes files from its folder for temporary files.",
    )


@contextlib.contextmanager
def not_lost() -> Iterator[None]:
    """Let workers restart: a cluster object in this process ends the job of one that it misses for a while.

    Whether it is there it looks once, so many seconds after it left; by then it may restart again.
    """
    longer = parse_timedelta(config.get(_LOST)) < _AWAY
    with config.set({_LOST: f"{_AWAY:g}s"}) if longer else contextlib.nullcontext():
        yield
