"""A cluster on this machine, as LocalCluster's users expect it, in an environment of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import Client

from envsync.errors import ClusterError, LockError, MismatchError, ProcessDied, StartTimeout
from envsync.runner import SyncedCluster
from envsync.runner.places import Place
from envsync.runner.verifying import verify_async
from tests.small import equal_but_for_the_client, processes_in, wait_until_none

pytestmark = pytest.mark.slow

# pickle by value; the second is a task with a client of its own
_SLOW = "lambda x: (__import__('time').sleep(0.2), x)[1]"
_INNER = """lambda dask: (dask.secede(), dask.get_client().submit(lambda: 7).result())[1]"""


@pytest.fixture
def cache(small_lock: Path) -> Path:
    folder = Path(os.environ["ENVSYNC_CACHE"])
    wait_until_none(folder, 50)
    return folder


@pytest.fixture
def keywords(small_lock: Path) -> dict[str, Any]:
    return {"lock": small_lock, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}


def test_it_stands_where_localcluster_stands(keywords: dict[str, Any], cache: Path) -> None:
    with SyncedCluster(**{**keywords, "n_workers": 2}, name="mine", memory_limit="300 MB") as cluster:
        assert len(cluster.scheduler_info["workers"]) == 2
        assert set(cluster.workers) == {0, 1}
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        client = cluster.get_client()
        assert client.cluster is cluster
        assert cluster.get_client() is client
        prefix = client.submit(lambda: sys.prefix).result()
        assert prefix.startswith(str(cache))
        assert prefix != sys.prefix
        # copies of nannies that began with the scheduler; one that is started again is a new interpreter
        commands = client.run(lambda: Path("/proc/self/cmdline").read_text().split("\0")[-4:-1])
        assert [*commands.values()] == [["worker", "-", "first.json"]] * 2
        client.restart()
        commands = client.run(lambda: Path("/proc/self/cmdline").read_text())
        assert ["spawn_main" in command for command in commands.values()] == [True, True]
        assert {*client.run(lambda: hash("text")).values()} == {client.submit(hash, "text").result()}
        assert {info["memory_limit"] for info in cluster.scheduler_info["workers"].values()} == {300_000_000}
        with Client(cluster.scheduler_address) as other:
            assert other.submit(sum, [1, 2]).result() == 3

        assert repr(cluster).startswith("mine(mine, 'tcp://127.0.0.1")
        assert "mine" in cluster._repr_html_()
        with urllib.request.urlopen(cluster.dashboard_link.replace("/status", "/health")) as page:
            assert page.read() == b"ok"
        assert set(cluster.get_logs()) >= {"Cluster", "Scheduler", *cluster.scheduler_info["workers"]}

        # the tests' own environment has more than the lock: of the client's row nothing is asked here
        verification = cluster.verify(on_mismatch="ignore")
        assert equal_but_for_the_client(verification)
        assert verification.summary().startswith("1 scheduler, 2 workers and 1 client")
        client.close()
        cluster.close()
        assert cluster.status == distributed.core.Status.closed
        assert cluster.close() is None
    wait_until_none(cache, 50)


async def test_asynchronous_scaling(keywords: dict[str, Any], cache: Path) -> None:
    async with (
        SyncedCluster(**keywords, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await cluster.scale(3)
        await client.wait_for_workers(3, timeout=150)
        await until(lambda: set(cluster.workers) == {0, 1, 2})
        held = client.map(lambda x: x + 1, range(6), workers=None)
        await distributed.wait(held)
        processes = len(processes_in(cache))
        await cluster.scale(1)
        await until(lambda: len(cluster.scheduler_info["workers"]) == 1 and len(cluster.workers) == 1)
        # what the two held has moved to the one that stays: nothing is computed again
        assert sorted(await client.gather(held)) == [1, 2, 3, 4, 5, 6]
        assert not [
            story for story in (await client.get_events("all")) if story[1].get("lost-computed-tasks")
        ]
        await until(lambda: len(processes_in(cache)) < processes)
        assert await client.submit(lambda: 1) == 1
    wait_until_none(cache, 50)


async def test_adaptive_scaling(keywords: dict[str, Any], cache: Path) -> None:
    keywords["n_workers"] = 0
    async with SyncedCluster(**keywords, asynchronous=True) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=2)
        async with Client(cluster, asynchronous=True) as client:
            futures = client.map(eval(_SLOW), range(20), pure=False)
            assert await asyncio.wait_for(client.gather(futures), 60) == list(range(20))
            assert 1 <= len(cluster.workers) <= 2
            await client.cancel(futures)
            del futures
            await until(lambda: not cluster.workers)
    wait_until_none(cache, 50)


@pytest.fixture
def other_toolz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something on every process's path that is not in the lock, as a host's own set-up may."""
    (tmp_path / "toolz-0.0.1.dist-info").mkdir()
    (tmp_path / "toolz-0.0.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: toolz\nVersion: 0.0.1\n"
    )
    kept = Place.environment
    monkeypatch.setattr(Place, "environment", lambda self: {**kept(self), "PYTHONPATH": str(tmp_path)})


