"""Where the jobs of a cluster call, and who waits for which."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from collections import defaultdict
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

from envsync.agent.archive import build
from envsync.errors import AgentError, ConnectError, EnvsyncError, ProcessDied
from envsync.runner.batch.embedding import NAMES, NO_FOLDER, NO_PYTHON, brought, finding_python
from envsync.runner.batch.system import NOT_SHARED
from envsync.runner.hosts.carried import CarriedHost
from envsync.runner.timeouts import wait_for
from envsync.runner.tls import Credentials

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from envsync.runner.remote import Remote
    from envsync.runner.session import Session

__all__ = ["NOT_SHARED", "NO_FOLDER", "NO_PYTHON", "NO_WAY", "Switchboard"]

NO_WAY = 71
"""Exit code of a job: its carrier does not reach the login host."""

_NAME = "relay"
_CARRIER = "carrier.json"
_UP = 30.0  # seconds that the relay has to come up
_CLAIMED = 10.0  # seconds for a connection to the relay


@dataclass
class _Token:
    """What a job without a key has to know, and whether somebody has known it."""

    text: str
    used: bool = False


class Switchboard:
    """Takes the calls of a cluster's jobs, on the machine that they and we reach.

    Made by `open`. The relay runs in a run folder of that machine's cache, with the keys of this cluster's
    carriers, which jobs read there: so the folder has to be seen on the nodes.

    Attributes
    ----------
    folder : str
        That folder; what jobs leave there is theirs.
    mark : str
        A file there, with a name that nobody can know who does not see it.
    """

    def __init__(
        self,
        session: Session,
        remote: Remote,
        inner: int,
        context: ssl.SSLContext,
        *,
        mark: str = "",
        enrolment: tuple[Credentials, dict[str, Any]] | None = None,
    ) -> None:
        self.folder = remote.folder
        self.mark = f"{remote.folder}/{mark}"
        self._session = session
        self._remote = remote
        self._inner = inner
        self._context = context
        self._closed = False
        self._enrolment = enrolment
        self._tokens: dict[str, _Token] = {}
        self._arrived: defaultdict[str, asyncio.Queue[tuple[str, bool]]] = defaultdict(asyncio.Queue)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def open(
        cls,
        session: Session,
        *,
        cluster: str,
        credentials: Credentials,
        context: ssl.SSLContext,
        enrolling: Credentials | None = None,
        addresses: Sequence[str] = (),
        bind: str = "",
        variables: Sequence[str] = (),
        grace: float = 60.0,
        notice: float = 20.0,
    ) -> Switchboard:
        """Start the relay.

        Parameters
        ----------
        session : Session
            An agent on the machine that nodes reach, with the cache that they see.
        cluster : str
            Names the run folder.
        credentials : Credentials
            A worker's, of this cluster.
        context : ssl.SSLContext
            A client's, of this cluster.
        enrolling : Credentials, optional
            A scheduler's, of this cluster: what is shown to carriers that have no key. They are turned away
            without it.
        addresses : sequence of str
            What nodes may reach that machine by, in the order in which they try; what it says of itself if
            none is given.
        bind : str
            The address to listen on; all if empty.
        variables : sequence of str
            What carriers tell of their environment.
        grace : float
            Seconds without a sign of life from here after which a job ends.
        notice : float
            Seconds that a job goes on after it was told to end.

        Raises
        ------
        AgentError
            It could not be started.
        """
        carrier: dict[str, Any] = {
            **Credentials.config(),
            "variables": list(variables),
            "grace": grace,
            "notice": notice,
        }
        reached = list(addresses or session.facts.get("addresses") or ())
        settings = {
            "bind": bind,
            "port": 0,
            "addresses": reached,
            "carrier": carrier,
            "settings": _CARRIER,
        }
        mark = f"seen-{secrets.token_hex(8)}"
        files = {"relay.json": json.dumps(settings).encode(), _CARRIER: b"", mark: b""}
        remote = await session.spawn(
            _NAME,
            [session.python, "-I", "-S", session.agent, "relay", "relay.json"],
            files={**credentials.files(), **files},
            cluster=cluster,
        )
        said = await remote.said(_UP)
        if "error" in said:
            raise AgentError(
                f"jobs could not call back: {said['error']}",
                where=session.host.name,
                hint="Name an address of that machine that nodes reach: interface=.",
            )
        brought = None
        if enrolling is not None:
            alone = {key: carrier[key] for key in ("variables", "grace", "notice")}
            ways = [[address, said["port"]] for address in reached]
            brought = enrolling, {**alone, "ways": ways, "authority": enrolling.ca}
        return cls(session, remote, said["inner"], context, mark=mark, enrolment=brought)

    def body(self, identity: str) -> str:
        """Return what a job runs, as sh text: a carrier that calls here.

        Parameters
        ----------
        identity : str
            What the shell makes the job's id of: `JobVariables.identity`.
        """
        return f"""{self._first(identity)}
