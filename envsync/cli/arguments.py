"""What a command's arguments may be: what makes no sense is said before anything is started.

Those named after an option are click callbacks: they take its context, its parameter and its value.
"""

from __future__ import annotations

from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from envsync.cli.sides import is_cluster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envsync.errors import EnvsyncError

__all__ = ["demand_hosts", "lock_there", "lock_to_write", "memory_limit", "python_there", "scheduler"]

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


def lock_there(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a lock that is not there, or that is no lock by its name."""
    if value is not None and not Path(value).is_file():
        raise click.BadParameter(f"there is no lock {value}\n  Make one: envsync snapshot")
    return None if value is None else lock_to_write(ctx, parameter, value)


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
