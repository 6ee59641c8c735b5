"""The client's part in making an environment on a host: give what is lacking, ask again."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from envsync.artifacts import wheel_tags
from envsync.errors import RealiseError, ToolError, UnfitHostError
from envsync.runner.compiled import compiled_here, give
from envsync.runner.hosts.local import Local
from envsync.runner.imported import imported
from envsync.runner.session import Environment
from envsync.runner.taking import worth_asking_for
from envsync.store import size_of
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.session import Session
    from envsync.store import Store

__all__ = ["few", "realise"]

_ROUNDS = 5  # what is there from the start, two failures of the index, all the rest, and the making
_FAILURES = 2
_FEW = 20_000_000  # bytes of wheels: uv, packed, is as many


def few(lock: Lock, target: Target, store: Store) -> bool:
    """Return whether a host that has no uv is better given all wheels of a lock than uv.

    Parameters
    ----------
    lock : Lock
        What is to be made there.
    target : Target
        The host. Where a wheel is for another one, uv says what is wrong.
    store : Store
        Tells how large a wheel is if the index did not.
    """
    artifacts, total = lock.artifacts(), 0
    for artifact in artifacts:
        size = artifact.size
        if size is None:
            if not store.has([artifact.sha256]):
                return False
            size = size_of(store, artifact.sha256)
        total += size
    if total > _FEW or target.implementation != "cpython":
        return False
    tags = {str(tag) for tag in target.tags()}  # a thousand: not for the many environments that are large
    return not any(tags.isdisjoint(wheel_tags(artifact.filename)) for artifact in artifacts)


async def realise(
    session: Session,
    lock: Lock,
    *,
    hooks: Hooks,
    fetch: Callable[[Collection[str]], Awaitable[None]] | None,
    online: bool,
    environment: Mapping[str, str],
) -> Environment:
    """Make a lock's environment exist on a session's host. See `Session.realise`."""
    began = time.monotonic()
    here = isinstance(session.host, Local)
    digest = lock.digest  # worked out anew each time it is asked for
    # A store comes before an index: the host says all that it lacks, before it asks anybody.
    asking_store = session.taking is not None
    request = _request(lock, digest, online=online and not asking_store)
    request["few"] = not here and await asyncio.to_thread(
        few, lock, _target(session, lock), session.supply.store
    )
    if here:
        request |= {"uv": _installed_uv(), "here": True, "environment": dict(environment)}
    elif _like_ours(lock.target):
        request["code"] = await asyncio.to_thread(compiled_here, session.supply.store)
    failures = 0
    async with _Beside(session, request["code"]) as beside:
        if session.gives_ahead:
            beside.begin()
        for _ in range(_ROUNDS + asking_store):
            answer = await session.request(
                "realise", watch=lambda event: session._tell(event, hooks), **request
            )
            if "prefix" in answer:
                break
            if asking_store:
                answer["lacking"] = await _not_taken(session, answer["lacking"])
                if online:  # perhaps the index has the rest
                    answer["lacking"], request["online"] = [], True
                asking_store = False
            await _give(session, lock, answer, request, hooks, fetch)
            beside.begin()
            failures += bool(answer.get("failed"))
            if failures == _FAILURES:
                request["online"] = False  # from now on all comes from here
        else:
            raise RealiseError(
                "the host still lacks what was sent to it",
                where=session.host.name,
                hint="Something removes files from its cache folder: set cache= to another one.",
            )
    for note in answer["notes"]:
        hooks.note(session.host.name, note)
    what = "made" if answer["created"] else "found and checked"
    hooks.done(session.host.name, f"environment {digest[:12]} {what}", time.monotonic() - began)
    return Environment(
        digest=digest,
        prefix=answer["prefix"],
        python=answer["python"],
        created=answer["created"],
        report={
            **answer["report"],
            "who": f"agent on {session.host.name}",
            "host": session.host.name,
            "accelerators": list(_target(session, lock).accelerators),
        },
    )


class _Beside:
    """Gives compiled code while the environment is made, after what it is made of, and no longer."""

    def __init__(self, session: Session, digest: str | None) -> None:
        self.session = session
        self.digest = digest
        self.giving: asyncio.Future[None] | None = None

    def begin(self) -> None:
        if self.giving is None and self.digest is not None:
            self.giving = asyncio.ensure_future(give(self.session, self.digest))

    async def __aenter__(self) -> _Beside:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.giving is not None:
            self.giving.cancel()
            await asyncio.wait({self.giving})


def _like_ours(target: Target) -> bool:
    """Return whether the Python there reads code that this one has compiled."""
    ours = (sys.implementation.name, "{}.{}".format(*sys.version_info[:2]))
    return (target.implementation, target.minor) == ours


def _target(session: Session, lock: Lock) -> Target:
    """Return what there is of a lock's target, as the session's probe found it."""
    wanted = lock.target
    return Target.from_probe(session.facts, python=wanted.python, implementation=wanted.implementation)


def _request(lock: Lock, digest: str, *, online: bool) -> dict[str, Any]:
    return {
        "digest": digest,
        "python": lock.target.python,
        "implementation": lock.target.implementation,
        "artifacts": [
            {
                "name": artifact.name,
                "version": artifact.version,
                "filename": artifact.filename,
                "sha256": artifact.sha256,
                "url": artifact.url,
                "index": artifact.index,
            }
            for artifact in lock.artifacts()
        ],
        "uv": None,  # which one, is asked when the agent says that it needs one
        "compile": imported(),
        "code": None,
        "online": online,
        "here": False,
        "environment": {},
    }


def _installed_uv() -> dict[str, str] | None:
    """Return the uv of this machine, None if there is none: it may not be needed."""
    from envsync.uv import find_uv

    try:
        return {"path": find_uv()}
    except ToolError:
        return None


async def _not_taken(session: Session, digests: Sequence[str]) -> list[str]:
    """Have the host take wheels from the shared store, and send small ones meanwhile; return the others."""
    if not session.taking or not digests:
        return list(digests)
    large = await asyncio.to_thread(worth_asking_for, digests, session.supply.store)
    small = sorted({*digests} - {*large})
    taking = asyncio.ensure_future(session.taking.take(session, large, "wheels"))
    try:
        if small:
            await session.send(small, what="small wheels")
        took = await taking
    finally:
        taking.cancel()
        await asyncio.wait({taking})
    return [digest for digest in large if digest not in took]


async def _give(
    session: Session,
    lock: Lock,
    answer: Mapping[str, Any],
    request: dict[str, Any],
    hooks: Hooks,
    fetch: Callable[[Collection[str]], Awaitable[None]] | None,
) -> None:
    """Send what the agent said is lacking, all in one go, and name the uv to use."""
    supply = session.supply
    digests: dict[str, str] = {}  # and what each is
    archive = None
    if answer["python"]:
        archive = await supply.interpreter(lock.target)
        if archive.version.split(".")[:2] != lock.target.python.split(".")[:2]:
            raise UnfitHostError(
                f"there is no Python {lock.target.python} there, and the one to send is {archive.version}",
                where=session.host.name,
                hint="Install that Python there, or run envsync with the Python that the lock is for.",
            )
        digests[archive.digest] = f"Python {archive.version}"
    if answer["uv"] and request["here"]:
        from envsync.uv import find_uv

        request["uv"] = {"path": find_uv()}  # says what is wrong
    elif answer["uv"]:
        request["uv"] = {"digest": await supply.uv(lock.target)}
        digests[request["uv"]["digest"]] = "uv"
    lacking = set(answer["lacking"])
    if lacking:
        absent = lacking - await asyncio.to_thread(supply.store.has, lacking)
        if absent and fetch is not None:
            await fetch(absent)
        elif absent:
            from envsync.collect import collect

            await collect(lock, supply.store, supply.settings, only=absent, hooks=hooks)
        digests |= dict.fromkeys(lacking, "wheels")
    if digests:
        await session.send(digests, what=", ".join(dict.fromkeys(digests.values())))
    if archive is not None:
        await session.request("unpack_python", version=archive.version, digest=archive.digest)
