"""Look at the environment of a Python interpreter: what is installed, and what of it is what it says.

Runs under Python 3.8 and newer with nothing but the standard library: inside this package, inside the agent,
in any process of a cluster (its functions travel by value), and as a plain file under any interpreter::

    python scan.py [--no-records]      # prints Facts as JSON

The names are those of PEP 376 (RECORD, INSTALLER), PEP 503 (names), PEP 610 (direct_url.json) and the wheel
format. Nothing heavy is imported: this is on the path of every command.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from typing import Any, Dict, Mapping, Sequence

__all__ = ["Facts", "imported_distributions", "libc", "normalize", "record_digest", "scan"]

# {"interpreter": ..., "platform": ..., "paths": ..., "distributions": ..., "conda": ..., "leftovers": ...}
Facts = Dict[str, Any]

_NOT_CONTENT = frozenset(
    [
        "INSTALLER",
        "REQUESTED",
        "RECORD",
        "RECORD.jws",
        "RECORD.p7s",
        "direct_url.json",
        "uv_cache.json",
        "uv_build.json",
    ]
)
_INFO = re.compile(r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)-(?P<version>[^-]+)\.dist-info$")
_SITE = ("site-packages", "dist-packages")


def normalize(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def libc() -> list[str] | None:
    """Return the C library's name and version (``["glibc", "2.36"]``), None where there is no such thing."""
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (AttributeError, ValueError, OSError):
        words = []
    if len(words) == 2:
        return words
    try:
        loaders = [name for name in os.listdir("/lib") if name.startswith("ld-musl-")]
    except OSError:
        return None
    for loader in loaders:
        import subprocess

        said = subprocess.run([os.path.join("/lib", loader)], stderr=subprocess.PIPE, check=False).stderr
        found = re.search(rb"Version (\d+\.\d+)", said)
        if found:
            return ["musl", found.group(1).decode()]
    return None


def record_digest(record: str) -> str:
    """Return the digest of what a distribution consists of, the same for a wheel and for its installation.

    Parameters
    ----------
    record : str
        The text of a RECORD file, of a wheel or of an installed distribution.

    Returns
    -------
    str
        sha256 over the sorted ``path,hash`` lines. What an installer adds or writes anew is left out:
        INSTALLER, REQUESTED, RECORD, direct_url.json, uv's own json files, bytecode, scripts and headers;
        ``.data/purelib``, ``.data/platlib`` and ``.data/data`` count as where they are installed.
    """
    if '"' in record:
        import csv

        rows = [",".join(row[:2]) for row in csv.reader(record.splitlines()) if len(row) >= 2 and row[1]]
    else:
        lines = record.splitlines()
        rows = [line.rpartition(",")[0] for line in lines if line[-2:] != ",,"]
    kept = []
    for row in rows:
        if ".dist-info/" in row or row[:1] in "./" or ".data/" in row or ".pyc," in row:
            path, _, digest = row.rpartition(",")
            place = _content_path(path.replace("\\", "/"))
            if place and digest:
                kept.append(place + "," + digest)
        elif row[-1:] != ",":
            kept.append(row)
    kept.sort()
    return hashlib.sha256("\n".join(kept).encode("utf-8", "surrogateescape")).hexdigest()


def _content_path(path: str) -> str:
    """Return the path under which a file counts, "" if it does not."""
    if path.endswith(".pyc") or path.startswith("/"):
        return ""
    first, _, rest = path.partition("/")
    if first.endswith(".dist-info"):
        return "" if rest in _NOT_CONTENT else path
    if first.endswith(".data"):
        scheme, _, inner = rest.partition("/")
        if scheme in ("purelib", "platlib"):
            return inner
        return _data_path(inner) if scheme == "data" else ""
    if first in ("..", "."):
        while path.startswith(("../", "./")):
            path = path.partition("/")[2]
        return _data_path(path)
    return path


def _data_path(path: str) -> str:
    return "" if path.startswith(("bin/", "Scripts/", "include/")) else "data:" + path


def scan(paths: Sequence[str] | None = None, *, records: bool = True) -> Facts:
    """Return what this interpreter's environment holds.

    Parameters
    ----------
    paths : sequence of str, optional
        Folders to look through, in the order of import; ``sys.path`` by default.
    records : bool
        Whether to digest the RECORD files.

    Returns
    -------
    Facts
        JSON types only: ``interpreter``, ``platform``, ``paths``, ``distributions`` (sorted by name and
        location; one of each name wins and has an empty ``shadowed_by``), ``conda``, ``leftovers`` (broken
        folders that an installer left behind).
    """
    folders: list[str] = []
    for path in sys.path if paths is None else paths:
        folder = os.path.abspath(path or os.curdir)
        if folder not in folders:
            folders.append(folder)
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    leftovers: list[str] = []
    for order, folder in enumerate(folders):
        _look_in(folder, order, found, leftovers, records)
    return {
        "interpreter": _interpreter(),
        "platform": {"system": _system(), "machine": os.uname().machine, "libc": libc()},
        "paths": folders,
        "distributions": _settle(found),
        "conda": _conda(sys.prefix) if paths is None else [],
        "leftovers": sorted(leftovers),
    }


