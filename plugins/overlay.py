"""What is laid over a host's environment: packages and source trees in folders named by their content.

``blobs/<sha256>`` are files that arrived, ``wheels/<sha256>/`` unpacked wheels, ``overlays/<digest>/``
prefixes with several of them as hard links, ``trees/<digest>/code`` source trees. Each appears by a rename,
and holds a ``.seen`` that tells whether it is still whole: temp folders are swept by others too. What is not
whole any more is left to those who use it and made anew beside it, as ``<name>.1``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Iterable, Iterator, Mapping, Sequence

from .disk import Adding, clone, is_left_behind, is_whole, may_load, part_in, remove, root, traces
from .hostlock import HostLock, lives, locked, myself, token
from .unpack import lay, site_of, unpack

__all__ = ["Adding", "Built", "Overlays", "root", "tree_digest"]

_KINDS = ("blobs", "wheels", "trees", "overlays")
_FORGOTTEN = 86400.0  # seconds: unfinished work of which nobody knows whose it is
_STATE = "_envsync_overlay"


@dataclass(frozen=True)
class Built:
    """An overlay as it is on this host's disk.

    Parameters
    ----------
    digest : str
        Of everything in it, packages and trees.
    root : str
        Where all overlays of this host are.
    site, bin : str
        The folders of packages and of scripts, "" if it has no packages.
    front, back : list of str
        The folders of source trees that come before and after installed packages.
    packages : dict
        By distribution name ``version``, ``sha256``, ``info`` (its dist-info folder's name) and ``modules``.
    """

    digest: str
    root: str
    site: str = ""
    bin: str = ""
    front: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    packages: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON types, as `activate` takes them."""
        return asdict(self)


def tree_digest(tree: Mapping[str, Any]) -> str:
    """Return the name of a source tree: that of the Manifest that it was."""
    files = [[path, sha256, mode] for path, sha256, mode in tree["files"]]
    text = json.dumps([tree["name"], tree["position"], files], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Overlays:
    """All that is laid over environments on this host, of this user.

    Parameters
    ----------
    root : Path
        What `root` returned.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        for kind in (*_KINDS, "holds"):
            os.makedirs(self.root / kind, mode=0o700, exist_ok=True)

    def lacking(
        self, packages: Mapping[str, Mapping[str, Any]], trees: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Return the sha256 of the blobs that have to come before `build` can."""
        wanted: dict[str, None] = {}
        if packages and not self._find("overlays", _overlay_digest(packages)):
            for one in packages.values():
                if not self._find("wheels", _checked(one["sha256"])):
                    wanted[one["sha256"]] = None
        for tree in trees:
            if not self._find("trees", tree_digest(tree)):
                wanted.update(dict.fromkeys(_checked(sha256) for _, sha256, _ in tree["files"]))
        return [sha256 for sha256 in wanted if not os.path.isfile(self._blob(sha256))]

    def add(self, sha256: str) -> Adding:
        """Begin to put a blob. Its chunks may be written in any thread, one after the other."""
        target = self._blob(_checked(sha256))
        return Adding(self._part("blobs"), target, sha256)

    def lock(self) -> HostLock:
        """Return what one process of this host at a time can enter: to fetch, `build`, `hold` and `sweep`.

        It is let go when its process dies. It is not to be entered twice.
        """
        return HostLock(str(self.root / ".lock-build"))

    def build(self, packages: Mapping[str, Mapping[str, Any]], trees: Sequence[Mapping[str, Any]]) -> Built:
        """Make an overlay of blobs that are here, or find it made.

        Parameters
        ----------
        packages : mapping
            By distribution name ``version``, ``sha256`` and ``filename`` of a wheel.
        trees : sequence of mapping
            Source trees as Manifest.to_dict() has them, in the order of the path.

        Raises
        ------
        FileNotFoundError
            A blob is not here: see `lacking`.
        ValueError
            A wheel or a tree is not what it should be.
        """
        folder, made = "", {}
        if packages:
            folder = self._overlay(packages)
            with open(f"{folder}/overlay.json", encoding="utf-8") as file:
                made = json.load(file)["packages"]
        places: dict[str, list[str]] = {"front": [], "back": []}
        for tree in trees:
            places["front" if tree["position"] == "front" else "back"].append(self._tree(tree) + "/code")
        named = [os.path.basename(folder), places["front"], places["back"]]
        return Built(
            digest=hashlib.sha256(json.dumps(named).encode()).hexdigest(),
            root=str(self.root),
            site=folder and site_of(folder),
            bin=f"{folder}/bin" if folder and os.path.isdir(f"{folder}/bin") else "",
            front=places["front"],
            back=places["back"],
            packages=made,
        )

    def hold(self, built: Built | Mapping[str, Any] | None) -> None:
        """Keep `sweep` in all processes from what this one uses, until this one ends or holds another.

        Parameters
        ----------
        built : Built, mapping or None
            None: only what is active, if there is something.
        """
        folders = []
        if built is not None:
            held = built.to_dict() if isinstance(built, Built) else built
            folders = [held["site"], *held["front"], *held["back"]]
        state = sys.__dict__.setdefault(_STATE, {})
        active = state.get("active") or {}
        folders += [*active.get("folders", ()), *active.get("lingering", ())]
        old = state.pop("hold", None)
        if folders:
            path = str(self.root / "holds" / token())
            number = os.open(path + ".part", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            mark = {**myself(), "names": sorted(self._names(folders))}
            os.write(number, json.dumps(mark).encode())
            locked(
                number, shared=True
            )  # as long as this file is open, which is as long as this process lives
            os.rename(path + ".part", path)
            state["hold"] = {"path": path, "number": number, "pid": os.getpid()}
        if old is not None and old["pid"] == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(old["path"])
            with contextlib.suppress(OSError):
                os.close(old["number"])

    def sweep(self, keep: Collection[str] = (), older: float = 86400.0) -> list[str]:
        """Remove what no living process holds and nobody used for a while. To be called under `lock`.

        Parameters
        ----------
        keep : collection of str
            Digests of overlays, trees, wheels or blobs that stay.
        older : float
            Seconds since the last use.

        Returns
        -------
        list of str
            What was removed, as ``kind/name``.
        """
        used = self._used({*keep, *self._held()})
        now = time.time()
        removed = []
        for kind in reversed(_KINDS):
            for entry in sorted(os.scandir(self.root / kind), key=lambda one: one.name):
                age = now - entry.stat(follow_symlinks=False).st_mtime
                if entry.name.startswith("."):
                    if age > _FORGOTTEN or is_left_behind(entry.name):
                        remove(entry.path)
                elif entry.name not in used and age >= older:
                    self._discard(kind, entry.path)
                    removed.append(f"{kind}/{entry.name}")
        return removed

    # How it lies on the disk

    def _blob(self, sha256: str) -> str:
        return f"{self.root}/blobs/{sha256}"

    def _part(self, kind: str) -> str:
        return part_in(f"{self.root}/{kind}")

    def _find(self, kind: str, name: str) -> str:
        """Return the folder of that name that is whole, "" if there is none; it counts as used now."""
        for _, path in self._numbered(kind, name):
            if not os.path.isdir(path):
                return ""
            if is_whole(path):
                with contextlib.suppress(OSError):
                    os.utime(path)
                return path
        return ""

    def _numbered(self, kind: str, name: str) -> Iterator[tuple[int, str]]:
        for number in range(1000):
            yield number, f"{self.root}/{kind}/{name}" + (f".{number}" if number else "")

    def _make(self, kind: str, name: str, fill: Callable[[str], Iterable[str]]) -> str:
        """Have a folder filled, and let it appear whole. `fill` returns the paths of its files."""
        found = self._find(kind, name)
        if found:
            return found
        part = self._part(kind)
        try:
            os.mkdir(part, 0o700)
            paths = sorted(set(fill(part)))
            with open(f"{part}/.seen", "x", encoding="utf-8") as file:
                json.dump({"files": traces(part, paths)}, file)
            for _, target in self._numbered(kind, name):
                try:
                    os.rename(part, target)
                except OSError:  # noqa: PERF203
                    if not os.path.isdir(target):
                        raise
                    if is_whole(target):  # another process was quicker
                        return target
                else:
                    return target
            raise FileExistsError(f"{self.root}/{kind}/{name} was made too often: remove {self.root}")
        finally:
            remove(part)

    def _overlay(self, packages: Mapping[str, Mapping[str, Any]]) -> str:
        def fill(part: str) -> Iterator[str]:
            made = {}
            with ThreadPoolExecutor(max_workers=4) as pool:  # unpacking lets other threads run
                wheels = list(pool.map(self._wheel, packages, packages.values()))
            for (name, one), wheel in sorted(zip(packages.items(), wheels), key=lambda pair: pair[0][0]):
                with open(f"{wheel}/wheel.json", encoding="utf-8") as file:
                    info = json.load(file)["info"]
                laid = lay(wheel, part, info)
                yield from laid["files"]
                made[name] = {
                    "version": one.get("version", ""),
                    "sha256": one["sha256"],
                    "info": info,
                    "modules": laid["modules"],
                }
            with open(f"{part}/overlay.json", "x", encoding="utf-8") as file:
                json.dump({"packages": made, "python": sys.executable}, file)
            yield "overlay.json"

        return self._make("overlays", _overlay_digest(packages), fill)

    def _wheel(self, name: str, package: Mapping[str, Any]) -> str:
        label = str(package.get("filename") or name)
        blob = self._blob(_checked(package["sha256"]))

        def fill(part: str) -> Iterator[str]:
            if not os.path.isfile(blob):
                raise FileNotFoundError(f"the wheel {label} is not on this host: it has to be sent first")
            may_load(label, str(self.root))
            info = unpack(blob, part, name=name, label=label)
            with open(f"{part}/wheel.json", "x", encoding="utf-8") as file:
                json.dump({"info": info}, file)
            for folder, _, files in os.walk(part):
                for one in files:
                    yield os.path.relpath(os.path.join(folder, one), part)

        made = self._make("wheels", package["sha256"], fill)
        with contextlib.suppress(OSError):
            os.unlink(blob)  # it would be there twice
        return made

    def _tree(self, tree: Mapping[str, Any]) -> str:
        def fill(part: str) -> Iterator[str]:
            os.mkdir(f"{part}/code", 0o700)
            made = {f"{part}/code"}
            blobs = []
            for path, sha256, mode in tree["files"]:
                if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
                    raise ValueError(f"source tree {tree['name']}: {path!r} is not a path inside it")
                target = f"{part}/code/{path}"
                parent = os.path.dirname(target)
                if parent not in made:
                    os.makedirs(parent, 0o700, exist_ok=True)
                    made.add(parent)
                try:
                    clone(self._blob(_checked(sha256)), target, 0o700 if mode & 0o100 else 0o600)
                except FileNotFoundError as error:
                    text = (
                        f"{path} of source tree {tree['name']} is not on this host: it has to be sent first"
                    )
                    raise FileNotFoundError(text) from error
                blobs.append(sha256)
                yield f"code/{path}"
            with open(f"{part}/tree.json", "x", encoding="utf-8") as file:
                json.dump({"blobs": blobs}, file)

        return self._make("trees", tree_digest(tree), fill)

    # What is in use

    def _names(self, folders: Iterable[str]) -> set[str]:
        """Return the names in `overlays` and `trees` that paths lie in."""
        inside = [os.path.relpath(folder, self.root).split(os.sep) for folder in folders if folder]
        return {parts[1] for parts in inside if len(parts) > 1 and parts[0] in _KINDS}

    def _held(self) -> set[str]:
        """Return what living processes hold; the marks of dead ones go."""
        names: set[str] = set()
        for entry in list(os.scandir(self.root / "holds")):
            try:
                number = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                with open(entry.path, encoding="utf-8") as file:
                    mark = json.load(file)
                free = locked(number)
            except ValueError:
                mark, free = {}, locked(number)
            finally:
                os.close(number)
            alive = lives(mark)
            # Who closed all its files lives without its lock, and some file systems have no locks.
            if free is False or alive or (free is None and alive is None):
                names.update(mark.get("names", ()))
            elif not entry.name.endswith(".part") or alive is False:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        return names

    def _used(self, names: set[str]) -> set[str]:
        """Add what overlays and trees are made of."""
        used = set(names)
        for name in names:
            for path, pick in (
                (f"{self.root}/overlays/{name}/overlay.json", _wheels_of),
                (f"{self.root}/trees/{name}/tree.json", _blobs_of),
            ):
                with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
                    used.update(pick(json.load(file)))
        return used

    def _discard(self, kind: str, path: str) -> None:
        """Remove in two steps, so that it is there or not, and nothing in between."""
        aside = self._part(kind)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            remove(aside)


def _wheels_of(overlay: Mapping[str, Any]) -> list[str]:
    return [one["sha256"] for one in overlay["packages"].values()]


def _blobs_of(tree: Mapping[str, Any]) -> list[str]:
    return list(tree["blobs"])


def _overlay_digest(packages: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of an overlay: its wheels, and the interpreter that its scripts are for."""
    wheels = sorted((name, _checked(one["sha256"])) for name, one in packages.items())
    about = [wheels, sys.executable, sys.implementation.cache_tag]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _checked(sha256: str) -> str:
    if not re.match(r"[0-9a-f]{64}\Z", sha256):
        raise ValueError(f"{sha256!r} is no sha256")
    return sha256
