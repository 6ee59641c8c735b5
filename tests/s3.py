"""A real S3 protocol server on loopback: moto's, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
