"""What a client wants of a cluster that somebody else started: kept in its scheduler, made true from there.

`Hub` takes the blobs that processes lack, holds the one state that is wanted, has every process mended to it,
and gives the cluster back as it was. There is one state at a time, whoever's it is: what joins or restarts
later gets that one and never an older one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, List, Mapping, cast

from distributed.comm import connect
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

from .blobs import Blobs, blobs_of
from .calls import Calls
from .compare import SCHEDULER, WARNING, Difference
from .drain import Restarts
from .fit import disturbed_here, fetch_and_build, look_again, put_in, take_out
from .gate import Gate
from .look import refuses
from .mend import NAME, PATIENCE, Orders, exchange, is_disturbed, leave

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Hub"]

logger = logging.getLogger("distributed.envsync")

PROTOCOL = 1  # of what a client and a Hub say to each other
REPORT_TIMEOUT = 900.0  # seconds: a late joiner may have to fetch and build
LONE = 3.0  # seconds that a nanny whose worker is not here has to answer
READERS = 4  # chunks that may be on their way out at the same time

_HANDLERS = {
    "envsync_lacking": "lacking",
    "envsync_put": "put",
    "envsync_get": "get",
    "envsync_apply": "apply",
    "envsync_release": "release",
    "envsync_state": "state",
    "envsync_report": "report",
    "envsync_nanny": "nanny",
}


class Hub(SchedulerPlugin):  # type: ignore[misc]
    """Keeps a running cluster as one client wants it.

    Sent by value and registered as a scheduler plugin; `install` does the same within the process.

    Parameters
    ----------
    classes : bytes, optional
        ``Orders().classes``, where that is pickled already: it is much work for a scheduler.
    """

    name = NAME

    def __init__(self, classes: bytes = b"") -> None:
        self.classes = classes
        self.scheduler: Any = None
        self.gate: Any = None
        self.wanted: dict[str, Any] = {}  # the state; empty if there is none
        self.own: dict[str, Any] = {}

    def install(self, scheduler: Scheduler) -> None:
        """Take requests in a scheduler that runs, from within its process."""
        self._take(scheduler)
        scheduler.add_plugin(self, name=self.name)

    async def start(self, scheduler: Scheduler) -> None:
        """Take requests, being registered by a client.

        Raises
        ------
        RuntimeError
            It has a gate of envsync's already: a cluster that envsync started keeps its own environment.
        """
        if Gate.name in scheduler.plugins:
            raise RuntimeError(
                "this cluster was started by envsync, which keeps its environment: cluster.sync() ships what "
                "changed, another environment needs a cluster of its own"
            )
        self._take(scheduler)

    def _take(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._turn = asyncio.Lock()
        self._readers = asyncio.Semaphore(READERS)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="envsync")
        self._calls = Calls(scheduler, self._threads)
        self._equipped: dict[str, str] = {}  # nannies, and the digest of the state that each was given
        self._coded: set[str] = set()  # processes that have our code
        self._restarted = 0  # workers, for the state that is being made true
        self._leaving = False  # the cluster is being given back: what joins gets nothing any more
        self._orders: Any = None
        self._tasks: set[Any] = set()
        self.blobs = Blobs(os.path.join(scheduler.local_directory, "envsync-blobs"))
        self._before = {name: scheduler.handlers.get(name) for name in _HANDLERS}
        for name, method in _HANDLERS.items():
            scheduler.handlers[name] = getattr(self, method)

    def uninstall(self) -> None:
        """Leave the scheduler as it was before `install`, blobs too. What processes have, they keep."""
        scheduler, self.scheduler = self.scheduler, None
        if scheduler is None:
            return
        self._drop_gate()
        scheduler.worker_plugins.pop(NAME, None)
        scheduler.nanny_plugins.pop(NAME, None)
        for name, before in self._before.items():
            if before is not None:
                scheduler.handlers[name] = before
            else:
                scheduler.handlers.pop(name, None)
        scheduler.plugins.pop(self.name, None)
        self.blobs.remove()
        self._threads.shutdown(wait=False)

    async def close(self) -> None:
        """Go with the scheduler."""
        if self.scheduler is not None:
            self._threads.shutdown(wait=False)
            self.blobs.remove()
            take_out(_whole(self.scheduler))

    # Blobs

    async def lacking(self, digests: Collection[str]) -> list[str]:
        """Return the blobs that are not here."""
        return cast(List[str], await self._aside(lambda: self.blobs.lacking(digests)))

    async def put(self, sha256: str, offset: int, data: bytes, last: bool = False, upload: str = "") -> Any:
        """Take a chunk of a blob: see `Blobs.put`."""
        return await self._aside(lambda: self.blobs.put(sha256, offset, data, last, upload))

    async def get(self, comm: Any, sha256: str, offset: int) -> Any:
        """Give a chunk of a blob: see `Blobs.get`. As many at a time as memory is to be spent on."""
        async with self._readers:
            await comm.write(await self._aside(lambda: self.blobs.get(sha256, offset)))
        return Status.dont_reply

    # The state

    async def state(self) -> dict[str, Any]:
        """Return what is known of every process, and whose state it is, as JSON types."""
        known = await self.gate.state() if self.gate is not None else {}
        return {
            "protocol": PROTOCOL,
            "on_mismatch": "",
            "workers": {},
            "refused": [],
            **known,
            "owner": self.wanted.get("owner"),
            "digest": self.wanted.get("digest", ""),
            "own": self.own,
            "scheduler": list(self.own.get("differences", ())),
        }

    async def apply(
        self,
        state: dict[str, Any],
        restart: str = "auto",
        take_over: bool = False,
        patience: float = PATIENCE,
    ) -> dict[str, Any]:
        """Make every process what a state says.

        Parameters
        ----------
        state : State
            What is wanted: see docs/internals-existing.md.
        restart : {"auto", "never", "always"}
            Which workers with a nanny restart: those that have imported what differs, none, all that change.
        take_over : bool
            Whether this state replaces another owner's.
        patience : float
            Seconds that running tasks have to end.

        Returns
        -------
        dict
            ``scheduler``, an entry; ``workers``, entries by address; ``replaced``, whether there was a state
            before; ``displaced``, the owner of another environment that was there; ``restarted``, how many
            workers; ``seconds``. Or
            ``refused``, with the ``owner`` who is there, and the ``process`` if it is another cluster in it
            that has that owner's; or ``lacking``, the blobs that have to be sent first.
        """
        if restart not in ("auto", "never", "always"):
            raise ValueError(f"restart must be 'auto', 'never' or 'always', not {restart!r}")
        async with self._turn:
            began, now = time.monotonic(), time.time()
            self._restarted = 0
            await self._settled()
            old = self.wanted
            state = _with_what_is_laid_over(state, old)
            same = bool(old) and _content(old) == _content(state)
            owned = not old or old["owner"]["id"] == state["owner"]["id"]
            if not (owned or take_over or self._makes_way(old, state)):
                if not same:
                    return {"refused": {"owner": old["owner"]}}
                state = old  # it stays theirs, to give back too
            beside = self._beside()
            if beside:
                return {"refused": {"owner": beside["owner"], "process": os.getpid()}}
            lacking = await self.lacking(blobs_of(state))
            if lacking:
                return {"lacking": lacking}
            if same:  # what has it already is left in peace
                self.wanted = {**old, "owner": state["owner"]}
            else:
                await self._announce(state)
            done = await self._sound() if same else set()
            await asyncio.gather(
                self._mend_self() if _whole(self.scheduler) not in done else asyncio.sleep(0),
                self._mend_all(sorted(set(self.scheduler.workers) - done), restart, patience),
            )
            if not same:
                await self._aside(lambda: self.blobs.keep(blobs_of(state)))
            gone = [one for one in self.gate.refused if one["time"] >= now]
            workers = {one["address"]: _entry(one) for one in gone}
            workers.update({address: _entry(entry) for address, entry in self.gate.workers.items()})
            return {
                "scheduler": self.own,
                "workers": workers,
                "replaced": bool(old),
                "displaced": None if owned or same or _akin(old, state) else old["owner"],
                "restarted": self._restarted,
                "seconds": time.monotonic() - began,
            }

    async def _sound(self) -> set[str]:
        """Return which processes have the state, and whose files nobody has written to since."""
        equal = [name for name, entry in self.gate.workers.items() if entry["state"] == "equal"]
        own, answers = await asyncio.gather(
            self._aside(lambda: self.own["state"] != "equal" or disturbed_here(self.wanted)),
            self._calls.run(equal, is_disturbed, None, lambda _: {}),
        )
        sound = {address for address, answer in answers.items() if not answer["restart"]}
        for address in set(equal) - sound:
            self._equipped.pop(self._nanny(address), None)
        return sound if own else {*sound, _whole(self.scheduler)}

    def _beside(self) -> dict[str, Any]:
        """Return what is wanted of another cluster whose scheduler is in this process, which has one path."""
        for one in list(type(self.scheduler)._instances):
            hub = one.plugins.get(NAME) if one.status == Status.running else None
            if hub is not None and hub is not self and hub.wanted:
                return cast(Dict[str, Any], hub.wanted)
        return {}

    def _makes_way(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Tell whether a person's state may be replaced unasked, by the same person.

        That is where it is of the same folders of code, or from the same client or one that has gone.
        """
        gone = old["owner"].get("client") not in self.scheduler.clients
        again = old["owner"].get("client") == new["owner"].get("client")
        return _person(old) == _person(new) and (gone or again or _akin(old, new))

    async def release(self, owner: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Give the cluster back as it was, if it is that owner's."""
        async with self._turn:
            if self.wanted and self.wanted["owner"]["id"] != owner:
                return {"refused": {"owner": self.wanted["owner"]}}
            self._leaving = True
            try:
                return await self._give_back(patience)
            finally:
                self._leaving = False

    async def _give_back(self, patience: float) -> dict[str, Any]:
        began = time.monotonic()
        await self._settled()
        self.scheduler.worker_plugins.pop(NAME, None)
        self.scheduler.nanny_plugins.pop(NAME, None)
        self._drop_gate()
        told, answers = await self._take_leave(None, patience)
        again = [
            address
            for address, answer in answers.items()
            if answer["restart"] and address in self.scheduler.workers and self._nanny(address)
        ]
        restarts = Restarts(self.scheduler, _NoGate(self.scheduler), patience=patience)
        for address, (new, trouble) in (await restarts.restart(again)).items():
            answers[new or address] = {**answers.pop(address), "trouble": trouble, "restart": []}
        # what joined meanwhile may have been given the plugin still
        more, _ = await self._take_leave(set(answers), patience)
        told.update(more)
        await self._aside(lambda: take_out(_whole(self.scheduler)))
        workers = {
            address: {"trouble": answer["trouble"], "restart": answer["restart"]}
            for address, answer in answers.items()
        }
        troubles = [answer["trouble"] for answer in told.values() if answer["trouble"]]
        self.wanted = {}
        self.uninstall()
        return {
            "workers": workers,
            "nannies": troubles,
            "restarted": len(again),
            "seconds": time.monotonic() - began,
        }

    async def _take_leave(
        self, done: set[str] | None, patience: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take our plugins out of nannies and workers; what each said."""
        present = [one for one in self.scheduler.workers if one not in (done or ())]
        nannies = {self._nanny(one) for one in present} - {None, ""}
        # those whose workers have just died, or never came up, will start others
        lone = set(self._equipped) - nannies if done is None else set()
        answering = await asyncio.gather(*(self._answers(nanny) for nanny in lone))
        nannies.update(nanny for nanny, there in zip(lone, answering) if there)
        told = await self._calls.run(nannies, leave, patience, lambda _: {})
        return told, await self._calls.run(present, leave, patience, lambda _: {})

    async def _answers(self, nanny: str) -> bool:
        try:
            # connect's own timeout does not end where somebody listens and says nothing
            comm = await asyncio.wait_for(connect(nanny, **self.scheduler.connection_args), LONE)
            await comm.close()
        except (OSError, asyncio.TimeoutError):
            return False
        return True

    async def nanny(self, address: str, digest: str) -> None:
        """Remember a nanny that has been given a state, before it has a worker."""
        self._equipped[address] = digest

    async def report(
        self, address: str, digest: str = "", restart: Collection[str] = (), **found: Any
    ) -> Any:
        """Take the report of a late joiner; one that was given an older state is mended first."""
        address = self.scheduler.coerce_address(address)
        if self.gate is None:
            return {"admitted": True}
        if digest != self.wanted.get("digest"):
            self._later(self._mend_late(address))
            return {"admitted": True}
        return await self._judge(address, {**found, "restart": restart})

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """See that the nanny of a late joiner has the state too: it may have come up before there was one."""
        nanny = scheduler.workers[worker].nanny
        known = not self.wanted or self._leaving or self._equipped.get(nanny) == self.wanted["digest"]
        if nanny and not known:
            self._later(self._mend_nannies([nanny]))

    # How it is made true

    async def _announce(self, state: dict[str, Any]) -> None:
        """Have all that join from now on get the state."""
        if self._orders is None:
            self._orders = await self._aside(lambda: Orders(self.classes))
        orders = self._orders
        plugin, nanny_plugin = await self._aside(
            lambda: (orders.pickled(state), orders.pickled(state, nanny=True))
        )
        self.wanted = state
        if self.gate is None:
            self.gate = Gate(state["wanted"], report_timeout=REPORT_TIMEOUT, door=("python",), foreign=True)
            self.gate.install(self.scheduler, (NAME, plugin))
            for name in ("envsync_report", "envsync_state"):  # the gate's, and more
                self.scheduler.handlers[name] = getattr(self, _HANDLERS[name])
        self.gate.wanted = state["wanted"]
        self.gate.on_mismatch = state["on_mismatch"]
        self.scheduler.worker_plugins[NAME] = plugin
        self.scheduler.nanny_plugins[NAME] = nanny_plugin

    def _drop_gate(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            for name in ("envsync_report", "envsync_state"):
                self.scheduler.handlers[name] = getattr(gate, _HANDLERS[name])
            gate.uninstall()

    async def _mend_self(self) -> None:
        who = _whole(self.scheduler)
        restart: list[str] = []
        differences: list[dict[str, Any]] = []
        trouble = ""
        try:
            built = await self._aside(lambda: fetch_and_build(self.wanted, self.blobs.get))
            restart = put_in(who, built)
            differences = await self._aside(lambda: look_again(self.wanted, process=SCHEDULER))
        except Exception as error:
            logger.exception("The scheduler could not be given the wanted environment")
            trouble = f"{type(error).__name__}: {error}"
        self.own = _judged(SCHEDULER, [*differences, *self._kept(restart, differences)], trouble, restart)
        self.own["trouble"] = trouble  # it runs no tasks: what it has imported is a warning, not a failure
        self.gate.own = differences

    def _kept(
        self, restart: Collection[str], differences: Collection[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Say of distributions that the scheduler has imported others of them, where nothing says so yet."""
        versions = {one["name"]: one["version"] for one in self.wanted["wanted"].get("distributions") or ()}
        known = {one["subject"] for one in differences}
        found = [
            Difference(
                *(WARNING, "imported", name, versions.get(name, ""), "another, imported before"),
                process=SCHEDULER,
                advice="the scheduler keeps what it has imported until it is restarted",
            )
            for name in restart
            if name not in known
        ]
        return [one.to_dict() for one in found]

    async def _exchange(
        self,
        addresses: Collection[str],
        options: Callable[[str], Mapping[str, Any]],
        *,
        nanny: bool = False,
    ) -> dict[str, Any]:
        """Give processes the state; our code, which is far larger, only to those that have not had it."""
        order = self._orders.of(self.wanted, nanny=nanny)
        lean = {**order, "classes": b""}
        new = [address for address in addresses if address not in self._coded]
        both = await asyncio.gather(
            self._calls.run(new, exchange, order, options),
            self._calls.run([one for one in addresses if one in self._coded], exchange, lean, options),
        )
        answers = {**both[0], **both[1]}
        again = [address for address, answer in answers.items() if answer.get("lacking")]
        answers.update(await self._calls.run(again, exchange, order, options))  # another process is there now
        self._coded.update(address for address in new if not answers[address]["trouble"])
        return answers

    async def _mend_nannies(self, nannies: Collection[Any]) -> dict[str, str]:
        """Give the state to nannies; those that have it are left in peace. What went wrong, by nanny."""
        state = self.wanted
        lacking = {one for one in nannies if one and self._equipped.get(one) != state["digest"]}
        lacking -= self._calls.foreign()
        self._equipped.update(dict.fromkeys(lacking, state["digest"]))
        answers = await self._exchange(lacking, lambda _: {}, nanny=True)
        for nanny, answer in answers.items():
            if answer["trouble"]:
                logger.warning(
                    "The nanny %s could not be given the environment: %s", nanny, answer["trouble"]
                )
                self._equipped.pop(nanny, None)
        return {nanny: answer["trouble"] for nanny, answer in answers.items() if answer["trouble"]}

    async def _mend_all(self, addresses: Collection[str], restart: str, patience: float) -> None:
        """Mend workers that are here, and their nannies; then restart those that need it and may."""
        never = {"restart": "never", "patience": patience}

        def options(address: str) -> dict[str, Any]:
            return {**never, "restart": restart if self._nanny(address) else "never"}

        present = [one for one in addresses if self.gate.workers.get(one, {}).get("state") != "waiting"]
        answers = await self._exchange(present, options)
        again = [address for address, answer in answers.items() if answer["untouched"]]
        # Whatever else a nanny starts meanwhile is mended as a late joiner: that need not be waited for.
        troubles = await self._mend_nannies({self._nanny(address) for address in again})
        self._later(self._mend_nannies({known.nanny for known in self.scheduler.workers.values()}))
        ready = [address for address in again if self._nanny(address) in self._equipped]
        told = {}
        for address in again:
            why = troubles.get(self._nanny(address))
            told[address] = "", "its nanny could not be given the environment" + (f": {why}" if why else "")
        if ready:
            told.update(await Restarts(self.scheduler, self.gate, patience=patience).restart(ready))
            self._restarted += sum(new != address and not why for address, (new, why) in told.items())
        # what could not be restarted goes on as it was, but for what can come without
        here = self.scheduler.workers
        as_it_is = {address: trouble for address, (_, trouble) in told.items() if trouble and address in here}
        more = await self._exchange(as_it_is, lambda _: never)
        for address, trouble in as_it_is.items():
            more[address]["trouble"] = more[address]["trouble"] or trouble
        for address, answer in {**answers, **more}.items():
            if not answer["untouched"]:
                await self._judge(address, answer)

    async def _mend_late(self, address: str) -> None:
        never = {"restart": "never"}
        answers = await self._exchange([address], lambda _: never)
        await self._judge(address, answers[address])

    async def _judge(self, address: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Have the gate hear of a worker what it became."""
        found = _judged("", answer["differences"], answer["trouble"], answer["restart"])
        if self.gate is None or address not in self.gate.workers:
            return {"admitted": False, "message": "not a worker of this scheduler"}
        said: dict[str, Any] = await self.gate.report(
            address, differences=answer["differences"], trouble=found["trouble"]
        )
        entry = self.gate.workers.get(address)
        if entry is not None and entry["state"] != "refused" and answer["restart"]:
            entry["state"] = found["state"]
        return said

    def _nanny(self, address: str) -> Any:
        known = self.scheduler.workers.get(address)
        return known.nanny if known is not None else None

    async def _aside(self, action: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    async def _settled(self) -> None:
        """Wait for what still goes on of an earlier state: it must not come after a later one."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _later(self, action: Any) -> None:
        task = asyncio.ensure_future(action)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _NoGate:
    """Stands where a gate was, while workers restart without one."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.shut: set[str] = set()
        self.refused: list[dict[str, Any]] = []

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        return {address: {"state": "equal"} for address in self._scheduler.workers}


def _whole(scheduler: Any) -> str:
    return f"scheduler {scheduler.id}"


def _person(state: Mapping[str, Any]) -> tuple[Any, Any]:
    return state["owner"].get("user"), state["owner"].get("host")


def _akin(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two states are of the same environment and the same folders of one person's.

    As when a notebook and ``envsync sync --watch`` beside it want the same, but for an edit between them.
    """

    def of(state: Mapping[str, Any]) -> tuple[Any, ...]:
        wanted = {key: one for key, one in state["wanted"].items() if key not in ("trees", "code")}
        return _person(state), wanted, sorted(state["owner"].get("roots") or ())

    return bool(old["owner"].get("roots")) and of(old) == of(new)


def _content(state: Mapping[str, Any]) -> list[Any]:
    return [state[key] for key in ("wanted", "packages", "trees", "on_mismatch")]


def _with_what_is_laid_over(state: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Add packages that were laid over before and are wanted still: whoever looks now sees no difference."""
    if not old:
        return state
    versions = {one["name"]: one["version"] for one in state["wanted"].get("distributions") or ()}
    packages = {target: dict(those) for target, those in state["packages"].items()}
    for target, those in old["packages"].items():
        for name, one in those.items():
            if versions.get(name) == one["version"]:
                packages.setdefault(target, {}).setdefault(name, one)
    return {**state, "packages": packages}


def _judged(
    name: str, differences: Collection[Mapping[str, Any]], trouble: str, restart: Collection[str]
) -> dict[str, Any]:
    found = [dict(one) for one in differences]
    state = "different" if trouble or refuses(found) else "equal"
    if restart:
        state = "restart-needed"
        trouble = trouble or "it has imported " + ", ".join(restart) + ": a restart brings the wanted ones"
    return {"name": name, "state": state, "differences": found, "trouble": trouble}


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("name", "state", "differences", "trouble")}
