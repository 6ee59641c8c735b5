"""Source trees on a host: folders named by their manifest's digest, made of blobs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, List, Mapping, Tuple

from .layout import Cache, Emit, Problem, checked_digest, disk_problem, exchange, fresh, remove, taken_back

__all__ = ["place_trees"]

_CLONE = 0x40049409  # FICLONE

_Files = List[Tuple[PurePosixPath, str, int]]  # path, sha256, mode


def place_trees(cache: Cache, emit: Emit, trees: Iterable[Mapping[str, Any]]) -> list[str]:
    """Make source trees exist and return their folders.

    Files are copies, which share their blocks with the blobs where the file system can do that: code may
    write to its own files, as on the machine it comes from, and must not change a blob by that. A tree that
    is there and of which a file was changed or removed gives way to a new one; files that were added stay
    out of consideration, since code leaves bytecode and results beside itself.

    Parameters
    ----------
    cache : Cache
        Where the blobs are.
    emit : callable
        Told of trees that had been changed.
    trees : iterable of mapping
        Each ``{"digest", "name", "files": [[path, sha256, mode], ...]}``.

    Raises
    ------
    Problem
        A blob is missing, a path leads out of the tree, or the disk is full.
    """
    return [str(_place(cache, emit, tree)) for tree in trees]


def _place(cache: Cache, emit: Emit, tree: Mapping[str, Any]) -> Path:
    target = cache.trees / checked_digest(tree["digest"])
    files = [(_inside(path), checked_digest(digest), int(mode)) for path, digest, mode in tree["files"]]
    there = target.is_dir()
    if there and _as_placed(cache, target, files):
        return target
    try:
        with taken_back(fresh(cache.trees, f".placing-{target.name[:16]}-")) as part:
            _fill(cache, part, files)
            traces = _traces(part, files)
            if there:
                remove(exchange(part, target))
                text = f"source tree {tree.get('name', '')} had been changed: it was placed anew"
                emit({"event": "note", "text": text})
            else:
                part.rename(target)
        _remember(cache, target, traces)
    except FileNotFoundError as error:
        raise Problem(
            "realise",
            f"source tree {tree.get('name', '')}: a file's content is not on the host ({error.filename})",
            "Try again: what is lacking is sent.",
        ) from error
    except OSError as error:
        if target.is_dir() and _as_placed(cache, target, files):  # another session was quicker
            return target
        raise disk_problem(error, f"source tree {tree.get('name', '')} could not be placed") from error
    return target


def _fill(cache: Cache, part: Path, files: _Files) -> None:
    part.mkdir(mode=0o700, parents=True)
    made = {part}
    for path, digest, mode in files:
        file = part / path
        if file.parent not in made:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.add(file.parent)
        _copy(cache.blob(digest), file)
        file.chmod(0o700 if mode & 0o100 else 0o600)


def _as_placed(cache: Cache, target: Path, files: _Files) -> bool:
    """Return whether a tree's files are as they should be; they are read only where one was touched."""
    try:
        traces = _traces(target, files)
        with contextlib.suppress(FileNotFoundError):
            if _seen(cache, target).read_text(encoding="ascii") == traces:
                return True
        for path, digest, mode in files:
            file = target / path
            if file.is_symlink() or (file.stat().st_mode ^ mode) & 0o100:
                return False
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                return False
    except (OSError, ValueError):
        return False
    with contextlib.suppress(OSError):
        _remember(cache, target, traces)
    return True


def _traces(folder: Path, files: _Files) -> str:
    """Return what differs whenever one of these files was written to, or is another one."""
    sha = hashlib.sha256()
    for path, _, _ in files:
        status = os.lstat(f"{folder}/{path}")
        about = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
        sha.update(f"{path} {about}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def _remember(cache: Cache, target: Path, traces: str) -> None:
    with taken_back(fresh(cache.trees, ".unfinished-")) as part:
        part.write_text(traces, encoding="ascii")
        part.replace(_seen(cache, target))


def _seen(cache: Cache, target: Path) -> Path:
    """Return where the traces of a tree are kept: beside it, since all that is in it is the user's."""
    return cache.trees / f".seen-{target.name}"


def _inside(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise Problem("usage", f"{path!r} is not a path inside a source tree")
    return pure


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, target.open("wb") as file, contextlib.suppress(OSError):
        fcntl.ioctl(file.fileno(), _CLONE, content.fileno())
        return
    shutil.copyfile(source, target)
