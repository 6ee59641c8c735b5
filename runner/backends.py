"""What gives a cluster its hosts: this machine, or machines that answer SSH."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud.costs import Bill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.amounts import Money
    from envsync.runner.hosts.base import Host
    from envsync.runner.limits import Limits
    from envsync.runner.session import Lease

__all__ = ["SSH", "Backend", "Local"]

GRACE = 60.0
"""Seconds of silence after which a host ends what was started there.

Silence is a pulled cable, a laptop that sleeps, or a client whose loop is blocked. A client that ended or was
killed is noticed at once, by the end of its connection.
"""


class Backend(ABC):
    """Names the hosts of a cluster.

    Attributes
    ----------
    cache : str or None
        The cache folder on its hosts; None for the default one.
    grace : float
        Seconds without a sign of life from here after which a host ends what was started there. (That this
        process has ended is noticed at once.)
    local : bool
        Whether all of it is this machine: plain TCP on loopback then, and LocalCluster's layout.
    lease : Lease or None
        What its machines live by, where they are rented.
    rents : bool
        Whether hosts are made for a cluster, one by one: it is a `Cloud`.
    profile : str or None
        The profile of the user's AWS configuration that it goes by; None for the default one.
    instance_identity : str
        What its machines are for their cloud, such as an instance profile; empty if nobody.
    """

    cache: str | None = None
    grace: float = GRACE
    local: bool = False
    lease: Lease | None = None
    rents: bool = False
    profile: str | None = None
    instance_identity: str = ""

    async def acquire(self, *, cluster: str, n_workers: int | None, hooks: Hooks) -> list[Host]:
        """Return the hosts of a cluster, made if they have to be.

        Parameters
        ----------
        cluster : str
            Its name, which is nobody else's.
        n_workers : int or None
            How many workers it begins with; None: as many as fit.
        hooks : Hooks
            Told about progress.
        """
        del cluster, n_workers, hooks
        return self.hosts()

    async def release(self) -> None:  # noqa: B027 - most have nothing to end
        """End what `acquire` has made; silent if that is done. The hosts are closed."""

    def limited(self, limits: Limits) -> Backend:
        """Return the backend of a cluster with limits: what holds on its hosts is taken from them.

        Raises
        ------
        TypeError
            A limit makes no sense here.
        """
        if limits.cost is not None:
            raise TypeError(f"max_cost= is for machines that are rented, and {self} rents none")
        if limits.client is None:
            return self
        changed = copy.copy(self)
        changed.grace = limits.client
        return changed

    async def afford(self, limit: Money, n_workers: int | None) -> tuple[Money, float]:
        """Return a limit in the currency of the prices, and what an hour of a machine costs at most.

        Raises
        ------
        CloudError
            Nobody knows what machines cost, or it is more than the limit.
        """
        raise NotImplementedError

    async def described(self) -> Mapping[str, Any] | None:
        """Return what a record says of it before a cluster begins: fields of `Record`.

        Where machines are rented ``account`` is one of them. None: no record is kept, as it ends with this
        process.
        """
        return None

    async def stands(self) -> dict[str, Any]:
        """Return what of that is otherwise by now."""
        return {}

    @property
    def trouble(self) -> str:
        """What its user has to see to, for as long as that is so; empty if nothing."""
        return ""

    def bill(self) -> Bill:
        """Return what its machines cost; empty where none are rented."""
        return Bill()

    @abstractmethod
    def hosts(self) -> list[Host]:
        """Return new hosts, the scheduler's first."""

    @property
    @abstractmethod
    def workers_on_first(self) -> bool:
        """Whether the scheduler's host runs workers too."""


@dataclass(frozen=True, kw_only=True)
class Local(Backend):
    """The machine that the client runs on, with an environment reproduced in its cache.

    Parameters
    ----------
    cache : str, optional
        The folder; ``$ENVSYNC_CACHE`` or ``~/.cache/envsync`` if not given.
    grace : float
        Seconds that this process may be blocked; when it has ended, its cluster ends at once.
    """

    cache: str | None = None
    grace: float = GRACE
    local: bool = field(default=True, init=False)

    def limited(self, limits: Limits) -> Backend:
        """See `Backend.limited`."""
        if limits.cost is not None or limits.client is None:
            return super().limited(limits)
        return replace(self, grace=limits.client)

    def hosts(self) -> list[Host]:
        """Return this machine."""
        from envsync.runner.hosts.local import Local as LocalHost

        return [LocalHost()]

    @property
    def workers_on_first(self) -> bool:
        """True: there is no other."""
        return True


class SSH(Backend):
    """Machines that answer SSH, reached as the user's own ``ssh`` would reach them.

    Parameters
    ----------
    hosts : sequence of str
        Host names, aliases of ``~/.ssh/config``, ``user@host:port`` or ``ssh://`` addresses. A host that is
        named twice, with ``ssh://`` or without, counts once.
    scheduler : str, optional
        Where the scheduler runs; the first of `hosts` by default, which runs workers too. A host that is not
        one of `hosts` runs nothing else.
    cache : str, optional
        The cache folder on the hosts; ``$ENVSYNC_CACHE`` or ``~/.cache/envsync`` there if not given.
    grace : float
        Seconds without a sign of life from here after which a host ends what was started there. (That this
        process has ended is noticed at once.)
    **options
        How to connect, for all of them: see `envsync.runner.hosts.ssh.SSHOptions`.

    Raises
    ------
    ValueError
        No host is named.
    HostError
        What is named cannot be one.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        scheduler: str | None = None,
        cache: str | None = None,
        grace: float = GRACE,
        **options: Any,
    ) -> None:
        from envsync.runner.hosts import parse_host

        if isinstance(hosts, str):
            hosts = [hosts]
        self.names = tuple(dict.fromkeys(parse_host(name).name for name in hosts))
        if not self.names:
            raise ValueError("SSH needs at least one host, such as SSH(['node1', 'node2'])")
        self.scheduler = parse_host(scheduler).name if scheduler else self.names[0]
        self.cache = cache
        self.grace = grace
        self.options = options

    def __repr__(self) -> str:
        return f"SSH({list(self.names)})"

    async def described(self) -> Mapping[str, Any] | None:
        """Return the hosts. See `Backend.described`."""
        return {"backend": "ssh", "hosts": self.names}

    def hosts(self) -> list[Host]:
        """Return the hosts, not connected yet, the scheduler's first."""
        from envsync.runner.hosts import SSHOptions, parse_host

        options = SSHOptions(**self.options) if self.options else None
        names = dict.fromkeys([self.scheduler, *self.names])
        return [parse_host(name, options) for name in names]

    @property
    def workers_on_first(self) -> bool:
        """Whether the scheduler's host is one of `hosts`."""
        return self.scheduler in self.names