def _system() -> str:
    return "linux" if sys.platform.startswith("linux") else sys.platform


def _interpreter() -> dict[str, str]:
    from importlib.machinery import EXTENSION_SUFFIXES

    level = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(sys.version_info.releaselevel)
    version = ".".join(str(number) for number in sys.version_info[:3])
    return {
        "implementation": sys.implementation.name,
        "version": version + (level + str(sys.version_info.serial) if level else ""),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "soabi": EXTENSION_SUFFIXES[0].strip(".").rpartition(".")[0] if EXTENSION_SUFFIXES else "",
    }


def _look_in(
    folder: str,
    order: int,
    found: list[tuple[tuple[Any, ...], dict[str, Any]]],
    leftovers: list[str],
    records: bool,
) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if not name.endswith((".dist-info", ".egg-info", ".egg")):
            continue
        location = os.path.join(folder, name)
        if name.startswith("~"):
            leftovers.append(location)
            continue
        if name.endswith(".dist-info"):
            made = _dist_info(location, name, names, records)
            if made is None:
                leftovers.append(location)
                continue
            # A dist-info beats an egg-info wherever it stands; then the order of the path; then the newest.
            key = (0, order, -_mtime(location), location)
        else:
            made = _egg(folder, location, name)
            if made is None:
                continue
            key = (1, order, 0, location)
        found.append((key, made))


def _settle(found: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[dict[str, Any]]:
    winners: dict[str, str] = {}
    for _key, one in sorted(found, key=lambda pair: pair[0]):
        winner = winners.setdefault(one["name"], one["location"])
        if winner != one["location"]:
            one["shadowed_by"] = winner
    return sorted((one for _, one in found), key=lambda one: (one["name"], one["location"]))


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _read(path: str) -> bytes | None:
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        size = os.fstat(number).st_size
        data = os.read(number, size + 1)
        while True:
            more = os.read(number, 65536)
            if not more:
                return data
            data += more
    except OSError:
        return None
    finally:
        os.close(number)


def _headers(data: bytes) -> tuple[str, str, list[str]]:
    """Return name, version and the Requires-Dist lines of a METADATA or PKG-INFO file."""
    head = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0].decode("utf-8", "replace")
    name = version = ""
    requires = []
    for line in head.splitlines():
        if line.startswith("Requires-Dist:"):
            requires.append(line[14:].strip())
        elif not name and line.startswith("Name:"):
            name = line[5:].strip()
        elif not version and line.startswith("Version:"):
            version = line[8:].strip()
    return name, version, requires


def _dist_info(location: str, folder_name: str, beside: list[str], records: bool) -> dict[str, Any] | None:
    metadata = _read(location + "/METADATA")
    record = _read(location + "/RECORD")
    parsed = _INFO.match(folder_name)
    if metadata is None and record is None:
        return None
    name, version, requires = _headers(metadata or b"")
    trouble = ""
    if not name or not version:
        if parsed is None:
            return None
        name, version = name or parsed.group("name"), version or parsed.group("version")
        trouble = "its METADATA is missing or damaged"
    installer = (_read(location + "/INSTALLER") or b"").decode("utf-8", "replace").strip() or None
    direct_url = None  # type: dict[str, Any] | None
    text = _read(location + "/direct_url.json")
    if text is not None:
        try:
            loaded = json.loads(text.decode("utf-8"))
            direct_url = loaded if isinstance(loaded, dict) else None
        except ValueError:
            trouble = trouble or "its direct_url.json is damaged"
    editable = ""
    if direct_url is not None and (direct_url.get("dir_info") or {}).get("editable"):
        editable = _shape(name, (record or b"").decode("utf-8", "replace"), beside)
    if record is None and not editable:
        trouble = trouble or "it has no RECORD" + (f" (installed by {installer})" if installer else "")
    wheel = (_read(location + "/WHEEL") or b"").decode("utf-8", "replace")
    return {
        "name": normalize(name),
        "version": version,
        "location": location,
        "installer": installer,
        "direct_url": direct_url,
        "record": record_digest(record.decode("utf-8", "surrogateescape")) if records and record else None,
        "tags": [line[4:].strip() for line in wheel.splitlines() if line.startswith("Tag:")],
        "requires": requires,
        "editable": editable,
        "trouble": trouble,
        "shadowed_by": "",
    }


