"""Workers run no task before they are known to have what is wanted, whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.comm import connect

from envsync.plugins.look import look

pytestmark = pytest.mark.slow

PROCESS = "import sys; from envsync.plugins.process import main; sys.exit(main(sys.argv[1:]))"


class Running:
    """A process of plugins/process.py, as the agent would start it."""

    def __init__(self, role: str, config: dict[str, Any], folder: Path, **environment: str) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(config))
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", PROCESS, role, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self.hello: dict[str, Any] = {}
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("@envsync "):
                self.hello = json.loads(line.removeprefix("@envsync "))
                self._said.set()
        self._said.set()

    def said(self) -> dict[str, Any]:
        assert self._said.wait(60), self.log
        return self.hello

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait(self) -> int:
        code: int = self.process.wait(60)
        self._thread.join(60)
        return code

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("it did not close when its input ended:\n" + self.log) from None


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[Running] = []

    def start(role: str, config: dict[str, Any], **environment: str) -> Running:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        one = Running(role, config, folder, **environment)
        running.append(one)
        return one

    yield start
    for one in reversed(running):
        one.end()


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What a lock of this environment would want."""
    report = look()
    return {
        "who": "lock",
        **{key: report[key] for key in ("interpreter", "platform")},
        "distributions": [
            {key: one[key] for key in ("name", "version", "record", "editable")}
            for one in report["distributions"]
            if not one["shadowed_by"]
        ],
    }


def scheduler(wanted: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False}
    return {"options": options, "wanted": wanted, **more}


def worker(address: str, wanted: dict[str, Any] | None, name: str, **more: Any) -> dict[str, Any]:
    options = {"scheduler": address, "name": name, "nthreads": 1, "memory_limit": 0, "host": "127.0.0.1"}
    return {"options": options, "wanted": wanted, **more}


def another_click(folder: Path) -> str:
    """Make another version of a package, and return the folder to put before the installed ones."""
    (folder / "click").mkdir(parents=True)
    (folder / "click" / "__init__.py").write_text("__version__ = '0.0.1'\n")
    (folder / "click-0.0.1.dist-info").mkdir()
    (folder / "click-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: click\nVersion: 0.0.1\n"
    )
    return str(folder)


def by_hand(address: str, start: Any, **environment: str) -> Any:
    """A worker that knows nothing of us."""
    return start("worker", worker(address, None, "by-hand"), **environment)


async def test_an_equal_worker_runs_tasks(start: Any, wanted: dict[str, Any]) -> None:
    address = start("scheduler", scheduler(wanted)).said()["address"]
    hello = start("worker", worker(address, wanted, "w")).said()
    assert "error" not in hello
    async with Client(address, asynchronous=True) as client:
        assert await client.submit(sum, [1, 2]) == 3
        state = await client.scheduler.envsync_state()
        assert [entry["state"] for entry in state["workers"].values()] == ["equal"]
        assert not state["refused"]


async def test_a_different_worker_runs_none_of_the_queued_tasks(
    start: Any, wanted: dict[str, Any], tmp_path: Path
) -> None:
    address = start("scheduler", scheduler(wanted)).said()["address"]
    async with Client(address, asynchronous=True) as client:
        marks = tmp_path / "marks"
        marks.mkdir()
        futures = client.map(
            lambda i: (marks / str(i)).write_text(os.environ["CLICK"]), range(20), pure=False
        )
        other = by_hand(address, start, PYTHONPATH=another_click(tmp_path / "other"), CLICK="other")
        assert await asyncio.to_thread(other.wait) == 0
        assert list(marks.iterdir()) == []
        assert "refused" in other.log
        assert "click is 0.0.1" in other.log
        # no task was blamed for it, and an equal worker takes them all
        state = await client.scheduler.envsync_state()
        assert [entry["name"] for entry in state["refused"]] == ["by-hand"]
        assert await client.run_on_scheduler(_suspicious) == 0
        start("worker", worker(address, wanted, "good"), CLICK="same")
        await asyncio.wait_for(client.gather(futures), 60)
        assert {mark.read_text() for mark in marks.iterdir()} == {"same"}


def _suspicious(dask_scheduler: Any) -> Any:
    return sum(task.suspicious for task in dask_scheduler.tasks.values())


