"""Workers and nannies of a running cluster get what a client wants of it, and give it back.

`Mend` is the one plugin that every worker has, `MendNanny` that of every nanny; they come by value and are
exchanged, never stacked. A late joiner is mended before it reads its first task. A worker that runs tasks is
mended between them: no new one begins until those that run have ended and the new code is in place.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import sys
import time
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Mapping, cast

from distributed.core import Status
from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin
from distributed.protocol.pickle import loads
from distributed.worker_state_machine import PauseEvent, UnpauseEvent

from .activate import active
from .carried import by_value
from .fit import disturbed_here, fetch_and_build, laid_over, look_again, put_in, stale, take_out
from .look import check
from .survey import repairable

if TYPE_CHECKING:
    from distributed import Nanny, Worker

__all__ = ["NAME", "Mend", "MendNanny", "Orders", "exchange", "is_disturbed", "leave"]

logger = logging.getLogger("distributed.envsync")

NAME = "envsync"
PATIENCE = 120.0  # seconds that running tasks have to end
FETCHED = 600.0  # seconds for one chunk
TRIES = 3


class Mend(WorkerPlugin):  # type: ignore[misc]
    """Give a worker what a state asks of it.

    Parameters
    ----------
    state : State
        What the client wants of the cluster.
    code : str
        Digest of the code that this class came with.
    """

    name = NAME

    def __init__(self, state: Mapping[str, Any], code: str = "") -> None:
        self.state = state
        self.code = code

    async def setup(self, worker: Worker) -> None:
        """Mend a worker that has just registered, and tell the gate, which lets it in or not."""
        found = await self._fit(worker, _at_once)
        del found["untouched"]
        answer = await worker.scheduler.envsync_report(
            address=worker.contact_address or worker.address, digest=self.state["digest"], **found
        )
        if not answer.get("admitted", True):
            logger.error("This worker was refused: %s", answer.get("message", ""))

    async def renew(
        self, worker: Worker, *, restart: str = "never", patience: float = PATIENCE
    ) -> dict[str, Any]:
        """Mend a worker that runs.

        Parameters
        ----------
        worker : Worker
            One that runs.
        restart : {"never", "auto", "always"}
            When to do nothing, and say that a restart would be needed: never; where packages that differ are
            imported; wherever anything is to be put in.
        patience : float
            Seconds that running tasks have to end.

        Returns
        -------
        dict
            ``differences``, ``trouble`` and ``restart``, the distributions that a restart alone would bring;
            ``untouched`` if it is to be restarted, and nothing was done.
        """
        loop = asyncio.get_running_loop()

        async def put(who: str, built: Mapping[str, Any]) -> list[str] | None:
            old = [] if restart == "never" else stale(built)
            if built and restart == "always" and active() != built["digest"]:
                old = old or ["local code"]
            if old and not await loop.run_in_executor(None, self._hopeless):
                return None
            advice = "sync again when they have ended"
            done = await _between_tasks(
                worker, patience, advice, lambda: put_in(who, built, python_path=True)
            )
            return cast(List[str], done)

        return await self._fit(worker, put)

    async def _fit(
        self, worker: Worker, put: Callable[[str, Mapping[str, Any]], Awaitable[list[str] | None]]
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        process = f"worker {worker.address if worker.name is None else worker.name}"
        restart: list[str] = []
        trouble = ""
        try:
            get = _getter(worker, loop)
            built = await loop.run_in_executor(None, lambda: fetch_and_build(self.state, get))
            answer = await put(_user("worker", worker), built)
            if answer is None:
                return _said(untouched=True)
            restart = answer
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            logger.exception("This worker could not be given the wanted environment")
        try:
            differences = await loop.run_in_executor(None, lambda: look_again(self.state, process=process))
        except Exception as error:  # noqa: BLE001 - whatever it is, the gate must hear of it
            differences, trouble = [], trouble or f"{type(error).__name__}: {error}"
        return _said(differences=differences, trouble=trouble, restart=restart)

    async def disturbed(self) -> bool:
        """Tell whether this worker no longer has what it was given: somebody wrote to the files."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: disturbed_here(self.state))

    def _hopeless(self) -> bool:
        """Tell whether a restarted worker would be refused, for what no overlay can mend."""
        return self.state["on_mismatch"] == "raise" and bool(repairable(check(self.state["wanted"]))[1])

    async def teardown(self, worker: Worker) -> None:
        """Give back what was put in, unless the process ends anyhow."""
        if worker.status not in (Status.closing, Status.closed) or _lives_on(worker):
            take_out(_user("worker", worker))


