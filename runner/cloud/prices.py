"""What the machines of a cluster cost, from when each is made until it ends.

Prices are asked for once for each kind and place, while something else goes on.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import dask.config

from envsync.errors import CloudError, ConfigurationError
from envsync.runner.cloud.costs import Bill, Hired, listed_price

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from concurrent.futures import Executor, Future

    from envsync.hooks import Hooks
    from envsync.runner.cloud.provider import Machine, Market, Price, Provider, Shared

__all__ = ["Books", "price_of", "what_it_costs"]


class Books:
    """Who was hired, when, and for how much.

    Parameters
    ----------
    provider : Provider
        Who is asked for prices.
    threads : Executor
        In which.
    hooks : Hooks
        Told of a table of the user's that makes no sense.
    """

    def __init__(self, provider: Provider, threads: Executor, *, hooks: Hooks) -> None:
        self._prices = _Prices(provider, threads, hooks=hooks)
        self._hired: dict[str, Hired] = {}

    def hire(self, machine: Machine, shared: Shared, disk: int) -> None:
        """Count a machine from now on, with its root disk of so many GiB; once."""
        if machine.id not in self._hired:
            known = {key: getattr(machine, key) for key in ("id", "region", "zone", "type", "market")}
            self._hired[machine.id] = hired = Hired(**known, begun=time.time())
            self._prices.ask(hired, shared, disk)

    def dismiss(self, ids: Iterable[str]) -> None:
        """Count machines no longer: they have ended, or begun to."""
        now = time.time()
        for one in ids:
            if one in self._hired and self._hired[one].ended is None:
                self._hired[one] = replace(self._hired[one], ended=now)

    def there(self) -> dict[str, list[str]]:
        """Return those that are counted now, by region."""
        found: dict[str, list[str]] = {}
        for one in self._hired.values():
            if one.ended is None:
                found.setdefault(one.region, []).append(one.id)
        return found

    def bill(self) -> Bill:
        """Return what they cost, those that have ended too. A price may come later."""
        return Bill(tuple(self._prices.priced(one) for one in self._hired.values()))


class _Prices:
    """Prices by type, zone and market. The user's own table comes first: he has his reasons."""

    def __init__(self, provider: Provider, threads: Executor, *, hooks: Hooks) -> None:
        self._provider = provider
        self._threads = threads
        self._hooks = hooks
        self._table = dask.config.get("envsync.cloud.prices", None)
        self._asked: dict[Hashable, Future[Price | None]] = {}
        self._disks: dict[str, Future[Price | None]] = {}
        self._told = False

    def ask(self, hired: Hired, shared: Shared, disk: int) -> None:
        """Have it found out what a machine costs, and its root disk of so many GiB."""
        self._ask(self._key(hired), lambda: self._machine(hired))
        key = (shared.region, shared.image, disk)
        self._disks[hired.id] = self._ask(key, lambda: self._provider.disk_price(shared, disk))

    def priced(self, hired: Hired) -> Hired:
        """Return a machine with its prices, as far as they are known by now."""
        return replace(
            hired, price=_known(self._asked.get(self._key(hired))), disk=_known(self._disks.get(hired.id))
        )

    def _machine(self, hired: Hired) -> Price | None:
        try:
            mine = listed_price(self._table, self._provider.name, hired.region, hired.type, hired.market)
        except ConfigurationError as error:
            mine = None
            if not self._told:
                self._told = True
                self._hooks.warning("here", f"{error.where}: {error.message}. {error.hint}")
        return mine or self._provider.price(hired.region, hired.type, hired.market, hired.zone)

    def _ask(self, key: Hashable, ask: Callable[[], Price | None]) -> Future[Price | None]:
        if key not in self._asked:
            self._asked[key] = self._threads.submit(ask)
        return self._asked[key]

    @staticmethod
    def _key(hired: Hired) -> Hashable:
        return (hired.region, hired.zone, hired.type, hired.market)


def price_of(
    provider: Provider, region: str, machine_type: str, market: Market, zone: str = ""
) -> Price | None:
    """Return what an hour of a machine costs, by the user's own table first; None if nobody says.

    Raises
    ------
    CloudError
        The cloud refused to say.
    ConfigurationError
        The user's table makes no sense.
    """
    table = dask.config.get("envsync.cloud.prices", None)
    mine = listed_price(table, provider.name, region, machine_type, market)
    return mine or provider.price(region, machine_type, market, zone)


def what_it_costs(provider: Provider, machine_type: str, markets: Sequence[Market]) -> tuple[Price, ...]:
    """Return what an hour of a machine costs wherever it may be rented, by the user's own table first.

    Raises
    ------
    CloudError
        Nobody knows one of the prices.
    ConfigurationError
        The user's table makes no sense.
    """
    found = []
    for region in provider.regions:
        for market in markets:
            price = price_of(provider, region, machine_type, market)
            if price is None:
                raise CloudError(
                    f"max_cost needs prices, and nobody tells what {machine_type} ({market}) costs",
                    where=f"{provider.name} {region}",
                    hint="Is there a network, and may this account ask for prices? Or write it below envsync:"
                    f" cloud: prices: {provider.name}: in Dask's configuration, or leave max_cost out.",
                )
            found.append(price)
    return tuple(found)


def _known(asked: Future[Price | None] | None) -> Price | None:
    """Return the answer, None while there is none: what is not known is no reason to end anything."""
    if asked is None or not asked.done() or asked.exception() is not None:
        return None
    return asked.result()
