"""Hosts on which the environment is, and what every process on them should find."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envsync.trees import code_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envsync.lock import Lock
    from envsync.runner.containers import Container
    from envsync.runner.provision import Prepared
    from envsync.runner.session import Session
    from envsync.trees import Manifest

__all__ = ["Place", "variant_of", "wanted_of", "with_variant"]


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """A host with the environment on it.

    Attributes
    ----------
    name : str
        The host, as the user wrote it.
    session : Session
        Its agent.
    python : str
        The environment's interpreter there.
    front, back : tuple of str
        Folders of source trees there: before and after the installed packages.
    addresses : tuple of str
        What it can be reached by, the best first.
    container : Container or None
        How processes run there, if they run from an image.
    variant : str
        Which lock its processes have, of those of the cluster.
    """

    name: str
    session: Session = field(repr=False)
    python: str
    front: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    container: Container | None = None
    variant: str = ""

    @classmethod
    def of(cls, prepared: Prepared) -> Place:
        """Return the place that was prepared."""
        session = prepared.session
        place = cls(
            name=session.host.name,
            session=session,
            python=prepared.environment.python,
            addresses=tuple(session.facts.get("addresses") or ()),
            container=prepared.container,
            variant=variant_of(prepared.lock),
        )
        place.put(prepared.trees)
        return place

    def put(self, trees: Iterable[tuple[Manifest, str]]) -> None:
        """Have processes that start from now on find these source trees."""
        trees = tuple(trees)
        self.front = tuple(folder for manifest, folder in trees if manifest.position == "front")
        self.back = tuple(folder for manifest, folder in trees if manifest.position == "back")

    def environment(self) -> dict[str, str | None]:
        """Return the environment variables that its processes need."""
        return {
            "PYTHONPATH": ":".join(self.front) or None,
            "ENVSYNC_TREES": ":".join(self.back) or None,
            "ENVSYNC_HOST": self.name,
            "ENVSYNC_VARIANT": self.variant or None,
        }


def variant_of(lock: Lock) -> str:
    """Return what tells a lock from the others of a cluster: what is in it, and for what it is."""
    text = json.dumps([lock.digest, lock.target.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wanted_of(prepared: Sequence[Prepared], *, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what every process should have: the first host's lock and trees, and others' that differ.

    Parameters
    ----------
    prepared : sequence of Prepared
        The hosts.
    before : mapping, optional
        What was wanted until now: the locks of other hosts in it (of jobs) stay, with the trees of these.
    """
    wanted = _wanted(prepared[0])
    for host in prepared[1:]:
        wanted = with_variant(wanted, host)
    code = {key: wanted[key] for key in ("trees", "code")}
    others = {key: {**one, **code} for key, one in ((before or {}).get("variants") or {}).items()}
    return {**wanted, "variants": {**others, **wanted.get("variants", {})}} if others else wanted


def with_variant(wanted: dict[str, Any], host: Prepared) -> dict[str, Any]:
    """Add what the processes of another host should have; the same object if its lock is known already."""
    key, variants = variant_of(host.lock), dict(wanted.get("variants") or {})
    if key == wanted["variant"] or key in variants:
        return wanted
    code = {
        each: wanted[each] for each in ("trees", "code")
    }  # as it is now: the host may have been made before
    return {**wanted, "variants": {**variants, key: {**_wanted(host), **code}}}


def _wanted(host: Prepared) -> dict[str, Any]:
    trees = [tree for tree, _ in host.trees]
    return {
        **host.lock.report(),
        "trees": {tree.name: tree.digest for tree in trees},
        "code": code_of(trees),
        "variant": variant_of(host.lock),
    }
