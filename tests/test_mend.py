"""Workers and nannies of a running cluster get what is wanted: before their first task, and between tasks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client, LocalCluster

from envsync.plugins.carried import Carried
from envsync.plugins.look import check
from tests.index_server import write_wheel
from tests.running import Elsewhere, Wish, digest_of, put, states, until
from tests.test_store import needs_mounts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _carried() -> Iterator[None]:
    """Functions of this file run where it is not."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def wish(others: Path, tmp_path: Path) -> Wish:
    """A package that no worker has."""
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    return wish


@pytest.fixture
def newer_toolz(others: Path, tmp_path: Path) -> Wish:
    """Another version of a package that Dask has imported in every process."""
    wish = Wish(others)
    wheel = write_wheel(tmp_path / "made", "toolz", "9.9")
    found = find_spec("toolz")
    _fill(wheel, Path(str(found and found.origin)).parent)
    wish.ship(wheel)
    return wish


def _fill(wheel: Path, package: Path) -> None:
    """Put the real toolz into a wheel that says it is another version."""
    import base64
    import hashlib
    import zipfile

    files = {
        f"toolz/{path.relative_to(package)}": path.read_bytes()
        for path in sorted(package.rglob("*.py"))
        if "tests" not in path.parts
    }
    init = files["toolz/__init__.py"].decode()
    files["toolz/__init__.py"] = (init + "\n__version__ = '9.9'\n").encode()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name and not name.endswith("RECORD"):
                files[name] = archive.read(name)
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},"
        f"{len(data)}\n"
        for path, data in files.items()
    )
    files["toolz-9.9.dist-info/RECORD"] = (record + "toolz-9.9.dist-info/RECORD,,\n").encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def _all_equal(answer: dict[str, Any]) -> None:
    assert not [one for one in answer["workers"].values() if one["state"] != "equal"]


def _version() -> str:
    import zz_pack  # type: ignore[import-not-found]

    return f"{zz_pack.__version__}"


def _toolz() -> str:
    return f"{sys.modules['toolz'].__version__}"


async def _names(client: Client) -> dict[str, str]:
    known = await client.scheduler.identity()
    return {str(one["name"]): address for address, one in known["workers"].items()}


@pytest.mark.parametrize("nanny", [True, False])
async def test_a_late_worker_runs_no_task_before_it_is_mended(
    elsewhere: Elsewhere, wish: Wish, nanny: bool
) -> None:
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        futures = client.map(lambda _: __import__("zz_pack").__version__, range(20), pure=False)
        elsewhere.worker("late", nanny=nanny)
        assert set(await client.gather(futures)) == {"2.0"}
        [entry] = (await client.scheduler.envsync_state())["workers"].values()
        assert entry["state"] == "equal"
        [path] = (await client.run(lambda: os.environ["PYTHONPATH"])).values()
        assert "overlays" in path, "what tasks start has it too"


@pytest.mark.parametrize("nanny", [True, False])
async def test_a_late_worker_that_cannot_be_mended_is_refused_with_names(
    elsewhere: Elsewhere, wish: Wish, nanny: bool
) -> None:
    wish.want("zz-nowhere", "1.0")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        future = client.submit(sum, [1])
        late = elsewhere.worker("late", nanny=nanny, wait=False)
        [past] = await until(lambda: _refused(client), 60)
        assert past["name"] == "late"
        assert {one["subject"] for one in past["differences"] if one["severity"] == "error"} == {"zz-nowhere"}
        assert time.time() - past["time"] < 60
        assert await asyncio.to_thread(late.wait) is not None
        assert "zz-nowhere is missing there and 1.0 is wanted" in late.log
        assert not future.done()


async def _refused(client: Client) -> Any:
    return list((await client.scheduler.envsync_state())["refused"])


