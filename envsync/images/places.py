"""Where images are, as people write it: ``registry.example.org/team/analysis:tag``, or ``oci:FOLDER:TAG``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import ImageError
from envsync.images.reference import Reference

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.images.oci import Images

__all__ = ["ImagePlace", "is_image"]

_LAYOUT, _IMAGE = "oci:", "image:"
_DIGEST = re.compile(r"[@:](sha256:[0-9a-f]{64})\Z")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*")  # of a layout, as its specification has it


def is_image(text: str) -> bool:
    """Tell an image's name from other things that a user may write, paths among them.

    What begins with ``oci:`` or ``image:`` is one, and what begins with a registry's name (one with a dot or
    a port, or ``localhost``) and has no scheme.
    """
    if text.startswith((_LAYOUT, _IMAGE)):
        return True
    first, slash, _ = text.partition("/")
    if not slash or "://" in text or first.startswith((".", "~")) or Path(text).exists():
        return False
    return first == "localhost" or "." in first or ":" in first


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """A repository of a registry, or a folder, and perhaps which of its images.

    Attributes
    ----------
    reference : Reference or None
        In a registry.
    folder : Path or None
        An OCI layout.
    tag : str
        Of an image in the folder; empty if none is said.
    digest : str
        Of an image in the folder; empty if none is said. With one, the tag is only for people.
    """

    reference: Reference | None = None
    folder: Path | None = None
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImagePlace:
        """Read what a user wrote; nothing is asked of it.

        Raises
        ------
        ImageError
            It is no image's name.
        """
        if not text.startswith(_LAYOUT):
            return cls(reference=Reference.parse(text.removeprefix(_IMAGE)))
        named = _DIGEST.search(text)
        rest = text[: named.start()] if named else text
        folder, colon, tag = rest.removeprefix(_LAYOUT).partition(":")
        if not folder or "\0" in folder:
            raise ImageError(f"{text!r} names no folder", hint="Write oci:FOLDER or oci:FOLDER:TAG.")
        if colon and not _TAG.fullmatch(tag):
            raise ImageError(
                f"{text!r} is not the name of an image: {tag!r} is not a tag",
                hint="Write oci:FOLDER:TAG; a tag is of letters, digits, '_', '.' and '-'.",
            )
        digest = named[1] if named else ""
        return cls(folder=Path(folder).expanduser().absolute(), tag=tag, digest=digest)

    @property
    def version(self) -> str:
        """What to ask for: a digest or tag. Of a folder it is empty if none was said."""
        return (self.digest or self.tag) if self.reference is None else self.reference.version

    def open(self, *, plain_http: bool = False, hooks: Hooks | None = None) -> Images:
        """Return the place itself; nothing is asked of it yet.

        Parameters
        ----------
        plain_http : bool
            Whether a registry may be talked to without TLS; on loopback it may anyhow.
        hooks : Hooks, optional
            Told what has been sent.
        """
        if self.reference is None:
            from envsync.images.layout import Layout

            assert self.folder is not None
            return Layout(self.folder)
        from envsync.images.registry import Registry

        return Registry(self.reference, plain_http=plain_http, hooks=hooks)

    def __str__(self) -> str:
        if self.reference is not None:
            return str(self.reference)
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{_LAYOUT}{self.folder}{tag}{digest}"
