"""The options of rented machines."""

from __future__ import annotations

from typing import Any

import click

from envsync.cli.sections import OptionTable

__all__ = ["RENTING", "rented"]

_ROWS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
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
        {"type": click.IntRange(min=1), "metavar": "N", "help": "Workers of each machine; 1 if not given."},
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
RENTING = OptionTable(_ROWS)


def rented(given: dict[str, Any]) -> dict[str, Any]:
    """Return options by the keywords of a cloud's class; `image` is another option of ``envsync run``."""
    return {"image" if key == "machine_image" else key: value for key, value in given.items()}
