"""Source trees on a host: folders named by their manifest's digest, made of blobs."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, Mapping

from .layout import Cache, Problem, checked_digest, disk_problem, fresh, remove, taken_back

__all__ = ["place_trees"]

_CLONE = 0x40049409  # FICLONE


def place_trees(cache: Cache, trees: Iterable[Mapping[str, Any]]) -> list[str]:
    """Make source trees exist and return their folders.

    Files are copies, which share their blocks with the blobs where the file system can do that: code may
    write to its own files, as on the machine it comes from, and must not change a blob by that.

    Parameters
    ----------
    cache : Cache
        Where the blobs are.
    trees : iterable of mapping
        Each ``{"digest", "name", "files": [[path, sha256, mode], ...]}``.

    Raises
    ------
    Problem
        A blob is missing, a path leads out of the tree, or the disk is full.
    """
    return [str(_place(cache, tree)) for tree in trees]


def _place(cache: Cache, tree: Mapping[str, Any]) -> Path:
    target = cache.trees / checked_digest(tree["digest"])
    if target.is_dir():
        return target
    files = [(_inside(path), checked_digest(digest), int(mode)) for path, digest, mode in tree["files"]]
    part = fresh(cache.trees, f".placing-{target.name[:16]}-")
    try:
        part.mkdir(mode=0o700, parents=True)
        with taken_back(part):
            made: set[Path] = {part}
            for path, digest, mode in files:
                file = part / path
                if file.parent not in made:
                    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    made.add(file.parent)
                _copy(cache.blob(digest), file)
                file.chmod(0o700 if mode & 0o100 else 0o600)
            part.rename(target)
    except FileNotFoundError as error:
        raise Problem(
            "realise",
            f"source tree {tree.get('name', '')}: a file's content is not on the host ({error.filename})",
            "Try again: what is lacking is sent.",
        ) from error
    except OSError as error:
        if target.is_dir():  # another session was quicker
            remove(part)
            return target
        raise disk_problem(error, f"source tree {tree.get('name', '')} could not be placed") from error
    return target


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
