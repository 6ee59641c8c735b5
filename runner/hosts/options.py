"""How SSH hosts are written, and how they are connected to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from envsync.errors import HostError

__all__ = ["Address", "SSHOptions"]

_SHAPES = "Write ssh://user@host:port, user@host, or a name of your ~/.ssh/config."
_NAME = re.compile(r"[^\s/@\[\]'\"`$;&|<>\\-][^\s/@\[\]'\"`$;&|<>\\]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHOptions:
    """How to connect to SSH hosts. What is not said here is read from ssh's own configuration.

    Parameters
    ----------
    config : tuple of Path, optional
        ssh configuration files; by default the user's and the system's.
    username : str, optional
        Who to log in as where the address does not say.
    identities : tuple of Path
        Private keys to offer; by default those of the configuration, the agent and ``~/.ssh``.
    passphrase : callable, optional
        Asked for the passphrase of a key, given the name of its file. Without it, the agent's are used.
    connect_timeout : float
        Seconds to try for, attempts and log-in included. The configuration's ``ConnectTimeout`` goes first.
    attempts : int
        How often to try when refused, reset or dropped.
    keepalive : float
        Seconds of silence after which the host is asked for a sign of life. The configuration's
        ``ServerAliveInterval`` goes first.
    keepalive_count : int
        How many such questions may stay unanswered before the host is taken for lost.
    sessions : int
        Commands at once over one connection; sshd allows ten (``MaxSessions``), one of them ends others.
    ephemeral : bool
        Whether host and configuration go with the cluster: nobody can try by hand then what an error tells.
    """

    config: tuple[Path, ...] | None = None
    username: str | None = None
    identities: tuple[Path, ...] = ()
    passphrase: Callable[[str], str | None] | None = field(default=None, repr=False)
    connect_timeout: float = 20.0
    attempts: int = 4
    keepalive: float = 5.0
    keepalive_count: int = 2
    sessions: int = 9
    ephemeral: bool = False

    def __post_init__(self) -> None:
        config = (self.config,) if isinstance(self.config, (str, Path)) else self.config
        object.__setattr__(self, "config", None if config is None else tuple(map(Path, config)))
        keys = (self.identities,) if isinstance(self.identities, (str, Path)) else self.identities
        object.__setattr__(self, "identities", tuple(map(Path, keys)))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a host is, as far as its address says; ssh's configuration says the rest."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take ``[ssh://][user@]host[:port]`` apart; IPv6 addresses with a port are in brackets.

        Raises
        ------
        HostError
            The text is no address.
        """
        rest = text.removeprefix("ssh://").rstrip("/")
        user, at, host = rest.rpartition("@")
        if ":" in user:
            # the text is not shown: what follows the colon is a password
            raise HostError(
                f"the address of {host} has a password in it",
                hint="Take it out: use a key, or the ssh agent.",
            )
        port = ""
        if host.startswith("["):
            host, closed, port = host[1:].partition("]")
            valid = bool(closed) and (not port or port.startswith(":"))
            port = port[1:]
        else:
            valid = True
            if host.count(":") == 1:
                host, _, port = host.partition(":")
                valid = bool(port)
        if (
            not valid
            or not _NAME.fullmatch(host)
            or (at and not user)
            or user.startswith("-")
            or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536))
        ):
            raise HostError(f"{text!r} is not the address of a host", hint=_SHAPES)
        return cls(host, unquote(user) or None, int(port) if port else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}:{self.port}" if self.port else f"{user}{host}"
