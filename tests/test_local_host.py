"""This machine as a host, where it differs from others; the rest is in contracts/test_host.py."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from envsync.errors import CommandError, HostError
from envsync.runner.hosts import Local, parse_host
from envsync.runner.hosts.base import _put_script


async def test_commands_are_out_of_reach_of_the_terminals_signals() -> None:
    done = await Local().run("ps -o pgid= -p $$; ps -o sid= -p $$")
    group, session = map(int, done.stdout.split())
    assert group != os.getpgrp()
    assert session != os.getsid(0)


async def test_what_a_finished_command_leaves_behind_is_left_alone(tmp_path: Path) -> None:
    await Local().run(f"(sleep 0.3; echo done > {tmp_path}/later) > /dev/null 2>&1 &")
    deadline = time.monotonic() + 60
    while not (later := tmp_path / "later").exists() or later.read_text() != "done\n":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_ports_of_this_machine_need_no_tunnel() -> None:
    assert await Local().forward("127.0.0.1", 8786) == 8786


def test_a_file_is_for_nobody_else_while_it_is_written_and_gone_when_that_stops(tmp_path: Path) -> None:
    script = _put_script(str(tmp_path / "secret"), str(tmp_path / ".part"), 10, 0o644)
    writer = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdin is not None
    writer.stdin.write(b"12345")
    writer.stdin.flush()
    deadline = time.monotonic() + 60
    while not (parts := list(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [stat.S_IMODE(part.stat().st_mode) for part in parts] == [0o600]
    writer.stdin.close()
    assert writer.wait() != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["local", "local://"])
def test_local_is_this_machine(text: str) -> None:
    assert isinstance(parse_host(text), Local)


NO_ADDRESSES = [
    "ssh://",
    "node:",
    "node:0",
    "node:99999",
    "node:x",
    "@node",
    "user@",
    "node;id",
    "[::1",
    "-l@node",
    "ssh://-x@node",
    "ssh://node/path",
    "tcp://node:1",
    "-oProxyCommand=x",
]


@pytest.mark.parametrize("text", ["", "a b", *NO_ADDRESSES])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="not the address of a host"):
        parse_host(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(HostError, match="has a password in it") as caught:
        parse_host("ssh://ada:hunter2@node")
    assert "hunter2" not in str(caught.value)


async def test_cancelling_is_not_swallowed() -> None:
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        await asyncio.wait_for(Local().run("sleep 100"), 0.2)
    with pytest.raises(CommandError):
        await Local().run("sleep 100", timeout=0.1)
