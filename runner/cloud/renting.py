"""The machines of one cluster: made all at once, known as they come up, more and fewer of them, then none.

`Rented.start` makes those that a cluster begins with and waits for the first, `another` returns each of the
others, or makes one, `end` ends one. Host keys are learnt from consoles, so that first connections are
verified. Whatever goes wrong, and whoever cancels, what was made is ended, looked for by its tag and not by
memory alone. If even that cannot be done, the machines end themselves when their leases are over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from envsync.errors import BootError, CapacityError, CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud.asking import Asking
from envsync.runner.cloud.booting import FORGOTTEN, Booting, address_of, tail_of
from envsync.runner.cloud.introduced import Introduced
from envsync.runner.cloud.plan import HostKeys, Plan, Spot
from envsync.runner.cloud.prices import Books
from envsync.runner.cloud.provider import CLUSTER, MachineRequest
from envsync.runner.cloud.renewing import Renewing
from envsync.runner.cloud.userdata import user_data

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from envsync.runner.cloud.costs import Bill
    from envsync.runner.cloud.provider import Machine, Provider, Shared

__all__ = ["HostKeys", "Plan", "Rented", "Spot"]

T = TypeVar("T")

_WHY = 10.0  # seconds that a cloud has to say that a machine has ended, and why
_GONE = 300.0  # seconds that machines may take to be gone, and what they shared to be removable
_TOGETHER = 0.05  # seconds: what is to end within them is one call
_TRIES = 2  # machines that are booted for one that is wanted: the second is its replacement


class Rented:
    """The machines of one cluster.

    Parameters
    ----------
    provider : Provider
        Where they come from.
    plan : Plan
        What to rent.
    hooks : Hooks, optional
        Told about progress.

    Attributes
    ----------
    machines : tuple of Machine
        Those that are up, the first of them the scheduler's.
    gone : callable or None
        Told about each of them that has ended, or has begun to, and was not asked to.
    """

    def __init__(self, provider: Provider, plan: Plan, hooks: Hooks | None = None) -> None:
        self.provider = provider
        self.plan = plan
        self.hooks = hooks or Hooks()
        self.gone: Callable[[Machine], None] | None = None
        self._up: dict[str, Machine] = {}
        self._where = f"{provider.name} {plan.tags.cluster}"
        self._made: dict[str, set[str]] = {}
        self._asking = Asking(provider, plan.tags.cluster)
        self._books = Books(provider, self._asking.threads, hooks=self.hooks)
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._shared: Shared | None = None
        self._zones: tuple[str, ...] = ()
        self._ready: deque[asyncio.Future[Machine]] = deque()  # made at the start, and nobody's yet
        self._unwanted: dict[str, bool] = {}  # those that are to end, and whether the cloud was told
        self._beside: set[asyncio.Future[Any]] = set()
        self._watching: asyncio.Future[None] | None = None
        self._introduced = Introduced()
        self._summed = False
        self._renewing = Renewing(
            provider, plan, alive=self._books.there, call=self._asking.call, hooks=self.hooks
        )

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Those that are up, the first of them the scheduler's."""
        return tuple(self._up.values())

    @property
    def trouble(self) -> str:
        """What the user has to see to, or machines end at work; empty if nothing. See `Provider.renew`."""
        return self._renewing.trouble

    @property
    def config(self) -> Path:
        """The configuration of ssh for them, each by its id: ``ssh -F config i-0123``. Gone when they are."""
        return self._introduced.config

    @property
    def key(self) -> Path:
        """The cluster's private key."""
        return self._introduced.key

    async def start(self) -> Machine:
        """Have all machines made, and the first up; `another` returns the others.

        Raises
        ------
        CapacityError
            No region has as many.
        BootError
            The first did not come up, nor did its replacement.
        CloudError
            The cloud refused.
        """
        try:
            self._warn()
            began = time.monotonic()
            lacking: list[CapacityError] = []
            for region in self.provider.regions:
                try:
                    first, *others = await self._start_in(region)
                    break
                except CapacityError as error:
                    lacking.append(error)
                    self.hooks.note(self._where, f"not in {region}: {error.message}")
                    await self._end_in(region)
            else:
                raise _nowhere(lacking, self.plan, self._where)
            self._ready = deque(self._begin(self._come_up(one)) for one in others)
            machine = await self._come_up(first, first=True)
            # whoever came up sooner: the first is the first
            self._up = {machine.id: machine, **self._up}
            what = f"{self.plan.count} x {self.plan.type} in {machine.region}"
            self.hooks.done(self._where, f"rented {what}, and the first is up", time.monotonic() - began)
            self._watching = self._begin(self._watch())
            return machine
        except BaseException:
            # a start that is cancelled ends what it made all the same
            await _surely(self.close())
            raise

    async def another(self) -> Machine:
        """Have one more machine up, in the region of the first. Who cancels has what was made ended.

        Raises
        ------
        CapacityError
            There is none.
        BootError
            It did not come up, nor did its replacement.
        CloudError
            The cloud refused.
        """
        if self._ready:
            coming = self._ready.popleft()
            try:
                return await asyncio.shield(coming)
            except asyncio.CancelledError:
                coming.cancel()
                if coming.done() and not coming.cancelled() and coming.exception() is None:
                    self.end(coming.result())
                raise
        return await self._come_up(await self._make())

    def end(self, machine: Machine) -> None:
        """Begin to end a machine; it is looked at until it is gone, and `close` waits for that."""
        self._forget(machine.id)
        self._unwanted.setdefault(machine.id, False)
        self._beside_it(self._end_soon())

    async def why(self, machine: Machine) -> str:
        """Return how a machine ended, in the cloud's words; empty if the cloud says that it runs."""
        until = time.monotonic() + _WHY
        while True:
            with contextlib.suppress(CloudError):
                found = {one.id: one for one in await self._asking.describe(machine.region)}
                now = found.get(machine.id)
                if now is None:
                    return FORGOTTEN
                if now.over:
                    return now.reason or now.state
            if time.monotonic() > until:
                return ""
            await asyncio.sleep(self.plan.poll)

    async def tail(self, identity: str) -> tuple[str, ...]:
        """Return the end of a machine's console; nothing if that cannot be had."""
        with contextlib.suppress(CloudError, KeyError):
            return tail_of(await self._asking.console(self._up[identity]))
        return ()

    async def close(self) -> None:
        """End the machines, wait until they are gone, and remove what they shared; silent if that is done.

        Raises
        ------
        CloudError
            Something could not be ended. The machines end themselves when their leases are over.
        """
        self.gone = None
        self._renewing.close()
        if self._watching is not None:
            self._watching.cancel()
        for task in self._ready:
            task.cancel()
        await asyncio.gather(*self._ready, return_exceptions=True)
        self._ready.clear()
        failed: list[CloudError] = []
        for region in list(self._made):
            try:
                await self._end_in(region)
            except CloudError as error:  # noqa: PERF203 - of few
                failed.append(error)
        self._up.clear()
        await asyncio.to_thread(self._introduced.close)
        if self.bill().hired and not self._summed:
            self._summed = True
            self.hooks.note(self._where, self.bill().summary(time.time()))
        self._asking.close()
        if failed:
            raise failed[0]

    def bill(self) -> Bill:
        """Return what its machines cost, those that have ended too. A price may come later."""
        return self._books.bill()

    def _hire(self, machine: Machine, shared: Shared) -> None:
        """Know a machine, and what it costs, from now on."""
        self._made[shared.region].add(machine.id)
        self._books.hire(machine, shared, self.plan.disk)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Do it beside; whoever wants to know how it ended asks."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _beside_it(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside, and before the end of all."""
        task = self._begin(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # -- making

    async def _start_in(self, region: str) -> tuple[Machine, ...]:
        plan = self.plan
        self._zones = await self._asking.call(self.provider.zones, region, plan.type)
        if not self._zones:
            raise CapacityError(
                f"{region} has no {plan.type} in the zones that were asked for",
                where=self._where,
                hint="Is the type's name right? Name other zones or regions.",
                scope="region",
            )
        self.hooks.step(self._where, f"renting {plan.count} x {plan.type} in {region}")
        self._made[region] = set()  # before anything is made: from now on it is looked for there
        self._shared = await self._asking.call(
            self.provider.open, region, plan.type, plan.tags, self._introduced.public
        )
        made = await _all([self._make(first=number == 0) for number in range(plan.count)])
        self.hooks.step(self._where, f"{plan.count} x {plan.type} in {region}: booting")
        return made

    async def _come_up(self, made: Machine, *, first: bool = False) -> Machine:
        """Have a machine up that was made: if it does not come up it is replaced, and then given up."""
        for attempt in range(_TRIES):
            try:
                machine, keys = await Booting(made, self._asking, self.plan, self._where).up()
                self._introduced.add(machine.id, address_of(machine, self.plan), keys)
                self._up[machine.id] = machine
                self.hooks.note(self._where, f"{machine.id} is up in {machine.zone}, {machine.market}")
                return machine
            except BootError as error:
                self.end(made)
                if attempt + 1 == _TRIES:
                    raise
                self.hooks.warning(self._where, f"{error.message}: another is made in its place")
            except BaseException:
                self.end(made)
                raise
            made = await self._make(first=first)
        raise AssertionError

    async def _make(self, *, first: bool = False) -> Machine:
        plan, shared = self.plan, self._shared
        assert shared is not None
        number = next(self._numbers)
        data = user_data(
            self._introduced.public, first=plan.boot + plan.lease, life=plan.life, more=plan.commands
        )
        lacking: list[CapacityError] = []
        for market in plan.markets(first=first):
            for zone in self._zones:
                request = MachineRequest(
                    shared=shared,
                    type=plan.type,
                    zone=zone,
                    market=market,
                    # of this start, this machine and this place: asked again, it is the same machine
                    token=hashlib.sha256(f"{self._run} {number} {market} {zone}".encode()).hexdigest(),
                    tags=plan.tags,
                    user_data=data,
                    disk=plan.disk,
                    lease=plan.lease,
                )
                try:
                    return await self._create(request)
                except CapacityError as error:
                    lacking.append(error)
                    if error.scope == "region":
                        break
        raise lacking[-1]

    async def _create(self, request: MachineRequest) -> Machine:
        """Make a machine. A call that is given up is not made; if it has begun, what comes of it is ended."""
        given_up = threading.Event()

        def create() -> Machine:
            if given_up.is_set():
                raise CloudError("it is not wanted any more", where=self._where)
            return self.provider.create(request)

        call = self._asking.begin(create)
        try:
            made = await asyncio.shield(call)
        except asyncio.CancelledError:
            given_up.set()
            self._beside_it(self._discard(call, request.shared))
            raise
        self._hire(made, request.shared)
        self._renewing.soon()
        return made

    async def _discard(self, call: asyncio.Future[Machine], shared: Shared) -> None:
        with contextlib.suppress(CloudError):
            made = await call
            self._hire(made, shared)
            self.end(made)

    def _warn(self) -> None:
        """Say, before anything is made, what this cloud cannot do; refuse what the user has to allow."""
        if not self.provider.has_console and self.plan.host_keys != "first":
            raise CloudError(
                "this cloud does not show what a machine writes to its console, so nothing can tell whether "
                "the first SSH connection reaches your machine or somebody in between",
                where=self._where,
                hint="host_keys='first' takes the key of whoever answers first, and holds to it after that. "
                "That is a small risk from a network that you trust.",
            )
        if not self.provider.gone_on_shutdown:
            self.hooks.warning(self._where, self.provider.left_on_shutdown)

    # -- ending

    async def _watch(self) -> None:
        """Look at the machines for as long as there are any."""
        told = False
        while True:
            await asyncio.sleep(self.plan.poll if self._unwanted else self.plan.watch)
            self._renewing.look()
            for region in list(self._made):
                try:
                    self._compare(await self._asking.describe(region))
                    told = False
                except CloudError as error:  # noqa: PERF203 - of few
                    if not told:
                        text = f"{error.message}: how its machines stand is not known until that is over"
                        self.hooks.warning(self._where, text)
                    told = True
            if not all(self._unwanted.values()):
                await self._end_soon()

    def _compare(self, found: Sequence[Machine]) -> None:
        """Notice what has ended."""
        listed = {one.id for one in found}
        for identity in [one for one, told in self._unwanted.items() if told and one not in listed]:
            self._unwanted.pop(identity)  # some clouds list nothing that is deleted
        for one in found:
            if not one.over:
                continue
            if one.state == "ended":
                self._unwanted.pop(one.id, None)
            self._books.dismiss([one.id])
            if one.id in self._up:
                if one.state == "stopped":  # it costs its disk, and nobody starts it again
                    self.end(one)
                self._forget(one.id)
                if self.gone is not None:
                    self.gone(one)

    def _forget(self, identity: str) -> None:
        self._up.pop(identity, None)
        self._introduced.remove(identity)

    async def _end_soon(self) -> None:
        """Tell the cloud which machines are to end: those that are asked for together, in one call."""
        await asyncio.sleep(_TOGETHER)
        ids = [one for one, told in self._unwanted.items() if not told]
        if not ids:
            return
        self._unwanted.update(dict.fromkeys(ids, True))
        assert self._shared is not None
        try:
            await self._asking.call(self.provider.terminate, self._shared.region, ids)
        except CloudError as error:
            self._unwanted.update(dict.fromkeys(ids, False))
            text = f"{', '.join(ids)} could not be ended: {error.message}; it is tried again"
            self.hooks.warning(self._where, text)
            return
        self._books.dismiss(ids)

    async def _end_in(self, region: str) -> None:
        """End all that has the cluster's tag in a region, and wait until it is gone."""
        if region not in self._made:
            return
        while self._beside:  # what is being made is known then
            await asyncio.gather(*self._beside, return_exceptions=True)
        deadline = time.monotonic() + _GONE
        asked = {one for one, told in self._unwanted.items() if told}
        while True:
            found = await self._asking.call(self.provider.describe, region, self.plan.tags.cluster)
            there = [one.id for one in found if one.state != "ended"]
            # those that we know of, too: what was made a moment ago may not be listed yet
            anew = [one for one in {*there, *self._made.get(region, ())} if one not in asked]
            if anew:
                number = len({*there, *anew})
                self.hooks.step(self._where, f"ending {number} machine{'s' * (number != 1)} in {region}")
                await self._asking.call(self.provider.terminate, region, anew)
                self._books.dismiss(anew)
                asked.update(anew)
            elif not there and not await self._asking.call(
                self.provider.close, region, self.plan.tags.cluster
            ):
                self._made.pop(region, None)
                self._unwanted.clear()
                return
            if time.monotonic() > deadline:
                raise CloudError(
                    f"not all of it was gone within {_GONE:g} s: {', '.join(there) or 'what they shared'}",
                    where=f"{self._where} {region}",
                    hint=f"Look for the tag {CLUSTER}={self.plan.tags.cluster}. Machines end themselves "
                    f"{self.plan.lease:g} s after the last sign of life from here.",
                )
            await asyncio.sleep(0 if anew else self.plan.poll)


def _nowhere(lacking: Sequence[CapacityError], plan: Plan, where: str) -> CapacityError:
    said = "; ".join(dict.fromkeys(error.message for error in lacking))
    machines = f"{plan.count} x {plan.type}{' (spot)' * (plan.spot == 'only')}"
    return CapacityError(
        f"{machines} could not be had anywhere: {said}",
        where=where,
        hint=lacking[-1].hint,
        scope="region",
    )


async def _all(work: Sequence[Any]) -> tuple[Machine, ...]:
    """Wait for all; at the first failure the others are cancelled, and waited for: none makes one more."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return tuple(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _surely(work: Any) -> None:
    """Do it to the end, whoever cancels; the error that led here is the one that is told."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError, CloudError):
            await asyncio.shield(task)