async def test_a_late_worker_that_cannot_be_mended_is_marked_under_warn(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    wish = Wish(others, on_mismatch="warn")
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    wish.want("zz-nowhere", "1.0")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        elsewhere.worker("late", nanny=False)
        assert await client.submit(_version_here(), pure=False) == "2.0"
        [entry] = (await client.scheduler.envsync_state())["workers"].values()
        assert entry["state"] == "different"
        assert "zz-nowhere" in {one["subject"] for one in entry["differences"]}


def _version_here() -> Any:
    return lambda: __import__("zz_pack").__version__


async def test_what_is_not_imported_yet_comes_in_place(elsewhere: Elsewhere, wish: Wish) -> None:
    elsewhere.worker("n")
    elsewhere.worker("w", nanny=False)
    async with Client(elsewhere.address, asynchronous=True) as client:
        before = await client.run(os.getpid)
        assert states(await wish.apply(client)) == {"n": "equal", "w": "equal"}
        assert await client.run(os.getpid) == before
        assert set((await client.run(_version)).values()) == {"2.0"}


async def test_what_is_imported_comes_by_a_restart_and_no_key_is_lost(
    elsewhere: Elsewhere, newer_toolz: Wish
) -> None:
    for number in range(3):
        elsewhere.worker(f"w{number}")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(3)
        kept = client.map(lambda i: (i, os.getpid()), range(30), pure=False)
        spread = await client.scatter(list(range(100, 106)), broadcast=False)
        values = await client.gather(kept)
        assert len({pid for _, pid in values}) > 1, "they should be on several workers"
        pids = set((await client.run(os.getpid)).values())
        answer = await newer_toolz.apply(client)
        assert states(answer) == {"w0": "equal", "w1": "equal", "w2": "equal"}
        assert not pids & set((await client.run(os.getpid)).values())
        assert set((await client.run(_toolz)).values()) == {"9.9"}
        # none was computed again: the process that computed it is gone
        assert await client.gather(kept) == values
        assert await client.gather(spread) == list(range(100, 106))


async def test_no_running_task_is_cut(elsewhere: Elsewhere, newer_toolz: Wish, tmp_path: Path) -> None:
    elsewhere.worker("w0", threads=2)
    elsewhere.worker("w1", threads=2)
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(2)
        marks = tmp_path / "marks"
        marks.mkdir()

        def slow(number: int) -> int:
            with open(marks / str(number), "a") as file:
                file.write("begun ")
            time.sleep(1.0)
            with open(marks / str(number), "a") as file:
                file.write("ended ")
            return number

        futures = client.map(slow, range(12), pure=False)
        await until(lambda: len(list(marks.iterdir())) >= 4)
        _all_equal(await newer_toolz.apply(client))
        assert await client.gather(futures) == list(range(12))
        assert {path.read_text() for path in marks.iterdir()} == {"begun ended "}
        assert await client.run_on_scheduler(_suspicious) == 0


def _suspicious(dask_scheduler: Any) -> Any:
    return sum(task.suspicious for task in dask_scheduler.tasks.values())


def later(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


async def test_tasks_that_wait_for_others_do_not_stop_a_restart(
    elsewhere: Elsewhere, newer_toolz: Wish
) -> None:
    elsewhere.worker("w0")
    elsewhere.worker("w1")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(2)

        run = later

        def outer(later: Any) -> int:
            from distributed import worker_client

            with worker_client() as inner:
                total = 0
                for number in range(4):
                    slow = inner.submit(later, 0.3, number, pure=False)
                    total += slow.result()
            return total

        futures = [client.submit(outer, run, pure=False) for _ in range(2)]
        await asyncio.sleep(0.3)
        _all_equal(await newer_toolz.apply(client, patience=60))
        assert await client.gather(futures) == [6, 6]


async def test_tasks_that_do_not_end_in_time_are_said(
    elsewhere: Elsewhere, newer_toolz: Wish, tmp_path: Path
) -> None:
    elsewhere.worker("w0")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(1)
        sign = tmp_path / "sign"

        def waits() -> str:
            while not sign.exists():
                time.sleep(0.05)
            return "whole"

        future = client.submit(waits, pure=False)
        await until(lambda: _executing(client))
        answer = await newer_toolz.apply(client, patience=1)
        [entry] = answer["workers"].values()
        assert entry["state"] in ("restart-needed", "different")
        assert "tasks still ran after 1 s" in entry["trouble"]
        sign.touch()
        assert await future == "whole"
        assert await client.submit(sum, [1, 2]) == 3, "it takes tasks again"
        assert states(await newer_toolz.apply(client)) == {"w0": "equal"}


async def _executing(client: Client) -> bool:
    return any((await client.run(lambda dask_worker: len(dask_worker.state.executing))).values())


@pytest.mark.parametrize("how", ["no nanny", "never"])
async def test_without_a_restart_what_is_imported_is_said(
    elsewhere: Elsewhere, newer_toolz: Wish, tmp_path: Path, how: str
) -> None:
    newer_toolz.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0"))
    elsewhere.worker("w", nanny=how == "never")
    async with Client(elsewhere.address, asynchronous=True) as client:
        before = await client.run(os.getpid)
        restart = "never" if how == "never" else "auto"
        for _ in range(2):
            answer = await newer_toolz.apply(client, restart=restart)
            [entry] = answer["workers"].values()
            assert entry["state"] == "restart-needed"
            assert "toolz" in entry["trouble"]
        assert await client.run(os.getpid) == before
        assert set((await client.run(_version)).values()) == {"2.0"}, "what was not imported came"
        if how == "never":  # its nanny has it: whenever it restarts, it has it
            [pid] = before.values()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: _pids(client, {pid}))
            assert set((await client.run(_toolz)).values()) == {"9.9"}


async def _pids(client: Client, but: set[int]) -> set[int]:
    return set((await client.run(os.getpid, on_error="ignore")).values()) - but


async def test_a_restart_never_brings_an_older_state(
    elsewhere: Elsewhere, wish: Wish, tmp_path: Path
) -> None:
    elsewhere.worker("n")
    async with Client(elsewhere.address, asynchronous=True) as client:
        for version in ("3.0", "1.0", "4.0"):
            wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", version))
            assert states(await wish.apply(client)) == {"n": "equal"}
            [pid] = (await client.run(os.getpid)).values()
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: _pids(client, {pid}))
            assert list((await client.run(_version)).values()) == [version]
            folders = (await client.run(lambda: [one for one in sys.path if "overlays/" in one])).values()
            assert [len(one) for one in folders] == [1]


