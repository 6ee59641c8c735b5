"""The agent on real SSH machines: bare ones, lost ones, and ones whose client is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from envsync.artifacts import Artifact
from envsync.errors import AgentError, UnfitHostError
from envsync.indexes import read_settings
from envsync.lock import Lock
from envsync.runner.hosts.base import parse_host
from envsync.runner.hosts.options import SSHOptions
from envsync.runner.session import Session
from envsync.store import default_store
from envsync.supply import Supply
from envsync.target import Target
from tests.index_server import write_wheel
from tests.lab.machines import Lab, Machine, Process
from tests.small import lock_of

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Open = Callable[..., Coroutine[Any, Any, Session]]
Machines = Callable[..., Machine]


@pytest.fixture
async def opens(lab: Lab, machine: Machines) -> AsyncIterator[Open]:  # sessions end before machines
    # The interpreter and the static uv are the same in every test: the real cache keeps them.
    async with AsyncExitStack() as stack:

        async def open_it(at: Machine, *, grace: float = 10.0, cache: str | None = None) -> Session:
            host = await stack.enter_async_context(
                parse_host(at.name, SSHOptions(config=(lab.config,), identities=(lab.key,)))
            )
            supply = Supply(default_store(), read_settings())
            return await stack.enter_async_context(
                await Session.open(host, supply=supply, grace=grace, cache=cache)
            )

        yield open_it


async def test_nothing_there_but_a_shell(opens: Open, machine: Machines, tmp_path: Path) -> None:
    bare = machine("bare")
    session = await opens(bare)
    assert session.cache == "/root/.cache/envsync"
    assert session.python.startswith("/root/.cache/envsync/pythons/")
    assert session.facts["hostname"] == bare.name
    assert bare.address in session.facts["addresses"]
    wheel = write_wheel(tmp_path, "alpha", "1.0", body="VALUE = 'alpha'\n")
    artifact = Artifact(
        name="alpha",
        version="1.0",
        filename=wheel.name,
        sha256=session.supply.store.put(wheel),
        path=f"envsync-wheels/{wheel.name}",
    )
    target = Target.from_probe(session.facts, python=Target.current().python)
    lock = Lock.of([artifact], target)
    made = await session.realise(lock)
    assert made.created
    assert made.report["interpreter"]["version"] == target.python
    remote = await session.spawn(
        "w", [made.python, "-c", "import alpha, sys; print(alpha.VALUE, sys.prefix)"], cluster="c"
    )
    assert await remote.wait() == 0
    assert remote.tail() == (f"alpha {made.prefix}",)
    again = await opens(bare)
    found = await again.realise(lock)
    assert not found.created
    assert found.report == made.report


NO_CXX = "rm /usr/lib/*-linux-gnu/libstdc++.so.6* /usr/lib/*-linux-gnu/libgcc_s.so.1; ldconfig"
LOADED = """
import numpy, os
numpy.linalg.inv(numpy.eye(3))
lines = open("/proc/self/maps").read().split()
print(*sorted({os.path.dirname(word) for word in lines if "/libstdc++.so" in word}))
"""


@pytest.mark.parametrize("lacks", [True, False])
async def test_libraries_that_every_wheel_expects(
    opens: Open, machine: Machines, tmp_path: Path, lacks: bool
) -> None:
    """numpy needs libstdc++: the host's own, and the one that came with the interpreter where it has none."""
    bare = machine("bare")
    if lacks:
        bare.exec("sh", "-c", NO_CXX)
    session = await opens(bare)
    lock = Lock.read(lock_of(tmp_path, ["numpy==2.2.6"]))
    made = await session.realise(lock)
    remote = await session.spawn("w", [made.python, "-c", LOADED], cluster="c")
    assert await remote.wait() == 0, remote.tail()
    (place,) = remote.tail()[0].split()
    assert place.startswith("/root/.cache/envsync/pythons/") == lacks
    assert place.startswith("/usr/lib") != lacks
    assert (await (await opens(bare)).realise(lock)).report == made.report


async def test_the_hosts_own_python_is_used(opens: Open, machine: Machines) -> None:
    session = await opens(machine("python"))
    assert session.python == "/usr/bin/python3"


async def test_a_user_with_another_shell_and_no_home(lab: Lab, opens: Open, machine: Machines) -> None:
    host = machine("python")
    host.exec("rm", "-rf", "/root/.cache")
    host.exec("sh", "-c", "mkdir /root/.cache && mount -t tmpfs -o ro none /root/.cache")
    with pytest.raises(UnfitHostError, match="Read-only file system") as caught:
        await opens(host)
    assert host.name in str(caught.value)
    session = await opens(host, cache="/var/tmp/envsync")
    assert session.cache == "/var/tmp/envsync"


CLIENT = """
import asyncio, sys
from pathlib import Path
from envsync.indexes import IndexSettings
from envsync.runner.hosts.base import parse_host
from envsync.runner.hosts.options import SSHOptions
from envsync.runner.session import Session
from envsync.store import default_store
from envsync.supply import Supply

async def main(config, key, *names):
    options = SSHOptions(config=(Path(config),), identities=(Path(key),))
    for name in names:
        session = await Session.open(
            parse_host(name, options), supply=Supply(default_store(), IndexSettings()), grace=6.0
        )
        for number in range(3):
            command = "trap '' TERM; sleep 300 & wait; sleep 300"
            await session.spawn(f"w{number}", ["sh", "-c", command], cluster="c")
    print("up", flush=True)
    await asyncio.sleep(300)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_client_killed_no_survivors_on_three_hosts(lab: Lab, machine: Machines) -> None:
    hosts = [machine("python") for _ in range(3)]
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, lab.config, lab.key, *(host.name for host in hosts)],
        stdout=subprocess.PIPE,
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        assert all(len(host.processes()) >= 4 for host in hosts)
        os.kill(client.pid, signal.SIGKILL)
        assert await no_processes(hosts, 60) == []
    finally:
        client.kill()
        client.wait()


async def test_the_cable_pulled_out(opens: Open, machine: Machines) -> None:
    host = machine("python")
    session = await opens(host, grace=4.0)
    remote = await session.spawn("w", ["sleep", "300"], cluster="c")
    host.cut()
    assert await no_processes([host], 60) == []
    with pytest.raises(Exception, match=host.name):
        await asyncio.wait_for(remote.wait(), 60)
    assert isinstance(session.ended, AgentError)


async def test_the_machine_gone(opens: Open, machine: Machines) -> None:
    host = machine("python")
    session = await opens(host)
    remote = await session.spawn("w", ["sleep", "300"], cluster="c")
    host.kill()
    with pytest.raises(AgentError, match=host.name):
        await asyncio.wait_for(remote.wait(), 30)
    with pytest.raises(AgentError):
        await session.request("probe")


async def no_processes(hosts: list[Machine], seconds: float) -> list[Process]:
    until = time.monotonic() + seconds
    while (left := [process for host in hosts for process in host.processes()]) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return left
