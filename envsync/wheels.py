"""Wheels that no index has: of what is installed, and of local projects."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.artifacts import WHEELS_FOLDER, Artifact
from envsync.errors import BuildError, StoreError, ToolError
from envsync.hooks import Hooks
from envsync.installed import as_entry, installed_files, is_edited, prefixes_of
from envsync.plugins.scan import normalize
from envsync.scratch import scratch
from envsync.staging import look, staged
from envsync.store import recall, remember
from envsync.uv import run_uv
from envsync.wheelfile import build_date, compressed_tags, rewrite, write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.installed import InstalledFile
    from envsync.snapshot import Distribution, Snapshot
    from envsync.store import Store

__all__ = ["as_shipped", "build", "files_key", "record_of", "repack"]

FORMAT = 1  # of the wheels written here: raised when their bytes change for the same contents
RACY = 2.0  # seconds: a file as young as this may change again without its time telling
SHOWN = 15  # lines of a failed build
# What changes the outcome of a compilation.
_COMPILING = re.compile(r"(C|CXX|CPP|LD|F|RUST)FLAGS|CC|CXX|FC|CMAKE_\w+|SKBUILD_\w+|\w*ARCHFLAGS|CUDA_HOME")


def repack(
    distribution: Distribution, snapshot: Snapshot, store: Store, *, hooks: Hooks | None = None
) -> Artifact:
    """Make a wheel of what is installed.

    The wheel holds the files as they are now. Those that were edited in place since they were installed are
    told to `hooks` as a warning, and its RECORD (see `record_of`) differs from the installed one. What was
    not in the wheel that was installed is left out: scripts for entry points, bytecode, installers' notes.

    Parameters
    ----------
    distribution : Distribution
        Installed from a wheel, not editable.
    snapshot : Snapshot
        That it belongs to: where scripts and data files lie.
    store : Store
        Where the wheel goes.
    hooks : Hooks, optional
        Warned of edited files.

    Returns
    -------
    Artifact
        The same bytes for the same installed files.

    Raises
    ------
    BuildError
        A file is missing, or it was not installed from a wheel.
    """
    info = Path(distribution.location)
    prefixes, files, key = _look(distribution, snapshot)
    made = _made("wheels", key, store)
    if made is None:
        filename = _filename(distribution, info)
        with scratch("repack") as folder:
            wheel = folder / filename
            try:
                with wheel.open("wb") as target:
                    hashes = write(target, (as_entry(file, prefixes) for file in files), info.name)
            except OSError as error:
                raise BuildError(
                    f"{distribution.name} {distribution.version} cannot be packed: {error.strerror}",
                    where=str(error.filename or info),
                    hint="Make the file readable, or make room in the cache (ENVSYNC_CACHE moves it).",
                ) from error
            edited = [file.name for file in files if is_edited(file, hashes)]
            made = _keep(wheel, filename, store) | {"edited": edited}
        if max((file.status.st_mtime for file in files), default=0) < time.time() - RACY:
            remember("wheels", key, made)
    if made["edited"] and hooks is not None:
        hooks.warning(
            "here",
            f"{distribution.name} {distribution.version} was edited after it was installed and ships as it "
            f"is now: {', '.join(made['edited'])}",
        )
    return _artifact(made)


def files_key(distribution: Distribution, snapshot: Snapshot, *, since: float | None = None) -> str | None:
    """Name what `repack` would make a wheel of, without reading the files: by their sizes and times.

    Parameters
    ----------
    distribution, snapshot
        As for `repack`.
    since : float, optional
        A time.

    Returns
    -------
    str or None
        None if a file was changed after that time, or shortly before it.

    Raises
    ------
    BuildError
        As `repack`.
    """
    _, files, key = _look(distribution, snapshot)
    newest = max((file.status.st_mtime for file in files), default=0)
    return key if since is None or newest < since - RACY else None


def _look(distribution: Distribution, snapshot: Snapshot) -> tuple[tuple[str, ...], list[InstalledFile], str]:
    """Return where a distribution may lie, its files, and what those are named by."""
    info = Path(distribution.location)
    prefixes = prefixes_of(info.parent, snapshot.interpreter.prefix)
    files = list(installed_files(distribution, info, prefixes))
    key = _key(
        *(distribution.name, distribution.version, distribution.tags, prefixes, build_date()),
        [(file.name, file.recorded, file.status.st_size, file.status.st_mtime_ns) for file in files],
    )
    return prefixes, files, key


def build(
    project: str | Path,
    store: Store,
    *,
    python: str | None = None,
    installed: Distribution | None = None,
    env: Mapping[str, str] | None = None,
    hooks: Hooks | None = None,
) -> Artifact:
    """Build a local project into a wheel, from a clean copy; or return the one that was built from the same.

    Parameters
    ----------
    project : str or Path
        The folder with its pyproject.toml or setup.py. It is not written to.
    store : Store
        Where the wheel goes.
    python : str, optional
        The interpreter to build for; the running one if not given.
    installed : Distribution, optional
        Whose version the wheel shall have, where the project takes its version from git.
    env : mapping of str to str, optional
        Settings for uv: `IndexSettings.uv_environment`.
    hooks : Hooks, optional
        Told that a build runs, and of files that look like secrets and were not given to it.

    Returns
    -------
    Artifact
        The same bytes for the same sources, where the project's backend can.

    Raises
    ------
    BuildError
        There is no project, or its backend fails; with the end of what it said.
    """
    folder = Path(project).absolute()
    if not any((folder / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise BuildError(
            "there is no project to build: neither pyproject.toml nor setup.py",
            where=str(folder),
            hint="If it was moved, install it again from where it is now.",
        )
    hooks = hooks or Hooks()
    interpreter = Path(python or sys.executable)
    source = look(folder)
    if source.secrets:
        hooks.note("here", f"not given to the build of {folder}: {', '.join(source.secrets)}")
    environ = dict(env or {}) | {"SOURCE_DATE_EPOCH": str(build_date()), "PYTHONHASHSEED": "0"}
    if source.repository is not None and installed is not None:
        environ |= _pretended(installed)
    try:
        key = _key(
            str(interpreter),
            *_identity(interpreter),
            sorted((name, value) for name, value in os.environ.items() if _COMPILING.fullmatch(name)),
            sorted((name, environ[name]) for name in environ if "VERSION" in name or "EPOCH" in name),
            source.digest(),
        )
    except OSError as error:
        raise BuildError(
            f"the project cannot be read: {error.strerror}",
            where=str(error.filename or folder),
            hint="Make it readable and try again.",
        ) from error
    made = _made("builds", key, store)
    if made is None:
        started = time.monotonic()
        hooks.step("here", f"building {folder.name}")
        try:
            with scratch("build") as out, staged(source, key) as copy:
                wheel = _built(copy, out, str(interpreter), environ, folder)
                clean = out / "clean"
                with clean.open("wb") as target:
                    rewrite(wheel, target)
                made = _keep(clean, wheel.name, store)
        except OSError as error:
            raise StoreError(
                f"the project cannot be copied: {error.strerror or error}",
                where=str(error.filename or folder),
                hint="Make room in the cache, or set ENVSYNC_CACHE to a folder that you can write.",
            ) from error
        except BuildError as error:
            hooks.failed("here", error.message)
            raise
        hooks.done("here", f"built {made['filename']}", time.monotonic() - started)
        remember("builds", key, made)
    return _artifact(made)


def record_of(artifact: Artifact, store: Store) -> str:
    """Return the record digest that an environment has once the wheel is installed there.

    Raises
    ------
    StoreError
        The store does not have the wheel.
    BuildError
        It has no RECORD.
    """
    from envsync.plugins.scan import record_digest

    known = recall("records", artifact.sha256)
    if isinstance(known, str):
        return known
    with store.open(artifact.sha256) as file:
        try:
            with zipfile.ZipFile(file) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
                digest = record_digest(wheel.read(name).decode())
        except (StopIteration, zipfile.BadZipFile) as error:
            raise BuildError(
                f"{artifact.filename} is not a wheel: {error or 'it has no RECORD'}",
                hint="Remove it from the cache and make the lock again.",
            ) from error
    remember("records", artifact.sha256, digest)
    return digest


def as_shipped(snapshot: Snapshot, store: Store) -> Snapshot:
    """Return a snapshot with the records of what ships, where files were edited in place.

    What an index has ships as the index has it, and keeps its record.

    Parameters
    ----------
    snapshot : Snapshot
        Of this machine.
    store : Store
        Where wheels of the edited distributions go.
    """
    from envsync.edited import touched_files
    from envsync.plan import from_index

    local = [one for one in snapshot.winners if not one.editable and not from_index(one)]
    records = {}
    for one in local:
        if touched_files([one]):
            with contextlib.suppress(BuildError):  # where it has to ship, that is raised
                records[one.location] = record_of(repack(one, snapshot, store), store)
    distributions = [
        replace(one, record=records.get(one.location, one.record)) for one in snapshot.distributions
    ]
    return replace(snapshot, distributions=tuple(distributions)) if records else snapshot


def _filename(distribution: Distribution, info: Path) -> str:
    from packaging.version import InvalidVersion, Version

    name = normalize(distribution.name).replace("-", "_")
    try:
        version = str(Version(distribution.version))
    except InvalidVersion as error:
        raise BuildError(
            f"{distribution.name} has a version that wheels cannot have: {distribution.version!r}",
            where=str(info),
            hint="Install a version of it that follows the version specification.",
        ) from error
    if not distribution.tags:
        raise BuildError(
            f"{distribution.name} {distribution.version} does not say what it runs on (no WHEEL file)",
            where=str(info),
            hint=f"Reinstall it: uv pip install --reinstall '{distribution.name}=={distribution.version}'",
        )
    return f"{name}-{version}-{compressed_tags(distribution.tags)}.whl"


def _identity(interpreter: Path) -> tuple[str, int, int]:
    real = interpreter.resolve()
    status = real.stat()
    return str(real), status.st_size, status.st_mtime_ns


def _pretended(installed: Distribution) -> dict[str, str]:
    """Return what tells the tools that take a version from git which one it is."""
    name = re.sub(r"[-_.]+", "_", installed.name).upper()
    return {
        f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{name}": installed.version,
        "PDM_BUILD_SCM_VERSION": installed.version,
        "PBR_VERSION": installed.version,
        "POETRY_DYNAMIC_VERSIONING_BYPASS": installed.version,
    }


def _built(copy: Path, out: Path, python: str, environ: Mapping[str, str], folder: Path) -> Path:
    arguments = ["build", "--wheel", "--no-create-gitignore", "--python", python, "--out-dir", str(out), "."]
    try:
        run_uv(arguments, env=environ, cwd=copy)
    except ToolError as error:
        lines = [line.rstrip() for line in error.output.splitlines() if line.strip()]
        said = "\n".join(f"  | {line}" for line in lines[-SHOWN:]).replace(str(copy), str(folder))
        raise BuildError(
            f"it does not build into a wheel; the end of what its build said:\n{said}",
            where=str(folder),
            hint=f"Mend it, and try by hand: uv build --wheel {folder}",
        ) from error
    wheels = sorted(out.glob("*.whl"))
    if len(wheels) != 1:
        raise BuildError(
            f"its build made {len(wheels)} wheels", where=str(folder), hint="One project makes one wheel."
        )
    return wheels[0]


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()


def _made(kind: str, key: str, store: Store) -> dict[str, Any] | None:
    """Return what was made before under a key, if the store still has it."""
    made = recall(kind, key)
    return made if isinstance(made, dict) and store.has([made["sha256"]]) else None


def _keep(wheel: Path, filename: str, store: Store) -> dict[str, Any]:
    return {"filename": filename, "sha256": store.put(wheel), "size": wheel.stat().st_size}


def _artifact(made: Mapping[str, Any]) -> Artifact:
    from packaging.utils import parse_wheel_filename

    name, version, _, _ = parse_wheel_filename(made["filename"])
    return Artifact(
        name=name,
        version=str(version),
        filename=made["filename"],
        sha256=made["sha256"],
        size=made["size"],
        path=f"{WHEELS_FOLDER}/{made['filename']}",
    )