async def test_edited_code_is_exchanged_between_tasks_without_a_restart(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    elsewhere.worker("n", host="one")
    elsewhere.worker("w", nanny=False, host="other")
    code = tmp_path / "code"
    code.mkdir()
    (code / "zz_mine.py").write_text("x = 1\n")
    (code / "zz_other.py").write_text("from zz_mine import x\ny = x + 1\n")
    wish = Wish(others)
    wish.tree(code)

    def both(begun: str = "") -> Any:
        from zz_mine import x as before  # type: ignore[import-not-found]

        if begun:
            Path(begun).touch()
            time.sleep(1.0)
        from zz_mine import x
        from zz_other import y  # type: ignore[import-not-found]

        return before, x, y

    async with Client(elsewhere.address, asynchronous=True) as client:
        assert set(states(await wish.apply(client)).values()) == {"equal"}
        assert set((await client.run(both)).values()) == {(1, 1, 2)}
        pids = await client.run(os.getpid)
        begun = {name: tmp_path / f"begun on {name}" for name in ("n", "w")}
        running = [client.submit(both, str(path), workers=name, pure=False) for name, path in begun.items()]
        await until(lambda: all(path.exists() for path in begun.values()), 60)
        (code / "zz_mine.py").write_text("x = 5\n")
        wish.tree(code)
        after = [client.submit(both, workers=name, pure=False) for name in ("n", "w")]
        answer = await wish.apply(client, restart="never")
        assert set(states(answer).values()) == {"equal"}
        assert await client.gather(running) == [(1, 1, 2)] * 2, "a task saw two versions of a module"
        assert set(await client.gather(after)) <= {(1, 1, 2), (5, 5, 6)}
        assert set((await client.run(both)).values()) == {(5, 5, 6)}
        assert await client.run_on_scheduler(both) == (5, 5, 6)
        assert await client.run(os.getpid) == pids
        os.kill(pids[(await _names(client))["n"]], signal.SIGKILL)
        await until(lambda: _both_there(client, pids))
        assert set((await client.run(both)).values()) == {(5, 5, 6)}


async def _both_there(client: Client, pids: dict[str, int]) -> bool:
    now = set((await client.run(os.getpid, on_error="ignore")).values())
    return len(now) == 2 and now != set(pids.values())


async def test_a_paused_worker_stays_paused_while_it_is_mended(elsewhere: Elsewhere, wish: Wish) -> None:
    elsewhere.worker("w", nanny=False)
    async with Client(elsewhere.address, asynchronous=True) as client:

        def pause(dask_worker: Any) -> None:
            from distributed.core import Status

            dask_worker.memory_manager.memory_pause_fraction = False
            dask_worker.status = Status.paused

        await client.run(pause)
        assert states(await wish.apply(client)) == {"w": "equal"}
        status = list((await client.run(lambda dask_worker: dask_worker.status.name)).values())
        assert status == ["paused"]


async def test_an_older_report_is_not_believed(elsewhere: Elsewhere, wish: Wish, tmp_path: Path) -> None:
    async with Client(elsewhere.address, asynchronous=True) as client:
        await wish.apply(client)
        old = await client.run_on_scheduler(lambda dask_scheduler: dict(dask_scheduler.worker_plugins))
        nanny = await client.run_on_scheduler(lambda dask_scheduler: dict(dask_scheduler.nanny_plugins))
        wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "3.0"))
        await wish.apply(client)

        def put_back(dask_scheduler: Any) -> None:
            dask_scheduler.worker_plugins.update(old)
            dask_scheduler.nanny_plugins.update(nanny)

        await client.run_on_scheduler(put_back)  # as if it had come just before the second
        elsewhere.worker("n")
        elsewhere.worker("w", nanny=False)
        assert (await client.scheduler.envsync_state())["digest"] == wish.state()["digest"]
        futures = [client.submit(_version_here(), workers=name, pure=False) for name in ("n", "w")]
        assert set(await client.gather(futures)) == {"3.0"}


