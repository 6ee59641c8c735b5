"""Looking at an environment, and locking it."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.environment import PINS, distributions, folder, prefix, settings, uv
from benchmarks.timing import Action, Table, command, compare


def look() -> Table:
    """`envsync snapshot --no-lock` and those who list packages."""
    here = prefix()
    python = here / "bin" / "python"
    rows = compare(
        {
            "`envsync snapshot --no-lock`": command([here / "bin" / "envsync", "snapshot", "--no-lock"]),
            "`pip freeze`": command([python, "-m", "pip", "freeze"]),
            "`pip inspect`": command([python, "-m", "pip", "inspect"]),
            "`uv pip freeze`": command([uv(), "pip", "freeze", "--python", python]),
        }
    )
    return Table(
        f"Looking at an environment of {distributions()} distributions",
        "at most 0.2 s, and half of `pip freeze`",
        rows,
        ["Only envsync reads what each package's RECORD says, which is what verification compares later."],
    )


def lock() -> Table:
    """`envsync snapshot` and bare uv, both warm, both for this machine."""
    here, place = prefix(), folder() / "locks"
    python = here / "bin" / "python"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    environment = {"ENVSYNC_CACHE": str(folder() / "cache"), "UV_CACHE_DIR": str(folder() / "uv")}
    ours = place / "pylock.ours.toml"
    rows = compare(
        {
            "`envsync snapshot`": command(
                [here / "bin" / "envsync", "--quiet", "snapshot", "-o", ours],
                environment=environment,
                cwd=place,
                before=lambda: ours.unlink(missing_ok=True),
            ),
            "`uv pip compile` of the same pins": _compile(place, python, environment),
        }
    )
    return Table(
        f"Locking {distributions()} distributions, warm",
        "at most uv's own time and 15 %",
        rows,
        ["envsync's time has the looking in it, and the wheel that it makes of itself."],
    )


def _compile(place: Path, python: Path, environment: dict[str, str]) -> Action:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--format", "pylock.toml"]
    bare = place / "pylock.bare.toml"
    return command(
        [uv(), "pip", "compile", *options, "--python", python, "--output-file", bare, PINS],
        environment={**settings(), **environment, "UV_PREVIEW_FEATURES": "pylock"},
        cwd=place,
        before=lambda: bare.unlink(missing_ok=True),
    )
