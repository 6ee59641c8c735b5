"""Wheels as folders, by the specification of binary distributions, with the standard library alone.

`unpack` lays a wheel out so that it fits every interpreter that it was made for, and checks each file. `lay`
makes an installation of that, in a prefix, of hard links.
"""

from __future__ import annotations

import base64
import configparser
import csv
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from typing import Any, Callable, Dict, Iterable, Tuple

__all__ = ["lay", "site_of", "unpack"]

_CHUNK = 1 << 20
_SCHEMES = ("purelib", "platlib", "scripts", "data", "headers")
_HASHES = ("sha256", "sha384", "sha512")  # others are too weak, says the specification
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, csv.Error, UnicodeError),
    *(EOFError, NotImplementedError, RuntimeError),
)
_UNSIGNED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_WRITTEN = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
_SCRIPT = """\
import os
import sys

site = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), {site!r})
if site not in sys.path:
    sys.path.insert(1, site)

from {module} import {first}

if __name__ == "__main__":
    sys.exit({function}())
"""

_Rows = Dict[str, Tuple[str, str]]  # path: hash, size


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
    except _UNREADABLE as error:
        raise ValueError(f"{label} cannot be read as a wheel: {error}") from error


def _unpack(archive: zipfile.ZipFile, folder: str, name: str, label: str) -> str:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = member.orig_filename
        if path.endswith("/"):
            continue
        _check_path(path, label)
        if member.header_offset < 0:
            raise ValueError(f"{label} cannot be read as a wheel: its beginning is missing")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"{label}: {path} is a link or no plain file, which a wheel must not have")
        if path in members:
            raise ValueError(f"{label}: it has the file {path} twice")
        members[path] = member
    info = _info_of(members, name, label)
    _check_format(archive.read(members[info + "/WHEEL"]).decode("utf-8", "replace"), label)
    rows = _rows(archive.read(members[info + "/RECORD"]).decode("utf-8"))
    unsigned = {f"{info}/{one}" for one in _UNSIGNED}
    _check_listing(members, rows, unsigned, label)
    placed: set[str] = set()
    made: set[str] = set()
    for path, member in members.items():
        scheme, inner = _scheme(path, info, label)
        target = f"{folder}/{scheme}/{inner}"
        if target in placed:
            raise ValueError(f"{label}: two of its files would be {scheme}/{inner}")
        placed.add(target)
        parent = os.path.dirname(target)
        if parent not in made:
            os.makedirs(parent, mode=0o755, exist_ok=True)
            made.add(parent)
        executable = scheme == "scripts" or bool(member.external_attr >> 16 & 0o111)
        found = _write(archive, member, target, executable, rows.get(path, ("", ""))[0])
        if path not in unsigned and found != rows[path][0].rstrip("="):
            raise ValueError(f"{label}: {path} is not what the wheel's RECORD says; do not use this wheel")
    return info


def _write(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: str,
    executable: bool,
    recorded: str,
) -> str:
    """Write one file, and return its hash in the way that RECORD has it."""
    algorithm = recorded.partition("=")[0] or "sha256"
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
    return f"{algorithm}={_base64(sha.digest())}"


def _check_path(path: str, label: str) -> None:
    if path.startswith("/") or any(one in path for one in "\\\0") or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"{label}: {path!r} is not a path inside a wheel; do not use this wheel")


def _info_of(members: Iterable[str], name: str, label: str) -> str:
    found = sorted(
        {path.partition("/")[0] for path in members if path.partition("/")[0].endswith(".dist-info")}
    )
    if len(found) != 1:
        raise ValueError(f"{label}: a wheel has one dist-info folder, and this one has {len(found)}")
    for file in ("WHEEL", "RECORD", "METADATA"):
        if f"{found[0]}/{file}" not in members:
            raise ValueError(f"{label}: it has no {found[0]}/{file}, so it is no wheel")
    own = found[0].partition("-")[0]
    if name and _plain(own) != _plain(name):
        raise ValueError(f"{label}: it is the wheel of {own}, and {name} is wanted")
    return found[0]


def _check_format(text: str, label: str) -> None:
    versions = [
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Wheel-Version:")
    ]
    if not versions or not re.match(r"1(\.|$)", versions[0]):
        said = versions[0] if versions else "none"
        raise ValueError(f"{label}: its Wheel-Version is {said}, and only 1.x is known here")


def _check_listing(members: Iterable[str], rows: _Rows, unsigned: set[str], label: str) -> None:
    known = set(members)
    for path in members:
        if path in unsigned:
            continue
        if path not in rows:
            raise ValueError(f"{label}: the wheel's RECORD does not name {path}; do not use this wheel")
        algorithm = rows[path][0].partition("=")[0]
        if algorithm not in _HASHES:
            raise ValueError(f"{label}: the wheel's RECORD has no sha256 or better of {path}")
    absent = [path for path in rows if path not in known and path not in unsigned and not path.endswith("/")]
    if absent:
        raise ValueError(f"{label}: the wheel's RECORD names {absent[0]}, which the wheel does not have")


