"""Wheels by the specification of binary distributions, with the standard library alone.

What a wheel holds, where an installer lays it, and what it writes besides: for those who unpack wheels and
for those who make other things of them.
"""

from __future__ import annotations

import base64
import configparser
import csv
import io
import os
import re
import stat
import sys
import zipfile
import zlib
from dataclasses import dataclass
from typing import Dict, Iterable, Tuple

__all__ = [
    "UNREADABLE",
    "Listing",
    "hash_of",
    "headers_of",
    "is_written",
    "list_wheel",
    "record_of",
    "rows_of",
    "scheme_of",
    "with_shebang",
    "wrappers",
]

_SCHEMES = ("purelib", "platlib", "scripts", "data", "headers")
_HASHES = ("sha256", "sha384", "sha512")  # others are too weak, says the specification
UNREADABLE = (
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


@dataclass(frozen=True)
class Listing:
    """What is in a wheel, by its own account.

    Parameters
    ----------
    info : str
        The name of its dist-info folder.
    members : dict
        Its files by their paths; no two are laid at the same place.
    rows : dict
        Hash and size by path, as RECORD has them.
    """

    info: str
    members: dict[str, zipfile.ZipInfo]
    rows: _Rows

    def check(self, path: str, found: str, label: str) -> None:
        """Raise ValueError if a file's hash, as `hash_of` gives it, is not the one that RECORD has."""
        if not self.unsigned(path) and found != self.rows[path][0].rstrip("="):
            raise ValueError(f"{label}: {path} is not what the wheel's RECORD says; do not use this wheel")

    def unsigned(self, path: str) -> bool:
        """Return whether RECORD cannot have the hash of a file: it is RECORD, or a signature of it."""
        folder, _, name = path.rpartition("/")
        return folder == self.info and name in _UNSIGNED

    def algorithm(self, path: str) -> str:
        """Return the name of the hash that RECORD has of a file."""
        return self.rows.get(path, ("", ""))[0].partition("=")[0] or "sha256"


def list_wheel(archive: zipfile.ZipFile, *, name: str = "", label: str) -> Listing:
    """Return what an open wheel holds, all checked but the contents of its files.

    Parameters
    ----------
    archive : ZipFile
        The wheel.
    name : str
        The distribution that it must be, as PEP 503 spells it; any if empty.
    label : str
        What to call the wheel in errors.

    Raises
    ------
    ValueError
        It is no wheel, or one that lies: the message names the file in it.
    """
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
    rows = rows_of(archive.read(members[info + "/RECORD"]).decode("utf-8"))
    listing = Listing(info, members, rows)
    _check_listing(listing, label)
    placed: set[tuple[str, str]] = set()
    for path in members:
        place = scheme_of(path, info, label)
        if place in placed:
            raise ValueError(f"{label}: two of its files would be {'/'.join(place)}")
        placed.add(place)
    return listing


def hash_of(digest: bytes, algorithm: str = "sha256") -> str:
    """Return a digest in the way that RECORD has it."""
    return f"{algorithm}={base64.urlsafe_b64encode(digest).decode('ascii').rstrip('=')}"


def is_written(path: str, info: str) -> bool:
    """Return whether a file of a site folder is one that the installer writes, whatever the wheel has."""
    folder, _, name = path.rpartition("/")
    return folder == info and name in _WRITTEN


def record_of(listed: Iterable[tuple[str, str, str]], info: str) -> bytes:
    """Return the RECORD of an installation: path, hash and size of each file, by their paths."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*sorted(listed), (f"{info}/RECORD", "", "")])
    return text.getvalue().encode("utf-8")


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


def _check_listing(listing: Listing, label: str) -> None:
    members, rows = listing.members, listing.rows
    for path in members:
        if listing.unsigned(path):
            continue
        if path not in rows:
            raise ValueError(f"{label}: the wheel's RECORD does not name {path}; do not use this wheel")
        if listing.algorithm(path) not in _HASHES or not rows[path][0]:
            raise ValueError(f"{label}: the wheel's RECORD has no sha256 or better of {path}")
    absent = [path for path in rows if path not in members and not path.endswith("/")]
    absent = [path for path in absent if not listing.unsigned(path)]
    if absent:
        raise ValueError(f"{label}: the wheel's RECORD names {absent[0]}, which the wheel does not have")


def rows_of(text: str) -> _Rows:
    """Return hash and size of each path in a RECORD."""
    return {row[0]: (row[1], row[2]) for row in csv.reader(io.StringIO(text)) if len(row) >= 3}


def scheme_of(path: str, info: str, label: str) -> tuple[str, str]:
    """Return where a wheel's file goes, ``site``, ``scripts``, ``data`` or ``headers``, and its path there.

    Raises
    ------
    ValueError
        The wheel has a place that is not known.
    """
    top, _, rest = path.partition("/")
    if not (top.endswith(".data") and rest and _plain(top[:-5]) == _plain(info[:-10])):
        return "site", path
    scheme, _, inner = rest.partition("/")
    if scheme not in _SCHEMES or not inner:
        raise ValueError(f"{label}: {path} is for a place that is not known: {scheme}")
    return ("site" if scheme.endswith("lib") else scheme), inner


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def headers_of(info: str, minor: str = "") -> str:
    """Return where a prefix has the headers of a distribution, by default for the running Python."""
    minor = minor or "{}.{}".format(*sys.version_info[:2])
    return "include/site/python{}/{}".format(minor, info.partition("-")[0])


def with_shebang(script: bytes, python: str) -> bytes:
    """Return a wheel's script for this interpreter."""
    if not script.startswith(b"#!python"):
        return script
    return _shebang(python) + script.partition(b"\n")[2]


def _shebang(python: str) -> bytes:
    if " " not in python and len(python) < 125:
        return os.fsencode(f"#!{python}\n")
    # the kernel takes no more of a first line, and splits it at blanks
    return os.fsencode(f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n")


def wrappers(entry_points: bytes, python: str, site: str, label: str) -> list[tuple[str, bytes]]:
    """Return name and text of the scripts that a distribution's entry points ask for.

    Parameters
    ----------
    entry_points : bytes
        Its ``entry_points.txt``.
    python : str
        The interpreter that they are for.
    site : str
        Where the packages are, from the prefix.
    label : str
        What errors call it.

    Raises
    ------
    ValueError
        It is not what such a file should be.
    """
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        parser.read_string(entry_points.decode("utf-8"))
    except (ValueError, configparser.Error) as error:
        raise ValueError(f"{label} cannot be read: {error}") from error
    made = []
    for group in ("console_scripts", "gui_scripts"):
        for name, value in parser.items(group) if parser.has_section(group) else ():
            module, colon, function = value.partition("[")[0].strip().partition(":")
            module, function = module.strip(), function.strip()
            words = [*module.split("."), *function.split(".")]
            if not colon or not all(word.isidentifier() for word in words) or re.search(r"[/\\\0]", name):
                raise ValueError(f"{label}: the script {name!r} is no entry point: {value!r}")
            first = function.partition(".")[0]
            text = _SCRIPT.format(site=site, module=module, first=first, function=function)
            made.append((name, _shebang(python) + text.encode("utf-8")))
    return made
