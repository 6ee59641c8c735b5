"""The image that an environment goes on top of: which it is for a platform, and whether it fits a lock."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from envsync.errors import ImageError
from envsync.hooks import Hooks
from envsync.images.facts import Facts, Python, look
from envsync.images.oci import (
    INDEXES,
    MANIFESTS,
    Config,
    Descriptor,
    Images,
    Index,
    Manifest,
    Platform,
    documents_of,
    small,
)
from envsync.store import recall, remember
from envsync.target import Target, version_numbers

if TYPE_CHECKING:
    from envsync.images.reference import Reference
    from envsync.interpreter import InterpreterArchive
    from envsync.supply import Supply

__all__ = ["Base", "fit", "interpreter_for", "select"]

SCHEMA = 1  # raised when more is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base image for one platform.

    Attributes
    ----------
    images : Images
        Where it is.
    digest : str
        Of its manifest.
    manifest, config : Manifest, Config
        Its documents.
    facts : Facts
        What its layers hold.
    reference : Reference or None
        Its name, if it is in a registry.
    """

    images: Images = field(compare=False)
    digest: str
    manifest: Manifest
    config: Config
    facts: Facts
    reference: Reference | None = None

    @classmethod
    def open(
        cls,
        images: Images,
        version: str,
        platform: Platform,
        *,
        reference: Reference | None = None,
        hooks: Hooks | None = None,
    ) -> Base:
        """Find a base image, and look at what it holds.

        What a digest stands for is remembered: then its layers are not read again, and if `version` is a
        digest, nothing is asked at all.

        Parameters
        ----------
        images : Images
            Where it is.
        version : str
            A tag or a digest; for a layout also nothing, if it has only one image.
        platform : Platform
            What it has to run on.
        reference : Reference, optional
            Its name, for the annotations of what is made on top.
        hooks : Hooks, optional
            Told when layers are read.

        Raises
        ------
        ImageError
            There is no such image, none for that platform, or it cannot be read.
        """
        digest = version if version.startswith("sha256:") else images.manifest_digest(version)
        key = hashlib.sha256(f"{SCHEMA} {digest} {platform}".encode()).hexdigest()
        known = None if digest is None else recall("bases", key)
        if known is not None:
            try:
                return cls(
                    images=images,
                    digest=str(known["digest"]),
                    manifest=Manifest.from_bytes(known["manifest"].encode()),
                    config=Config.from_bytes(known["config"].encode()),
                    facts=Facts.from_dict(known["facts"]),
                    reference=reference,
                )
            except (KeyError, TypeError, AttributeError, ImageError):
                pass  # damaged: it is looked at again
        if digest is None:
            raise _no_image(images, version)
        with documents_of(images):
            where, manifest_text = select(images, digest, platform)
            manifest = Manifest.from_bytes(manifest_text)
            config_text = small(images, manifest.config, "configuration")
            config = Config.from_bytes(config_text)
        if not platform.runs(config.platform):
            raise _other_platform(images, platform, [config.platform])
        began = time.monotonic()
        facts = look(images, manifest.layers, config.variables())
        (hooks or Hooks()).done("here", "looked at the base image", time.monotonic() - began)
        value = {"digest": where, "manifest": manifest_text.decode(), "config": config_text.decode()}
        remember("bases", key, {**value, "facts": facts.to_dict()})
        return cls(
            images=images, digest=where, manifest=manifest, config=config, facts=facts, reference=reference
        )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.reference) if self.reference is not None else f"{self.images.name}@{self.digest}"

    def target(self, like: Target, machine: str) -> Target:
        """Return what to lock for, so that it runs on this base.

        Parameters
        ----------
        like : Target
            Whose Python it is to be.
        machine : str
            As `platform.machine` says there.
        """
        return replace(like, system="linux", machine=machine, libc=self.facts.libc)


def select(images: Images, version: str, platform: Platform | None) -> tuple[str, bytes]:
    """Return digest and text of an image's manifest for a platform.

    Parameters
    ----------
    images : Images
        Where it is.
    version : str
        A tag or digest, of a manifest or of an index of several; for a layout also nothing, for its only one.
    platform : Platform or None
        What it has to run on; None if that does not matter, as long as there is only one.

    Raises
    ------
    ImageError
        There is no such image, or it is for other platforms.
    """
    got = images.manifest(version)
    for _ in range(3):  # an index may hold an index
        if got is None:
            raise _no_image(images, version)
        media_type, digest, text = got
        if media_type not in INDEXES:
            if media_type not in MANIFESTS:
                raise ImageError(
                    f"its manifest is of a type that is not known: {media_type}", where=images.name
                )
            return digest, text
        entries = [
            one for one in Index.from_bytes(text).manifests if one.media_type in (*MANIFESTS, *INDEXES)
        ]
        chosen = _choose(images, entries, platform)
        got = images.manifest(chosen.digest)
    raise ImageError("its index holds an index that holds an index", where=images.name)


