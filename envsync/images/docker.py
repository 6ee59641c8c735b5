"""A Docker engine: builds a folder into an image, and pushes it. What fails there raises here."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envsync.errors import ImageError, RegistryError, RegistryLoginError
from envsync.hooks import Hooks
from envsync.images.auth import find_login
from envsync.images.oci import Platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from envsync.images.reference import Reference

__all__ = ["Engine", "Sent"]

_log = logging.getLogger(__name__)

_SECONDS = 600.0  # of silence, after which an engine is taken to hang; a build may be silent for longer
_LINES = 30  # of output that an error shows
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
_BUILDKIT_STEP = re.compile(r"#\d+ \[(?:\S+ )?(\d+)/(\d+)\] (.*)")
_REFUSED = re.compile(r"unauthorized|denied|no basic auth|authentication required", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a push did.

    Attributes
    ----------
    digest : str
        Of the manifest in the registry.
    sent, there : int
        Layers that went there, and that were there.
    """

    digest: str
    sent: int
    there: int


class Engine:
    """The engine that ``DOCKER_HOST`` names, or the one of this machine.

    Parameters
    ----------
    hooks : Hooks, optional
        Told about steps and progress. What commands in a build write is logged.

    Raises
    ------
    ImageError
        There is none, or the library to talk to it is not installed.
    """

    def __init__(self, hooks: Hooks | None = None) -> None:
        try:
            import docker
        except ImportError as error:
            raise ImageError(
                "talking to a Docker engine needs a library that is not installed",
                hint="Install dask-envsync[docker]. Without --builder docker no engine is needed.",
            ) from error
        self.hooks = hooks or Hooks()
        with _told("no Docker engine answers"):
            self._client = docker.from_env(timeout=_SECONDS)
            self._api: Any = self._client.api
            self._api.ping()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def uses_buildkit(self) -> bool:
        """Tell whether builds are BuildKit's: if ``DOCKER_BUILDKIT`` says so, else if the CLI has it.

        BuildKit speaks another protocol than the library does, so those builds are the ``docker`` command's.
        """
        asked = os.environ.get("DOCKER_BUILDKIT", "")
        if asked or shutil.which("docker") is None:
            return asked not in ("", "0") and shutil.which("docker") is not None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["docker", "buildx", "version"]
            return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
        return False

    def base(self, reference: Reference, platform: Platform) -> str:
        """Have a base image in the engine, and return its digest in its registry; empty if it has none.

        Raises
        ------
        ImageError
            There is no such image, or it is for another platform.
        """
        from docker.errors import ImageNotFound

        name = _name(reference)
        with _told(f"the base image {name} cannot be had"):
            try:
                found = self._api.inspect_image(name)
            except ImageNotFound:
                self.hooks.step("here", f"pulling {name}")
                events = self._api.pull(
                    reference.name,
                    tag=reference.version,
                    stream=True,
                    decode=True,
                    platform=str(platform),
                    auth_config=_login(reference),
                )
                self._follow(events, f"the base image {name} cannot be had")
                found = self._api.inspect_image(name)
        there = Platform(architecture=found["Architecture"], os=found["Os"], variant=found.get("Variant", ""))
        if not platform.runs(there):
            raise ImageError(
                f"the image is for {there}, and {platform} is wanted",
                where=name,
                hint="Choose an image for that platform, or lock for one that the image is for.",
            )
        digests = [one.rpartition("@") for one in found.get("RepoDigests") or ()]
        short = name.rpartition("@")[0] or name.rpartition(":")[0]
        return next((digest for repository, _, digest in digests if repository == short), "")

    def libc(self, reference: Reference) -> tuple[str, str] | None:
        """Ask a base image that is in the engine which C library it has; None if it does not say."""
        from docker.errors import ContainerError

        try:
            with _told("the base image cannot be looked at"):
                said = self._client.containers.run(
                    _name(reference),
                    ["GNU_LIBC_VERSION"],
                    entrypoint=["getconf"],
                    network_mode="none",
                    remove=True,
                )
        except (ImageError, ContainerError):
            return None  # no getconf: the build will tell
        found = re.fullmatch(rb"glibc (\d+\.\d+)\s*", said)
        return None if found is None else ("glibc", found[1].decode())

    def build(self, folder: Path, tag: str, platform: Platform, *, network: str = "") -> int:
        """Build a folder, and return the image's size in bytes, unpacked.

        Parameters
        ----------
        folder : Path
            As `envsync.images.context.write` makes it.
        tag : str
            What the image is called in the engine.
        platform : Platform
            What it runs on.
        network : str
            What its steps may use, such as ``"none"``; the engine's default if empty.

        Raises
        ------
        ImageError
            A step failed; the error shows what it wrote last.
        """
        if self.uses_buildkit():
            self._build_by_command(folder, tag, platform, network)
        else:
            with _told("the image cannot be built"):
                events = self._api.build(
                    path=str(folder),
                    tag=tag,
                    rm=True,
                    forcerm=True,
                    decode=True,
                    platform=str(platform),
                    network_mode=network or None,
                )
                self._follow(events, "the image cannot be built")
        with _told("the image that was built is not in the engine"):
            return int(self._api.inspect_image(tag)["Size"])

    def _build_by_command(self, folder: Path, tag: str, platform: Platform, network: str) -> None:
        command = ["docker", "build", "--progress", "plain", "--platform", str(platform), "-t", tag]
        command += ["--network", network] if network else []
        process = subprocess.Popen(
            [*command, str(folder)],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said: deque[str] = deque(maxlen=_LINES)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                self._tell(_BUILDKIT_STEP.match(line), line)
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        if status:
            raise _failed("the image cannot be built", f"docker build ended with {status}", said)

    def push(self, image: str, reference: Reference, tag: str) -> Sent:
        """Push an image of the engine under a tag.

        Raises
        ------
        RegistryError
            The registry does not take it, or is not reached.
        """
        name = f"{_short(reference)}:{tag}"
        with _told(f"the image cannot be pushed as {name}"):
            self._api.tag(image, _short(reference), tag, force=True)
            events = self._api.push(
                _short(reference), tag=tag, stream=True, decode=True, auth_config=_login(reference)
            )
            return self._pushed(events, reference)

    def _pushed(self, events: Iterable[Mapping[str, Any]], reference: Reference) -> Sent:
        digest, how = "", dict[str, str]()
        amounts: dict[str, tuple[int, int]] = {}
        self.hooks.step("here", f"pushing {_short(reference)}")
        for event in events:
            if "error" in event:
                text = str(event["error"]).strip()
                kind = RegistryLoginError if _REFUSED.search(text) else RegistryError
                raise kind(
                    f"the engine could not push: {text}",
                    where=reference.registry,
                    hint=f"Log in: docker login {reference.registry}"
                    if kind is RegistryLoginError
                    else "It is the engine that has to reach it, with proxies and certificates of its own.",
                )
            digest = str((event.get("aux") or {}).get("Digest") or digest)
            layer, status = str(event.get("id", "")), str(event.get("status", ""))
            if status in ("Pushed", "Layer already exists") or status.startswith("Mounted from"):
                how[layer] = status
            detail = event.get("progressDetail") or {}
            if status == "Pushing" and detail.get("total"):
                amounts[layer] = (min(detail.get("current", 0), detail["total"]), detail["total"])
                done, total = (sum(column) for column in zip(*amounts.values(), strict=True))
                self.hooks.progress("here", done, total, "B")
        if not digest:
            raise RegistryError(
                "the engine ended the push without saying that it is there",
                where=reference.registry,
                hint="Push again; the engine's own log may say more.",
            )
        sent = sum(status == "Pushed" for status in how.values())
        return Sent(digest=digest, sent=sent, there=len(how) - sent)

    def _follow(self, events: Iterable[Mapping[str, Any]], what: str) -> None:
        """Tell what is going on; an error in the stream is raised, which the library does not."""
        said: deque[str] = deque(maxlen=_LINES)
        for event in events:
            if "error" in event:
                raise _failed(what, str(event["error"]).strip(), said)
            text = str(event.get("stream") or "")
            said += (line for line in text.splitlines() if line.strip())
            self._tell(_STEP.match(text), text)

    def _tell(self, step: re.Match[str] | None, text: str) -> None:
        if step:
            words = " ".join(step[3].split())
            self.hooks.step("here", f"building, {step[1]} of {step[2]}: {words[:80]}")
        if text.strip():
            _log.info("%s", text.rstrip())


def _failed(what: str, why: str, said: Iterable[str]) -> ImageError:
    text = "\n".join(f"  | {line}" for line in said)
    return ImageError(
        f"{what}: {why}" + (f"\n  its last lines:\n{text}" if text else ""),
        hint="What a step wrote is above; envsync build FOLDER writes what it is built from.",
    )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what the library raises into an error of ours."""
    import requests
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise ImageError(f"{what}: {error.explanation or error}") from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise ImageError(
            f"{what}: {_reason(error)}",
            hint="Start it, or name it in DOCKER_HOST. Without --builder docker no engine is needed.",
        ) from error


def _reason(error: BaseException) -> str:
    """Return the innermost cause: libraries wrap theirs several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _short(reference: Reference) -> str:
    """Return a repository's name as engines list it: the public hub's images have no registry there."""
    name = reference.name
    for prefix in ("docker.io/library/", "docker.io/"):
        name = name.removeprefix(prefix)
    return name


def _name(reference: Reference) -> str:
    version = reference.version
    return f"{_short(reference)}{'@' if version.startswith('sha256:') else ':'}{version}"


def _login(reference: Reference) -> dict[str, str] | None:
    """Return what the engine is to tell the registry; None leaves it to the library's own search."""
    login = find_login(reference.registry, reference.repository).login
    if login is None:
        return None
    if login.identity:
        return {"identitytoken": login.password}
    return {"username": login.username, "password": login.password}
