"""What the client gives to a host that lacks it: uv, an interpreter, the agent.

Nothing here looks at a host. Each method answers for a `Target`; everything it hands out is a blob in the
store, made at most once and remembered in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.errors import EnvsyncError, StoreError, ToolError, UnfitHostError, UnsupportedError
from envsync.hooks import Hooks
from envsync.store import recall, remember

if TYPE_CHECKING:
    from envsync.indexes import IndexSettings
    from envsync.interpreter import InterpreterArchive
    from envsync.snapshot import Interpreter, Snapshot
    from envsync.store import Store
    from envsync.target import Target

__all__ = ["Supply"]

INSTALL = "Install Python {minor} on the host, where envsync finds it on the PATH."


class Supply:
    """Everything but the wheels that a host may have to be given.

    One event loop uses it at a time. Hosts that ask for the same thing at once wait for one making of it.

    Parameters
    ----------
    store : Store
        Where the blobs go.
    settings : IndexSettings
        Where uv's own wheel is downloaded from.
    snapshot : Snapshot, optional
        Whose interpreter is packed; the running one if not given.
    hooks : Hooks, optional
        Told about downloads and packing.
    """

    def __init__(
        self,
        store: Store,
        settings: IndexSettings,
        snapshot: Snapshot | None = None,
        *,
        hooks: Hooks | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.snapshot = snapshot
        self.hooks = hooks or Hooks()
        self._locks: dict[object, asyncio.Lock] = {}
        self._uvs: dict[object, str] = {}
        self._interpreters: dict[object, InterpreterArchive] = {}

    async def uv(self, target: Target) -> str:
        """Return the digest of the uv executable for a machine, a blob in the store.

        It is the static build, which needs nothing of the host. Where that cannot be downloaded and the
        target is like this machine, it is the installed one, and the hooks are told.

        Parameters
        ----------
        target : Target
            Only its platform matters.

        Raises
        ------
        UnsupportedError
            There is no uv for such a machine.
        StoreError, ToolError
            It could not be downloaded.
        """
        key = ("uv", target.system, target.machine)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._uvs:
                self._uvs[key] = await self._find_uv(target)
            return self._uvs[key]

    async def _find_uv(self, target: Target) -> str:
        from envsync.collect import uv_binary

        try:
            return await uv_binary(target, self.store, self.settings, hooks=self.hooks)
        except (StoreError, ToolError) as error:
            if not await asyncio.to_thread(_like_here, target):
                raise
            self.hooks.note(
                "here",
                f"uv's static build could not be had ({error.message}): the installed uv is sent instead",
            )
            return await asyncio.to_thread(_installed_uv, self.store)

    async def interpreter(self, target: Target) -> InterpreterArchive:
        """Return an interpreter that runs on a target, as an archive in the store.

        The client's own is packed if the target can run it; otherwise uv is asked for one of the same
        version, which comes from where uv's own settings say (``UV_PYTHON_INSTALL_MIRROR``,
        ``UV_PYTHON_DOWNLOADS_JSON_URL``).

        Returns
        -------
        InterpreterArchive
            Its version, digest and size; a .tar.gz that unpacks to a relocatable tree with ``bin/python3``.

        Raises
        ------
        UnfitHostError
            The target's libc is too old for what could be had.
        UnsupportedError
            No interpreter of that version could be had for the target.
        """
        key = (
            "interpreter",
            target.implementation,
            target.python,
            target.system,
            target.machine,
            target.libc,
        )
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._interpreters:
                self._interpreters[key] = await asyncio.to_thread(self._find_interpreter, target)
            return self._interpreters[key]

    def _find_interpreter(self, target: Target) -> InterpreterArchive:
        from envsync.interpreter import pack
        from envsync.target import Target as Targets

        minor = ".".join(target.python.split(".")[:2])
        if target.system != "linux" or target.implementation != "cpython":
            raise UnsupportedError(
                f"no {target.implementation} {target.python} for {target.system} can be shipped from here",
                hint=INSTALL.format(minor=minor),
            )
        why = f"this machine's Python is not one for {target.describe()}"
        too_old = None
        own = self.snapshot.interpreter if self.snapshot is not None else _running()
        here = Targets.current()
        if own.version == target.python and (here.system, here.machine) == (target.system, target.machine):
            try:
                began = time.monotonic()
                archive = pack(own, self.store)
            except UnsupportedError as error:
                why = error.message
            else:
                if _runs(archive, target):
                    self.hooks.done("here", f"packed Python {archive.version}", time.monotonic() - began)
                    return archive
                too_old = archive.libc
                why = f"this machine's Python needs {_said(archive.libc)}, the host has {_said(target.libc)}"
        try:
            archive = _from_uv(target, self.store)
        except EnvsyncError as error:
            kind = UnfitHostError if too_old else UnsupportedError
            raise kind(
                f"it needs a Python {target.python} from here, and none can be had: {why};"
                f" and uv could not download one: {error.message}",
                hint=INSTALL.format(minor=minor) + " Or let UV_PYTHON_INSTALL_MIRROR or"
                " UV_PYTHON_DOWNLOADS_JSON_URL name a place with Python builds that this machine reaches.",
            ) from error
        if not _runs(archive, target):
            raise UnfitHostError(
                f"its libc is too old: Python {target.python} needs {_said(archive.libc)},"
                f" the host has {_said(target.libc)}",
                hint=INSTALL.format(minor=minor) + " Or use a newer system there, or a container image.",
            )
        return archive


def _from_uv(target: Target, store: Store) -> InterpreterArchive:
    """Let uv download an interpreter, and pack it."""
    from envsync.interpreter import InterpreterArchive, pack_tree
    from envsync.scratch import scratch
    from envsync.uv import run_uv

    libc = "musl" if target.libc is not None and target.libc[0] == "musl" else "gnu"
    request = f"cpython-{target.python}-linux-{target.machine}-{libc}"
    known = recall("interpreters", request)
    if known is not None and known["digest"] in store.has([known["digest"]]):
        return InterpreterArchive.from_dict(known)
    with scratch("python") as folder:
        run_uv(
            ["python", "install", "--no-bin", "--install-dir", str(folder), request],
            env={"UV_PYTHON_DOWNLOADS": "manual", "UV_PYTHON_INSTALL_BIN": "0"},
        )
        (root,) = [path for path in folder.glob("cpython-*") if path.is_dir() and not path.is_symlink()]
        archive = pack_tree(root, target.python, store)
    remember("interpreters", request, archive.to_dict())
    return archive


def _runs(archive: InterpreterArchive, target: Target) -> bool:
    """Whether a target's libc is new enough; one that is not known is taken to be, and the host will tell."""
    if archive.libc is None or target.libc is None:
        return True
    kind, version = archive.libc
    from envsync.target import version_numbers

    return kind == target.libc[0] and version_numbers(version) <= version_numbers(target.libc[1])


def _said(libc: tuple[str, str] | None) -> str:
    return "no libc" if libc is None else " ".join(libc)


def _like_here(target: Target) -> bool:
    from envsync.target import Target as Targets

    here = Targets.current()
    return (here.system, here.machine, here.libc) == (target.system, target.machine, target.libc)


def _installed_uv(store: Store) -> str:
    """Keep the uv that is installed here as a blob, once."""
    from envsync.uv import find_uv

    path = Path(find_uv())
    status = path.stat()
    key = hashlib.sha256(f"{path} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    known = recall("uv", key)
    if isinstance(known, str) and known in store.has([known]):
        return known
    digest = store.put(path)
    remember("uv", key, digest)
    return digest


def _running() -> Interpreter:
    """Describe the interpreter that runs this."""
    import platform
    import sys
    import sysconfig

    from envsync.snapshot import Interpreter as Interpreters

    return Interpreters(
        implementation=sys.implementation.name,
        version=platform.python_version(),
        executable=sys.executable,
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        soabi=str(sysconfig.get_config_var("SOABI") or ""),
    )
