"""What a command's arguments may be: what makes no sense is said before anything is started.

Those named after an option are click callbacks: they take its context, its parameter and its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from envsync.cli.sides import is_cluster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envsync.errors import EnvsyncError

__all__ = [
    "LIMITS",
    "Destinations",
    "credentials_of",
    "demand_hosts",
    "destinations",
    "limit",
    "lock_or_store",
    "lock_there",
    "lock_to_write",
    "memory_limit",
    "other_store",
    "python_there",
    "scheduler",
    "store_url",
]

LIMITS = ("idle_timeout", "max_lifetime", "client_timeout", "max_cost")
"""The options that `limit` reads."""

_LEAST = 1_000_000  # bytes of memory; less than that is somebody's slip
_AMOUNTS = "a size such as 4GB or 512MiB, a fraction of the memory such as 0.25, auto, or 0 for no limit"


def wrong(error: EnvsyncError, option: str | None = None) -> click.BadParameter:
    """Return the usage error for what an argument cannot be."""
    text = f"{error.message}\n  {error.hint}" if error.hint else error.message
    return click.BadParameter(text, param_hint=option)


def memory_limit(_ctx: object, _parameter: object, value: str | None) -> str | int | float | None:
    """Take a worker's memory limit as `SyncedCluster` does."""
    if value is None or value == "auto":
        return value
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if 0 <= number <= 1:
        return number  # of the host's memory; 0 is no limit
    from dask.utils import parse_bytes

    try:
        amount = int(parse_bytes(value)) if value[:1].isdigit() else -1
    except (ValueError, OverflowError):
        amount = -1
    if amount < 0:
        raise click.BadParameter(f"{value!r} is none of: {_AMOUNTS}.")
    if amount < _LEAST:
        raise click.BadParameter(f"{value!r} is {amount} bytes. Give it a unit, as in 4GB.")
    return amount


def credentials_of(_ctx: object, _parameter: object, value: str | None) -> str | list[str] | None:
    """Take what workers are for clouds as `SyncedCluster` does: a way, or the names of clouds."""
    from envsync.runner.forwarding import WAYS

    return value if value is None or value in WAYS else value.split(",")


def limit(_ctx: object, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no time, or no amount of money."""
    if value is not None and (parameter.name, value) != ("idle_timeout", "never"):
        from envsync.runner.amounts import money, span

        try:
            (money if parameter.name == "max_cost" else span)(value, str(parameter.name))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return value


def lock_there(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a lock that is not there, or that is no lock by its name."""
    if value is not None and not Path(value).is_file():
        raise click.BadParameter(f"there is no lock {value}\n  Make one: envsync snapshot")
    return None if value is None else lock_to_write(ctx, parameter, value)


def lock_or_store(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is neither a lock that is there nor an environment in a store, which is not asked yet."""
    if value is not None and _is_store(value):
        return store_url(ctx, parameter, value)
    return lock_there(ctx, parameter, value)


def lock_to_write(_ctx: object, parameter: click.Parameter, value: str) -> str:
    """Refuse a lock whose name PEP 751 does not allow, or whose folder is not there."""
    if value == parameter.default:
        return value
    from envsync.errors import LockError
    from envsync.lock import lock_path

    try:
        file = lock_path(value)
    except LockError as error:
        raise wrong(error) from error
    if not file.parent.is_dir():
        raise click.BadParameter(f"there is no folder {file.parent}")
    return value


def store_url(_ctx: object, _parameter: object, value: str) -> str:
    """Refuse what cannot be the URL of a store; nothing is asked of it."""
    from envsync.errors import StoreError
    from envsync.stores import open_store

    try:
        scheme = urlsplit(value).scheme
    except ValueError as error:
        raise click.BadParameter(f"that is no URL: {error}") from error
    if scheme in ("", "file", "ssh", "local"):
        try:
            open_store(value)
        except StoreError as error:
            raise wrong(error) from error
        return value
    if scheme in ("s3", "s3a"):  # without fsspec, which takes longer to be imported than all else here
        return value
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise click.BadParameter(
            f"no store has the scheme {scheme}://\n  Stores are file:///folder, s3://bucket/folder, and "
            "other URLs that fsspec knows; hosts are ssh://host."
        )
    return value


def other_store(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse what cannot be the URL of a store, where there need be none."""
    return None if value is None else store_url(None, None, value)


@dataclass(frozen=True)
class Destinations:
    """Where a push goes, each as it was written, none twice."""

    hosts: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


def destinations(_ctx: object, _parameter: object, values: Iterable[str]) -> Destinations:
    """Tell hosts, stores and images apart by how they are written; refuse what can be none.

    A URL with a scheme is a store, but for ``ssh://``; ``oci:FOLDER``, and what has a ``/`` and no scheme,
    is an image; everything else is a host.
    """
    hosts, stores, images = [], [], []
    for value in dict.fromkeys(values):
        if _is_store(value):
            stores.append(store_url(None, None, value))
        elif value.startswith("oci:") or ("/" in value and "://" not in value):
            images.append(value)
        else:
            hosts.append(value)
    if images:
        from envsync.cli.image import demand_images

        demand_images(images)
    if hosts:
        demand_hosts(hosts)
    return Destinations(tuple(hosts), tuple(stores), tuple(images))


def _is_store(text: str) -> bool:
    from envsync.stores import is_store

    return is_store(text)


def python_there(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse an interpreter or environment that is not there."""
    if value is None or (value and Path(value).expanduser().exists()) or ("/" not in value and which(value)):
        return value
    raise click.BadParameter(
        f"there is no {value!r}\n  Name a Python interpreter, or its environment's folder."
    )


def scheduler(_ctx: object, _parameter: object, value: str) -> str:
    """Refuse what cannot be the address of a scheduler."""
    try:
        parts = urlsplit(value)
        complete = is_cluster(value) and bool(parts.hostname and parts.port)
    except ValueError:
        complete = False
    if not complete:
        raise click.BadParameter(f"{value!r} is not a scheduler's address, such as tcp://host:8786")
    return value


def demand_hosts(addresses: Iterable[str], option: str | None = None) -> None:
    """Refuse what cannot be the addresses of hosts; nothing is asked of the network.

    Raises
    ------
    click.BadParameter
        One cannot be.
    """
    from envsync.errors import HostError
    from envsync.runner.hosts import parse_host

    try:
        for address in addresses:
            parse_host(address)
    except HostError as error:
        raise wrong(error, option) from error
