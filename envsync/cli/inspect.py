"""``envsync inspect``: what is in an image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envsync.cli.image import image_place, leave_httpx_its_command, plain_http_option, platform_option
from envsync.cli.output import command as make_command
from envsync.cli.output import current, plural, result, terminated_as_interrupted, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from envsync.images.inspecting import Inspection
    from envsync.images.oci import Images, Platform

__all__ = ["command"]

_T = TypeVar("_T")
_SHOWN = 10  # packages, unless --verbose


def _image(_ctx: object, _parameter: object, value: str) -> str:
    """Refuse what cannot be an image's name."""
    image_place(value)
    return value


@make_command("inspect", short_help="Show what is in an image that envsync made.")
@click.argument("image", metavar="IMAGE", callback=_image)
@platform_option
@plain_http_option
@click.option("--sbom", is_flag=True, help="Print the SBOM that is attached to it, a JSON document.")
def command(image: str, platform: str | None, plain_http: bool, sbom: bool) -> None:
    """Show what is in IMAGE: packages, local code, what it runs on, and what it was put on top of.

    IMAGE is registry.example.org/team/analysis:tag, or oci:FOLDER[:TAG]. Little of it is downloaded.
    """
    if sbom:
        with watch(), terminated_as_interrupted():
            document = _sbom(image, platform, plain_http=plain_http)
        return result(document, lambda: json.dumps(document, indent=2))
    with watch(), terminated_as_interrupted():
        found = look_at_image(image, platform, plain_http=plain_http)
    return result({"image": image, **found.to_dict()}, lambda: _described(image, found))


def look_at_image(text: str, platform: str | None = None, *, plain_http: bool = False) -> Inspection:
    """Look at what a user calls an image.

    Raises
    ------
    EnvsyncError
        It is not there, or not one of ours.
    """
    leave_httpx_its_command()
    from envsync.images.inspecting import inspect

    return _ask(inspect, text, platform, plain_http)


def _sbom(text: str, platform: str | None, *, plain_http: bool) -> dict[str, Any]:
    leave_httpx_its_command()
    from envsync.images.sbom import read_sbom

    return _ask(read_sbom, text, platform, plain_http)


def _ask(
    question: Callable[[Images, str, Platform | None], _T], text: str, platform: str | None, plain_http: bool
) -> _T:
    from envsync.images.places import ImagePlace
    from envsync.runner.imaging import parse_platform

    place = ImagePlace.parse(text)
    images = place.open(plain_http=plain_http)
    try:
        return question(images, place.version, None if platform is None else parse_platform(platform))
    finally:
        images.close()


def _described(image: str, found: Inspection) -> str:
    artifacts = found.lock.artifacts()
    shown = len(artifacts) if current().verbose else _SHOWN
    packages = "  ".join(f"{one.name} {one.version}" for one in artifacts[:shown])
    more = f"  and {len(artifacts) - shown} more (-v shows all)" if len(artifacts) > shown else ""
    trees = [
        f"  {tree.name}: {plural(len(tree.files), 'file')}, {tree.digest[:12]}, imported "
        f"{'before' if tree.position == 'front' else 'after'} packages"
        for tree in found.trees
    ]
    name = found.base_name or "an image without a name"
    lines = [
        f"{image} ({found.digest})",
        f"environment {found.lock.digest[:12]} for {found.lock.target.describe()}",
        f"on {name} ({found.base or 'unknown digest'}), {found.config.platform}",
        f"{plural(len(artifacts), 'package')}: {packages}{more}",
        f"{plural(len(trees), 'source tree')}" + (":" if trees else ""),
        *trees,
        f"{plural(len(found.layers), 'layer')}, {found.size / 1e6:.1f} MB:",
        *(f"  {one.size / 1e6:8.1f} MB  {by or 'unknown'}" for one, by in found.layers),
    ]
    return "\n".join(lines)
