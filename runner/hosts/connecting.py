"""Opening an SSH connection the way the user's own ssh would, with errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import shlex
import socket
import weakref
from dataclasses import replace

import asyncssh
import stamina

from envsync.errors import AuthenticationError, ConnectError, HostError, HostKeyError
from envsync.runner.hosts.options import SSHOptions
from envsync.runner.hosts.way import Way, find_way

__all__ = ["connect"]

_AT_ONCE = 8  # log-ins to one sshd: from the eleventh on it drops some (MaxStartups), and jump hosts get many
_TOO_LONG = 8  # jump hosts in a row: more is a circle
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
_RESET = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)

_EPHEMERAL: dict[type[HostError], str] = {
    ConnectError: "Does a firewall here keep SSH (port 22) from leaving, or reached_from= from coming in? "
    "Over a VPN, or within its network, say private=True.",
    HostKeyError: "Somebody may be listening in; nothing was sent there. Start again from another network.",
    AuthenticationError: "Its image did not take the cluster's key: it needs cloud-init. Name another image.",
}

logging.getLogger("stamina").addHandler(logging.NullHandler())  # else the first retry prints a warning
if logging.getLogger("asyncssh").level == logging.NOTSET:
    asyncssh.set_log_level(logging.WARNING)  # it logs every connection and channel at INFO


class _Client(asyncssh.SSHClient):
    """Remembers what the server showed that it was not trusted for."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None
        self.address = ""

    def validate_host_public_key(
        self,
        host: str,  # noqa: ARG002
        addr: str,
        port: int,  # noqa: ARG002
        key: asyncssh.SSHKey,
    ) -> bool:
        """Trust nothing that known_hosts files do not vouch for."""
        self.shown, self.address = key, addr
        return False


async def connect(
    address: str, options: SSHOptions, *, jumps: tuple[str, ...] | None = None, trail: tuple[str, ...] = ()
) -> asyncssh.SSHClientConnection:
    """Connect to a host, over the jump hosts that the configuration names.

    Parameters
    ----------
    address : str
        As the user wrote it.
    options : SSHOptions
        How.
    jumps : tuple of str, optional
        Hosts to go over; those of the configuration if not given.
    trail : tuple of str
        The hosts that this one is a jump host for.

    Returns
    -------
    asyncssh.SSHClientConnection
        Closing it closes those to its jump hosts.

    Raises
    ------
    ConnectError, HostKeyError, AuthenticationError
        It was not reached, is not known, does not let us in.
    HostError
        The address or the configuration is not valid.
    """
    way = await asyncio.to_thread(find_way, address, options)
    if jumps is not None:
        way = replace(way, jumps=jumps)
    if len(trail) >= _TOO_LONG:
        raise HostError(
            f"the jump hosts go on and on: {' over '.join((*trail, address))}",
            where=trail[0],
            hint="Look for a circle of ProxyJump lines in your ~/.ssh/config.",
        )
    tunnel = None
    if way.jumps:
        *before, last = way.jumps
        hop = replace(options, username=None)
        tunnel = await connect(last, hop, jumps=tuple(before) or None, trail=(*trail, address))
    try:
        connection = await _try(way, options, tunnel, trail)
    except BaseException:
        if tunnel is not None:
            tunnel.close()
        raise
    if tunnel is not None:
        connection.set_tunnel(tunnel)
    return connection


async def _try(
    way: Way,
    options: SSHOptions,
    tunnel: asyncssh.SSHClientConnection | None,
    trail: tuple[str, ...],
) -> asyncssh.SSHClientConnection:
    client = _Client()

    def factory() -> _Client:
        nonlocal client
        client = _Client()
        return client

    try:
        async for attempt in stamina.retry_context(
            on=_worth_another_try,
            attempts=options.attempts,
            timeout=way.timeout,
            wait_initial=0.2,
            wait_max=2.0,
            wait_jitter=0.3,
        ):
            with attempt:
                async with _turn(way.host, way.port):
                    connection: asyncssh.SSHClientConnection = await asyncssh.connect(
                        **way.arguments, tunnel=tunnel, client_factory=factory
                    )
                return connection
        raise AssertionError
    except (OSError, asyncssh.Error, asyncio.TimeoutError, ValueError) as error:
        told = await _translate(error, way, client)
        if options.ephemeral:
            told.hint = _EPHEMERAL.get(type(told), told.hint)
        if trail:
            told.where = f"{trail[0]} (over its jump host {way.name})"
        raise told from error


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]]
_turns = weakref.WeakKeyDictionary()


def _turn(host: str, port: int) -> asyncio.Semaphore:
    """Return what lets so many log in to one sshd at a time."""
    turns = _turns.setdefault(asyncio.get_running_loop(), {})
    return turns.setdefault((host, port), asyncio.Semaphore(_AT_ONCE))


