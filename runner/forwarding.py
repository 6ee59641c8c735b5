"""The user's short-lived credentials on the hosts of a cluster, kept fresh for as long as the client lives.

Each host's agent has them in its memory and gives them out on loopback; see `envsync.agent.credentials`.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from envsync.errors import EnvsyncError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.hooks import Hooks
    from envsync.runner.backends import Backend
    from envsync.runner.cloud.sts import Identity, Temporary
    from envsync.runner.session import Session

__all__ = ["Forwarding", "demand_sense", "pause", "variables"]

TOKEN = "aws-token"  # noqa: S105 - a file's name
"""The file in a process's run folder that the SDKs read what opens the endpoint from."""

_LOOK = 60.0  # seconds between two looks whether the client's own have changed
_AGAIN = 30.0  # seconds until what failed is tried again, at the latest
_LEAST = 1.0  # seconds from one renewal to the next, however short those live that are to be had
_IDENTITIES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    *("AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN"),
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
"""Variables that SDKs look at before they ask an endpoint."""


def demand_sense(asked: str, backend: Backend, env: Mapping[str, object]) -> None:
    """Refuse what cannot be done, before anything is.

    Parameters
    ----------
    asked : str
        What ``credentials=`` says.
    backend : Backend
        Where the cluster runs.
    env : mapping
        The variables that the user sets for workers.

    Raises
    ------
    ValueError
        There is no such way, or not there.
    TypeError
        The user gives workers an identity already.
    """
    if asked not in ("forward", "instance", "none"):
        raise ValueError(f"credentials must be 'forward', 'instance' or 'none', not {asked!r}")
    if asked == "instance" and backend.lease is None:
        raise ValueError(
            f"credentials='instance' is for machines of a cloud, which have a role, not for {backend!r}: "
            "'forward' sends short-lived ones of yours"
        )
    if asked == "instance" and not backend.instance_identity:
        raise ValueError(
            f"credentials='instance': {backend!r} gives its machines no role; "
            "EC2(..., instance_profile='...') does"
        )
    theirs = {*_IDENTITIES, *variables(0, "", "")} - {"AWS_DEFAULT_REGION"}
    if asked == "forward" and (both := sorted(theirs & set(env))):
        raise TypeError(f"env= sets {both[0]}, and credentials='forward' gives workers yours: take one")


def variables(port: int, folder: str, region: str) -> dict[str, str | None]:
    """Return the environment in which an SDK asks the endpoint, whoever else its host is for AWS.

    Parameters
    ----------
    port : int
        Where the host's agent listens.
    folder : str
        The run folder of the process.
    region : str
        The client's; the host's own if empty.
    """
    return {
        **dict.fromkeys(_IDENTITIES),
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{port}/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": f"{folder}/{TOKEN}",
        **({"AWS_DEFAULT_REGION": region} if region else {}),
    }


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
    """What the hosts of one cluster are lent.

    Parameters
    ----------
    profile : str or None
        Of the user's AWS configuration.
    hooks : Hooks
        Told when others could not be had in time, or not be sent.
    """

    def __init__(self, profile: str | None, hooks: Hooks) -> None:
        self._profile = profile
        self._hooks = hooks
        self._identity: Identity | None = None
        self._current: Temporary | None = None
        self._lent: WeakKeyDictionary[Session, _Lent] = WeakKeyDictionary()
        self._keeping: asyncio.Task[None] | None = None
        self._told = ""

    async def open(self) -> None:
        """Have the first ones; from now on they are kept fresh.

        Raises
        ------
        CloudError
            There are none to be had.
        """
        from envsync.runner.cloud.sts import Identity

        self._identity = await asyncio.to_thread(Identity, self._profile)  # an SDK takes a second
        self._current = await asyncio.to_thread(self._identity.temporary)
        self._keeping = asyncio.ensure_future(self._keep(self._identity, self._current))

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
        return variables(lent.port, folder, self._identity.region), {TOKEN: lent.token.encode()}

    async def _send(self, session: Session, lent: _Lent) -> None:
        current = self._current
        assert current is not None
        session.keep_secret(lent.token, current.secret_key, current.token)
        answer = await session.request("credentials", token=lent.token, values=current.to_dict())
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
            except EnvsyncError as error:
                self._warn(f"the workers' could not be renewed, which is tried again: {error}")
                wait = min(_AGAIN, pause(current))
            else:
                wait, self._told = max(0.0, due - loop.time()), ""

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

    def _warn(self, text: str) -> None:
        if text != self._told:  # once, however often it fails in the same way
            self._told = text
            self._hooks.warning("credentials", text)
