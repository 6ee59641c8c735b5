"""The carrier of a job: how it ends, what it leaves behind, and whom it lets in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from envsync.agent.carrier import LOST, NO_WAY
from envsync.errors import ConnectError
from envsync.runner.hosts.carried import CarriedHost
from envsync.runner.tls import Authority
from tests.carriers import Relay, called_back, start_carrier


def running(text: str) -> list[int]:
    """The processes whose command line has a text in it."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


async def gone(text: str, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while running(text) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    return not running(text)


async def test_it_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    monkeypatch.setenv("NOT_ASKED_FOR", "secret")
    async with called_back(tmp_path) as called:
        assert called.host.hello["pid"] == called.process.pid
        assert called.host.hello["host"] == socket.gethostname()
        assert called.host.hello["variables"] == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    assert called.last_words()["code"] == called.process.returncode == 0


@pytest.mark.slow
async def test_a_signal_to_the_job_is_told_before_all_ends(tmp_path: Path) -> None:
    mark = f"1000.{time.monotonic_ns()}"
    async with called_back(tmp_path) as called:
        # what leaves its group and its parents is found, too
        await called.host.run(f"setsid sh -c 'sleep {mark} & sleep {mark}' > /dev/null 2>&1 &")
        channel = await called.host.start(f"sleep {mark}")
        while len(running(mark)) < 3:
            await asyncio.sleep(0.02)
        called.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(channel.wait(), 60) == -signal.SIGTERM
        assert await gone(mark)
        assert await asyncio.to_thread(called.process.wait, 60) == 128 + signal.SIGTERM
    assert called.noticed == [signal.SIGTERM]
    assert called.last_words()["why"] == "the job was sent SIGTERM"


async def test_when_the_client_has_gone_everything_ends(tmp_path: Path) -> None:
    mark = f"1000.{time.monotonic_ns()}"
    async with called_back(tmp_path) as called:
        await called.host.start(f"sleep {mark} & sleep {mark}")
        while len(running(mark)) < 2:
            await asyncio.sleep(0.02)
        assert called.host._link is not None
        called.host._link.abort("as if it were killed")
        assert await gone(mark)
        assert await asyncio.to_thread(called.process.wait, 60) == LOST
    assert "connection was lost" in called.last_words()["why"]


async def test_a_killed_carrier_is_noticed_and_its_commands_die(tmp_path: Path) -> None:
    mark = f"1000.{time.monotonic_ns()}"
    async with called_back(tmp_path) as called:
        channel = await called.host.start(f"exec sleep {mark}")
        while not running(mark):
            await asyncio.sleep(0.02)
        called.process.kill()
        with pytest.raises(ConnectError, match="lost"):
            await asyncio.wait_for(channel.wait(), 60)
        assert await gone(mark)
        with pytest.raises(ConnectError, match="closed"):
            await called.host.run("true")
    assert len(called.lost) == 1


async def test_a_carrier_that_reaches_nobody_ends_and_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        credentials = Authority("test").issue("worker")
        process = start_carrier(tmp_path, taken.getsockname()[1], credentials, grace=0.5)
        assert await asyncio.to_thread(process.wait, 20) == NO_WAY
    assert "127.0.0.1" in (tmp_path / "job 1.said").read_text()


async def test_another_cluster_is_not_let_in_on_either_side(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    relay = await asyncio.to_thread(Relay, tmp_path)
    try:
        process = start_carrier(tmp_path, relay.said["port"], ours.issue("worker"), grace=10)
        arrived = await asyncio.wait_for(asyncio.to_thread(relay.hear), 60)
        # a client that trusts another authority
        with pytest.raises(ConnectError, match="no carrier of this cluster"):
            await CarriedHost("job").take(
                relay.claim(arrived["key"]), theirs.issue("client").client_context()
            )
        arrived = await asyncio.wait_for(asyncio.to_thread(relay.hear), 60)  # it calls again
        # one that trusts this one, but shows another's certificate
        context = theirs.issue("client").client_context()
        context.load_verify_locations(cadata=ours.certificate)
        with pytest.raises(ConnectError, match="no carrier of this cluster"):
            await CarriedHost("job").take(relay.claim(arrived["key"]), context)
        process.kill()
        process.wait()
    finally:
        relay.close()


async def test_a_try_that_comes_to_nothing_is_not_the_loss_of_the_next() -> None:
    """A carrier that is answered in the moment in which it gives up: both have shown their certificates."""
    authority, lost = Authority("test"), list[str]()

    def gives_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = authority.issue("worker").server_context()
    async with await asyncio.start_server(gives_up, "127.0.0.1", 0, ssl=context) as server:
        sock = socket.create_connection(server.sockets[0].getsockname())
        sock.setblocking(False)
        host = CarriedHost("job", lost=lost.append)
        with pytest.raises(ConnectError, match="no carrier of this cluster: job: the other side closed it"):
            await host.take(sock, authority.issue("client").client_context())
    assert lost == []


async def test_nobody_disturbs_a_relay(tmp_path: Path) -> None:
    authority = Authority("test")
    relay = await asyncio.to_thread(Relay, tmp_path)
    try:
        for junk in (b"", b"\n", b"GET / HTTP/1.1\r\n", b"[]\n", b"x" * 200_000, b'{"carrier": 1'):
            for port in (relay.said["port"], relay.said["inner"]):
                with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
                    sock.sendall(junk)
        process = start_carrier(tmp_path, relay.said["port"], authority.issue("worker"))
        arrived = await asyncio.wait_for(asyncio.to_thread(relay.hear), 60)
        assert arrived["arrived"] == "job 1"
        host = CarriedHost("job")
        await host.take(relay.claim(arrived["key"]), authority.issue("client").client_context())
        assert (await host.run("echo here")).stdout == b"here\n"
        await host.close()
        assert await asyncio.to_thread(process.wait, 10) == 0
    finally:
        relay.close()
