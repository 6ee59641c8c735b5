"""What a client wants of a cluster that somebody else started is kept in its scheduler, and given back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from distributed import Client, Scheduler
from distributed.core import rpc
from distributed.protocol.pickle import dumps

from envsync.plugins.hub import Hub
from tests.index_server import write_wheel
from tests.running import Elsewhere, Wish, digest_of, put, states, until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _carried() -> Iterator[None]:
    """Functions of this file run where it is not."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _seen(dask_scheduler: Any) -> dict[str, Any]:
    """What of a scheduler may not change by being given back."""
    return {
        "path": list(sys.path),
        "handlers": sorted((name, str(value)) for name, value in dask_scheduler.handlers.items()),
        "stream_handlers": sorted(
            (name, str(value)) for name, value in dask_scheduler.stream_handlers.items()
        ),
        "plugins": sorted(dask_scheduler.plugins),
        "worker_plugins": sorted(dask_scheduler.worker_plugins),
        "nanny_plugins": sorted(dask_scheduler.nanny_plugins),
        "environ": {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH", "ENVSYNC_TREES")},
        "folder": sorted(os.listdir(dask_scheduler.local_directory)),
        "ours": [name for name in vars(sys) if "envsync" in name and vars(sys)[name]],
        "modules": sorted(name for name in sys.modules if name.startswith("zz_")),
    }


def _memory(dask_scheduler: Any) -> int:
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def test_a_blob_arrives_and_is_given_out_as_it_was(elsewhere: Elsewhere, others: Path) -> None:
    async with Client(elsewhere.address, asynchronous=True) as client:
        await Wish(others).send(client)
        data = os.urandom(9 * 2**20 + 17)
        name = digest_of(data)
        assert list(await client.scheduler.envsync_lacking(digests=[name, name])) == [name]
        assert (await put(client, name, data))["size"] == len(data)
        assert list(await client.scheduler.envsync_lacking(digests=[name])) == []
        got = b""
        while len(got) < len(data):
            chunk = await client.scheduler.envsync_get(sha256=name, offset=len(got))
            assert chunk["size"] == len(data)
            got += chunk["data"]
        assert got == data
        missing = await client.scheduler.envsync_get(sha256="0" * 64, offset=0)
        assert missing["size"] == -1


@pytest.mark.parametrize("how", ["cut", "changed", "out of order", "not a hash"])
async def test_a_bad_blob_is_refused(elsewhere: Elsewhere, others: Path, how: str) -> None:
    async with Client(elsewhere.address, asynchronous=True) as client:
        await Wish(others).send(client)
        data = os.urandom(2**20)
        name = digest_of(data)
        asked = client.scheduler.envsync_put
        if how == "not a hash":
            with pytest.raises(ValueError, match="not a sha256"):
                await asked(sha256="../../x", offset=0, data=data, last=True)
        elif how == "out of order":
            answer = await asked(sha256=name, offset=5, data=data[5:], last=True)
            assert "the next byte is 0" in answer["refused"]
        else:
            sent = data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1])
            answer = await asked(sha256=name, offset=0, data=sent, last=True)
            assert "cut or changed" in answer["refused"]
        assert list(await client.scheduler.envsync_lacking(digests=[name])) == [name]
        assert (await put(client, name, data))["size"] == len(data)


