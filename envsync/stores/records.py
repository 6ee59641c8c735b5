"""What lies beside the blobs of a store: locks, source trees, and pushes, which name both.

::

    environments/<lock digest>/pylock.<sha256>.toml     a lock, without its source trees
    trees/<manifest digest>.json                        what a source tree holds
    pushes/<name>/<utc time>-<12 digits of the lock's digest>-<random>.json
    pushing/<utc time>-<random>.json                    a push that is under way, and what it relies on
    sweeping/<utc time>-<random>.json                   something is being removed: who begins to push waits

Nothing is ever rewritten: what has a digest in its name always has the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from envsync.errors import CorruptBlobError, EnvsyncError, StoreError
from envsync.interpreter import InterpreterArchive
from envsync.lock import Lock
from envsync.store import blob_name
from envsync.trees import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envsync.hooks import Hooks
    from envsync.stores import Entry, SharedStore

__all__ = [
    "Push",
    "Supplies",
    "Uv",
    "lock_file",
    "pushes",
    "read_lock",
    "read_push",
    "read_tree",
    "tree_file",
]

_TIME = "%Y%m%dT%H%M%S.%fZ"
_KILLED = 600.0  # seconds that a few removals never take
_LOOK = 0.2  # seconds between two looks at whether they are done
_LONGEST = 255  # bytes of a file's name
_SHORT = 12  # digits of a lock's digest in a push's file name


@dataclass(frozen=True, slots=True, kw_only=True)
class Uv:
    """A uv executable that hosts are given.

    Attributes
    ----------
    version, system, machine : str
        Such as ``"0.13.9"``, ``"linux"``, ``"x86_64"``.
    digest : str
        The blob.
    """

    version: str
    system: str
    machine: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """What a bare host needs besides the wheels, as blobs of the store.

    Attributes
    ----------
    uv : Uv or None
    python : InterpreterArchive or None
    """

    uv: Uv | None = None
    python: InterpreterArchive | None = None

    @property
    def digests(self) -> set[str]:
        """The blobs."""
        return {one.digest for one in (self.uv, self.python) if one is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "uv": None if self.uv is None else asdict(self.uv),
            "python": None if self.python is None else self.python.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Supplies:
        """Read what `to_dict` returned."""
        uv, python = data.get("uv"), data.get("python")
        return cls(
            uv=None if uv is None else Uv(**{field.name: uv[field.name] for field in fields(Uv)}),
            python=None if python is None else InterpreterArchive.from_dict(python),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One push: what keeps its blobs from being removed, and what others start from.

    Attributes
    ----------
    name : str
        Of the environment.
    lock, text : str
        The lock's digest, and the sha256 of its file.
    trees : tuple of str
        Digests of the manifests, in the order in which they are imported from.
    supplies : Supplies
    target : str
        What it is for, in words.
    user, host : str
        Who pushed, from where.
    size : int
        Bytes of all its blobs.
    file : str
        The record's name in the store; not part of it.
    """

    name: str
    lock: str
    text: str
    trees: tuple[str, ...] = ()
    supplies: Supplies = Supplies()
    target: str = ""
    user: str = ""
    host: str = ""
    size: int = 0
    file: str = ""

    @property
    def time(self) -> float:
        """When it was, in seconds since 1970, by the clock of who pushed."""
        return time_of(self.file) or 0.0

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two pushes of one name the same."""
        return (self.name, self.lock, self.text, self.trees, self.supplies)

    @property
    def documents(self) -> set[str]:
        """The names of the other records that it needs."""
        return {lock_file(self.lock, self.text), *map(tree_file, self.trees)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        simple = {
            key: getattr(self, key) for key in ("name", "lock", "text", "target", "user", "host", "size")
        }
        return {**simple, "trees": list(self.trees), "supplies": self.supplies.to_dict()}

    def write(self, store: SharedStore) -> Push:
        """Keep the record; return it with the name of its file."""
        name = f"{_stamp()}-{self.lock[:_SHORT]}-{secrets.token_hex(4)}.json"
        made = replace(self, file=f"{_folder(self.name)}/{name}")
        store.write(made.file, to_json(self.to_dict()))
        return made


def pushes(store: SharedStore, name: str = "") -> dict[str, list[str]]:
    """Return the files of pushes, the newest first, by the name of the environment.

    Parameters
    ----------
    store : SharedStore
        Where.
    name : str, optional
        Only of this name.
    """
    found: dict[str, list[str]] = {}
    for entry in reversed(store.entries(_folder(name) if name else "pushes")):
        parts = entry.name.split("/")
        if len(parts) == 3 and time_of(entry.name) is not None:
            found.setdefault(unquote(parts[1]), []).append(entry.name)
    return found


def read_push(store: SharedStore, file: str) -> Push:
    """Read one push.

    Raises
    ------
    StoreError
        It is not there, or is none.
    """
    data = _read_json(store, file)
    try:
        simple = {key: str(data[key]) for key in ("name", "lock", "text", "target", "user", "host")}
        push = Push(
            **simple,
            trees=tuple(map(str, data["trees"])),
            supplies=Supplies.from_dict(data["supplies"]),
            size=int(data["size"]),
            file=file,
        )
        for digest in (push.lock, push.text, *push.trees, *push.supplies.digests):
            blob_name(digest)  # they become names of files: no record leads out of the store
        return push
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, StoreError) as error:
        raise _spoilt(store, file, f"it is not the record of a push ({error!r})") from error


def read_lock(store: SharedStore, push: Push) -> Lock:
    """Read the lock of a push; it has no source trees yet.

    Raises
    ------
    CorruptBlobError
        It is not what was pushed.
    StoreError
        It is not there.
    """
    name = lock_file(push.lock, push.text)
    data = store.read(name)
    if hashlib.sha256(data).hexdigest() != push.text:
        raise _spoilt(store, name, "its bytes are not those that were pushed")
    lock = replace(Lock.loads(data.decode(), source=f"{store.shown}/{name}"), name=push.name)
    if lock.digest != push.lock:
        raise _spoilt(store, name, f"its digest is {lock.digest}, not {push.lock}")
    return lock


def read_tree(store: SharedStore, digest: str) -> Manifest:
    """Read what a source tree holds.

    Raises
    ------
    CorruptBlobError
        It is not what was pushed.
    StoreError
        It is not there.
    """
    name = tree_file(digest)
    data = _read_json(store, name)
    try:
        manifest = Manifest.from_dict(data)
    except EnvsyncError as error:
        raise _spoilt(store, name, error.message) from error
    if manifest.digest != digest:
        raise _spoilt(store, name, f"its digest is {manifest.digest}")
    return manifest


def blobs_of(push: Push, lock: Lock, manifests: Iterable[Manifest]) -> set[str]:
    """Return all blobs that a push needs."""
    wheels = {artifact.sha256 for artifact in lock.artifacts()}
    files = {sha256 for manifest in manifests for _, sha256, _ in manifest.files}
    return wheels | files | push.supplies.digests


def begin(store: SharedStore, documents: Iterable[str], blobs: Iterable[str]) -> str:
    """Tell `gc` what a push that is under way relies on; return the record's name."""
    name = f"pushing/{_stamp()}-{secrets.token_hex(8)}.json"
    store.write(name, to_json({"documents": sorted(documents), "blobs": sorted(blobs)}))
    return name


