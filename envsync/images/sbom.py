"""What an image is made of, for those who look for known defects and licences: CycloneDX, attached to it.

It lists what comes from elsewhere: packages, Python and the base image. Local code has no part in it, so that
an edit sends none of it anew. The library is an extra: whoever has envsync in an environment has its
dependencies in every image of it, too.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from uuid import UUID

from packaging.metadata import parse_email

from envsync.errors import ImageError
from envsync.images.base import select
from envsync.images.oci import Descriptor, Manifest, document, small
from envsync.images.plan import CREATED, LOCK_LABEL
from envsync.images.referrers import Attached, attach, referrers
from envsync.store import recall, remember

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

    from envsync.artifacts import Artifact
    from envsync.images.base import Base
    from envsync.images.oci import Images, Platform
    from envsync.images.plan import Plan
    from envsync.store import Store

__all__ = ["CYCLONEDX", "attach_sbom", "demand_library", "read_sbom", "sbom"]

CYCLONEDX = "application/vnd.cyclonedx+json"
SCHEMA = 1  # raised when the same plan would give other bytes
_LIBRARY = "cyclonedx-python-lib"
_TITLE = "sbom.cdx.json"
_LONGEST = 200  # characters of a licence's name: more is its text
_UNSAID = frozenset({"", "unknown", "none", "n/a"})


def demand_library() -> str:
    """Return the version of the library that writes these documents.

    Raises
    ------
    ImageError
        It is not installed.
    """
    try:
        return version(_LIBRARY)
    except PackageNotFoundError as error:
        raise ImageError(
            f"an SBOM is wanted, and {_LIBRARY}, which writes it, is not installed",
            hint="Install dask-envsync[sbom].",
        ) from error


def attach_sbom(plan: Plan, store: Store, images: Images, manifest: Descriptor) -> Attached:
    """Attach to an image what it is made of, unless that is attached already.

    Parameters
    ----------
    plan : Plan
        Of the image.
    store : Store
        Has its wheels.
    images : Images
        Where it is.
    manifest : Descriptor
        Its manifest.

    Raises
    ------
    ImageError
        The library is not installed.
    """
    key = _key(plan)
    texts: list[bytes] = []

    def content() -> bytes:
        if not texts:
            texts.append(sbom(plan, store))
        return texts[0]

    try:
        blob = Descriptor.from_dict(recall("sboms", key))
    except ImageError:
        blob = Descriptor.of(content(), CYCLONEDX)
        remember("sboms", key, blob.to_dict())
    named = Descriptor(
        media_type=CYCLONEDX,
        digest=blob.digest,
        size=blob.size,
        annotations={"org.opencontainers.image.title": _TITLE},
    )
    about = {LOCK_LABEL: plan.lock.digest, "org.opencontainers.image.created": CREATED}
    return attach(images, manifest, named, content, annotations=about)


def read_sbom(images: Images, version: str = "", platform: Platform | None = None) -> dict[str, Any]:
    """Return the SBOM that is attached to an image, ours if others attached some too.

    Parameters
    ----------
    images, version, platform
        As for `envsync.images.inspecting.inspect`.

    Raises
    ------
    ImageError
        There is no such image, or it has none.
    """
    digest, _ = select(images, version, platform)
    listed = [one for one in referrers(images, digest) if one.artifact_type == CYCLONEDX]
    listed.sort(key=lambda one: (LOCK_LABEL not in one.annotations, one.digest))
    for one in listed:
        got = images.manifest(one.digest)
        if got is not None:
            for layer in Manifest.from_bytes(got[2]).layers:
                if layer.media_type == CYCLONEDX:
                    return document(small(images, layer, "SBOM"), "SBOM")
    raise ImageError(
        "no SBOM is attached to the image",
        where=images.name,
        hint="Push it again with --sbom: nothing but the SBOM is sent.",
    )


def sbom(plan: Plan, store: Store) -> bytes:
    """Return a CycloneDX document: the same bytes for the same packages and base.

    Parameters
    ----------
    plan : Plan
        What the image is made of.
    store : Store
        Has the wheels: licences are in them.

    Raises
    ------
    ImageError
        The library is not installed, or a wheel cannot be read.
    StoreError
        A wheel is not in the store.
    """
    demand_library()
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.dependency import Dependency
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    lock = plan.lock
    image = Component(
        type=ComponentType.CONTAINER,
        name="environment",
        version=lock.digest,
        bom_ref=f"environment-{lock.digest}",
    )
    parts = [_base(plan.base), _python(plan), *(_package(one, store) for one in lock.artifacts())]
    about = BomMetaData(
        component=image,
        tools=ToolRepository(components=[Component(type=ComponentType.APPLICATION, name="envsync")]),
        properties=[
            Property(name="envsync:lock", value=lock.digest),
            Property(name="envsync:base", value=plan.base.digest),
            Property(name="envsync:platform", value=str(plan.base.config.platform)),
        ],
    )
    about.timestamp = None  # type: ignore[assignment]  # there need not be one
    about.tools.components[0].bom_ref.value = "envsync"
    alone = [Dependency(ref=one.bom_ref) for one in parts]
    bom = Bom(
        components=parts,
        serial_number=UUID(bytes=hashlib.sha256(_key(plan).encode()).digest()[:16], version=5),
        metadata=about,
        dependencies=[Dependency(ref=image.bom_ref, dependencies=alone), *alone],
    )
    return JsonV1Dot6(bom).output_as_string().encode()


def _key(plan: Plan) -> str:
    """Name a document by all that it depends on."""
    base, lock = plan.base, plan.lock
    wheels = [[one.name, one.version, one.sha256] for one in lock.artifacts()]
    reference = None if base.reference is None else str(base.reference)
    about = [SCHEMA, demand_library(), lock.digest, wheels, base.digest, reference, plan.version]
    return hashlib.sha256(json.dumps(about, separators=(",", ":")).encode()).hexdigest()


def _package(artifact: Artifact, store: Store) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = PackageURL(type="pypi", name=artifact.name, version=artifact.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=artifact.name,
        version=artifact.version,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=artifact.sha256)],
        licenses=[LicenseFactory().make_from_string(one) for one in _licences(artifact, store)],
    )


def _python(plan: Plan) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = PackageURL(type="generic", name="python", version=plan.version)
    return Component(
        type=ComponentType.PLATFORM,
        name="python",
        version=plan.version,
        bom_ref=purl.to_string(),
        purl=purl,
    )


def _base(base: Base) -> Component:
    """Describe the base image; a folder's name is of this machine, and left out."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, purl = "base image", None
    if base.reference is not None:
        name = base.reference.name
        qualifiers = {"repository_url": name, "tag": base.reference.tag}
        purl = PackageURL(
            type="oci",
            name=name.rpartition("/")[2],
            version=base.digest,
            qualifiers={key: value for key, value in qualifiers.items() if value},
        )
    return Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=base.digest,
        bom_ref=f"base-{base.digest}",
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=base.digest.removeprefix("sha256:"))],
    )


def _licences(artifact: Artifact, store: Store) -> list[str]:
    """Return what a wheel's metadata names: an expression, a short name, or classifiers; mostly one."""
    try:
        with store.open(artifact.sha256) as file, zipfile.ZipFile(file) as wheel:
            inner = (name for name in wheel.namelist() if name.count("/") == 1)
            path = next((name for name in inner if name.endswith(".dist-info/METADATA")), None)
            metadata, _ = parse_email(b"" if path is None else wheel.read(path))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ImageError(
            f"{artifact.filename} cannot be read as a wheel: {error}",
            hint="Remove it from the cache and try again; if that does not help, do not use this wheel.",
        ) from error
    for text in (metadata.get("license_expression", ""), metadata.get("license", "")):
        if text.strip().lower() not in _UNSAID and len(text) <= _LONGEST and "\n" not in text.strip():
            return [text.strip()]
    kinds = [one.split(" :: ") for one in metadata.get("classifiers", ()) if one.startswith("License :: ")]
    return sorted({kind[-1].strip() for kind in kinds if kind[1:] != ["OSI Approved"]})
