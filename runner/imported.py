"""What Dask's processes import when they start: a new environment has no compiled code yet."""

from __future__ import annotations

import functools
import importlib
import sys

__all__ = ["files", "imported"]

_PACKAGES = frozenset(
    (
        *("click", "cloudpickle", "dask", "distributed", "importlib_metadata", "jinja2", "locket"),
        *("markupsafe", "msgpack", "packaging", "psutil", "sortedcontainers", "tblib", "toolz", "tornado"),
        *("urllib3", "yaml", "zict", "zipp"),
    )
)
_LATER = ("dask.array.", "dask.bag.", "dask.dataframe.", "dask.ml.")
"""What takes long, and is imported by tasks; this process may have it all the same."""


@functools.cache
def files() -> dict[str, str]:
    """Return what `import distributed` takes: files by their paths below site-packages, as it does here."""
    importlib.import_module("distributed")
    return {
        name.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py"): file
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in _PACKAGES
        and not f"{name}.".startswith(_LATER)
        and (file := str(getattr(module, "__file__", None))).endswith(".py")
    }


def imported() -> list[str]:
    """Return their paths below site-packages."""
    return [*files()]
