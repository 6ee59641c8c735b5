"""The machines of one cluster: all of them up and known, or none of them left.

`Rented.start` makes them, waits until they have booted, and learns their host keys from their consoles, so
that the first connection is verified. Whatever goes wrong, and whoever cancels, what was made is ended,
looked for by its tag and not by memory alone. If even that cannot be done, the machines end themselves when
their leases are over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import asyncssh

from envsync.agent.owner import write_owner
from envsync.errors import BootError, CapacityError, CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud.costs import Bill, Hired
from envsync.runner.cloud.prices import Prices
from envsync.runner.cloud.provider import CLUSTER, MachineRequest, Tags
from envsync.runner.cloud.userdata import USER, host_keys, user_data
from envsync.scratch import sweep_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from envsync.runner.cloud.provider import Machine, Market, Provider, Shared

__all__ = ["HostKeys", "Plan", "Rented", "Spot"]

Spot = Literal["never", "prefer", "only"]
HostKeys = Literal["console", "first"]
T = TypeVar("T")

_MARKETS: dict[Spot, tuple[Market, ...]] = {
    "never": ("on-demand",),
    "prefer": ("spot", "on-demand"),
    "only": ("spot",),
}
_PREFIX = "envsync-cloud-"
_POLL = 2.0  # seconds between two looks at machines that boot, or end
_GONE = 300.0  # seconds that machines may take to be gone, and what they shared to be removable
_AT_ONCE = 32  # calls: all machines of a usual cluster are asked for at the same time
_ANSWER = 10.0  # seconds that an sshd has to answer before it is asked again
_TAIL = 30  # lines of a console
_TRIES = 2  # machines that are booted for one that is wanted: the second is its replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to rent.

    Attributes
    ----------
    type : str
        Of the machines, such as ``"m7i.large"``.
    count : int
        How many.
    tags : Tags
        Whose they are.
    spot : {"never", "prefer", "only"}
        ``"prefer"`` takes others where no spot machine is to be had.
    disk : int
        GiB of each root disk; 0 for the image's own size.
    lease : float
        Seconds after the last sign of life from here at which a machine ends itself.
    life : float or None
        Seconds from boot after which it does so anyhow.
    boot : float
        Seconds that a machine has to come up, and to be known.
    commands : tuple of str
        Shell commands that each runs when it boots.
    private : bool
        Whether machines are reached by their private addresses.
    host_keys : {"console", "first"}
        What the first connection is verified with: what the machine says on its console, or nothing.
    """

    type: str
    count: int
    tags: Tags
    spot: Spot = "never"
    disk: int = 0
    lease: float = 120.0
    life: float | None = None
    boot: float = 300.0
    commands: tuple[str, ...] = ()
    private: bool = False
    host_keys: HostKeys = "console"
    poll: float = field(default=_POLL, repr=False)

    @property
    def markets(self) -> tuple[Market, ...]:
        """What to try, in this order."""
        return _MARKETS[self.spot]


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
        Those that are up.
    config : Path
        ssh's configuration for them, each by its id: ``ssh -F config i-0123``. Gone when they are.
    """

    def __init__(self, provider: Provider, plan: Plan, hooks: Hooks | None = None) -> None:
        self.provider = provider
        self.plan = plan
        self.hooks = hooks or Hooks()
        self.machines: tuple[Machine, ...] = ()
        self._where = f"{provider.name} {plan.tags.cluster}"
        self._made: dict[str, set[str]] = {}
        self._asking: dict[str, asyncio.Future[tuple[Machine, ...]]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="envsync-cloud")
        self._hired: dict[str, Hired] = {}
        self._prices = Prices(provider, self._threads, hooks=self.hooks)
        self._run = secrets.token_hex(4)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="envsync")
        self._public = key.export_public_key().decode().strip()
        sweep_temporary(_PREFIX)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        write_owner(self._folder)  # before there is a key in it
        self.config, self._known, self.key = (self._folder / one for one in ("config", "known_hosts", "key"))
        self.key.touch(mode=0o600)
        self.key.write_bytes(key.export_private_key())

    async def start(self) -> tuple[Machine, ...]:
        """Have the machines up.

        Raises
        ------
        CapacityError
            No region has as many.
        BootError
            One did not come up, nor did its replacement.
        CloudError
            The cloud refused.
        """
        try:
            self._warn()
            lacking: list[CapacityError] = []
            for region in self.provider.regions:
                try:
                    self.machines = await self._start_in(region)
                    break
                except CapacityError as error:
                    lacking.append(error)
                    self.hooks.note(self._where, f"not in {region}: {error.message}")
                    await self._end_in(region)
            else:
                raise _nowhere(lacking, self.plan, self._where)
            await asyncio.to_thread(self._introduce)
        except BaseException:
            # a start that is cancelled ends what it made all the same
            await _surely(self.close())
            raise
        return self.machines

    async def close(self) -> None:
        """End the machines, wait until they are gone, and remove what they shared; silent if that is done.

        Raises
        ------
        CloudError
            Something could not be ended. The machines end themselves when their leases are over.
        """
        failed: list[CloudError] = []
        for region in list(self._made):
            try:
                await self._end_in(region)
            except CloudError as error:  # noqa: PERF203 - of few
                failed.append(error)
        self.machines = ()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if self._hired:
            self.hooks.note(self._where, self.bill().summary(time.time()))
        self._threads.shutdown(wait=False)
        if failed:
            raise failed[0]

    def bill(self) -> Bill:
        """Return what its machines cost, those that have ended too. A price may come later."""
        return Bill(tuple(self._prices.priced(one) for one in self._hired.values()))

    def _hire(self, machine: Machine, shared: Shared) -> None:
        """Count a machine from now on."""
        self._made[shared.region].add(machine.id)
        if machine.id not in self._hired:
            known = {key: getattr(machine, key) for key in ("id", "region", "zone", "type", "market")}
            self._hired[machine.id] = hired = Hired(**known, begun=time.time())
            self._prices.ask(hired, shared, self.plan.disk)

    def _dismiss(self, ids: Iterable[str]) -> None:
        """Count machines no longer: they have ended, or begun to."""
        now = time.time()
        for one in ids:
            if one in self._hired and self._hired[one].ended is None:
                self._hired[one] = replace(self._hired[one], ended=now)

    async def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call it in a thread. Whoever cancels waits for its end: what it makes is then known to be there."""
        task = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    # -- making

    async def _start_in(self, region: str) -> tuple[Machine, ...]:
        plan = self.plan
        zones = await self._call(self.provider.zones, region, plan.type)
        if not zones:
            raise CapacityError(
                f"{region} has no {plan.type} in the zones that were asked for",
                where=self._where,
                hint="Is the type's name right? Name other zones or regions.",
                scope="region",
            )
        self.hooks.step(self._where, f"renting {plan.count} x {plan.type} in {region}")
        self._made[region] = set()  # before anything is made: from now on it is looked for there
        shared = await self._call(self.provider.open, region, plan.type, plan.tags, self._public)
        return await _all([self._one(shared, zones, number) for number in range(plan.count)])

    async def _one(self, shared: Shared, zones: Sequence[str], number: int) -> Machine:
        """Have one machine up: if it does not come up it is replaced, and then given up."""
        for attempt in range(_TRIES):
            made = await self._make(shared, zones, f"{number}.{attempt}")
            try:
                return await self._await_boot(made)
            except BootError as error:
                await self._call(self.provider.terminate, shared.region, [made.id])
                self._dismiss([made.id])
                if attempt + 1 == _TRIES:
                    raise
                self.hooks.warning(self._where, f"{error.message}: another is made in its place")
        raise AssertionError

    async def _make(self, shared: Shared, zones: Sequence[str], number: str) -> Machine:
        plan = self.plan
        data = user_data(self._public, first=plan.boot + plan.lease, life=plan.life, more=plan.commands)
        lacking: list[CapacityError] = []
        for market in plan.markets:
            for zone in zones:
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
                )
                try:
                    made = await self._call(self.provider.create, request)
                    self._hire(made, shared)
                    return made
                except CapacityError as error:
                    lacking.append(error)
                    if error.scope == "region":
                        break
        raise lacking[-1]

    async def _await_boot(self, made: Machine) -> Machine:
        """Wait until a machine runs and has said its host keys."""
        deadline = time.monotonic() + self.plan.boot
        console = ""
        while True:
            found = {one.id: one for one in await self._describe(made.region)}
            now = found.get(made.id, made)
            if now.state in ("stopped", "ending", "ended"):
                raise BootError(
                    f"{made.id} ended while it was booting: {now.reason or now.state}",
                    where=self._where,
                    hint="Its console may say why.",
                    tail=_tail(await self._console(made) or console),
                )
            if now.state == "running" and _address(now, self.plan):
                keys, console = await self._host_keys(now)
                if keys:
                    self._know(now, keys)
                    self.hooks.note(self._where, f"{now.id} is up in {now.zone}, {now.market}")
                    return now
            if time.monotonic() > deadline:
                raise BootError(
                    f"{made.id} was not up, or did not say its host keys, within {self.plan.boot:g} s",
                    where=self._where,
                    hint="The image needs systemd and cloud-init; boot_timeout= gives it longer.",
                    tail=_tail(console),
                )
            await asyncio.sleep(self.plan.poll)

    async def _describe(self, region: str) -> tuple[Machine, ...]:
        """Describe the machines, once however many ask at the same time."""
        asking = self._asking.get(region)
        if asking is None:
            asking = asyncio.ensure_future(self._call(self.provider.describe, region, self.plan.tags.cluster))
            self._asking[region] = asking
            asking.add_done_callback(lambda _: self._asking.pop(region, None))
        return await asyncio.shield(asking)

    # -- knowing

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

    async def _console(self, machine: Machine) -> str:
        if not self.provider.has_console:
            return ""
        return await self._call(self.provider.console, machine.region, machine.id)

    async def _host_keys(self, machine: Machine) -> tuple[Sequence[str], str]:
        """Return a machine's host keys, none if it is not that far yet, and its console."""
        console = await self._console(machine)
        if self.plan.host_keys != "first":
            return host_keys(console), console
        try:
            asking = asyncssh.get_server_host_key(
                _address(machine, self.plan), 22, server_host_key_algs=["ssh-ed25519"], config=None
            )
            key = await asyncio.wait_for(asking, _ANSWER)
        except (OSError, asyncssh.Error, asyncio.TimeoutError):
            return (), console
        return ([key.export_public_key().decode().strip()] if key is not None else ()), console

    def _know(self, machine: Machine, keys: Sequence[str]) -> None:
        with self._known.open("a") as file:
            file.writelines(f"{machine.id} {key}\n" for key in keys)

    def _introduce(self) -> None:
        """Write ssh's configuration: the cluster's key, and the host keys that machines have said."""
        lines = []
        for machine in self.machines:
            lines += [
                f"Host {machine.id}",
                f"  HostName {_address(machine, self.plan)}",
                f"  HostKeyAlias {machine.id}",
                f"  User {USER}",
                f"  IdentityFile {self.key}",
                "  IdentitiesOnly yes",
                "  IdentityAgent none",
                f"  UserKnownHostsFile {self._known}",
                "  GlobalKnownHostsFile /dev/null",
                "",
            ]
        self.config.write_text("\n".join(lines))

    # -- ending

    async def _end_in(self, region: str) -> None:
        """End all that has the cluster's tag in a region, and wait until it is gone."""
        if region not in self._made:
            return
        deadline = time.monotonic() + _GONE
        asked: set[str] = set()
        while True:
            found = await self._call(self.provider.describe, region, self.plan.tags.cluster)
            there = [one.id for one in found if one.state != "ended"]
            # those that we know of, too: what was made a moment ago may not be listed yet
            anew = [one for one in {*there, *self._made.get(region, ())} if one not in asked]
            if anew:
                self.hooks.step(self._where, f"ending {len(anew)} machines in {region}")
                await self._call(self.provider.terminate, region, anew)
                self._dismiss(anew)
                asked.update(anew)
            elif not there and not await self._call(self.provider.close, region, self.plan.tags.cluster):
                self._made.pop(region, None)
                return
            if time.monotonic() > deadline:
                raise CloudError(
                    f"not all of it was gone within {_GONE:g} s: {', '.join(there) or 'what they shared'}",
                    where=f"{self._where} {region}",
                    hint=f"Look for the tag {CLUSTER}={self.plan.tags.cluster}. Machines end themselves "
                    f"{self.plan.lease:g} s after the last sign of life from here.",
                )
            await asyncio.sleep(0 if anew else self.plan.poll)


def _address(machine: Machine, plan: Plan) -> str:
    return machine.private_address if plan.private else machine.public_address


def _tail(console: str) -> tuple[str, ...]:
    lines = [line.rstrip() for line in console.splitlines()]
    return tuple([line for line in lines if line][-_TAIL:])


def _nowhere(lacking: Sequence[CapacityError], plan: Plan, where: str) -> CapacityError:
    said = "; ".join(dict.fromkeys(error.message for error in lacking))
    return CapacityError(
        f"{plan.count} x {plan.type} ({plan.spot} spot) could not be had anywhere: {said}",
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
