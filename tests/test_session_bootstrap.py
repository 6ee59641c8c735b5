"""From a host with a POSIX shell and little else to an agent, or to a sentence that says what is wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from envsync.errors import AgentError, UnfitHostError, UnsupportedError
from envsync.indexes import IndexSettings
from envsync.interpreter import InterpreterArchive
from envsync.runner.bootstrap import Findings, script
from envsync.runner.hosts.base import Host
from envsync.runner.hosts.local import Local
from envsync.runner.session import Session
from envsync.store import FolderStore, digest_of
from envsync.supply import Supply
from envsync.target import Target
from tests.elsewhere import Elsewhere, tools

pytestmark = pytest.mark.slow

SHELLS = [
    shell
    for shell, found in (("dash", "dash"), ("bash --posix", "bash"), ("busybox sh", "busybox"))
    if shutil.which(found)
]


class Ships(Supply):
    """Has an interpreter to give: a small tree that runs the test's own."""

    archive: InterpreterArchive | None = None
    asked: Target | None = None

    async def uv(self, target: Target) -> str:
        self.asked = target
        return self.store.put(b"not really uv" * 1000)

    async def interpreter(self, target: Target) -> InterpreterArchive:
        self.asked = target
        if self.archive is None:
            raise UnsupportedError("nothing runs there", hint="Try another planet.")
        return self.archive

    def pack(self, folder: Path, program: str) -> None:
        file = folder / "tree" / "bin" / "python3"
        file.parent.mkdir(parents=True)
        file.write_text(program)
        file.chmod(0o755)
        packed = folder / "python.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(file.parent, "bin")
        digest = self.store.put(packed, digest_of(packed))
        self.archive = InterpreterArchive(
            version="3.99.1", digest=digest, size=packed.stat().st_size, machine="x86_64", libc=None
        )


@pytest.fixture
def supply(tmp_path: Path) -> Ships:
    return Ships(FolderStore(tmp_path / "store"), IndexSettings())


Open = Callable[..., Coroutine[Any, Any, Session]]


@pytest.fixture
async def open_session(tmp_path: Path, supply: Ships) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_it(host: Host, cache: str | None = str(tmp_path / "cache")) -> Session:
            return await stack.enter_async_context(await Session.open(host, cache=cache, supply=supply))

        yield open_it


def bare(
    tmp_path: Path, shell: str = "", without: tuple[str, ...] = (), **variables: str | None
) -> Elsewhere:
    """Return a host whose PATH has no Python."""
    program = shutil.which(shell.split()[0]) if shell else None
    busybox = program if program and shell.startswith("busybox") else ""
    folder = tools(tmp_path / "bin", without=without, busybox=busybox)
    if program is not None:
        (folder / Path(program).name).symlink_to(program)
    return Elsewhere({"PATH": str(folder), "HOME": str(tmp_path), **variables}, shell=shell)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_host_with_a_python_gets_the_agent(tmp_path: Path, open_session: Open, shell: str) -> None:
    host = Elsewhere({}, shell=shell)
    session = await open_session(host)
    assert session.cache == str(tmp_path / "cache")
    assert Path(session.agent).is_file()
    assert Path(session.agent).stat().st_mode & 0o077 == 0
    assert session.facts["hostname"]
    assert len(host.commands) == 1  # the shell that looks for a Python takes the agent, too
    assert [path.name for path in (tmp_path / "cache" / "bin").glob(".*")] == []
    await open_session(host)
    assert len(host.commands) == 2


