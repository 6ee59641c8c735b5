"""The client's short-lived credentials, for the SDKs in processes of this host: asked for on loopback.

It is what AWS calls container credentials: each SDK asks there again before those that it has expire, so
what the client sends later reaches sessions that are open. They are in this process's memory alone, and end
with it.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Mapping

__all__ = ["PATH", "Endpoint"]

PATH = "/credentials"

_PATIENCE = 5.0  # seconds that somebody may take over a request


class Endpoint:
    """Answers on loopback whoever has the token; everybody on the host can connect.

    Parameters
    ----------
    token : str
        What ``Authorization`` has to say.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._body = b""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE

            def do_GET(self) -> None:
                status, body = endpoint.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response_only(status)  # neither date nor version: it says nothing of this host
                self.send_header("Content-Type", "application/json")
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.5,), daemon=True).start()

    def put(self, values: Mapping[str, Any]) -> None:
        """Give these out from now on."""
        self._body = json.dumps(dict(values)).encode()

    def answer(self, path: str, token: str) -> tuple[int, bytes]:
        """Return HTTP's status and the body for a request."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return 403, b'{"message": "not without this cluster\'s token"}'
        if path != PATH:
            return 404, b'{"message": "there are credentials at ' + PATH.encode() + b' alone"}'
        return 200, self._body
