"""Something answers that is no cloud: a proxy, or a network that wants a login first."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials

from envsync.errors import CloudError
from envsync.runner.clouds import open_account


class Portal(BaseHTTPRequestHandler):
    """What a hotel's network answers, whatever it is asked."""

    status = 200

    def _do(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = b"<html><title>Welcome! Your room number, please</title></html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_GET = do_POST = _do  # noqa: N815 - http.server's names

    def log_message(self, *rest: Any) -> None:
        pass


def test_a_network_that_wants_a_login_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
            "GCE_METADATA_HOST": "127.0.0.1:9", "HCLOUD_ENDPOINT": f"{url}/v1", "HCLOUD_TOKEN": "x",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "mine"))
        try:
            for kind, status, said in (
                ("ec2", 200, "what answers is not EC2"),
                ("ec2", 403, "what answers is not EC2: it says HTTP 403"),
                ("gce", 200, "what answers is not Google"),
                ("hetzner", 200, "Hetzner refused"),
            ):
                monkeypatch.setattr(Portal, "status", status)
                with pytest.raises(CloudError, match=said) as told:
                    open_account(kind, {}, ["here"]).found("here")
                assert told.value.hint
        finally:
            server.shutdown()
