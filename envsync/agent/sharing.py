"""Blobs of this host for other hosts of the same cluster, by HTTPS: see `fetching`, which takes them.

A request's path is a secret of the cluster and a blob's digest. Nothing else is answered, nothing is listed.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .layout import Cache
from .supervise import MARKER

__all__ = ["share"]

_PIECE = 1 << 18
_SILENCE = 60.0  # seconds that the other side may take for one step
_PATH = re.compile(r"/([0-9a-f]{32,128})/([0-9a-f]{64})\Z")
_RANGE = re.compile(r"bytes=(\d+)-\Z")


def share(path: str) -> int:
    """Serve until standard input ends. Says (lines for `Remote.said`) ``port`` first, then nothing.

    Parameters
    ----------
    path : str
        A JSON file: ``cache``, ``bind`` (empty for all addresses), ``token``, and ``cert`` and ``key`` (PEM
        files beside it).
    """
    file = Path(path).resolve()
    settings = json.loads(file.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(file.parent / settings["cert"], file.parent / settings["key"])
    try:
        server = _Server(settings, context)
    except OSError as error:
        _say(error=error.strerror or str(error))
        return 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _say(port=server.server_address[1])
    while os.read(0, 1 << 16):
        pass
    return 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Any, context: ssl.SSLContext) -> None:
        self.cache = Cache(Path(settings["cache"]))
        self.token: str = settings["token"]
        self.context = context
        bind = str(settings["bind"])
        if (not bind and socket.has_ipv6 and _ipv6()) or ":" in bind:
            self.address_family = socket.AF_INET6
        super().__init__((bind, 0), _Handler)

    def server_bind(self) -> None:
        """Listen for both families; a name that `HTTPServer` would look up is not asked for."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS in the request's own thread: whoever is slow there holds up nobody."""
        request.settimeout(_SILENCE)
        with self.context.wrap_socket(request, server_side=True) as secured:
            _Handler(secured, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: others may connect and go as they like."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENCE

    def do_GET(self) -> None:
        """Give a blob, or the rest of one."""
        asked = _PATH.match(self.path)
        if asked is None or not hmac.compare_digest(asked[1], self.server.token):
            self.send_error(403)
            return
        try:
            blob = self.server.cache.blob(asked[2]).open("rb")
        except OSError:
            self.send_error(404)
            return
        with blob:
            size = os.fstat(blob.fileno()).st_size
            found = _RANGE.match(self.headers.get("Range") or "")
            start = min(int(found[1]), size) if found else 0
            if found and start >= size:
                self.send_error(416)
                return
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            blob.seek(start)
            while True:
                data = blob.read(_PIECE)
                if not data:
                    break
                self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing: an address is a secret."""


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("", 0))
    except OSError:
        return False
    return True


def _say(**what: Any) -> None:
    sys.stdout.buffer.write(MARKER + json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()
