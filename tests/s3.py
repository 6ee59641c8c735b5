"""A real S3 protocol server on loopback: moto's, in a process of its own."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

SECRET = "c4n4ry-of-the-s3-tests-0123456789abcdef"  # nowhere else: logs and records are searched for it
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "AKIATESTSTESTSTESTS0",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # nobody but this server is asked for anything
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclass
class S3:
    """A running server.

    Attributes
    ----------
    url : str
        Its endpoint.
    """

    url: str

    def bucket(self, name: str) -> str:
        """Make a bucket, empty if it is there, and return its URL for fsspec."""
        self.client().mkdirs(name, exist_ok=True)
        return f"s3://{name}"

    def client(self) -> Any:
        """Return s3fs, for looking at what is there without envsync."""
        import s3fs

        return s3fs.S3FileSystem(
            key=VARIABLES["AWS_ACCESS_KEY_ID"],
            secret=SECRET,
            endpoint_url=self.url,
            skip_instance_cache=True,
            use_listings_cache=False,
        )


def start(folder: Path, **environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server; return its process and its endpoint."""
    port = free_port()
    with (folder / "moto.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while not answers(url):
        if process.poll() is not None or time.monotonic() > until:
            end(process)
            raise RuntimeError((folder / "moto.log").read_text())
        time.sleep(0.1)
    return process, url


def answers(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    process, url = start(tmp_path_factory.mktemp("moto"))
    try:
        yield S3(url)
    finally:
        end(process)


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, and an environment in which it is found where everybody looks for S3."""
    for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    return s3_server


class Between:
    """A proxy in front of the server, that can answer in its place, break off, or wait.

    Parameters
    ----------
    server : str
        The endpoint behind it.
    fault : callable, optional
        Asked for each request with its method, path (and query), and how often the same was asked for before;
        returns a status to answer with, ``"cut"`` to break off in the middle of the answer, ``"hang"`` to
        wait until the end, or None to pass the request on.
    address : str
        Where it listens.
    tls : (path, path), optional
        The certificate and the key with which it speaks TLS.

    Attributes
    ----------
    requests : list of (method, path)
        What was asked for.
    ranges : list of str
        The parts that were asked for.
    """

    def __init__(
        self,
        server: str,
        fault: Callable[[str, str, int], int | str | None] | None = None,
        *,
        address: str = "127.0.0.1",
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.scheme = "https" if tls else "http"
        self.fault = fault or (lambda *_: None)
        self.released = threading.Event()
        outer, guard = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                with guard:
                    before = outer.requests.count((self.command, self.path))
                    outer.requests.append((self.command, self.path))
                    outer.ranges += [self.headers["Range"]] if "Range" in self.headers else []
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:  # whoever sent it was killed
                    self.close_connection = True
                    return
                fault = outer.fault(self.command, self.path, before)
                if fault == "hang":
                    outer.released.wait()
                    self.close_connection = True
                    return
                if isinstance(fault, int):
                    self.send_response(fault)
                    code = "AccessDenied" if fault == 403 else "SlowDown"
                    text = f"<Error><Code>{code}</Code><Message>{code}.</Message></Error>".encode()
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                self.passed_on(body, cut=fault == "cut")

            def passed_on(self, body: bytes, *, cut: bool) -> None:
                headers = {key: value for key, value in self.headers.items() if key != "Connection"}
                with httpx.Client(trust_env=False, timeout=60) as client:
                    answer = client.request(self.command, server + self.path, content=body, headers=headers)
                self.send_response(answer.status_code)
                for key, value in answer.headers.items():
                    if key.lower() not in ("transfer-encoding", "connection", "content-encoding"):
                        self.send_header(key, value)
                if "content-length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.content[: len(answer.content) // 2] if cut else answer.content)
                if cut:
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - as they are called there

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.server.server_address[0]!s}:{self.server.server_port}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
