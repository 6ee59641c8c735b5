"""The blobs in a host's cache, as a store: over the Host seam, with nothing there but a POSIX shell."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from envsync.errors import CommandError, CorruptBlobError, StoreError
from envsync.runner.hosts.local import Local
from envsync.store import EMPTY, blob_name, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from envsync.runner.hosts.base import Host

__all__ = ["HostStore"]

T = TypeVar("T")

_PIECE = 32 << 20  # bytes that are read from a host at once
_CHUNK = 1 << 18

_HAS = """\
cd {root}/blobs 2>/dev/null || exit 0
while read -r digest; do
  file=${{digest%"${{digest#??}}"}}/$digest
  if [ -s "$file" ] || {{ [ -f "$file" ] && [ "$digest" = {empty} ]; }}; then echo "$digest"; fi
done
"""
_RECEIVE = """\
LC_ALL=C; export LC_ALL
umask 077
mkdir -p {root}/blobs && part=$(mktemp {root}/blobs/.unfinished-XXXXXXXX) || exit 1
trap 'rm -f "$part"' EXIT
trap 'exit 1' HUP INT TERM PIPE
cat > "$part" || exit 1
trap - EXIT
wc -c < "$part"
echo "$part"
"""
_KEEP = """\
LC_ALL=C; export LC_ALL
umask 077
mkdir -p {folder} && mv -f {part} {target}
"""


class HostStore:
    """The blobs of a host's cache.

    The host is used on an event loop of the store's own, in a thread, and closed with the store: whoever
    makes one gives the host away. Its methods may be called from any thread.

    Parameters
    ----------
    host : Host
        Nothing was awaited of it yet.
    cache : str
        The cache folder there, an absolute path.
    """

    at_once = 4

    def __init__(self, host: Host, cache: str) -> None:
        self.host = host
        self.shown = f"{host.name}:{cache}"
        self._root = cache.rstrip("/")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"HostStore({self.shown!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the host; silent when closed already."""
        if self._loop.is_closed():
            return
        self._await(self.host.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of `digests` that are held: one command, however many they are."""
        asked = sorted(set(digests))
        for digest in asked:
            blob_name(digest)
        if not asked:
            return set()
        command = _HAS.format(root=shlex.quote(self._root), empty=EMPTY)
        lines = "".join(f"{digest}\n" for digest in asked).encode()
        return set(self._await(self.host.run(command, input=lines)).stdout.decode().split())

    def put(self, data: bytes | Path, digest: str | None = None) -> str:
        """Keep bytes, or a file's contents, and return their digest."""
        if digest is not None and isinstance(data, Path) and self.has([digest]):
            return digest
        return self._await(self._put(data, digest))

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading: it is fetched whole, and checked."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever asked closes it
        try:
            self._await(self._read(digest, file))
            file.seek(0)
            where = f"{self.shown}/{blob_name(digest)}"
            check(file, digest, where=where, hint="Remove that file there, and push again.")
        except BaseException:
            file.close()
            raise
        return file

    def path(self, digest: str) -> Path | None:
        """Return the file that holds a blob, if the host is this machine."""
        path = Path(self._root, blob_name(digest))
        return path if isinstance(self.host, Local) and self.has([digest]) else None

    def url(self, digest: str, seconds: float = 3600.0) -> str | None:  # noqa: ARG002 - the seam's
        """Return None: a host has no addresses."""
        blob_name(digest)
        return None

    async def _put(self, data: bytes | Path, digest: str | None) -> str:
        sha = hashlib.sha256()
        size = 0

        async def pieces() -> AsyncIterator[bytes]:
            if isinstance(data, bytes):
                for start in range(0, len(data), _CHUNK):
                    yield data[start : start + _CHUNK]
                return
            with data.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in pieces():
                sha.update(piece)
                size += len(piece)
                yield piece

        if isinstance(data, Path):
            try:
                data.open("rb").close()
            except OSError as error:
                raise StoreError(
                    f"it cannot be read: {error.strerror}",
                    where=str(data),
                    hint="Make it readable and try again.",
                ) from error
        received = await self._run(_RECEIVE.format(root=shlex.quote(self._root)), counted())
        count, _, part = received.strip().partition("\n")
        found = sha.hexdigest()
        try:
            if int(count) != size:
                raise StoreError(
                    f"{size} bytes were sent, {count} arrived", where=self.shown, hint="Try again."
                )
            if digest not in (None, found):
                raise CorruptBlobError(
                    f"{data if isinstance(data, Path) else f'{size} bytes'}: sha256 is {found}, not {digest}",
                    hint="They changed on the way, or the digest is of something else: make them again.",
                )
            target = f"{self._root}/{blob_name(found)}"
            quoted = {"part": part, "target": target, "folder": target.rpartition("/")[0]}
            await self._run(_KEEP.format(**{key: shlex.quote(value) for key, value in quoted.items()}))
        except BaseException:
            with contextlib.suppress(Exception):
                await self.host.run(f"rm -f {shlex.quote(part)}", check=False)
            raise
        return found

    async def _read(self, digest: str, file: BinaryIO) -> None:
        path = shlex.quote(f"{self._root}/{blob_name(digest)}")
        start = 0
        while True:
            command = f"[ -f {path} ] || exit 66; tail -c +{start + 1} {path} | head -c {_PIECE}"
            done = await self.host.run(command, check=False)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()
                lacking = done.returncode == 66
                raise StoreError(
                    f"there is no blob {digest}" if lacking else f"blob {digest} cannot be read: {said}",
                    where=self.shown,
                    hint="Push the environment again from the machine that has it.",
                )
            await asyncio.to_thread(file.write, done.stdout)
            start += len(done.stdout)
            if len(done.stdout) < _PIECE:
                return

    async def _run(self, command: str, data: AsyncIterator[bytes] | None = None) -> str:
        """Run what writes there; what the shell says of a disk is what the error says."""
        try:
            return (await self.host.run(command, input=data)).stdout.decode()
        except CommandError as error:
            said = error.stderr.strip().splitlines()[-1:] or [error.message]
            full = "No space left" in error.stderr or "quota" in error.stderr
            raise StoreError(
                f"the cache folder cannot be written: {'the disk is full' if full else said[0]}",
                where=self.shown,
                hint="Make room there, or use another cache folder with --cache.",
            ) from error

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
