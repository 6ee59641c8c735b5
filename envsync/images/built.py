"""What is known of an image that was put where it goes, and by what it is found again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import envsync
from envsync.errors import ImageError
from envsync.images.oci import Descriptor
from envsync.store import recall, remember

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.images.base import Base
    from envsync.trees import Manifest as Tree

__all__ = ["SCHEMA", "Built", "image_key", "recall_built", "remember_built"]

SCHEMA = 1  # raised when of the same things other bytes are made


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image that is where it was to go.

    Attributes
    ----------
    manifest : Descriptor
        Its manifest.
    size : int
        Bytes of all that a machine without any of it has to fetch.
    layers : tuple of Descriptor
        Those above the base, lowest first.
    made : tuple of str
        Titles of the layers that were made; the others were there.
    sent : int
        Bytes that were put there.
    """

    manifest: Descriptor
    size: int
    layers: tuple[Descriptor, ...]
    made: tuple[str, ...]
    sent: int

    @property
    def digest(self) -> str:
        """The manifest's: what the image is pulled by."""
        return self.manifest.digest


def image_key(lock: str, trees: Sequence[Tree], base: Base) -> str:
    """Name an image, of gzip layers and without an interpreter of its own, by all that its bytes depend on.

    Parameters
    ----------
    lock : str
        The lock's text, without trees.
    trees : sequence of envsync.trees.Manifest
        Local code, in the order of the path.
    base : Base
        What it goes on top of.
    """
    reference = base.reference
    essentials = [
        *(SCHEMA, envsync.__version__, hashlib.sha256(lock.encode()).hexdigest()),
        [[tree.digest, tree.kind, tree.distribution] for tree in trees],
        *(base.digest, None if reference is None else [reference.name, reference.tag]),
    ]
    return hashlib.sha256(json.dumps(essentials).encode()).hexdigest()


def remember_built(key: str, built: Built, environment: str) -> None:
    """Keep what an image is, for whoever pushes the same again.

    Parameters
    ----------
    key : str
        As `image_key` gives it.
    built : Built
        The image.
    environment : str
        The lock's digest.
    """
    value: dict[str, Any] = {
        "environment": environment,
        "manifest": built.manifest.to_dict(),
        "layers": [layer.to_dict() for layer in built.layers],
        "size": built.size,
    }
    remember("images", key, value)


def recall_built(key: str) -> tuple[Built, str] | None:
    """Return what was remembered of an image, and the lock's digest."""
    value = recall("images", key)
    try:
        built = Built(
            manifest=Descriptor.from_dict(value["manifest"]),
            size=int(value["size"]),
            layers=tuple(Descriptor.from_dict(one) for one in value["layers"]),
            made=(),
            sent=0,
        )
        return built, str(value["environment"])
    except (KeyError, TypeError, ValueError, ImageError):
        return None
