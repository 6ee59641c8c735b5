"""Backends whose hosts are rented: machines that are made for a cluster, and end with it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from envsync.errors import BootError, CloudError, ClusterError
from envsync.runner.amounts import span
from envsync.runner.backends import GRACE, Backend
from envsync.runner.cloud import given
from envsync.runner.cloud.costs import Bill
from envsync.runner.cloud.plan import MARKETS
from envsync.runner.cloud.prices import what_it_costs
from envsync.runner.cloud.provider import Tags
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.cloud.userdata import LEASE
from envsync.runner.groups import groups_of
from envsync.runner.limits import affordable
from envsync.runner.records import owner
from envsync.runner.session import Lease

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.amounts import Money
    from envsync.runner.cloud.offering import Offer
    from envsync.runner.cloud.provider import Expected, Machine, Provider
    from envsync.runner.cloud.renting import HostKeys, Spot
    from envsync.runner.groups import Group
    from envsync.runner.hosts.base import Host
    from envsync.runner.limits import Limits

__all__ = ["Cloud", "open_account"]

_PATIENCE = 3.0  # times the client's timeout, after which a record that is not moved on is of a dead client
_LAST_HOPE = 1.5  # of the time after which agents give up: machines live a little longer than what runs there


class Cloud(Backend):
    """Machines that are rented for one cluster at a time.

    The first runs the scheduler, and workers as the others do; it stays for as long as the cluster does. The
    others come and go as the cluster is scaled. Each ends itself, and is gone for good, when it has not heard
    from here for a while: whatever becomes of this process, none goes on.

    Parameters
    ----------
    type : str
        Of the machines.
    spot : {"never", "prefer", "only"}
        Whether they may be cheaper ones, which can be taken back; ``"prefer"``: others if there are none. The
        scheduler's machine is one with ``"only"`` alone.
    disk : int, float or str, optional
        The size of each root disk, such as ``"100 GB"``; the image's own if not given.
    workers_per_machine : int
        How many workers each machine runs; `n_workers` and `scale` are rounded up to whole machines.
    client_timeout : float or str
        How long without a sign of life from here until each machine ends itself: ``"2 min"``, or seconds.
    max_lifetime : float or str, optional
        How long each machine may live at most, as ``"8 h"``.
    boot_timeout : float or str
        How long each has to come up before it is replaced, and its replacement before the start is given up.
    commands : str or sequence of str
        Shell commands that each machine runs when it boots. They can be read there: no secrets.
    private : bool
        Whether machines are reached by their private addresses, over a VPN or from within the network.
    host_keys : {"console", "first"}
        How the first connection to a machine is verified: by what the machine has said on its console, which
        only the account reads. Some clouds show no console: ``"first"`` trusts whoever answers first there.
    tags : mapping of str to str, optional
        More tags of everything that is made.
    cache : str, optional
        The cache folder on the machines.

    Raises
    ------
    ValueError
        A number or a word makes no sense.
    """

    rents = True
    where = "region"
    """The keyword that says where."""
    anywhere: tuple[str, ...] = ()
    """Where to begin to look if no record says it: nothing is made there. Its own configuration if empty."""
    passes_on = True
    """Whether machines take what they lack from the scheduler's, in the cloud's own network."""

    def __init__(
        self,
        type: str,  # noqa: A002 - what everybody calls it
        *,
        spot: Spot = "never",
        disk: str | float | None = None,
        workers_per_machine: int = 1,
        client_timeout: float | str = "2 min",
        max_lifetime: float | str | None = None,
        boot_timeout: float | str = "5 min",
        commands: str | Sequence[str] = (),
        private: bool = False,
        host_keys: HostKeys = "console",
        tags: Mapping[str, str] | None = None,
        cache: str | None = None,
    ) -> None:
        if spot not in ("never", "prefer", "only"):
            raise ValueError(f"spot must be 'never', 'prefer' or 'only', not {spot!r}")
        if host_keys not in ("console", "first"):
            raise ValueError(f"host_keys must be 'console' or 'first', not {host_keys!r}")
        if isinstance(workers_per_machine, bool) or not isinstance(workers_per_machine, int):
            raise ValueError(f"workers_per_machine has to be a whole number, not {workers_per_machine!r}")
        if workers_per_machine < 1:
            raise ValueError(f"workers_per_machine must be at least 1, not {workers_per_machine}")
        self.type = given.text(type, "type", needed=True)
        self.spot: Spot = spot
        self.disk = given.disk(disk)
        self.workers_per_machine = workers_per_machine
        self.max_lifetime = None if max_lifetime is None else span(max_lifetime, "max_lifetime")
        self.boot_timeout = span(boot_timeout, "boot_timeout")
        self.commands = given.commands(commands)
        self.private = given.flag(private, "private")
        self.host_keys: HostKeys = host_keys
        self.tags = given.tags(tags)
        self.cache = given.text(cache, "cache") or None
        self.groups = groups_of({"workers_per_job": workers_per_machine})
        self._live_by(given.lease(client_timeout))
        self._affordable: float | None = None
        self._provider: Provider | None = None
        self._rented: Rented | None = None
        self._releasing: asyncio.Future[None] | None = None
        self._bill = Bill()

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.type!r})"

    def _live_by(self, seconds: float) -> None:
        self.client_timeout = seconds
        self.lease = Lease(path=LEASE, seconds=seconds)
        self.grace = min(GRACE, seconds / _LAST_HOPE)

    def limited(self, limits: Limits) -> Backend:
        """Take a cluster's limits in place of its own: it is one cluster's. See `Backend.limited`."""
        if limits.client is not None:
            self._live_by(given.lease(limits.client))
        if limits.life is not None:
            self.max_lifetime = limits.life
        return self

    def _count(self, n_workers: int | None) -> int:
        return max(1, math.ceil((n_workers or 1) / self.workers_per_machine))

    async def afford(self, limit: Money, n_workers: int | None) -> tuple[Money, float]:
        """See `Backend.afford`."""
        if self._provider is None:
            self._provider = await asyncio.to_thread(self.provider)
        prices = await asyncio.to_thread(what_it_costs, self._provider, self.type, MARKETS[self.spot])
        found, dearest = affordable(limit, prices, self._count(n_workers))
        if dearest:  # one machine alone would have cost it all by then
            self._affordable = found.amount / dearest * 3600
        return found, dearest

    @abstractmethod
    def provider(self) -> Provider:
        """Return the cloud, as the user's account has it."""

    @classmethod
    def reopen(cls, account: Mapping[str, Any], regions: Sequence[str]) -> Provider:
        """Return the cloud of a record: see `account`. Nothing is made with it but an end."""
        keywords: dict[str, Any] = {**account, cls.where: tuple(regions) or cls.anywhere}
        return cls("any", **keywords).provider()

    @property
    def kind(self) -> str:
        """What records call it: the class's name, in small letters."""
        return type(self).__name__.lower()

    @property
    def account(self) -> Mapping[str, Any]:
        """The keywords with which others find the same account: plain values, and no credentials."""
        return {}

    async def described(self) -> Mapping[str, Any] | None:
        """Return what it takes to find its machines again. See `Backend.described`."""
        self._provider = await asyncio.to_thread(self.provider)
        return {
            "backend": self.kind,
            "account": {key: value for key, value in self.account.items() if value is not None},
            "regions": self._provider.regions,
            "spec": {"type": self.type, "spot": self.spot},
            "patience": _PATIENCE * self.client_timeout,
        }

    async def stands(self) -> dict[str, Any]:
        """Return machines and costs. See `Backend.stands`."""
        hosts = tuple(one.id for one in self.machines)
        found: dict[str, Any] = {"bill": self.bill(), "hosts": hosts, "trouble": self.trouble}
        if self._rented is not None:
            found["deadline"] = self._rented.plan.tags.deadline
        return found

    @property
    def trouble(self) -> str:
        """What may end its machines while they work. See `Backend.trouble`."""
        return self._rented.trouble if self._rented is not None else ""

    def bill(self) -> Bill:
        """Return what its machines cost, or have cost. See `Backend.bill`."""
        return self._rented.bill() if self._rented is not None else self._bill

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The machines that are rented now, the scheduler's first."""
        return self._rented.machines if self._rented is not None else ()

    def offer(self, n_workers: int | None) -> Offer:
        """Ask what a cluster of so many workers would be rented as.

        Raises
        ------
        CloudError
            The cloud refused to say, or has no such machine.
        """
        from envsync.runner.cloud.offering import offer

        return offer(self.provider(), self.type, self._count(n_workers), self.spot)

    async def acquire(self, *, cluster: str, n_workers: int | None, hooks: Hooks) -> list[Host]:
        """Have all machines made, and return the scheduler's when it is up. See `Backend.acquire`."""
        if self._rented is not None:
            raise ClusterError(
                "its machines are rented for another cluster",
                where=repr(self),
                hint="Make one for each cluster.",
            )
        deadline = ""
        if self.max_lifetime is not None:
            at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=self.max_lifetime)
            deadline = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        expected = await self.expected()
        plan = Plan(
            type=self.type,
            count=self._count(n_workers),
            tags=Tags(cluster=cluster, owner=owner(), deadline=deadline, more=tuple(self.tags.items())),
            spot=self.spot,
            disk=self.disk or (expected.disk if expected is not None else 0),
            lease=self.client_timeout,
            life=min([one for one in (self.max_lifetime, self._affordable) if one is not None], default=None),
            boot=self.boot_timeout,
            commands=self.commands,
            private=self.private,
            host_keys=self.host_keys,
        )
        assert self._provider is not None
        self._rented = rented = Rented(self._provider, plan, hooks)
        try:
            host = self.host(await rented.start())
            try:
                await self.finished(host)
            except BaseException:
                await host.close()
                await rented.close()
                raise
        except BaseException:
            self._rented, self._bill = None, rented.bill()
            raise
        return [host]

    async def finished(self, host: Host) -> None:
        """Wait until a machine has run the user's commands.

        Raises
        ------
        BootError
            One of them failed.
        """
        if not self.commands:
            return
        # it has said all that it has to say when the console has it
        done = await host.run("cloud-init status --wait --long", check=False, timeout=self.boot_timeout)
        said = done.stdout.decode(errors="replace")
        if "status: done" not in said:
            raise BootError(
                f"cloud-init failed there: {' '.join(said.split()) or 'it says nothing'}",
                where=host.name,
                hint="Its console, and /var/log/cloud-init-output.log there, say which of commands= failed.",
                tail=await self._what_it_wrote(host),
            )

    async def _what_it_wrote(self, host: Host) -> tuple[str, ...]:
        """Return the end of cloud-init's log; of the console, which comes late, if that is not to be read."""
        log = await host.run("tail -n 30 /var/log/cloud-init-output.log", check=False, timeout=30)
        lines = tuple(line for line in log.stdout.decode(errors="replace").splitlines() if line.strip())
        if lines or self._rented is None:
            return lines
        return await self._rented.tail(host.name)

    async def expected(self) -> Expected | None:
        """Return what its machines will be, as far as the cloud tells before there are any."""
        if self._provider is None:
            self._provider = await asyncio.to_thread(self.provider)  # an SDK takes a second
        for region in self._provider.regions:
            # what is wrong with a region is said when something is made there
            with contextlib.suppress(CloudError):
                return await asyncio.to_thread(self._provider.expected, region, self.type)
        return None

    async def release(self) -> None:
        """End the machines; silent if there are none. Who comes second waits too. See `Backend.release`."""
        rented, self._rented = self._rented, None
        if rented is not None:
            self._releasing = asyncio.ensure_future(self._end(rented))
        if self._releasing is not None:
            await asyncio.shield(self._releasing)  # who gives up waiting does not keep them

    async def _end(self, rented: Rented) -> None:
        try:
            await rented.close()
        finally:
            self._bill = rented.bill()

    def hosts(self) -> list[Host]:
        """Return the machines that are up, not connected yet."""
        return [self.host(machine) for machine in self.machines]

    def host(self, machine: Machine) -> Host:
        """Return a machine that is up, not connected yet."""
        from envsync.runner.hosts import SSHOptions, parse_host

        assert self._rented is not None
        return parse_host(machine.id, SSHOptions(config=(self._rented.config,), ephemeral=True))

    @property
    def rented(self) -> Rented:
        """What is rented for the cluster that has it."""
        assert self._rented is not None
        return self._rented

    @property
    def group(self) -> Group:
        """What a machine is to a cluster: some workers."""
        return self.groups[""]

    @property
    def workers_on_first(self) -> bool:
        """True: the scheduler needs little."""
        return True


def open_account(kind: str, account: Mapping[str, Any], regions: Sequence[str] = ()) -> Provider:
    """Return a cloud by what a record says of it.

    Parameters
    ----------
    kind : str
        `Cloud.kind`.
    account : mapping
        `Cloud.account`.
    regions : sequence of str
        Where; what the account's configuration says if there are none.

    Raises
    ------
    CloudError
        This envsync knows no such cloud, its library is not installed, or the account is not configured here.
    """
    from envsync import runner

    if kind not in runner.CLOUDS:
        raise CloudError(f"this envsync knows no cloud {kind!r}", hint="Is a newer one needed?")
    cloud: type[Cloud] = getattr(runner, runner.CLOUDS[kind])
    try:
        return cloud.reopen(account, regions)
    except (TypeError, ValueError) as error:  # a word of another cloud's, such as EC2's profile
        why = f": {error}" if isinstance(error, ValueError) else ""
        raise CloudError(
            f"no account of {kind} is found by {', '.join(sorted(map(str, account))) or 'what is said'}{why}",
            where=kind,
            hint=f"Leave --profile out: {kind} says in its own way whose account it is. If a record says so, "
            "a newer envsync may know it.",
        ) from error
