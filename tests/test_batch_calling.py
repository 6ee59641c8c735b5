"""Jobs call back: many at once, again after they were run again, and from where the folder is not seen."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from envsync.errors import AgentError
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.runner.batch.calling import NOT_SHARED, Switchboard
from envsync.runner.hosts import Local
from envsync.runner.session import Session
from envsync.runner.tls import Authority
from envsync.snapshot import capture
from envsync.store import FolderStore
from envsync.supply import Supply


@pytest.fixture
async def board(tmp_path: Path) -> AsyncIterator[Switchboard]:
    host = Local()
    supply = Supply(FolderStore(tmp_path / "store"), IndexSettings(indexes=()), capture())
    session = await Session.open(host, cache=str(tmp_path / "cache"), supply=supply, hooks=Hooks())
    authority = Authority("test")
    made = await Switchboard.open(
        session,
        cluster="test",
        credentials=authority.issue("worker"),
        context=authority.issue("client").client_context(),
        addresses=["127.0.0.1"],
        grace=5,
    )
    yield made
    await made.close()
    await session.close()
    await host.close()
    assert not (tmp_path / "cache/runs/test/relay/key.pem").exists()
    assert not (tmp_path / "cache/runs/test/relay/carrier.json").exists()


def run(board: Switchboard, job: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", board.body("${ARRAY}_$INDEX")],
        env={**os.environ, "ARRAY": job.partition("_")[0], "INDEX": job.partition("_")[2]},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
async def test_each_member_of_an_array_is_a_host(board: Switchboard) -> None:
    jobs = [run(board, f"17_{index}") for index in range(4)]
    hosts = await asyncio.wait_for(asyncio.gather(*(board.answer(f"17_{n}") for n in range(4))), 60)
    pids = [int((await host.run("echo $PPID")).stdout) for host in hosts]
    assert pids == [job.pid for job in jobs]
    await asyncio.gather(*(host.close() for host in hosts))
    assert [await asyncio.to_thread(job.wait, 20) for job in jobs] == [0] * 4
    assert (await board.last_words("17_2"))["why"] == "the client closed it"
    assert await board.last_words("17_7") == {}
    for job in jobs:
        job.communicate()


async def test_a_job_that_is_run_again_calls_again(board: Switchboard) -> None:
    lost: list[str] = []
    first = run(board, "17_0")
    host = await asyncio.wait_for(board.answer("17_0", lost=lost.append), 60)
    first.kill()
    first.communicate()
    second = run(board, "17_0")
    again = await asyncio.wait_for(board.answer("17_0", label="node7"), 60)
    assert len(lost) == 1
    assert again.name == "node7"
    assert int((await again.run("echo $PPID")).stdout) == second.pid
    await host.close()
    await board.close()  # which ends what has called
    assert await asyncio.to_thread(second.wait, 20) != 0
    second.communicate()
    with pytest.raises(AgentError, match="no more calls"):
        await board.answer("17_0")


async def test_a_node_that_does_not_see_the_folder_says_so(board: Switchboard) -> None:
    settings = Path(board.folder) / "carrier.json"
    settings.rename(settings.with_suffix(".away"))
    job = run(board, "17_0")
    _, said = await asyncio.to_thread(job.communicate)
    assert job.returncode == NOT_SHARED
    assert b"is not shared" in said
