"""Processes under an agent: what they say, how they end, and that none outlives its owner."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envsync.errors import AgentError, ProcessDied, StartTimeout
from envsync.indexes import IndexSettings
from envsync.runner.hosts.local import Local
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply

pytestmark = pytest.mark.slow

# Ends at neither the end of its input nor SIGTERM, and starts one of its kind in a session of its own.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) < 2:
    import subprocess
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
    subprocess.Popen([sys.executable, __file__, "child"])
print("@envsync {\\"up\\": true}", flush=True)
time.sleep(300)
"""


def supply(tmp_path: Path) -> Supply:
    return Supply(FolderStore(tmp_path / "store"), IndexSettings())


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    async with await Session.open(Local(), cache=str(tmp_path / "cache"), supply=supply(tmp_path)) as opened:
        yield opened


def marked(marker: str) -> list[int]:
    """Return the processes whose environment has a marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


async def until_gone(marker: str, seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    while (left := marked(marker)) and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return left


async def test_what_a_process_says_logs_and_ends_with(session: Session) -> None:
    script = "echo first; echo '@envsync {\"port\": 7}'; cat >/dev/null; echo last; exit 3"
    remote = await session.spawn("w-0", ["sh", "-c", f"trap '' TERM; {script}"], cluster="c")
    assert await remote.said(60) == {"port": 7}
    assert remote.pid
    assert remote.running
    ended: list[object] = []
    remote.on_exit(ended.append)
    assert await remote.stop(60) == 3  # its input ended
    assert await remote.wait() == 3
    assert ended == [remote]
    assert remote.tail() == ("first", "last")
    assert Path(remote.folder, "log").read_text() == "first\nlast\n"
    assert await remote.stop() == 3  # silent


async def test_files_and_variables_reach_it_privately(session: Session) -> None:
    command = (
        'umask 022; cat config.json; echo; echo "$SECRET $0"; ls -ld . config.json log | cut -c1-10; pwd'
    )
    remote = await session.spawn(
        "w", ["sh", "-c", command], cluster="c", files={"config.json": b"content"}, env={"SECRET": "told"}
    )
    assert await remote.wait() == 0
    content, told, *modes, where = remote.tail()
    assert (content, told) == ("content", "told sh")
    assert sorted(modes) == ["-rw-------", "-rw-------", "drwx------"]
    assert where == remote.folder == session.run_folder("c", "w")
    assert [path.name for path in Path(remote.folder).iterdir()] == ["log"]  # keys do not stay on the disk


async def test_what_it_waits_for_is_handed_to_it(session: Session) -> None:
    command = 'read -r name; cat "$name"; echo; ls -l "$name" | cut -c1-10; cat > /dev/null; exit 5'
    remote = await session.spawn("w", ["sh", "-c", f"trap '' TERM; {command}"], cluster="c")
    await remote.hand({"config.json": b"content"}, "config.json")
    until = time.monotonic() + 60
    while len(remote.tail()) < 2 and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert remote.tail() == ("content", "-rw-------")
    with pytest.raises(AgentError, match="cannot name a process"):
        await remote.hand({"../elsewhere": b""}, "")
    assert await remote.stop(60) == 5
    assert [path.name for path in Path(remote.folder).iterdir()] == ["log"]
    with pytest.raises(AgentError):
        await remote.hand({"config.json": b"a key"}, "config.json")
    assert [path.name for path in Path(remote.folder).iterdir()] == ["log"]


async def test_no_python_variables_of_the_agent_lead_it_astray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "UV_INDEX_URL"):
        monkeypatch.setenv(name, "wrong-way")
    monkeypatch.setenv("HARMLESS", "kept")
    async with await Session.open(Local(), cache=str(tmp_path), supply=supply(tmp_path)) as session:
        remote = await session.spawn(
            "w", ["env"], cluster="c", env={"PYTHONPATH": "/front", "HARMLESS": None}
        )
        await remote.wait()
    assert [line for line in remote.tail() if "wrong-way" in line or line == "HARMLESS=kept"] == []


async def test_death_before_the_word_carries_the_tail(session: Session) -> None:
    remote = await session.spawn(
        "w", ["sh", "-c", "for i in $(seq 50); do echo line $i; done; exit 7"], cluster="c"
    )
    with pytest.raises(ProcessDied) as caught:
        await remote.said(60)
    assert caught.value.returncode == 7
    assert caught.value.tail == tuple(f"line {i}" for i in range(21, 51))
    assert "local: w" in str(caught.value)


async def test_a_signal_shows_as_a_negative_status(session: Session) -> None:
    remote = await session.spawn("w", ["sleep", "60"], cluster="c")
    os.kill(remote.pid, signal.SIGKILL)
    assert await remote.wait() == -9


async def test_silence_has_a_limit(session: Session) -> None:
    remote = await session.spawn("w", ["sh", "-c", "echo looking for a GPU; sleep 60"], cluster="c")
    with pytest.raises(StartTimeout, match="looking for a GPU"):
        await remote.said(0.5)
    assert remote.running


async def test_a_callback_that_fails_ends_nothing_else(session: Session) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
    remote = await session.spawn("w", ["cat"], cluster="c")

    def fail(_: object) -> None:
        raise ZeroDivisionError

    remote.on_exit(fail)
    await session.request("stop", key="c/w", grace=5)
    assert await remote.wait() in (0, -signal.SIGTERM)
    assert (await session.request("probe"))["pid"]
    assert [type(error) for error in told] == [ZeroDivisionError]


async def test_a_program_that_is_not_there(session: Session) -> None:
    with pytest.raises(AgentError, match="no-such-program: No such file"):
        await session.spawn("w", ["no-such-program"], cluster="c")


async def test_one_process_of_a_name_at_a_time(session: Session) -> None:
    first = await session.spawn("w", ["sleep", "60"], cluster="c")
    with pytest.raises(AgentError, match="runs already"):
        await session.spawn("w", ["true"], cluster="c")
    await first.stop()
    second = await session.spawn("w", ["sh", "-c", "exit 5"], cluster="c")
    assert await second.wait() == 5


@pytest.mark.parametrize("name", ["../evil", "", ".hidden", "a/b"])
async def test_names_stay_inside_their_folder(session: Session, name: str) -> None:
    with pytest.raises(AgentError, match="cannot name a process"):
        await session.spawn(name, ["true"], cluster="c")


async def test_a_flood_of_lines_neither_blocks_nor_drowns(session: Session) -> None:
    flood = "import sys\nfor i in range(200_000): print('x' * 50, i)\nprint('y' * 200_000)"
    remote = await session.spawn("w", [sys.executable, "-c", flood], cluster="c")
    assert await asyncio.wait_for(remote.wait(), 60) == 0
    assert Path(remote.folder, "log").read_text().count("\n") >= 200_001
    assert remote.tail()[-1].startswith("y")


async def test_stopping_reaches_what_left_the_group(session: Session, tmp_path: Path) -> None:
    marker = uuid.uuid4().hex
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    remote = await session.spawn("w", [sys.executable, str(program)], cluster="c", env={"MARK": marker})
    for _ in range(3):
        await remote.said(20)
    assert len(marked(marker)) == 3
    assert await remote.stop(0.3) == -9
    assert await until_gone(marker, 60) == []


async def test_children_that_its_death_leaves_behind_are_ended(session: Session) -> None:
    marker = uuid.uuid4().hex
    remote = await session.spawn("w", ["sh", "-c", "sleep 300 & exit 4"], cluster="c", env={"MARK": marker})
    assert await remote.wait() == 4
    assert await until_gone(marker, 60) == []


async def test_closing_ends_everything(tmp_path: Path) -> None:
    marker = uuid.uuid4().hex
    session = await Session.open(Local(), cache=str(tmp_path), supply=supply(tmp_path))
    remotes = [
        await session.spawn(f"w{i}", ["sleep", "300"], cluster="c", env={"MARK": marker}) for i in range(3)
    ]
    await session.close()
    await session.close()  # silent
    assert marked(marker) == []
    assert [remote.running for remote in remotes] == [False] * 3
    with pytest.raises(AgentError):
        await session.request("probe")


CLIENT = """
import asyncio, sys
from pathlib import Path
from envsync.indexes import IndexSettings
from envsync.runner.hosts.local import Local
from envsync.runner.session import Session
from envsync.store import FolderStore
from envsync.supply import Supply

