"""How ssh finds and knows a cluster's machines: its key, their addresses, the host keys that they said."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from envsync.agent.owner import write_owner
from envsync.runner.cloud.userdata import USER
from envsync.scratch import sweep_temporary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Introduced"]

_PREFIX = "envsync-cloud-"


class Introduced:
    """A folder with ssh's configuration for machines, each by its id: ``ssh -F config i-0123``.

    Attributes
    ----------
    config, key : Path
        The configuration; the cluster's private key.
    public : str
        The public one, as one line of ``authorized_keys``.
    """

    def __init__(self) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519", comment="envsync")
        self.public = key.export_public_key().decode().strip()
        sweep_temporary(_PREFIX)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        write_owner(self._folder)  # before there is a key in it
        self.config, self._known, self.key = (self._folder / one for one in ("config", "known_hosts", "key"))
        self.key.touch(mode=0o600)
        self.key.write_bytes(key.export_private_key())
        self._hosts: dict[str, tuple[str, tuple[str, ...]]] = {}

    def add(self, identity: str, address: str, keys: Sequence[str]) -> None:
        """Know a machine from now on."""
        self._hosts[identity] = (address, tuple(keys))
        self._write()

    def remove(self, identity: str) -> None:
        """Know a machine no longer; silent if it is not known."""
        if self._hosts.pop(identity, None) is not None:
            self._write()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        """Write both files, each in one piece: somebody may be connecting."""
        lines, known = [], []
        for identity, (address, keys) in self._hosts.items():
            known += [f"{identity} {key}" for key in keys]
            lines += [
                f"Host {identity}",
                f"  HostName {address}",
                f"  HostKeyAlias {identity}",
                f"  User {USER}",
                f"  IdentityFile {self.key}",
                "  IdentitiesOnly yes",
                "  IdentityAgent none",
                f"  UserKnownHostsFile {self._known}",
                "  GlobalKnownHostsFile /dev/null",
                "",
            ]
        for file, content in ((self._known, known), (self.config, lines)):
            part = file.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in content))
            part.replace(file)
