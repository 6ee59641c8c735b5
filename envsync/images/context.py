"""A folder that a container engine builds an image from: wheels, uv, lock, local code and a Dockerfile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.agent.installing import pylock
from envsync.agent.layout import TREES_PTH
from envsync.errors import ImageError, StoreError
from envsync.images.deflate import CHUNK
from envsync.images.plan import ROOT, TREES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from envsync.interpreter import InterpreterArchive
    from envsync.lock import Lock
    from envsync.store import Store
    from envsync.trees import Manifest

__all__ = ["TEMPLATES", "Context", "default_base", "dockerfile", "template", "write"]

TEMPLATES = ("base", "gpu", "dev")
_ARGUMENTS = ("BASE", "LOCK", "TREES", "FRONT", "BACK", "BASE_NAME", "BASE_DIGEST")
_MOUNT = re.compile(r"(?<=\s)--mount=\S+\s+")
_DEFAULT = re.compile(r"^ARG BASE=(\S+)\s*$", re.MULTILINE)
_MTIME = 315_619_200  # 1980-01-02, as in the layers that are made without an engine
_OURS = ("Dockerfile", "install", "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A folder to build from, whole.

    Attributes
    ----------
    folder : Path
        With ``Dockerfile`` in it.
    lock : Lock
        The packages, with references to the trees that are there.
    trees : tuple of Manifest
        The local code.
    base : str
        What the image goes on top of.
    """

    folder: Path
    lock: Lock = field(repr=False)
    trees: tuple[Manifest, ...] = field(repr=False)
    base: str


def template(name: str) -> str:
    """Return the text of a Dockerfile: one of `TEMPLATES`, or a file of the user's.

    Raises
    ------
    ImageError
        It cannot be read.
    """
    if name in TEMPLATES:
        return _shipped(f"{name}.Dockerfile")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "unreadable") if isinstance(error, OSError) else "it is not text"
        raise ImageError(
            f"the Dockerfile cannot be read: {why}",
            where=name,
            hint=f"Name a file, or one of {', '.join(TEMPLATES)}.",
        ) from error


def _shipped(name: str) -> str:
    return (resources.files("envsync") / "dockerfiles" / name).read_text(encoding="utf-8")


def default_base(text: str, minor: str) -> str:
    """Return what a Dockerfile puts an environment on top of, for a Python such as 3.11."""
    found = _DEFAULT.search(text)
    if found is None:
        raise ImageError(
            "the Dockerfile does not say what the image goes on top of",
            hint="It needs a line such as ARG BASE=python:3.11-slim, or say --base.",
        )
    return re.sub(r"^((?:\S+/)?python):3\.\d+(?=-|$)", rf"\g<1>:{minor}", found[1])


def dockerfile(text: str, values: Mapping[str, str], *, mounts: bool = True) -> str:
    """Fill in the arguments of a Dockerfile.

    Parameters
    ----------
    text : str
        Of a template, or of what a user made of one.
    values : mapping of str to str
        By the arguments' names; lines for others stay as they are.
    mounts : bool
        Whether whoever builds knows ``RUN --mount``: BuildKit does, the classic builder does not.
    """
    for name, value in values.items():
        line = f"ARG {name}={_quoted(value)}".replace("\\", r"\\")
        text = re.sub(rf"^ARG {name}(=.*)?$", line, text, flags=re.MULTILINE)
    if mounts:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(_MOUNT.sub("", one) if one.lstrip().startswith("RUN ") else one for one in lines)


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.:/@-]*", value) else json.dumps(value)


def write(
    folder: Path,
    lock: Lock,
    trees: Iterable[Manifest],
    store: Store,
    *,
    uv: str,
    interpreter: InterpreterArchive | None,
    text: str,
    base: str,
    base_digest: str = "",
    mounts: bool = True,
) -> Context:
    """Write all that a build needs into a folder, which then needs no index, no secret and no network.

    Parameters
    ----------
    folder : Path
        Made if it is not there; what an earlier call wrote gives way.
    lock : Lock
        The environment.
    trees : iterable of Manifest
        Local code, in the order of the path.
    store : Store
        Holds the wheels, the files of the trees, uv and the interpreter.
    uv : str
        Digest of the executable.
    interpreter : InterpreterArchive, optional
        For a base without a Python that fits.
    text : str
        The Dockerfile, as `template` gives it.
    base, base_digest : str
        What the image goes on top of; the digest is only told.
    mounts : bool
        As for `dockerfile`.

    Raises
    ------
    ImageError
        The folder holds something else, or cannot be written.
    StoreError
        Something is not in the store.
    """
    trees = tuple(trees)
    lock = replace(lock, trees=tuple(tree.reference() for tree in trees))
    context = Context(folder=folder, lock=lock, trees=trees, base=base)
    try:
        _clear(folder)
        _install(folder / "install", lock, store, uv, interpreter)
        _image(folder / "image", lock, trees, store)
        values = {
            "BASE": base,
            "BASE_NAME": base,
            "BASE_DIGEST": base_digest,
            "LOCK": lock.digest,
            "TREES": " ".join(tree.digest for tree in trees),
            "FRONT": _path(trees, "front"),
            "BACK": _path(trees, "back"),
        }
        assert set(values) == set(_ARGUMENTS)
        # last: a folder with a Dockerfile is whole
        _text(folder / "Dockerfile", dockerfile(text, values, mounts=mounts))
    except OSError as error:
        raise ImageError(
            f"what the image is built from cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="Make room there, or name another folder.",
        ) from error
    return context


