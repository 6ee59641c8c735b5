"""Where the environment of jobs lies: what nodes have, what is passed on, scripts that bring all along."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest

from envsync.agent.carrier import LOST
from envsync.errors import UnfitHostError
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.lock import Lock
from envsync.runner.batch import SYSTEMS, Job, JobRequest, embedding
from envsync.runner.batch.calling import NO_FOLDER, NO_PYTHON, Switchboard
from envsync.runner.batch.embedding import brought
from envsync.runner.hosts import Local
from envsync.runner.passing import Passing
from envsync.runner.placement import Placement, choose
from envsync.runner.provision import prepare
from envsync.runner.session import Session
from envsync.runner.tls import Authority
from envsync.snapshot import capture
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target
from tests.carriers import agent, called_back


class Told(Hooks):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


Opener = Callable[[str], Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """Open sessions on hosts that are all this machine, each with a cache of its own."""
    sessions: list[Session] = []
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings(indexes=()), capture())

    async def open_one(name: str) -> Session:
        host = Local()
        host.name = name
        session = await Session.open(host, cache=str(tmp_path / name), supply=supply, hooks=Told())
        sessions.append(session)
        return session

    yield open_one
    await asyncio.gather(*(session.close() for session in sessions))


def settle(folder: Path, request: dict[str, Any], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(agent(folder)), "settle"],
        input=json.dumps({"scratch": "", "variables": [], "seen": "", **request}),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_choice_is_by_what_the_first_node_saw() -> None:
    assert choose({"seen": False, "files": 0, "seconds": 0.0}, "/home/cache") == (
        "node",
        "nodes do not see /home/cache of the login host",
    )
    assert choose({"seen": True, "files": 300, "seconds": 0.9}, "/c")[0] == "shared"  # 3 ms: a busy server
    assert choose({"seen": True, "files": 20, "seconds": 5.0}, "/c")[0] == "shared"  # too few to tell
    where, why = choose({"seen": True, "files": 250, "seconds": 5.0}, "/c")
    assert where == "node"
    assert "20 ms for each of 250 small files" in why


def test_scratch_is_what_the_system_names_then_tmpdir_then_tmp(tmp_path: Path) -> None:
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    own.mkdir()
    theirs.mkdir()
    name = f"envsync-{os.getuid()}"
    found = settle(tmp_path, {"variables": ["SITE_SCRATCH"]}, SITE_SCRATCH=str(own), TMPDIR=str(theirs))
    assert found["cache"] == str(own / name)
    assert (own / name).stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (own / name / "bin").iterdir()] == ["agent.pyz"], "nobody has to send it"
    gone = {"SITE_SCRATCH": str(tmp_path / "gone"), "TMPDIR": str(theirs)}
    found = settle(tmp_path, {"variables": ["SITE_SCRATCH"]}, **gone)
    assert found["cache"] == str(theirs / name)
    assert found["passed"] == [[gone["SITE_SCRATCH"], "it is not there"]]
    # what somebody else could have put there is not used
    (own / name).rename(own / "elsewhere")
    (own / name).symlink_to(own / "elsewhere")
    assert "somebody else's" in settle(tmp_path, {"scratch": str(own)})["passed"][0][1]


def test_a_named_scratch_has_the_variables_of_the_job(tmp_path: Path) -> None:
    found = settle(tmp_path, {"scratch": "$SITE/${WHO}/new"}, SITE=str(tmp_path), WHO="ada")
    assert found["cache"] == str(tmp_path / f"ada/new/envsync-{os.getuid()}")
    assert settle(tmp_path, {"scratch": "$UNSET_HERE/x"})["passed"] == [
        ["$UNSET_HERE/x", "a variable in it is not set in the job"]
    ]
    assert settle(tmp_path, {"scratch": "x"})["passed"] == [["x", "it is not an absolute path"]]
    (tmp_path / "file").touch()
    (trouble,) = settle(tmp_path, {"scratch": str(tmp_path / "file/x")})["passed"]
    assert trouble[1] == "not a directory"


def test_a_folder_is_measured_by_small_files(tmp_path: Path) -> None:
    for number in range(320):
        (tmp_path / f"{number}.py").write_text("x")
    (tmp_path / "large").write_bytes(bytes(100_000))
    found = settle(tmp_path, {"seen": str(tmp_path / "1.py"), "read": str(tmp_path)}, TMPDIR=str(tmp_path))
    assert (found["seen"], found["files"]) == (True, 300)
    assert 0 < found["seconds"] < 60


async def test_a_node_that_can_keep_nothing_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    first = SimpleNamespace(session=SimpleNamespace(cache="/c"), environment=SimpleNamespace(prefix="/c/e"))
    placement = Placement(
        "node",
        scratch="/proc/none",
        variables=(),
        first=first,  # type: ignore[arg-type]
        mark="/none",
        passing=None,  # type: ignore[arg-type]
        hooks=Told(),
    )
    async with called_back(tmp_path) as called:
        with pytest.raises(UnfitHostError, match="/proc/none: no such file") as error:
            await placement.settle(called.host)
    assert "scratch=" in error.value.hint


async def test_a_node_with_an_older_libc_than_the_login_host_is_told(tmp_path: Path) -> None:
    libc = Target.current().libc
    assert libc is not None
    lock = Lock.of((), replace(Target.current(), libc=(libc[0], "2.99")))
    async with called_back(tmp_path) as called:
        called.host.name = "node7 (17_0)"
        with pytest.raises(UnfitHostError) as error:
            await prepare([called.host], lock=lock, cache=str(tmp_path / "cache"))
    assert error.value.where == "node7 (17_0)"
    assert "glibc 2.99" in error.value.message
    assert f"it is Python {Target.current().python}" in error.value.message
    assert " ".join(libc) in error.value.message
    assert "constraint=" in error.value.hint


@pytest.mark.slow
async def test_one_copy_leaves_the_login_host_and_the_rest_goes_from_node_to_node(opened: Opener) -> None:
    first = await opened("login")
    nodes = [await opened(f"node{number}") for number in range(4)]
    store = first.supply.store
    blobs = [os.urandom(300_000) for _ in range(10)]
    digests = [store.put(blob) for blob in blobs]
    told = Told()
    passing = Passing(first, Lock.of((), Target.current()), cluster="test", hooks=told)
    took = await asyncio.gather(*(passing.take(node, digests, "wheels") for node in nodes))
    assert took == [set(digests)] * 4
    assert [await node.request("lacking", digests=digests) for node in nodes] == [[]] * 4
    whole = sum(map(len, blobs))
    assert passing.given["login"] == whole
    assert sum(passing.given.values()) == 4 * whole
    assert not told.notes

    # a node that is gone is not asked, and the login host steps in
    for node in nodes[:3]:
        await node.close()
    nodes[3].facts["addresses"] = ()
    more = [store.put(os.urandom(1000))]
    late = await opened("late")
    assert await passing.take(nodes[3], more) == set(more)
    assert await passing.take(late, [*digests[:2], *more]) == {*digests[:2], *more}

    # where nobody is reached it is left to the client, which is told why
    for holder in (passing._origin, *passing._nodes.values()):
        holder.bases = ["https://127.0.0.1:1/none"]
    last = await opened("last")
    assert await passing.take(last, digests) == set()
    assert "login did not give it 10 of 10 files: connection refused" in told.notes
    last.taking = passing
    assert await last.send(digests) == len(digests)
    assert await last.request("lacking", digests=digests) == []


async def test_what_a_node_shares_is_for_those_who_know_the_token(opened: Opener) -> None:
    first = await opened("login")
    digest = first.supply.store.put(b"0123456789")
    passing = Passing(first, Lock.of((), Target.current()), cluster="test", hooks=Told())
    await passing.seed([digest])
    (base, *_) = await passing._bases(passing._origin)
    trusting = ssl.create_default_context(cadata=passing._authority.certificate)

    def get(address: str, begin: int = 0) -> bytes:
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        request = urllib.request.Request(address, headers=headers)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
        )
        with opener.open(request, timeout=60) as answer:
            assert answer.status == (206 if begin else 200)
            return bytes(answer.read())

    def refused(address: str, begin: int = 0) -> int:
        with pytest.raises(HTTPError) as error:
            get(address, begin)
        error.value.close()
        return int(error.value.code)

    assert await asyncio.to_thread(get, f"{base}/{digest}") == b"0123456789"
    assert await asyncio.to_thread(get, f"{base}/{digest}", 7) == b"789"
    assert await asyncio.to_thread(refused, f"{base}/{digest}", 10) == 416
    assert await asyncio.to_thread(refused, f"{base}/{'0' * 64}") == 404
    assert await asyncio.to_thread(refused, f"{base[:-1]}x/{digest}") == 403
    wrong = base[:-64] + "0" * 64
    assert await asyncio.to_thread(refused, f"{wrong}/{digest}") == 403
    assert await asyncio.to_thread(refused, f"{base}/../key.pem") == 403
    share = Path(first.run_folder("test", "blobs-1"), "share.json")
    assert share.stat().st_mode & 0o777 == 0o600


@pytest.fixture
async def board(opened: Opener) -> AsyncIterator[Switchboard]:
    session = await opened("login")
    authority = Authority("test")
    made = await Switchboard.open(
        session,
        cluster="test",
        credentials=authority.issue("worker"),
        context=authority.issue("client").client_context(),
        enrolling=authority.issue("scheduler"),
        addresses=["127.0.0.1"],
        grace=30,
    )
    yield made
    await made.close()


def run(text: str, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh"],
        env={**os.environ, "JOB": "17_0", "TMPDIR": str(folder), **environment},
        stdin=(_written(folder, text)).open("rb"),
        stderr=subprocess.PIPE,
    )


def _written(folder: Path, text: str) -> Path:
    path = folder / "script"
    path.write_text(text)
    return path


@pytest.mark.slow
async def test_a_script_brings_all_and_its_token_is_good_once(board: Switchboard, tmp_path: Path) -> None:
    text, token = board.body_alone("$JOB")
    assert len(text) < 1 << 20, "Slurm takes 4 MB, others less"
    # a key is in neither; without a shared folder a token, which is good for one call, cannot be avoided
    assert "PRIVATE" not in text
    assert token not in board.body("$JOB")
    board.admit(token, ["17_0"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shared = Path(board.folder, "carrier.json")
    hidden = shared.rename(shared.with_suffix(".away"))
    asked: list[bool] = []

    async def again() -> bool:
        asked.append(True)
        return len(asked) > 1  # the batch system says no at first

    first = run(text, scratch)
    host = await asyncio.wait_for(board.answer("17_0", again=again), 60)
    assert host.alone
    assert "token" not in host.hello
    assert int((await host.run("echo $PPID")).stdout) == first.pid
    (folder,) = scratch.glob("envsync-job-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    # somebody who has read the script calls as the same job: turned away; a requeued job is not
    stranger = run(text, scratch)
    call = asyncio.ensure_future(board.answer("17_0", again=again))
    while not asked:
        await asyncio.sleep(0.05)
    stranger.kill()
    second = run(text, scratch)
    there = await asyncio.wait_for(call, 60)
    assert int((await there.run("echo $PPID")).stdout) == second.pid
    await host.close()
    await there.close()
    assert [await asyncio.to_thread(one.wait, 60) for one in (first, second)] == [0, 0]
    assert len(list(scratch.glob("envsync-job-*"))) == 1, "of the one that was killed"
    # with the folder in sight it is a job like others, and its token is not needed
    hidden.rename(shared)
    seeing = run(text, scratch)
    host = await asyncio.wait_for(board.answer("17_0"), 60)
    assert not host.alone
    await host.close()
    assert await asyncio.to_thread(seeing.wait, 60) == 0
    for one in (first, stranger, second, seeing):
        one.communicate()


@pytest.mark.slow
def test_a_python_that_hangs_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "python3"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(embedding, "_HANGS", 4)  # the other one has to start within that
    text = embedding.finding_python([str(hangs), sys.executable], 'echo "$python"; exit 0')
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == sys.executable


async def test_a_wrong_token_and_an_unknown_job_are_not_answered(board: Switchboard, tmp_path: Path) -> None:
    Path(board.folder, "carrier.json").unlink()
    text, _ = board.body_alone("$JOB")
    _, other = board.body_alone("$JOB")
    board.admit(other, ["17_0"])
    job = run(text, tmp_path)
    call = asyncio.ensure_future(board.answer("17_0"))
    assert await asyncio.to_thread(job.wait, 60) == LOST
    assert not call.done()
    call.cancel()
    job.communicate()


async def test_what_a_script_cannot_do_is_said(tmp_path: Path) -> None:
    text = brought("$JOB", b"agent", "0", {}, ["no-such-python"])
    job = run(text, tmp_path)
    _, said = await asyncio.to_thread(job.communicate)
    assert job.returncode == NO_PYTHON
    assert b"module load python" in said
    text = brought("$JOB", b"agent", "0", {}, ["python3"])
    job = run(f"ulimit -f 0\n{text}", tmp_path)  # as where all is full
    _, said = await asyncio.to_thread(job.communicate)
    assert job.returncode == NO_FOLDER
    assert b"no folder for temporary files" in said


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_jobs_without_a_folder_have_their_output_nowhere(name: str) -> None:
    system = SYSTEMS[name]()
    request = JobRequest(name="job", log="", folder="/tmp", cores=1)
    text = " ".join(system.submit(request, "true").argv)
    assert ("/dev/null" in text) == (system.takes == "script")
    assert system.unseen(Job(id="1", state="failed", exit_code=73), "/c")
    assert not system.unseen(Job(id="1", state="failed", exit_code=1), "/c")
