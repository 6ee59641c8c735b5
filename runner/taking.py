"""Blobs that hosts take from a store by themselves, with nothing but an address for a while."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Protocol

from envsync.plugins.download import ABSENT, CORRUPT, FAILED, REFUSED, UNREACHABLE
from envsync.runner.many import Meter
from envsync.store import blob_name, size_of
from envsync.stores.folder import SharedFolder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.filling import Filling
    from envsync.runner.session import Session
    from envsync.store import Store
    from envsync.stores import SharedStore

__all__ = ["SMALL", "Giver", "Taking", "worth_asking_for"]

_SECONDS = 900.0  # that an address is good for
SMALL = 32 << 10  # bytes; what is smaller, and here, is sent sooner than asked for
_BATCH = 250  # blobs that a host is told of at once: signing so many takes a second
_QUERY = re.compile(r"\?\S*")


class Giver(Protocol):
    """Who gives hosts what they lack, so that it is not sent from here: a store, or other hosts."""

    async def take(self, session: Session, digests: Collection[str], what: str = "files") -> set[str]:
        """Have a host take blobs that it lacks; return those that it has now. The rest is sent."""


class Taking:
    """What one run of the pipeline knows of a store that its hosts may take from.

    Parameters
    ----------
    store : SharedStore
        Whose addresses the hosts are given. Of a folder it is the path, and this machine need not see it.
    hooks : Hooks
        Told what of the store is damaged.
    filling : Filling, optional
        Puts there what the store lacks, and is waited for where that is on its way.
    seconds : float
        How long an address works.
    """

    def __init__(
        self,
        store: SharedStore,
        hooks: Hooks,
        *,
        filling: Filling | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        self.store = store
        self._filling = filling
        self.seconds = seconds
        self._hooks = hooks
        self._asked: dict[str, bool] = {}  # by digest: whether the store has it
        self._asking = asyncio.Lock()
        self._authority: str | None = None
        self._useless: set[str] = set()  # damaged, or gone
        self._told_empty = False

    async def take(self, session: Session, digests: Collection[str], what: str = "files") -> set[str]:
        """Have a host take blobs that it lacks; return those that it has now.

        Why others could not be taken is told, and a host that gets nothing from the store is not told of it
        again: `Session.taking` is None then. Whoever asked sends them.

        Parameters
        ----------
        session : Session
            The host's.
        digests : collection of str
            What it lacks.
        what : str
            What they are, for the hooks.

        Raises
        ------
        StoreError
            The store cannot be asked what it has.
        UnfitHostError
            They do not fit there.
        """
        large = await asyncio.to_thread(worth_asking_for, sorted(set(digests)), session.supply.store)
        if self._filling is not None:
            await self._filling.wait(large)
        offered = await self._offered(large)
        if not offered:
            return set()
        hooks, where = _uncounted(session.hooks), session.host.name
        began, size = time.monotonic(), 0
        hooks.step(where, f"taking {what} from {self.store.shown}")
        lacking: dict[str, tuple[str, str]] = {}
        for start in range(0, len(offered), _BATCH):
            found, more = await self._fetch(session, offered[start : start + _BATCH], hooks)
            lacking |= found
            size += more
            if any(kind in (UNREACHABLE, FAILED) for kind, _ in found.values()):
                lacking |= dict.fromkeys(offered[start + _BATCH :], (UNREACHABLE, ""))
                break
        took = set(offered) - set(lacking)
        if took:
            seconds = time.monotonic() - began
            text = f"took {what} from {self.store.shown}: {len(took)}, {size / 1e6:.1f} MB"
            hooks.done(where, text, seconds)
        self._tell(session, lacking, len(offered), hooks)
        return took

    async def _fetch(
        self, session: Session, digests: Sequence[str], hooks: Hooks
    ) -> tuple[dict[str, tuple[str, str]], int]:
        """Return what could not be taken and why, and how many bytes came."""
        found: dict[str, tuple[str, str]] = {}
        asked, size, last = list(digests), 0, False
        while True:
            signed = time.monotonic()
            answer, more = await self._ask(session, asked, hooks)
            found = {key: value for key, value in found.items() if key not in asked} | answer
            size += more
            refused = [digest for digest, (kind, _) in answer.items() if kind == REFUSED]
            expired = time.monotonic() - signed > self.seconds * 0.9
            if self._folder or not refused or not expired or last:
                return found, size
            asked, last = refused, not more  # they had expired when their turn came

    async def _ask(
        self, session: Session, digests: Sequence[str], hooks: Hooks
    ) -> tuple[dict[str, tuple[str, str]], int]:
        request: dict[str, Any] = {"at_once": self.store.at_once}
        if self._folder:
            request |= {"folder": self._folder, "digests": list(digests)}
        else:
            pairs = await asyncio.to_thread(
                lambda: [(digest, self.store.url(digest, self.seconds)) for digest in digests]
            )
            request["blobs"] = [pair for pair in pairs if pair[1]]
            request["authority"] = await self._certificates()
        answer = await session.request("fetch", watch=lambda event: session._tell(event, hooks), **request)
        found = {one: (str(kind), _QUERY.sub("", str(why))) for one, (kind, why) in answer["lacking"].items()}
        if not self._folder:
            unsigned = "stores of this kind give no addresses"
            found |= {digest: (UNREACHABLE, unsigned) for digest, url in pairs if not url}
        return found, int(answer["size"])

    @property
    def _folder(self) -> str:
        return str(self.store.root.absolute()) if isinstance(self.store, SharedFolder) else ""

    async def _offered(self, digests: Sequence[str]) -> list[str]:
        """Return those that the store has; of a folder the hosts see that themselves."""
        if self._folder or not digests:
            return [digest for digest in digests if digest not in self._useless]
        async with self._asking:  # many hosts lack the same
            if self._filling is not None:
                self._asked |= dict.fromkeys([*self._filling.there], True)
            unknown = [digest for digest in digests if digest not in self._asked]
            if unknown:
                there = await asyncio.to_thread(self.store.has, unknown)
                self._asked |= {digest: digest in there for digest in unknown}
                if not there and not any(self._asked.values()) and not self._told_empty:
                    self._told_empty = True
                    self._hooks.note(
                        "here",
                        f"{self.store.shown} has none of the files that hosts lack: they are sent"
                        " (envsync push puts them there)",
                    )
        return [digest for digest in digests if self._asked[digest] and digest not in self._useless]

    async def _certificates(self) -> str:
        async with self._asking:
            if self._authority is None:
                self._authority = await asyncio.to_thread(self.store.authority)
            return self._authority

    def _tell(
        self, session: Session, lacking: dict[str, tuple[str, str]], offered: int, hooks: Hooks
    ) -> None:
        """Say what is wrong with the store, and what is sent instead."""
        for digest, (kind, why) in lacking.items():
            if kind == CORRUPT and digest not in self._useless:
                self._hooks.warning(
                    session.host.name,
                    f"{self.store.shown}/{blob_name(digest)} is damaged and not used: {why}"
                    f" (see envsync store verify {self.store.shown})",
                )
            if kind in (ABSENT, CORRUPT):
                self._useless.add(digest)
        grave = [why for kind, why in lacking.values() if kind in (REFUSED, UNREACHABLE, FAILED) and why]
        if grave:
            session.taking = None
            count = sum(kind in (REFUSED, UNREACHABLE, FAILED) for kind, _ in lacking.values())
            hooks.note(
                session.host.name,
                f"{self.store.shown} did not give it {count} of {offered} files ({grave[0]}): they are sent",
            )


def worth_asking_for(digests: Sequence[str], store: Store) -> list[str]:
    """Return those that are not here, or not small."""
    here = store.has(digests)
    return [digest for digest in digests if digest not in here or size_of(store, digest) >= SMALL]


def _uncounted(hooks: Hooks) -> Hooks:
    """Return hooks that do not count what goes over this machine's own link."""
    return hooks.hooks if isinstance(hooks, Meter) else hooks