def _shape(name: str, record: str, beside: list[str]) -> str:
    """Return how an editable project is made importable, by the files that its RECORD names."""
    files = [line.split(",", 1)[0].strip('"') for line in record.splitlines()]
    if not files:
        plain = normalize(name).replace("-", "_")
        files = [one for one in beside if plain in one.lower()]
    if any("_editable_loader" in one for one in files):
        return "meson-python"
    if any(one.startswith("__editable__") and one.endswith("finder.py") for one in files):
        return "finder"
    if any(one.startswith("_") and one.endswith("_editable.py") for one in files):
        return "scikit-build-core"
    return "pth"


def _egg(folder: str, location: str, name: str) -> dict[str, Any] | None:
    editable, trouble = "", ""
    if name.endswith(".egg"):
        inner = location + "/EGG-INFO/PKG-INFO"
        trouble = "it is a legacy egg, which no lock can name"
    elif os.path.isdir(location):
        inner = location + "/PKG-INFO"
        if os.path.basename(folder) in _SITE:
            trouble = "it has a legacy egg-info and no RECORD, so its files are not known"
        else:
            editable = "egg-link"
    else:
        inner = location
        trouble = "it has a legacy egg-info and no RECORD, so its files are not known"
    data = _read(inner)
    title, version, requires = _headers(data or b"")
    if not title or not version:
        if not name.endswith(".egg"):
            return None
        title, _, rest = name[:-4].partition("-")
        version = rest.split("-")[0] or "0"
    return {
        "name": normalize(title),
        "version": version,
        "location": location,
        "installer": None,
        "direct_url": None,
        "record": None,
        "tags": [],
        "requires": requires,
        "editable": editable,
        "trouble": trouble,
        "shadowed_by": "",
    }


def _conda(prefix: str) -> list[dict[str, str]]:
    folder = os.path.join(prefix, "conda-meta")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    found = []
    for name in names:
        parts = name[:-5].rsplit("-", 2)
        if len(parts) != 3:
            continue
        channel = re.search(rb'"channel"\s*:\s*"([^"]*)"', _read(os.path.join(folder, name)) or b"")
        text = channel.group(1).decode("utf-8", "replace") if channel else ""
        text = re.sub(r"(?<=://)[^/@]*@", "", re.sub(r"/t/[^/]+", "", text))  # no token, no password
        found.append({"name": parts[0], "version": parts[1], "build": parts[2], "channel": text})
    return found


def imported_distributions(facts: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return which distributions this process has really imported, and from where.

    Parameters
    ----------
    facts : Facts
        What `scan` gave in this process.

    Returns
    -------
    dict
        By distribution name: ``path`` (the file or folder of its top-level module) and, where the module
        says it, ``version`` (its ``__version__``).
    """
    modules: dict[str, tuple[str, Any]] = {}
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__" or module is None:
            continue
        try:
            held = vars(module)
            file = held.get("__file__")
            if not file:
                places = list(held.get("__path__") or ())
                file = places[0] if places else None
        except (TypeError, AttributeError, KeyError, RuntimeError):
            continue
        if isinstance(file, str) and os.path.isabs(file):
            modules[name] = (os.path.dirname(file) if "__init__." in os.path.basename(file) else file, module)
    found: dict[str, dict[str, str]] = {}
    for distribution in facts["distributions"]:
        if distribution["shadowed_by"] or distribution["editable"]:
            continue
        # Its own name first: most distributions are called as their module, and then nothing is read.
        plain = distribution["name"].replace("-", "_")
        tops = [plain] if plain in modules else _top_level(distribution["location"])
        for top in tops:
            if top in modules:
                path, module = modules[top]
                version = vars(module).get("__version__")
                entry = {"path": path}
                if isinstance(version, str):
                    entry["version"] = version
                found[distribution["name"]] = entry
                break
    return found


def _top_level(location: str) -> list[str]:
    """Return the modules that a distribution brings, without its private ones."""
    text = (_read(location + "/RECORD") or b"").decode("utf-8", "replace")
    tops = set()
    for line in text.splitlines():
        path = line.split(",", 1)[0].strip('"')
        first, slash, _ = path.partition("/")
        if slash:
            if first.isidentifier() and not path.endswith(".pyc"):
                tops.add(first)
        elif first.endswith(".py") or ".so" in first:
            tops.add(first.split(".", 1)[0])
    return sorted(tops - {"__pycache__"}, key=lambda top: (top.startswith("_"), top))


def _main(arguments: Sequence[str]) -> int:
    here = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == here:
        del sys.path[0]
    sys.stdout.write(json.dumps(scan(records="--no-records" not in arguments)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
