"""The lab itself: its machines are apart, reachable, and gone when they are told to be."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.machines import Lab, Machine

pytestmark = pytest.mark.lab


def ssh(lab: Lab, name: str, command: str, timeout: float = 90) -> str:
    done = subprocess.run(
        ["ssh", "-F", str(lab.config), "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", name, command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


def test_a_bare_machine_has_no_python_and_its_own_everything(
    lab: Lab, machine: Callable[..., Machine]
) -> None:
    bare, python = machine("bare", name="lonely"), machine("python")
    assert ssh(lab, "lonely", "hostname; id -un; command -v python3 || echo none").split() == [
        "lonely",
        "root",
        "none",
    ]
    assert ssh(lab, python.name, "python3 -c 'print(6 * 7)'") == "42\n"
    bare.exec("sh", "-c", "echo mine > /root/file")
    assert (bare.root / "root/file").read_text() == "mine\n"
    assert not (python.root / "root/file").exists()


def test_this_machines_files_are_seen_but_not_changed(lab: Lab, machine: Callable[..., Machine]) -> None:
    here = machine("here")
    assert ssh(lab, here.name, f"cmp {__file__} {__file__} && echo same > /etc/envsync-lab-test") == ""
    with pytest.raises(FileNotFoundError):
        open("/etc/envsync-lab-test").close()


def test_machines_reach_each_other_but_not_the_internet(lab: Lab, machine: Callable[..., Machine]) -> None:
    one, two = machine("python"), machine("bare")
    banner = "import socket; print(socket.create_connection((%r, %d), 2).recv(4))"
    assert b"SSH-" in one.exec("python3", "-c", banner % (two.address, 22))
    blocked = "import socket; socket.create_connection(('198.51.100.1', 53), 2)"
    with pytest.raises(RuntimeError):
        one.exec("python3", "-c", blocked)
    route = "import socket as s; c = s.socket(2, 2); c.connect(('192.0.2.9', 80)); print(c.getsockname()[0])"
    assert one.exec("python3", "-c", route).decode().strip() == one.address


def test_a_machine_behind_another_is_reached_through_it_only(
    lab: Lab, machine: Callable[..., Machine]
) -> None:
    gate = machine("bare")
    inner = machine("bare", behind=gate)
    assert ssh(lab, inner.name, "hostname").strip() == inner.name
    with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
        socket.create_connection((inner.address, 22), 1).close()


def test_a_cut_machine_is_silent_and_comes_back(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    node.cut()
    with pytest.raises(OSError, match=r"timed out|No route"):
        socket.create_connection((node.address, 22), 1).close()
    node.heal()
    assert ssh(lab, node.name, "echo back") == "back\n"


def test_blocked_ports_are_silent_for_whom_they_are_blocked(
    lab: Lab, machine: Callable[..., Machine]
) -> None:
    node, other = machine("python"), machine("python")
    script = "import socket, time; s = socket.create_server(('', 7777)); time.sleep(60)"
    server = subprocess.Popen(
        ["nsenter", "-m", "-n", "-p", f"-t{node.pid}", "python3", "-c", script], stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while b":7777" not in node.exec("ss", "-Hltn") and time.monotonic() < deadline:
            time.sleep(0.02)
        connect = f"import socket; socket.create_connection(({node.address!r}, 7777), 1)"
        node.block(source=lab.gateway)
        with pytest.raises(TimeoutError):
            socket.create_connection((node.address, 7777), 1).close()
        other.exec("python3", "-c", connect)
        assert ssh(lab, node.name, "echo in") == "in\n"
        node.block(7777)
        with pytest.raises(RuntimeError, match="timed out"):
            other.exec("python3", "-c", connect)
        node.unblock()
        socket.create_connection((node.address, 7777), 1).close()
    finally:
        server.kill()
        server.wait()


def test_a_shaped_cable_is_slow_and_counts_its_bytes(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    before = node.stats()["sent"]
    node.shape("16mbit")
    start = time.monotonic()
    assert len(ssh(lab, node.name, "head -c 2000000 /dev/zero")) == 2_000_000
    assert time.monotonic() - start > 0.7  # a second, less what the bucket holds
    assert 2_000_000 < node.stats()["sent"] - before < 2_500_000


def test_nothing_of_a_killed_machine_goes_on(lab: Lab, machine: Callable[..., Machine]) -> None:
    node = machine("bare")
    ssh(lab, node.name, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null & sleep 0.2")
    deadline = time.monotonic() + 60
    while [one.arguments for one in node.processes("sleep 1000")] != [("sleep", "1000")]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (sleeper,) = node.processes("sleep 1000")
    assert sleeper.environment()["USER"] == "root"
    node.kill()
    assert node.survivors() == []
    assert not node.alive


def test_machines_end_with_their_test_run_however_it_ends(lab: Lab) -> None:
    script = """if True:
        import sys
        from tests.lab.machines import Lab
        machine = Lab().host("bare")
        print(machine.pid, machine.lab.folder, flush=True)
        sys.stdin.read()
    """
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None
    pid, folder = run.stdout.readline().decode().split()
    try:
        assert Path(f"/proc/{pid}").exists()
        run.kill()
        run.wait()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()
        Lab().close()  # the next lab sweeps the bridge
        assert f"alias envsync-lab {run.pid}" not in subprocess.check_output(["ip", "link"], text=True)
    finally:
        run.kill()
        run.wait()
        shutil.rmtree(folder, ignore_errors=True)
