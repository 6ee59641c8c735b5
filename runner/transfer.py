"""Blobs on their way to a host, over a channel of their own."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from envsync.errors import AgentError, EnvsyncError, HostError, UnfitHostError
from envsync.runner.hosts.local import Local
from envsync.runner.packing import packed
from envsync.runner.wire import error_of
from envsync.store import size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.hosts.base import Channel
    from envsync.runner.session import Session
    from envsync.store import Store

__all__ = ["agent_command", "send"]

_CHUNK = 256 * 1024


def agent_command(python: str, agent: str, *arguments: str) -> str:
    """Return the shell command that runs a verb of an agent."""
    return shlex.join([python, "-I", "-S", agent, *arguments])


async def send(session: Session, digests: Sequence[str], *, what: str = "") -> int:
    """Send blobs, whether the host has them or not. What arrived before a failure stays there.

    Parameters
    ----------
    session : Session
        Whose host they go to, from its supply's store.
    digests : sequence of str
        The blobs.
    what : str, optional
        What they are, for the hooks.

    Returns
    -------
    int
        How many bytes went over.

    Raises
    ------
    CorruptBlobError
        One arrived as other bytes than it should be.
    UnfitHostError
        They do not fit there.
    AgentError
        The receiving end failed.
    """
    store, hooks, where = session.supply.store, session.hooks, session.host.name
    began = time.monotonic()
    sizes = await asyncio.to_thread(lambda: {digest: size_of(store, digest) for digest in digests})
    hooks.step(where, f"sending {what or 'files'}")
    channel = await session.host.start(agent_command(session.python, session.agent, "receive", session.cache))
    async with channel:
        pack = not isinstance(session.host, Local)  # through a pipe it would only take time
        sending = asyncio.create_task(_write(channel, _frames(store, sizes, pack=pack), sizes, hooks, where))
        try:
            problem = await _answers(channel, set(digests), where)
        except BaseException:
            sending.cancel()
            raise
        if problem is not None:
            sending.cancel()
        result = (await asyncio.gather(sending, return_exceptions=True))[0]
        # What the client could not read, or what the host said, comes before a pipe that broke because of it.
        if isinstance(result, EnvsyncError) and not isinstance(result, HostError):
            raise result
        if problem is not None:
            raise problem
    total = result if isinstance(result, int) else sum(sizes.values())
    hooks.done(where, f"sent {what or 'files'}: {len(sizes)}, {total / 1e6:.1f} MB", time.monotonic() - began)
    return total


async def _write(
    channel: Channel, frames: Iterator[tuple[bytes, int]], sizes: dict[str, int], hooks: Hooks, where: str
) -> int:
    """Write the stream; return how many bytes of blobs went over."""
    done, total = 0, sum(sizes.values())
    try:
        while (piece := await asyncio.to_thread(next, frames, None)) is not None:
            chunk, saved = piece
            await channel.write(chunk)
            total -= saved
            done = min(done + len(chunk), total)
            hooks.progress(where, done, total, "B")
    finally:
        await channel.write_eof()
    return total


def _frames(store: Store, sizes: dict[str, int], *, pack: bool) -> Iterator[tuple[bytes, int]]:
    """Yield the stream in pieces of about the same size, however small the blobs are.

    With each goes how many bytes packing saved since the piece before.
    """
    buffer = io.BytesIO()
    saved = 0
    for digest, size in sizes.items():
        frame: dict[str, Any] = {"digest": digest, "size": size}
        with ExitStack() as stack:
            file = stack.enter_context(store.open(digest))
            if pack and (smaller := packed(store, digest, file, size)) is not None:
                file = stack.enter_context(smaller[0])
                frame["packed"] = smaller[1]
                saved += size - smaller[1]
            buffer.write(json.dumps(frame).encode() + b"\n")
            while data := file.read(_CHUNK):
                buffer.write(data)
                if buffer.tell() >= _CHUNK:
                    yield buffer.getvalue(), saved
                    buffer, saved = io.BytesIO(), 0
    buffer.write(b'{"end": true}\n')
    yield buffer.getvalue(), saved


async def _answers(channel: Channel, expected: set[str], where: str) -> EnvsyncError | None:
    """Read the answers; returns the first problem."""
    problem: EnvsyncError | None = None
    while expected:
        line = await channel.readline()
        if not line:
            if problem is not None:
                return problem
            tail = (await channel.read_stderr()).decode(errors="replace").strip()
            return AgentError(
                f"the host stopped taking files with {len(expected)} to go",
                where=where,
                hint=tail or "Try again: what arrived is kept.",
            )
        answer = json.loads(line)
        if "error" in answer:
            problem = problem or error_of(answer["error"], where)
            if isinstance(problem, UnfitHostError):
                return problem
            expected.discard(answer.get("digest", ""))
        else:
            expected.discard(answer["stored"])
    return problem
