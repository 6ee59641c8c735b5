"""Exchange the source trees of a running process."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Sequence

__all__ = ["swap"]


def swap(old: Sequence[str], front: Sequence[str], back: Sequence[str]) -> int:
    """Put new folders of source trees in the place of old ones, here and for the children of this process.

    Modules that came from the old folders are forgotten, so that the next import reads the new ones.

    Parameters
    ----------
    old : sequence of str
        Folders that are on the path and go.
    front, back : sequence of str
        Folders that come before and after the installed packages.

    Returns
    -------
    int
        How many modules were forgotten.
    """
    gone = set(old)
    places = [index for index, folder in enumerate(sys.path) if folder in gone]
    first = places[0] if places else min(1, len(sys.path))
    kept = [folder for folder in sys.path if folder not in gone]
    sys.path[:] = [*kept[:first], *front, *kept[first:], *back]
    for name, folders in (("PYTHONPATH", front), ("ENVSYNC_TREES", back)):
        others = [one for one in os.environ.get(name, "").split(os.pathsep) if one and one not in gone]
        os.environ[name] = os.pathsep.join([*folders, *others])
    prefixes = tuple(folder.rstrip(os.sep) + os.sep for folder in gone)
    stale = [
        name
        for name, module in list(sys.modules.items())
        if prefixes and str(getattr(module, "__file__", None) or "").startswith(prefixes)
    ]
    for name in stale:
        del sys.modules[name]
    importlib.invalidate_caches()
    return len(stale)
