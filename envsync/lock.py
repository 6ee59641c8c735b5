"""The lock: exact wheels for one target, as a PEP 751 file with a ``[tool.envsync]`` table.

Any tool that reads PEP 751 installs the file; the table adds what verification and source trees need.
Its bytes depend on what was locked and on nothing else: no date, no path of the machine that made it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from packaging.markers import Marker
from packaging.pylock import (
    Pylock,
    PylockUnsupportedVersionError,
    PylockValidationError,
    is_valid_pylock_path,
)
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from envsync.artifacts import (
    RELOCK,
    SCHEMA,
    WHEELS_FOLDER,
    Artifact,
    Excluded,
    Substitution,
    TreeRef,
    wheel_tags,
)
from envsync.errors import EnvsyncError, LockError, LockVersionError, StoreError
from envsync.snapshot import CondaRecord
from envsync.target import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envsync.store import Store

__all__ = ["SCHEMA", "WHEELS_FOLDER", "Artifact", "Excluded", "Lock", "Substitution", "TreeRef", "lock_path"]

_temporary = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Lock:
    """Exact artifacts for one target.

    Attributes
    ----------
    pylock : packaging.pylock.Pylock
        The standard's part: one wheel per package, sorted by name.
    target : Target
        What it is locked for.
    snapshot : str
        The digest of the snapshot that it was made from.
    records : mapping of str to str
        Record digests of the packages that are reproduced from the snapshot as they are.
    trees : tuple of TreeRef
        Source trees, in the order of the snapshot.
    conda : tuple of CondaRecord
        Conda's own packages.
    excluded : tuple of Excluded
        What is installed and not locked.
    substitutions : tuple of Substitution
        What the user allowed to differ.
    name : str
        From the file's name; not part of the file.
    folder : Path or None
        Where it was read from: local wheels lie there. Not part of the file.
    """

    pylock: Pylock
    target: Target
    snapshot: str = ""
    records: Mapping[str, str] = field(default_factory=dict)
    trees: tuple[TreeRef, ...] = ()
    conda: tuple[CondaRecord, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    substitutions: tuple[Substitution, ...] = ()
    name: str = field(default="envsync", compare=False)
    folder: Path | None = field(default=None, compare=False)

    @classmethod
    def of(cls, artifacts: Iterable[Artifact], target: Target, **rest: Any) -> Lock:
        """Make a lock of one wheel per package, in the one form that such a lock has.

        Parameters
        ----------
        artifacts : iterable of Artifact
            In any order.
        target : Target
            What they are for.
        **rest
            The other attributes.
        """
        for key in ("excluded", "substitutions"):
            rest[key] = tuple(sorted(rest.get(key, ()), key=lambda entry: (entry.name, str(entry))))
        rest["records"] = dict(sorted(rest.get("records", {}).items()))
        pylock = Pylock(
            lock_version=Version("1.0"),
            created_by="envsync",
            environments=[_environment(target)],
            requires_python=SpecifierSet("==" + ".".join(target.python.split(".")[:2]) + ".*"),
            packages=[artifact.package() for artifact in sorted(artifacts, key=lambda one: one.name)],
        )
        return cls(pylock=pylock, target=target, **rest)

    @property
    def digest(self) -> str:
        """The name of the environment: Python, system, packages and their wheels; not trees, not URLs."""
        return _environment_digest(self.target, self.artifacts())

    @functools.cached_property
    def _artifacts(self) -> tuple[Artifact, ...]:
        return tuple(Artifact.of(package) for package in self.pylock.packages)

    @functools.cached_property
    def _text(self) -> str:
        return _dumps(self)

    def artifacts(self) -> tuple[Artifact, ...]:
        """Return the wheels, sorted by name.

        Raises
        ------
        LockError
            A package is not locked to one wheel.
        """
        return self._artifacts

    def report(self) -> dict[str, Any]:
        """Return what is wanted, in the form that comparisons take."""
        distributions = []
        for artifact in self.artifacts():
            entry: dict[str, Any] = {"name": artifact.name, "version": artifact.version}
            entry["tags"] = sorted(wheel_tags(artifact.filename))
            if artifact.name in self.records:
                entry["record"] = self.records[artifact.name]
            distributions.append(entry)
        report: dict[str, Any] = {
            "who": f"lock {self.name}",
            "interpreter": {"implementation": self.target.implementation, "version": self.target.python},
            "platform": {
                "system": self.target.system,
                "machine": self.target.machine,
                "libc": None if self.target.libc is None else list(self.target.libc),
            },
            "distributions": distributions,
            "trees": {tree.name: tree.digest for tree in self.trees},
        }
        if self.target.accelerators:
            report["accelerators"] = list(self.target.accelerators)
        return report

    def without_trees(self) -> Lock:
        """Return the packages alone."""
        return replace(self, trees=()) if self.trees else self

    def dumps(self) -> str:
        """Return the file's text."""
        return self._text

    @classmethod
    def loads(cls, text: str, source: str = "", *, dumped: bool = False) -> Lock:
        """Read a lock from a file's text.

        Parameters
        ----------
        text : str
            TOML.
        source : str
            What errors call it.
        dumped : bool
            Whether `dumps` gave the text, so that it need not write it anew.

        Raises
        ------
        LockVersionError
            Its table is of a schema that this envsync does not know.
        LockError
            It is not TOML, not PEP 751, not ours, or was changed by hand.
        """
        lock = _read(text, source)
        if dumped:
            lock.__dict__["_text"] = text
        return lock

    def write(self, path: str | os.PathLike[str], store: Store | None = None) -> Path:
        """Write the file, whole or not at all, and its local wheels beside it.

        Parameters
        ----------
        path : path
            ``pylock.toml`` or ``pylock.<name>.toml`` in an existing folder.
        store : Store, optional
            Where the local wheels are; not needed without any.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        LockError
            The file's name is not one that PEP 751 allows, or it cannot be written.
        StoreError
            A local wheel is not in the store.
        """
        file = lock_path(path)
        text = self.dumps()
        for artifact in self.artifacts():
            if artifact.path is not None:
                self._place(artifact, file.parent, store)
        _replace(file, [text.encode()])
        return file

    def _place(self, artifact: Artifact, folder: Path, store: Store | None) -> None:
        """Put a local wheel beside the lock file."""
        assert artifact.path is not None
        wheel = folder / artifact.path
        if wheel.is_file() and _file_digest(wheel) == artifact.sha256:
            return
        source = None if self.folder is None else self.folder / artifact.path
        try:
            wheel.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise LockError(f"cannot make the folder {wheel.parent}: {error.strerror}") from error
        if store is not None and artifact.sha256 in store.has([artifact.sha256]):
            with store.open(artifact.sha256) as stream:
                _replace(wheel, iter(lambda: stream.read(1 << 20), b""))
        elif source is not None and source.is_file():
            with source.open("rb") as stream:
                _replace(wheel, iter(lambda: stream.read(1 << 20), b""))
        else:
            raise StoreError(
                f"{artifact.name} {artifact.version}: its wheel {artifact.filename} is not in the store",
                hint=RELOCK,
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lock:
        """Read a lock from a file.

        Raises
        ------
        LockError
            As `loads`; or there is no such file, or its name is not one that PEP 751 allows.
        """
        file = lock_path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise LockError(
                "there is no such lock", where=str(path), hint="Make one: envsync snapshot"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise LockError(f"the lock cannot be read: {error}", where=str(path)) from error
        name = file.name.removeprefix("pylock.").removesuffix("toml").rstrip(".")
        return _read(text, str(path), name=name or "envsync", folder=file.parent.absolute())


def lock_path(path: str | os.PathLike[str]) -> Path:
    """Return a lock's path.

    Raises
    ------
    LockError
        Its name is not one that PEP 751 allows.
    """
    file = Path(path)
    if not is_valid_pylock_path(file):
        raise LockError(
            f"{file.name!r} is not a name that a lock can have",
            where=str(path),
            hint="PEP 751 allows pylock.toml and pylock.<name>.toml, where <name> has no dot.",
        )
    return file


def _dumps(lock: Lock) -> str:
    artifacts = lock.artifacts()
    target = {key: _plain(value) for key, value in lock.target.to_dict().items() if value is not None}
    table: dict[str, Any] = {
        "schema": SCHEMA,
        "digest": _environment_digest(lock.target, artifacts),
        "snapshot": lock.snapshot,
        "target": dict(sorted(target.items())),
        "records": dict(sorted(lock.records.items())),
    }
    for key, entries in (
        ("trees", lock.trees),
        ("conda", lock.conda),
        ("excluded", lock.excluded),
        ("substitutions", lock.substitutions),
    ):
        table[key] = [_table(entry) for entry in entries]
    document = {
        "lock-version": str(lock.pylock.lock_version),
        "environments": [str(marker) for marker in lock.pylock.environments or ()],
        "requires-python": str(lock.pylock.requires_python or ""),
        "created-by": "envsync",
        "packages": [artifact.table() for artifact in artifacts],
    }
    document = {key: value for key, value in document.items() if value or key == "packages"}
    table["checks"] = _checks(document, table)
    return tomli_w.dumps({**document, "tool": {"envsync": table}})


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _table(entry: Any) -> dict[str, Any]:
    table = {one.name: _plain(getattr(entry, one.name)) for one in fields(entry)}
    return {key: value for key, value in table.items() if value is not None}


def _environment(target: Target) -> Marker:
    names = ("implementation_name", "sys_platform", "platform_machine")
    values = target.marker_environment()
    return Marker(" and ".join(f"{name} == '{values[name]}'" for name in names))


def _environment_digest(target: Target, artifacts: Iterable[Artifact]) -> str:
    essentials = [
        target.implementation,
        target.python,
        target.system,
        target.machine,
        None if target.libc is None else target.libc[0],
        sorted([artifact.name, artifact.version, artifact.sha256] for artifact in artifacts),
    ]
    return hashlib.sha256(json.dumps(essentials, separators=(",", ":")).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file under another name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_temporary)}")
    try:
        with temporary.open("xb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise LockError(f"cannot write the file: {error.strerror}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(text: str, source: str, **rest: Any) -> Lock:
    try:
        return _parse(text, rest)
    except LockError as error:
        if not error.where:
            error.where = source
        raise


def _parse(text: str, rest: Mapping[str, Any]) -> Lock:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"the lock is not valid TOML: {error}", hint=RELOCK) from error
    try:
        pylock = Pylock.from_dict(document)
    except PylockUnsupportedVersionError as error:
        raise LockVersionError(
            str(error), hint="Use a newer envsync, or lock again: envsync snapshot"
        ) from error
    except PylockValidationError as error:
        raise LockError(f"the lock is not valid PEP 751: {error}", hint=RELOCK) from error
    table = document.get("tool", {}).get("envsync")
    if not isinstance(table, dict):
        raise LockError(
            "the lock has no [tool.envsync] table: another tool made it, or the table was cut out",
            hint="Lock the environment with: envsync snapshot",
        )
    schema = table.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise LockVersionError(
            f"[tool.envsync] is of schema {schema!r}; this envsync knows schema {SCHEMA}",
            hint="Use the envsync that made it, or lock again: envsync snapshot",
        )
    try:
        target = Target.from_dict({"libc": None, "accelerators": [], **_get(table, "target", dict)})
        lock = Lock(
            pylock=Pylock(
                lock_version=pylock.lock_version,
                environments=pylock.environments,
                requires_python=pylock.requires_python,
                created_by=pylock.created_by,
                packages=pylock.packages,
            ),
            target=target,
            snapshot=_get(table, "snapshot", str),
            records={str(key): str(value) for key, value in _get(table, "records", dict).items()},
            trees=tuple(TreeRef(**entry) for entry in _get(table, "trees", list)),
            conda=tuple(CondaRecord(**entry) for entry in _get(table, "conda", list)),
            excluded=tuple(Excluded(**entry) for entry in _get(table, "excluded", list)),
            substitutions=tuple(Substitution(**entry) for entry in _get(table, "substitutions", list)),
            **rest,
        )
    except (TypeError, KeyError, ValueError, EnvsyncError) as error:
        if isinstance(error, LockError):
            raise
        raise LockError(f"[tool.envsync] is not as envsync writes it: {error}", hint=RELOCK) from error
    _check_edits(lock, document, table)
    return lock


def _get(table: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = table.get(key)
    if not isinstance(value, kind):
        what = "is missing" if value is None else f"is not a {kind.__name__}"
        raise LockError(f"[tool.envsync] {key} {what}", hint=RELOCK)
    return value


def _check_edits(lock: Lock, document: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    artifacts = lock.artifacts()
    duplicates = [
        a.name for a, b in itertools.pairwise(sorted(artifacts, key=lambda one: one.name)) if a.name == b.name
    ]
    if duplicates:
        raise LockError(f"packages that are locked twice: {', '.join(duplicates)}", hint=RELOCK)
    digest, checks = _get(table, "digest", str), _get(table, "checks", dict)
    found = _checks(document, table)
    changed = sorted(part for part in checks.keys() | found.keys() if checks.get(part) != found.get(part))
    if not changed and _environment_digest(lock.target, artifacts) == digest:
        return
    names = [_PARTS.get(part, part.removeprefix("package ")) for part in changed]
    raise LockError(
        "the lock was changed after it was made: its digest does not fit its content; this differs: "
        + (", ".join(names) or "the digest itself"),
        hint=RELOCK,
    )


_PARTS = {
    "digest": "the digest itself",
    "target": "the target (Python, system, machine, libc or accelerators)",
}


def _checks(document: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, str]:
    """A few digits of each part of the file, so that an edit can be laid at the right part's door."""
    parts = {f"package {package['name']}": package for package in document["packages"]}
    parts |= {key: value for key, value in document.items() if key not in ("packages", "tool")}
    parts |= {key: value for key, value in table.items() if key != "checks"}
    return {part: _check(parts[part]) for part in sorted(parts)}


def _check(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()[:8]
