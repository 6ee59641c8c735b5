"""The documents of an image, and what holds images.

Terms and media types are those of the OCI image and distribution specifications, and of Docker's image
manifest version 2, schema 2, whose documents have the same keys. Digests are as there: ``sha256:<hex>``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from envsync.errors import CorruptBlobError, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "CONFIG",
    "INDEX",
    "LAYER_GZIP",
    "LAYER_ZSTD",
    "MANIFEST",
    "MANIFEST_TYPES",
    "Config",
    "Descriptor",
    "Images",
    "Index",
    "Manifest",
    "Platform",
    "document",
    "documents_of",
    "sha256_of",
]

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = f"{LAYER}+gzip"
LAYER_ZSTD = f"{LAYER}+zstd"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEXES = (INDEX, DOCKER_LIST)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
MANIFEST_TYPES = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)
"""What a registry may answer with when it is asked for a manifest."""

LARGEST = 8 << 20  # bytes of a manifest or configuration: more is not one
_AS_OCI = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "i686": ("386", ""),
    "armv7l": ("arm", "v7"),
}
# of several names of a machine, the first is Linux's
_MACHINES = {name: machine for machine, (name, variant) in reversed(_ARCHITECTURES.items()) if not variant}


class Images(Protocol):
    """Where images are: one repository of a registry, or a folder.

    Every method may be called from several threads at once. What an answer of nothing means is said with
    each; everything else that goes wrong is an `EnvsyncError`.
    """

    @property
    def name(self) -> str:
        """What it is called in messages, without credentials."""
        ...

    def size(self, digest: str) -> int | None:
        """Return how many bytes a blob has; None if it is not there."""
        ...

    def put(
        self, chunks: Iterable[bytes], *, digest: str | None = None, size: int | None = None
    ) -> tuple[str, int]:
        """Keep a blob, and return its digest and size.

        Parameters
        ----------
        chunks : iterable of bytes
            Read once, and again from the start if that is needed and it is no iterator.
        digest, size : optional
            What it must be.

        Raises
        ------
        CorruptBlobError
            It is something else; nothing was kept.
        """
        ...

    def mount(self, digest: str, repository: str) -> bool:
        """Take a blob from another repository of the same place; False if that cannot be done."""
        ...

    def open(self, digest: str) -> Iterator[bytes]:
        """Read a blob, in chunks.

        Raises
        ------
        ImageError
            It is not there.
        CorruptBlobError
            At its end: it was not what its digest says.
        """
        ...

    def manifest(self, reference: str) -> tuple[str, str, bytes] | None:
        """Return media type, digest and bytes of the manifest of a tag or digest; None if there is none."""
        ...

    def manifest_digest(self, reference: str) -> str | None:
        """Return the digest of the manifest of a tag or digest, without reading it; None if there is none."""
        ...

    def put_manifest(self, data: bytes, media_type: str, tag: str | None = None) -> str:
        """Keep a manifest whose blobs are there already, under a tag if one is given; return its digest."""
        ...

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Return the manifests whose subject one is; None if this place keeps no list of them.

        Use `envsync.images.referrers`, which knows what is done then.
        """
        ...

    def close(self) -> None:
        """End it, and what other threads are doing with it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image runs on.

    Attributes
    ----------
    architecture, os : str
        As Go names them: ``"amd64"``, ``"linux"``.
    variant : str
        Such as ``"v7"``; mostly empty.
    """

    architecture: str
    os: str = "linux"
    variant: str = ""

    @classmethod
    def of(cls, system: str, machine: str) -> Platform:
        """Return what `platform.system` and `platform.machine` of a target are called here."""
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return cls(architecture=architecture, os=system, variant=variant)

    @property
    def machine(self) -> str:
        """What Linux calls its machine, as the targets of locks do."""
        return _MACHINES.get(self.architecture, self.architecture)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Platform:
        """Read the keys of a descriptor's ``platform``, or of a configuration."""
        return cls(
            architecture=str(data.get("architecture", "")),
            os=str(data.get("os", "")),
            variant=str(data.get("variant") or ""),
        )

    def to_dict(self) -> dict[str, str]:
        """Return those keys."""
        found = {"architecture": self.architecture, "os": self.os, "variant": self.variant}
        return {key: value for key, value in found.items() if value}

    def runs(self, other: Platform) -> bool:
        """Tell whether an image for `other` runs here; of arm64 there is one variant, said or not."""
        if (self.architecture, self.os) != (other.architecture, other.os):
            return False
        silent = {"", "v8"} if self.architecture == "arm64" else {""}
        mine, its = (one if one not in silent else "" for one in (self.variant, other.variant))
        return mine == its or not its

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a document says of a blob.

    Attributes
    ----------
    media_type : str
        What it is.
    digest : str
        ``sha256:<hex>``.
    size : int
        Bytes.
    annotations : mapping of str to str
        Mostly empty.
    platform : Platform or None
        Of a manifest in an index.
    urls : tuple of str
        Where a layer that no registry may hand on is to be had.
    artifact_type : str
        Of a manifest that is about another one, in an index.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""

    @classmethod
    def from_dict(cls, data: Any) -> Descriptor:
        """Read one.

        Raises
        ------
        ImageError
            It is none.
        """
        try:
            digest, size = data["digest"], data["size"]
            if not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
                raise ValueError(f"{digest!r} of {size!r} bytes")
            platform = data.get("platform")
            return cls(
                media_type=str(data.get("mediaType", "")),
                digest=digest,
                size=size,
                annotations={str(key): str(value) for key, value in (data.get("annotations") or {}).items()},
                platform=None if platform is None else Platform.from_dict(platform),
                urls=tuple(map(str, data.get("urls") or ())),
                artifact_type=str(data.get("artifactType") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ImageError(
                f"a document of the image names a blob in a way that cannot be read: {error!r}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.urls:
            found["urls"] = list(self.urls)
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.platform is not None:
            found["platform"] = self.platform.to_dict()
        return found

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Descriptor:
        """Return that of bytes at hand."""
        return cls(media_type=media_type, digest=sha256_of(data), size=len(data))

    def as_oci(self) -> Descriptor:
        """Return the same layer as the OCI specification calls it: the bytes are the same."""
        return replace(self, media_type=_AS_OCI.get(self.media_type, self.media_type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of an image for one platform.

    Attributes
    ----------
    config : Descriptor
        Its configuration.
    layers : tuple of Descriptor
        Lowest first.
    annotations : mapping of str to str
        Such as ``org.opencontainers.image.created``.
    artifact_type : str
        What it is if it is no image.
    subject : Descriptor or None
        The manifest that this one is about.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read one, of OCI or Docker.

        Raises
        ------
        ImageError
            It is none.
        """
        found = document(data, "manifest")
        if not isinstance(found.get("layers"), list):
            raise ImageError("the manifest names no layers: it is of a kind that is not known here")
        subject = found.get("subject")
        return cls(
            config=Descriptor.from_dict(found.get("config")),
            layers=tuple(map(Descriptor.from_dict, found["layers"])),
            annotations=_annotations(found),
            artifact_type=str(found.get("artifactType") or ""),
            subject=None if subject is None else Descriptor.from_dict(subject),
        )

    def to_bytes(self) -> bytes:
        """Return the document of OCI, the same bytes for the same manifest."""
        found: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
        }
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.subject is not None:
            found["subject"] = self.subject.to_dict()
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return _written(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The manifests of one image for several platforms.

    Attributes
    ----------
    manifests : tuple of Descriptor
        Each with its platform.
    annotations : mapping of str to str
        Mostly empty.
    """

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Read one, of OCI or Docker.

        Raises
        ------
        ImageError
            It is none.
        """
        found = document(data, "index")
        if not isinstance(found.get("manifests"), list):
            raise ImageError("the index names no manifests: it is of a kind that is not known here")
        return cls(
            manifests=tuple(map(Descriptor.from_dict, found["manifests"])),
            annotations=_annotations(found),
        )

    def to_bytes(self) -> bytes:
        """Return the document of OCI, the same bytes for the same index."""
        found: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [one.to_dict() for one in self.manifests],
        }
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return _written(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of an image: how it runs, and what its layers are.

    Attributes
    ----------
    platform : Platform
        What it runs on.
    run : mapping
        The document's ``config``: ``Env``, ``Cmd``, ``User``, ``Labels`` ... as they are.
    diff_ids : tuple of str
        Digests of the layers' tar archives, lowest first.
    history : tuple of mapping
        What made each layer.
    rest : mapping
        All other keys.
    """

    platform: Platform
    run: Mapping[str, Any] = field(default_factory=dict)
    diff_ids: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Config:
        """Read one, of OCI or Docker.

        Raises
        ------
        ImageError
            It is none.
        """
        found = document(data, "configuration")
        own = ("architecture", "os", "variant", "config", "rootfs", "history")
        try:
            made = cls(
                platform=Platform.from_dict(found),
                run=dict(found.get("config") or {}),
                diff_ids=tuple(map(str, (found.get("rootfs") or {}).get("diff_ids") or ())),
                history=tuple(map(dict, found.get("history") or ())),
                rest={key: value for key, value in found.items() if key not in own},
            )
            made.variables(), made.labels()
            return made
        except (TypeError, ValueError, AttributeError) as error:
            raise ImageError(f"the image's configuration cannot be read: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the document, the same bytes for the same configuration."""
        found = {
            **self.rest,
            **self.platform.to_dict(),
            "config": dict(self.run),
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            "history": [dict(one) for one in self.history],
        }
        return _written(found)

    def variables(self) -> dict[str, str]:
        """Return its environment variables."""
        pairs = [str(one).partition("=") for one in self.run.get("Env") or ()]
        return {name: value for name, _, value in pairs}

    def labels(self) -> dict[str, str]:
        """Return its labels."""
        return {str(key): str(value) for key, value in (self.run.get("Labels") or {}).items()}


def document(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ImageError
        It is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the image's {what} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ImageError(f"the image's {what} is no JSON object")
    return found


def _annotations(found: Mapping[str, Any]) -> dict[str, str]:
    annotations = found.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise ImageError(f"the image's annotations cannot be read: {str(annotations)[:40]!r}")
    return {str(key): str(value) for key, value in annotations.items()}


@contextlib.contextmanager
def documents_of(images: Images) -> Iterator[None]:
    """Let what cannot be read in the block say where it is."""
    try:
        yield
    except ImageError as error:
        error.where = error.where or images.name
        raise


def small(images: Images, descriptor: Descriptor, what: str) -> bytes:
    """Read a blob that has to be small, into memory.

    Raises
    ------
    ImageError
        It is not there, or is larger than such a thing can be.
    CorruptBlobError
        It is something else than its digest says.
    """
    data = bytearray()
    if descriptor.size <= LARGEST:
        for chunk in images.open(descriptor.digest):
            data += chunk
            if len(data) > LARGEST:
                break
    if max(descriptor.size, len(data)) > LARGEST:
        raise ImageError(
            f"the image's {what} has {max(descriptor.size, len(data))} bytes: it is none", where=images.name
        )
    if sha256_of(data) != descriptor.digest:
        raise CorruptBlobError(
            f"the image's {what} is not what its digest {descriptor.digest} says", where=images.name
        )
    return bytes(data)


def sha256_of(data: bytes | bytearray) -> str:
    """Return the digest of bytes, as documents have it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _written(found: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: sorted keys, no blanks."""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
