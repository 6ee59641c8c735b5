"""GPUs that jobs of one user on one node share out among themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envsync.agent.allotting import Allotment, choose
from envsync.agent.layout import Problem
from tests.nvml import MISMATCH, Card, driver_library

NEAR = {0}


def gpu(name: str, numa: int | None, *processes: int) -> dict[str, Any]:
    return {"uuid": name, "numa": numa, "processes": list(processes)}


EIGHT = [gpu(f"GPU-{number}", number // 4) for number in range(8)]


def chosen(devices: list[dict[str, Any]], count: int, near: set[int] = NEAR) -> str:
    return "".join(one["uuid"][-1] for one in choose(devices, count, near))


def test_those_beside_our_cores_and_each_other() -> None:
    assert chosen(EIGHT, 2) == "01"
    assert chosen(EIGHT, 2, {1}) == "45"
    assert chosen(EIGHT, 4, {0, 1}) == "0123"
    assert chosen(EIGHT, 5) == "01234"
    assert chosen(EIGHT[3:], 2) == "45"  # one is left beside our cores: rather both on the other side
    assert chosen(EIGHT[2:], 2, {0, 1}) == "23"  # where less is left: the four of the other stay together
    assert chosen(EIGHT, 9) == ""
    assert chosen([gpu("GPU-0", None), gpu("GPU-1", None)], 1) == "0"


def test_those_that_somebody_computes_on_come_last() -> None:
    devices = [gpu("GPU-0", 0, 123), *EIGHT[1:4], gpu("GPU-4", 1)]
    assert chosen(devices, 1) == "1"
    assert chosen(devices, 5) == "01234"
    assert chosen([gpu("GPU-0", 0, 123), gpu("GPU-1", 0)], 2) == "01"


HOLD = """
import sys
from envsync.agent.allotting import Allotment
allotment = Allotment(sys.argv[3:], sys.argv[2])
print(*allotment.take(int(sys.argv[1]), "job 17")["gpus"], flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that holds devices, as another job's agent does."""

    def __init__(self, count: int, library: Path, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(count), library, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.gpus = set(self.process.stdout.readline().split())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    found: list[Holder] = []
    yield found
    for holder in found:
        holder.kill()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return driver_library(tmp_path / "driver", [Card(uuid=f"GPU-{number}") for number in range(4)])


def test_no_two_jobs_have_the_same(
    tmp_path: Path, library: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    holders.append(Holder(2, library, tmp_path))
    first = holders[0]
    assert len(first.gpus) == 2
    ours = Allotment([str(tmp_path)], str(library))
    assert len(first.gpus | set(ours.take(1, "job 18")["gpus"])) == 3
    with pytest.raises(Problem) as refused:
        ours.take(2, "job 18")
    said = refused.value.message
    assert "asked for 2, 4 to be seen here, 1 of them free" in said
    assert all(f"{name} is held by process {first.process.pid} (job 17)" in said for name in first.gpus)
    assert f"process {os.getpid()} (job 18)" in said
    first.kill()  # the kernel gives them back
    assert set(ours.take(2, "job 18")["gpus"]) >= first.gpus - {"GPU-3"}
    folder = tmp_path / f"envsync-gpus-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_the_site_made_visible_is_all_there_is(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    ours = Allotment([str(tmp_path)], str(library))
    with pytest.raises(Problem, match="asked for 3, 2 to be seen here"):
        ours.take(3, "job")
    assert set(ours.take(2, "job")["gpus"]) == {"GPU-1", "GPU-3"}


def test_who_computes_on_one_already_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards = [Card(uuid="GPU-0", processes=[os.getpid()]), Card(uuid="GPU-1")]
    library = str(driver_library(tmp_path, cards))
    assert Allotment([str(tmp_path)], library).take(1, "job") == {"gpus": ["GPU-1"], "notes": []}
    taken = Allotment([str(tmp_path)], library).take(1, "job")
    assert taken["gpus"] == ["GPU-0"]
    assert taken["notes"][0].startswith(f"GPU-0 has others on it: process {os.getpid()} of ")


def test_a_folder_that_is_not_ours_is_not_trusted(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = tmp_path / "first", tmp_path / "second"
    elsewhere = tmp_path / "elsewhere"
    for folder in (first, second, elsewhere):
        folder.mkdir()
    (first / f"envsync-gpus-{os.getuid()}").symlink_to(elsewhere)
    ours = Allotment([str(tmp_path / "missing"), str(first), str(second)], str(library))
    assert len(ours.take(1, "job")["gpus"]) == 1
    assert not list(elsewhere.iterdir())
    assert list(second.glob("*/GPU-*.lock"))
    with pytest.raises(Problem, match="no place for locks"):
        Allotment([str(first)], str(library)).take(1, "job")


def test_a_driver_that_fails_is_told_by_its_name(tmp_path: Path) -> None:
    library = driver_library(tmp_path, init=MISMATCH)
    with pytest.raises(Problem, match=r"1, 0 to be seen.*NVML_ERROR_LIB_RM_VERSION_MISMATCH"):
        Allotment([str(tmp_path)], str(library)).take(1, "job")
