"""What clouds tell machines about their end: asked for as each has it, told once."""

from __future__ import annotations

import http.server
import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from envsync.agent.notices import Notices

DAY = 86400.0
AHEAD = time.gmtime(time.time() + DAY)


class Service(http.server.ThreadingHTTPServer):
    """A metadata service: pages by method, path and a header that has to be there."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, str, str, str], str] = {}
        self.asked = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = next(
                    (
                        text
                        for (method, path, header, value), text in service.pages.items()
                        if (method, path) == (self.command, self.path) and self.headers.get(header) == value
                    ),
                    None,
                )
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write((body or "").encode())
                service.asked.set()

            do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


AMAZON = {
    ("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "300"): "a-token",
    ("GET", "/latest/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", "a-token"): json.dumps(
        {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", AHEAD)}
    ),
}
GOOGLE = {("GET", "/computeMetadata/v1/instance/preempted", "Metadata-Flavor", "Google"): "TRUE"}
NAME = ("GET", "/metadata/instance/compute/name?api-version=2021-02-01&format=text", "Metadata", "true")
EVENTS = ("GET", "/metadata/scheduledevents?api-version=2020-07-01", "Metadata", "true")


def events(*names: str) -> str:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", AHEAD)
    event = {"EventType": "Preempt", "Resources": list(names), "NotBefore": at}
    return json.dumps({"Events": [{"EventType": "Freeze", "Resources": ["me"], "NotBefore": at}, event]})


@pytest.mark.parametrize(
    ("cloud", "quiet", "taken", "seconds"),
    [
        ("ec2", {}, AMAZON, DAY),
        ("gce", {next(iter(GOOGLE)): "FALSE"}, GOOGLE, 30),
        ("azure", {NAME: "me", EVENTS: events("another")}, {EVENTS: events("another", "me")}, DAY),
    ],
)
def test_a_machine_hears_once_that_it_is_taken_back(
    service: Service, cloud: str, quiet: dict[Any, str], taken: dict[Any, str], seconds: float
) -> None:
    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    service.pages.update(quiet)
    watch = Notices(cloud, heard.put, f"http://127.0.0.1:{service.server_port}", every=0.02)
    try:
        for _ in range(4):  # questions
            service.asked.clear()
            assert service.asked.wait(60)
        assert heard.empty()
        service.pages.update(taken)
        said = heard.get(timeout=60)
        assert said["event"] == "notice"
        assert "takes this spot machine back" in said["text"]
        assert seconds * 0.9 < said["seconds"] <= seconds
        assert heard.empty()
    finally:
        watch.close()
