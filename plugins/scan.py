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
from bisect import bisect_left
from typing import Any, Dict, Mapping, Sequence

__all__ = ["Facts", "imported_distributions", "libc", "normalize", "record_digest", "scan"]

# {"interpreter": ..., "platform": ..., "paths": ..., "distributions": ..., "conda": ..., "leftovers": ...,
#  "unowned": ...}
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
_MODULE = re.compile(r"((?:[^,/]+/){0,3}__init__|[^,/.]+)\.(?:py|(?:[^,/]*\.)?so),")
_SIGNED = re.compile(
    r"(?i)(?:^|[&;])[^=&;]*(?:sig|token|key|secret|passw|credential|expires|auth|x-amz|x-goog)"
)
_NOBODYS = frozenset(["__pycache__", "_virtualenv.py"])  # what makes a virtual environment, and its caches
_NOT_FOR_TASKS = frozenset(["benchmarks", "docs", "examples", "test", "tests"])  # images are slimmed by them
_ENOUGH = 8192  # bytes: the headers of nearly every METADATA, without the description that follows


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
    # The 30,000 lines of 300 distributions are on the path of every command. So they are sorted first: those
    # that need a closer look then stand together, and nothing else is done to each of the others.
    if '"' in record:
        import csv

        lines = [",".join(row[:2]) for row in csv.reader(record.splitlines()) if len(row) >= 2]
    else:
        lines = [line.rpartition(",")[0] for line in record.split("\n")]
    lines = sorted([line for line in lines if line[-1:] not in (",", "")])
    stem = _stem(record)
    if not stem or any(part in record for part in (".pyc,sha", "\\", "\r")):
        looked_at, lines = lines, []
    else:
        looked_at = _take(lines, ".", "0") + _take(lines, stem + ".d", stem + ".e")  # .data, .dist-info
    for line in looked_at:
        path, _, digest = line.rpartition(",")
        place = _content_path(path.replace("\\", "/"))
        if place:
            lines.append(place + "," + digest)
    lines.sort()
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _take(lines: list[str], first: str, end: str) -> list[str]:
    """Remove what lies between two strings from a sorted list, and return it."""
    low, high = bisect_left(lines, first), bisect_left(lines, end)
    taken = lines[low:high]
    del lines[low:high]
    return taken


def _stem(record: str) -> str:
    """Return the ``name-version`` that the dist-info folder of a RECORD is called by, "" if it has none."""
    end = record.find(".dist-info/RECORD")
    while end >= 0:
        stem = record[record.rfind("\n", 0, end) + 1 : end].lstrip('"')
        if "/" not in stem:
            return stem
        end = record.find(".dist-info/RECORD", end + 1)
    return ""


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
        location; one of each name wins and has an empty ``shadowed_by``; ``gone``, if it is there, are
        modules at the top of the folder that its RECORD names and that are not there), ``conda``,
        ``leftovers`` (broken folders that an installer left behind), ``unowned`` (modules in folders of
        installed packages that no distribution there names; empty without `records`).
    """
    folders: list[str] = []
    for path in sys.path if paths is None else paths:
        folder = os.path.abspath(path or os.curdir)
        if folder not in folders:
            folders.append(folder)
    found: list[tuple[tuple[int, int], dict[str, Any]]] = []
    leftovers: list[str] = []
    unowned: list[str] = []
    for order, folder in enumerate(folders):
        if os.path.basename(folder) == "_vendor":
            continue  # setuptools puts its own private copies on the path; they are not installed
        _look_in(folder, order, found, leftovers, unowned, records)
    return {
        "interpreter": _interpreter(),
        "platform": {"system": _system(), "machine": os.uname().machine, "libc": libc()},
        "paths": folders,
        "distributions": _settle(found),
        "conda": _conda(sys.prefix) if paths is None else [],
        "leftovers": sorted(leftovers),
        "unowned": sorted(unowned),
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
    found: list[tuple[tuple[int, int], dict[str, Any]]],
    leftovers: list[str],
    unowned: list[str],
    records: bool,
) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    owned: set[str] | None = set() if records and os.path.basename(folder) in _SITE else None
    here = frozenset(names)
    for name in names:
        if not name.endswith((".dist-info", ".egg-info", ".egg")):
            continue
        location = os.path.join(folder, name)
        if name.startswith("~"):
            leftovers.append(location)
            continue
        if name.endswith(".dist-info"):
            tops: set[str] | None = None if owned is None else set()
            made = _dist_info(location, name, names, records, tops)
            if owned is not None and tops is not None:
                owned |= tops
                if made is not None and not tops <= here:
                    gone = _gone_modules(location, tops - here)
                    made.update({"gone": gone} if gone else {})
            if made is None:
                leftovers.append(location)
                continue
            # A dist-info beats an egg-info wherever it stands; then the order of the path decides.
            key = (0, order)
        else:
            made = _egg(folder, location, name)
            if made is None:
                continue
            if owned is not None:
                owned.update(_told_tops(location, made["name"]))
            key = (1, order)
        found.append((key, made))
    if owned is not None:
        rest = [name for name in names if name not in owned and name not in _NOBODYS and name[0] not in "~."]
        unowned += [path for path in (os.path.join(folder, name) for name in rest) if _is_code(path)]


def _tops(record: str) -> set[str]:
    """Return the first parts of a RECORD's paths. Sorted, whole folders of it are passed over."""
    lines = sorted(record.replace('"', "").replace("\\", "/").split("\n"))
    tops = set()
    at = 0
    while at < len(lines):
        top, slash, _ = lines[at].partition("/")
        if slash and "," not in top:
            tops.add(top)
            at = bisect_left(lines, top + "0", at)  # "0" comes after "/"
        else:
            tops.add(top.partition(",")[0])
            at += 1
    return tops


