"""What is made ready while machines boot: the lock for what they will be, and what they will lack.

The cloud tells what a machine will be, and probing tells what it is. Where these differ the lock is made
anew, and that is said. An environment that cannot be locked ends the start at once, and the machines with it;
nothing else here does: it is tried again when a machine is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from envsync.errors import BuildError, CaptureError, CloudError, EnvsyncError, ResolveError
from envsync.hooks import Hooks
from envsync.runner.compiled import compile_here
from envsync.runner.locking import lock_for, target_for
from envsync.runner.realising import few
from envsync.store import default_store
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from envsync.indexes import IndexSettings
    from envsync.lock import Lock
    from envsync.runner.cloud.provider import Expected
    from envsync.runner.clouds import Cloud
    from envsync.runner.filling import Filling
    from envsync.runner.locking import Locks
    from envsync.supply import Supply

__all__ = ["facts_of", "machines_of", "target_there", "while_booting"]

_MOST = 512 * 2**20  # bytes of wheels that come here in advance: machines mostly have the better line
_KEYS = ("region", "image", "image_owner", "profile")
_FINAL = (CaptureError, ResolveError, BuildError)  # of the environment: asked again, they say the same

T = TypeVar("T")


def facts_of(expected: Expected) -> dict[str, Any] | None:
    """Return what probing should find; None where too little is known to lock for it."""
    if expected.libc is None or (expected.gpus and not expected.driver):
        return None
    return {
        "system": "linux",
        "machine": expected.machine,
        "libc": list(expected.libc),
        "gpus": [{"driver": expected.driver}] * expected.gpus,
    }


def machines_of(url: str) -> Cloud:
    """Return the machines that ``ec2://TYPE?region=NAME&image=NAME`` is about.

    Raises
    ------
    ValueError
        It makes no sense.
    """
    from envsync.runner.ec2 import EC2

    parts = urlsplit(url)
    given = {key.replace("-", "_"): value for key, value in parse_qsl(parts.query, keep_blank_values=True)}
    unknown = [key for key in given if key not in _KEYS]
    if parts.scheme != "ec2" or not parts.netloc or parts.path.strip("/") or unknown:
        what = f": there is no {unknown[0]}" if unknown else ""
        raise ValueError(f"{url!r} is no type of machine{what}\n  Write ec2://g5.xlarge?region=eu-west-1")
    options: dict[str, Any] = given
    return EC2(parts.netloc, **options)


async def target_there(url: str, *, python: str, implementation: str) -> Target:
    """Return what to lock for, for machines that are not there yet.

    Parameters
    ----------
    url : str
        As `machines_of` has it.
    python, implementation : str
        Of the environment.

    Raises
    ------
    CloudError
        The cloud refused, or does not tell enough.
    """
    backend = machines_of(url)
    provider = await asyncio.to_thread(backend.provider)
    expected = await asyncio.to_thread(provider.expected, provider.regions[0], backend.type)
    facts = facts_of(expected) if expected is not None else None
    if facts is None:
        name = f"the image {expected.name}" if expected is not None else "the cloud"
        raise CloudError(
            f"{name} does not tell its C library and its driver",
            where=url,
            hint="Name them: --for x86_64-manylinux_2_35, and +nvidia-580.105 for the driver.",
        )
    return Target.from_probe(facts, python=python, implementation=implementation)


async def while_booting(
    booting: Coroutine[Any, Any, T],
    backend: Cloud,
    locks: Locks,
    *,
    lock: Lock | None = None,
    filling: Filling | None = None,
    cwd: str | None = None,
    hooks: Hooks | None = None,
) -> T:
    """Make ready what can be while the machines come up. What is not done then is left to who needs it.

    Parameters
    ----------
    booting : coroutine
        Has the machines; what it returns is returned.
    backend : Cloud
        Whose machines.
    locks : Locks
        Where the lock goes, and the snapshot.
    lock : Lock, optional
        What they will run; made for what they will be if not given.
    filling : Filling, optional
        Puts what a machine will lack into a store.
    cwd : str, optional
        A working directory whose code goes along.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    ResolveError, BuildError, CaptureError
        The environment cannot be locked for such machines: `booting` was cancelled.
    """
    work = asyncio.ensure_future(_make_ready(backend, locks, lock, filling, cwd, hooks or Hooks()))
    boot = asyncio.ensure_future(booting)
    try:
        await asyncio.wait({work, boot}, return_when=asyncio.FIRST_COMPLETED)
        if not boot.done() and (error := work.exception()) is not None:
            if isinstance(error, EnvsyncError):
                raise error
            # a start without all this is a start, too
            (hooks or Hooks()).note("ahead", f"not prepared while machines boot: {error!r}")
        return await boot
    finally:
        work.cancel()  # a lock that is being made goes on, and is waited for when it is asked for
        boot.cancel()
        if filling is not None:
            filling.stop()
        await asyncio.gather(work, boot, return_exceptions=True)


async def _make_ready(
    backend: Cloud, locks: Locks, lock: Lock | None, filling: Filling | None, cwd: str | None, hooks: Hooks
) -> None:
    from envsync.indexes import read_settings
    from envsync.snapshot import capture
    from envsync.supply import Supply

    try:
        expected = await backend.expected()
        facts = facts_of(expected) if expected is not None else None
        if lock is None and facts is None:
            return
        snapshot = locks.snapshot = await asyncio.to_thread(capture, cwd=cwd)
        settings = await asyncio.to_thread(read_settings)
        if lock is None and facts is not None:
            hooks.step("here", f"locking for {(expected and expected.name) or backend.type} while it boots")
            lock = await _locked(locks, target_for(facts, snapshot), settings, hooks)
    except _FINAL:
        raise
    except EnvsyncError:
        return
    assert lock is not None
    supply = Supply(default_store(), settings, snapshot, hooks=hooks)
    python = expected is not None and expected.python != lock.target.minor
    await asyncio.gather(
        _supplies(lock, supply, filling, python=python), _wheels(lock, settings, filling, hooks)
    )
    with contextlib.suppress(EnvsyncError):  # last: nobody waits for it
        code = await asyncio.to_thread(compile_here, supply.store)
        if code is not None and filling is not None:
            await asyncio.to_thread(filling.put, [code])


async def _locked(locks: Locks, target: Target, settings: IndexSettings, hooks: Hooks) -> Lock:
    locks.expected = target

    async def make(target: Target) -> Lock:
        assert locks.snapshot is not None
        return await asyncio.to_thread(
            lock_for,
            locks.snapshot,
            target,
            store=default_store(),
            settings=settings,
            hooks=locks.hooks or hooks,
        )

    return await locks.of(target, make)


async def _supplies(lock: Lock, supply: Supply, filling: Filling | None, *, python: bool) -> None:
    """Have ready what bare machines are given besides: nobody else has that for them."""
    with contextlib.suppress(EnvsyncError):
        digests = []
        if not await asyncio.to_thread(few, lock, lock.target, supply.store):
            digests.append(await supply.uv(lock.target))
        if python:
            digests.append((await supply.interpreter(lock.target)).digest)
        if filling is not None:
            await asyncio.to_thread(filling.put, digests)


async def _wheels(lock: Lock, settings: IndexSettings, filling: Filling | None, hooks: Hooks) -> None:
    from envsync.collect import collect

    with contextlib.suppress(EnvsyncError):
        store = default_store()
        remote = [one for one in lock.artifacts() if one.path is None]
        here = await asyncio.to_thread(store.has, [one.sha256 for one in remote])
        if sum(one.size or 0 for one in remote if one.sha256 not in here) <= _MOST:
            await collect(lock, store, settings, hooks=hooks)
        if filling is not None:
            await asyncio.to_thread(filling.put, [one.sha256 for one in lock.artifacts()])
