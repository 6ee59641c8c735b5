"""A cloud's HTTP interface on loopback: what is common to those that tests imitate."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from typing_extensions import Self


@dataclass(frozen=True)
class Call:
    """What was asked: the path without the query, and the body as JSON has it."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class Refused(Exception):  # noqa: N818 - it is an answer
    """An answer that is no success."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class HttpCloud:
    """A server on loopback; `close` ends it. One call is dealt with at a time.

    Parameters
    ----------
    tls : SSLContext, optional
        For https.

    Attributes
    ----------
    url : str
        Its address.
    asked : list of Call
        The calls so far.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Call] = []
        self._faults: list[tuple[str, Refused | None, bool]] = []
        self._lock = threading.RLock()
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer in one piece: two wait for each other

            def _do(self) -> None:
                cloud._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _do  # noqa: N815 - http.server's names

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(cloud.now() if timestamp is None else timestamp)

            def log_message(self, *rest: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have this process use it, and nothing else, for as long."""
        variables = self.variables()
        with pytest.MonkeyPatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            yield

    def variables(self) -> dict[str, str]:
        """Return the environment in which it is used."""
        raise NotImplementedError

    def now(self) -> float:
        """Return what time it is there, in seconds since 1970."""
        return time.time()

    def answer(self, call: Call) -> tuple[int, Any]:
        """Return a status and a body; or raise Refused."""
        raise NotImplementedError

    def fail(self, calls: str, refused: Refused | None, *, times: int = 1, after: bool = False) -> None:
        """Have the next calls that match fail.

        Parameters
        ----------
        calls : str
            A regular expression of method and path, such as ``"POST /servers$"``.
        refused : Refused or None
            What is answered; None for a connection that breaks.
        times : int
            How many of them.
        after : bool
            Whether what was asked for is done all the same: the answer is lost.
        """
        self._faults += [(calls, refused, after)] * times

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        content = handler.rfile.read(length)
        parts = urlsplit(handler.path)
        call = Call(
            handler.command,
            parts.path,
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            json.loads(content) if content[:1] in (b"{", b"[") else content.decode(),
            {key.lower(): value for key, value in handler.headers.items()},
        )
        with self._lock:
            self.asked.append(call)
            said = f"{call.method} {call.path}"
            fault = next((one for one in self._faults if re.search(one[0], said)), None)
            try:
                if fault is not None:
                    self._faults.remove(fault)
                    if fault[2]:
                        self.answer(call)
                    if fault[1] is None:
                        handler.close_connection = True
                        return
                    raise fault[1]
                status, body = self.answer(call)
            except Refused as error:
                status, body = error.status, error.body
        text = body if isinstance(body, str) else json.dumps(body)
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        for key, value in self.more_headers(call, status).items():
            handler.send_header(key, value)
        data = b"" if status == 204 else text.encode()
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def more_headers(self, call: Call, status: int) -> dict[str, str]:
        """Return headers that the answer has beside the usual ones."""
        return {}
