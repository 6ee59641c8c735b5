"""Small environments for tests of stores: a lock of wheels that nobody installs, and a source tree."""

from __future__ import annotations

import hashlib
from pathlib import Path

from envsync.artifacts import Artifact
from envsync.lock import Lock
from envsync.store import FolderStore
from envsync.target import Target
from envsync.trees import Manifest

TARGET = Target(python="3.11.7", machine="x86_64", libc=("glibc", "2.28"))


class Made:
    """An environment whose blobs are in a folder.

    Parameters
    ----------
    folder : Path
        Of its store.
    wheels : mapping of str to bytes
        The content of each package's wheel: stores do not look into them.
    code : bytes
        Of the one file in its source tree.
    """

    def __init__(self, folder: Path, wheels: dict[str, bytes], code: bytes = b"ANSWER = 1\n") -> None:
        self.store = FolderStore(folder)
        artifacts = []
        for name, content in wheels.items():
            digest = self.store.put(content)
            filename = f"{name}-1.0-py3-none-any.whl"
            artifacts.append(
                Artifact(
                    name=name,
                    version="1.0",
                    filename=filename,
                    sha256=digest,
                    size=len(content),
                    path=f"envsync-wheels/{filename}",
                )
            )
        self.lock = Lock.of(artifacts, TARGET)
        file = ("module.py", self.store.put(code), 0o644)
        self.manifests = (Manifest(name="mine", position="front", kind="path", files=(file,)),)

    @property
    def blobs(self) -> set[str]:
        """All digests."""
        files = {sha256 for tree in self.manifests for _, sha256, _ in tree.files}
        return files | {artifact.sha256 for artifact in self.lock.artifacts()}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
