"""A carrier as a job runs one, and the relay between it and its client, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envsync.agent.archive import build
from envsync.agent.supervise import MARKER
from envsync.runner.hosts.carried import CarriedHost
from envsync.runner.tls import Authority, Credentials


@dataclass
class Called:
    """A carrier that has called back, and what was heard of it."""

    host: CarriedHost
    process: subprocess.Popen[bytes]
    folder: Path
    noticed: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def last_words(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "job 1.said").read_text())
        return found


def agent(folder: Path) -> Path:
    """Write the agent's archive into a folder."""
    path = folder / "agent.pyz"
    if not path.exists():
        path.write_bytes(build()[0])
    return path


class Relay:
    """A relay as it runs on a login host."""

    def __init__(self, folder: Path) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": 0,
            "addresses": [],
            "carrier": {},
            "settings": "carrier.json",
        }
        (folder / "relay.json").write_text(json.dumps(settings))
        argv = [sys.executable, "-I", "-S", str(agent(folder)), "relay", str(folder / "relay.json")]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.said = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline()[len(MARKER) :])
        return heard

    def claim(self, key: str) -> socket.socket:
        """Return a connection to the carrier that arrived with a key."""
        sock = socket.create_connection(("127.0.0.1", self.said["inner"]))
        sock.sendall(key.encode() + b"\n")
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


def start_carrier(
    folder: Path, port: int, credentials: Credentials, *, name: str = "job 1", **settings: Any
) -> subprocess.Popen[bytes]:
    """Start a carrier that calls a port of loopback."""
    for path, data in credentials.files().items():
        (folder / path).write_bytes(data)
        (folder / path).chmod(0o600)
    known = {
        "ways": [["127.0.0.1", port]],
        **Credentials.config(),
        "grace": 5,
        "notice": 0.5,
        "variables": ["CUDA_VISIBLE_DEVICES"],
    }
    (folder / "settings.json").write_text(json.dumps({**known, **settings}))
    argv = [sys.executable, "-I", "-S", str(agent(folder)), "carry", str(folder / "settings.json"), name]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL)


@contextlib.asynccontextmanager
async def called_back(folder: Path, authority: Authority | None = None) -> AsyncIterator[Called]:
    """Start a relay and a carrier; end both."""
    authority = authority or Authority("test")
    relay = await asyncio.to_thread(Relay, folder)
    process = start_carrier(folder, relay.said["port"], authority.issue("worker"))
    noticed: list[int] = []
    lost: list[str] = []
    try:
        arrived = await asyncio.wait_for(asyncio.to_thread(relay.hear), 20)
        host = CarriedHost(arrived["arrived"], noticed=noticed.append, lost=lost.append)
        await host.take(relay.claim(arrived["key"]), authority.issue("client").client_context())
        async with host:
            yield Called(host, process, folder, noticed, lost)
        await asyncio.to_thread(process.wait, 20)
    finally:
        process.kill()
        process.wait()
        relay.close()