async def test_our_own_worker_says_why_it_was_refused(
    start: Any, wanted: dict[str, Any], tmp_path: Path
) -> None:
    address = start("scheduler", scheduler(wanted)).said()["address"]
    other = start("worker", worker(address, wanted, "w"), PYTHONPATH=another_click(tmp_path / "other"))
    error = other.said()["error"]
    assert error["kind"] == "mismatch"
    [found] = [one for one in error["differences"] if one["subject"] == "click"]
    assert (found["severity"], found["right"], found["process"]) == ("error", "0.0.1", "worker w")
    assert await asyncio.to_thread(other.wait) == 4


async def test_a_worker_that_its_nanny_restarts_is_looked_at_again(
    start: Any, wanted: dict[str, Any], tmp_path: Path
) -> None:
    later = tmp_path / "later"
    later.mkdir()
    address = start("scheduler", scheduler(wanted)).said()["address"]
    running = start("worker", worker(address, wanted, "w"), PYTHONPATH=str(later))
    assert "error" not in running.said()
    async with Client(address, asynchronous=True) as client:
        another_click(later)
        [pid] = (await client.run(os.getpid)).values()
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.to_thread(running.wait) == 0
        state = await client.scheduler.envsync_state()
        assert [entry["name"] for entry in state["refused"]] == ["w"]


async def test_warn_admits_and_remembers(start: Any, wanted: dict[str, Any], tmp_path: Path) -> None:
    address = start("scheduler", scheduler(wanted, on_mismatch="warn")).said()["address"]
    by_hand(address, start, PYTHONPATH=another_click(tmp_path / "other"))
    async with Client(address, asynchronous=True) as client:
        assert await client.submit(sum, [1, 2]) == 3
        [entry] = (await client.scheduler.envsync_state())["workers"].values()
        assert entry["state"] == "different"
        assert "click" in {one["subject"] for one in entry["differences"]}
        [(_, event)] = await client.get_events("envsync")
        assert event["action"] == "admitted-different"


async def test_another_python_is_refused_at_the_door(start: Any, wanted: dict[str, Any]) -> None:
    address = start("scheduler", scheduler(wanted, on_mismatch="warn")).said()["address"]
    answer = await register(address, python="3.10.1.final.0")
    assert answer["status"] == "error"
    assert "python is 3.10.1 there and 3.11" in answer["message"].replace(sys.version.split()[0], "3.11")
    assert "worker-plugins" not in answer


async def test_another_msgpack_is_refused_at_the_door(start: Any, wanted: dict[str, Any]) -> None:
    address = start("scheduler", scheduler(wanted)).said()["address"]
    answer = await register(address, msgpack="0.1")
    assert answer["status"] == "error"
    assert "msgpack is 0.1 there" in answer["message"]


async def test_a_silent_worker_gets_no_task_and_is_removed(start: Any, wanted: dict[str, Any]) -> None:
    address = start("scheduler", scheduler(wanted, report_timeout=1.0)).said()["address"]
    async with Client(address, asynchronous=True) as client:
        future = client.submit(sum, [1, 2])
        comm = await connect(address)
        await comm.write(message(address))
        assert (await comm.read())["status"] == "OK"
        await comm.write([{"op": "worker-status-change", "status": "running", "stimulus_id": "test"}])
        heard: list[dict[str, Any]] = []
        with contextlib.suppress(OSError):
            while not any(one.get("op") == "close" for one in heard):
                heard += await asyncio.wait_for(comm.read(), 20)
        assert "compute-task" not in {one.get("op") for one in heard}
        assert "close" in {one.get("op") for one in heard}
        [entry] = (await client.scheduler.envsync_state())["refused"]
        assert "did not report" in entry["trouble"]
        future.release()


@pytest.mark.parametrize("same", ["name", "address"])
async def test_who_registers_twice_changes_nothing_for_who_is_there(
    start: Any, wanted: dict[str, Any], same: Any
) -> None:
    address = start("scheduler", scheduler(wanted)).said()["address"]
    worker_address = start("worker", worker(address, wanted, "w")).said()["address"]
    async with Client(address, asynchronous=True) as client:
        await client.run_on_scheduler(_hurry)  # it is in: whoever comes now has a second for its report
        before = await client.scheduler.envsync_state()
        comm = await connect(address)
        again = {"name": "w"} if same == "name" else {"address": worker_address}
        await comm.write({**message(address), **again})
        answer = await asyncio.wait_for(comm.read(), 60)
        assert answer["status"] == "error"
        assert answer["message"].startswith(same)
        comm.abort()
        await asyncio.sleep(1.5)  # longer than a report may take
        state = await client.scheduler.envsync_state()
        assert state == before
        assert [entry["state"] for entry in state["workers"].values()] == ["equal"]
        assert await asyncio.wait_for(client.submit(sum, [1, 2]), 60) == 3


