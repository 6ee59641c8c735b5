"""The files of an installed distribution, and what each of them was in the wheel that it came from."""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import BuildError
from envsync.plugins.scan import normalize
from envsync.wheelfile import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envsync.snapshot import Distribution

__all__ = ["InstalledFile", "as_entry", "installed_files", "is_edited", "prefixes_of"]

# What installers write beside what the wheel held.
_WRITTEN = frozenset(
    {"INSTALLER", "REQUESTED", "RECORD", "RECORD.jws", "RECORD.p7s", "direct_url.json"}
    | {"uv_build.json", "uv_cache.json"}
)
_SITE = re.compile(r"(?P<prefix>.*)/lib(64)?/python[^/]+/(site|dist)-packages")
_IN_SITE = re.compile(r"lib(64)?/python[^/]+/(site|dist)-packages/(?P<rest>.+)")
_HEADER = re.compile(r"include/(site/)?python[^/]+/(?P<name>[^/]+)/(?P<rest>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledFile:
    """An installed file, its name in the wheel, and what RECORD says of its contents."""

    name: str
    path: Path
    status: os.stat_result
    recorded: str
    script: bool = False


def installed_files(
    distribution: Distribution, info: Path, prefixes: tuple[str, ...]
) -> Iterator[InstalledFile]:
    """Return the files that the wheel held, as they are installed."""
    label = f"{distribution.name} {distribution.version}"
    again = f"Reinstall it: uv pip install --reinstall '{distribution.name}=={distribution.version}'"
    if distribution.editable:
        raise BuildError(f"{label} is installed as editable: it is built, not packed", where=str(info))
    try:
        if info.suffix != ".dist-info":
            raise FileNotFoundError
        with (info / "RECORD").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise BuildError(
            f"{label} has no RECORD of its files, so it cannot be packed", where=str(info), hint=again
        ) from error
    generated = _entry_points(info)
    for row in rows:
        listed, recorded = row[0], row[1] if len(row) > 1 else ""
        name = _name_in_wheel(listed, info, prefixes, distribution.name, generated)
        if name is None:
            continue
        path = info.parent / listed
        try:
            status = path.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise BuildError(
                f"{label} lists the file {listed}, and it "
                + ("is not there" if missing else f"cannot be read: {error.strerror}"),
                where=str(info),
                hint=again,
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise BuildError(f"{label} lists {listed}, and it is not a file", where=str(info), hint=again)
        script = name.startswith(f"{info.stem}.data/scripts/")
        yield InstalledFile(name=name, path=path, status=status, recorded=recorded, script=script)


def _name_in_wheel(
    listed: str, info: Path, prefixes: tuple[str, ...], distribution: str, generated: set[str]
) -> str | None:
    """Return where an installed file was in its wheel, or None if the installer made it."""
    if listed.endswith(".pyc") and "__pycache__/" in listed:
        return None
    data = f"{info.stem}.data"
    if not listed.startswith(("../", "/")):
        folder, _, name = listed.rpartition("/")
        if folder == f"{data}/scripts" and name in generated:  # uv passes it over and leaves it in RECORD
            return None
        return None if folder == info.name and name in _WRITTEN else listed
    path = os.path.normpath(info.parent / listed)
    for prefix in prefixes:
        if path.startswith(f"{prefix}/"):
            relative = path[len(prefix) + 1 :]
            break
    else:
        raise BuildError(
            f"{distribution} has a file outside the environment: {path}",
            where=str(info),
            hint="Such a file cannot be in a wheel. Reinstall the package from a wheel.",
        )
    folder, _, name = relative.rpartition("/")
    if folder == "bin":
        return None if name in generated else f"{data}/scripts/{name}"
    header = _HEADER.fullmatch(relative)
    if header and normalize(header["name"]) == distribution:
        return f"{data}/headers/{header['rest']}"
    inside = _IN_SITE.fullmatch(relative)
    return inside["rest"] if inside else f"{data}/data/{relative}"


def prefixes_of(site: Path, prefix: str) -> tuple[str, ...]:
    """Return the folders that scripts and data may lie in, the likeliest first."""
    found = _SITE.fullmatch(os.path.normpath(site))
    own = [found["prefix"]] if found else []
    return tuple(dict.fromkeys([*own, os.path.normpath(prefix), *(os.path.realpath(each) for each in own)]))


def _entry_points(info: Path) -> set[str]:
    """Return the names of the scripts that installers write: the entry points', and pip's with a version."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        parser.read_string((info / "entry_points.txt").read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error):
        return set()
    groups = [group for group in ("console_scripts", "gui_scripts") if parser.has_section(group)]
    names = {name.strip() for group in groups for name in parser.options(group)}
    if "pip" in names:
        names |= {f"pip{version}" for version in re.findall(r"/python(3\.\d+)", str(info))}
    return names


def as_entry(file: InstalledFile, prefixes: tuple[str, ...]) -> Entry:
    """Return what a wheel holds of an installed file."""
    executable = file.script or bool(file.status.st_mode & 0o111)
    source = _general(file.path.read_bytes(), prefixes) if file.script else file.path
    return Entry(name=file.name, source=source, executable=executable)


def _general(script: bytes, prefixes: tuple[str, ...]) -> bytes:
    """Return a script with the shebang that wheels have, if it has one of this environment."""
    first, _, rest = script.partition(b"\n")
    if first == b"#!/bin/sh" and rest.startswith(b"'''exec' "):
        # What installers write where the interpreter's path is too long, or relative.
        _, _, rest = rest.partition(b"\n' '''\n")
        return b"#!python\n" + rest
    words = first.removeprefix(b"#!").strip().strip(b'"')
    for prefix in prefixes:
        if first.startswith(b"#!") and words.startswith(os.fsencode(f"{prefix}/bin/python")):
            return b"#!python\n" + rest
    return script


def is_edited(file: InstalledFile, hashes: Mapping[str, str]) -> bool:
    """Say whether a file is not what RECORD says. RECORD has a script's hash as it is on disk."""
    algorithm, _, wanted = file.recorded.partition("=")
    if not wanted or algorithm not in hashlib.algorithms_available:
        return False
    if algorithm == "sha256" and not file.script:
        return hashes[file.name] != f"sha256={wanted.rstrip('=')}"
    found = hashlib.new(algorithm, file.path.read_bytes()).digest()
    return base64.urlsafe_b64encode(found).decode().rstrip("=") != wanted.rstrip("=")
