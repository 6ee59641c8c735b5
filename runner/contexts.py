"""Images that a Docker engine builds: what they are made of is gathered here, without asking the engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError, ImageError
from envsync.hooks import Hooks
from envsync.images.context import Context, default_base, template, write
from envsync.images.oci import Platform
from envsync.images.reference import Reference
from envsync.runner.imaging import TAG_LENGTH, platform_of
from envsync.runner.storing import gather
from envsync.scratch import scratch
from envsync.store import default_store
from envsync.stores.pulling import Pulled
from envsync.supply import Supply
from envsync.target import version_numbers

if TYPE_CHECKING:
    from pathlib import Path

    from envsync.images.docker import Engine
    from envsync.images.places import ImagePlace
    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.snapshot import Snapshot
    from envsync.store import Store
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["DockerImage", "DockerOptions", "collect", "push_with_docker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOptions:
    """What a user wants of an image that an engine builds.

    Attributes
    ----------
    template : str
        The Dockerfile: ``"base"``, ``"gpu"``, ``"dev"``, or a file.
    base : str
        What it goes on top of; what the Dockerfile says if empty. ``{minor}`` is the Python's, such as 3.11.
    platform : str
        Such as ``"linux/arm64"``; this machine's if empty, or the lock's.
    tags : tuple of str
        Tags besides the one in its name.
    mounts : bool
        Whether the Dockerfile may use ``RUN --mount``, which BuildKit knows.
    """

    template: str = "base"
    base: str = ""
    platform: str = ""
    tags: tuple[str, ...] = ()
    mounts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerImage:
    """An image that an engine built, and that is where it was to go.

    Attributes
    ----------
    name : str
        Where it is, without tag and digest.
    tags : tuple of str
        What it is called there.
    digest : str
        Of its manifest.
    size : int
        Bytes, unpacked.
    sent, there : int
        Layers that went there, and that were there.
    platform, base : str
        What it runs on, and what it was put on top of.
    lock : Lock
        The packages.
    trees : tuple of Manifest
        The local code.
    seconds : float
        From the first look to the last answer.
    """

    name: str
    tags: tuple[str, ...]
    digest: str
    size: int
    sent: int
    there: int
    platform: str
    base: str
    lock: Lock = field(repr=False)
    trees: tuple[Manifest, ...] = field(repr=False)
    seconds: float

    @property
    def reference(self) -> str:
        """What gives this very image, always."""
        return f"{self.name}:{self.tags[0]}@{self.digest}"

    @property
    def environment(self) -> str:
        """The lock's digest."""
        return self.lock.digest