async def test_the_client_s_own_process_is_left_as_it_is(tmp_path: Path) -> None:
    async with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, asynchronous=True, host="127.0.0.1"
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        before = list(sys.path), dict(os.environ)
        wish = Wish(Path(sys.executable))
        wish.owner.update(pid=os.getpid(), host=__import__("socket").gethostname())
        code = tmp_path / "code"
        code.mkdir()
        (code / "zz_local.py").write_text("x = 1\n")
        wish.tree(code)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ENVSYNC_OVERLAYS", str(tmp_path / "overlays"))
            before = list(sys.path), dict(os.environ)
            answer = await wish.apply(client)
            assert set(states(answer).values()) == {"equal"}
            assert (sys.path, dict(os.environ)) == before
            found = await client.run(lambda: __import__("zz_local").x)
            assert set(found.values()) == {1}
            (code / "zz_local.py").write_text("x = 2\n")
            wish.tree(code)
            await wish.apply(client)
            assert set((await client.run(lambda: __import__("zz_local").x)).values()) == {2}
            await client.scheduler.envsync_release(owner=wish.owner["id"])
            assert (sys.path, dict(os.environ)) == before
            assert not [name for name in vars(sys) if "envsync" in name and vars(sys)[name]]


def test_a_nanny_of_another_python_is_given_nothing_that_it_could_not_load(wish: Wish) -> None:
    import pickle

    from distributed.diagnostics.plugin import NannyPlugin

    from envsync.plugins.mend import Orders

    pickled = Orders().pickled(wish.state(), nanny=True)
    assert type(cloudpickle.loads(pickled)).__name__ == "MendNanny"
    # as it would be there: the same bytes, and another version
    assert bytes([75, sys.version_info[1]]) in pickled
    there = pickled.replace(bytes([75, sys.version_info[1], 134]), bytes([75, 99, 134]))
    assert there != pickled
    assert type(pickle.loads(there)) is NannyPlugin