def _hurry(dask_scheduler: Any) -> None:
    dask_scheduler.plugins["envsync-gate"].report_timeout = 1.0


def message(address: str, **versions: str) -> dict[str, Any]:
    from distributed.versions import get_versions

    known = get_versions()
    known["packages"].update(versions)
    return {
        "op": "register-worker",
        "reply": False,
        "address": "tcp://127.0.0.1:9",
        "status": "init",
        "nthreads": 1,
        "name": "made-up",
        "now": 0.0,
        "resources": {},
        "memory_limit": None,
        "local_directory": "",
        "services": {},
        "nanny": None,
        "pid": 1,
        "versions": known,
        "metrics": {
            "bandwidth": {"total": 1e8, "workers": {}, "types": {}},
            "digests_total_since_heartbeat": {},
            "event_loop_interval": 0.02,
            "executing": 0,
            "in_memory": 0,
            "managed_bytes": 0,
            "memory": 0,
            "spilled_bytes": {"memory": 0, "disk": 0},
            "task_counts": {},
        },
        "extra": {},
        "stimulus_id": "test",
        "server_id": "made-up",
    }


async def register(address: str, **versions: str) -> Any:
    comm = await connect(address)
    await comm.write(message(address, **versions))
    try:
        return await comm.read()
    finally:
        comm.abort()


async def test_a_scheduler_without_what_is_wanted_does_not_listen(start: Any, wanted: dict[str, Any]) -> None:
    more = {**wanted, "distributions": [*wanted["distributions"], {"name": "numpy", "version": "2.0"}]}
    refused = start("scheduler", scheduler(more))
    error = refused.said()["error"]
    assert error["kind"] == "mismatch"
    [found] = [one for one in error["differences"] if one["severity"] != "note"]
    assert (found["subject"], found["kind"], found["process"]) == ("numpy", "missing", "scheduler")
    assert await asyncio.to_thread(refused.wait) == 4


async def test_other_trees_can_be_wanted_later(start: Any, wanted: dict[str, Any], tmp_path: Path) -> None:
    digest = "ab" * 32
    folder = tmp_path / digest
    folder.mkdir()
    first = {**wanted, "trees": {}}
    address = start("scheduler", scheduler(first)).said()["address"]
    async with Client(address, asynchronous=True) as client:
        await client.scheduler.envsync_expect(wanted={**wanted, "trees": {"code": digest}})
        stale = start("worker", worker(address, first, "stale"))
        assert [
            one["kind"] for one in stale.said()["error"]["differences"] if one["severity"] == "error"
        ] == ["source"]
        fresh = start("worker", worker(address, first, "fresh"), PYTHONPATH=str(folder))
        assert "error" not in fresh.said()


async def test_a_taken_port_is_one_clear_line(start: Any, wanted: dict[str, Any]) -> None:
    first = start("scheduler", scheduler(None)).said()
    port = int(first["address"].rpartition(":")[2])
    second = start("scheduler", {"options": {"host": "127.0.0.1", "port": port, "dashboard": False}})
    error = second.said()["error"]
    assert error["kind"] == "port"
    assert str(port) in error["message"] or "in use" in error["message"]
    assert await asyncio.to_thread(second.wait) == 3


async def test_a_bad_option_is_told_with_its_traceback(start: Any) -> None:
    broken = start("scheduler", {"options": {"no_such_option": 1}})
    assert "no_such_option" in broken.said()["error"]["message"]
    assert await asyncio.to_thread(broken.wait) == 1
    assert "Traceback" in broken.log


@pytest.mark.parametrize("how", ["stdin", "sigterm"])
async def test_processes_close_gracefully(start: Any, how: Any) -> None:
    first = start("scheduler", scheduler(None))
    address = first.said()["address"]
    second = start("worker", worker(address, None, "w"))
    second.said()
    for one in (second, first):
        if how == "stdin":
            one.process.stdin.close()
        else:
            one.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.wait) == 0
    assert "envsync-told-to-end" in second.log
    assert "envsync-told-to-end" in first.log
