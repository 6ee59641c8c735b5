"""Registries of container images on loopback: Debian's own, its token server, and a proxy that misbehaves."""

from __future__ import annotations

import base64
import contextlib
import datetime
import fnmatch
import http.client
import ipaddress
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.lab.install import find
from tests.lab.network import SYSTEM, LabError
from tests.ports import free_port

if TYPE_CHECKING:
    from typing_extensions import Self

_CONFIG = """version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {store}}}
  delete: {{enabled: true}}
  cache: {{blobdescriptor: inmemory}}
http:
  addr: 127.0.0.1:{port}
  secret: lab
  relativeurls: true
{more}"""


class Authority:
    """A certificate authority, and a certificate of it for this machine.

    Parameters
    ----------
    folder : Path
        Gets ``ca.crt``, ``server.crt`` and ``server.key``.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.certificate, self.key = (
            folder / name for name in ("ca.crt", "server.crt", "server.key")
        )
        self._own_key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the lab's authority")])
        own = self._sign(self._name, self._own_key.public_key(), x509.BasicConstraints(True, None))
        self.signing_key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        self.leaf = self._sign(subject, self.signing_key.public_key(), names)
        self.ca.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        self.certificate.write_bytes(self.leaf.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            self.signing_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._own_key, hashes.SHA256())
        )


class DockerRegistry:
    """Debian's docker-registry; ``with`` starts and ends it.

    Parameters
    ----------
    folder : Path
        Its files; blobs are in ``store``.
    login : (str, str), optional
        The user name and password that it wants.
    tls : Authority, optional
        It speaks TLS with a certificate of that one.
    tokens : TokenServer, optional
        Whose tokens it wants.
    store : Path, optional
        Where blobs are, to share those of another.
    """

    def __init__(
        self,
        folder: Path,
        *,
        login: tuple[str, str] | None = None,
        tls: Authority | None = None,
        tokens: TokenServer | None = None,
        store: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.store = store or folder / "store"
        more = ""
        if tls:
            more += f"  tls: {{certificate: {tls.certificate}, key: {tls.key}}}\n"
        if login:
            password = bcrypt.hashpw(login[1].encode(), bcrypt.gensalt(4)).decode()
            (folder / "htpasswd").write_text(f"{login[0]}:{password}\n")
            more += f"auth: {{htpasswd: {{realm: lab, path: {folder / 'htpasswd'}}}}}\n"
        if tokens:
            more += f"auth: {{token: {{realm: '{tokens.url}', service: lab, issuer: lab, "
            more += f"rootcertbundle: {tokens.authority.ca}}}}}\n"
        (folder / "config.yml").write_text(_CONFIG.format(store=self.store, port=self.port, more=more))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DockerRegistry:
        program = find("docker-registry")
        assert program, "docker-registry is not installed"
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "serve", str(self.folder / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=SYSTEM,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)
        self.__exit__()
        raise LabError(f"docker-registry did not start: {self.log()[-2000:]}")

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def log(self) -> str:
        """Return what it wrote."""
        return (self.folder / "log").read_text()

    def blob_file(self, digest: str) -> Path:
        """Return the file that holds a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        folder = self.store / "docker" / "registry" / "v2" / "blobs" / "sha256"
        return folder / hexadecimal[:2] / hexadecimal / "data"


@dataclass
class Request:
    """What somebody asked.

    Attributes
    ----------
    method, path : str
        With the query.
    headers : mapping of str to str
        By their names in lower case.
    status : int
        What was answered; 0 if nothing was.
    received : int
        Bytes of the body that were read.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    status: int = 0
    received: int = 0


class Handler(BaseHTTPRequestHandler):
    """One request, as `Serving` sees it."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server
    seen: Request

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
        pass

    def _handle(self) -> None:
        self.seen = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        self.server.owner.requests.append(self.seen)
        self.server.owner.serve(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

    def body(self, limit: int | None = None) -> bytes:
        """Read the request's body, or its beginning."""
        data = b""
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length if limit is None else min(limit, length))
        self.seen.received = len(data)
        return data

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send an answer whole."""
        self.seen.status = status
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304) and "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        """Break the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: Serving

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what the tests are about


