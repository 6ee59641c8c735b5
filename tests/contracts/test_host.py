"""What a Host promises, kept by each of them: this machine, a bare Debian by SSH, a job that called back."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from envsync.errors import CommandError, HostError, UnfitHostError
from envsync.runner.hosts import Host, Local, SSHOptions, parse_host
from tests.carriers import called_back
from tests.lab.machines import Lab, Machine

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRANGE = "a b/ü'\"$HOME `x`\\n!*?\n#;-/-r"


class There:
    """The machine of a host, looked at without it."""

    def __init__(self, folder: str, root: Path, machine: Machine | None) -> None:
        self.folder = folder
        self._root = root
        self._machine = machine

    def path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def running(self, text: str) -> list[str]:
        """The command lines there that have a text in them."""
        if self._machine is not None:
            return [" ".join(process.arguments) for process in self._machine.processes(text)]
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    line = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                except OSError:
                    continue
                if text in line:
                    found.append(line)
        return found


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Machine]:
    with lab.host("bare") as machine:
        yield machine


@pytest.fixture(params=["local", "carried", pytest.param("ssh", marks=pytest.mark.lab)])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> There:
    if request.param != "ssh":
        (tmp_path / "there").mkdir()
        return There(str(tmp_path / "there"), Path("/"), None)
    machine: Machine = request.getfixturevalue("bare")
    folder = machine.exec("mktemp", "-d", "/root/test.XXXXXX").decode().strip()
    return There(folder, machine.root, machine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def carried(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with called_back(tmp_path_factory.mktemp("carried")) as called:
        yield called.host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[Host]:
    async with opened(None) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ssh(bare: Machine) -> AsyncIterator[Host]:
    async with opened(bare) as made:
        yield made


def opened(machine: Machine | None) -> Host:
    if machine is not None:
        return parse_host(machine.name, SSHOptions(config=(machine.lab.config,)))
    made = parse_host("local")
    assert isinstance(made, Local)
    return made


@pytest.fixture
def host(there: There, request: pytest.FixtureRequest) -> Host:
    """The host of all tests that do not close it, as one is for all that a client does there."""
    found: Host = request.getfixturevalue(request.node.callspec.params["there"])
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(there: There, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that the test may close."""
    if request.node.callspec.params["there"] == "carried":
        async with called_back(tmp_path) as called:
            yield called.host
        return
    async with opened(there._machine) as made:
        yield made


def unique(seconds: int = 1000) -> str:
    """A sleep that no other test has."""
    return f"{seconds}.{time.monotonic_ns()}"