@pytest.mark.parametrize("shell", SHELLS)
async def test_no_python_at_all_one_is_shipped(
    tmp_path: Path, supply: Ships, open_session: Open, shell: str
) -> None:
    supply.pack(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    host = bare(tmp_path, shell)
    session = await open_session(host)
    assert supply.asked is not None
    assert supply.asked.machine == os.uname().machine
    assert supply.asked.libc == Target.current().libc
    archive = supply.archive
    assert archive is not None
    (shipped,) = (tmp_path / "cache" / "pythons").iterdir()
    assert shipped.name == f"3.99.1-{archive.digest[:8]}"
    remote = await session.spawn("w", ["sh", "-c", "exit 6"], cluster="c")
    assert await remote.wait() == 6


async def test_a_host_without_gzip_is_sent_it_unpacked(
    tmp_path: Path, supply: Ships, open_session: Open
) -> None:
    supply.pack(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    await open_session(bare(tmp_path, without=("gzip",)))


async def test_a_host_that_has_nothing_is_sent_uv_while_its_agent_starts(
    tmp_path: Path, supply: Ships
) -> None:
    host, cache = Elsewhere({}), str(tmp_path / "cache")

    async def uv(target: Target) -> set[str]:
        return {await supply.uv(target)}

    async with await Session.open(host, cache=cache, supply=supply, ahead=uv) as session:
        digest = await supply.uv(Target.current())
        assert await session.send([digest]) == 0  # it waits for what is on its way
        assert len(host.commands) == 2
        assert (await session.request("lacking", digests=[digest])) == []
    supply.asked = None
    async with await Session.open(host, cache=cache, supply=supply, ahead=uv):
        assert supply.asked is None  # the agent was there
    for file in (tmp_path / "cache" / "bin").glob("agent-*.pyz"):  # another version's
        file.rename(file.with_name("uv-1"))
    async with await Session.open(host, cache=cache, supply=supply, ahead=uv):
        assert supply.asked is None


async def test_a_shell_that_cannot_take_the_agent_is_given_it_as_a_file(
    tmp_path: Path, open_session: Open
) -> None:
    host = bare(tmp_path, without=("head",))
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    assert Path((await open_session(host)).agent).is_file()
    assert len(host.commands) == 3
    assert [path.name for path in (tmp_path / "cache" / "bin").glob(".*")] == []


async def test_a_host_without_tar(tmp_path: Path, supply: Ships, open_session: Open) -> None:
    supply.pack(tmp_path, "#!/bin/sh\n")
    with pytest.raises(UnfitHostError, match="no Python at all and no tar"):
        await open_session(bare(tmp_path, without=("tar",)))


async def test_only_an_old_python_is_named_with_its_place(tmp_path: Path, open_session: Open) -> None:
    host = bare(tmp_path)
    old = tmp_path / "bin" / "python3"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) echo 3.7.16;; esac\nexit 1\n')
    old.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 3.7.16; else exit 1; fi\n')
    old.chmod(0o755)
    with pytest.raises(UnfitHostError) as caught:
        await open_session(host)
    assert f"only Python 3.7.16 at {old}" in str(caught.value)
    assert "nothing runs there" in str(caught.value)
    assert "Install Python 3.8 or newer" in str(caught.value)
    assert "elsewhere" in str(caught.value)


async def test_a_real_python_3_7_is_not_used(tmp_path: Path, open_session: Open) -> None:
    found = sorted(Path("~/.pyenv/versions").expanduser().glob("3.7.*/bin/python3"))
    if not found:
        pytest.skip("no Python 3.7 on this machine")
    host = bare(tmp_path)
    (tmp_path / "bin" / "python3").symlink_to(found[0])
    with pytest.raises(UnfitHostError, match=r"only Python 3\.7\.\d+ at "):
        await open_session(host)


async def test_a_shipped_python_that_does_not_run_is_said(
    tmp_path: Path, supply: Ships, open_session: Open
) -> None:
    supply.pack(tmp_path, "#!/bin/sh\necho version GLIBC_2.99 not found >&2; exit 1\n")
    with pytest.raises(UnfitHostError, match=r"GLIBC_2\.99 not found"):
        await open_session(bare(tmp_path))
    assert list((tmp_path / "cache" / "pythons").iterdir()) == []


async def test_many_first_sessions_at_once(tmp_path: Path, supply: Ships, open_session: Open) -> None:
    supply.pack(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    host = bare(tmp_path)
    await asyncio.gather(*(open_session(host) for _ in range(5)))
    assert len(list((tmp_path / "cache" / "pythons").iterdir())) == 1
    agents = [path for path in (tmp_path / "cache" / "bin").iterdir() if path.suffix == ".pyz"]
    assert len(agents) == 1


async def test_a_home_that_is_not_there(tmp_path: Path, open_session: Open) -> None:
    host = Elsewhere({"HOME": str(tmp_path / "gone"), "ENVSYNC_CACHE": None})
    with pytest.raises(UnfitHostError, match=r"home folder .*gone is not there") as caught:
        await open_session(host, None)
    assert "cache=" in str(caught.value)
    assert "ENVSYNC_CACHE" in str(caught.value)
    with pytest.raises(UnfitHostError, match="HOME is not set"):
        await open_session(Elsewhere({"HOME": None, "ENVSYNC_CACHE": None}), None)


async def test_where_the_cache_is(tmp_path: Path, open_session: Open) -> None:
    home = str(tmp_path)
    session = await open_session(Elsewhere({"HOME": home, "ENVSYNC_CACHE": None}), None)
    assert session.cache == f"{home}/.cache/envsync"
    session = await open_session(Elsewhere({"HOME": home, "ENVSYNC_CACHE": f"{home}/it's"}), None)
    assert session.cache == f"{home}/it's"
    session = await open_session(Elsewhere({"HOME": home}), "~/a b/$HOME")
    assert session.cache == f"{home}/a b/$HOME"


async def test_a_cache_that_cannot_be_made(tmp_path: Path, open_session: Open) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnfitHostError, match="cannot be written") as caught:
        await open_session(Elsewhere({}), str(tmp_path / "file" / "cache"))
    assert "ENVSYNC_CACHE" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
@pytest.mark.parametrize(
    ("options", "match"), [("size=16k", "full|No space left"), ("ro", "(?i)read-only file system")]
)
async def test_a_disk_that_takes_nothing(
    tmp_path: Path, open_session: Open, options: str, match: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tiny", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if options != "ro":
            (disk / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(UnfitHostError, match=match):
            await open_session(Elsewhere({}), str(disk / "cache"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def test_a_login_script_that_talks(tmp_path: Path, open_session: Open) -> None:
    noisy = tmp_path / "noisy"
    noisy.write_text('#!/bin/sh\necho "Welcome to the cluster!"\necho "{not json}"\nexec sh "$@"\n')
    noisy.chmod(0o755)
    await open_session(Elsewhere({}, shell=str(noisy)))


async def test_a_shell_that_does_nothing_is_not_asked_forever(open_session: Open) -> None:
    with pytest.raises(AgentError, match="did not start"):
        await open_session(Elsewhere({}, shell="true"))


async def test_an_agent_that_crashes_shows_why(tmp_path: Path, open_session: Open) -> None:
    session = await open_session(Local())
    await session.close()
    agent = Path(session.agent)
    shutil.rmtree(agent.with_suffix(""), ignore_errors=True)
    agent.write_bytes(b"print('not the agent at all', file=__import__('sys').stderr)\nraise SystemExit(4)\n")
    with pytest.raises(AgentError, match="not the agent at all"):
        await open_session(Local())


async def test_the_agent_runs_from_its_folder_and_repairs_it(tmp_path: Path, open_session: Open) -> None:
    session = await open_session(Local())
    folder = Path(session.agent).with_suffix("")
    lost = folder / "envsync_agent" / "agent" / "realise.py"
    for _ in range(2):
        await session.close()  # by then it is unpacked
        assert lost.is_file()
        lost.unlink()  # as somebody does who cleans up old files
        session = await open_session(Local())


async def test_the_interpreter_of_the_last_time_is_taken_unless_it_is_no_use(
    tmp_path: Path, open_session: Open
) -> None:
    host = Elsewhere({})
    session = await open_session(host)
    known = Path(session.agent).with_suffix("") / "python"
    await session.close()  # by then it is unpacked
    assert known.read_text().strip() == session.python
    asked = tmp_path / "asked"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexec {session.python} "$@"\n')
    wrapper.chmod(0o755)
    known.write_text(f"{wrapper}\n")
    first = len(host.commands)
    await (await open_session(host)).close()
    assert len(host.commands) == first + 1
    (started,) = asked.read_text().splitlines()  # it was not tried out first
    assert " serve " in started
    wrapper.write_text("#!/bin/sh\necho it is another program now >&2; exit 2\n")
    session = await open_session(host)
    assert session.facts["python"]["executable"] == session.python
    await session.close()
    assert known.read_text().strip() == session.python


def test_findings_are_read_from_getconf_and_from_ldd() -> None:
    for line, libc in (
        ("libc glibc 2.36", ("glibc", "2.36")),
        (
            "libc ldd (Debian GLIBC 2.36-9+deb12u4) 2.36 Copyright (C) 2022",
            ("glibc", "2.36"),
        ),
        ("libc ldd (GNU libc) 2.17 Copyright (C) 2012 Free Software", ("glibc", "2.17")),
        ("libc musl libc (x86_64) Version 1.2.4 Dynamic Program Loader", ("musl", "1.2.4")),
        (
            "libc sh: ldd: not found GNU C Library (GNU libc) stable release version 2.36.",
            ("glibc", "2.36"),
        ),
        ("libc sh: ldd: not found", None),
    ):
        findings = Findings()
        findings.add(line)
        assert findings.libc == libc, line


def test_the_script_is_quoted() -> None:
    text = script("0" * 64, cache="/it's; rm -rf $HOME", grace=10.0, hints=["/a b/python"])
    assert """cache='/it'"'"'s; rm -rf $HOME'""" in text
    assert "'/a b/python'" in text
    for shell in SHELLS:
        subprocess.run([*shell.split(), "-n", "-c", text], check=True)
