"""Settings of Dask's configuration, without Dask where there are none: it takes a while to be imported."""

from __future__ import annotations

import os
import site
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["configured", "folders"]


def configured(key: str) -> Any:
    """Return one of our settings, None if it is not set.

    Parameters
    ----------
    key : str
        Such as ``"envsync.store"``.
    """
    if "dask.config" not in sys.modules and not _mentioned():
        return None
    import dask.config

    return dask.config.get(key, None)


def folders() -> list[str]:
    """Return where Dask looks for its files: folders, or a file. A test compares this with what Dask says."""
    named = [
        os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"),
        *(os.path.join(prefix, "etc", "dask") for prefix in (sys.prefix, *site.PREFIXES)),  # noqa: PTH118
        os.path.join(os.path.expanduser("~"), ".config", "dask"),  # noqa: PTH111, PTH118
        os.environ.get("DASK_CONFIG", ""),
    ]
    return list(dict.fromkeys(filter(None, named)))


def _mentioned() -> bool:
    """Whether a variable or a file may set anything of ours."""
    variables = [name.lower() for name in os.environ if name.startswith("DASK_")]
    inherited = "dask_internal_inherit_config" in variables
    return inherited or any("envsync" in name for name in variables) or _in_files(tuple(folders()))


@lru_cache  # as Dask reads them once
def _in_files(folders: tuple[str, ...]) -> bool:
    """Whether a file names us; one that cannot be read may."""
    try:
        for folder in map(Path, folders):
            files = [*folder.iterdir()] if folder.is_dir() else [folder]
            if any(b"envsync" in file.read_bytes() for file in files if file.is_file()):
                return True
    except OSError:
        return True
    return False
