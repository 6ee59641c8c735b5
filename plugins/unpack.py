"""Wheels as folders, by the specification of binary distributions, with the standard library alone.

`unpack` lays a wheel out so that it fits every interpreter that it was made for, and checks each file. `lay`
makes an installation of that, in a prefix, of hard links.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import zipfile
from typing import Any, Callable, Iterable

from .wheel import (
    UNREADABLE,
    hash_of,
    headers_of,
    is_written,
    list_wheel,
    record_of,
    rows_of,
    scheme_of,
    with_shebang,
    wrappers,
)

__all__ = ["lay", "site_of", "unpack"]

_CHUNK = 1 << 20


def unpack(wheel: str, folder: str, *, name: str = "", label: str = "") -> str:
    """Lay a wheel's files out in a new folder: ``site``, ``scripts``, ``data`` and ``headers``.

    Parameters
    ----------
    wheel : str
        The file.
    folder : str
        Is made.
    name : str
        The distribution that it must be, as PEP 503 spells it; any if empty.
    label : str
        What to call the wheel in errors; its path if empty.

    Returns
    -------
    str
        The name of its dist-info folder.

    Raises
    ------
    ValueError
        It is no wheel, or one that lies: the message names the file in it.
    """
    label = label or wheel
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _unpack(archive, folder, name, label)
    except UNREADABLE as error:
        raise ValueError(f"{label} cannot be read as a wheel: {error}") from error


def _unpack(archive: zipfile.ZipFile, folder: str, name: str, label: str) -> str:
    listing = list_wheel(archive, name=name, label=label)
    made: set[str] = set()
    for path, member in listing.members.items():
        scheme, inner = scheme_of(path, listing.info, label)
        target = f"{folder}/{scheme}/{inner}"
        parent = os.path.dirname(target)
        if parent not in made:
            os.makedirs(parent, mode=0o755, exist_ok=True)
            made.add(parent)
        executable = scheme == "scripts" or bool(member.external_attr >> 16 & 0o111)
        found = _write(archive, member, target, executable, listing.algorithm(path))
        listing.check(path, found, label)
    return listing.info


def _write(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: str,
    executable: bool,
    algorithm: str,
) -> str:
    """Write one file, and return its hash in the way that RECORD has it."""
    sha = hashlib.new(algorithm)
    number = os.open(
        target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if executable else 0o644
    )
    with open(number, "wb", buffering=0) as file, archive.open(member) as source:
        while True:
            data = source.read(_CHUNK)
            if not data:
                break
            sha.update(data)
            written = file.write(data)
            while written < len(data):
                written += file.write(data[written:])
    return hash_of(sha.digest(), algorithm)


# From the folder to a prefix


def site_of(prefix: str = "") -> str:
    """Return where a prefix has its packages, for the running interpreter."""
    return os.path.join(prefix, "lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")


def lay(folder: str, prefix: str, info: str, *, python: str = "", keep: bool = True) -> dict[str, Any]:
    """Install what `unpack` made into a prefix: hard links, and what an installer writes.

    A file that another distribution has put there already stays.

    Parameters
    ----------
    folder : str
        What `unpack` made.
    prefix : str
        Gets ``lib/pythonX.Y/site-packages``, ``bin`` and what else the wheel has.
    info : str
        The name of the dist-info folder.
    python : str
        The interpreter that scripts are for; the running one if empty.
    keep : bool
        Whether the folder is needed afterwards. Otherwise its files are moved: it has the same file system.

    Returns
    -------
    dict
        ``files``: what there is of it now, by paths in the prefix, and ``modules``: the names of its packages
        and modules, those in namespaces in full.
    """
    python = python or sys.executable
    site = site_of()
    with open(f"{folder}/site/{info}/RECORD", encoding="utf-8", newline="") as file:
        rows = rows_of(file.read())
    entry_points = f"{folder}/site/{info}/entry_points.txt"
    try:
        with open(entry_points, "rb") as opened:
            text = opened.read()
    except FileNotFoundError:
        text = b""
    put = _Putting(prefix, keep=keep)
    listed: list[tuple[str, str, str]] = []
    modules = []
    for path in sorted(rows):
        if path.endswith("/"):
            continue
        scheme, inner = scheme_of(path, info, path)
        if scheme == "site":
            modules.append(inner)
            if is_written(inner, info):
                continue
            put.link(f"{folder}/site/{inner}", f"{site}/{inner}")
            listed.append((inner, *rows[path]))
        elif scheme == "scripts":
            with open(f"{folder}/scripts/{inner}", "rb") as script:
                listed.append(put.write(f"bin/{inner}", with_shebang(script.read(), python), 0o755))
        else:
            target = inner if scheme == "data" else f"{headers_of(info)}/{inner}"
            put.link(f"{folder}/{scheme}/{inner}", target)
            listed.append((_from_site(target), *rows[path]))
    for name, wrapper in wrappers(text, python, site, entry_points):
        listed.append(put.write(f"bin/{name}", wrapper, 0o755))
    listed.append(put.write(f"{site}/{info}/INSTALLER", b"envsync\n", 0o644, f"{info}/INSTALLER"))
    put.write(f"{site}/{info}/RECORD", record_of(listed, info), 0o644)
    return {"files": put.files, "modules": _modules(modules)}


class _Putting:
    """Puts files into a prefix, and remembers which."""

    def __init__(self, prefix: str, *, keep: bool) -> None:
        self._prefix = prefix
        self._keep = keep
        self._made: set[str] = set()
        self.files: list[str] = []

    def _place(self, path: str) -> str:
        target = f"{self._prefix}/{path}"
        parent = os.path.dirname(target)
        if parent not in self._made:
            os.makedirs(parent, mode=0o755, exist_ok=True)
            self._made.add(parent)
        self.files.append(path)
        return target

    def link(self, source: str, path: str) -> None:
        target = self._place(path)
        if not self._keep:
            if not os.path.lexists(target):
                os.rename(source, target)
            return
        try:
            os.link(source, target)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise
            shutil.copy2(source, target)

    def write(self, path: str, data: bytes, mode: int, listed: str = "") -> tuple[str, str, str]:
        """Write a file and return its line in RECORD."""
        target = self._place(path)
        try:
            number = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        except FileExistsError:
            pass
        else:
            with open(number, "wb") as file:
                file.write(data)
        digest = hash_of(hashlib.sha256(data).digest())
        return listed or _from_site(path), digest, str(len(data))


def _from_site(path: str) -> str:
    return "../" * 3 + path


def _modules(paths: Iterable[str]) -> list[str]:
    """Return what can be imported of files: ``google.protobuf`` and not ``google``."""
    module: Callable[[str], Any] = re.compile(r"(.+?)(?:\.[^./]+)*\.(?:py|so)$").match
    found = {match.group(1) for match in map(module, paths) if match}
    packages = {path[: -len("/__init__")] for path in found if path.endswith("/__init__")}
    roots = set()
    for path in found:
        parts = path.split("/")
        heads = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        root = next((head for head in heads if head in packages), path)
        if all(part.isidentifier() for part in root.split("/")):
            roots.add(root.replace("/", "."))
    return sorted(roots)
