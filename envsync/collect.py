"""From a lock to blobs: download the wheels that the store lacks, and check every byte."""

from __future__ import annotations

import asyncio
import errno
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envsync.errors import CorruptBlobError, StoreError, ToolError, UnsupportedError
from envsync.hooks import Hooks
from envsync.scratch import scratch
from envsync.store import digest_of, recall, remember
from envsync.unobtainable import mark_unobtainable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Collection

    from envsync.artifacts import Artifact
    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.store import Store
    from envsync.target import Target

__all__ = ["collect", "uv_binary"]

RELOCK = "Make the lock again, here and now: envsync snapshot"
_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
UV_MACHINES = ("x86_64", "aarch64")  # of which uv has static builds that it can also be asked for


async def collect(
    lock: Lock,
    store: Store,
    settings: IndexSettings,
    *,
    only: Collection[str] | None = None,
    hooks: Hooks | None = None,
) -> None:
    """Put the wheels of a lock that a store lacks into it.

    Parameters
    ----------
    lock : Lock
        What is wanted.
    store : Store
        Where the wheels go, named by their sha256.
    settings : IndexSettings
        Credentials, certificates and proxies.
    only : collection of str, optional
        Digests; other wheels of the lock are not asked for. Digests of other things are passed over.
    hooks : Hooks, optional
        Told how many bytes have come.

    Raises
    ------
    CorruptBlobError
        A wheel is not the one that was locked.
    StoreError
        A wheel is nowhere to be had; the index and the next step are named.
    """
    hooks = hooks or Hooks()
    wanted = {a.sha256: a for a in lock.artifacts() if only is None or a.sha256 in only}
    here = await asyncio.to_thread(store.has, wanted)
    lacking = [artifact for digest, artifact in wanted.items() if digest not in here]
    remote = []
    for artifact in lacking:
        if (path := _on_disk(artifact, lock.folder)) is not None:
            await asyncio.to_thread(_take, artifact, path, store)
        else:
            remote.append(artifact)
    if remote:
        from envsync.download import Downloader

        began = time.monotonic()
        hooks.step("here", f"downloading {_count(len(remote), 'wheel')}")
        with scratch("download") as folder:
            async with Downloader(settings, hooks=hooks) as downloader:
                try:
                    await downloader.fetch_all(remote, store, folder)
                except StoreError as error:
                    # a disk that is full, here, says nothing of the wheels
                    if getattr(error.__cause__, "errno", None) not in _THIS_DISK:
                        mark_unobtainable(lock, True)
                    raise
        hooks.done("here", f"downloaded {_count(len(remote), 'wheel')}", time.monotonic() - began)


async def uv_binary(
    target: Target, store: Store, settings: IndexSettings, *, hooks: Hooks | None = None
) -> str:
    """Put the static uv executable for a machine into a store, and return its digest.

    It is the executable inside of uv's own musl wheel, of the version that is installed here. Which bytes
    those are is remembered, so that a later call needs no index.

    Parameters
    ----------
    target : Target
        Only its system and machine matter.
    store : Store
        Where it goes.
    settings : IndexSettings
        Where uv's wheel comes from.
    hooks : Hooks, optional
        Told about the download.

    Raises
    ------
    UnsupportedError
        There is no static uv for such a machine.
    StoreError, ToolError
        It could not be downloaded.
    """
    from importlib.metadata import version

    if target.system != "linux" or target.machine not in UV_MACHINES:
        raise UnsupportedError(
            f"uv has no static executable for {target.system} on {target.machine}",
            hint="Hosts have to be Linux machines; use another host, or a container image.",
        )
    pin = version("uv")
    key = f"{pin}-{target.system}-{target.machine}"
    known = recall("uv", key)
    if isinstance(known, str):
        held = await asyncio.to_thread(store.has, [known])
        if known in held:
            return known
    hooks = hooks or Hooks()
    hooks.step("here", f"getting uv {pin} for {target.machine}")
    began = time.monotonic()
    artifact = await asyncio.to_thread(_uv_wheel, pin, target.machine, settings)
    with scratch("download") as folder:
        wheel = _on_disk(artifact, None)
        if wheel is None:
            from envsync.download import Downloader

            async with Downloader(settings, hooks=hooks) as downloader:
                wheel = await downloader.fetch(artifact, folder)
        digest: str = await asyncio.to_thread(_extract_uv, wheel, folder, artifact, store)
    remember("uv", key, digest)
    hooks.done("here", f"got uv {pin} for {target.machine}", time.monotonic() - began)
    return digest


