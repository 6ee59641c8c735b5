"""What ``envsync push`` does with a destination that is an image, and the options for images only."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envsync.cli.arguments import wrong
from envsync.cli.output import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envsync.hooks import Hooks
    from envsync.images.places import ImagePlace
    from envsync.lock import Lock
    from envsync.runner.contexts import DockerImage
    from envsync.runner.imaging import PushedImage
    from envsync.stores.pulling import Pulled

    _F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "ImageChoices",
    "base_option",
    "demand_images",
    "describe_image",
    "image_options",
    "image_place",
    "image_to_dict",
    "plain_http_option",
    "platform_option",
    "push_images",
    "template_option",
]

_LATEST = "latest"
_BASE = "ENVSYNC_BASE"


@dataclass(frozen=True, slots=True)
class ImageChoices:
    """The options of `image_options`, as they were given."""

    base: str | None = None
    platform: str | None = None
    tags: tuple[str, ...] = ()
    latest: bool = False
    compression: str | None = None
    plain_http: bool = False
    builder: str | None = None
    template: str | None = None
    sbom: bool = False

    @property
    def named(self) -> str:
        """An option that was given; empty if none was."""
        given = {
            "--base": self.base and self.base != os.environ.get(_BASE),
            "--platform": self.platform,
            "--tag": self.tags,
            "--latest": self.latest,
            "--compression": self.compression,
            "--plain-http": self.plain_http,
            "--sbom": self.sbom,
            "--builder": self.builder,
            "--template": self.template,
        }
        return next((name for name, value in given.items() if value), "")

    @property
    def clash(self) -> str:
        """An option that does not go with the way images are made; empty if all do."""
        if self.builder != "docker":
            return "--template is for images that Docker builds: --builder docker" if self.template else ""
        if self.sbom:
            return "--sbom is for images that envsync makes itself: leave out --builder"
        alone = {"--compression": self.compression, "--plain-http": self.plain_http}
        names = [name for name, value in alone.items() if value]
        return f"{names[0]} is the engine's own setting with --builder docker" if names else ""


def demand_images(names: Iterable[str], option: str | None = None) -> None:
    """Refuse what cannot be the names of images; nothing is asked of a registry.

    Raises
    ------
    click.BadParameter
        One cannot be.
    """
    for name in names:
        place = image_place(name, option)
        if place.digest or (place.reference is not None and place.reference.digest):
            raise click.BadParameter(
                f"{name!r} names an image by its digest, which only follows from what is in it\n"
                "  Leave out what begins with @.",
                param_hint=option,
            )


def image_place(name: str, option: str | None = None) -> ImagePlace:
    """Read an image's name.

    Raises
    ------
    click.BadParameter
        It is none.
    """
    from envsync.errors import ImageError
    from envsync.images.places import ImagePlace

    try:
        return ImagePlace.parse(name)
    except ImageError as error:
        raise wrong(error, option) from error


def _base(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse what cannot be the name of an image to put an environment on."""
    if value is not None:
        image_place(value.replace("{minor}", "3.0"))
    return value


