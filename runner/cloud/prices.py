"""What the machines of a cluster cost: asked once for each kind and place, while something else goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import dask.config

from envsync.errors import CloudError, ConfigurationError
from envsync.runner.cloud.costs import listed_price

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from concurrent.futures import Executor, Future

    from envsync.hooks import Hooks
    from envsync.runner.cloud.costs import Hired
    from envsync.runner.cloud.provider import Market, Price, Provider, Shared

__all__ = ["Prices", "price_of", "what_it_costs"]


class Prices:
    """Prices by type, zone and market. The user's own table comes first: he has his reasons.

    Parameters
    ----------
    provider : Provider
        Who is asked.
    threads : Executor
        In which.
    hooks : Hooks
        Told of a table that makes no sense.
    """

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
                    hint=f"Write it below envsync: cloud: prices: {provider.name}: in Dask's configuration, "
                    "or leave max_cost out.",
                )
            found.append(price)
    return tuple(found)


def _known(asked: Future[Price | None] | None) -> Price | None:
    """Return the answer, None while there is none: what is not known is no reason to end anything."""
    if asked is None or not asked.done() or asked.exception() is not None:
        return None
    return asked.result()