def _worth_another_try(error: Exception) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, asyncssh.ChannelOpenError):
        return error.code == asyncssh.constants.OPEN_CONNECT_FAILED
    if isinstance(error, asyncssh.ConnectionLost):
        return True
    return isinstance(error, OSError) and _number(error) in (errno.ECONNREFUSED, *_RESET)


def _number(error: OSError) -> int | None:
    """Return an error's number; asyncio writes those of several addresses into one text."""
    if error.errno is not None:
        return error.errno
    numbers = re.findall(r"\[Errno (\d+)\]", str(error))
    return int(numbers[-1]) if numbers else None


async def _translate(error: Exception, way: Way, client: _Client) -> HostError:
    there = f"{way.host} port {way.port}" + (f" (over {way.jumps[-1]})" if way.jumps else "")
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _host_key_error(way, client, str(error.reason))
    if isinstance(error, asyncssh.KeyExchangeFailed):
        if "host key" in str(error).lower() and way.is_known():
            return _host_key_error(way, client, "")
        return ConnectError(
            f"{there} and we have no way to talk in common: {error.reason}",
            where=way.name,
            hint="Its sshd is very old or strict: set KexAlgorithms, Ciphers or MACs in your ~/.ssh/config.",
        )
    if isinstance(error, asyncssh.PermissionDenied) or "authentication failures" in str(error):
        return await _authentication_error(error, way)
    return ConnectError(
        _reason(error, way, there),
        where=way.name,
        hint=f"Try it by hand: {shlex.join(way.by_hand)}",
    )


def _reason(error: Exception, way: Way, there: str) -> str:
    """Return one sentence for why nothing was reached."""
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return f"the name {way.host} could not be looked up: no name server answers"
        return f"there is no host called {way.host}"
    if isinstance(error, asyncssh.ChannelOpenError):
        over = f"its jump host {way.jumps[-1]}" if way.jumps else "its jump host"
        return f"{over} does not reach {way.host} port {way.port}: {error.reason}"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"{there} did not answer within {way.timeout:g} s: it is off, or a firewall is between"
    if isinstance(error, asyncssh.ConnectionLost):
        return f"{there} closed the connection before we were logged in: {error.reason}"
    if isinstance(error, OSError):
        number = _number(error)
        if number == errno.ECONNREFUSED:
            return f"{there} refuses connections: no sshd listens there"
        if number == errno.ETIMEDOUT:
            return f"{there} did not answer: it is off, or a firewall is between"
        if number in _UNREACHABLE:
            return f"{there} cannot be reached from here: no route to it"
        if number in _RESET:
            return f"{there} dropped the connection"
    return f"{there} could not be connected to: {error}"


def _host_key_error(way: Way, client: _Client, reason: str) -> HostKeyError:
    shown = client.shown
    key = f"{shown.get_algorithm()} {shown.get_fingerprint()}" if shown else "of another type"
    by_hand = shlex.join(way.by_hand)
    scan = shlex.join(["ssh-keyscan", "-p", str(way.port), way.host])
    if way.is_known(client.address):
        forget = shlex.join(["ssh-keygen", "-R", way.lookup, "-f", str(way.known_file)])
        return HostKeyError(
            f"{way.host} port {way.port} is not the host that {way.lookup} was: its key has changed "
            f"(it now shows one {key})" + (f"; {reason}" if "revoked" in reason else ""),
            where=way.name,
            hint="Somebody may be listening in, or the machine was installed anew. If you know that it was, "
            f"forget the old key: {forget}, then look at the new one and accept it: {by_hand}",
        )
    return HostKeyError(
        f"{way.host} port {way.port} is not known yet: its key is {key}",
        where=way.name,
        hint=f"Compare that with the machine's own, and accept it once: {by_hand} "
        f"(or, on a network you trust: {scan} >> {shlex.quote(str(way.known_file))})",
    )


async def _authentication_error(error: Exception, way: Way) -> AuthenticationError:
    tried = list(way.keys.offered)
    if way.keys.agent:
        tried.append(await _agent_keys(way.keys.agent))
    else:
        tried.append("no ssh agent (SSH_AUTH_SOCK is not set)")
    left_out = f"; left out: {', '.join(way.keys.left_out)}" if way.keys.left_out else ""
    many = "authentication failures" in str(error)
    return AuthenticationError(
        f"{way.user}@{way.host} does not let us in; tried: {', '.join(tried)}{left_out}",
        where=way.name,
        hint="It gave up after so many keys: name the right one with IdentityFile and IdentitiesOnly yes "
        "in your ~/.ssh/config."
        if many
        else f"Is {way.user} the right user? Then put your public key there (ssh-copy-id), or name the right "
        "User and IdentityFile in your ~/.ssh/config. Passwords are not asked for.",
    )


async def _agent_keys(path: str) -> str:
    try:
        async with asyncssh.connect_agent(path) as agent:
            count = len(list(await agent.get_keys()))
    except (OSError, ValueError, asyncssh.Error) as error:
        return f"the ssh agent, which does not answer ({error})"
    return f"{count} key{'s' * (count != 1)} of the ssh agent"
