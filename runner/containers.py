"""Running from a container image: which one, had on each host and compared with its lock, and the commands.

The agent on a host stays the supervisor. What it starts is an engine's client, and when that has ended it
removes the container, which an engine's client that dies leaves running.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from envsync.errors import ImageError, RegistryLoginError
from envsync.images.auth import HUB_KEYS, find_login
from envsync.images.places import ImagePlace
from envsync.images.reference import DEFAULT_REGISTRY, Reference
from envsync.lock import Lock
from envsync.plugins.compare import compare
from envsync.runner.options import run_name
from envsync.runner.session import Environment
from envsync.trees import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.images.auth import Login
    from envsync.plugins.compare import Difference
    from envsync.runner.session import Session

__all__ = ["PREFIX", "Contained", "Container", "ImageName", "contained", "image_of"]

PREFIX = "image:"
"""What ``env=`` begins with if it names an image."""

_PLACE = "/opt/envsync"
_PASSED = ("SSH_CONNECTION", "CUDA_VISIBLE_DEVICES", "TZ")
_TEMPORARY = "/tmp"  # noqa: S108 - inside
_LONGEST = 120  # letters of a container's name


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """An image to run from, and how.

    Attributes
    ----------
    reference : Reference
        With its digest.
    engine : str
        ``"podman"`` or ``"docker"``; empty for what a host has.
    """

    reference: Reference
    engine: str = ""

    def __str__(self) -> str:
        return str(self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How processes run from an image on one host.

    Attributes
    ----------
    engine : str
        The path of its program there.
    image : str
        The image's name, with its digest.
    user : str
        Number of user and group that processes have inside.
    python : str
        The interpreter in the image.
    devices : tuple of str
        Arguments that pass the host's GPUs.
    compiled : str
        A folder of the host for what is compiled of the image's Python files, which containers share.
    """

    engine: str
    image: str
    user: str
    python: str
    devices: tuple[str, ...] = ()
    compiled: str = ""

    def command(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        read: Sequence[str] = (),
        write: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return what starts the image's Python.

        Parameters
        ----------
        name : str
            The container's.
        arguments : sequence of str
            Python's.
        read, write : sequence of str
            Folders of the host that it finds where they are on the host.
        env : mapping of str to str, optional
            Variables, besides the image's own. Everyone on the host can read them.
        """
        variables = dict(env or {})
        if self.user != "0:0":
            variables["HOME"] = _TEMPORARY  # it need not have an entry in the image's list of users
        if self.compiled:
            variables["PYTHONPYCACHEPREFIX"] = self.compiled
            write = (*write, self.compiled)
        return [
            *(self.engine, "run", "--rm", "--interactive", "--pull", "never", "--name", name),
            *("--network", "host", "--ipc", "host", "--log-driver", "none", "--stop-timeout", "1"),
            *("--security-opt", "label=disable", "--user", self.user, "--workdir", _TEMPORARY),
            *self.devices,
            *(part for folder in read for part in ("--volume", f"{folder}:{folder}:ro")),
            *(part for folder in write for part in ("--volume", f"{folder}:{folder}")),
            *(part for each in _PASSED for part in ("--env", each)),  # as they are there
            *(part for each in variables.items() for part in ("--env", "=".join(each))),
            *("--entrypoint", self.python, self.image, *arguments),
        ]

    def removal(self, name: str) -> list[str]:
        """Return what ends a container and removes it; it may be gone."""
        return [self.engine, "rm", "--force", name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contained:
    """An image on one host, and what is in it.

    Attributes
    ----------
    lock : Lock
        The image's, with its trees.
    environment : Environment
        What the image's own Python sees.
    trees : tuple of (Manifest, str)
        The local code in it and its folders, inside.
    differences : tuple of Difference
        Between lock and environment.
    container : Container
        How to run from it.
    """

    lock: Lock = field(repr=False)
    environment: Environment
    trees: tuple[tuple[Manifest, str], ...]
    differences: tuple[Difference, ...]
    container: Container


def image_of(text: str, engine: str | None = None) -> ImageName:
    """Return the image that a user names: a tag becomes the digest that the registry has for it now.

    Parameters
    ----------
    text : str
        ``image:registry.example.org/team/analysis@sha256:...``, or with a tag.
    engine : str, optional
        ``"podman"`` or ``"docker"``.

    Raises
    ------
    ValueError
        There is no such engine, or it is no image's name.
    ImageError, RegistryError
        The registry has no such image, or cannot be asked.
    """
    if engine not in (None, "", "podman", "docker"):
        raise ValueError(f"engine must be 'podman' or 'docker', not {engine!r}")
    place = ImagePlace.parse(text.removeprefix(PREFIX))
    if place.reference is None:
        raise ImageError(
            f"{place} is a folder, and hosts take images from a registry",
            hint="Push it there: envsync push registry.example.org/team/name, or skopeo copy.",
        )
    reference = place.reference
    if not reference.digest:
        images = place.open()
        try:
            digest = images.manifest_digest(place.version)
        finally:
            images.close()
        if digest is None:
            raise ImageError(
                f"there is no image {reference}", hint="Look at its name: envsync inspect IMAGE."
            )
        reference = replace(reference, digest=digest)
    return ImageName(reference=reference, engine=engine or "")


async def contained(session: Session, image: ImageName, hooks: Hooks) -> Contained:
    """Have an image on a session's host, and compare what is in it with its lock.

    Raises
    ------
    UnfitHostError
        No engine can be used there, or the image is for another platform.
    ImageError
        The image cannot be had, or envsync did not make it.
    RegistryLoginError
        The registry lets neither that host in, nor what this client has for a login.
    """
    began, host = time.monotonic(), session.host.name
    reference = replace(image.reference, tag="")  # engines take one of the two
    request: dict[str, Any] = {"image": str(reference), "engine": image.engine, "run": run_name("image")}
    try:
        answer = await session.request("have_image", login=None, **request)
    except RegistryLoginError:
        login = (await asyncio.to_thread(find_login, reference.registry, reference.repository)).login
        if login is None:
            raise
        session.keep_secret(login.password, login.basic.partition(" ")[2])
        answer = await session.request("have_image", login=_entry(reference, login), **request)
    lock = Lock.loads(answer["lock"], f"{image}: {_PLACE}/pylock.toml")
    manifests = [Manifest.from_dict(answer["trees"][one.digest]) for one in lock.trees]
    python = f"{_PLACE}/env/bin/python"
    report = {**answer["report"], "who": f"image on {host}"}
    what = "pulled" if answer["pulled"] else "found"
    hooks.done(host, f"image {what} and checked with {answer['kind']}", time.monotonic() - began)
    return Contained(
        lock=lock,
        environment=Environment(
            digest=lock.digest,
            prefix=f"{_PLACE}/env",
            python=python,
            created=bool(answer["pulled"]),
            report=report,
        ),
        trees=tuple((one, f"{_PLACE}/trees/{one.digest}") for one in manifests),
        differences=tuple(compare(lock.report(), report, where=host)),
        container=Container(
            engine=answer["engine"],
            image=str(reference),
            user=answer["user"],
            python=python,
            devices=_devices(session, answer, hooks),
            compiled=answer["compiled"],
        ),
    )


def container_name(cluster: str, name: str) -> str:
    """Return the name of a process's container: `cluster` is nobody else's."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"envsync-{name[:40]}-{cluster}")[:_LONGEST]


def folders_of(session: Session, run_folder: str, options: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return what a process's container finds of its host's folders."""
    local = str(options.get("local_directory") or "")
    return {
        "read": (str(PurePosixPath(session.agent).parent), run_folder),
        "write": (local,) if local.startswith("/") else (),
    }


def _devices(session: Session, answer: Mapping[str, Any], hooks: Hooks) -> tuple[str, ...]:
    if not session.facts.get("gpus"):
        return ()
    if answer["kind"] == "docker":
        return ("--gpus", "all")
    if answer["cdi"]:
        return ("--device", "nvidia.com/gpu=all")
    hooks.warning(
        session.host.name,
        "its GPUs are not passed to containers: podman needs their description in /etc/cdi"
        " (nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml)",
    )
    return ()


def _entry(reference: Reference, login: Login) -> dict[str, Any]:
    """Return a login as an engine's configuration file has it."""
    registry = HUB_KEYS[0] if reference.registry == DEFAULT_REGISTRY else reference.registry
    entry = {"identitytoken": login.password} if login.identity else {}
    return {"registry": registry, "entry": {"auth": login.basic.partition(" ")[2], **entry}}