def _rows(text: str) -> _Rows:
    return {row[0]: (row[1], row[2]) for row in csv.reader(io.StringIO(text)) if len(row) >= 3}


def _scheme(path: str, info: str, label: str) -> tuple[str, str]:
    """Return which of the folders a file goes to, and its path there."""
    top, _, rest = path.partition("/")
    if not (top.endswith(".data") and rest and _plain(top[:-5]) == _plain(info[:-10])):
        return "site", path
    scheme, _, inner = rest.partition("/")
    if scheme not in _SCHEMES or not inner:
        raise ValueError(f"{label}: {path} is for a place that is not known: {scheme}")
    return ("site" if scheme.endswith("lib") else scheme), inner


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _base64(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


# From the folder to a prefix


def site_of(prefix: str = "") -> str:
    """Return where a prefix has its packages, for the running interpreter."""
    return os.path.join(prefix, "lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")


def lay(folder: str, prefix: str, info: str, *, python: str = "") -> dict[str, Any]:
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

    Returns
    -------
    dict
        ``files``: what there is of it now, by paths in the prefix, and ``modules``: the names of its packages
        and modules, those in namespaces in full.
    """
    python = python or sys.executable
    site = site_of()
    with open(f"{folder}/site/{info}/RECORD", encoding="utf-8", newline="") as file:
        rows = _rows(file.read())
    put = _Putting(prefix)
    listed: list[tuple[str, str, str]] = []
    modules = []
    for path in sorted(rows):
        if path.endswith("/"):
            continue
        scheme, inner = _scheme(path, info, path)
        if scheme == "site":
            modules.append(inner)
            if inner in [f"{info}/{one}" for one in _WRITTEN]:
                continue
            put.link(f"{folder}/site/{inner}", f"{site}/{inner}")
            listed.append((inner, *rows[path]))
        elif scheme == "scripts":
            with open(f"{folder}/scripts/{inner}", "rb") as script:
                listed.append(put.write(f"bin/{inner}", _with_shebang(script.read(), python), 0o755))
        else:
            target = inner if scheme == "data" else f"{_headers(info)}/{inner}"
            put.link(f"{folder}/{scheme}/{inner}", target)
            listed.append((_from_site(target), *rows[path]))
    for name, wrapper in _wrappers(f"{folder}/site/{info}/entry_points.txt", python, site):
        listed.append(put.write(f"bin/{name}", wrapper, 0o755))
    listed.append(put.write(f"{site}/{info}/INSTALLER", b"envsync\n", 0o644, f"{info}/INSTALLER"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*sorted(listed), (f"{info}/RECORD", "", "")])
    put.write(f"{site}/{info}/RECORD", text.getvalue().encode("utf-8"), 0o644)
    return {"files": put.files, "modules": _modules(modules)}


class _Putting:
    """Puts files into a prefix, and remembers which."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
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
        digest = "sha256=" + _base64(hashlib.sha256(data).digest())
        return listed or _from_site(path), digest, str(len(data))


def _from_site(path: str) -> str:
    return "../" * 3 + path


def _headers(info: str) -> str:
    return "include/site/python{}.{}/{}".format(*sys.version_info[:2], info.partition("-")[0])


def _with_shebang(script: bytes, python: str) -> bytes:
    """Return a wheel's script for this interpreter."""
    if not script.startswith(b"#!python"):
        return script
    return _shebang(python) + script.partition(b"\n")[2]


def _shebang(python: str) -> bytes:
    if " " not in python and len(python) < 125:
        return os.fsencode(f"#!{python}\n")
    # the kernel takes no more of a first line, and splits it at blanks
    return os.fsencode(f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n")


def _wrappers(path: str, python: str, site: str) -> list[tuple[str, bytes]]:
    """Return the scripts of a distribution's entry points."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except FileNotFoundError:
        return []
    except (ValueError, configparser.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    made = []
    for group in ("console_scripts", "gui_scripts"):
        for name, value in parser.items(group) if parser.has_section(group) else ():
            module, colon, function = value.partition("[")[0].strip().partition(":")
            module, function = module.strip(), function.strip()
            words = [*module.split("."), *function.split(".")]
            if not colon or not all(word.isidentifier() for word in words) or re.search(r"[/\\\0]", name):
                raise ValueError(f"{path}: the script {name!r} is no entry point: {value!r}")
            first = function.partition(".")[0]
            text = _SCRIPT.format(site=site, module=module, first=first, function=function)
            made.append((name, _shebang(python) + text.encode("utf-8")))
    return made


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
