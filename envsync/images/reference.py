"""Names of images, such as ``registry.example.org/team/analysis:tag@sha256:...``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from envsync.errors import ImageError

__all__ = ["DEFAULT_REGISTRY", "Reference"]

DEFAULT_REGISTRY = "docker.io"
"""What a name without a registry means: ``python:3.11`` is ``docker.io/library/python:3.11``."""

_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)"
    r"(?::[0-9]{1,5})?"
)
_PORT = re.compile(r":([0-9]+)\Z")
_LAST_PORT = 65535
_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The name of an image in a registry.

    Attributes
    ----------
    registry : str
        Host, and port if it has one.
    repository : str
        Such as ``"team/analysis"``.
    tag : str
        Empty if there is none.
    digest : str
        ``sha256:<hex>``, empty if there is none. With one, the tag is only for people.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a name as people write it.

        Raises
        ------
        ImageError
            It is none; the message says which part.
        """
        rest, at, digest = text.partition("@")
        if "/" in digest:  # the message must not hold what stands before it
            raise ImageError(
                "an image's name holds no user and no password",
                hint=f"Leave out what is before {digest!r}, and log in: docker login.",
            )
        if at and not _DIGEST.fullmatch(digest):
            raise _wrong(text, f"{digest!r} is not sha256: and 64 lower-case hexadecimal digits")
        first, slash, path = rest.partition("/")
        if slash and (first == "localhost" or re.search(r"[.:A-Z\[]", first)):
            registry = first
        else:
            registry, path = DEFAULT_REGISTRY, rest
        head, colon, tag = path.rpartition(":")
        if colon:
            path = head
            if not _TAG.fullmatch(tag):
                raise _wrong(text, f"{tag!r} is not a tag: letters, digits, '_', '.' and '-', at most 128")
        else:
            tag = ""
        if not _HOST.fullmatch(registry) or int((_PORT.search(registry) or "00")[1]) > _LAST_PORT:
            raise _wrong(text, f"{registry!r} is not a host with or without a port")
        if registry == DEFAULT_REGISTRY and "/" not in path:
            path = f"library/{path}"
        for part in path.split("/"):
            if not _PART.fullmatch(part):
                why = "write it in lower case" if _PART.fullmatch(part.lower()) else "letters and digits"
                raise _wrong(text, f"{part!r} cannot be part of a repository's name: {why}")
        if len(path) > _LONGEST:
            raise _wrong(text, f"the repository's name has {len(path)} letters, of at most {_LONGEST}")
        return cls(registry=registry, repository=path, tag=tag, digest=digest)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def _wrong(text: str, why: str) -> ImageError:
    return ImageError(
        f"{text!r} is not the name of an image: {why}",
        hint="Write it as registry.example.org/team/name:tag",
    )
