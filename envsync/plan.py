"""Decides for every installed distribution how a lock can reproduce it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envsync.artifacts import Excluded
from envsync.errors import ResolveError, UnsupportedError

if TYPE_CHECKING:
    from envsync.snapshot import Distribution, Snapshot

__all__ = ["Plan", "from_index", "make_plan", "project_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How each installed distribution is reproduced, by name.

    Attributes
    ----------
    pins : mapping of str to Distribution
        By their version, from an index.
    local : mapping of str to Distribution
        From their installed files, or (compiled editables) from a build.
    trees : mapping of str to Distribution
        As source trees: they are no packages of the lock.
    excluded : tuple of Excluded
        Not at all.
    """

    pins: Mapping[str, Distribution]
    local: Mapping[str, Distribution]
    trees: Mapping[str, Distribution]
    excluded: tuple[Excluded, ...]


def make_plan(snapshot: Snapshot) -> Plan:
    """Sort the distributions that can be imported; those that others hide are no part of the environment.

    Raises
    ------
    UnsupportedError
        There are conda packages, or the interpreter is not a plain CPython.
    ResolveError
        Some distributions cannot be reproduced as they are found: all of them are named.
    """
    implementation = snapshot.interpreter.implementation
    if implementation != "cpython":
        raise UnsupportedError(
            f"this environment is of {implementation}, and this envsync can lock for CPython only",
            where=snapshot.interpreter.prefix,
            hint="Make the environment with CPython.",
        )
    if snapshot.conda:
        names = ", ".join(record.name for record in snapshot.conda[:5])
        raise UnsupportedError(
            f"this environment holds {len(snapshot.conda)} conda packages ({names}, ...), and this envsync"
            " cannot reproduce those yet",
            where=snapshot.interpreter.prefix,
            hint="Make the environment with venv or uv. A lock of its pip part alone would lack packages.",
        )
    abi = snapshot.interpreter.soabi.split("-")[1:2]
    if abi and not abi[0].isdigit():
        raise UnsupportedError(
            f"this is a special build of CPython, free-threaded or debug (its ABI is {abi[0]}), and this"
            " envsync cannot lock for those yet",
            where=snapshot.interpreter.prefix,
            hint="Use a plain build of the same version.",
        )
    pins: dict[str, Distribution] = {}
    local: dict[str, Distribution] = {}
    trees: dict[str, Distribution] = {}
    excluded: list[Excluded] = []
    trouble: list[Distribution] = []
    shipped = {tree.distribution for tree in snapshot.source_trees}
    for distribution in snapshot.distributions:
        name = distribution.name
        if distribution.shadowed_by:
            continue
        if distribution.editable and name in shipped:
            trees[name] = distribution
        elif _is_egg(distribution):
            reason = distribution.trouble or "a legacy egg: it has no list of its files"
            excluded.append(Excluded(name=name, version=distribution.version, reason=reason))
        elif distribution.trouble:
            trouble.append(distribution)
        elif from_index(distribution):
            pins[name] = distribution
        else:
            local[name] = distribution
    if trouble:
        lines = "\n".join(f"  {one.name} {one.version}: {one.trouble}" for one in trouble)
        raise ResolveError(
            f"what is installed cannot be reproduced:\n{lines}",
            where=snapshot.interpreter.prefix,
            hint="Reinstall these packages, or uninstall them.",
        )
    return Plan(pins=pins, local=local, trees=trees, excluded=tuple(excluded))


def project_folder(distribution: Distribution) -> Path:
    """Return the folder of an editable project.

    Raises
    ------
    ResolveError
        Nothing says which it is.
    """
    direct = distribution.direct_url
    parts = urlsplit(direct.url if direct is not None else "")
    if parts.scheme != "file":
        raise ResolveError(
            f"{distribution.name} {distribution.version} is installed editable, and nothing says from where",
            hint="Install it again: python -m pip install -e <its folder>",
        )
    return Path(unquote(parts.path))


def from_index(distribution: Distribution) -> bool:
    """Whether a distribution is what an index has, so that its version says what it is."""
    made_here = distribution.editable or distribution.direct_url is not None or _built_here(distribution)
    return not made_here


def _is_egg(distribution: Distribution) -> bool:
    legacy = distribution.location.endswith((".egg", ".egg-info", "EGG-INFO", ".egg-link"))
    return legacy and not distribution.editable


def _built_here(distribution: Distribution) -> bool:
    """Whether its tags are those of a wheel that was compiled on this machine: no index has these bytes."""
    return bool(distribution.tags) and all("-linux_" in tag for tag in distribution.tags)