class MendNanny(NannyPlugin):  # type: ignore[misc]
    """Have a nanny start its workers with what a state asks of them.

    Parameters
    ----------
    state : State
        What the client wants of the cluster.
    code : str
        Digest of the code that this class came with.
    """

    name = NAME
    restart = False

    def __init__(self, state: Mapping[str, Any], code: str = "") -> None:
        self.state = state
        self.code = code

    async def setup(self, nanny: Nanny) -> None:
        """Build, and put it in this process's path and environment, which its worker will inherit.

        The scheduler knows of nannies by their workers only: so it is told, should this one never have any.
        """
        await nanny.scheduler.envsync_nanny(address=nanny.address, digest=self.state["digest"])
        await self._fit(nanny)

    async def _fit(self, nanny: Nanny) -> None:
        loop = asyncio.get_running_loop()
        get = _getter(nanny, loop)
        built = await loop.run_in_executor(None, lambda: fetch_and_build(self.state, get))
        put_in(_user("nanny", nanny), built, python_path=True)

    async def renew(self, nanny: Nanny, **_: Any) -> dict[str, Any]:
        """`setup`, for a nanny that runs; what went wrong is said."""
        try:
            await self._fit(nanny)
        except Exception as error:
            logger.exception("This nanny could not be given the wanted environment")
            return _said(trouble=f"{type(error).__name__}: {error}")
        return _said()

    def teardown(self, nanny: Nanny) -> None:
        """Give back what was put in."""
        take_out(_user("nanny", nanny))


async def exchange(order: Mapping[str, Any], dask_worker: Any, **options: Any) -> dict[str, Any]:
    """Put a plugin in the place of the one of its name, which is not taken down first.

    Parameters
    ----------
    order : mapping
        `Orders.of`: the code is unpickled only where it is another one than is here already. Where it has
        none, and it is needed, that is said: ``lacking``.
    """
    old = dask_worker.plugins.get(order["name"])
    if old is not None and getattr(old, "code", None) == order["code"]:
        kind = type(old)
    elif not order["classes"]:
        return {**_said(), "lacking": True}
    else:
        kind = loads(order["classes"])[order["kind"]]
    plugin = kind(order["state"], order["code"])
    dask_worker.plugins[order["name"]] = plugin
    return cast(Dict[str, Any], await plugin.renew(dask_worker, **options))


async def is_disturbed(_: Any, dask_worker: Any) -> dict[str, Any]:
    """Ask a worker's plugin whether all is still as it was given, in ``restart``: what has to be mended."""
    plugin = dask_worker.plugins.get(NAME)
    try:
        sound = plugin is not None and not await plugin.disturbed()
    except Exception:  # noqa: BLE001 - then it is to be mended, which tells why it cannot be
        sound = False
    return _said(restart=() if sound else (NAME,))


async def leave(patience: float, dask_worker: Any) -> dict[str, Any]:
    """Take our plugin out of a worker or nanny, and give back what was put in."""
    plugin = dask_worker.plugins.pop(NAME, None)
    if plugin is None:
        return _said()
    trouble = ""
    used = laid_over()
    try:
        if isinstance(plugin, WorkerPlugin):
            who = _user("worker", dask_worker)
            advice = "restart the worker when they have ended (client.restart_workers)"
            await _between_tasks(dask_worker, patience, advice, lambda: take_out(who))
        else:
            take_out(_user("nanny", dask_worker))
    except Exception as error:  # noqa: BLE001 - whoever asked must hear of it
        dask_worker.plugins[NAME] = plugin
        trouble = f"{type(error).__name__}: {error}"
    return _said(trouble=trouble, restart=used)


