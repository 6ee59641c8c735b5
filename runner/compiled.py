"""The code of what Dask's processes import first, compiled here for machines that run the same Python.

Compiling it takes a new machine longer than anything else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError
from envsync.runner.imported import files
from envsync.store import recall, remember, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.session import Session
    from envsync.store import Store

__all__ = ["compile_here", "compiled_here", "give"]

_LONGEST = 0.7  # seconds: sending it takes less than what a machine needs to compile it

# In a process of its own, so that nobody waits for it. What it writes is read by envsync/agent/compiling.py.
_COMPILE = """
import hashlib, json, marshal, sys, zlib
about, codes = json.load(sys.stdin), []
for path, file in about.pop("sources"):
    with open(file, "rb") as opened:
        source = opened.read()
    code = marshal.dumps(compile(source, path, "exec", dont_inherit=True, optimize=0))
    about["files"].append([path, hashlib.sha256(source).hexdigest(), len(code)])
    codes.append(code)
sys.stdout.buffer.write(zlib.compress(b"\\n".join([json.dumps(about).encode(), b"".join(codes)])))
"""


def compile_here(store: Store) -> str | None:
    """Return the digest of a blob of compiled code, made if it is not in the store.

    Returns
    -------
    str or None
        None where it cannot be made: machines compile then.
    """
    known = compiled_here(store)
    if known is not None or not sys.executable:
        return known
    sources = files()
    key = _key(sources)
    about = {
        "tag": sys.implementation.cache_tag,
        "magic": MAGIC_NUMBER.hex(),
        "files": [],
        "sources": [*sources.items()],
    }
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _COMPILE]
    done = subprocess.run(command, input=json.dumps(about).encode(), capture_output=True, check=False)
    if done.returncode or key is None:
        return None
    digest = store.put(done.stdout)
    remember("compiled", key, digest)
    return digest


def compiled_here(store: Store) -> str | None:
    """Return the digest of what `compile_here` has made of the files as they are now, if the store has it."""
    key = _key(files())
    known = None if key is None else recall("compiled", key)
    return known if isinstance(known, str) and known in store.has([known]) else None


def _key(sources: Mapping[str, str]) -> str | None:
    """Return what stands for the sources as they are now, and for who compiles them."""
    facts: list[object] = [sys.implementation.cache_tag, MAGIC_NUMBER.hex(), _COMPILE]
    try:
        for path, file in sources.items():
            status = Path(file).stat()
            facts.append((path, file, status.st_size, status.st_mtime_ns))
    except OSError:
        return None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


async def give(session: Session, digest: str) -> None:
    """Have a host that makes an environment have the code, if that is quicker than to compile it there.

    Nobody waits for it, and nothing fails. A host that takes from a store has it from there or not at all.

    Parameters
    ----------
    session : Session
        The host's.
    digest : str
        What `compile_here` returned.
    """
    with contextlib.suppress(EnvsyncError):
        if session.taking is not None:
            await session.taking.take(session, [digest], "compiled code")
            return
        rate = await session.rate()
        if rate and await asyncio.to_thread(size_of, session.supply.store, digest) / rate < _LONGEST:
            await session.send([digest], what="compiled code")
