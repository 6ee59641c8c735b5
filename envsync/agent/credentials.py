"""The client's short-lived credentials, for the SDKs in processes of this host: asked for on loopback.

Each SDK asks there again before those that it has expire, so what the client sends later reaches sessions
that are open. They are in this process's memory alone, and end with it.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any, Mapping

from .metadata import Metadata

if TYPE_CHECKING:
    from email.message import Message
    from typing import Protocol

    class Service(Protocol):
        """What gives credentials out as a cloud's SDKs expect it."""

        headers: Mapping[str, str]

        def put(self, values: Mapping[str, Any]) -> None:
            """Give these out from now on."""

        def answer(
            self, path: str, headers: Message, peer: tuple[str, int], here: tuple[str, int]
        ) -> tuple[int, str, bytes]:
            """Return HTTP's status, the kind of content and the content for a request."""


__all__ = ["PATH", "ContainerCredentials", "Endpoint", "service_of"]

PATH = "/credentials"

_PATIENCE = 5.0  # seconds that somebody may take over a request
_JSON = "application/json"


class Endpoint:
    """Answers on loopback, where everybody on the host can connect: the service looks who it is.

    Parameters
    ----------
    service : Service
        What answers.
    """

    def __init__(self, service: Service) -> None:
        self.put = service.put

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE

            def do_GET(self) -> None:
                here = self.connection.getsockname()
                status, kind, body = service.answer(self.path, self.headers, self.client_address, here)
                self.send_response_only(status)  # neither date nor version: it says nothing of this host
                more = {"Content-Type": kind, "Cache-Control": "no-store", "Content-Length": str(len(body))}
                for name, value in {**service.headers, **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)  # http.server's asks DNS for its name
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.5,), daemon=True).start()


class ContainerCredentials:
    """What AWS calls container credentials: for whoever shows the token.

    Parameters
    ----------
    token : str
        What ``Authorization`` has to say.
    """

    headers: Mapping[str, str] = {}

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._body = b""

    def put(self, values: Mapping[str, Any]) -> None:
        """Give these out from now on."""
        self._body = json.dumps(dict(values)).encode()

    def answer(
        self,
        path: str,
        headers: Message,
        peer: tuple[str, int],  # noqa: ARG002 - the token says who it is
        here: tuple[str, int],  # noqa: ARG002
    ) -> tuple[int, str, bytes]:
        """Return HTTP's status, the kind of content and the content for a request."""
        token = headers.get("Authorization", "")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return 403, _JSON, b'{"message": "not without this cluster\'s token"}'
        if path != PATH:
            return 404, _JSON, b'{"message": "there are credentials at ' + PATH.encode() + b' alone"}'
        return 200, _JSON, self._body


def service_of(request: Mapping[str, Any]) -> Service:
    """Return what answers as the cloud does that a client names."""
    made: dict[str, Any] = {"aws": lambda: ContainerCredentials(request["token"]), "google": Metadata}
    service: Service = made[request["cloud"]]()
    return service
