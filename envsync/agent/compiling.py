"""The compiled code of a new environment: each process that starts would compile all that it imports.

What comes from a client that runs the same Python is laid beside the sources that it was compiled of.
The rest is compiled here, on all cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import zlib
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING, Collection, Iterator

from .layout import Problem

if TYPE_CHECKING:
    from .running import Runner

__all__ = ["compiling", "laid_code", "lay_code", "processes"]

_PROCESSES = 8  # at most
_COMPILE = """
import py_compile, sys
for file in sys.argv[1:]:
    py_compile.compile(file, quiet=2)
"""


@contextlib.contextmanager
def compiling(
    runner: Runner, python: str, site: Path, names: Collection[str], code: Path | None
) -> Iterator[None]:
    """Compile beside what is done meanwhile. At the end nobody writes there any more.

    It is no matter if it fails.

    Parameters
    ----------
    runner : Runner
        Runs the interpreter.
    python : str
        The interpreter that the environment is for.
    site : Path
        Its site-packages.
    names : collection of str
        Files below `site`.
    code : Path, optional
        What a client has compiled, if it is here; see `laid_code`.
    """
    thread = threading.Thread(target=_work, args=(runner, python, site, names, code), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def processes(count: int) -> int:
    """Return how many processes do as many things."""
    return min(count, len(os.sched_getaffinity(0)), _PROCESSES)


def _work(runner: Runner, python: str, site: Path, names: Collection[str], code: Path | None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    laid = _laid(runner, python, site, code) if code is not None and code.is_file() else set()
    files = [f"{site}/{name}" for name in names if name not in laid and ".." not in name.split("/")]
    files = [file for file in files if os.path.isfile(file)]  # noqa: PTH113 - many
    count = processes(len(files))

    def compile_share(number: int) -> None:
        with contextlib.suppress(Problem):
            runner.run([python, "-I", "-S", "-c", _COMPILE, *files[number::count]], {})

    if count:
        with ThreadPoolExecutor(count) as threads:
            threads.map(compile_share, range(count))


def _laid(runner: Runner, python: str, site: Path, code: Path) -> set[str]:
    with contextlib.suppress(Problem, ValueError):
        command = [python, "-I", "-S", sys.argv[0], "code", str(site), str(code)]
        return {*json.loads(runner.run(command, {}, output=True).stdout)}
    return set()


# In the interpreter that the environment is for


def lay_code(site: str, code: str) -> int:
    """Lay compiled code beside its sources, and write as JSON of which of them; see `laid_code`."""
    sys.stdout.write(json.dumps(laid_code(site, code)) + "\n")
    return 0


def laid_code(site: str, code: str) -> list[str]:
    """Lay compiled code beside its sources, and return of which of them.

    Where a source is another one than was compiled nothing is laid, nor if this is another Python, or the
    code is spoilt or not there.

    Parameters
    ----------
    site : str
        Has the sources.
    code : str
        A file: packed by zlib (RFC 1950), a line of JSON (``tag`` and ``magic`` of the Python that compiled,
        and ``files``: path, sha256 of the source, length of the code), and the codes (`marshal`).
    """
    laid: list[str] = []
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, zlib.error):
        data = memoryview(zlib.decompress(Path(code).read_bytes()))
        end = bytes(data[: 1 << 20]).index(b"\n")
        told = json.loads(bytes(data[:end]))
        if told["tag"] == sys.implementation.cache_tag and told["magic"] == MAGIC_NUMBER.hex():
            start = end + 1
            for path, digest, length in told["files"]:
                if _lay(site, path, digest, data[start : start + length]):
                    laid.append(path)
                start += length
    return laid


def _lay(site: str, path: str, digest: str, code: memoryview) -> bool:
    """Lay the code of one source, as `py_compile` does: it holds for this file of this time and size."""
    source = Path(site, path)
    if path.startswith("/") or ".." in source.parts or source.suffix != ".py":
        return False
    try:
        status = source.stat()
        if hashlib.sha256(source.read_bytes()).hexdigest() != digest:
            return False
        facts = [0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]
        target = Path(cache_from_source(str(source), optimization=""))
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as file:
            file.write(MAGIC_NUMBER + b"".join(fact.to_bytes(4, "little") for fact in facts))
            file.write(code)
    except OSError:
        return False
    return True
