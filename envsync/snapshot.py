"""What a Python environment holds now, observed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.errors import CaptureError
from envsync.target import Target, drivers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packaging.direct_url import DirectUrl

__all__ = ["CondaRecord", "Distribution", "Finding", "Interpreter", "Snapshot", "SourceTree", "capture"]

_NAMED = 5


_TOOLS = ("dask-envsync", "pip", "uv", "wheel")
"""What makes environments, and no task imports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python interpreter.

    Parameters
    ----------
    implementation, version : str
        Such as ``"cpython"`` and ``"3.11.7"``.
    executable, prefix, base_prefix : str
        Absolute paths, as ``sys`` names them.
    soabi : str
        What extension modules made for it carry in their names, such as ``"cpython-311-x86_64-linux-gnu"``.
    """

    implementation: str
    version: str
    executable: str
    prefix: str
    base_prefix: str
    soabi: str

    def to_dict(self) -> dict[str, str]:
        """Give plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One installed distribution (PEP 376, 503, 610).

    Parameters
    ----------
    name, version : str
        The normalised name, and the version as its metadata spells it.
    location : str
        Its dist-info (or egg-info) folder.
    installer : str, optional
        Who installed it: ``"pip"``, ``"uv"`` ...
    direct_url : packaging.direct_url.DirectUrl, optional
        Where it was installed from, if not from an index.
    record : str, optional
        The digest of what it consists of (see `envsync.plugins.scan.record_digest`).
    tags : tuple of str
        The tags of the wheel that it came from.
    requires : tuple of str
        Its Requires-Dist lines (PEP 508).
    editable : str
        How it is made importable if it is an editable project: ``"pth"``, ``"finder"``,
        ``"scikit-build-core"``, ``"meson-python"`` or ``"egg-link"``; else empty.
    trouble : str
        Why it cannot be reproduced as found; empty if it can.
    shadowed_by : str
        The location of the distribution of the same name that wins; empty if this one does.
    """

    name: str
    version: str
    location: str
    installer: str | None = None
    direct_url: DirectUrl | None = None
    record: str | None = None
    tags: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    editable: str = ""
    trouble: str = ""
    shadowed_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON types, with the keys of Facts."""
        return {
            "name": self.name,
            "version": self.version,
            "location": self.location,
            "installer": self.installer,
            "direct_url": None if self.direct_url is None else dict(self.direct_url.to_dict()),
            "record": self.record,
            "tags": list(self.tags),
            "requires": list(self.requires),
            "editable": self.editable,
            "trouble": self.trouble,
            "shadowed_by": self.shadowed_by,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Distribution:
        """Read what `to_dict`, or a scan, gave."""
        direct_url, trouble = None, data["trouble"]
        if data["direct_url"] is not None:
            from packaging.direct_url import DirectUrl, DirectUrlValidationError

            try:
                direct_url = DirectUrl.from_dict(data["direct_url"])
            except DirectUrlValidationError as error:
                trouble = trouble or f"its direct_url.json is not valid: {error}"
        return cls(
            name=data["name"],
            version=data["version"],
            location=data["location"],
            installer=data["installer"],
            direct_url=direct_url,
            record=data["record"],
            tags=tuple(data["tags"]),
            requires=tuple(data["requires"]),
            editable=data["editable"],
            trouble=trouble,
            shadowed_by=data["shadowed_by"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTree:
    """Local code that changes by the minute.

    Parameters
    ----------
    name : str
        Unique among the trees of a snapshot.
    root : str
        The folder that it stands in.
    members : tuple of (str, str)
        Path inside the tree (empty for its top) and the absolute path of the file or folder that goes there.
    position : {"front", "back"}
        Whether it is searched before or after the installed packages.
    kind : {"editable", "path", "cwd"}
        An editable project, another folder on ``sys.path``, or the working directory.
    distribution : str, optional
        The editable project's name.
    """

    name: str
    root: str
    members: tuple[tuple[str, str], ...]
    position: str
    kind: str
    distribution: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON types."""
        return {
            "name": self.name,
            "root": self.root,
            "members": [list(member) for member in self.members],
            "position": self.position,
            "kind": self.kind,
            "distribution": self.distribution,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SourceTree:
        """Read what `to_dict` gave."""
        return cls(
            name=data["name"],
            root=data["root"],
            members=tuple((str(path), str(source)) for path, source in data["members"]),
            position=data["position"],
            kind=data["kind"],
            distribution=data["distribution"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about an environment that a person should know.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        How bad it is for reproducing the environment.
    subject : str
        The distribution, folder or file.
    text : str
        What is with it.
    """

    severity: str
    subject: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Give plain JSON types."""
        return {"severity": self.severity, "subject": self.subject, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaRecord:
    """One package that conda installed."""

    name: str
    version: str
    build: str
    channel: str

    def to_dict(self) -> dict[str, str]:
        """Give plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a Python environment holds at one moment.

    Parameters
    ----------
    interpreter : Interpreter
        The Python of the environment.
    target : Target
        The machine it was seen on.
    distributions : tuple of Distribution
        All that were found, those that are shadowed too, by name.
    source_trees : tuple of SourceTree
        Local code that is importable, in the order of the path.
    conda : tuple of CondaRecord
        What conda installed in the prefix.
    findings : tuple of Finding
        What a person should know, the worst first.
    accelerators : tuple of str
        Drivers of this machine.
    """

    interpreter: Interpreter
    target: Target
    distributions: tuple[Distribution, ...]
    source_trees: tuple[SourceTree, ...] = ()
    conda: tuple[CondaRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    accelerators: tuple[str, ...] = ()

    @property
    def winners(self) -> tuple[Distribution, ...]:
        """The distributions that an import really gets: one of each name."""
        return tuple(one for one in self.distributions if not one.shadowed_by)

    def distribution(self, name: str) -> Distribution | None:
        """Return the distribution that wins for a normalised name, None if there is none."""
        return next((one for one in self.distributions if one.name == name and not one.shadowed_by), None)

    @property
    def digest(self) -> str:
        """Name what matters to a lock: Python, machine and what is installed; no paths, no local code."""
        held = [
            [self.target.implementation, self.target.python, self.target.system, self.target.machine],
            [
                [one.name, one.version, one.record, bool(one.editable), _origin(one), _required(one)]
                for one in self.winners
            ],
            [[one.name, one.version, one.build] for one in self.conda],
        ]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def report(self, *, tools: bool = False) -> dict[str, Any]:
        """Give it as a Report, for `envsync.plugins.compare.compare`.

        It goes to clusters that others run too, so it holds what is compared and no more: no path of this
        machine, and no address that something was installed from.

        Parameters
        ----------
        tools : bool
            Whether to name under ``tools`` what is here for envsync and installers only, so that no task
            misses it. Takes a moment: all requirements are read.
        """
        libc = self.target.libc
        return {
            "who": "this environment",
            "interpreter": {
                "implementation": self.interpreter.implementation,
                "version": self.interpreter.version,
            },
            "platform": {
                "system": self.target.system,
                "machine": self.target.machine,
                "libc": None if libc is None else list(libc),
            },
            "distributions": [
                {
                    "name": one.name,
                    "version": one.version,
                    "record": one.record,
                    "tags": list(one.tags),
                    "editable": one.editable,
                    "shadowed_by": "",
                }
                for one in self.winners
            ],
            "accelerators": list(self.accelerators),
            **({"tools": self._tools()} if tools else {}),
        }

    def _tools(self) -> list[str]:
        from envsync.plugins.compare import CORE
        from envsync.roots import only_for, parse_requirements

        requires = {one.name: parse_requirements(one.requires) for one in self.winners}
        return sorted(only_for(_TOOLS, requires, self.target.marker_environment(), keep=CORE))

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON types."""
        return {
            "interpreter": self.interpreter.to_dict(),
            "target": self.target.to_dict(),
            "distributions": [one.to_dict() for one in self.distributions],
            "source_trees": [one.to_dict() for one in self.source_trees],
            "conda": [one.to_dict() for one in self.conda],
            "findings": [one.to_dict() for one in self.findings],
            "accelerators": list(self.accelerators),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Snapshot:
        """Read what `to_dict` gave.

        Raises
        ------
        CaptureError
            Something is missing or is not of its type.
        """
        try:
            return cls(
                interpreter=Interpreter(**data["interpreter"]),
                target=Target.from_dict(data["target"]),
                distributions=tuple(Distribution.from_dict(one) for one in data["distributions"]),
                source_trees=tuple(SourceTree.from_dict(one) for one in data["source_trees"]),
                conda=tuple(CondaRecord(**one) for one in data["conda"]),
                findings=tuple(Finding(**one) for one in data["findings"]),
                accelerators=tuple(data["accelerators"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise CaptureError(f"this is no snapshot: {what}", hint="Capture it again.") from error


def capture(python: str | None = None, *, cwd: str | None = None, verify_files: bool = False) -> Snapshot:
    """Look at a live environment.

    Parameters
    ----------
    python : str, optional
        The interpreter of another environment, or the environment's folder; the running one by default.
    cwd : str, optional
        A working directory whose code counts as local code too.
    verify_files : bool
        Whether to hash every installed file and report those that were edited or are missing. Costs a second
        or two for 300 distributions.

    Returns
    -------
    Snapshot
        What is there now.

    Raises
    ------
    CaptureError
        There is no such interpreter, it does not run, or it is older than 3.10.
    """
    from envsync.observe import facts_of, here
    from envsync.sources import find_trees

    facts = here() if python is None else facts_of(python)
    platform = facts["platform"]
    interpreter = Interpreter(**facts["interpreter"])
    target = Target(
        python=interpreter.version,
        implementation=interpreter.implementation,
        system=platform["system"],
        machine=platform["machine"],
        libc=None if platform["libc"] is None else (platform["libc"][0], platform["libc"][1]),
        accelerators=drivers(),
    )
    distributions = tuple(Distribution.from_dict(one) for one in facts["distributions"])
    trees, findings = find_trees(
        facts["paths"], distributions, interpreter, cwd=None if cwd is None else str(Path(cwd).absolute())
    )
    findings += _findings(distributions, facts)
    if verify_files:
        from envsync.edited import edited_files

        findings += edited_files(distributions)
    order = {"error": 0, "warning": 1, "note": 2}
    return Snapshot(
        interpreter=interpreter,
        target=target,
        distributions=distributions,
        source_trees=tuple(trees),
        conda=tuple(CondaRecord(**one) for one in facts["conda"]),
        findings=tuple(sorted(findings, key=lambda one: (order[one.severity], one.subject, one.text))),
        accelerators=target.accelerators,
    )


def _required(distribution: Distribution) -> list[str]:
    """Say what an editable project requires: no record of files covers that."""
    return list(distribution.requires) if distribution.editable else []


def _origin(distribution: Distribution) -> str | None:
    """Say what it was installed from, without naming a folder of this machine."""
    direct_url = distribution.direct_url
    if direct_url is None:
        return None
    if direct_url.url.startswith("file:"):
        return "file:"
    return json.dumps(direct_url.to_dict(), sort_keys=True)


def _findings(distributions: tuple[Distribution, ...], facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    by_location = {one.location: one for one in distributions}
    for one in distributions:
        winner = by_location.get(one.shadowed_by)
        if winner is not None:
            # The egg-info that setuptools leaves in the source of an editable project is that same project.
            if winner.editable and one.editable == "egg-link":
                continue
            same = os.path.dirname(one.location) == os.path.dirname(winner.location)  # noqa: PTH120 - hot
            text = (
                f"{one.version} is installed twice in one folder; {winner.version} counts"
                if same
                else f"{one.version} in {one.location} is hidden by {winner.version} in {winner.location}"
            )
            found.append(Finding(severity="warning", subject=one.name, text=text))
        elif one.trouble:
            text = f"{one.version} cannot be reproduced as found: {one.trouble}"
            found.append(Finding(severity="error", subject=one.name, text=text))
        elif any(tag.rpartition("-")[2].startswith("linux_") for tag in one.tags) and not one.editable:
            text = f"{one.version} was built on this machine; its installed files ship"
            found.append(Finding(severity="note", subject=one.name, text=text))
    found += [
        Finding(severity="warning", subject=path, text="a broken leftover of an installation; remove it")
        for path in facts.get("leftovers", ())
    ]
    found += _by_hand(facts.get("unowned", ()))
    abi = facts["interpreter"]["soabi"].split("-")[1:2]
    if abi and abi[0][-1:] in ("t", "d"):
        kind = "free-threaded" if abi[0].endswith("t") else "debug"
        text = f"a {kind} build of Python: a lock of it would name the wheels of the usual build"
        found.append(Finding(severity="error", subject="python", text=text))
    if facts["conda"]:
        text = f"{len(facts['conda'])} packages are conda's own; a lock of them cannot be made yet"
        found.append(Finding(severity="error", subject="conda", text=text))
    return found


def _by_hand(paths: Sequence[str]) -> list[Finding]:
    """Say which modules among the installed packages belong to none of them."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return [
        Finding(
            severity="warning",
            subject=folder,
            text=f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}: of no package "
            "(put there by hand?); does not ship: make a package of it, or move it into a folder of your own",
        )
        for folder, names in folders.items()
    ]
