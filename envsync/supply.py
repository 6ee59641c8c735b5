"""What the client gives to a host that lacks it: uv, an interpreter, the agent.

Nothing here looks at a host. Each method answers for a `Target`; everything it hands out is a blob in the
store, made at most once and remembered in the cache.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from envsync.hooks import Hooks

if TYPE_CHECKING:
    from envsync.indexes import IndexSettings
    from envsync.interpreter import InterpreterArchive
    from envsync.snapshot import Interpreter, Snapshot
    from envsync.store import Store
    from envsync.target import Target

__all__ = ["Supply"]


class Supply:
    """Everything but the wheels that a host may have to be given.

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
        self._interpreters: dict[object, InterpreterArchive] = {}
        self._uvs: dict[str, str] = {}

    @functools.cached_property
    def _agent(self) -> tuple[bytes, str]:
        from envsync.agent.archive import build

        return build()

    def agent(self) -> tuple[bytes, str]:
        """Return the agent's zipapp and its digest."""
        return self._agent

    async def uv(self, target: Target) -> str:
        """Return the digest of the uv executable for a machine, a blob in the store.

        Parameters
        ----------
        target : Target
            Only its system and machine matter.

        Returns
        -------
        str
            The digest of a static executable, or of the installed one where it runs as it is.

        Raises
        ------
        UnsupportedError
            There is no uv for such a machine.
        StoreError, ToolError
            It could not be downloaded.
        """
        raise NotImplementedError

    async def interpreter(self, target: Target) -> InterpreterArchive:
        """Return an interpreter that runs on a target, as an archive in the store.

        The client's own is packed if the target can run it; otherwise uv is asked for one of the same version.

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
        raise NotImplementedError
