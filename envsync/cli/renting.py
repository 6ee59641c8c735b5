"""The options of rented machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLOUDS", "RENTING_OPTIONS", "option_of", "rented", "renting_options"]

CLOUDS = ("ec2", "gce", "hetzner")

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--instance-type", "type"), {"metavar": "TYPE", "help": "Of the machines, such as m7i.2xlarge."}),
    (
        ("--region",),
        {
            "multiple": True,
            "metavar": "NAME",
            "help": "Where. Given again: where to try next if there is no room.",
        },
    ),
    (
        ("--spot",),
        {
            "type": click.Choice(["never", "prefer", "only"]),
            "help": "Cheaper machines, which can be taken back: never by default; prefer takes others where "
            "there are none.",
        },
    ),
    (
        ("--disk",),
        {"metavar": "SIZE", "help": "Each root disk, such as '100 GB'; the image's if not given."},
    ),
    (
        ("--machine-image",),
        {
            "metavar": "NAME",
            "help": "What machines boot, by its id or name; plain Debian by default.",
        },
    ),
    (
        ("--workers-per-machine",),
        {"type": click.IntRange(min=1), "metavar": "N", "help": "Workers that -n counts on for each; 1."},
    ),
    (
        ("--cloud-option",),
        {
            "multiple": True,
            "metavar": "KEY=VALUE",
            "help": "Another keyword of that cloud, such as instance-profile=reader. May be given again.",
        },
    ),
)
RENTING_OPTIONS = tuple(names[-1].lstrip("-").replace("-", "_") for names, _ in _OPTIONS)
"""The keywords that `renting_options` come as."""

_CALLED = {"machine_image": "image"}
_CALLED_THERE = {"hetzner": {"region": "location"}}


def renting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of rented machines; they come as keywords, see `rented`."""
    for names, attributes in reversed(_OPTIONS):
        command = click.option(*names, **attributes)(command)
    return command


def option_of(key: str) -> str:
    """Return how the option is written that comes as a keyword; empty if it is none of these."""
    return next(
        (names[0] for (names, _), one in zip(_OPTIONS, RENTING_OPTIONS, strict=True) if one == key), ""
    )


def rented(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return options by the keywords of a cloud's class."""
    names = {**_CALLED, **_CALLED_THERE.get(kind, {})}
    return {names.get(key, key): value for key, value in given.items()}
