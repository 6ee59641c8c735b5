"""What an image of ours holds: its lock, its local code, and what it was put on top of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from envsync.errors import ImageError
from envsync.images.base import select
from envsync.images.oci import Config, Descriptor, Images, Manifest, Platform, documents_of, small
from envsync.images.plan import LOCK_FILE, LOCK_LABEL, TREES
from envsync.images.reading import members
from envsync.lock import Lock
from envsync.trees import Manifest as Tree

__all__ = ["Inspection", "inspect"]

_LARGEST = 64 << 20  # bytes of a lock or manifest: more is none
_BASE = "org.opencontainers.image.base."


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """An image of ours, looked at.

    Attributes
    ----------
    digest : str
        Of its manifest.
    lock : Lock
        The environment in it.
    trees : tuple of envsync.trees.Manifest
        The local code in it, in the order of the path.
    config : Config
        How it runs, on what.
    layers : tuple of (Descriptor, str)
        Lowest first, with what made them.
    base : str
        Digest of what it was put on top of; empty if it does not say.
    base_name : str
        Its name, if it had one.
    annotations : mapping of str to str
        Those of its manifest.
    """

    digest: str
    lock: Lock
    trees: tuple[Tree, ...]
    config: Config
    layers: tuple[tuple[Descriptor, str], ...]
    base: str
    base_name: str
    annotations: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all its layers."""
        return sum(layer.size for layer, _ in self.layers)

    def report(self) -> dict[str, Any]:
        """Return what is in it, in the form that comparisons take."""
        return {**self.lock.report(), "who": f"image {self.digest[7:19]}"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "digest": self.digest,
            "platform": str(self.config.platform),
            "lock": self.lock.digest,
            "target": self.lock.target.to_dict(),
            "packages": [[one.name, one.version] for one in self.lock.artifacts()],
            "trees": [
                {"name": one.name, "digest": one.digest, "position": one.position, "files": len(one.files)}
                for one in self.trees
            ],
            "base": {"digest": self.base, "name": self.base_name},
            "size": self.size,
            "layers": [{"digest": one.digest, "size": one.size, "made_by": by} for one, by in self.layers],
            "annotations": self.annotations,
        }


def inspect(images: Images, version: str = "", platform: Platform | None = None) -> Inspection:
    """Look at an image: its documents, and the one small layer that says what is in it.

    Parameters
    ----------
    images : Images
        Where it is.
    version : str
        A tag or a digest; for a layout also nothing, if it has only one image.
    platform : Platform, optional
        Of which of its platforms, if it is for several.

    Raises
    ------
    ImageError
        There is no such image, or envsync did not make it.
    """
    with documents_of(images):
        digest, text = select(images, version, platform)
        manifest = Manifest.from_bytes(text)
        config = Config.from_bytes(small(images, manifest.config, "configuration"))
    labels = {**config.labels(), **manifest.annotations}
    if LOCK_LABEL not in labels:
        raise ImageError(
            f"envsync did not make this image: it has no label {LOCK_LABEL}",
            where=images.name,
            hint="Look at one that envsync push made.",
        )
    lock, trees = _contents(images, manifest, labels[LOCK_LABEL])
    made_by = [str(one.get("created_by", "")) for one in config.history if not one.get("empty_layer")]
    made_by += [""] * (len(manifest.layers) - len(made_by))
    return Inspection(
        digest=digest,
        lock=lock,
        trees=trees,
        config=config,
        layers=tuple(zip(manifest.layers, made_by, strict=False)),
        base=labels.get(f"{_BASE}digest", ""),
        base_name=labels.get(f"{_BASE}name", ""),
        annotations=dict(manifest.annotations),
    )


def _contents(images: Images, manifest: Manifest, digest: str) -> tuple[Lock, tuple[Tree, ...]]:
    """Read the lock and the manifests of trees: in the last layer, unless something was put on top."""
    for layer in reversed(manifest.layers):
        texts: dict[str, bytes] = {}
        for member, content in members(images, layer):
            path = member.name.removeprefix("./")
            folder, _, name = path.rpartition("/")
            wanted = path == LOCK_FILE or (folder == TREES and name.endswith(".json"))
            if wanted and member.isreg() and member.size <= _LARGEST:
                texts[path] = content.read()
        if LOCK_FILE in texts:
            return _read(images, texts, digest)
    raise ImageError(f"the image has no /{LOCK_FILE}", where=images.name, hint="Push it again.")


def _read(images: Images, texts: dict[str, bytes], digest: str) -> tuple[Lock, tuple[Tree, ...]]:
    try:
        lock = Lock.loads(texts[LOCK_FILE].decode(), f"{images.name}: /{LOCK_FILE}")
        trees = tuple(Tree.from_dict(json.loads(texts[f"{TREES}/{one.digest}.json"])) for one in lock.trees)
    except (KeyError, ValueError) as error:
        raise ImageError(
            f"what the image says of itself cannot be read: {error!r}",
            where=images.name,
            hint="Push it again.",
        ) from error
    wrong = [one.name for one, tree in zip(lock.trees, trees, strict=True) if one.digest != tree.digest]
    if lock.digest != digest or wrong:
        raise ImageError(
            "the image holds another lock than its label says"
            if not wrong
            else f"the image's source tree {wrong[0]} is not the one that its lock names",
            where=images.name,
            hint="Push it again.",
        )
    return lock, trees
