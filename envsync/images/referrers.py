"""What is attached to an image: manifests whose subject it is, as the OCI distribution specification has it.

A registry that keeps a list of them is asked for it. Elsewhere, in a folder too, the list is an index under a
tag that is made of the image's digest; whoever attaches something adds it there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envsync.errors import ImageError
from envsync.images.oci import EMPTY, INDEX, INDEXES, MANIFEST, Descriptor, Index, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envsync.images.oci import Images

__all__ = ["Attached", "attach", "referrers", "tag_of"]

_NOTHING = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What is attached to an image.

    Attributes
    ----------
    digest : str
        Of the manifest that says so.
    sent : int
        Bytes that were put there; 0 if it was there.
    """

    digest: str
    sent: int


def tag_of(digest: str) -> str:
    """Return the tag of the list of what is attached to a manifest, where the place keeps none itself."""
    return digest.replace(":", "-")


def referrers(images: Images, digest: str) -> tuple[Descriptor, ...]:
    """Return what is attached to a manifest: descriptors of manifests, with `artifact_type` and annotations.

    Raises
    ------
    ImageError
        Something else has the tag of the list.
    """
    kept = images.referrers(digest)
    return _listed(images, digest).manifests if kept is None else kept


def attach(
    images: Images,
    subject: Descriptor,
    blob: Descriptor,
    content: Callable[[], bytes],
    *,
    annotations: Mapping[str, str],
) -> Attached:
    """Attach a blob to a manifest, unless it is attached. What is there already is not sent.

    Parameters
    ----------
    images : Images
        Where the manifest is.
    subject : Descriptor
        The manifest.
    blob : Descriptor
        The blob; its media type is what the artifact is.
    content : callable
        Returns the blob. Called only if it is not there.
    annotations : mapping of str to str
        What the list says of it.
    """
    nothing = Descriptor.of(_NOTHING, EMPTY)
    manifest = Manifest(
        config=nothing,
        layers=(blob,),
        artifact_type=blob.media_type,
        subject=replace(subject, annotations={}),
        annotations=annotations,
    )
    text = manifest.to_bytes()
    made = replace(
        Descriptor.of(text, MANIFEST), artifact_type=manifest.artifact_type, annotations=annotations
    )
    kept = images.referrers(subject.digest)
    listed = _listed(images, subject.digest) if kept is None else Index(manifests=kept)
    if made.digest in {one.digest for one in listed.manifests}:
        return Attached(digest=made.digest, sent=0)
    sent = 0
    for one, get in ((blob, content), (nothing, lambda: _NOTHING)):
        if images.size(one.digest) != one.size:
            images.put([get()], digest=one.digest, size=one.size)
            sent += one.size
    images.put_manifest(text, MANIFEST)
    sent += len(text)
    if kept is None:
        index = replace(listed, manifests=(*listed.manifests, made)).to_bytes()
        images.put_manifest(index, INDEX, tag_of(subject.digest))
        sent += len(index)
    return Attached(digest=made.digest, sent=sent)


def _listed(images: Images, digest: str) -> Index:
    """Return the list that is under a tag; an empty one if there is none."""
    tag = tag_of(digest)
    found = images.manifest(tag)
    if found is None:
        return Index(manifests=())
    if found[0] not in INDEXES:
        raise ImageError(
            f"the tag {tag}, which is for what is attached to an image, is of something else",
            where=images.name,
            hint="Remove the tag there.",
        )
    return Index.from_bytes(found[2])
