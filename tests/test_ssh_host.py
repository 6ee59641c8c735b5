"""SSH as users have it: their configuration, keys and agent, hosts that are wrong, full, strict or gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from envsync.errors import AuthenticationError, ConnectError, HostError, HostKeyError
from envsync.runner.hosts import Host, SSHOptions, parse_host
from envsync.runner.hosts.ssh import SSHHost, shell_line
from tests.lab.machines import Lab, Machine

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Machine]:
    with lab.host("bare") as machine:
        yield machine


@pytest.fixture
def home(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in its .ssh, no agent."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def config(home: Path, machine: Machine, *lines: str, known: str | None = "") -> None:
    """Write an ssh configuration for a machine called ``node``, and what is known of its key."""
    base = ["Host node", f"HostName {machine.address}", "User root"]
    (home / ".ssh/config").write_text("\n".join([*base, *lines]) + "\n")
    if known is not None:
        key = " ".join(machine.host_key.split()[:2])
        (home / ".ssh/known_hosts").write_text(known or f"{machine.address} {key}\n")


def give_key(lab: Lab, home: Path, name: str = "id_ed25519") -> Path:
    shutil.copy(lab.key, home / ".ssh" / name)
    return home / ".ssh" / name


def new_key(path: Path, passphrase: str | None = None) -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key("ssh-ed25519")
    path.touch(mode=0o600)
    path.write_bytes(key.export_private_key(passphrase=passphrase))
    return key


def quick(**keywords: object) -> SSHOptions:
    return SSHOptions(**{"connect_timeout": 8.0, "attempts": 2, **keywords})  # type: ignore[arg-type]


async def hello(name: str = "node", options: SSHOptions | None = None) -> str:
    async with parse_host(name, options or quick()) as host:
        return (await host.run("echo $(id -un)@$(hostname)")).stdout.decode().strip()


# -- as the user's own ssh


async def test_the_users_configuration_and_default_key_are_enough(
    lab: Lab, home: Path, bare: Machine
) -> None:
    config(home, bare)
    give_key(lab, home)
    assert await hello("node") == f"root@{bare.name}"
    assert await hello("ssh://node") == f"root@{bare.name}"


async def test_the_address_goes_before_the_configuration(lab: Lab, home: Path, bare: Machine) -> None:
    bare.add_user("ada")
    config(home, bare, "Port 2")
    give_key(lab, home)
    assert await hello("ada@node:22") == f"ada@{bare.name}"
    assert await hello("ssh://node:22", quick(username="ada")) == f"ada@{bare.name}"


async def test_hashed_names_and_ports_in_known_hosts(
    lab: Lab, home: Path, machine: Callable[..., Machine]
) -> None:
    node = machine("bare", sshd={"Port": "22\nPort 2222"})
    config(home, node, "Port 2222")
    known = home / ".ssh/known_hosts"
    key = " ".join(node.host_key.split()[:2])
    known.write_text(f"[{node.address}]:2222 {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    known.write_text(f"this line is no good\n{known.read_text()}")
    assert node.address not in known.read_text()
    give_key(lab, home)
    assert await hello() == f"root@{node.name}"


async def test_a_key_that_the_configuration_names_and_one_it_names_in_vain(
    lab: Lab, home: Path, bare: Machine
) -> None:
    give_key(lab, home, "work key")
    config(home, bare, "IdentityFile ~/.ssh/none", 'IdentityFile "~/.ssh/work key"')
    assert await hello() == f"root@{bare.name}"


async def test_a_key_in_the_agent(lab: Lab, home: Path, bare: Machine, agent: Callable[..., None]) -> None:
    config(home, bare)
    agent(lab.key)
    assert await hello() == f"root@{bare.name}"


async def test_identities_only_picks_from_the_agent_by_the_public_half(
    lab: Lab, home: Path, bare: Machine, agent: Callable[..., None]
) -> None:
    others = [home / f"other{n}" for n in range(7)]  # sshd hangs up after six
    for other in others:
        new_key(other)
    agent(*others, lab.key)
    config(home, bare)
    with pytest.raises(AuthenticationError, match="8 keys of the ssh agent") as caught:
        await hello()
    assert "IdentitiesOnly" in caught.value.hint
    (home / ".ssh/right.pub").write_text(lab.public_key)
    config(home, bare, "IdentityFile ~/.ssh/right", "IdentitiesOnly yes")
    assert await hello() == f"root@{bare.name}"


async def test_an_agent_that_is_gone_is_no_trouble(
    lab: Lab, home: Path, bare: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "gone"))
    config(home, bare)
    give_key(lab, home)
    assert await hello() == f"root@{bare.name}"


async def test_a_locked_key_is_opened_by_the_callback_only(
    lab: Lab, home: Path, bare: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    path = home / ".ssh/id_ed25519"
    path.write_bytes(asyncssh.read_private_key(lab.key).export_private_key(passphrase="open sesame"))
    config(home, bare)
    with pytest.raises(AuthenticationError, match=r"locked by a passphrase.*ssh-add"):
        await hello()
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return "open sesame"

    options = quick(passphrase=ask)
    assert await hello("node", options) == f"root@{bare.name}"
    assert asked == [str(path)]
    assert "open sesame" not in caplog.text + repr(options)


async def test_a_host_behind_a_jump_host(lab: Lab, home: Path, machine: Callable[..., Machine]) -> None:
    gate = machine("bare", name="gate")
    inner = machine("bare", name="inner", behind=gate)
    options = SSHOptions(config=(lab.config,))
    assert await hello(inner.name, options) == "root@inner"
    async with parse_host(inner.name, options) as host:
        port = await host.forward("127.0.0.1", 22)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readexactly(4) == b"SSH-"
        writer.close()
    await gone(gate)


async def test_what_is_wrong_with_a_jump_host_is_said_of_the_jump_host(
    lab: Lab, home: Path, machine: Callable[..., Machine]
) -> None:
    gate = machine("bare")
    inner = machine("bare", behind=gate)
    give_key(lab, home)
    keys = [(each.address, " ".join(each.host_key.split()[:2])) for each in (gate, inner)]
    text = (
        f"Host gate\n HostName {gate.address}\nHost inner\n HostName {inner.address}\n ProxyJump root@gate\n"
    )
    (home / ".ssh/config").write_text(text)
    known = home / ".ssh/known_hosts"
    known.write_text(f"{keys[1][0]} {keys[1][1]}\n")
    with pytest.raises(HostKeyError, match=r"inner \(over its jump host root@gate\)"):
        await hello("inner")
    known.write_text("".join(f"{address} {key}\n" for address, key in keys))
    assert await hello("root@inner") == f"root@{inner.name}"
    with pytest.raises(ConnectError, match=f"jump host root@gate does not reach {inner.address} port 2022"):
        await hello("root@inner:2022")
    (home / ".ssh/config").write_text("Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with pytest.raises(HostError, match="go on and on"):
        await hello("a")


async def test_a_configuration_that_cannot_be_read_is_named(home: Path, bare: Machine) -> None:
    config(home, bare, "Port many")
    with pytest.raises(HostError, match=r"config line 4.*many"):
        await hello()
    with pytest.raises(HostError, match="absent"):
        await hello("node", quick(config=(home / "absent",)))


# -- bad input


async def test_no_such_host(home: Path) -> None:
    with pytest.raises(ConnectError, match=r"no host called no-such-host\.invalid|looked up") as caught:
        await hello("no-such-host.invalid")
    assert caught.value.where == "no-such-host.invalid"
    assert "ssh no-such-host.invalid" in caught.value.hint


async def test_a_closed_port(lab: Lab, home: Path, bare: Machine) -> None:
    config(home, bare)
    with pytest.raises(ConnectError, match=f"{bare.address} port 2022 refuses connections"):
        await hello("node:2022")


async def test_a_silent_host(lab: Lab, home: Path, bare: Machine) -> None:
    config(home, bare)
    bare.block(4444)
    began = time.monotonic()
    with pytest.raises(ConnectError, match="did not answer within 1 s"):
        await hello("node:4444", quick(connect_timeout=1.0))
    assert time.monotonic() - began < 20  # and not two minutes, as TCP does
    bare.unblock()


async def test_something_else_listens_there(home: Path, bare: Machine) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError, match=f"127.0.0.1 port {port}"):
            await hello(f"127.0.0.1:{port}")


async def test_a_wrong_key_says_who_and_with_what(home: Path, bare: Machine) -> None:
    config(home, bare)
    new_key(home / ".ssh/id_ed25519")
    (home / ".ssh/id_rsa").write_text("this is no key")
    with pytest.raises(AuthenticationError) as caught:
        await hello()
    text = str(caught.value)
    assert f"root@{bare.address} does not let us in" in text
    assert f"tried: {home}/.ssh/id_ed25519, no ssh agent" in text
    assert f"{home}/.ssh/id_rsa (not a private key)" in text
    assert "ssh-copy-id" in text


async def test_an_unknown_host_key(lab: Lab, home: Path, bare: Machine) -> None:
    config(home, bare, known=None)
    give_key(lab, home)
    key = asyncssh.import_public_key(bare.host_key)
    with pytest.raises(HostKeyError, match="is not known yet") as caught:
        await hello()
    text = str(caught.value)
    assert key.get_fingerprint() in text
    assert "ssh node" in text
    # the next step, as it says
    scan = text.partition("trust: ")[2].rpartition(")")[0]
    subprocess.run(scan, shell=True, check=True, capture_output=True)
    assert await hello() == f"root@{bare.name}"


async def test_a_changed_host_key(lab: Lab, home: Path, bare: Machine) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    config(home, bare, known=f"{bare.address} {other}")
    give_key(lab, home)
    with pytest.raises(HostKeyError, match="its key has changed") as caught:
        await hello()
    forget = str(caught.value).partition("forget the old key: ")[2].partition(", then")[0]
    subprocess.run(forget, shell=True, check=True, capture_output=True)
    with pytest.raises(HostKeyError, match="is not known yet"):
        await hello()


async def test_a_known_key_of_another_type_is_a_changed_key(lab: Lab, home: Path, bare: Machine) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    config(home, bare, known=f"{bare.address} {other}")
    with pytest.raises(HostKeyError, match="its key has changed"):
        await hello()


async def test_an_account_that_may_not_log_in(lab: Lab, bare: Machine) -> None:
    bare.add_user("nobody2", shell="/usr/sbin/nologin")
    with pytest.raises(HostError, match=r"does not run commands.*not available"):
        await hello(f"nobody2@{bare.name}", SSHOptions(config=(lab.config,)))


async def test_a_host_that_falls_silent_is_noticed(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    host = parse_host(node.name, quick(config=(lab.config,), keepalive=1.5, keepalive_count=2))
    channel = await host.start("cat")
    task = asyncio.create_task(host.run("sleep 1000"))
    assert await wait_for(lambda: bool(node.processes("sleep 1000")))
    await host.run("true")
    node.cut()
    began = time.monotonic()
    with pytest.raises(ConnectError, match=r"connection was lost while `sleep 1000` ran.*keepalive"):
        await task
    assert time.monotonic() - began < 60  # and not when TCP gives up
    with pytest.raises(ConnectError, match="connection was lost"):
        await channel.readline()
    with pytest.raises(ConnectError, match="connection was lost"):
        await channel.wait()
    began = time.monotonic()
    await channel.close()
    await host.close()
    assert time.monotonic() - began < 60


async def test_a_host_that_dies_is_noticed_at_once(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    async with parse_host(node.name, SSHOptions(config=(lab.config,), keepalive=100.0)) as host:
        task = asyncio.create_task(host.run("sleep 1000"))
        await host.run("true")
        began = time.monotonic()
        node.exec("sh", "-c", "kill -9 -1", check=False)
        with pytest.raises(ConnectError, match="connection was lost"):
            await task
        assert time.monotonic() - began < 60  # and not when nothing was heard for so long


async def test_closing_is_quick_when_the_host_is_silent(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    host = parse_host(node.name, SSHOptions(config=(lab.config,)))
    await host.start("cat")
    node.cut()
    began = time.monotonic()
    await host.close()
    assert time.monotonic() - began < 40


# -- one connection


async def test_one_connection_for_everything(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    async with parse_host(node.name, SSHOptions(config=(lab.config,))) as host:
        await asyncio.gather(*(host.run("true") for _ in range(20)), host.start("cat"), forward(host))
        assert connections(node) == 1
    assert await wait_for(lambda: connections(node) == 0)


async def test_a_lost_connection_is_opened_again_for_the_next_command(
    lab: Lab, machine: Callable[..., Machine]
) -> None:
    node = machine("bare")
    async with parse_host(node.name, SSHOptions(config=(lab.config,))) as host:
        await host.run("true")
        first = await host.forward("127.0.0.1", 22)
        for process in sessions(node):
            os.kill(process, 9)
        assert await wait_for(lambda: connections(node) == 0)
        assert (await host.run("echo again")).stdout == b"again\n"
        assert await host.forward("127.0.0.1", 22) != 0
        assert first


@pytest.mark.parametrize("allowed", [1, 2, 4])
async def test_an_sshd_that_allows_few_sessions(
    lab: Lab, machine: Callable[..., Machine], allowed: int
) -> None:
    node = machine("bare", sshd={"MaxSessions": str(allowed)})
    async with parse_host(node.name, SSHOptions(config=(lab.config,))) as host:
        done = await asyncio.gather(*(host.run(f"sleep 0.02; echo {n}") for n in range(12)))
        assert [int(each.stdout) for each in done] == list(range(12))
        channels = [await host.start("cat") for _ in range(allowed)]
        with pytest.raises(HostError, match=f"all {allowed} sessions .* in use"):
            await host.run("true")
        await channels.pop().close()
        assert (await host.run("echo fits")).stdout == b"fits\n"


async def test_an_sshd_that_allows_no_session(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare", sshd={"MaxSessions": "0"})
    with pytest.raises(HostError, match="opens no session"):
        await hello(node.name, SSHOptions(config=(lab.config,)))


async def test_an_sshd_that_forbids_tunnels(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare", sshd={"AllowTcpForwarding": "no"})
    async with parse_host(node.name, SSHOptions(config=(lab.config,))) as host:
        with pytest.raises(HostError, match="forbids tunnels"):
            await host.forward("127.0.0.1", 8786)
        assert (await host.run("echo still")).stdout == b"still\n"


async def test_forty_hosts_behind_one_jump_host_at_once(lab: Lab, machine: Callable[..., Machine]) -> None:
    gate = machine(
        "bare", sshd={"MaxStartups": "10:100:10"}
    )  # hangs up on the eleventh who is not logged in yet
    inner = machine("bare", behind=gate, sshd={"MaxStartups": "10:100:10"})
    options = SSHOptions(config=(lab.config,), attempts=1, connect_timeout=60)
    hosts = [SSHHost(inner.name, options) for _ in range(40)]
    try:
        done = await asyncio.gather(*(host.run("hostname") for host in hosts))
        assert {each.stdout.decode().strip() for each in done} == {inner.name}
    finally:
        await asyncio.gather(*(host.close() for host in hosts))


# -- shells


async def test_login_scripts_may_print(lab: Lab, bare: Machine) -> None:
    bare.add_user("chatty", shell="/bin/bash")
    bare.exec("sh", "-c", "echo 'echo hello there; printf no-newline' > /home/chatty/.bashrc")
    async with parse_host(f"chatty@{bare.name}", SSHOptions(config=(lab.config,))) as host:
        await host.put(b"\x00\xff", "/home/chatty/file")
        assert await host.get("/home/chatty/file") == b"\x00\xff"
        async with await host.start("cat") as channel:
            await channel.write(b"echo\n")
            assert await channel.readline() == b"echo\n"


SHELLS = [
    path for name in ("sh", "bash", "dash", "zsh", "ksh", "fish", "tcsh") if (path := shutil.which(name))
]


@pytest.mark.parametrize("program", SHELLS)
def test_commands_are_the_same_to_every_login_shell(program: str) -> None:
    text = "".join(map(chr, range(1, 128))) + "é\\\\'!!\n"
    script = "printf '%s' '" + text.replace("'", "'\\''") + "'"
    done = subprocess.run([program, "-c", shell_line(script)], capture_output=True, check=True)
    assert done.stdout.decode() == text


# -- inner


@pytest.fixture
def agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    path = home / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))

        def add(*keys: Path) -> None:
            subprocess.run(["ssh-add", "-q", *map(str, keys)], check=True)

        yield add
    finally:
        process.kill()
        process.wait()


async def forward(host: Host) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", await host.forward("127.0.0.1", 22))
    assert await reader.readexactly(4) == b"SSH-"
    writer.close()


def sessions(machine: Machine) -> list[int]:
    """The sshd processes there that belong to somebody's connection."""
    found = []
    for process in machine.survivors():
        with contextlib.suppress(OSError):
            if process.pid != machine.pid and "sshd" in process.arguments[0]:
                found.append(process.pid)
    return found


def connections(machine: Machine) -> int:
    """How many clients from here are connected to its sshd."""
    lines = machine.exec("ss", "-Htn", "state", "established", "sport = :22").decode().splitlines()
    return sum("127.0.0.1" not in line for line in lines)


async def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return condition()


async def gone(machine: Machine) -> None:
    assert await wait_for(lambda: connections(machine) == 0)
