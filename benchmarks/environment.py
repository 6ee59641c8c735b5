"""The environment that the benchmarks look at: about 350 pinned packages, and envsync itself."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = Path(__file__).with_name("environment.txt")


def folder() -> Path:
    """Return where the benchmarks keep what takes long to make."""
    path = Path(os.environ.get("ENVSYNC_BENCH_CACHE") or ROOT / ".cache" / "bench")
    path.mkdir(parents=True, exist_ok=True)
    return path


def uv() -> Path:
    """Return the uv that comes with envsync."""
    return Path(sys.executable).parent / "uv"


@functools.cache
def settings() -> dict[str, str]:
    """Return the index settings that envsync reads, as uv's variables: all tools get the same."""
    from envsync.indexes import read_settings

    return read_settings().uv_environment()


def run(*arguments: str | os.PathLike[str], **environment: str) -> None:
    """Run a command that must not fail."""
    subprocess.run(arguments, check=True, env={**os.environ, **settings(), **environment})


def _copy(source: Path) -> Path:
    """Copy what git tracks: in the checkout setuptools would leave, and find again, a build folder."""
    shutil.rmtree(source, ignore_errors=True)
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listing.decode().split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    return source


@functools.cache
def prefix() -> Path:
    """Return the environment, made if it is not there or holds something else."""
    here = folder()
    shutil.rmtree(here / "dist", ignore_errors=True)
    run(uv(), "build", "--quiet", "--wheel", "--out-dir", here / "dist", _copy(here / "source"))
    (wheel,) = (here / "dist").glob("*.whl")
    made = here / "environment"
    mark = made / "made-of"
    content = hashlib.sha256(PINS.read_bytes() + wheel.read_bytes() + sys.version.encode()).hexdigest()
    if not mark.exists() or mark.read_text() != content:
        run(uv(), "venv", "--quiet", "--clear", "--python", sys.executable, made)
        options = ["--quiet", "--python", str(made / "bin" / "python"), "--compile-bytecode"]
        run(uv(), "pip", "install", *options, "--requirements", PINS, "pip", wheel)
        mark.write_text(content)
    return made


def distributions() -> int:
    """Return how many there are in it."""
    return len(list((prefix() / "lib").glob("python*/site-packages/*.dist-info")))
