"""A certificate authority for one cluster, and a certificate for each role in it.

The authority's key never leaves this process's memory. Each other key is made here, sent over the host's own
channel into a file for its user only, and lives as long as the cluster.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from distributed.security import Security

__all__ = ["Authority", "Credentials"]

LIFE = datetime.timedelta(days=90)
"""How long a cluster's certificates are good for: longer than it lives, shorter than a forgotten file."""

_SLACK = datetime.timedelta(hours=24)  # clocks of hosts differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one process shows and trusts, as PEM text.

    Attributes
    ----------
    ca : str
        The authority's certificate.
    cert : str
        Its own.
    key : str
        Its private key.
    """

    ca: str
    cert: str
    key: str = field(repr=False)

    def files(self) -> dict[str, bytes]:
        """Return the files of a process: what `config` names."""
        return {"ca.pem": self.ca.encode(), "cert.pem": self.cert.encode(), "key.pem": self.key.encode()}

    @staticmethod
    def config() -> dict[str, str]:
        """Return the ``tls`` part of a process's configuration."""
        return {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}

    def security(self) -> Security:
        """Return distributed's object for a client, with everything in memory."""
        from distributed.security import Security

        return Security(
            require_encryption=True, tls_ca_file=self.ca, tls_client_cert=self.cert, tls_client_key=self.key
        )

    def client_context(self) -> ssl.SSLContext:
        """Return what a client connects with: to none but this cluster's workers."""
        context: ssl.SSLContext = self.security().get_connection_args("client")["ssl_context"]
        context.check_hostname = True
        return context

    def server_context(self) -> ssl.SSLContext:
        """Return what a scheduler's certificate is shown with, to those who have none themselves."""
        import ssl

        security = self.security()
        security.tls_scheduler_cert, security.tls_scheduler_key = self.cert, self.key
        context: ssl.SSLContext = security.get_listen_args("scheduler")["ssl_context"]
        context.verify_mode = ssl.CERT_NONE
        return context


class Authority:
    """Signs the certificates of one cluster.

    Parameters
    ----------
    cluster : str
        Its name, which the certificates carry.
    """

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._until = datetime.datetime.now(datetime.timezone.utc) + LIFE
        name = _name(f"envsync {cluster}"[:64])
        self._certificate = (
            self._builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> str:
        """The authority's own certificate, PEM."""
        return _pem(self._certificate)

    def issue(self, role: str, names: Iterable[str] = ()) -> Credentials:
        """Make a key and a certificate.

        Parameters
        ----------
        role : {"scheduler", "worker", "client"}
            A client's certificate is good for connecting only, so that nobody who holds one can pose as a
            scheduler.
        names : iterable of str
            Host names and addresses that it may be reached by.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "client":
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        alternatives: list[x509.GeneralName] = [x509.DNSName(f"{role}.envsync.invalid")]
        alternatives += [_alternative(name) for name in dict.fromkeys(names)]
        certificate = (
            self._builder(_name(role), self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Credentials(ca=self.certificate, cert=_pem(certificate), key=secret.decode())

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._until - LIFE - _SLACK)
            .not_valid_after(self._until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