def _uv_wheel(pin: str, machine: str, settings: IndexSettings) -> Artifact:
    """Ask uv where its own static wheel for a machine is."""
    from packaging.pylock import Pylock
    from packaging.utils import parse_wheel_filename

    from envsync.artifacts import Artifact
    from envsync.uv import run_uv

    text = run_uv(
        [
            *("pip", "compile", "--no-deps", "--no-header", "--format", "pylock.toml", "--quiet"),
            *("--python-platform", f"{machine}-unknown-linux-musl", "--only-binary", ":all:"),
            *settings.uv_arguments(),
            "-",
        ],
        env=settings.uv_environment(),
        input=f"uv=={pin}\n",
    )
    for package in Pylock.from_dict(tomllib.loads(text)).packages:
        for wheel in package.wheels or ():
            tags = parse_wheel_filename(wheel.filename)[3]
            if any("musllinux" in tag.platform and tag.platform.endswith(machine) for tag in tags):
                return Artifact(
                    name="uv",
                    version=pin,
                    filename=wheel.filename,
                    sha256=wheel.hashes["sha256"],
                    size=wheel.size,
                    url=wheel.url or (Path(wheel.path or "").absolute().as_uri()),
                )
    raise UnsupportedError(
        f"the index has no static (musllinux) wheel of uv {pin} for {machine}",
        hint="Mirror that wheel into the index that is used here, or install uv on the host yourself.",
    )


def _extract_uv(wheel: Path, folder: Path, artifact: Artifact, store: Store) -> str:
    """Take the executable out of uv's wheel and keep it."""
    from envsync.elf import read_elf

    if (found := digest_of(wheel)) != artifact.sha256:
        raise CorruptBlobError(
            f"uv {artifact.version}: its wheel has the sha256 {found}, not {artifact.sha256}",
            where=str(wheel),
            hint="Put the file back that the index lists.",
        )
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".data/scripts/uv")]
        executable = Path(archive.extract(name, folder))
    facts = read_elf(executable)
    if facts is None or not facts.static:
        raise ToolError(
            f"the uv in {artifact.filename} is not a static executable and would not run everywhere",
            hint="Use the index's own uv wheels, not rebuilt ones.",
        )
    return store.put(executable)


def _on_disk(artifact: Artifact, folder: Path | None) -> Path | None:
    """Return where on this machine a wheel lies; None if it has to be downloaded."""
    if artifact.path is not None:
        if folder is not None:
            return folder / artifact.path
        raise StoreError(
            f"{artifact.name} {artifact.version}: its wheel was made here, and is not in the cache any more",
            hint=RELOCK,
        )
    parts = urlsplit(artifact.url or "")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme not in ("http", "https"):
        raise StoreError(
            f"{artifact.name} {artifact.version}: the lock does not say where its wheel is", hint=RELOCK
        )
    return None


def _take(artifact: Artifact, path: Path, store: Store) -> None:
    """Keep a wheel that lies on this machine."""
    if not path.is_file():
        raise StoreError(
            f"{artifact.name} {artifact.version}: there is no such file",
            where=str(path),
            hint=f"Put {artifact.filename} back there, or lock again: envsync snapshot",
        )
    try:
        store.put(path, artifact.sha256)
    except CorruptBlobError as error:
        raise CorruptBlobError(
            f"{artifact.name} {artifact.version}: {artifact.filename} is not the wheel that was locked",
            where=str(path),
            hint="It was changed or built again since: " + RELOCK[0].lower() + RELOCK[1:],
        ) from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