async def until(condition: Callable[[], bool], seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return condition()


# -- run


async def test_run_returns_what_the_command_wrote_and_its_status(host: Host) -> None:
    done = await host.run("echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_a_failure_is_an_error_that_says_what_and_where(host: Host) -> None:
    with pytest.raises(CommandError, match="disk on fire") as caught:
        await host.run("echo disk on fire >&2; exit 7")
    assert caught.value.returncode == 7
    assert caught.value.stderr == "disk on fire"
    assert caught.value.where == host.name


async def test_a_missing_command_is_status_127(host: Host) -> None:
    assert (await host.run("no-such-command-here", check=False)).returncode == 127


async def test_broken_shell_text_is_a_failure_and_not_a_hang(host: Host) -> None:
    with pytest.raises(CommandError):
        await host.run("if true; then", timeout=20)


async def test_a_signal_is_a_negative_status(host: Host) -> None:
    assert (await host.run("kill -TERM $$", check=False)).returncode == -signal.SIGTERM


async def test_commands_are_posix_sh_and_arrive_as_they_are(host: Host) -> None:
    text = "".join(map(chr, range(1, 0x180)))
    assert (await host.run(shlex.join(["printf", "%s", text]))).stdout.decode() == text
    assert (await host.run("x=1; echo \"$((x + 1))\"\necho 'b'\n")).stdout == b"2\nb\n"


async def test_input_and_output_are_any_bytes(host: Host) -> None:
    data = bytes(range(256)) * 1000 + b"\r\n\x04\x03"
    assert (await host.run("cat", input=data)).stdout == data
    assert (await host.run("cat", input=b"")).stdout == b""


async def test_without_input_there_is_none_to_wait_for(host: Host) -> None:
    assert (await host.run("cat", timeout=20)).stdout == b""


async def test_input_streams_as_fast_as_it_is_read(host: Host, there: There) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield b"x" * 1_000_000

    go = f"{there.folder}/go"
    waits = f"while [ ! -e {go} ]; do sleep 0.05; done"
    task = asyncio.create_task(host.run(f"{waits}; wc -c", input=chunks()))
    assert await until(lambda: sent > 0)
    await asyncio.sleep(0.3)
    assert sent < 20  # the rest waits for the reader
    there.path(go).touch()
    assert int((await task).stdout) == 50_000_000


async def test_a_command_may_leave_its_input_unread(host: Host) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1_000_000

    assert (await host.run("head -c 1", input=chunks(), timeout=30)).stdout == b"x"
    assert (await host.run("exit 5", input=b"x" * 20_000_000, check=False, timeout=30)).returncode == 5


async def test_an_input_that_fails_ends_the_command_and_is_not_hidden(host: Host, there: There) -> None:
    mark = unique()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"some"
        assert await until(lambda: bool(there.running(mark)))
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        await host.run(f"cat > /dev/null; sleep {mark}", input=chunks(), timeout=30)
    assert await until(lambda: not there.running(mark))


async def test_a_command_that_takes_too_long_is_ended(host: Host, there: There) -> None:
    mark = unique()
    with pytest.raises(CommandError, match=r"did not end within 0\.5 s") as caught:
        await host.run(f"sleep {mark} | cat", timeout=0.5)
    assert caught.value.returncode == 124
    assert await until(lambda: not there.running(mark))


async def test_a_command_that_ignores_to_be_asked_is_killed(host: Host, there: There) -> None:
    mark = unique()
    with pytest.raises(CommandError, match="did not end"):
        await host.run(f"trap '' TERM; while :; do sleep {mark}; done", timeout=0.3)
    assert await until(lambda: not there.running(mark))


async def test_a_cancelled_command_is_ended(host: Host, there: There) -> None:
    mark = unique()
    task = asyncio.create_task(host.run(f"sleep {mark}"))
    assert await until(lambda: bool(there.running(mark)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: not there.running(mark))


async def test_a_command_that_is_cancelled_while_it_starts_is_ended(host: Host, there: There) -> None:
    mark = unique()
    for turns in range(12):
        task = asyncio.create_task(host.run(f"sleep {mark}; :"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(asyncio.wait({task}), 60)
        assert task.cancelled()
    seen = time.monotonic()

    def gone() -> bool:  # and none that is only about to start
        nonlocal seen
        if there.running(mark):
            seen = time.monotonic()
        return time.monotonic() - seen > 0.5

    assert await until(gone)


async def test_many_commands_at_once(host: Host) -> None:
    done = await asyncio.gather(*(host.run(f"sleep 0.05; echo {n}") for n in range(40)))
    assert [int(each.stdout) for each in done] == list(range(40))


# -- put and get


async def test_put_and_get_a_file(host: Host, there: There) -> None:
    path = f"{there.folder}/file"
    data = os.urandom(3_000_000)
    await host.put(data, path)
    assert there.path(path).read_bytes() == data
    assert stat.S_IMODE(there.path(path).stat().st_mode) == 0o644
    assert await host.get(path) == data


async def test_put_from_a_file_with_a_mode_and_folders_made(host: Host, there: There, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\0\xff" * 100_000)
    path = f"{there.folder}/new/deep/secret"
    await host.put(source, path, mode=0o600)
    assert there.path(path).read_bytes() == source.read_bytes()
    assert stat.S_IMODE(there.path(path).stat().st_mode) == 0o600


async def test_put_replaces_and_leaves_nothing_beside(host: Host, there: There) -> None:
    path = f"{there.folder}/file"
    await host.put(b"old", path, mode=0o755)
    await host.put(b"", path)
    assert await host.get(path) == b""
    assert [each.name for each in there.path(there.folder).iterdir()] == ["file"]


async def test_put_never_shows_half_a_file(host: Host, there: There, tmp_path: Path) -> None:
    path = f"{there.folder}/file"
    await host.put(b"whole", path)
    source = tmp_path / "shrinks"
    source.write_bytes(b"x" * 8_000_000)
    task = asyncio.create_task(host.put(source, path))
    while not any(each.name.endswith(".part") for each in there.path(there.folder).iterdir()):
        await asyncio.sleep(0)
    os.truncate(source, 10)
    with pytest.raises(CommandError, match="incomplete"):
        await task
    assert await host.get(path) == b"whole"
    assert [each.name for each in there.path(there.folder).iterdir()] == ["file"]


async def test_a_cancelled_put_leaves_the_old_file(host: Host, there: There) -> None:
    path = f"{there.folder}/file"
    await host.put(b"old", path)
    task = asyncio.create_task(host.put(b"x" * 200_000_000, path))
    while not any(each.name.endswith(".part") for each in there.path(there.folder).iterdir()):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: [each.name for each in there.path(there.folder).iterdir()] == ["file"])
    assert await host.get(path) == b"old"


async def test_paths_are_taken_as_they_are(host: Host, there: There) -> None:
    path = f"{there.folder}/{STRANGE}"
    await host.put(b"strange", path)
    assert there.path(path).read_bytes() == b"strange"
    assert await host.get(path) == b"strange"


async def test_a_missing_file_is_an_error(host: Host, there: There) -> None:
    with pytest.raises(CommandError, match="missing could not be read"):
        await host.get(f"{there.folder}/missing")
    with pytest.raises(CommandError):
        await host.get(there.folder)


async def test_put_onto_a_folder_is_an_error(host: Host, there: There) -> None:
    await host.run(f"mkdir {there.folder}/folder")
    with pytest.raises(CommandError, match="it is a folder"):
        await host.put(b"x", f"{there.folder}/folder")
    assert list(there.path(f"{there.folder}/folder").iterdir()) == []


async def test_put_where_nothing_may_be_written_says_so(host: Host, there: There) -> None:
    await host.put(b"x", f"{there.folder}/file")
    with pytest.raises(HostError) as caught:
        await host.put(b"x", f"{there.folder}/file/under")
    assert f"{there.folder}/file/under" in str(caught.value)


async def test_a_full_disk_is_told_as_such(host: Host, there: There) -> None:
    with pytest.raises(UnfitHostError, match="no room for /dev/full"):
        # a device that says it is full, where a file would be put together
        await _put_through(host, "/dev/full")


async def _put_through(host: Host, device: str) -> None:
    """Put bytes where each write fails with "No space left on device"."""
    original = host.run

    async def run(command: str, **keywords: object) -> object:
        lines = [f"part={device}" if line.startswith("part=") else line for line in command.splitlines()]
        return await original(
            "\n".join(lines).replace('rm -f "$part"', ":"),
            **keywords,  # type: ignore[arg-type]
        )

    host.run = run  # type: ignore[method-assign, assignment]
    try:
        await host.put(b"x" * 1000, device)
    finally:
        host.run = original  # type: ignore[method-assign]


# -- start


async def test_a_channel_talks_both_ways(host: Host) -> None:
    async with await host.start("echo ready; cat; echo bye >&2; exit 4") as channel:
        assert await channel.readline() == b"ready\n"
        for word in (b"one\n", b"two\n"):
            await channel.write(word)
            assert await channel.readline() == word
        await channel.write_eof()
        await channel.write_eof()
        assert await channel.readline() == b""
        assert await channel.wait() == 4
        assert await channel.read_stderr() == b"bye\n"


async def test_lines_are_of_any_length(host: Host) -> None:
    async with await host.start("cat") as channel:
        long = b"x" * 8_000_000 + b"\n"
        _, line = await asyncio.gather(channel.write(long), channel.readline())
        assert line == long
        await channel.write(b"\nno end")
        await channel.write_eof()
        assert [await channel.readline() for _ in range(3)] == [b"\n", b"no end", b""]


async def test_standard_error_is_kept_to_its_end(host: Host) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i filler filler >&2; i=$((i + 1)); done; echo done"
    async with await host.start(script) as channel:
        assert await channel.readline() == b"done\n"
        await channel.wait()
        tail = await channel.read_stderr()
        assert tail.endswith(b"line 19999 filler filler\n")
        assert len(tail) <= 64 * 1024


async def test_closing_a_channel_ends_its_command(host: Host, there: There) -> None:
    mark = unique()
    channel = await host.start(f"sleep {mark} & sleep {mark}; echo never")
    assert await until(lambda: len(there.running(mark)) >= 2)
    await channel.close()
    assert await until(lambda: not there.running(mark))
    await channel.close()


async def test_a_command_gets_time_to_end_by_itself(host: Host, there: There) -> None:
    channel = await host.start(f"cat; echo tidy > {there.folder}/tidy")
    await channel.close()
    assert there.path(f"{there.folder}/tidy").read_text() == "tidy\n"
    assert await channel.wait() == 0


async def test_closing_after_the_end_is_silent(host: Host) -> None:
    channel = await host.start("true")
    assert await channel.wait() == 0
    await channel.close()
    await channel.close()


async def test_writing_to_what_has_ended_is_an_error(host: Host) -> None:
    async with await host.start("exec 0<&-; echo gone") as channel:
        await channel.wait()
        with pytest.raises(HostError, match="no longer reads"):  # noqa: PT012 - buffers take the first ones
            for _ in range(100):
                await channel.write(b"x" * 65536)


async def test_commands_run_beside_channels(host: Host) -> None:
    channels = await asyncio.gather(*(host.start("cat") for _ in range(5)))
    assert (await host.run("echo beside", timeout=20)).stdout == b"beside\n"
    for number, channel in enumerate(channels):
        await channel.write(f"{number}\n".encode())
    assert [int(await channel.readline()) for channel in channels] == list(range(5))
    await asyncio.gather(*(channel.close() for channel in channels))


# -- forward


async def test_forward_reaches_a_server_there(host: Host, there: There) -> None:
    if there._machine is None:
        server = await asyncio.start_server(_greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        expected = b"hello"
    else:
        port, expected = 22, b"SSH-2"  # sshd itself is a server on its loopback
        server = None
    here = await host.forward("127.0.0.1", port)
    assert await host.forward("127.0.0.1", port) == here
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", here)
        assert await asyncio.wait_for(reader.readexactly(5), 60) == expected
        writer.close()
    if server is not None:
        server.close()


async def _greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    writer.close()


# -- close


async def test_nothing_goes_on_after_close(fresh: Host, there: There) -> None:
    mark = unique()
    for _ in range(3):
        await fresh.start(f"trap '' HUP; sleep {mark}")
    assert await until(lambda: len(there.running(mark)) >= 3)
    await fresh.close()
    assert await until(lambda: not there.running(mark))
    await fresh.close()


async def test_closing_a_host_that_was_never_used_is_silent(fresh: Host) -> None:
    await fresh.close()
    await fresh.close()