async def main(cache, program, marker):
    session = await Session.open(
        Local(), cache=cache, supply=Supply(FolderStore(cache), IndexSettings()), grace=5.0
    )
    for number in range(2):
        remote = await session.spawn(
            f"w{number}", [sys.executable, program], cluster="c", env={"MARK": marker}
        )
        for _ in range(3):
            await remote.said(20)
    print("up", flush=True)
    await asyncio.sleep(300)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_client_gone_everything_gone(tmp_path: Path, how: signal.Signals) -> None:
    """Killed, its pipes close; stopped, they stay open and only the signs of life are missing."""
    marker = uuid.uuid4().hex
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLIENT), tmp_path / "cache", program, marker],
        stdout=subprocess.PIPE,
        env={**os.environ, "CLIENT_MARK": marker[::-1]},
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        assert len(marked(marker)) == 6
        os.kill(client.pid, how)
        assert await until_gone(marker, 60) == []
        agents = [pid for pid in marked(marker[::-1]) if pid != client.pid]
        assert not agents or await until_gone_pids(agents, 60) == []
    finally:
        client.kill()
        client.wait()


async def until_gone_pids(pids: list[int], seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return left


def runs(pid: int) -> bool:
    """Tell whether a process has not ended; a parent that is stopped has not asked for its status."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_agent_killed_its_processes_die_and_the_client_is_told(session: Session) -> None:
    marker = uuid.uuid4().hex
    remote = await session.spawn("w", ["sleep", "300"], cluster="c", env={"MARK": marker})
    agent = (await session.request("probe"))["pid"]
    os.kill(agent, signal.SIGKILL)
    with pytest.raises(AgentError, match="ended"):
        await remote.wait()
    assert await until_gone(marker, 60) == []
    assert session.ended is not None
    with pytest.raises(AgentError):
        await session.spawn("w2", ["true"], cluster="c")
    with pytest.raises(AgentError):
        await remote.said(5)


async def test_a_host_closed_before_its_session_keeps_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Local()
    session = await Session.open(host, cache=str(tmp_path), supply=supply(tmp_path), grace=0.6)
    await session.spawn("w", ["sleep", "300"], cluster="c")
    await host.close()
    began = time.monotonic()
    while time.monotonic() < began + 0.5:  # some signs of life find nobody
        await asyncio.sleep(0.05)
    await asyncio.wait_for(session.close(), 30)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_session_is_closed_while_its_host_is(tmp_path: Path) -> None:
    """The host ends the agent, which takes as long as its stubborn process; the session need not wait."""
    host = Local()
    session = await Session.open(host, cache=str(tmp_path), supply=supply(tmp_path), grace=0.6)
    script = "trap '' TERM; echo '@envsync {\"up\": true}'; sleep 5"
    remote = await session.spawn("w", ["sh", "-c", script], cluster="c")
    await remote.said(20)
    closing = asyncio.ensure_future(host.close())
    await asyncio.sleep(0.1)
    await session.close()
    assert not closing.done()
    assert not remote.running
    await closing


async def test_term_to_the_agent_ends_it_in_order(session: Session) -> None:
    marker = uuid.uuid4().hex
    script = "trap 'exit 9' TERM; echo '@envsync {\"up\": true}'; sleep 300 & wait"
    remote = await session.spawn("w", ["sh", "-c", script], cluster="c", env={"MARK": marker})
    await remote.said(60)
    os.kill((await session.request("probe"))["pid"], signal.SIGHUP)  # a closed terminal is no reason
    await asyncio.sleep(0.3)
    assert remote.running
    os.kill((await session.request("probe"))["pid"], signal.SIGTERM)
    assert await asyncio.wait_for(remote.wait(), 60) == 9
    assert await until_gone(marker, 60) == []