def begun(store: SharedStore, entry: Entry) -> tuple[set[str], set[str]]:
    """Read what a push that is under way relies on: the names of records, and of blobs."""
    data = _read_json(store, entry.name)
    try:
        blobs = set(map(str, data.get("blobs", ())))
        return set(map(str, data.get("documents", ()))), set(map(blob_name, blobs))
    except (TypeError, StoreError) as error:
        raise _spoilt(store, entry.name, f"it is not of a push ({error})") from error


@contextlib.contextmanager
def sweeping(store: SharedStore) -> Iterator[None]:
    """Let those who begin to push wait for the block to end.

    Either they see this, or the block sees their marks: both write first, and look then.
    """
    name = f"sweeping/{_stamp()}-{secrets.token_hex(8)}.json"
    store.write(name, b"{}")
    try:
        yield
    finally:
        store.remove(name)


def clock(store: SharedStore) -> float:
    """Return the time by the store's own clock, which has the times of all that is in it.

    A machine whose clock is a day ahead would take what somebody sends just now for old. Ours counts where
    the store does not tell, or may not be written to.
    """
    try:
        mark = begin(store, (), ())
    except StoreError:
        return time.time()
    try:
        return _written_at(store, mark)
    finally:
        store.remove(mark)


def wait_for_sweepers(store: SharedStore, mark: str, hooks: Hooks) -> None:
    """Wait until nothing is being removed; one who has been at it for too long was killed.

    Parameters
    ----------
    store : SharedStore
        Where.
    mark : str
        What `begin` has just written: when that was, the store knows.
    hooks : Hooks
        Told what is waited for.
    """
    told = False
    seen: dict[str, float] = {}
    ahead = _written_at(store, mark) - time.monotonic()

    def at_it(entry: Entry) -> bool:
        began = seen.setdefault(entry.name, time.monotonic())  # the store's clock may have been wrong then
        age = max(ahead + time.monotonic() - (entry.modified or 0.0), time.monotonic() - began)
        return age < _KILLED

    while any(map(at_it, store.entries("sweeping"))):
        if not told:
            hooks.step(store.shown, "waiting while what nobody needs is removed")
        told = True
        time.sleep(_LOOK)


def _written_at(store: SharedStore, name: str) -> float:
    """Return when something was written, by the store's clock; the time here where it does not tell."""
    there = store.entries(name.rpartition("/")[0])
    return next((one.modified for one in there if one.name == name and one.modified), time.time())


def lock_file(digest: str, text: str) -> str:
    """Return the name of a lock's file."""
    return f"environments/{digest}/pylock.{text}.toml"


def tree_file(digest: str) -> str:
    """Return the name of a manifest's file."""
    return f"trees/{digest}.json"


def time_of(file: str) -> float | None:
    """Return the time in the name of a push's file, or None if that is not one."""
    stamp = file.rpartition("/")[2].partition("-")[0]
    try:
        return datetime.strptime(stamp, _TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _folder(name: str) -> str:
    quoted = quote(name, safe="")
    if quoted.startswith("."):  # what begins with a dot is not listed, and .. is another folder
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) > _LONGEST:
        raise StoreError(
            f"{name[:20]!r}... is too long for the name of an environment",
            hint="Name it behind the store's URL: STORE#NAME.",
        )
    return f"pushes/{quoted}"


def _stamp() -> str:
    return datetime.now(timezone.utc).strftime(_TIME)


def to_json(data: Any) -> bytes:
    """Return a record's bytes: the same for the same content."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


def _read_json(store: SharedStore, name: str) -> dict[str, Any]:
    try:
        data = json.loads(store.read(name))
    except ValueError as error:
        raise _spoilt(store, name, "it is not JSON") from error
    if not isinstance(data, dict):
        raise _spoilt(store, name, "it is not a JSON object")
    return data


def _spoilt(store: SharedStore, name: str, why: str) -> CorruptBlobError:
    return CorruptBlobError(
        f"this record is spoilt: {why}",
        where=f"{store.shown}/{name}",
        hint="Remove it, and push the environment again from the machine that has it.",
    )