def _tags(_ctx: object, _parameter: object, values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what cannot be a tag."""
    from envsync.errors import ImageError
    from envsync.images.reference import Reference

    for value in values:
        try:
            taken = Reference.parse(f"localhost/x:{value}").tag == value
        except ImageError:
            taken = False
        if not taken:
            raise click.BadParameter(
                f"{value!r} is not a tag: letters, digits, '_', '.' and '-', at most 128"
            )
    return values


def _platform(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse what cannot be a platform."""
    if value is not None:
        from envsync.errors import ImageError
        from envsync.runner.imaging import parse_platform

        try:
            parse_platform(value)
        except ImageError as error:
            raise wrong(error) from error
    return value


platform_option = click.option(
    "--platform",
    metavar="linux/ARCH",
    callback=_platform,
    help="An image for another kind of machine: linux/amd64, linux/arm64.",
)


def _template(_ctx: object, _parameter: object, value: str | None) -> str | None:
    """Refuse what is neither one of our Dockerfiles nor a file."""
    if value is None:
        return None
    from envsync.images.context import TEMPLATES

    if value not in TEMPLATES and not Path(value).is_file():
        raise click.BadParameter(f"{value!r} is neither a file nor one of {', '.join(TEMPLATES)}")
    return value


base_option = click.option(
    "--base",
    metavar="IMAGE",
    envvar=_BASE,
    callback=_base,
    help="What an image goes on top of: its name, or oci:FOLDER. [default: python:{minor}-slim]",
)
template_option = click.option(
    "--template",
    metavar="base|gpu|dev|FILE",
    callback=_template,
    help="The Dockerfile that Docker builds from. [default: base]",
)
plain_http_option = click.option(
    "--plain-http", is_flag=True, help="Talk to registries without TLS; on this machine that needs no asking."
)


def image_options(function: _F) -> _F:
    """Add the options that are for images only; the command takes them as one `ImageChoices`, ``images``."""

    def gather(
        *arguments: Any,
        base: str | None,
        platform: str | None,
        tags: tuple[str, ...],
        latest: bool,
        compression: str | None,
        plain_http: bool,
        builder: str | None,
        template: str | None,
        sbom: bool,
        **others: Any,
    ) -> Any:
        chosen = ImageChoices(base, platform, tags, latest, compression, plain_http, builder, template, sbom)
        return function(*arguments, images=chosen, **others)

    gather.__doc__ = function.__doc__
    for option in reversed(
        [
            base_option,
            platform_option,
            click.option(
                "--tag",
                "tags",
                metavar="TAG",
                multiple=True,
                callback=_tags,
                help="Tag an image with this too; also several times.",
            ),
            click.option("--latest", is_flag=True, help="The same as --tag latest."),
            click.option(
                "--compression",
                type=click.Choice(["gzip", "zstd"]),
                help="Of an image's layers. [default: gzip, which every engine takes]",
            ),
            plain_http_option,
            click.option(
                "--sbom",
                is_flag=True,
                help="Attach to an image what it is made of, as CycloneDX; needs dask-envsync[sbom].",
            ),
            click.option(
                "--builder",
                type=click.Choice(["docker"]),
                help="Build an image with a Docker engine. [default: without one]",
            ),
            template_option,
        ]
    ):
        gather = option(gather)
    return gather  # type: ignore[return-value]


def push_images(
    names: Iterable[str],
    chosen: ImageChoices,
    lock: Lock | Pulled | None,
    allow_substitutes: bool,
    hooks: Hooks,
) -> list[PushedImage | DockerImage]:
    """Make an image of this environment, and put it where each name says."""
    import asyncio

    leave_httpx_its_command()
    if chosen.builder == "docker":
        return _push_with_docker(names, chosen, lock, allow_substitutes, hooks)
    from envsync.images.places import ImagePlace
    from envsync.indexes import read_settings
    from envsync.runner.imaging import ImageOptions, push_image
    from envsync.snapshot import capture

    places = [ImagePlace.parse(name) for name in names]
    options = ImageOptions(
        base=chosen.base or "",
        platform=chosen.platform or "",
        tags=(*chosen.tags, *((_LATEST,) if chosen.latest else ())),
        compression=chosen.compression or "gzip",
        plain_http=chosen.plain_http,
        sbom=chosen.sbom,
    )
    snapshot, settings = capture(cwd=str(Path.cwd())), read_settings()

    async def push(place: ImagePlace) -> PushedImage:
        return await push_image(
            place,
            snapshot,
            options,
            lock=lock,
            settings=settings,
            allow_substitutes=allow_substitutes,
            hooks=hooks,
        )

    return [asyncio.run(push(place)) for place in places]


def _push_with_docker(
    names: Iterable[str],
    chosen: ImageChoices,
    lock: Lock | Pulled | None,
    allow_substitutes: bool,
    hooks: Hooks,
) -> list[PushedImage | DockerImage]:
    from envsync.images.docker import Engine
    from envsync.images.places import ImagePlace
    from envsync.indexes import read_settings
    from envsync.runner.contexts import DockerOptions, push_with_docker
    from envsync.snapshot import capture

    options = DockerOptions(
        template=chosen.template or "base",
        base=chosen.base or "",
        platform=chosen.platform or "",
        tags=(*chosen.tags, *((_LATEST,) if chosen.latest else ())),
    )
    with Engine(hooks) as engine:
        snapshot, settings = capture(cwd=str(Path.cwd())), read_settings()
        return [
            push_with_docker(
                engine,
                ImagePlace.parse(name),
                snapshot,
                options,
                lock=lock,
                settings=settings,
                allow_substitutes=allow_substitutes,
                hooks=hooks,
            )
            for name in names
        ]


def leave_httpx_its_command() -> None:
    """Keep httpx from importing its command line, and trio: each takes longer than all that we ask of it."""
    stub = ModuleType("httpx._main")
    stub.main = lambda: None  # type: ignore[attr-defined]
    sys.modules.setdefault("httpx._main", stub)
    if "trio" in sys.modules:
        return
    sys.modules["trio"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        importlib.import_module("httpcore")
    finally:
        del sys.modules["trio"]


def describe_image(one: PushedImage | DockerImage) -> str:
    """Return a push for reading."""
    tags = "".join(f"\n  also {one.name}:{tag}" for tag in one.tags[1:])
    return f"{one.reference}\n  {_described(one)}, {one.seconds:.1f} s{tags}"


def _described(one: PushedImage | DockerImage) -> str:
    from envsync.runner.imaging import PushedImage

    if not isinstance(one, PushedImage):
        sent = f"{one.sent} of {plural(one.sent + one.there, 'layer')} sent" if one.sent else "nothing sent"
        return f"built by Docker, {sent}, {_amount(one.size)} unpacked"
    layers = len(one.built.layers)
    if one.built.made:
        what = f"{len(one.built.made)} of {plural(layers, 'layer')} made, {_amount(one.sent)} sent"
    else:
        what = f"was there, {_amount(one.sent)} sent" if one.sent else "was there, nothing sent"
    return f"{what}, {_amount(one.built.size)} in all{', with an SBOM' if one.sbom else ''}"


def _amount(size: int) -> str:
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def image_to_dict(one: PushedImage | DockerImage) -> dict[str, Any]:
    """Return a push as plain JSON types."""
    return {
        "reference": one.reference,
        "image": one.name,
        "tags": list(one.tags),
        "platform": one.platform,
        "base": one.base,
        "environment": one.environment,
        **_amounts(one),
        "seconds": round(one.seconds, 3),
        "trees": [
            {"name": tree.name, "digest": tree.digest, "left_out": [list(each) for each in tree.left_out]}
            for tree in one.trees
        ],
    }


def _amounts(one: PushedImage | DockerImage) -> dict[str, Any]:
    from envsync.runner.imaging import PushedImage

    if not isinstance(one, PushedImage):
        return {
            "builder": "docker",
            "digest": one.digest,
            "layers": one.sent + one.there,
            "layers_sent": one.sent,
            "size_unpacked": one.size,
        }
    return {
        "digest": one.built.digest,
        "layers": len(one.built.layers),
        "layers_made": len(one.built.made),
        "size": one.built.size,
        "sent": one.sent,
        "sbom": one.sbom or None,
    }