def _gone_modules(location: str, tops: set[str]) -> list[str]:
    """Return those of some names in a RECORD that are modules, or folders with modules that tasks import."""
    record = (_read(location + "/RECORD") or b"").decode("utf-8", "replace")
    return sorted(
        top
        for top in tops - _NOT_FOR_TASKS
        if top.partition(".")[0].isidentifier()
        and re.search(rf"^{re.escape(top)}(?<=\.py|\.so),|^{re.escape(top)}/[^,\n]*\.(py|so),", record, re.M)
    )


def _told_tops(location: str, name: str) -> set[str]:
    """Return what a distribution without a RECORD may have put beside it."""
    told = (_read(location + "/top_level.txt") or b"").decode("utf-8", "replace").split()
    return {one + end for one in [*told, name, name.replace("-", "_")] for end in ("", ".py")}


def _is_code(path: str) -> bool:
    """Tell whether a path in a folder of installed packages is a module, or a folder with one in it."""
    name = os.path.basename(path)
    if not name.partition(".")[0].isidentifier():
        return False
    if name.endswith((".py", ".so")):
        return os.path.isfile(path)
    return "." not in name and any(
        one.endswith((".py", ".so")) for _, _, files in os.walk(path) for one in files
    )


def _settle(found: list[tuple[tuple[int, int], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Let one distribution of each name win."""
    named: dict[str, list[tuple[tuple[int, int], dict[str, Any]]]] = {}
    for pair in found:
        named.setdefault(pair[1]["name"], []).append(pair)
    for pairs in named.values():
        if len(pairs) == 1:
            continue
        first = min(key for key, _ in pairs)
        twins = [one for key, one in pairs if key == first]
        winner = twins[0] if len(twins) == 1 else min(twins, key=lambda one: _doubt(one["location"]))
        for _, one in pairs:
            if one is not winner:
                one["shadowed_by"] = winner["location"]
    return sorted((one for _, one in found), key=lambda one: (one["name"], one["location"]))


def _doubt(location: str) -> tuple[int, int, str]:
    """Rank twins in one folder: first the one whose files are those that are there, then the newest."""
    record = _read(location + "/RECORD")
    wrong = 0
    for line in (record or b"").decode("utf-8", "surrogateescape").splitlines():
        path, _, size = line.rpartition(",")
        path = path.rpartition(",")[0].strip('"')
        if size.isdigit() and _stat(os.path.join(os.path.dirname(location), path), "st_size") != int(size):
            wrong += 1
    return (1 << 30 if record is None else wrong), -_stat(location, "st_mtime_ns"), location


def _stat(path: str, what: str) -> int:
    try:
        return int(getattr(os.stat(path), what))
    except OSError:
        return -1


def _read(path: str, size: int = 8192) -> bytes | None:
    """Return a file's bytes, None if it cannot be read."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        data = os.read(number, size)
        if len(data) < size:
            return data
        pieces = [data]
        while pieces[-1]:
            pieces.append(os.read(number, 1 << 20))
        return b"".join(pieces)
    except OSError:
        return None
    finally:
        os.close(number)


def _read_head(path: str) -> bytes | None:
    """Return the headers of a METADATA or PKG-INFO file: what stands before the first blank line."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        data = os.read(number, _ENOUGH)
        while True:
            end = data.find(b"\n\n")
            if end < 0:
                end = data.find(b"\n\r\n")
            if end >= 0:
                return data[:end]
            more = os.read(number, 1 << 20)
            if not more:
                return data
            data += more
    except OSError:
        return None
    finally:
        os.close(number)


def _headers(head: bytes) -> tuple[str, str, list[str]]:
    """Return name, version and the Requires-Dist lines of headers."""
    name = version = ""
    requires = []
    for line in head.decode("utf-8", "replace").split("\n"):
        if line.startswith("Requires-Dist:"):
            requires.append(line[14:].strip())
        elif not name and line.startswith("Name:"):
            name = line[5:].strip()
        elif not version and line.startswith("Version:"):
            version = line[8:].strip()
    return name, version, requires


def _dist_info(
    location: str, folder_name: str, beside: list[str], records: bool, owned: set[str] | None
) -> dict[str, Any] | None:
    metadata = _read_head(location + "/METADATA")
    record = _read(location + "/RECORD", 1 << 16)
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
    direct_url, trouble = _direct_url(location, trouble)
    text = None if record is None else record.decode("utf-8", "surrogateescape")
    if owned is not None:
        owned.update(_told_tops(location, normalize(name)) if text is None else _tops(text))
    editable = ""
    folder = (direct_url or {}).get("dir_info")
    if isinstance(folder, dict) and folder.get("editable"):
        editable = _shape(name, text or "", os.path.dirname(location), beside)
    if record is None and not editable:
        trouble = trouble or "it has no RECORD" + (f" (installed by {installer})" if installer else "")
    wheel = (_read(location + "/WHEEL") or b"").decode("utf-8", "replace")
    return {
        "name": normalize(name),
        "version": version,
        "location": location,
        "installer": installer,
        "direct_url": direct_url,
        "record": record_digest(text) if records and text and not editable else None,
        "tags": [line[4:].strip() for line in wheel.splitlines() if line.startswith("Tag:")],
        "requires": requires,
        "editable": editable,
        "trouble": trouble,
        "shadowed_by": "",
    }


def _direct_url(location: str, trouble: str) -> tuple[dict[str, Any] | None, str]:
    text = _read(location + "/direct_url.json")
    if text is None:
        return None, trouble
    try:
        loaded = json.loads(text.decode("utf-8"))
    except ValueError:
        loaded = None
    if isinstance(loaded, dict) and isinstance(loaded.get("url"), str):
        loaded["url"] = _public_url(loaded["url"])
        return loaded, trouble
    return None, trouble or "its direct_url.json is damaged"


def _public_url(url: str) -> str:
    """Return a URL without what lets its reader in: a user and password, and a query that is signed."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    place = re.match(r"[^/?#]*", rest)
    host = place.group() if place else ""
    rest = rest[len(host) :]
    user, _, bare = host.rpartition("@")
    address, hash_, fragment = rest.partition("#")
    address, _, query = address.partition("?")
    if query and not _SIGNED.search(query):
        address += "?" + query
    # as PEP 610 has it: git@ is no secret
    return scheme + mark + (host if user == "git" else bare) + address + hash_ + fragment


def _shape(name: str, record: str, site: str, beside: list[str]) -> str:
    """Return how an editable project is made importable, by the files that its RECORD names."""
    files = [line.split(",", 1)[0].strip('"') for line in record.splitlines()]
    if not files:
        plain = normalize(name).replace("-", "_")
        files = [one for one in beside if plain in one.lower()]
    if any("_editable_loader" in one for one in files):
        return "meson-python"
    if any(one.startswith("__editable__") and one.endswith("finder.py") for one in files):
        return "finder"
    if any(one.startswith("_editable_skbc_") or one.endswith("_editable.py") for one in files):
        return "scikit-build-core"
    if any(
        one.endswith(".pth") or os.path.islink(os.path.join(site, one)) for one in files if "/" not in one
    ):
        return "pth"
    return ""  # all of it lies in the site folder: maturin's way with projects that have no Python code


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
    data = _read_head(inner)
    title, version, requires = _headers(data or b"")
    if folder == os.path.dirname(os.__file__):
        return None  # a few old Pythons describe parts of the standard library like this
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
        channel = re.search(rb'"channel"\s*:\s*"([^"]*)"', _read(os.path.join(folder, name), 1 << 16) or b"")
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
        By distribution name: ``path`` (the file or folder of the module) and, where the module says it,
        ``version`` (its ``__version__``). Editable projects are not among them: their code is a source tree.
    """
    modules = _imported_modules()
    found: dict[str, dict[str, str]] = {}
    for distribution in facts["distributions"]:
        if distribution["shadowed_by"] or distribution["editable"]:
            continue
        location, name = distribution["location"], distribution["name"].replace("-", "_")
        site = os.path.dirname(location)
        # Its own name first: most distributions are called as their module, and then nothing is read.
        own = name in modules and _stands_in(site, name)
        names = [name] if own else _module_names(location)
        for name in names:
            if name in modules:
                path, version = modules[name]
                found[distribution["name"]] = entry = {"path": _below(path, site)}
                if version is not None:
                    entry["version"] = version
                break
    return found


def _imported_modules() -> dict[str, tuple[str, str | None]]:
    """Return path and version of the imported modules, but for those of the standard library."""
    import sysconfig

    stdlib = tuple({sysconfig.get_path(key) + os.sep for key in ("stdlib", "platstdlib")})
    modules: dict[str, tuple[str, str | None]] = {}
    for name, module in list(sys.modules.items()):
        try:
            held = vars(module)
            file, version = held.get("__file__"), held.get("__version__")  # no getattr: it may import or warn
        except Exception:  # noqa: BLE001, S112 - whatever stands in sys.modules may do anything when asked
            continue
        if not isinstance(file, str) or not os.path.isabs(file):
            continue  # built in, or a namespace package, which is nobody's
        if file.startswith(stdlib) and not any(os.sep + site + os.sep in file for site in _SITE):
            continue
        base = os.path.basename(file)
        path = os.path.dirname(file) if base.startswith("__init__.") else file
        modules[name] = (path, version if isinstance(version, str) else None)
    return modules


def _stands_in(site: str, name: str) -> bool:
    path = os.path.join(site, name)
    return os.path.isdir(path) or os.path.isfile(path + ".py")


def _below(path: str, site: str) -> str:
    """Return the path as one below the site folder, if it is, though by a link such as lib64."""
    if not path.startswith(site + os.sep):
        real, folder = os.path.realpath(path), os.path.realpath(site)
        if real.startswith(folder + os.sep):
            return site + real[len(folder) :]
    return path


def _module_names(location: str) -> list[str]:
    """Return a distribution's modules: ``google.protobuf`` and not ``google``; private ones come last."""
    record = _read(location + "/RECORD", 1 << 16) or b""
    # most lines are of files inside packages: those are told by less than a regular expression
    lines = [
        line
        for line in record.decode("utf-8", "replace").split("\n")
        if "/" not in line or "/__init__." in line
    ]
    found = {match.group(1) for match in map(_MODULE.match, lines) if match}
    names = set()
    packages: set[str] = set()
    for path in sorted(found, key=len):
        package = path[: -len("/__init__")] if path.endswith("/__init__") else ""
        parts = (package or path).split("/")
        if any("/".join(parts[:depth]) in packages for depth in range(1, len(parts))):
            continue
        if package:
            packages.add(package)
        if all(part.isidentifier() for part in parts):
            names.add(".".join(parts))
    return sorted(names, key=lambda name: (name.startswith("_"), name.count("."), name))


def _main(arguments: Sequence[str]) -> int:
    here = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == here:
        del sys.path[0]
    sys.stdout.write(json.dumps(scan(records="--no-records" not in arguments)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