class Serving:
    """An HTTP server on loopback that keeps what was asked; ``with`` starts and ends it.

    Attributes
    ----------
    host : str
        Where it listens.
    requests : list of Request
        In the order in which they came.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def serve(self, handler: Handler) -> None:
        """Answer a request."""
        raise NotImplementedError

    def asked(self, method: str, pattern: str = "*") -> list[Request]:
        """Return the requests with a method and a path."""
        return [one for one in self.requests if one.method == method and fnmatch.fnmatch(one.path, pattern)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class TokenServer(Serving):
    """Gives tokens as docker-registry checks them: JSON web tokens, signed by a key that an authority knows.

    Parameters
    ----------
    authority : Authority
        The registry has its certificate.
    login : (str, str)
        Whom it gives what is asked for.
    identity : str
        An identity token that it takes for a login, too.
    anonymous : str
        The actions that anybody may do, such as ``"pull"``.
    readers : sequence of str
        Users that may pull only; their password is that of `login`.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        login: tuple[str, str],
        identity: str = "",
        anonymous: str = "",
        readers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.authority = authority
        self.login, self.identity, self.anonymous, self.readers = login, identity, anonymous, readers
        self.url = f"http://{self.host}/token"
        self.stale = 0
        """How many of the next tokens have expired an hour ago, whatever is said of them."""
        self.given: list[str] = []

    def serve(self, handler: Handler) -> None:
        """Give a token, or not."""
        query = parse_qs(urlsplit(handler.path).query)
        if handler.command == "POST":
            query = parse_qs(handler.body().decode())
        allowed = self._allowed(handler.seen.headers.get("authorization", ""), query)
        if allowed is None:
            return handler.answer(401, {"Content-Type": "application/json"}, b'{"details": "who are you?"}')
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.split(":")
            granted = [one for one in actions.split(",") if one in allowed]
            access.append({"type": kind, "name": name, "actions": granted})
        token = self._token(access)
        self.given.append(token)
        body = json.dumps({"token": token, "expires_in": 300}).encode()
        return handler.answer(200, {"Content-Type": "application/json"}, body)

    def _allowed(self, authorization: str, query: Mapping[str, list[str]]) -> tuple[str, ...] | None:
        everything = ("pull", "push")
        if query.get("grant_type") == ["refresh_token"]:
            return everything if self.identity and query.get("refresh_token") == [self.identity] else None
        if not authorization:
            return tuple(self.anonymous.split(",")) if self.anonymous else None
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if password != self.login[1]:
            return None
        if user in self.readers:
            return ("pull",)
        return everything if user == self.login[0] else None

    def _token(self, access: Sequence[object]) -> str:
        now = int(time.time())
        if self.stale > 0:
            self.stale -= 1
            now -= 3600
        leaf = base64.b64encode(self.authority.leaf.public_bytes(serialization.Encoding.DER)).decode()
        claims = {"iss": "lab", "sub": "", "aud": "lab", "jti": os.urandom(8).hex(), "access": access}
        times = {"iat": now - 10, "nbf": now - 10, "exp": now + 300}
        head = {"typ": "JWT", "alg": "ES256", "x5c": [leaf]}
        text = ".".join(_base64url(json.dumps(one).encode()) for one in (head, {**claims, **times}))
        signature = self.authority.signing_key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(signature)
        return f"{text}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass
class _Fault:
    method: str
    pattern: str
    times: int
    act: Callable[[Handler], None]
    after: int

    def fits(self, handler: Handler) -> bool:
        if handler.command != self.method or not fnmatch.fnmatch(handler.path, self.pattern):
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True


class Proxy(Serving):
    """Stands before a registry, counts, and misbehaves as it is told.

    Parameters
    ----------
    upstream : DockerRegistry
        Plain HTTP.
    """

    def __init__(self, upstream: DockerRegistry) -> None:
        super().__init__()
        self.upstream = upstream
        self._faults: list[_Fault] = []
        self._choosing = threading.Lock()

    def fault(
        self,
        method: str,
        pattern: str,
        act: Callable[[Handler], None],
        *,
        times: int = 1,
        after: int = 0,
    ) -> None:
        """Let the next requests that fit be answered otherwise, but for the first `after` of them."""
        self._faults.append(_Fault(method, pattern, times, act, after))

    def serve(self, handler: Handler) -> None:
        """Pass a request on."""
        with self._choosing:
            fault = next((one for one in self._faults if one.fits(handler)), None)
        if fault is not None:
            return fault.act(handler)
        status, headers, body = self.forward(handler, handler.body())
        return handler.answer(status, headers, body)

    def forward(self, handler: Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Ask the registry, and return its answer."""
        upstream = http.client.HTTPConnection(self.upstream.host, timeout=30)
        leave = ("transfer-encoding", "content-length", "connection")
        names = {name.lower() for name in handler.headers} - {*leave}
        headers = {name: ", ".join(handler.headers.get_all(name) or ()) for name in names}
        try:
            upstream.request(
                handler.command, handler.path, body, {**headers, "Content-Length": str(len(body))}
            )
            response = upstream.getresponse()
            data = response.read()
            return (
                response.status,
                {k: v for k, v in response.getheaders() if k.lower() not in leave[::2]},
                data,
            )
        finally:
            upstream.close()


def answers(
    status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Callable[[Handler], None]:
    """Answer with a status, the registry unasked."""

    def act(handler: Handler) -> None:
        handler.body()
        handler.answer(status, headers, body)

    return act


def breaks(after: int = 0, *, passing_on: bool = False) -> Callable[[Handler], None]:
    """Break the connection after so many bytes of a request; with `passing_on` the registry has seen them."""

    def act(handler: Handler) -> None:
        data = handler.body(after)
        if passing_on:
            assert isinstance(handler.server.owner, Proxy)
            host, _, port = handler.server.owner.upstream.host.partition(":")
            with socket.create_connection((host, int(port)), 5) as upstream:
                lines = [f"{handler.command} {handler.path} HTTP/1.1"]
                lines += [f"{name}: {value}" for name, value in handler.headers.items()]
                upstream.sendall("\r\n".join([*lines, "", ""]).encode() + data)
                time.sleep(0.1)
        handler.hang_up()

    return act


def loses_the_answer(handler: Handler) -> None:
    """Let the registry do it, and break the connection instead of saying so."""
    assert isinstance(handler.server.owner, Proxy)
    handler.server.owner.forward(handler, handler.body())
    handler.hang_up()


def answers_half(after: int) -> Callable[[Handler], None]:
    """Break the connection after so many bytes of the registry's answer."""

    def act(handler: Handler) -> None:
        assert isinstance(handler.server.owner, Proxy)
        status, headers, body = handler.server.owner.forward(handler, handler.body())
        handler.answer(status, headers, body[:after])  # its Content-Length promises more
        handler.hang_up()

    return act


def changes_a_byte(handler: Handler) -> None:
    """Answer with what the registry has, one byte of it another."""
    assert isinstance(handler.server.owner, Proxy)
    status, headers, body = handler.server.owner.forward(handler, handler.body())
    handler.answer(status, headers, body[:-1] + bytes([body[-1] ^ 1]))