async def test_two_clients_send_the_same_blob_at_once(elsewhere: Elsewhere, others: Path) -> None:
    data = os.urandom(30 * 2**20)
    name = digest_of(data)
    async with (
        Client(elsewhere.address, asynchronous=True) as one,
        Client(elsewhere.address, asynchronous=True) as other,
    ):
        await Wish(others).send(one)
        answers = await asyncio.gather(put(one, name, data), put(other, name, data), put(one, name, data))
        assert [answer["size"] for answer in answers] == [len(data)] * 3
        folder = await one.run_on_scheduler(_blob_folder)
        assert os.listdir(folder) == [name]
        with open(f"{folder}/{name}", "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == name
        assert os.stat(folder).st_mode & 0o777 == 0o700
    elsewhere.end()
    assert not os.path.exists(folder), "the blobs outlived their scheduler"


def _blob_folder(dask_scheduler: Any) -> str:
    return os.path.join(dask_scheduler.local_directory, "envsync-blobs")


async def test_the_scheduler_answers_while_200_mb_pass_through(elsewhere: Elsewhere, others: Path) -> None:
    megabytes = 200
    async with Client(elsewhere.address, asynchronous=True) as client:
        await Wish(others).send(client)
        before = await client.run_on_scheduler(_memory)
        pings: list[float] = []
        done = asyncio.Event()

        async def ping() -> None:
            async with Client(elsewhere.address, asynchronous=True) as other:
                while not done.is_set():
                    began = time.monotonic()
                    await other.scheduler.identity()
                    pings.append(time.monotonic() - began)
                    await asyncio.sleep(0.01)

        pinging = asyncio.ensure_future(ping())
        began = time.monotonic()
        blobs = [os.urandom(2**20) * (megabytes // 4) for _ in range(4)]
        names = [digest_of(one) for one in blobs]
        await asyncio.gather(*(put(client, name, one) for name, one in zip(names, blobs, strict=True)))

        async def read(name: str) -> None:
            offset, size = 0, 1
            while offset < size:
                chunk = await client.scheduler.envsync_get(sha256=name, offset=offset)
                offset, size = offset + len(chunk["data"]), chunk["size"]

        await asyncio.gather(*(read(name) for name in names * 2))
        took = time.monotonic() - began
        done.set()
        await pinging
        grown = (await client.run_on_scheduler(_memory)) - before
        assert max(pings) < took / 4, "between the chunks, however slow the machine is"
        assert grown < 64 * 2**20


async def test_what_is_given_back_is_as_it_was(elsewhere: Elsewhere, others: Path, tmp_path: Path) -> None:
    elsewhere.worker("n")
    elsewhere.worker("w", nanny=False)
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    code = tmp_path / "code"
    code.mkdir()
    (code / "zz_mine.py").write_text("x = 1\n")
    wish.tree(code)
    async with Client(elsewhere.address, asynchronous=True) as client:
        scheduler = await client.run_on_scheduler(_seen)
        workers = _by_name(await client.run(_process))
        nannies = list((await client.run(_process, nanny=True)).values())
        assert set(states(await wish.apply(client)).values()) == {"equal"}
        for name in ("n", "w"):
            assert await _both(client, workers=name) == ("2.0", 1)
        changed = _by_name(await client.run(_process))
        assert all(changed[name] != workers[name] for name in workers)
        refused = await client.scheduler.envsync_release(owner="somebody")
        assert refused["refused"]["owner"]["id"] == "ada"
        answer = await client.scheduler.envsync_release(owner="ada")
        assert not [one for one in answer["workers"].values() if one["trouble"]]
        assert await client.run_on_scheduler(_seen) == scheduler
        assert _by_name(await client.run(_process)) == workers
        assert list((await client.run(_process, nanny=True)).values()) == nannies
        with pytest.raises(ModuleNotFoundError):
            await _both(client, workers="w")
        # and what joins now is none of ours
        elsewhere.worker("late")
        late = _by_name(await client.run(_process))["late"]
        assert late["plugins"] == workers["w"]["plugins"]
        assert late["ours"] == []


def _process(dask_worker: Any) -> dict[str, Any]:
    return {
        "name": str(dask_worker.name),
        "path": [folder for folder in sys.path if "dask-scratch-space" not in folder],
        "plugins": sorted(dask_worker.plugins),
        "environ": {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH", "ENVSYNC_TREES")},
        "ours": [name for name in vars(sys) if "envsync" in name and vars(sys)[name]],
        "modules": sorted(name for name in sys.modules if name.startswith("zz_")),
    }


def _by_name(answers: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in answers.values()}


async def _both(client: Client, **where: Any) -> Any:
    def run() -> Any:
        import zz_mine  # type: ignore[import-not-found]
        import zz_pack  # type: ignore[import-not-found]

        return zz_pack.__version__, zz_mine.x

    return await client.submit(run, pure=False, **where)


async def test_nannies_without_a_worker_are_given_back_too(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    elsewhere.worker("alone")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        elsewhere.worker("silent")  # one that came later, and had it from its start
        silent = elsewhere.processes[-1].process.pid
        gone = elsewhere.worker("gone")
        nannies = await _addresses_of_nannies(client)
        pids = await client.run(_lose_the_worker, nanny=True, workers=await _addresses(client, "alone"))
        gone.end()
        os.kill(silent, signal.SIGSTOP)
        try:
            workers = await client.run(os.getpid, workers=await _addresses(client, "silent"))
            for pid in [*pids.values(), *workers.values()]:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: _no_workers(client))
            answer = await client.scheduler.envsync_release(owner="ada")
            assert answer["seconds"] < 30
            async with rpc(nannies["alone"]) as nanny:
                told = await nanny.run(function=dumps(_process), args=dumps(()), kwargs=dumps({}), wait=True)
            assert (told["result"]["plugins"], told["result"]["ours"]) == ([], [])
            assert told["result"]["environ"]["PYTHONPATH"] is None
        finally:
            os.kill(silent, signal.SIGCONT)


async def _addresses_of_nannies(client: Client) -> dict[str, str]:
    known = (await client.scheduler.identity())["workers"].values()
    return {str(one["name"]): one["nanny"] for one in known}


async def _no_workers(client: Client) -> bool:
    return not (await client.scheduler.identity())["workers"]


def _lose_the_worker(dask_worker: Any) -> int:
    """Have a nanny not start another worker for now; the process of the one that it has."""
    from distributed.core import Status

    dask_worker.status = Status.init
    return int(dask_worker.pid)


async def test_a_second_apply_is_quick_and_another_one_replaces(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    elsewhere.worker("n")
    elsewhere.worker("w", nanny=False)
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        before = await client.run(os.getpid)
        paths = await client.run(_process)
        again = await wish.apply(client)
        assert set(states(again).values()) == {"equal"}
        assert await client.run(os.getpid) == before
        assert await client.run(_process) == paths
        wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "3.0"))
        assert set(states(await wish.apply(client)).values()) == {"equal"}
        assert set((await client.run(_version)).values()) == {"3.0"}


def _version() -> str:
    import zz_pack

    return str(zz_pack.__version__)


async def test_what_was_laid_over_stays_where_a_survey_no_longer_sees_it(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    elsewhere.worker("w", nanny=False)
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        wish.packages.clear()  # as a client that looks again would have it
        code = tmp_path / "code"
        code.mkdir()
        (code / "zz_mine.py").write_text("x = 1\n")
        wish.tree(code)
        assert set(states(await wish.apply(client)).values()) == {"equal"}
        assert await _both(client) == ("2.0", 1)
        elsewhere.worker("late", nanny=False)
        assert await _both(client, workers="late") == ("2.0", 1)


async def test_another_owner_is_told_who_is_there(elsewhere: Elsewhere, others: Path, tmp_path: Path) -> None:
    elsewhere.worker("w", nanny=False)
    mine, theirs = Wish(others, "ada"), Wish(others, "bob")
    mine.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    theirs.ship(write_wheel(tmp_path / "wheels", "zz-pack", "3.0"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        await mine.apply(client)
        assert (await theirs.apply(client))["refused"]["owner"]["user"] == "ada"
        assert list((await client.run(_version)).values()) == ["2.0"]
        same = Wish(others, "bob")
        same.ship(tmp_path / "wheels" / "zz_pack-2.0-py3-none-any.whl")
        assert set(states(await same.apply(client)).values()) == {"equal"}
        assert (await client.scheduler.envsync_state())["owner"]["id"] == "ada"
        answer = await theirs.apply(client, take_over=True)
        assert states(answer) == {"w": "restart-needed"}, "it had imported 2.0, and has no nanny"
        assert list((await client.run(_version)).values()) == ["3.0"]
        assert (await client.scheduler.envsync_state())["owner"]["id"] == "bob"
        assert (await mine.apply(client))["refused"]["owner"]["user"] == "bob"
        elsewhere.worker("late", nanny=False)
        assert list((await client.run(_version, workers=await _addresses(client, "late"))).values()) == [
            "3.0"
        ]


async def _addresses(client: Client, *names: str) -> list[str]:
    workers = (await client.scheduler.identity())["workers"]
    return [address for address, known in workers.items() if str(known["name"]) in names]


async def test_the_scheduler_is_mended_too_and_says_what_only_a_restart_brings(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        answer = await wish.apply(client)
        assert answer["scheduler"]["state"] == "equal"
        assert await client.run_on_scheduler(_version) == "2.0"
        wish.ship(write_wheel(tmp_path / "wheels", "toolz", "9.9"))
        answer = await wish.apply(client)
        assert answer["scheduler"]["state"] == "restart-needed"
        assert not answer["scheduler"]["trouble"]  # it runs no tasks
        told = {one["subject"]: one["severity"] for one in answer["scheduler"]["differences"]}
        assert told["toolz"] == "warning"


async def test_blobs_that_were_not_sent_are_asked_for(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    wish = Wish(others)
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.send(client)
        wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
        answer = await client.scheduler.envsync_apply(state=wish.state())
        assert list(answer["lacking"]) == list(wish.blobs)
        assert (await client.scheduler.envsync_state())["owner"] is None


async def test_a_cluster_of_envsync_keeps_its_own_gate(others: Path) -> None:
    from distributed import Scheduler

    from envsync.plugins.carried import by_value
    from envsync.plugins.gate import Gate
    from envsync.plugins.hub import Hub
    from envsync.plugins.look import look

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        Gate(look()).install(scheduler)
        with pytest.raises(RuntimeError, match=r"cluster\.sync\(\)"):
            await scheduler.register_scheduler_plugin(by_value(Hub()), name="envsync", idempotent=True)
        assert "envsync_apply" not in scheduler.handlers


async def test_one_process_of_a_host_fetches(elsewhere: Elsewhere, others: Path, tmp_path: Path) -> None:
    for number in range(3):
        elsewhere.worker(f"w{number}", nanny=number == 0)
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0", body="x = '" + "y" * 2**20 + "'\n"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.send(client)
        await client.run_on_scheduler(_count_gets)
        assert set(states(await wish.apply(client)).values()) == {"equal"}
        counted = await client.run_on_scheduler(_counted)
        assert counted == dict.fromkeys(wish.blobs, 1)
        assert len(list((tmp_path / "overlays" / "host" / "overlays").iterdir())) == 1


def _count_gets(dask_scheduler: Any) -> None:
    get = dask_scheduler.handlers["envsync_get"]
    dask_scheduler.counted = {}

    async def counting(comm: Any, sha256: str, offset: int) -> Any:
        if offset == 0:
            dask_scheduler.counted[sha256] = dask_scheduler.counted.get(sha256, 0) + 1
        return await get(comm, sha256, offset)

    dask_scheduler.handlers["envsync_get"] = counting


def _counted(dask_scheduler: Any) -> Any:
    return dask_scheduler.counted


async def test_the_nanny_of_whoever_joins_while_a_cluster_is_given_back_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaving, go_on = asyncio.Event(), asyncio.Event()
    given: list[Any] = []

    async def take_leave(*_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        leaving.set()
        await go_on.wait()
        return {}, {}

    async def give(nannies: Any) -> None:
        given.extend(nannies)

    async with Scheduler(host="127.0.0.1", dashboard_address=":0") as scheduler:
        hub = Hub()
        hub.install(scheduler)
        hub.wanted = {"owner": {"id": "ada"}, "digest": "of-now"}
        monkeypatch.setattr(hub, "_take_leave", take_leave)
        monkeypatch.setattr(hub, "_mend_nannies", give)
        joined: Any = SimpleNamespace(workers={"tcp://w": SimpleNamespace(nanny="tcp://n")})
        hub.add_worker(joined, "tcp://w")
        await asyncio.sleep(0)
        assert given == ["tcp://n"]
        releasing = asyncio.ensure_future(hub.release("ada"))
        await asyncio.wait_for(leaving.wait(), 30)
        hub.add_worker(joined, "tcp://w")
        go_on.set()
        assert (await asyncio.wait_for(releasing, 30))["restarted"] == 0
        assert given == ["tcp://n"]