async def test_what_somebody_altered_or_removed_is_laid_anew(
    elsewhere: Elsewhere, wish: Wish, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "zz_mine.py").write_text("x = 1\n")
    wish.tree(code)
    elsewhere.worker("n", host="one")
    elsewhere.worker("w", nanny=False, host="other")
    async with Client(elsewhere.address, asynchronous=True) as client:
        for victim, kind in (("zz_pack/__init__.py", "content"), ("zz_mine.py", "source")):
            await wish.apply(client)
            for path in (tmp_path / "overlays").rglob(victim):
                path.unlink()
            assert await _differences(client, wish) == {kind}
            assert states(await wish.apply(client)) == {"n": "equal", "w": "equal"}
            assert await _differences(client, wish) == set()
            assert set((await client.run(_version)).values()) == {"2.0"}
        # what was imported may be what somebody wrote
        for path in (tmp_path / "overlays").rglob("zz_pack/__init__.py"):
            path.write_text("__version__ = 'of somebody'\n")
        answer = await wish.apply(client)
        assert states(answer) == {"n": "equal", "w": "restart-needed"}
        assert set((await client.run(_version)).values()) == {"2.0"}


async def _differences(client: Client, wish: Wish) -> set[str]:
    """What `envsync check` would say of the workers."""
    told = await client.run(Carried(check), wish.wanted)
    return {one["kind"] for found in told.values() for one in found if one["severity"] == "error"}


SMALL = """#!/bin/sh
mkdir -p "$ENVSYNC_OVERLAYS"
exec unshare --user --map-root-user --mount sh -c \
    'mount -t tmpfs -o size=200k,mode=700 none "$ENVSYNC_OVERLAYS" && exec "$0" "$@"' {python} "$@"
"""


@needs_mounts
async def test_a_full_disk_is_told_and_once_there_is_room_the_first_try_works(
    elsewhere: Elsewhere, others: Path, tmp_path: Path
) -> None:
    small = tmp_path / "python"
    small.write_text(SMALL.format(python=others))
    small.chmod(0o755)
    elsewhere.worker("w", nanny=False, python=small)
    wish = Wish(others)
    wish.ship(write_wheel(tmp_path / "wheels", "zz-pack", "2.0", body=f"x = {os.urandom(200_000).hex()!r}\n"))
    async with Client(elsewhere.address, asynchronous=True) as client:
        [entry] = (await wish.apply(client))["workers"].values()
        assert entry["state"] == "different"
        where = f"{tmp_path / 'overlays' / 'host'} on {socket.gethostname()}"
        assert f"No space left on device: {where}" in entry["trouble"]
        await client.scheduler.envsync_release(owner="ada")  # as a client does
        await client.run(_make_room)
        assert states(await wish.apply(client)) == {"w": "equal"}
        # and on the scheduler's own disk
        folder = await client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.local_directory)
        blobs = Path(folder, "envsync-blobs")
        blobs.rename(blobs.with_suffix(".away"))
        answer = await put(client, digest_of(b"x"), b"x")
        assert answer["refused"] == f"No such file or directory: {blobs} on {socket.gethostname()}"
        blobs.with_suffix(".away").rename(blobs)
        assert not (await put(client, digest_of(b"x"), b"x")).get("refused")


def _make_room() -> None:
    import subprocess

    subprocess.run(["mount", "-o", "remount,size=50m", os.environ["ENVSYNC_OVERLAYS"]], check=True)