async def collect(
    folder: Path,
    snapshot: Snapshot,
    options: DockerOptions,
    *,
    base_digest: str = "",
    libc: tuple[str, str] | None = None,
    lock: Lock | Pulled | None = None,
    store: Store | None = None,
    settings: IndexSettings,
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> Context:
    """Write a folder that an image can be built from, anywhere, without an index.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    snapshot : Snapshot
        The environment.
    options : DockerOptions
        What is wanted of the image.
    base_digest : str
        Of the base, where that is known.
    libc : (str, str), optional
        That of the base, where that is known: an older one than here is locked for.
    lock : Lock or Pulled, optional
        The packages; made from the snapshot if not given.
    store, settings, allow_substitutes, hooks
        As for `envsync.runner.storing.gather`.

    Raises
    ------
    EnvsyncError
        Something cannot be locked, built, had or written.
    """
    hooks, store = hooks or Hooks(), store or default_store()
    target = target_of(snapshot, options, lock)
    if lock is None and libc is not None and _is_older(libc, target.libc):
        target = replace(target, libc=libc)
    text = template(options.template)
    base = base_of(options, target)
    gathered = await gather(
        snapshot,
        lock=lock,
        target=target if lock is None else None,
        store=store,
        settings=settings,
        allow_substitutes=allow_substitutes,
        supplies=False,
        hooks=hooks,
    )
    supply = Supply(store, settings, snapshot, hooks=hooks)
    uv = await supply.uv(target)
    interpreter = None
    try:
        interpreter = await supply.interpreter(target)
    except EnvsyncError as error:
        hooks.note("here", f"the base image needs a Python {target.minor} of its own: {error.message}")
    return await asyncio.to_thread(
        write,
        folder,
        gathered.lock,
        gathered.manifests,
        store,
        uv=uv,
        interpreter=interpreter,
        text=text,
        base=base,
        base_digest=base_digest,
        mounts=options.mounts,
    )


def _is_older(libc: tuple[str, str], other: tuple[str, str] | None) -> bool:
    return other is not None and libc[0] == other[0] and version_numbers(libc[1]) < version_numbers(other[1])


def target_of(snapshot: Snapshot, options: DockerOptions, lock: Lock | Pulled | None) -> Target:
    """Return what an image is for."""
    known = lock.lock if isinstance(lock, Pulled) else lock
    target = snapshot.target if known is None else known.target
    if options.platform:
        asked = platform_of(options.platform, known)
        if known is None:
            target = replace(target, system="linux", machine=asked.machine)
    if target.system != "linux" or target.implementation != "cpython":
        raise ImageError(
            f"images are made of CPython on Linux, and the lock is for {target.describe()}",
            hint="Lock for the image's platform: envsync snapshot --for",
        )
    return target


def base_of(options: DockerOptions, target: Target) -> str:
    """Return the name of what an image goes on top of."""
    return (options.base or default_base(template(options.template), target.minor)).replace(
        "{minor}", target.minor
    )


def push_with_docker(
    engine: Engine,
    place: ImagePlace,
    snapshot: Snapshot,
    options: DockerOptions,
    *,
    lock: Lock | Pulled | None = None,
    store: Store | None = None,
    settings: IndexSettings,
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> DockerImage:
    """Build an image of an environment with a Docker engine, and push it.

    Synchronous, so that Ctrl-C ends what the engine is asked for: it stops a build whose client is gone.

    Parameters
    ----------
    engine : Engine
        Builds and pushes.
    place : ImagePlace
        Where the image goes; a registry.
    snapshot, options, lock, store, settings, allow_substitutes, hooks
        As for `collect`.

    Raises
    ------
    EnvsyncError
        It cannot be locked, built or pushed.
    """
    began = time.monotonic()
    hooks, reference = hooks or Hooks(), place.reference
    if reference is None or reference.digest:
        raise ImageError(
            f"{place} is not where a Docker engine can push to",
            hint="Name it as registry.example.org/team/analysis:tag, or leave out --builder docker.",
        )
    target = target_of(snapshot, options, lock)
    platform = Platform.of("linux", target.machine)
    base = base_of(options, target)
    base_digest = engine.base(Reference.parse(base), platform)
    with scratch("image") as folder:
        context = asyncio.run(
            collect(
                folder / "context",
                snapshot,
                replace(options, mounts=engine.uses_buildkit()),
                base_digest=base_digest,
                libc=engine.libc(Reference.parse(base)) if lock is None else None,
                lock=lock,
                store=store,
                settings=settings,
                allow_substitutes=allow_substitutes,
                hooks=hooks,
            )
        )
        tags = tuple(
            dict.fromkeys([reference.tag or context.lock.digest[:TAG_LENGTH], *options.tags]),
        )
        built = f"{reference.name}:{tags[0]}"
        started = time.monotonic()
        # what only installs needs no network; dev and a user's own Dockerfile may install system packages
        network = "none" if options.template in ("base", "gpu") else ""
        size = engine.build(context.folder, built, platform, network=network)
        hooks.done("here", "built", time.monotonic() - started)
    started = time.monotonic()
    sent = [engine.push(built, reference, tag) for tag in tags]
    hooks.done("here", "pushed", time.monotonic() - started)
    return DockerImage(
        name=reference.name,
        tags=tags,
        digest=sent[0].digest,
        size=size,
        sent=sent[0].sent,
        there=sent[0].there,
        platform=str(platform),
        base=base,
        lock=context.lock,
        trees=context.trees,
        seconds=time.monotonic() - began,
    )
