"""One comparison of two environments, used wherever two are compared.

`left` is what is wanted (the client, a lock), `right` what is there (a host, a scheduler, a worker). Either
is a Report: what `scan.scan` gives, plus what a process knows of itself (`imported`, `trees`, and what of an
overlay is no longer as it was laid: `altered`), and on the left the names of what no task needs (`tools`). A
key that a side does not have is not compared.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Iterable, Iterator, Mapping, Tuple

__all__ = ["CORE", "ERROR", "FATAL", "NOTE", "RANK", "SCHEDULER", "WARNING", "Difference", "compare", "worst"]

FATAL, ERROR, WARNING, NOTE = "fatal", "error", "warning", "note"
RANK = {FATAL: 0, ERROR: 1, WARNING: 2, NOTE: 3}

# Two processes with different versions of these may not even understand each other.
CORE = frozenset(("dask", "distributed", "msgpack", "cloudpickle", "tornado"))

SCHEDULER = "scheduler"
"""What the process of a scheduler is called."""

# Builds of one version for different machines, and what comes with them: see envsync/cuda.py.
_BUILD = re.compile(r"(.*[.\d])?(cpu|cu\d{2,3})\Z")
_CUDA_LIBRARY = re.compile(r"(nvidia-.+|(pytorch-)?triton|cuda-.+)\Z")

_RESYNC = "make the two equal (envsync sync), or start a cluster from here"
_BUILT = (
    "another build of the same version: it is left as it is, since which one a machine runs is its own affair"
)
_RELOCK = "lock for that machine: envsync snapshot --for"
_LAID_ANEW = "somebody wrote to its files there, or removed them: envsync sync lays it over anew"
_INCOMPLETE = "somebody removed what its RECORD names: envsync sync lays it over, a reinstallation mends it"
_UNSHIPPED = "the code is not there: cluster.sync(), or envsync sync"


@dataclass(frozen=True)
class Difference:
    """One disagreement between two environments.

    Parameters
    ----------
    severity : {"fatal", "error", "warning", "note"}
        How bad: processes cannot work together; code that tasks can reach differs; differs, but does not
        matter there; good to know.
    kind : str
        ``python``, ``platform``, ``version``, ``content``, ``missing``, ``extra``, ``imported``,
        ``shadowed``, ``source`` or ``driver``.
    subject : str
        The distribution, source tree or part of the machine.
    left, right : str
        What is wanted, and what is there; empty for nothing.
    where, process : str
        The host, and the process on it.
    advice : str
        The next step.
    """

    severity: str
    kind: str
    subject: str
    left: str
    right: str
    where: str = ""
    process: str = ""
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Give plain JSON types."""
        return dict(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Difference:
        """Read what `to_dict` gave; keys of a newer envsync are passed over."""
        return cls(**{key: str(data[key]) for key in cls.__dataclass_fields__ if key in data})


def worst(differences: Iterable[Difference]) -> str:
    """Return the worst severity among differences, "" if there are none."""
    return min((one.severity for one in differences), key=lambda severity: RANK[severity], default="")


def compare(
    left: Mapping[str, Any], right: Mapping[str, Any], *, where: str = "", process: str = ""
) -> list[Difference]:
    """Return how `right` differs from `left`, the worst first.

    Parameters
    ----------
    left : Report
        What is wanted.
    right : Report
        What is there.
    where, process : str
        The host and the process that `right` was seen in.
    """
    rows = [
        *_interpreters(left, right),
        *_platforms(left, right),
        *_distributions(left, right),
        *_altered(left, right),
        *_imports(left, right),
        *_trees(left, right),
    ]
    made = [
        Difference(severity, kind, subject, old, new, where, process, advice)
        for severity, kind, subject, old, new, advice in rows
    ]
    if process == SCHEDULER:
        made = [_of_a_scheduler(one) for one in made]
    return sorted(made, key=lambda one: (RANK[one.severity], one.subject, one.kind))


def _of_a_scheduler(one: Difference) -> Difference:
    """Make little of what a scheduler, which runs no tasks, merely imported before the wanted one came."""
    if one.severity == ERROR and one.kind == "imported":
        advice = "tasks have the wanted one; the scheduler keeps what it has imported until it is restarted"
        return replace(one, severity=WARNING, advice=advice)
    return one


_Row = Tuple[str, str, str, str, str, str]


def _interpreters(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    old, new = left.get("interpreter"), right.get("interpreter")
    if not old or not new:
        return
    kinds = old.get("implementation"), new.get("implementation")
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        advice = "use the same kind of Python on both sides"
        yield (FATAL, "python", "python", str(kinds[0]), str(kinds[1]), advice)
        return
    wanted, there = str(old.get("version") or ""), str(new.get("version") or "")
    if not wanted or not there:
        return
    if wanted.split(".")[:2] != there.split(".")[:2]:
        advice = "start it with Python " + ".".join(wanted.split(".")[:2])
        yield (FATAL, "python", "python", wanted, there, advice)
    elif wanted != there:
        yield (NOTE, "python", "python", wanted, there, "")


def _platforms(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    old, new = left.get("platform") or {}, right.get("platform") or {}
    for key in ("system", "machine"):
        if old.get(key) and new.get(key) and old[key] != new[key]:
            yield (NOTE, "platform", key, str(old[key]), str(new[key]), "")
    wanted, there = old.get("libc"), new.get("libc")
    if wanted and there and old.get("machine") == new.get("machine"):
        said = (" ".join(wanted), " ".join(there))
        if wanted[0] != there[0]:
            yield (ERROR, "platform", "libc", said[0], said[1], _RELOCK)
        elif _numbers(there[1]) < _numbers(wanted[1]):
            # What was locked for a newer C library may not load there; a client's own may be newer.
            severity = ERROR if str(left.get("who", "")).startswith("lock") else NOTE
            yield (severity, "platform", "libc", said[0], said[1], _RELOCK)
    drivers = left.get("accelerators"), right.get("accelerators")
    if drivers[0] and drivers[1] is not None:
        said = (", ".join(drivers[0]), ", ".join(drivers[1]))
        if not drivers[1]:
            yield (WARNING, "driver", "driver", said[0], "", "code for the accelerator does not run there")
        elif [_numbers(one) for one in drivers[1]] < [_numbers(one) for one in drivers[0]]:
            yield (WARNING, "driver", "driver", said[0], said[1], "a newer driver there, or older CUDA here")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in re.split(r"[^0-9]+", str(version)) if part)


def _winners(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["name"]: one for one in report.get("distributions", ()) if not one.get("shadowed_by")}


def _distributions(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    if left.get("distributions") is None or right.get("distributions") is None:
        return
    # A tree that carries an editable project stands for it, where that side knows trees.
    old, new = _winners(left), _winners(right)
    foreign = _foreign(left, right)
    for_driver, builds = _for_a_driver(left, right), _other_builds(left, right)
    tools = frozenset(left.get("tools") or ()) - CORE
    for name in sorted(old.keys() | new.keys()):
        wanted, there = old.get(name), new.get(name)
        core = name in CORE
        if there is None and wanted is not None:
            if wanted.get("editable") and "trees" not in right:
                local = wanted["version"] + " (local code)"
                yield (WARNING, "missing", name, local, "", "ship its source tree")
            elif wanted.get("editable") or name in tools:
                continue
            elif (for_driver or builds) and _CUDA_LIBRARY.match(name):
                yield (
                    NOTE,
                    "missing",
                    name,
                    wanted["version"],
                    "",
                    "the builds for that machine have others",
                )
            elif foreign and not core:
                advice = "install it there, if there is one for that machine and code uses it"
                yield (WARNING, "missing", name, wanted["version"], "", advice)
            else:
                yield (FATAL if core else ERROR, "missing", name, wanted["version"], "", _RESYNC)
        elif wanted is None and there is not None:
            if name in (left.get("trees") or ()):
                continue  # the metadata that a project's source tree carries
            yield (NOTE, "extra", name, "", there["version"], "")
        elif wanted is not None and there is not None:
            if not _same_version(wanted["version"], there["version"]):
                # Of local code the files are compared, wherever an import finds them: `_trees`.
                local = wanted.get("editable") and "trees" in right
                if for_driver and _another_build(name, wanted["version"], there["version"]):
                    advice = "the build for that machine's driver"
                    yield (NOTE, "version", name, wanted["version"], there["version"], advice)
                    continue
                if builds and _another_build(name, wanted["version"], there["version"]):
                    severity = NOTE if _CUDA_LIBRARY.match(name) else WARNING
                    yield (severity, "version", name, wanted["version"], there["version"], _BUILT)
                    continue
                severity = FATAL if core else NOTE if local else ERROR
                yield (severity, "version", name, wanted["version"], there["version"], _RESYNC)
            elif _other_content(wanted, there) and not foreign:
                said = ["{} ({})".format(one["version"], one["record"][:8]) for one in (wanted, there)]
                if _other_build(wanted, there):
                    advice = "another build of the same version, for another C library for instance"
                    yield (WARNING, "content", name, said[0], said[1], advice)
                else:
                    advice = "same version, other files: one of the two was built or edited by hand"
                    yield (ERROR, "content", name, said[0], said[1], advice)


def _for_a_driver(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Tell whether a client is compared with a lock for machines with a driver: builds differ by right."""
    locks = [str(side.get("who", "")).startswith("lock") for side in (left, right)]
    return locks == [False, True] and bool(right.get("accelerators"))


def _other_builds(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Tell whether a client and a machine have builds of one version with and without CUDA, or two of CUDA.

    Which one is right is the machine's affair: neither is put in the place of the other. What was made from a
    lock has what is locked.
    """
    if str(left.get("who", "")).startswith("lock"):
        return False
    old, new = _winners(left), _winners(right)
    versions = [(str(old[name]["version"]), str(new[name]["version"])) for name in old.keys() & new.keys()]
    return any(not _same_version(*pair) and _another_build("", *pair) for pair in versions)


def _another_build(name: str, one: str, other: str) -> bool:
    """Tell whether two versions are builds of the same one, or libraries that come with builds."""
    if _CUDA_LIBRARY.match(name):
        return True
    locals_ = [version.partition("+")[2] for version in (one, other)]
    return _public(one) == _public(other) and all(not text or _BUILD.match(text) for text in locals_)


def _altered(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    old, new = _winners(left), _winners(right)
    altered = right.get("altered") or {}
    for name in sorted(old.keys() & {*altered, *(name for name, one in new.items() if one.get("gone"))}):
        said = altered.get(name) or "{} gone".format(", ".join(new[name]["gone"]))
        advice = _LAID_ANEW if name in altered else _INCOMPLETE
        yield (ERROR, "content", name, old[name]["version"], said, advice)


def _foreign(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Tell whether the two run on different kinds of machine, where wheels differ by right."""
    old, new = left.get("platform") or {}, right.get("platform") or {}
    return any(old.get(key) and new.get(key) and old[key] != new[key] for key in ("system", "machine"))


def _other_content(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    if wanted.get("editable") or there.get("editable"):
        return False
    return bool(wanted.get("record") and there.get("record") and wanted["record"] != there["record"])


def _other_build(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    tags = wanted.get("tags"), there.get("tags")
    return bool(tags[0] and tags[1] and sorted(tags[0]) != sorted(tags[1]))


def _same_version(one: str, other: str) -> bool:
    return one == other or _spelled(one) == _spelled(other)


def _spelled(version: str) -> str:
    """Return a version as PEP 440 would have it, as far as installers' spellings differ."""
    text = version.strip().lower().lstrip("v").replace("_", ".").replace("-", ".")
    public, plus, local = text.partition("+")
    public = re.sub(r"(^|\.)0+(?=[0-9])", r"\1", public)  # 26.04.00 is 26.4.0
    while public.endswith(".0"):
        public = public[:-2]
    return public + plus + local


def _imports(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    imported = right.get("imported")
    if imported is None:
        return
    old, new = _winners(left), _winners(right)
    mine = left.get("imported") or {}
    for name in sorted(imported):
        held, there = imported[name], new.get(name)
        if there is None or (old and name not in old):
            continue
        if _astray(held, there, right) and not (name in mine and _astray(mine[name], old.get(name), left)):
            said = held.get("version")
            if said and not _same_version(said, there["version"]) and _in_site(held["path"]):
                advice = "it was imported before the wanted one came: restart it"
                severity = FATAL if name in CORE else ERROR
                yield (severity, "imported", name, there["version"], said, advice)
                continue
            advice = "a module of the same name comes first on the path there: rename or remove it"
            yield (ERROR, "shadowed", name, there["location"], held["path"], advice)
            continue
        said, wanted = held.get("version"), (mine.get(name) or {}).get("version")
        if said is None or _public(said) == _public(there["version"]):
            continue  # what is installed was compared already
        if wanted is not None:
            if not _same_version(wanted, said):
                advice = "it imported another one than is installed: restart it"
                yield (FATAL if name in CORE else ERROR, "imported", name, wanted, said, advice)
        else:
            # Not every package's __version__ is its version: of others than these it proves nothing.
            advice = "if it was installed anew while this process ran: restart it"
            severity = FATAL if name in CORE else WARNING
            yield (severity, "imported", name, there["version"], said, advice)


def _astray(held: Mapping[str, Any], one: Mapping[str, Any] | None, report: Mapping[str, Any]) -> bool:
    """Tell whether a module came from elsewhere than from its distribution or a known source tree."""
    if one is None or not one.get("location"):
        return False
    site, path = (str(text).replace("\\", "/") for text in (one["location"], held.get("path") or ""))
    if not path or path.startswith(site.rpartition("/")[0] + "/"):
        return False
    return not any(digest and digest in path for digest in (report.get("trees") or {}).values())


def _in_site(path: str) -> bool:
    """Tell whether a module lies where installers put packages, not in somebody's own folder."""
    return bool({"site-packages", "dist-packages"} & set(path.replace("\\", "/").split("/")))


def _public(version: str) -> str:
    return _spelled(version.partition("+")[0])


def _trees(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[_Row]:
    old: Mapping[str, str] | None = left.get("trees")
    new: Mapping[str, str] | None = right.get("trees")
    if old is None or new is None:
        return
    for name in sorted(old.keys() | new.keys()):
        wanted, there = old.get(name, ""), new.get(name, "")
        if wanted == there:
            continue
        if wanted and there:
            advice = "the code there is stale: cluster.sync(), or envsync sync"
            yield (ERROR, "source", name, _short(wanted), _short(there), advice)
        elif wanted:
            yield (ERROR, "source", name, _short(wanted), "", _UNSHIPPED)
        else:
            yield (NOTE, "source", name, "", _short(there), "")


def _short(said: str) -> str:
    """Return the start of a digest; what is the matter with a tree is said whole."""
    return said if " " in said else said[:12]