def _path(trees: Iterable[Manifest], position: str) -> str:
    return ":".join(f"/{TREES}/{tree.digest}" for tree in trees if tree.position == position)


def _clear(folder: Path) -> None:
    """Make the folder, without what was written there before; what is somebody's own is not touched."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and not (folder / "install" / "pylock.toml").is_file():
        raise ImageError(
            "the folder is not empty, and envsync build did not write it",
            where=str(folder),
            hint="Name a new folder, or an empty one.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in _OURS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _install(folder: Path, lock: Lock, store: Store, uv: str, interpreter: InterpreterArchive | None) -> None:
    """Write what makes the environment. Nothing here depends on local code, so that builds remember it."""
    artifacts = sorted(lock.artifacts(), key=lambda one: one.name)
    missing = [one.filename for one in artifacts if one.sha256 not in store.has([one.sha256])]
    if missing:
        raise StoreError(
            f"wheels of the image are not in the store: {', '.join(missing[:5])}",
            hint="Make the lock again on the machine whose environment it describes (envsync snapshot).",
        )
    places = {one.sha256: Path("wheels", one.filename) for one in artifacts}
    _folder(folder / "wheels")
    for one in artifacts:
        _blob(store, one.sha256, folder / places[one.sha256])
    told: list[dict[str, Any]] = [
        {"name": one.name, "version": one.version, "filename": one.filename, "sha256": one.sha256}
        for one in artifacts
    ]
    _text(folder / "pylock.toml", pylock(told, places))
    report = {key: value for key, value in lock.report().items() if key != "trees"}
    _text(folder / "wanted.json", json.dumps({**report, "who": "lock"}, sort_keys=True))
    _text(folder / "minor", lock.target.minor + "\n")
    _text(folder / "envsync.pth", TREES_PTH)
    _text(folder / "install.sh", _shipped("install.sh"))
    for name in ("scan.py", "compare.py"):
        _text(folder / name, (resources.files("envsync.plugins") / name).read_text(encoding="utf-8"))
    _blob(store, uv, folder / "uv", executable=True)
    if interpreter is not None:
        safe: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        with store.open(interpreter.digest) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            archive.extractall(folder / "python", **safe)  # noqa: S202 - we packed it


def _image(folder: Path, lock: Lock, trees: tuple[Manifest, ...], store: Store) -> None:
    """Write what lies in the image as it lies there: the lock, and local code."""
    _text(folder / "pylock.toml", lock.dumps())
    inside = folder / Path(TREES).relative_to(ROOT)
    _folder(inside)
    for tree in trees:
        # what was left out, and why, is of one machine only
        about = {key: value for key, value in tree.to_dict().items() if key != "left_out"}
        _text(inside / f"{tree.digest}.json", json.dumps(about, sort_keys=True, separators=(",", ":")))
        _folder(inside / tree.digest)
        for path, sha256, mode in tree.files:
            _blob(store, sha256, inside / tree.digest / path, executable=bool(mode & 0o100))


def _folder(path: Path) -> None:
    """Make a folder that everybody may read, whatever the umask: its mode goes into the image."""
    if not path.is_dir():
        _folder(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


@contextlib.contextmanager
def _settled(path: Path, mode: int) -> Iterator[None]:
    """Give a file that the body writes the same mode and time on every machine."""
    _folder(path.parent)
    yield
    path.chmod(mode)
    os.utime(path, (_MTIME, _MTIME))


def _text(path: Path, text: str) -> None:
    with _settled(path, 0o644):
        path.write_bytes(text.encode())


def _blob(store: Store, digest: str, path: Path, *, executable: bool = False) -> None:
    """Copy a blob out of the store, checked."""
    sha = hashlib.sha256()
    with _settled(path, 0o755 if executable else 0o644), store.open(digest) as file, path.open("wb") as copy:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            copy.write(chunk)
    if sha.hexdigest() != digest:
        raise StoreError(
            f"the store holds other bytes than the digest {digest} of {path.name} says",
            hint="Remove it there (envsync store verify --remove), and try again.",
        )
