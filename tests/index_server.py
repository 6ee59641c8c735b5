"""A package index on loopback: PEP 503 pages over a folder of wheels, with or without a password."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
    body: str = "",
    payload: bytes = b"",
) -> Path:
    """Write a small wheel that any installer takes, `payload` as a file of its package."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    texts = {
        f"{module}/__init__.py": body or f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        + "".join(
            f"Tag: {'-'.join([*tag.split('-')[:2], platform])}\n" for platform in tag.split("-")[2].split(".")
        ),
    }
    files = {path: text.encode() for path, text in texts.items()}
    if payload:
        files[f"{module}/payload.bin"] = payload
    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return wheel


class IndexServer:
    """Serves the wheels of a folder at ``/simple/`` and ``/files/``.

    Parameters
    ----------
    folder : Path
        Of wheels.
    username, password : str
        What it asks for; nothing if empty.
    """

    def __init__(self, folder: Path, *, username: str = "", password: str = "") -> None:
        self.folder = folder
        self.requests: list[tuple[str, int]] = []
        wanted = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                status, kind, body = outer._answer(self.path)
                if password and self.headers.get("Authorization") != wanted:
                    status, kind, body = 401, "text/plain", b"no"
                outer.requests.append((self.path, status))
                self.send_response(status)
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="index"')
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/simple"

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        parts = path.strip("/").split("/")
        wheels = sorted(self.folder.glob("*.whl"))
        if parts[0] == "files" and len(parts) == 2 and (self.folder / parts[1]).is_file():
            return 200, "application/octet-stream", (self.folder / parts[1]).read_bytes()
        if parts[0] == "simple" and len(parts) == 2:
            digests = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in wheels}
            links = [
                f'<a href="../../files/{name}#sha256={digest}">{name}</a>'
                for name, digest in digests.items()
                if name.split("-")[0].replace("_", "-").lower() == parts[1]
            ]
            if links:
                return (
                    200,
                    "text/html",
                    f"<!DOCTYPE html><html><body>{'<br>'.join(links)}</body></html>".encode(),
                )
        return 404, "text/plain", b"not here"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
