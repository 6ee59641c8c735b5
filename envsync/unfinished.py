"""Files that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Part"]


class Part:
    """A file that is not whole yet. It is gone at the end, unless it was kept.

    Parameters
    ----------
    made : (int, str)
        A new file, open for writing, and its name: what `tempfile.mkstemp` returns. It has to lie on the
        file system where it is to stay.
    buffering : int
        As for `open`: 0 if what is written comes in large pieces.
    """

    def __init__(self, made: tuple[int, str], *, buffering: int = -1) -> None:
        handle, name = made
        self._path = Path(name)
        self._file = os.fdopen(handle, "wb", buffering=buffering)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()  # not there if it was kept

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it: a disk that is nearly full takes a part and then none."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def keep(self, target: Path, *, mode: int | None = None) -> None:
        """Give it its name, now that all of it is written; what has that name gives way."""
        self._file.close()  # some file systems say only now that there was no room
        if mode is not None:
            self._path.chmod(mode)
        self._path.replace(target)
