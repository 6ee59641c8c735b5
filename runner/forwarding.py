"""The user's short-lived credentials on the hosts of a cluster, kept fresh for as long as the client lives.

Each host's agent has them in its memory and gives them out on loopback; see `envsync.agent.credentials`.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from envsync.runner.cloud import gce_tokens, sts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from envsync.hooks import Hooks
    from envsync.runner.backends import Backend
    from envsync.runner.session import Session

__all__ = ["WAYS", "Forwarding", "demand_sense", "forwardings", "pause"]

WAYS = ("forward", "instance", "none")
"""What ``credentials=`` says, if it names no clouds."""

_LOOK = 60.0  # seconds between two looks whether the client's own have changed
_AGAIN = 30.0  # seconds until what failed is tried again, at the latest
_LEAST = 1.0  # seconds from one renewal to the next, however short those live that are to be had
_TAKEN = {"aws": sts.TAKEN, "google": gce_tokens.TAKEN}  # variables that a user cannot set at the same time
_ACCOUNT = re.compile(r"[a-z0-9._-]+@[a-z0-9.-]+\.gserviceaccount\.com", re.IGNORECASE)


class Temporary(Protocol):
    """Credentials that end by themselves.

    Attributes
    ----------
    own : bool
        Whether they are the ones that the user's process works with, which others may follow at any time.
    secrets : tuple of str
        What of them nobody else may read.
    """

    @property
    def own(self) -> bool: ...

    @property
    def secrets(self) -> tuple[str, ...]: ...

    def left(self) -> float:
        """Return how many seconds they have."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return them as the agent gives them out."""


class Identity(Protocol):
    """Who workers are: `envsync.runner.cloud.sts` and `gce_tokens`. What asks a cloud blocks."""

    def temporary(self) -> Temporary:
        """Return short-lived credentials, or raise CloudError."""

    def variables(self, port: int, folder: str) -> dict[str, str | None]:
        """Return the environment in which SDKs ask a host's agent, at this port; and a run folder."""

    def files(self, token: str) -> dict[str, bytes]:
        """Return what lies in a process's run folder, such as the token that opens the endpoint."""


def demand_sense(
    asked: str | Sequence[str], backend: Backend, env: Mapping[str, object], impersonate: str | None = None
) -> None:
    """Refuse what cannot be done, before anything is.

    Parameters
    ----------
    asked : str or sequence of str
        What ``credentials=`` says.
    backend : Backend
        Where the cluster runs.
    env : mapping
        The variables that the user sets for workers.
    impersonate : str or None
        The service account of Google's whose tokens are wanted.

    Raises
    ------
    ValueError
        There is no such way, or not there; or no such service account.
    TypeError
        The user gives workers an identity already.
    """
    clouds = _clouds(asked, impersonate)
    if asked == "instance" and backend.lease is None:
        raise ValueError(
            f"credentials='instance' is for machines of a cloud, which have a role, not for {backend!r}: "
            "'forward' sends short-lived ones of yours"
        )
    if asked == "instance" and not backend.instance_identity:
        raise ValueError(
            f"credentials='instance': {backend!r} gives its machines no role; "
            "EC2(..., instance_profile='...') and GCE(..., service_account='...') do"
        )
    if impersonate is not None and "google" not in clouds:
        raise ValueError(
            "impersonate= says whose tokens are forwarded: credentials='forward' goes with it, "
            "or ['aws', 'google'] for AWS's, too"
        )
    if "google" in clouds and impersonate is None:
        raise ValueError(f"credentials={asked!r}: impersonate= has to name the service account of Google's")
    if impersonate is not None and not _ACCOUNT.fullmatch(str(impersonate)):
        raise ValueError(
            "impersonate must be a service account, such as 'reader@my-project.iam.gserviceaccount.com', "
            f"not {impersonate!r}: what you may yourself is not sent to machines"
        )
    theirs = {name for cloud in clouds for name in _TAKEN[cloud]}
    if both := sorted(theirs & set(env)):
        raise TypeError(f"env= sets {both[0]}, and credentials={asked!r} gives workers yours: take one")


def _clouds(asked: str | Sequence[str], impersonate: str | None) -> tuple[str, ...]:
    """Return the clouds whose credentials are forwarded."""
    if isinstance(asked, str) and asked in WAYS:
        return () if asked != "forward" else ("aws",) if impersonate is None else ("google",)
    several = isinstance(asked, Collection) and not isinstance(asked, str)
    if not several or not asked or not all(one in tuple(_TAKEN) for one in asked):
        raise ValueError(
            f"credentials must be 'forward', 'instance' or 'none', or of ['aws', 'google'], not {asked!r}"
        )
    return tuple(dict.fromkeys(asked))


