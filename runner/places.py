"""Hosts on which the environment is, and what every process on them should find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envsync.trees import code_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.runner.containers import Container
    from envsync.runner.provision import Prepared
    from envsync.runner.session import Session
    from envsync.trees import Manifest

__all__ = ["Place", "wanted_of"]


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
    """

    name: str
    session: Session = field(repr=False)
    python: str
    front: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    container: Container | None = None

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
        }


def wanted_of(prepared: Sequence[Prepared]) -> dict[str, Any]:
    """Return what every process should have: the first host's lock and trees, and others' that differ."""

    def one(host: Prepared) -> dict[str, Any]:
        trees = [tree for tree, _ in host.trees]
        return {
            **host.lock.report(),
            "trees": {tree.name: tree.digest for tree in trees},
            "code": code_of(trees),
        }

    first = prepared[0]
    others = {
        host.session.host.name: one(host)
        for host in prepared
        if host.lock.digest != first.lock.digest or host.lock.target != first.lock.target
    }
    return {**one(first), **({"variants": others} if others else {})}
