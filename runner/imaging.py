"""The whole way of an image: lock for what its base is, make what is not there, put it where it goes."""

from __future__ import annotations

import asyncio
import functools
import platform as this
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from envsync.errors import ImageError, RegistryError, RegistryLoginError
from envsync.hooks import Hooks
from envsync.images.base import Base, interpreter_for
from envsync.images.built import Built, image_key, recall_built, remember_built
from envsync.images.oci import Platform
from envsync.images.places import ImagePlace
from envsync.runner.local_code import look
from envsync.runner.locking import known_lock, say_again
from envsync.runner.telling import tell_findings
from envsync.store import default_store
from envsync.supply import Supply

# What makes an image is imported by the functions that do: mostly there is nothing to make.

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envsync.images.oci import Images
    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.stores.pulling import Pulled
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["BASE", "ImageOptions", "PushedImage", "parse_platform", "platform_of", "push_image"]

BASE = "python:{minor}-slim"
"""What environments are put on top of, if nothing is said."""

TAG_LENGTH = 12
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What a user wants of an image.

    Attributes
    ----------
    base : str
        The image that it goes on top of; `BASE` if empty. ``{minor}`` is the Python's, such as 3.11.
    platform : str
        Such as ``"linux/arm64"``; this machine's if empty, or the lock's.
    tags : tuple of str
        Its tags besides the one in its name, which is the lock's digest if there is none.
    compression : str
        Of layers.
    plain_http : bool
        Whether registries may be talked to without TLS.
    sbom : bool
        Whether to attach what it is made of.
    """

    base: str = ""
    platform: str = ""
    tags: tuple[str, ...] = ()
    compression: str = "gzip"
    plain_http: bool = False
    sbom: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image that is where it was to go.

    Attributes
    ----------
    name : str
        Where it is, without tag and digest.
    tags : tuple of str
        What it is called there.
    built : Built
        What was made and sent.
    sent : int
        Bytes that went there.
    platform : str
        What it runs on.
    base : str
        What it was put on top of.
    environment : str
        The lock's digest.
    trees : tuple of Manifest
        The local code.
    seconds : float
        From the first look to the last answer.
    sbom : str
        Digest of the manifest that attaches an SBOM to it; empty if none was asked for.
    text : str
        The lock's.
    """

    name: str
    tags: tuple[str, ...]
    built: Built
    sent: int
    platform: str
    base: str
    environment: str
    trees: tuple[Manifest, ...] = field(repr=False)
    seconds: float
    sbom: str = ""
    text: str = field(repr=False)

    @property
    def reference(self) -> str:
        """What gives this very image, always."""
        return f"{self.name}:{self.tags[0]}@{self.built.digest}"

    @property
    def lock(self) -> Lock:
        """The packages, read from `text`: mostly nobody wants to know."""
        from envsync.lock import Lock

        trees = tuple(tree.reference() for tree in self.trees)
        return replace(Lock.loads(self.text, source="the image's lock"), trees=trees)