def forwardings(
    asked: str | Sequence[str], impersonate: str | None, profile: str | None, hooks: Hooks
) -> tuple[Forwarding, ...]:
    """Return what the hosts of one cluster are lent: for each cloud that ``credentials=`` asks for.

    Parameters
    ----------
    asked : str or sequence of str
        What ``credentials=`` says; `demand_sense` has let it pass.
    impersonate : str or None
        The service account of Google's.
    profile : str or None
        Of the user's AWS configuration.
    hooks : Hooks
        Told when others could not be had in time, or not be sent.
    """
    ways: dict[str, Callable[[], Identity]] = {
        "aws": partial(sts.Identity, profile),
        "google": partial(gce_tokens.Identity, impersonate or ""),
    }
    return tuple(Forwarding(cloud, ways[cloud], hooks) for cloud in _clouds(asked, impersonate))


def pause(current: Temporary) -> float:
    """Return the seconds until it is time to have others: half of what these have left."""
    left = current.left()
    if left <= 0:  # the clock here is another than theirs
        return _LOOK
    half = max(_LEAST, left / 2)
    return min(_LOOK, half) if current.own else half  # whoever logs in again is noticed


@dataclass(slots=True)
class _Lent:
    """What one host has."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    port: int = 0
    sent: Temporary | None = field(default=None, repr=False)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Forwarding:
    """What the hosts of one cluster are lent of one cloud's.

    Parameters
    ----------
    cloud : str
        As the agent knows it.
    identify : callable
        ``identify()`` returns the Identity; it blocks.
    hooks : Hooks
        Told when others could not be had in time, or not be sent.
    """

    def __init__(self, cloud: str, identify: Callable[[], Identity], hooks: Hooks) -> None:
        self._cloud = cloud
        self._identify = identify
        self._hooks = hooks
        self._identity: Identity | None = None
        self._current: Temporary | None = None
        self._lent: WeakKeyDictionary[Session, _Lent] = WeakKeyDictionary()
        self._keeping: asyncio.Task[None] | None = None
        self._told: tuple[bool, str] | None = None

    async def open(self) -> None:
        """Have the first ones; from now on they are kept fresh.

        Raises
        ------
        CloudError
            There are none to be had.
        """
        identity = await asyncio.to_thread(self._identify)  # an SDK takes a second
        self._identity = identity
        self._current = current = await asyncio.to_thread(identity.temporary)
        self._keeping = asyncio.ensure_future(self._keep(identity, current))

    async def close(self) -> None:
        """Send none any more; silent if it was closed. Those that were sent end with the agents."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})

    async def on(self, session: Session, folder: str) -> tuple[dict[str, str | None], dict[str, bytes]]:
        """Have them on a host; return the variables and the files of a process with this run folder.

        Raises
        ------
        AgentError
            The host's agent was lost.
        """
        assert self._identity is not None
        lent = self._lent.setdefault(session, _Lent())
        async with lent.turn:
            if lent.sent is None:
                await self._send(session, lent)
        return self._identity.variables(lent.port, folder), self._identity.files(lent.token)

    async def _send(self, session: Session, lent: _Lent) -> None:
        while lent.sent != (current := self._current):  # others may have come meanwhile
            assert current is not None
            session.keep_secret(lent.token, *current.secrets)
            answer = await session.request(
                "credentials", cloud=self._cloud, token=lent.token, values=current.to_dict()
            )
            lent.port, lent.sent = answer["port"], current

    async def _keep(self, identity: Identity, first: Temporary) -> None:
        """Have others before these end, and send them to all hosts; what fails is tried again."""
        loop = asyncio.get_running_loop()
        current, wait = first, pause(first)
        due = loop.time() + wait
        while True:
            await asyncio.sleep(wait)
            try:
                if loop.time() >= due:
                    self._current = current = await asyncio.to_thread(identity.temporary)
                    due = loop.time() + pause(current)
                await self._send_all()
            except Exception as error:  # noqa: BLE001 - an SDK's, whatever it is: workers' would end unnoticed
                self._warn(current, error)
                wait = min(_AGAIN, pause(current))
            else:
                wait = max(0.0, due - loop.time())
                if self._told is not None:
                    self._told = None
                    self._hooks.note(self._where, "the workers' are renewed again")

    async def _send_all(self) -> None:
        """Send them to the hosts that have others; all of them, also where one does not take them."""
        late = [
            (session, lent)
            for session, lent in list(self._lent.items())
            if session.ended is None and lent.sent not in (None, self._current)
        ]
        done = await asyncio.gather(*(self._send(*one) for one in late), return_exceptions=True)
        for (session, _), error in zip(late, done, strict=True):
            if isinstance(error, BaseException) and session.ended is None:
                raise error

    def _warn(self, current: Temporary, error: Exception) -> None:
        """Say what is the matter, once, and once more when workers are refused."""
        hosts = [lent.sent for session, lent in list(self._lent.items()) if session.ended is None]
        left = min((sent.left() for sent in hosts if sent is not None), default=current.left())
        told = (left <= 0, str(error).removeprefix(f"{self._where}: ") or type(error).__name__)
        if told == self._told:
            return
        self._told = told
        end = datetime.datetime.now() + datetime.timedelta(seconds=left)
        what = (
            f"could not be renewed, and end at {end:%H:%M:%S}" if left > 0 else "have ended, and are refused"
        )
        self._hooks.warning(self._where, f"the workers' {what}; it is tried again: {told[1]}")

    @property
    def _where(self) -> str:
        return f"{self._cloud} credentials"
