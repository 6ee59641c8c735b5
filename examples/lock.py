"""Capture this environment and lock it, from Python, for this machine and for an older one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from envsync import Lock, capture
from envsync.errors import ResolveError
from envsync.indexes import read_settings
from envsync.resolve import resolve
from envsync.store import default_store


def main() -> None:
    snapshot = capture()
    print(f"Python {snapshot.interpreter.version}, {len(snapshot.distributions)} distributions")
    store, settings = default_store(), read_settings()
    older = replace(snapshot.target, libc=("glibc", "2.28"))
    with tempfile.TemporaryDirectory() as folder:
        for name, target in (("here", snapshot.target), ("older", older)):
            try:
                lock = resolve(snapshot, target, store=store, settings=settings)
            except ResolveError as error:
                print(f"for {target.describe()}: {error}")
                continue
            path = lock.write(Path(folder) / f"pylock.{name}.toml", store)
            again = Lock.read(path)
            assert again.digest == lock.digest
            print(f"for {target.describe()}: {len(again.artifacts())} wheels, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