echo "envsync: $(hostname) does not see $settings: the folder of the cache is not shared" >&2
exit {NOT_SHARED}
"""

    def body_alone(self, identity: str) -> tuple[str, str]:
        """Return what a job runs that need not see the folder, and the token that is in it.

        It brings the agent's file along, and looks for the folder first all the same: where it is seen the
        token is not used. `admit` says whose the token is.

        Parameters
        ----------
        identity : str
            As for `body`.
        """
        assert self._enrolment is not None
        token = secrets.token_hex(32)
        agent, digest = build()
        settings = {**self._enrolment[1], "token": token}
        names = [*NAMES, self._session.python]
        return f"{self._first(identity)}\n{brought(identity, agent, digest, settings, names)}", token

    def admit(self, token: str, names: Collection[str]) -> None:
        """Let jobs call that bring a token along; each once."""
        self._tokens.update((name, _Token(token)) for name in names)

    def _first(self, identity: str) -> str:
        """Become a carrier where the folder is seen; go on otherwise."""
        run = f"""        exec "$python" -I -S {quote(self._session.agent)} carry "$settings" "{identity}\""""
        return f"""settings={quote(f"{self.folder}/{_CARRIER}")}
if [ -r "$settings" ]; then
{finding_python([self._session.python, *NAMES], run)}fi"""

    async def answer(
        self,
        name: str,
        *,
        label: str = "",
        noticed: Callable[[int], None] | None = None,
        lost: Callable[[str], None] | None = None,
        again: Callable[[], Awaitable[bool]] | None = None,
    ) -> CarriedHost:
        """Wait until the job of a name calls, and return its node as a host.

        A job that is run again calls again. A token is good for one call: for another one if `again` says so.

        Parameters
        ----------
        name : str
            The job's id.
        label : str
            What the host is called; `name` if empty.
        noticed, lost
            As for `CarriedHost`.
        again : callable, optional
            Whether the job of this name was run again, as far as its batch system knows.

        Raises
        ------
        AgentError
            The relay was lost.
        """
        arrived = self._arrived[name]
        while True:
            call = asyncio.ensure_future(arrived.get())
            both: set[asyncio.Future[Any]] = {call, self._ended}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not call.done():
                    self._ended.result()
                key, enrols = call.result()
            finally:
                call.cancel()
            host = CarriedHost(label or name, noticed=noticed, lost=lost)
            # somebody else may have called under this name; ours calls until it is answered
            with contextlib.suppress(ConnectError, OSError, asyncio.TimeoutError, TimeoutError):
                if not enrols:
                    await host.take(await self._claim(key), self._context)
                    return host
                if await self._enrol(host, key, self._tokens.get(name), again):
                    return host

    async def _enrol(
        self, host: CarriedHost, key: str, token: _Token | None, again: Callable[[], Awaitable[bool]] | None
    ) -> bool:
        """Take a carrier that has a token instead of a key, if nobody has used it."""
        if token is None or self._enrolment is None:
            return False
        if token.used and (again is None or not await again()):
            return False
        await host.take(await self._claim(key), self._enrolment[0].server_context(), token=token.text)
        token.used = True
        return True

    async def ended(self) -> EnvsyncError | None:
        """Wait until no more calls are taken; return why, None if it was closed."""
        await asyncio.wait({self._ended})
        error = self._ended.exception()
        return error if isinstance(error, EnvsyncError) and not self._closed else None

    async def last_words(self, name: str) -> dict[str, Any]:
        """Return what a carrier left when it ended; empty if it left nothing."""
        try:
            found = json.loads(await self._session.host.get(f"{self.folder}/{name.replace('/', '_')}.said"))
        except (EnvsyncError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    async def close(self) -> None:
        """Take no more calls. Who has called ends, too: the relay was between us."""
        self._closed = True
        self._listening.cancel()
        if not self._ended.done():
            self._ended.set_exception(AgentError("no more calls are taken", where=self._session.host.name))
        self._ended.exception()
        with contextlib.suppress(EnvsyncError):
            await self._remote.stop()

    async def _listen(self) -> None:
        try:
            while True:
                said = await self._remote.said()
                if "arrived" in said:
                    self._arrived[said["arrived"]].put_nowait((said["key"], bool(said.get("enrol"))))
        except (AgentError, ProcessDied) as error:
            if not self._ended.done():
                self._ended.set_exception(error)
                self._ended.exception()

    async def _claim(self, key: str) -> socket.socket:
        loop = asyncio.get_running_loop()
        port = await self._session.host.forward("127.0.0.1", self._inner)
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await wait_for(loop.sock_connect(sock, ("127.0.0.1", port)), _CLAIMED)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(sock, f"{key}\n".encode())
        except BaseException:
            sock.close()
            raise
        return sock
