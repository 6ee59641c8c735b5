"""Processes that start beside the scheduler: taken if they are as they would be, else ended."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envsync.errors import AgentError
from envsync.runner.places import Place
from envsync.runner.processes import Launch, WorkerProcess
from envsync.runner.warming import Warm

VARIABLES = {"PYTHONHASHSEED": "6640"}
CONFIG = {"dask": {"distributed": {"comm": {"offload": 1048576}}}, "cpus": None, "wanted": "a lock"}


class Process:
    """What the agent has started."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self.name, self.files = name, dict(files)
        self.running, self.lost = True, None
        self.unable: Exception | None = None

    async def hand(self, files: Mapping[str, bytes], line: str) -> None:
        if self.unable is not None:
            raise self.unable
        self.files.update(files)

    async def said(self, timeout: float) -> dict[str, Any]:
        return {"address": f"tcp://127.0.0.1:{1000 + len(self.files)}"}

    async def stop(self, grace: float) -> None:
        self.running = False

    def on_exit(self, call: Any) -> None:
        pass


class Session:
    agent = "agent.pyz"

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.failing: Exception | None = None

    def run_folder(self, cluster: str, name: str) -> str:
        return f"runs/{cluster}/{name}"

    async def spawn(self, name: str, argv: list[str], *, files: Mapping[str, bytes], **_: Any) -> Process:
        await asyncio.sleep(0)
        if self.failing is not None:
            raise self.failing
        self.processes.append(Process(name, files))
        return self.processes[-1]

    @property
    def survivors(self) -> list[str]:
        return [one.name for one in self.processes if one.running]


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def place(session: Session) -> Place:
    return Place(name="node", session=session, python="python")  # type: ignore[arg-type]


async def test_one_that_is_as_it_would_be_is_taken_once(session: Session, place: Place) -> None:
    warm = Warm("ada-1")
    warm.begin(place, "worker_0", VARIABLES, CONFIG)
    known = {"wanted": "another", "options": {}, "cpus": []}  # as it is where none are bound
    taken = await warm.take(place, "worker_0", VARIABLES, {**CONFIG, **known})
    assert taken is not None
    assert json.loads(session.processes[0].files["first.json"]) == {"cpus": None, "dask": CONFIG["dask"]}
    assert await warm.take(place, "worker_0", VARIABLES, CONFIG) is None
    await warm.close()
    assert session.survivors == ["worker_0"]


@pytest.mark.parametrize(
    ("variables", "config"),
    [
        ({"PYTHONHASHSEED": "7"}, {}),
        (VARIABLES, {"dask": {}}),
        (VARIABLES, {"cpus": [1]}),
        (VARIABLES, {"env": {"DASK_DISTRIBUTED__COMM__OFFLOAD": "1"}}),
    ],
)
async def test_one_that_would_be_another_ends(
    session: Session, place: Place, variables: dict[str, str | None], config: dict[str, Any]
) -> None:
    warm = Warm("ada-1")
    warm.begin(place, "worker_0", VARIABLES, CONFIG)
    assert await warm.take(place, "worker_0", variables, {**CONFIG, **config}) is None
    assert session.survivors == []


async def test_those_that_nobody_takes_end(session: Session, place: Place) -> None:
    warm = Warm("ada-1")
    for number in range(3):
        warm.begin(place, f"worker_{number}", VARIABLES, CONFIG)
    assert await warm.take(place, "worker_1", VARIABLES, CONFIG) is not None
    await warm.close()
    assert session.survivors == ["worker_1"]
    session.failing = AgentError("the way was lost")
    warm.begin(place, "worker_3", VARIABLES, CONFIG)
    assert await warm.take(place, "worker_3", VARIABLES, CONFIG) is None  # who starts it now hears why


async def test_one_that_dies_before_it_is_handed_its_work_is_started_anew(
    session: Session, place: Place
) -> None:
    warm = Warm("ada-1")
    launch = Launch(
        cluster="ada-1",
        common={"dask": {}},
        credentials=lambda role, names: None,
        start_timeout=5,
        hooks=SimpleNamespace(step=lambda *_: None, done=lambda *_: None),  # type: ignore[arg-type]
        lost=lambda process: None,
        terminate=lambda process: None,
        retire=lambda names: asyncio.sleep(0, set()),
        remove=lambda names: asyncio.sleep(0),
        warm=warm,
    )
    worker = WorkerProcess(
        "tcp://127.0.0.1:1", launch=launch, place=place, name=0, config={}, nthreads=1, memory_limit=0
    )
    warm.begin(place, "worker_0", {**place.environment(), **worker.variables()}, {**launch.common})
    await asyncio.sleep(0.01)
    session.processes[0].unable = AgentError("worker_0 could not be given what it waits for: Broken pipe")
    await worker.start()
    first, second = session.processes
    assert (first.running, second.running) == (False, True)
    assert "config.json" in second.files
    assert worker.remote is second  # type: ignore[comparison-overlap]


def test_what_is_read_when_distributed_is_imported_is_set_before(tmp_path: Path) -> None:
    (tmp_path / "first.json").write_text(json.dumps(CONFIG))
    program = (
        "import sys; from envsync.plugins import process\n"
        "def line():\n"
        "    from distributed.comm.utils import OFFLOAD_THRESHOLD; print(OFFLOAD_THRESHOLD); return ''\n"
        "process._line = line; sys.exit(process.main(['worker', '-', 'first.json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1048576\n"
