"""Who a cluster's processes trust: nobody's wire, this cluster's own authority, or what the user gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.errors import ClusterError
from envsync.runner.tls import Authority, Credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distributed.security import Security

__all__ = ["Trust", "given_credentials"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What the processes of one cluster show each other.

    Attributes
    ----------
    client : Security
        For clients, here.
    authority : Authority or None
        The cluster's own.
    given : mapping of str to Credentials, or None
        What the user gave instead, by role.
    """

    client: Any
    authority: Authority | None = field(default=None, repr=False)
    given: Mapping[str, Credentials] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, security: bool | Security | None, *, local: bool, name: str) -> Trust:
        """Decide on what the user said.

        Parameters
        ----------
        security : bool, Security or None
            As for `SyncedCluster`; None asks Dask's configuration, and then whether bytes leave this machine.
        local : bool
            Whether they do not.
        name : str
            The cluster's.

        Raises
        ------
        ClusterError
            The given certificates are not all there.
        TypeError
            It is none of these.
        """
        from distributed.security import Security

        if security is None:
            configured = Security()
            security = configured if configured.require_encryption else not local
        if not isinstance(security, (bool, Security)):
            raise TypeError(f"security must be True, False or a Security object, not {security!r}")
        if security is True:
            authority = Authority(name)
            return cls(client=authority.issue("client").security(), authority=authority)
        if security is False:
            return cls(client=Security(require_encryption=False))
        return cls(client=security, given=given_credentials(security))

    @property
    def encrypted(self) -> bool:
        """Whether they speak TLS."""
        return self.authority is not None or self.given is not None

    def credentials(self, role: str, names: tuple[str, ...]) -> Credentials | None:
        """Return what one process shows; None without TLS."""
        if self.authority is not None:
            return self.authority.issue(role, names)
        return self.given[role] if self.given is not None else None


def given_credentials(security: Security) -> dict[str, Credentials] | None:
    """Return what a Security object of the user's gives each role; None if it asks for no encryption.

    Raises
    ------
    ClusterError
        It asks for encryption, and has no certificate for a role, or a file that cannot be read.
    """
    if not security.require_encryption and not security.tls_ca_file:
        return None
    found = {}
    for role in ("scheduler", "worker"):
        parts = security.get_tls_config_for_role(role)
        texts = {name: _text(parts[name], f"{role}'s {name}") for name in ("ca_file", "cert")}
        key = _text(parts["key"], f"{role}'s key") if parts["key"] else texts["cert"]
        found[role] = Credentials(ca=texts["ca_file"], cert=texts["cert"], key=key)
    return found


def _text(value: str | None, what: str) -> str:
    hint = "Give the Security object certificates for scheduler, worker and client, or pass security=True."
    if not value:
        raise ClusterError(f"the Security object has no {what}", hint=hint)
    if "\n" in value:
        return value
    try:
        return Path(value).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"the {what} cannot be read: {error}", hint=hint) from error