def test_what_differs_does_not_start(keywords: dict[str, Any], cache: Path, other_toolz: None) -> None:
    with pytest.raises(MismatchError, match="not the wanted one") as caught:
        SyncedCluster(**keywords)
    assert "scheduler" in caught.value.where
    [found] = [one for one in caught.value.differences if one.severity == "error"]
    assert (found.subject, found.right) == ("toolz", "0.0.1")
    wait_until_none(cache, 50)


async def test_what_differs_is_warned_about_if_so_wished(
    keywords: dict[str, Any], cache: Path, other_toolz: None
) -> None:
    cluster = SyncedCluster(**keywords, asynchronous=True, on_mismatch="warn")
    with pytest.warns(UserWarning, match=r"error +toolz +\S+ +0\.0\.1\s+in all 2 processes"):
        await cluster
    async with cluster, Client(cluster, asynchronous=True) as client:
        assert await client.submit(sum, [1, 2]) == 3
        assert not (await verify_async(cluster, on_mismatch="ignore")).ok
    wait_until_none(cache, 50)


async def test_a_worker_that_dies_comes_back_and_a_dead_nanny_is_told(
    keywords: dict[str, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        SyncedCluster(**keywords, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        [pid] = (await client.run(os.getpid)).values()
        os.kill(pid, signal.SIGKILL)
        # its nanny starts another
        await until(lambda: pid not in processes_in(cache))
        assert await asyncio.wait_for(client.submit(os.getpid, pure=False), 90) != pid
        assert list(cluster.workers) == [0]

        with caplog.at_level(logging.WARNING, "envsync"):
            os.kill(cluster.workers[0].remote.pid, signal.SIGKILL)
            await until(lambda: not cluster.workers)
        assert "worker 0" in caplog.text
        assert "-9" in caplog.text
        await cluster.scale(1)
        assert await asyncio.wait_for(client.submit(sum, [1, 2]), 90) == 3

        os.kill(cluster.scheduler.remote.pid, signal.SIGKILL)
        await until(lambda: cluster.status.name == "closed")
        with pytest.raises(ClusterError, match=r"has ended: its scheduler was lost: .* -9"):
            client.scheduler_info()
    wait_until_none(cache, 50)


async def test_tls_when_asked(keywords: dict[str, Any], cache: Path) -> None:
    async with SyncedCluster(**keywords, asynchronous=True, security=True) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
            assert await client.submit(eval(_INNER), distributed) == 7
            assert all(address.startswith("tls://") for address in cluster.scheduler_info["workers"])
        stranger = distributed.Security.temporary()
        with pytest.raises(OSError, match=r"(?i)timed out|certificate|tls|ssl"):
            await Client(cluster.scheduler_address, security=stranger, asynchronous=True, timeout=2)
        keys = list(cache.glob("runs/*/*/key.pem"))
        assert keys
        assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
        secrets = [line for key in keys for line in key.read_text().splitlines()[1:-1]]
        for pid in processes_in(cache):
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):  # it ended meanwhile
                    text = Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
                    assert not [secret for secret in secrets if secret in text]
    wait_until_none(cache, 50)


async def test_a_given_security_object_is_sent_along(keywords: dict[str, Any]) -> None:
    own = distributed.Security.temporary()
    async with SyncedCluster(**keywords, asynchronous=True, security=own) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        async with Client(cluster.scheduler_address, security=own, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3


def test_a_taken_port_is_a_clear_error(keywords: dict[str, Any], cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match="a port that it was told to use is taken") as caught:
            SyncedCluster(**keywords, scheduler_port=port)
    assert "scheduler" in caught.value.where
    wait_until_none(cache, 50)


async def test_a_worker_that_dies_at_start_shows_its_last_lines(
    keywords: dict[str, Any], cache: Path
) -> None:
    with pytest.raises(ProcessDied, match="no_such_module_at_all") as caught:
        async with SyncedCluster(**keywords, asynchronous=True, preload=["no_such_module_at_all"]):
            pass
    assert "worker 0" in caught.value.where
    assert any("Traceback" in line for line in caught.value.tail)
    wait_until_none(cache, 50)


def test_a_start_that_takes_too_long_is_given_up(keywords: dict[str, Any], cache: Path) -> None:
    with pytest.raises(StartTimeout, match=r"scheduler: it did not come up within 0\.05 s"):
        SyncedCluster(**keywords, start_timeout=0.05)
    wait_until_none(cache, 50)


async def test_a_task_that_does_not_end_does_not_keep_the_cluster_open(
    keywords: dict[str, Any], cache: Path
) -> None:
    async with SyncedCluster(**keywords, asynchronous=True) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(time.sleep, 600)
            await until(lambda: future.status == "pending")
            await asyncio.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 120
    wait_until_none(cache, 50)


def test_no_such_lock(
    keywords: dict[str, Any], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keywords["lock"] = tmp_path / "pylock.none.toml"
    with pytest.raises(LockError, match="no such lock"):
        SyncedCluster(**keywords)
    assert not caplog.records
    wait_until_none(cache, 50)


async def test_an_interrupted_start_leaves_nothing(keywords: dict[str, Any], cache: Path) -> None:
    cluster = SyncedCluster(**keywords, asynchronous=True)
    starting = asyncio.ensure_future(cluster.__aenter__())
    await until(lambda: len(processes_in(cache)) >= 2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await cluster.close()
    wait_until_none(cache, 50)


@pytest.mark.parametrize("backend", ["Local(grace=8)", "Local()"])
def test_the_client_killed_takes_everything_along(small_lock: Path, cache: Path, backend: str) -> None:
    # also with the default grace, which is far longer: its end is noticed, not its silence
    script = (
        "import sys, time\n"
        "if __name__ == '__main__':\n"
        "    from envsync.runner import Local, SyncedCluster\n"
        "    cluster = SyncedCluster(%s, lock=sys.argv[1], n_workers=2, threads_per_worker=1,\n"
        "                            dashboard_address=':0')\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    client: Any = subprocess.Popen(
        [sys.executable, "-c", script % backend, str(small_lock)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert client.stdout.readline() == "up\n"
        # agent, scheduler, two nannies, two workers
        assert len(processes_in(cache)) >= 6
    finally:
        client.kill()
        client.wait()
    wait_until_none(cache, 50)


async def test_plain_workers_without_a_nanny(keywords: dict[str, Any], cache: Path) -> None:
    async with SyncedCluster(**keywords, asynchronous=True, worker_class=distributed.Worker) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
        assert [info["nanny"] for info in cluster.scheduler_info["workers"].values()] == [None]
    wait_until_none(cache, 50)


async def test_options_and_configuration_arrive(keywords: dict[str, Any]) -> None:
    with dask.config.set({"distributed.worker.memory.spill": 0.42}):
        async with SyncedCluster(
            **keywords,
            asynchronous=True,
            resources={"disk": 2},
            worker_dashboard_address=":0",
            scheduler_kwargs={"idle_timeout": "1 hour"},
            env={"OMP_NUM_THREADS": "3", "OF_OURS": 4},
            name=f"-{'very' * 50} long.",
        ) as cluster:
            [info] = cluster.scheduler_info["workers"].values()
            assert info["resources"] == {"disk": 2}
            assert "dashboard" in info["services"]
            async with Client(cluster, asynchronous=True) as client:
                code = "distributed.worker.memory.spill"
                [spill] = (await client.run(lambda: __import__("dask").config.get(code))).values()
                assert spill == 0.42
                told = "lambda os: (os.environ['OMP_NUM_THREADS'], os.environ['OF_OURS'])"
                assert await client.submit(eval(told), os) == ("3", "4")
                idle = await client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.idle_timeout)
                assert idle == 3600


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"processes": False}, ValueError, "LocalCluster"),
        ({"on_mismatch": "perhaps"}, ValueError, "on_mismatch"),
        ({"n_workers": -1}, ValueError, "n_workers"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker"),
        ({"services": {"x": 1}}, TypeError, "services"),
        ({"env": "pylock.envsync.toml"}, TypeError, "lock="),
        ({"security": "x"}, TypeError, "Security object"),
        ({"plugins": {object()}}, TypeError, "plugins"),
    ],
)
def test_senseless_options_are_refused_before_anything_starts(
    small_lock: Path, cache: Path, bad: Any, error: Any, text: Any
) -> None:
    with pytest.raises(error, match=text):
        SyncedCluster(lock=small_lock, **bad)
    assert not processes_in(cache)


async def until(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