def _no_image(images: Images, version: str) -> ImageError:
    return ImageError(
        f"there is no image {version!r}" if version else "it holds no image, or several",
        where=images.name,
        hint="Look at the name, and at which tags there are.",
    )


def _choose(images: Images, entries: list[Descriptor], platform: Platform | None) -> Descriptor:
    if platform is None:
        images_only = [one for one in entries if one.platform is None or one.platform.os != "unknown"]
        if len(images_only) == 1:
            return images_only[0]
        offered = ", ".join(str(one.platform) for one in images_only)
        raise ImageError(
            f"the image is for several platforms: {offered}", where=images.name, hint="Name one of them."
        )
    fit = [one for one in entries if one.platform is None or platform.runs(one.platform)]
    if not fit:
        raise _other_platform(images, platform, [one.platform for one in entries if one.platform is not None])
    exact = [one for one in fit if one.platform is not None and one.platform.variant == platform.variant]
    return (exact or fit)[0]


def _other_platform(images: Images, platform: Platform, offered: list[Platform]) -> ImageError:
    there = sorted({str(one) for one in offered if one.os != "unknown"})
    return ImageError(
        f"the image is for {', '.join(there) or 'no platform'}, and {platform} is wanted",
        where=images.name,
        hint="Choose an image for that platform, or lock for one that the image is for.",
    )


def fit(base: Base, target: Target) -> Python | None:
    """Return the Python of a base that a lock's environment gets; None if the base has none that fits.

    Raises
    ------
    ImageError
        What is locked for the target cannot run on that base, whichever Python it gets.
    """
    if target.system != "linux" or target.implementation != "cpython":
        raise ImageError(
            f"images are made of CPython on Linux, and the lock is for {target.describe()}",
            where=base.name,
            hint="Lock for the image's platform: envsync snapshot --for",
        )
    wanted = Platform.of("linux", target.machine)
    if not wanted.runs(base.config.platform):
        raise _other_platform(base.images, wanted, [base.config.platform])
    have, need = base.facts.libc, target.libc
    if have is None:
        raise ImageError(
            "the base image has no C library", where=base.name, hint="Choose one that has, such as Debian's."
        )
    if need is not None and have[0] != need[0]:
        raise ImageError(
            f"the base image has {' '.join(have)}, and the lock is for {' '.join(need)}:"
            " no compiled package of it would load",
            where=base.name,
            hint=f"Choose a base with {need[0]}, or lock for this one.",
        )
    if need is not None and version_numbers(have[1]) < version_numbers(need[1]):
        raise ImageError(
            f"the base image has {' '.join(have)}, older than {' '.join(need)}, which the lock is for",
            where=base.name,
            hint="Choose a newer base, or lock for this one.",
        )
    same = [one for one in base.facts.pythons if one.minor == target.minor and one.libc == have[0]]
    exact = next((one for one in same if one.version == target.python), None)
    return exact or max(same, key=lambda one: version_numbers(one.version), default=None)


async def interpreter_for(base: Base, target: Target, supply: Supply) -> InterpreterArchive | None:
    """Return the interpreter that has to go on top of a base, None if the base has one that fits.

    Raises
    ------
    ImageError
        The base and the lock do not go together, or there is no interpreter to be had.
    """
    from envsync.errors import UnfitHostError, UnsupportedError

    if fit(base, target) is not None:
        return None
    try:
        return await supply.interpreter(replace(target, libc=base.facts.libc))
    except (UnsupportedError, UnfitHostError) as error:
        raise ImageError(
            f"the base image has no Python {target.minor} ({have_of(base)}), and none can be put on top:"
            f" {error.message}",
            where=base.name,
            hint=f"Choose a base with Python {target.minor}.",
        ) from error


def have_of(base: Base) -> str:
    """Say which Pythons a base has."""
    return ", ".join(f"it has {one.version} in {one.path}" for one in base.facts.pythons) or "it has none"
