"""Where a job's node keeps what is its own, and whether and how quickly it sees the login host's folder.

Run by the carrier of a job: JSON on standard input, JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, Mapping

from .layout import Cache, remove, token

__all__ = ["settle"]

_FILES = 300  # small files that are read where it is to be seen how quick a folder is
_ENOUGH = 5.0  # seconds that this may take
_SMALL = 64 << 10  # bytes of a small file
_WRITTEN = 1 << 20  # bytes by which it is tried whether a folder takes any


def settle() -> int:
    """Answer one request.

    ``scratch`` is a folder as the user wrote it, with variables of this job's environment, or empty;
    ``variables`` are those that may name one otherwise; ``seen`` is a file that is there where the login
    host's folder is seen; ``read``, if given, a folder of small files to be read for a while.

    The answer has ``cache`` (a folder for this user only; empty if there is none), ``passed`` (pairs of a
    folder that is of no use and why), ``seen``, and ``files`` and ``seconds`` of what was read.
    """
    request = json.loads(sys.stdin.read())
    passed: list[tuple[str, str]] = []
    answer: dict[str, Any] = {"cache": "", "passed": passed, "seen": Path(request["seen"]).is_file()}
    for base in _candidates(request):
        folder = Path(base, f"envsync-{os.getuid()}")
        why = _trouble_with(base, folder, named=bool(request["scratch"]))
        if not why:
            answer["cache"] = str(folder)
            _bring_agent(Cache(folder))
            break
        passed.append((base, why))
    answer["files"], answer["seconds"] = _read(request["read"]) if request.get("read") else (0, 0.0)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _candidates(request: Mapping[str, Any]) -> Iterator[str]:
    if request["scratch"]:
        yield os.path.expanduser(os.path.expandvars(request["scratch"]))  # noqa: PTH111 - of a text
        return
    for name in dict.fromkeys([*request["variables"], "TMPDIR"]):
        if os.environ.get(name):
            yield os.environ[name]
    yield "/tmp"  # noqa: S108 - what is made there is looked at before it is used


def _trouble_with(base: str, folder: Path, *, named: bool) -> str:
    """Make a folder for this user only; return why that cannot be, or why it is of no use."""
    if "$" in base:
        return "a variable in it is not set in the job"
    if not os.path.isabs(base):  # noqa: PTH117 - of a text
        return "it is not an absolute path"
    if not named and not Path(base).is_dir():
        return "it is not there"
    try:
        Path(base).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        # Everybody may write in /tmp: a folder that somebody else put there under this name is not used.
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return f"{folder} is somebody else's"
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
        return _no_room(folder)
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _no_room(folder: Path) -> str:
    """Write something there, and run it."""
    part = folder / f".try-{token()}"
    try:
        part.write_bytes(b"#!/bin/sh\nexit 0\n" + b"#" * _WRITTEN)
        part.chmod(0o700)
        try:
            subprocess.run([str(part)], check=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            return "programs there may not be executed (noexec?)"
    finally:
        remove(part)
    return ""


def _bring_agent(cache: Cache) -> None:
    """Have this agent's own file there, under its name: nobody has to send it then."""
    source = Path(sys.argv[0])
    with contextlib.suppress(OSError):
        cache.bin.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = cache.bin / source.name
        if not target.exists():
            part = cache.bin / f".agent-{token()}"
            part.write_bytes(source.read_bytes())
            part.replace(target)


def _read(folder: str) -> tuple[int, float]:
    """Read small files below a folder for a while, as imports do; return how many, and the seconds."""
    began, count = time.monotonic(), 0
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(inner, name)  # noqa: PTH118 - many
            with contextlib.suppress(OSError):
                if os.stat(path).st_size <= _SMALL:  # noqa: PTH116 - many
                    with open(path, "rb") as file:  # noqa: PTH123 - many
                        file.read()
                    count += 1
            if count >= _FILES or time.monotonic() - began > _ENOUGH:
                return count, time.monotonic() - began
    return count, time.monotonic() - began
