"""Our code, sent by value to processes that cannot import it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Mapping, cast

import cloudpickle
from distributed.protocol.pickle import loads

__all__ = ["Carried", "by_value", "other_python"]


def by_value(thing: Any) -> bytes:
    """Pickle something so that it loads where neither this module nor its neighbours can be imported.

    What of our modules it refers to travels with it, whichever they are: where they were themselves carried
    by value, cloudpickle does that unasked.
    """
    package = __name__.rpartition(".")[0] + "."
    own = getattr(thing, "__module__", None)
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [
        module
        for name, module in list(sys.modules.items())
        if (name.startswith(package) or name == own) and name not in known
    ]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cast(bytes, cloudpickle.dumps(thing, protocol=4))
    finally:
        for module in modules:
            with contextlib.suppress(ValueError):  # somebody else was quicker
                cloudpickle.unregister_pickle_by_value(module)


class Carried:
    """Pickles as the function it carries, which needs none of these modules where it is unpickled."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return (loads, (by_value(self._function),))


def other_python(versions: Mapping[str, Any]) -> bool:
    """Tell from what a process registered with whether code that travels by value is of no use there.

    Parameters
    ----------
    versions : mapping
        What ``distributed.versions.get_versions`` says there; nothing is known if it is empty.
    """
    told = str(dict(versions.get("packages") or {}).get("python") or "")
    return bool(told) and told.split(".")[:2] != [str(number) for number in sys.version_info[:2]]
