"""Pushing into a folder, and copying into one."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from benchmarks.environment import folder, prefix
from benchmarks.timing import Table, command, compare

MB = 1 << 20
SIZES = (600 * MB, *[60 * MB] * 10, *[8 * MB] * 80, *[MB // 2] * 210)  # as of an environment with torch


def store() -> list[Table]:
    """`envsync push file://...` and `cp -r` of the same bytes."""
    from envsync.artifacts import Artifact
    from envsync.lock import Lock
    from envsync.store import FolderStore
    from envsync.target import Target

    here = folder() / "storing"
    shutil.rmtree(here, ignore_errors=True)
    cache, shared, copy = here / "cache", here / "shared", here / "copy"
    blobs = FolderStore(cache)
    artifacts = []
    for number, size in enumerate(SIZES):
        piece = hashlib.sha256(str(number).encode()).digest() * (MB // 32)
        data = b"".join(number.to_bytes(4, "big") + piece[4:] for _ in range(size // MB)) or piece[:size]
        name = f"package{number}"
        artifacts.append(
            Artifact(
                name=name,
                version="1.0",
                filename=f"{name}-1.0-py3-none-any.whl",
                sha256=blobs.put(data),
                path=f"envsync-wheels/{name}-1.0-py3-none-any.whl",
            )
        )
    work = here / "work"
    work.mkdir()
    text = Lock.of(artifacts, Target.current()).dumps()
    lock = work / "pylock.bench.toml"
    lock.write_text(text)
    push: list[str | Path] = [
        prefix() / "bin" / "envsync",
        "-q",
        "push",
        "--lock",
        lock,
        shared.as_uri(),
    ]
    environment = {"ENVSYNC_CACHE": str(cache)}

    def empty() -> None:
        for path in (shared, copy):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    once = command(push, environment=environment, cwd=work, before=empty)
    once()  # uv and the interpreter are had, and what was read is in memory
    total = sum(SIZES) / 1e9
    first = compare(
        {
            f"`envsync push file://...`, {len(SIZES)} wheels": once,
            "`cp -r` of the same blobs": command(["cp", "-r", cache / "blobs", copy], before=empty),
        },
        rounds=3,
    )
    command(push, environment=environment, cwd=work)()
    again = compare(
        {
            "`envsync push file://...`, unchanged": command(push, environment=environment, cwd=work),
            "`envsync --version`": command([push[0], "--version"]),
        }
    )
    shutil.rmtree(here)
    return [
        Table(
            f"Pushing {total:.1f} GB into a folder",
            "1.43x the time of `cp -r`, which is 70 % of its speed",
            first,
            ["envsync's time has the command's start in it, and a sha256 of every byte."],
        ),
        Table(
            f"Pushing {total:.1f} GB again, with nothing changed",
            "0.5 s",
            again,
            ["The second row is what Python and the command need to start."],
        ),
    ]
