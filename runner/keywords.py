"""What the keywords of a `SyncedCluster` may be: anything else is refused before anything is rented."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from distributed.utils import import_term

from envsync.hooks import Hooks
from envsync.runner.amounts import seconds
from envsync.runner.layout import memory_bytes

__all__ = ["demand", "demand_known"]

_ADDRESS = ((str, Integral), "an address, such as ':8787'")
_MAPPING = ((Mapping,), "a dictionary")
_SECONDS = ((Real,), "seconds, a number")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str, Integral), "a name"),
    "store": ((str,), "the URL of a store, such as 's3://bucket/team' or 'file:///folder'"),
    "cwd": ((str, os.PathLike), "a folder"),
    "hooks": ((Hooks,), "an envsync.hooks.Hooks"),
    "host": ((str,), "an address"),
    "protocol": ((str,), "a protocol, such as 'tls'"),
    "interface": ((str,), "a network interface, such as 'eth0'"),
    "scheduler_port": ((Integral,), "a port's number"),
    "dashboard_address": _ADDRESS,
    "worker_dashboard_address": _ADDRESS,
    "memory_limit": ((str, Real), "'auto', an amount such as '4GB', a fraction or None"),
    "start_timeout": _SECONDS,
    "report_timeout": _SECONDS,
    "worker_class": ((type, str), "a class, or its name"),
    "blocked_handlers": ((list, tuple, set, frozenset), "a list of names"),
    "service_kwargs": _MAPPING,
    "scheduler_kwargs": _MAPPING,
    "resources": _MAPPING,
}


def demand(**values: Any) -> None:
    """Refuse what keywords cannot be. None is as if it was not given.

    Parameters
    ----------
    **values
        Keywords of `SyncedCluster`; those that are checked elsewhere are passed over.

    Raises
    ------
    TypeError, ValueError
        One of them, which is named, is of another kind or makes no sense.
    """
    for name, value in values.items():
        if value is None:
            continue
        kinds, what = _KINDS.get(name, ((object,), ""))
        if what and (isinstance(value, bool) or not isinstance(value, kinds)):  # to Python True is a number
            raise TypeError(f"{name} has to be {what}, not {value!r}")
        if name in ("host", "protocol", "interface") and not value.isprintable():
            raise ValueError(f"{name} has to be {what}, not {value!r}")
        if name == "lock":
            _demand_lock(value)
        elif name == "cwd" and not Path(value).is_dir():
            raise ValueError(f"cwd={str(value)!r}: there is no such folder")
        elif name == "memory_limit":
            _demand_memory(value)
        elif name in ("start_timeout", "report_timeout") and not value > 0:
            raise ValueError(f"{name} has to be more than 0 s, not {value!r}")
        elif name == "scheduler_sync_interval":
            seconds(value, name)
        elif name == "silence_logs":
            _demand_level(value)
        elif name == "worker_class" and isinstance(value, str):
            _demand_class(value)


def demand_known(options: Iterable[str], others: Iterable[str]) -> None:
    """Refuse an option that no worker has, as of a misspelt keyword: workers would say it, on their machines.

    Parameters
    ----------
    options : iterable of str
        What is passed on to workers.
    others : iterable of str
        The keywords that are not.

    Raises
    ------
    TypeError
        There is none of that name.
    """
    known = _of_workers()
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, (*others, *known), 1)
            meant = f"did you mean {near[0]}=?" if near else "nor has a worker such an option"
            raise TypeError(f"SyncedCluster has no keyword {name}=: {meant}")


@functools.cache
def _of_workers() -> frozenset[str]:
    """Return what workers under a nanny take."""
    from distributed import Nanny, Worker

    found = {"worker_services"}  # LocalCluster takes it
    for one in (*Nanny.__mro__, *Worker.__mro__):
        if (init := vars(one).get("__init__")) and one is not object:
            found |= set(inspect.signature(init).parameters) - {"self"}
    return frozenset(found)


def _demand_lock(value: Any) -> None:
    from envsync.lock import Lock
    from envsync.stores.pulling import Pulled

    if not isinstance(value, (str, os.PathLike, Lock, Pulled)):
        raise TypeError(
            f"lock has to be a lock, its file, or an environment in a store such as 's3://bucket/team#name', "
            f"not {value!r}"
        )


def _demand_memory(value: Any) -> None:
    try:
        amount = memory_bytes(value, 1 << 40, 1) if value != "" else -1
    except (ArithmeticError, ValueError):
        amount = -1
    if amount < 0:
        raise ValueError(f"memory_limit={value!r} is no amount of memory: write 'auto', '4GB' or 0.25")


def _demand_class(name: str) -> None:
    try:
        import_term(name)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"worker_class={name!r} is not to be had here: {error}") from error


def _demand_level(value: Any) -> None:
    named = isinstance(value, str) and (not value or hasattr(logging, value.upper()))
    if not named and not isinstance(value, int):
        raise ValueError(f"silence_logs has to be a level of logging, such as 'ERROR', not {value!r}")
