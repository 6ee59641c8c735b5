"""Which image and which network, of those that a cloud of OpenStack has. Pure: lists come in, one goes out.

Neither is called the same in two clouds, and names are not given once: the SDK's own look-ups by name fail
where there are two, or take whatever comes first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.provider import Expected
from envsync.runner.cloud.systems import SYSTEMS, system_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["choose_image", "choose_network", "expected_of"]

_ARM = re.compile(r"arm64|aarch64", re.IGNORECASE)
_PLAIN = frozenset(
    [
        "debian",
        "bookworm",
        "trixie",
        "ubuntu",
        "noble",
        "numbat",
        "jammy",
        "jellyfish",
        "lts",
        "server",
        "cloud",
        "cloudimg",
        "generic",
        "genericcloud",
        "openstack",
        "amd64",
        "x86",
        "image",
        "img",
        "disk",
        "qcow2",
        "raw",
        "latest",
        "current",
        "stable",
    ]
)
"""Words of which names of plain images are made. Any other may say that something is installed."""
_GPUS = ("pci_passthrough:alias", "resources:vgpu", "resources:pgpu")
_SHOWN = 12  # names in an error


def choose_image(images: Iterable[Any], wanted: str, project: str, where: str) -> Any:
    """Return an image.

    Parameters
    ----------
    images : iterable of Image
        Those that there are, as the SDK has them.
    wanted : str
        A name or an id; empty for the newest plain Debian or Ubuntu that the cloud or the project has: what
        other projects share may be called anything.
    project : str
        The id of the project.
    where : str
        For errors.

    Raises
    ------
    CloudError
        There is none, or several have that name.
    """
    there = [one for one in images if one.status in (None, "active")]
    if wanted:
        named = [one for one in there if one.id == wanted] or [one for one in there if one.name == wanted]
        if len(named) > 1:
            said = "; ".join(f"{one.id}, of {one.created_at}" for one in _by_age(named))
            raise CloudError(
                f"{len(named)} images are called {wanted!r}: {said}",
                where=where,
                hint="Name one by its id: OpenStack(..., image='...').",
            )
        if named:
            return named[0]
        raise CloudError(f"there is no image {wanted!r}", where=where, hint=_named(there))
    trusted = [one for one in there if one.visibility == "public" or one.owner == project]
    for system in SYSTEMS:
        plain = [one for one in trusted if _is_plain(one) and system_of(one.name) is system]
        if plain:
            return _by_age(plain)[0]
    names = ", ".join(system.name for system in SYSTEMS)
    raise CloudError(
        f"no image is known as plain by its name ({names})",
        where=where,
        hint=f"Name one with systemd and cloud-init: OpenStack(..., image='...'). {_named(there)}",
    )


def choose_network(
    networks: Sequence[Any], wanted: str, project: str, where: str, *, option: str = "network"
) -> str:
    """Return the id of a network: of a name or an id; else the project's only one, else the only one.

    Raises
    ------
    CloudError
        There is none, or more than one.
    """
    if wanted:
        found = [one for one in networks if one.id == wanted] or [
            one for one in networks if one.name == wanted
        ]
    else:
        found = [one for one in networks if one.project_id == project and not one.is_router_external]
        found = found or list(networks)
    if len(found) == 1:
        return str(found[0].id)
    what = f" {wanted!r}" if wanted else ""
    there = "; ".join(f"{one.name} ({one.id})" for one in (found or networks)) or "none"
    raise CloudError(
        f"there is no network{what}" if not found else f"there are {len(found)} networks{what}",
        where=where,
        hint=f"Name one: OpenStack(..., {option}='...'), by its id if need be. There are: {there}.",
    )


def expected_of(image: Any, flavor: Any) -> Expected | None:
    """Return what a machine will be; None where the image's name does not tell, or the flavor has GPUs."""
    system = system_of(f"{image.name} / {image.os_distro or ''} {image.os_version or ''}")
    specs = {str(key).lower(): value for key, value in (flavor.extra_specs or {}).items()}
    if system is None or any(one in specs for one in _GPUS):
        return None
    return Expected(
        image=str(image.id),
        name=str(image.name),
        machine="aarch64" if _is_arm(image) else "x86_64",
        libc=("glibc", system.libc),
        python=system.python,
    )


def _is_plain(image: Any) -> bool:
    words = re.split(r"[^a-z0-9]+", str(image.name or "").lower())
    return not _is_arm(image) and all(one in _PLAIN or one.isdigit() or not one for one in words)


def _is_arm(image: Any) -> bool:
    return bool(_ARM.search(f"{image.architecture or ''} {image.name or ''}"))


def _by_age(images: Iterable[Any]) -> list[Any]:
    return sorted(images, key=lambda one: str(one.created_at or ""), reverse=True)


def _named(images: Sequence[Any]) -> str:
    names = sorted({str(one.name) for one in images})
    more = ", ..." if len(names) > _SHOWN else ""
    return f"There are: {', '.join(names[:_SHOWN])}{more}." if names else "There are none."
