"""Source trees as blobs: local code, file by file, named by content. An edit ships one file."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from envsync.errors import StoreError
from envsync.selection import Found, Limits, Selection
from envsync.store import digest_of, recall, remember

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envsync.artifacts import TreeRef
    from envsync.snapshot import Snapshot, SourceTree
    from envsync.store import Store

__all__ = ["Limits", "Manifest", "code_of", "pack", "pack_all"]

RACY = 2.0  # seconds: a file as young as this may change again without its times telling


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a source tree holds.

    Attributes
    ----------
    name : str
        The tree's name; two trees of one name differ in their digests.
    position : str
        ``"front"``: before site-packages; ``"back"``: after it.
    kind : str
        ``"editable"``, ``"path"`` or ``"cwd"``.
    distribution : str or None
        The editable distribution whose code it is.
    files : tuple of (str, str, int)
        Path with forward slashes, sha256, mode (0o644 or 0o755); sorted by path.
    left_out : tuple of (str, str)
        Path (a folder's ends with a slash) and the reason; sorted by path.
    """

    name: str
    position: str
    kind: str
    distribution: str | None = None
    files: tuple[tuple[str, str, int], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """The name of the tree as it is on hosts: its name, position and files; not what was left out."""
        text = json.dumps([self.name, self.position, self.files], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def reference(self) -> TreeRef:
        """Return what a lock says of the tree."""
        from envsync.artifacts import TreeRef

        return TreeRef(
            name=self.name,
            digest=self.digest,
            position=self.position,
            kind=self.kind,
            distribution=self.distribution,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "name": self.name,
            "position": self.position,
            "kind": self.kind,
            "distribution": self.distribution,
            "files": [list(file) for file in self.files],
            "left_out": [list(entry) for entry in self.left_out],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """Read what `to_dict` wrote.

        Raises
        ------
        StoreError
            It is not a manifest, or one of its paths leads out of the tree.
        """
        try:
            files = tuple((str(path), str(sha256), int(mode)) for path, sha256, mode in data["files"])
            manifest = cls(
                name=str(data["name"]),
                position=str(data["position"]),
                kind=str(data["kind"]),
                distribution=data.get("distribution"),
                files=files,
                left_out=tuple((str(path), str(why)) for path, why in data.get("left_out", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"not a manifest of a source tree: {error!r}", hint="Pack the tree again."
            ) from error
        for path, _, _ in files:
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or ".." in parts or "\0" in path:
                raise StoreError(
                    f"the manifest of tree {manifest.name!r} names a file outside the tree: {path!r}",
                    hint="Do not use it; pack the tree again.",
                )
        return manifest


def pack(
    tree: SourceTree, store: Store, *, limits: Limits | None = None, soabi: str | None = None
) -> Manifest:
    """Put a source tree's files into a store. See `envsync.selection` for which.

    Parameters
    ----------
    tree : SourceTree
        What to pack.
    store : Store
        Where the files go; those that it has are not written again.
    limits : Limits, optional
        How much may ship; by default what ``ENVSYNC_TREE_LIMITS`` says.
    soabi : str, optional
        Of the interpreter that extension modules must fit; by default the running one's.

    Returns
    -------
    Manifest
        The files as they were put, and what was left out.

    Raises
    ------
    CaptureError
        The tree's code alone is over the limits.
    StoreError
        The store cannot be written.
    """
    chosen = Selection(
        tree.root,
        tree.members,
        soabi=soabi if soabi is not None else str(sysconfig.get_config_var("SOABI") or ""),
        limits=limits or Limits.read(os.environ),
        name=tree.name,
    )
    left_out = dict(chosen.left_out)
    digests = _digests(tree, chosen.files, left_out)
    missing = set(digests.values()) - store.has(set(digests.values()))
    files = []
    for path, digest in sorted(digests.items()):
        found = chosen.files[path]
        try:
            # Put under what it is now: it may have been edited since it was hashed.
            kept = store.put(Path(found.source)) if digest in missing else digest
        except StoreError:
            if os.path.lexists(found.source):
                raise
            left_out[path] = "vanished while it was packed"
            continue
        missing.discard(kept)
        files.append((path, kept, 0o755 if found.status.st_mode & 0o100 else 0o644))
    return Manifest(
        name=tree.name,
        position=tree.position,
        kind=tree.kind,
        distribution=tree.distribution,
        files=tuple(files),
        left_out=tuple(sorted(left_out.items())),
    )


def pack_all(
    snapshot: Snapshot, store: Store, chosen: Callable[[SourceTree], bool] = lambda _: True
) -> list[Manifest]:
    """Put the source trees of a snapshot into a store, those that are chosen."""
    soabi = snapshot.interpreter.soabi
    return [pack(tree, store, soabi=soabi) for tree in snapshot.source_trees if chosen(tree)]


def code_of(manifests: Iterable[Manifest]) -> dict[str, dict[str, Any]]:
    """Return which files of source trees an import can get, for `envsync.plugins.sources.code_here`.

    Of a module that is installed here too, a tree at the back does not get its turn.

    Parameters
    ----------
    manifests : iterable of Manifest
        In the order of the path: of a module that two trees have, the first is imported.

    Returns
    -------
    dict
        By tree name: ``digest``, and ``files``, each file's sha256 by its path.
    """
    sites = [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    taken: set[str] = set()
    code = {}
    for manifest in sorted(manifests, key=lambda one: one.position != "front"):
        tops = {path.split("/", 1)[0] for path, _, _ in manifest.files}
        if manifest.position != "front":
            taken |= {top for top in tops for site in sites if (site / top).exists()}
        files = {path: sha256 for path, sha256, _ in manifest.files if path.split("/", 1)[0] not in taken}
        code[manifest.name] = {"digest": manifest.digest, "files": files}
        taken |= tops
    return code


def _digests(tree: SourceTree, files: dict[str, Found], left_out: dict[str, str]) -> dict[str, str]:
    """Return the files' digests, reading only those that changed since the last time."""
    key = hashlib.sha256(json.dumps([tree.root, tree.members]).encode()).hexdigest()
    known = recall("trees", key)
    known = known if isinstance(known, dict) else {}
    now = time.time()
    digests: dict[str, str] = {}
    learnt: dict[str, list[Any]] = {}
    for path, found in files.items():
        status = found.status
        print_ = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = known.get(found.source)
        try:
            digest = entry[-1] if entry and entry[:-1] == print_ else digest_of(Path(found.source))
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            left_out[path] = (
                "vanished while it was packed" if missing else f"cannot be read: {error.strerror}"
            )
            continue
        digests[path] = digest
        if max(status.st_mtime, status.st_ctime) < now - RACY:
            learnt[found.source] = [*print_, digest]
    if learnt != known:
        remember("trees", key, learnt)
    return digests