async def push_image(
    place: ImagePlace,
    snapshot: Snapshot,
    options: ImageOptions | None = None,
    *,
    lock: Lock | Pulled | None = None,
    store: Store | None = None,
    settings: IndexSettings,
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> PushedImage:
    """Make an image of an environment, and put it where it goes.

    Parameters
    ----------
    place : ImagePlace
        Where that is.
    snapshot : Snapshot
        The environment.
    options : ImageOptions, optional
        What is wanted of it.
    lock : Lock or Pulled, optional
        The packages; made for the base image, from the snapshot, if not given.
    store : Store, optional
        Where blobs are; the cache if not given.
    settings : IndexSettings
        Where packages come from.
    allow_substitutes : bool
        Whether another version may stand in for one that has no wheel for the image's platform.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    EnvsyncError
        It cannot be locked or made, does not go with its base, or the registry does not take it.
    """
    began = time.monotonic()
    options, hooks, store = options or ImageOptions(), hooks or Hooks(), store or default_store()
    if place.reference is not None and place.reference.digest:
        raise ImageError(
            f"{place} names an image by its digest, which only follows from what is in it",
            hint="Leave out what begins with @.",
        )
    if options.sbom:
        from envsync.images.sbom import demand_library

        demand_library()
    known = None if lock is None else _packages(lock)
    like = snapshot.target if known is None else known.target
    platform = platform_of(options.platform, known)
    found = ImagePlace.parse((options.base or BASE).replace("{minor}", like.minor))
    images = place.open(plain_http=options.plain_http)
    sources = found.open(plain_http=options.plain_http)
    try:
        base = await _until_ended((sources,), lambda: _base(found, sources, platform, options, hooks))
        target = like if known is not None else _target(base, snapshot.target, platform)
        supply = Supply(store, settings, snapshot, hooks=hooks)
        # what does not go together, or cannot be had, is said before anything is locked or downloaded
        interpreter = await interpreter_for(base, target, supply)
        manifests = None
        if lock is None:
            tell_findings(snapshot, hooks)
            manifests = await asyncio.to_thread(look, snapshot, None, store, hooks)
        plain = interpreter is None and options.compression == "gzip"  # so that `image_key` names it
        if manifests is not None and plain and not options.sbom:
            lock_of = functools.partial(
                known_lock, snapshot, target, settings=settings, allow_substitutes=allow_substitutes
            )
            there = await _until_ended(
                (images,), lambda: _unchanged(place, images, base, manifests, options, lock_of, hooks)
            )
            if there is not None:
                tags, built, environment, text = there
                return PushedImage(
                    name=images.name,
                    tags=tags,
                    built=built,
                    sent=0,
                    platform=str(platform),
                    base=base.name,
                    environment=environment,
                    trees=tuple(manifests),
                    seconds=time.monotonic() - began,
                    text=text,
                )
        from envsync.images.build import build
        from envsync.images.plan import Options, plan
        from envsync.runner.storing import gather

        gathered = await gather(
            snapshot,
            lock=lock,
            target=None if known is not None else target,
            store=store,
            settings=settings,
            allow_substitutes=allow_substitutes,
            supplies=False,
            manifests=manifests,
            hooks=hooks,
        )
        planned = plan(
            gathered.lock,
            gathered.manifests,
            base,
            Options(compression=options.compression),
            interpreter=interpreter,
        )
        environment = gathered.lock.digest
        tags = _tags(place, environment, options.tags)
        built = await _until_ended(
            (images, sources), lambda: build(planned, store, images, tags=tags, hooks=hooks)
        )
        if manifests is not None and plain:
            key = image_key(gathered.lock.dumps(), gathered.manifests, base)
            remember_built(key, built, environment)
        attached = None
        if options.sbom:
            from envsync.images.sbom import attach_sbom

            attached = await _until_ended(
                (images,), lambda: attach_sbom(planned, store, images, built.manifest)
            )
    finally:
        images.close()
        sources.close()
    return PushedImage(
        name=images.name,
        tags=tags,
        built=built,
        sent=getattr(images, "sent", built.sent + (attached.sent if attached else 0)),
        platform=str(platform),
        base=base.name,
        environment=environment,
        trees=gathered.manifests,
        seconds=time.monotonic() - began,
        sbom=attached.digest if attached else "",
        text=planned.lock.dumps(),
    )


def _unchanged(
    place: ImagePlace,
    images: Images,
    base: Base,
    manifests: Sequence[Manifest],
    options: ImageOptions,
    lock_of: Callable[[], tuple[str, Sequence[tuple[str, str, str]]] | None],
    hooks: Hooks,
) -> tuple[tuple[str, ...], Built, str, str] | None:
    """Return tags, image, environment and the lock's text if all of it is there: one request for each tag.

    What the same things gave before is remembered, so that no lock is read and no layer planned.
    """
    known = lock_of()
    if known is None:
        return None
    text, said = known
    found = recall_built(image_key(text, manifests, base))
    if found is None:
        return None
    built, environment = found
    tags = _tags(place, environment, options.tags)
    if any(images.manifest_digest(tag) != built.digest for tag in tags):
        return None
    say_again(said, hooks)
    return tags, built, environment, text


def _packages(lock: Lock | Pulled) -> Lock:
    from envsync.stores.pulling import Pulled

    return lock.lock if isinstance(lock, Pulled) else lock


def _base(place: ImagePlace, images: Images, platform: Platform, options: ImageOptions, hooks: Hooks) -> Base:
    try:
        return Base.open(images, place.version, platform, reference=place.reference, hooks=hooks)
    except RegistryError as error:
        if not options.base and not isinstance(error, RegistryLoginError):
            error.hint = f"An image goes on top of {place}, unless you name one that you reach: --base."
        raise


async def _until_ended(places: Sequence[Images], function: Callable[[], _T]) -> _T:
    """Run what takes long in a thread; when that is not wanted any more, end what it asks of others."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        for place in places:
            place.close()
        await asyncio.gather(running, return_exceptions=True)
        raise


def platform_of(text: str, lock: Lock | None) -> Platform:
    """Return what an image is for: what was asked for, which the lock must be for; else what that is for."""
    if lock is not None:
        locked = Platform.of(lock.target.system, lock.target.machine)
        if text and not parse_platform(text).runs(locked):
            raise ImageError(
                f"the lock is for {locked}, and {text} is asked for",
                hint="Leave one of them out.",
            )
        return locked
    return parse_platform(text) if text else Platform.of("linux", this.machine())


def parse_platform(text: str) -> Platform:
    """Read what a user calls a platform.

    Raises
    ------
    ImageError
        Images are not made for such.
    """
    system, _, rest = text.partition("/")
    architecture, _, variant = rest.partition("/")
    if system != "linux" or not architecture:
        raise ImageError(
            f"{text!r} is not a platform that images are made for",
            hint="Write it as linux/amd64 or linux/arm64.",
        )
    return Platform(architecture=architecture, os=system, variant=variant)


def _target(base: Base, here: Target, platform: Platform) -> Target:
    """Return what to lock for: this machine's own target where the base can run what is locked for it."""
    there = base.target(here, platform.machine)
    return here if base.facts.libc is not None and there.covers(here) else there


def _tags(place: ImagePlace, environment: str, more: Sequence[str]) -> tuple[str, ...]:
    named = place.tag if place.reference is None else place.reference.tag
    return tuple(dict.fromkeys([named or environment[:TAG_LENGTH], *more]))
