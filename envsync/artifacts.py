"""What a lock is made of: wheels, references to source trees, and what was left out."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from envsync.errors import LockError
from envsync.indexes import without_credentials

if TYPE_CHECKING:
    from packaging.pylock import Package

__all__ = [
    "RELOCK",
    "SCHEMA",
    "WHEELS_FOLDER",
    "Artifact",
    "Excluded",
    "Substitution",
    "TreeRef",
    "wheel_tags",
]

WHEELS_FOLDER = "envsync-wheels"
SCHEMA = 1
"""Of the lock's own table."""
RELOCK = "Locks are not edited by hand: make it again with: envsync snapshot"

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The one wheel that a package is installed from.

    Attributes
    ----------
    name : str
        The package, normalised (PEP 503).
    version : str
        As in the lock.
    filename : str
        The wheel's file name.
    sha256 : str
        Lower-case hex.
    size : int or None
        Bytes, where the index said so.
    url : str or None
        Where the index has it, without credentials; None for a local wheel.
    path : str or None
        For a local wheel: ``envsync-wheels/<filename>``, beside the lock file.
    index : str or None
        The index that it was found in, without credentials.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int | None = None
    url: str | None = None
    path: str | None = None
    index: str | None = None

    def package(self) -> Package:
        """Return the PEP 751 entry."""
        from packaging.pylock import Package, PackageWheel
        from packaging.utils import canonicalize_name
        from packaging.version import Version

        url, index = _shown(self.url), _shown(self.index)
        wheel = PackageWheel(
            name=self._unsaid(url),
            url=url,
            path=self.path,
            size=self.size,
            hashes={"sha256": self.sha256},
        )
        return Package(
            name=canonicalize_name(self.name), version=Version(self.version), index=index, wheels=[wheel]
        )

    def table(self) -> dict[str, Any]:
        """Return the same entry as TOML's types, keys in the standard's order."""
        url, index = _shown(self.url), _shown(self.index)
        wheel = {
            "name": self._unsaid(url),
            "url": url,
            "path": self.path,
            "size": self.size,
            "hashes": {"sha256": self.sha256},
        }
        entry = {"name": self.name, "version": self.version, "index": index}
        entry = {key: value for key, value in entry.items() if value is not None}
        return entry | {"wheels": [{key: value for key, value in wheel.items() if value is not None}]}

    def _unsaid(self, url: str | None) -> str | None:
        """The file's name, if neither path nor URL end with it."""
        if self.path is not None or (url is not None and url.endswith("/" + self.filename)):
            return None
        return None if url is not None and _filename_of(url) == self.filename else self.filename

    @classmethod
    def of(cls, package: Package) -> Artifact:
        """Read a PEP 751 entry that holds one wheel with a sha256.

        Raises
        ------
        LockError
            It holds something else.
        """
        if len(package.wheels or ()) != 1 or package.version is None:
            raise LockError(f"package {package.name!r} is not locked to exactly one wheel", hint=RELOCK)
        (wheel,) = package.wheels or ()
        digest = wheel.hashes.get("sha256", "")
        if not _DIGEST.match(digest):
            raise LockError(f"the wheel of package {package.name!r} has no valid sha256", hint=RELOCK)
        if wheel.path is not None and wheel.path != f"{WHEELS_FOLDER}/{Path(wheel.path).name}":
            raise LockError(
                f"the wheel of package {package.name!r} lies outside {WHEELS_FOLDER}/: {wheel.path!r}",
                hint=RELOCK,
            )
        if wheel.path is None and urlsplit(wheel.url or "").scheme not in ("http", "https"):
            raise LockError(
                f"the wheel of package {package.name!r} has a URL that only works on one machine", hint=RELOCK
            )
        return cls(
            name=package.name,
            version=str(package.version),
            filename=wheel.filename,
            sha256=digest,
            size=wheel.size,
            url=_shown(wheel.url),
            path=wheel.path,
            index=_shown(package.index),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRef:
    """A source tree that goes with the environment, named by its manifest's digest."""

    name: str
    digest: str
    position: str = "back"  # or "front"
    kind: str = "editable"  # or "path", "cwd"
    distribution: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A distribution that is installed here and left out of the lock, and why."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """A version that the user allowed in place of the installed one, and why."""

    name: str
    installed: str
    locked: str
    reason: str = ""


def _shown(url: str | None) -> str | None:
    return None if url is None else without_credentials(url, query=False)


def _filename_of(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])


def wheel_tags(filename: str) -> set[str]:
    """Write the compressed tags of a wheel's file name out, as its WHEEL file does (PEP 425).

    Quicker than `packaging.utils.parse_wheel_filename`, which checks what is known to be right here.
    """
    parts = [part.split(".") for part in filename.removesuffix(".whl").split("-")[-3:]]
    return {"-".join(tag) for tag in itertools.product(*parts)}