class Orders:
    """The plugins' code, pickled once, and what is sent with it for each state."""

    def __init__(self, classes: bytes = b"") -> None:
        self.classes = classes or by_value((Mend, MendNanny))
        self.code = hashlib.sha256(self.classes).hexdigest()

    def of(self, state: Mapping[str, Any], *, nanny: bool = False) -> dict[str, Any]:
        """Return what `exchange` takes."""
        return {
            "name": NAME,
            "classes": self.classes,
            "kind": int(nanny),
            "code": self.code,
            "state": state,
        }

    def pickled(self, state: Mapping[str, Any], *, nanny: bool = False) -> bytes:
        """Return a plugin as the scheduler keeps it for those that join.

        Where another Python minor version unpickles it, it is a plugin that does nothing. Nannies are given
        their plugins before the gate sees anything of them, and code that travels by value is of no use, or
        worse, to another interpreter. Its worker is then refused with the reason.
        """
        return pickle.dumps(_Order(self.of(state, nanny=nanny)), protocol=4)


class _Order:
    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order = dict(order)

    def __reduce__(self) -> tuple[Any, ...]:
        kind = "NannyPlugin" if self.order["kind"] else "WorkerPlugin"
        text = (
            "__import__('distributed.protocol.pickle', fromlist=['loads'])"
            ".loads(order['classes'])[order['kind']](order['state'], order['code'])"
            " if __import__('sys').version_info[:2] == minor else"
            f" __import__('distributed.diagnostics.plugin', fromlist=['{kind}']).{kind}()"
        )
        return (eval, (text, {"order": self.order, "minor": sys.version_info[:2]}))


async def _at_once(who: str, built: Mapping[str, Any]) -> list[str] | None:
    return put_in(who, built, python_path=True)


async def _between_tasks(worker: Any, patience: float, advice: str, action: Callable[[], Any]) -> Any:
    """Let running tasks end while no other begins, then act, then go on.

    Tasks that have seceded are not waited for: they may wait for others that could not begin.
    """
    end = time.monotonic() + patience
    wait = 0.002
    try:
        while True:
            if worker.state.running:
                worker.handle_stimulus(PauseEvent(stimulus_id=f"envsync-pause-{time.time()}"))
            if not worker.state.executing:
                return action()
            if time.monotonic() > end:
                names = ", ".join(sorted(str(task.key) for task in worker.state.executing)[:3])
                raise TimeoutError(f"tasks still ran after {patience:g} s ({names}): {advice}")
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.05)
    finally:
        if worker.status == Status.running:
            worker.handle_stimulus(UnpauseEvent(stimulus_id=f"envsync-unpause-{time.time()}"))


def _getter(server: Any, loop: Any) -> Callable[[str, int], Mapping[str, Any]]:
    """Return what asks the scheduler for a chunk, from a thread."""

    def get(sha256: str, offset: int) -> Mapping[str, Any]:
        for tries in range(TRIES):
            asked = asyncio.run_coroutine_threadsafe(
                server.scheduler.envsync_get(sha256=sha256, offset=offset), loop
            )
            try:
                return cast(Mapping[str, Any], asked.result(FETCHED))
            except OSError:
                if tries == TRIES - 1:
                    raise
                time.sleep(0.2 * (tries + 1))
        raise AssertionError("not reached")

    return get


def _user(kind: str, server: Any) -> str:
    return f"{kind} {server.id}"


def _lives_on(worker: Any) -> bool:
    """Tell whether other servers are in this process, which will not end with this worker."""
    from distributed.nanny import Nanny
    from distributed.scheduler import Scheduler

    others = [*Nanny._instances, *Scheduler._instances, *type(worker)._instances]
    return any(one is not worker for one in others)


def _said(
    *, differences: Any = (), trouble: str = "", restart: Any = (), untouched: bool = False
) -> dict[str, Any]:
    return {
        "differences": list(differences),
        "trouble": trouble,
        "restart": list(restart),
        "untouched": untouched,
    }
