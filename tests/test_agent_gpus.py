"""GPUs as the driver's library tells of them, with a library of our own that answers as on real machines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from envsync.agent.gpus import gpus, visible
from tests.nvml import LOST, MISMATCH, NO_PERMISSION, Card, driver_library

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

EIGHT = [Card(uuid=f"GPU-{number:02x}{number:06x}", bus=0x10 + number) for number in range(8)]
CUT = Card(
    uuid="GPU-cut",
    mig=[
        Card(uuid="MIG-aa-1", ids=(1, 0)),
        Card(uuid="MIG-ab-2", ids=(2, 0)),
        Card(uuid="MIG-b", ids=(5, 1)),
    ],
)


def test_gpus_through_the_drivers_library(tmp_path: Path) -> None:
    (first, second), missing = gpus(str(driver_library(tmp_path)), processes=True)
    assert (first["name"], first["uuid"], first["memory"], first["free"]) == ("Card A", "GPU-1", 1000, 500)
    assert (first["driver"], first["cuda"], first["pci"]) == ("550.54.14", "12.4", "0000:c1:00.0")
    assert first["mig"] is None
    assert second["mig"] == [
        {"name": "Card B MIG 1g", "uuid": "MIG-11", "memory": 11000, "free": 500}
        | {"gi": 0, "ci": 0, "processes": []}
    ]
    assert missing == "device 2 of 3: NVML_ERROR_GPU_IS_LOST"


def test_what_went_wrong_is_told_by_its_name(tmp_path: Path) -> None:
    assert gpus("libno-such-driver.so.1")[0] == []
    assert "libno-such-driver.so.1" in gpus("libno-such-driver.so.1")[1]
    found, missing = gpus(str(driver_library(tmp_path / "mismatch", init=MISMATCH)))
    assert found == []
    assert missing.startswith("nvmlInit_v2: NVML_ERROR_LIB_RM_VERSION_MISMATCH")
    found, missing = gpus(str(driver_library(tmp_path / "denied", init=NO_PERMISSION)))
    assert (found, missing) == ([], "nvmlInit_v2: NVML_ERROR_NO_PERMISSION")


def test_two_numa_nodes_with_eight(tmp_path: Path) -> None:
    for number in range(8):
        node = tmp_path / f"sys/bus/pci/devices/0000:{0x10 + number:02x}:00.0/numa_node"
        node.parent.mkdir(parents=True)
        node.write_text(f"{number // 4}\n")
    found, missing = gpus(str(driver_library(tmp_path, EIGHT)), root=tmp_path)
    assert [gpu["numa"] for gpu in found] == [0] * 4 + [1] * 4
    assert missing == ""


def test_what_a_cgroup_withholds_is_not_counted(tmp_path: Path) -> None:
    """NVML may count it, and give no permission: CUDA's first is the first that we may use."""
    cards = [Card(uuid=one.uuid, status=0 if number in (5, 6) else 4) for number, one in enumerate(EIGHT)]
    found, missing = gpus(str(driver_library(tmp_path / "counted", cards)))
    assert [(gpu["index"], gpu["uuid"]) for gpu in found] == [(0, EIGHT[5].uuid), (1, EIGHT[6].uuid)]
    assert missing == "device 0, 1, 2, 3, 4, 7 of 8: NVML_ERROR_NO_PERMISSION"
    assert [part["uuid"] for part in visible(found, "1")] == [EIGHT[6].uuid]


def test_one_that_is_lost_keeps_its_number(tmp_path: Path) -> None:
    cards = [EIGHT[0], Card(uuid="", status=LOST), EIGHT[2]]
    found, _ = gpus(str(driver_library(tmp_path, cards)))
    assert [gpu["index"] for gpu in found] == [0, 2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cards = [
        Card(uuid="GPU-a1b2c3", processes=[os.getpid()]),
        Card(uuid="GPU-a1ffff"),
        CUT,
        Card(uuid="GPU-d4"),
    ]
    return gpus(str(driver_library(tmp_path_factory.mktemp("nvml"), cards)), processes=True)[0]


SLICES = ["MIG-aa-1", "MIG-ab-2", "MIG-b"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["GPU-a1b2c3", "GPU-a1ffff", *SLICES, "GPU-d4"]),
        ("3,0", ["GPU-d4", "GPU-a1b2c3"]),
        ("2", SLICES),
        (" 3 , 1", ["GPU-d4", "GPU-a1ffff"]),
        ("GPU-d", ["GPU-d4"]),
        ("GPU-a1b2c3,GPU-a1f", ["GPU-a1b2c3", "GPU-a1ffff"]),
        ("3,GPU-a1,0", ["GPU-d4"]),  # that may be two
        ("0,2,-1,1", ["GPU-a1b2c3", *SLICES]),
        ("0,7,1", ["GPU-a1b2c3"]),
        ("0,0,1", ["GPU-a1b2c3", "GPU-a1ffff"]),
        ("MIG-b,0", ["MIG-b", "GPU-a1b2c3"]),
        ("MIG-ab", ["MIG-ab-2"]),
        ("MIG-a", []),
        ("MIG-GPU-cut/5/1,MIG-GPU-cut/1/0", ["MIG-b", "MIG-aa-1"]),
        ("MIG-GPU-cut/9/9,0", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
    ],
)
def test_names_are_read_as_cuda_reads_them(
    machine: list[dict[str, Any]], names: str | None, expected: list[str]
) -> None:
    assert [part["uuid"] for part in visible(machine, names)] == expected


def test_who_computes_on_one_is_known(machine: list[dict[str, Any]]) -> None:
    assert [part["processes"] for part in visible(machine, "0,1")] == [[os.getpid()], []]
