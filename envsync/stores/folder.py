"""A folder that several people and machines see, or that is carried from one to the other on a disk."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from envsync.errors import CorruptBlobError, StoreError
from envsync.store import FolderStore, blob_name, check
from envsync.stores import Entry
from envsync.unfinished import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envsync.store import Store

__all__ = ["SharedFolder"]

_AT_ONCE = 20  # times that others may make a folder while we use it
_T = TypeVar("_T")
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO | stat.S_ISGID


class SharedFolder(FolderStore):
    """Blobs and records as files. What is made below the root gets the root's own permissions.

    So a folder that its group may write to stays one, whatever the umask of those who push. Every blob
    that is opened is checked.

    Parameters
    ----------
    root : str or Path
        Made on the first write.
    """

    _called = "the store"
    _elsewhere = "ask whoever owns the folder to let you write there"

    at_once = max(2, min(8, os.cpu_count() or 1))
    makes_folders = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.shown = self.root.absolute().as_uri()

    def __repr__(self) -> str:
        return f"SharedFolder({str(self.root)!r})"

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, its bytes checked."""
        file = super().open(digest)
        try:
            check(file, digest, where=f"{self.shown}/{blob_name(digest)}", hint=self._remedy())
        except BaseException:
            file.close()
            raise
        return file

    def fetch(self, digest: str, into: Store) -> int:
        """Put a blob into another store, checked on its way; return its size."""
        path = self.path(digest)
        if path is None:
            raise self._lacking(digest)
        try:
            into.put(path, digest)
        except CorruptBlobError as error:
            where = f"{self.shown}/{blob_name(digest)}"
            raise CorruptBlobError(error.message, where=where, hint=self._remedy()) from error
        return path.stat().st_size

    def authority(self) -> str:
        """Return nothing: it is no server."""
        return ""

    def exists(self, folder: str = "") -> bool:
        """Return whether it has such a folder; whether it is there at all if none is named."""
        with self._reading(folder or "it"):
            return (self.root / folder).is_dir()

    def read(self, name: str) -> bytes:
        """Return a record."""
        with self._reading(name):
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Keep a record: whole or not at all."""
        with self._writing(), Part(self._within(self._unfinished, self._part)) as part:
            part.write(data)
            target = self.root / name
            self._within(target.parent, lambda: part.keep(target))

    def entries(self, folder: str) -> list[Entry]:
        """Return all that lies below a folder, sorted by name."""
        found: list[Entry] = []
        with self._reading(folder):
            self._walk(self.root / folder, folder, found)
        return sorted(found, key=lambda entry: entry.name)

    def remove(self, name: str) -> None:
        """Remove a record or a blob; silent if it is gone already."""
        with self._writing():
            (self.root / name).unlink(missing_ok=True)

    def sweep(self, before: float) -> int:
        """Remove unfinished writes that began before a time; return how many there were."""
        count = 0
        with self._writing(), contextlib.suppress(FileNotFoundError):
            for path in self._unfinished.iterdir():
                with contextlib.suppress(FileNotFoundError):  # whole by now, or swept by somebody else
                    if path.stat().st_mtime < before:
                        path.unlink()
                        count += 1
        return count

    def _walk(self, folder: Path, name: str, found: list[Entry]) -> None:
        try:
            listing = os.scandir(folder)
        except FileNotFoundError:
            return
        with listing:
            for item in listing:
                if item.name.startswith("."):
                    continue
                if item.is_dir():
                    self._walk(folder / item.name, f"{name}/{item.name}", found)
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed while we look
                    status = item.stat()
                    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would not end
                        continue
                    found.append(
                        Entry(name=f"{name}/{item.name}", size=status.st_size, modified=status.st_mtime)
                    )

    def _part(self) -> tuple[int, str]:
        handle, name = tempfile.mkstemp(dir=self._unfinished)
        os.fchmod(handle, self._mode() & 0o666)
        return handle, name

    def _within(self, folder: Path, act: Callable[[], _T]) -> _T:
        # who makes the folder at the same moment puts his in the place of ours while that is empty
        for _ in range(_AT_ONCE):
            with contextlib.suppress(FileNotFoundError):
                return super()._within(folder, act)
        return super()._within(folder, act)

    def _folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
        mode = self._mode()
        for part in reversed([folder, *folder.parents]):
            if part.is_relative_to(self.root) and part != self.root and not part.is_dir():
                # made under another name: nobody finds a folder that he may not write to yet
                new = tempfile.mkdtemp(prefix=".new-", dir=part.parent)
                Path(new).chmod(mode)
                try:
                    Path(new).rename(part)
                except OSError:
                    Path(new).rmdir()
                    if not part.is_dir():
                        raise

    def _mode(self) -> int:
        return self.root.stat().st_mode & _PERMISSIONS

    def _sweep(self) -> None:
        if not self._swept:
            self._swept = True
            with contextlib.suppress(StoreError):  # of others, who may not let us
                self.sweep(time.time() - 24 * 3600.0)

    def _remedy(self) -> str:
        return f"See what else is damaged: envsync store verify {self.shown} (--remove, then push again)."

    def _lacking(self, digest: str) -> StoreError:
        return StoreError(
            f"there is no blob {digest}",
            where=self.shown,
            hint="Push the environment again from the machine that has it: what is lacking is sent.",
        )

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"there is no {name}", where=self.shown, hint=f"See what is: envsync store ls {self.shown}"
            ) from error
        except NotADirectoryError as error:
            raise StoreError(
                "it is a file, or lies in one, and no folder", where=self.shown, hint="Correct the URL."
            ) from error
        except OSError as error:
            raise StoreError(
                f"{name} cannot be read: {error.strerror}",
                where=self.shown,
                hint="Ask whoever owns the folder to let you read it.",
            ) from error
