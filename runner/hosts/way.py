"""What ssh's own configuration makes of an address: where it leads, with which keys, known by what."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from envsync.errors import HostError
from envsync.runner.hosts.options import Address, SSHOptions

__all__ = ["Keys", "Way", "find_way"]

_CONFIGS = ("~/.ssh/config", "/etc/ssh/ssh_config")
_KNOWN = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_KNOWN_GLOBALLY = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_DEFAULT_KEYS = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")
_KEY_TYPES = (
    "+ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"
)
_FAST = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # faster here than what asyncssh prefers


@dataclass
class Keys:
    """The keys that are offered, and those that are not.

    Parameters
    ----------
    offered : list of str
        The files of those that are.
    left_out : list of str
        The files of those that are not, and why.
    agent : str
        The agent's socket; empty if none is asked.
    arguments : dict
        What asyncssh is told of them.
    """

    offered: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    agent: str = ""
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Way:
    """How to get to a host.

    Parameters
    ----------
    name : str
        The host as the user wrote it.
    host, port, user : str, int, str
        Where it is, and who we are there.
    alias : str
        The name it is known by in known_hosts files: its ``HostKeyAlias``, or `host`.
    jumps : tuple of str
        Hosts to go over, in order.
    known : asyncssh.SSHKnownHosts
        The keys of known hosts.
    known_file : Path
        The user's own file of them.
    timeout : float
        Seconds to try for.
    keys : Keys
        What we log in with.
    by_hand : tuple of str
        The command that a person would type.
    arguments : dict
        All that asyncssh is told.
    """

    name: str
    host: str
    port: int
    user: str
    alias: str
    jumps: tuple[str, ...]
    known: asyncssh.SSHKnownHosts
    known_file: Path
    timeout: float
    keys: Keys
    by_hand: tuple[str, ...]
    arguments: dict[str, Any] = field(repr=False)

    @property
    def lookup(self) -> str:
        """The name that its lines in known_hosts files begin with."""
        return self.alias if self.port == 22 else f"[{self.alias}]:{self.port}"

    def is_known(self, address: str = "") -> bool:
        """Tell whether known_hosts files have a key or an authority for it, whichever that is."""
        found = self.known.match(self.alias, address, None if self.port == 22 else self.port)
        return bool(found[0] or found[1])


def find_way(address: str, options: SSHOptions) -> Way:
    """Read the configuration. Blocks: it reads files, and may run ``Match exec``.

    Raises
    ------
    HostError
        The address or the configuration is not valid.
    """
    where = Address.parse(address)
    if options.config is None:
        files = [str(path) for path in map(_expand, _CONFIGS) if path.is_file()]
    else:
        files = [str(_expand(path)) for path in options.config]
    user = where.user or options.username
    asked: dict[str, Any] = {"config": files, "port": where.port or (), "username": user or ()}
    try:
        read = asyncssh.SSHClientConnectionOptions(host=where.host, client_keys=None, **asked)
    except (asyncssh.ConfigParseError, OSError, ValueError) as error:
        raise HostError(
            f"ssh's configuration cannot be used: {error}",
            where=address,
            hint=f"Correct it: {', '.join(files) or 'there is none'}",
        ) from error
    config = read.config
    known_files = [*_strings(config.get("UserKnownHostsFile"), _KNOWN)]
    known_globally = [*_strings(config.get("GlobalKnownHostsFile"), _KNOWN_GLOBALLY)]
    timeout = float(config.get("ConnectTimeout") or options.connect_timeout)  # type: ignore[arg-type]
    keys = _find_keys(config, options)
    arguments = {
        **asked,
        **keys.arguments,
        "host": where.host,
        "known_hosts": _read_known([*known_files, *known_globally]),
        "connect_timeout": timeout,
        "login_timeout": timeout,
        "keepalive_interval": config.get("ServerAliveInterval") or options.keepalive,
        "keepalive_count_max": config.get("ServerAliveCountMax", options.keepalive_count),
        "agent_forwarding": False,
        "x11_forwarding": False,
        "command": None,
    }
    if not config.get("Ciphers"):
        arguments["encryption_algs"] = _FAST
    if not config.get("HostKeyAlgorithms"):
        # after those we know: else a host whose key is of another type now just hangs up
        arguments["server_host_key_algs"] = _KEY_TYPES
    jump = read.tunnel if isinstance(read.tunnel, str) else ""
    jumps = tuple(hop for hop in jump.split(",") if hop and Address.parse(hop).host != where.host)
    return Way(
        name=address,
        host=read.host,
        port=read.port,
        user=read.username,
        alias=read.host_key_alias or read.host,
        jumps=jumps,
        known=arguments["known_hosts"],
        known_file=_expand(known_files[0]) if known_files else _expand(_KNOWN[0]),
        timeout=timeout,
        keys=keys,
        by_hand=("ssh", *(("-F", files[0]) if options.config and files else ()), *_typed(address)),
        arguments=arguments,
    )


def _find_keys(config: Any, options: SSHOptions) -> Keys:
    named = [*map(str, options.identities)] or _strings(config.get("IdentityFile"), ())
    only = bool(config.get("IdentitiesOnly"))
    agent = config.get("IdentityAgent") or os.environ.get("SSH_AUTH_SOCK", "")
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    keys = Keys()
    found: list[Any] = []
    public: list[str] = []
    for path in map(_expand, named or [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]):
        for candidate in (path, path.with_name(f"{path.name}.pub")):
            with contextlib.suppress(OSError, ValueError):
                asyncssh.read_public_key(candidate)
                public.append(str(candidate))
                break
        if path.exists() or named:
            _take_key(path, options, keys, found)
    if agent and (not only or public):
        keys.agent = str(_expand(agent))
    keys.arguments = {
        "client_keys": found,
        "agent_path": keys.agent or None,
        "agent_identities": public if only else None,
        "ignore_encrypted": True,
        "passphrase": options.passphrase,
    }
    return keys


def _take_key(path: Path, options: SSHOptions, keys: Keys, found: list[Any]) -> None:
    """Read one private key, or note why it is not offered."""
    try:
        key = _read_key(path, path.stat().st_mtime_ns)
    except asyncssh.KeyEncryptionError:
        locked = True
    except asyncssh.KeyImportError as error:
        locked = str(error).startswith("Passphrase")
        if not locked:
            with contextlib.suppress(OSError, asyncssh.KeyImportError):
                asyncssh.read_public_key(path)
                return  # the agent has the private half
            keys.left_out.append(f"{path} (not a private key)")
            return
    except OSError as error:
        if not path.with_name(f"{path.name}.pub").exists():
            keys.left_out.append(f"{path} ({(error.strerror or str(error)).lower()})")
        return
    else:
        certificate = path.with_name(f"{path.name}-cert.pub")
        found.append((key, str(certificate)) if certificate.exists() else key)
        keys.offered.append(str(path))
        return
    if locked and options.passphrase is not None:
        found.append(str(path))
        keys.offered.append(str(path))
    else:
        keys.left_out.append(f"{path} (locked by a passphrase: `ssh-add {path}` gives it to the agent)")


@functools.lru_cache(maxsize=64)
def _read_key(path: Path, _changed: int) -> asyncssh.SSHKey:
    return asyncssh.read_private_key(path)


def _read_known(paths: list[str]) -> asyncssh.SSHKnownHosts:
    versions = []
    for path in map(_expand, paths):
        with contextlib.suppress(OSError):
            found = path.stat()
            versions.append((path, found.st_mtime_ns, found.st_size))
    return _load_known(tuple(versions))


@functools.lru_cache(maxsize=16)
def _load_known(versions: tuple[tuple[Path, int, int], ...]) -> asyncssh.SSHKnownHosts:
    known = asyncssh.SSHKnownHosts()
    for path, _, _ in versions:
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # ssh passes over lines it cannot read, too
                    known.load(line)
    return known


def _strings(value: object, default: tuple[str, ...]) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [*default]


def _expand(path: str | Path) -> Path:
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def _typed(address: str) -> tuple[str, ...]:
    """Return what ssh takes on its command line for an address: it knows no host:port."""
    where = Address.parse(address)
    host = f"{where.user}@{where.host}" if where.user else where.host
    return (host,) if where.port is None else ("-p", str(where.port), host)
