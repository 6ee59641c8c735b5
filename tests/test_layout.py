from __future__ import annotations

from typing import Any

import dask.system
import pytest
from distributed import LocalCluster

from envsync.runner.layout import devices, layout, local_layout, memory_bytes, spread

GIB = 2**30
LEFT, RIGHT = tuple(range(8)), tuple(range(8, 16))
NUMA = [{"node": 0, "cores": list(LEFT), "memory": 1}, {"node": 1, "cores": list(RIGHT), "memory": 1}]
PLAIN = {"cores": 8, "memory": 64 * GIB, "numa": NUMA[:1], "gpus": [], "cuda_visible_devices": None}
GPUS = {
    "cores": 16,
    "memory": 128 * GIB,
    "numa": NUMA,
    "gpus": [
        {"index": index, "uuid": f"GPU-{letter}", "numa": index // 2, "mig": None}
        for index, letter in enumerate("abcd")
    ],
}


def test_without_gpus_as_localcluster_divides_cores() -> None:
    specs = layout(PLAIN)
    assert [(one.nthreads, one.memory_limit, one.gpus) for one in specs] == [(2, 16 * GIB, None)] * 4
    assert specs[0].environment() == {}
    assert specs[0].resources == {}


def test_threads_decide_the_number_of_workers() -> None:
    assert [one.nthreads for one in layout(PLAIN, threads_per_worker=4)] == [4, 4]
    assert [one.nthreads for one in layout(PLAIN, threads_per_worker=100)] == [100]


def test_number_of_workers_decides_the_threads() -> None:
    specs = layout(PLAIN, n_workers=3)
    assert [one.nthreads for one in specs] == [3, 3, 3]
    assert layout(PLAIN, n_workers=0) == ()


def test_one_worker_per_gpu_pinned_beside_it() -> None:
    specs = layout(GPUS)
    assert [one.gpus for one in specs] == [("GPU-a",), ("GPU-b",), ("GPU-c",), ("GPU-d",)]
    assert [one.environment()["CUDA_VISIBLE_DEVICES"] for one in specs] == [
        "GPU-a",
        "GPU-b",
        "GPU-c",
        "GPU-d",
    ]
    assert [one.resources for one in specs] == [{"GPU": 1}] * 4
    assert [one.cpus for one in specs] == [LEFT] * 2 + [RIGHT] * 2
    assert [one.nthreads for one in specs] == [1] * 4
    assert specs[0].memory_limit == 32 * GIB


def test_fewer_workers_than_gpus_share_them_out() -> None:
    specs = layout(GPUS, n_workers=2)
    assert [one.gpus for one in specs] == [("GPU-a", "GPU-b"), ("GPU-c", "GPU-d")]
    assert [one.resources["GPU"] for one in specs] == [2, 2]


def test_more_workers_than_gpus_share_each() -> None:
    specs = layout(GPUS, n_workers=8)
    assert [one.gpus for one in specs] == [
        (name,) for name in ["GPU-a", "GPU-b", "GPU-c", "GPU-d"] for _ in range(2)
    ]
    assert [one.resources["GPU"] for one in specs] == [0.5] * 8


def test_mig_instances_stand_in_for_their_gpu() -> None:
    gpus = [
        {"index": 0, "uuid": "GPU-a", "mig": [{"uuid": "MIG-1"}, {"uuid": "MIG-2"}]},
        {"index": 1, "uuid": "GPU-b", "mig": None},
        {"index": 2, "uuid": "GPU-c", "mig": []},
    ]
    facts = {**GPUS, "gpus": gpus}
    assert [device.uuid for device in devices(facts)] == ["MIG-1", "MIG-2", "GPU-b"]
    assert [one.gpus for one in layout(facts)] == [("MIG-1",), ("MIG-2",), ("GPU-b",)]
    # CUDA shows a process one instance, however many are named
    assert [one.gpus for one in layout(facts, n_workers=1)] == [("MIG-1",)]
    assert layout(facts, n_workers=1)[0].resources == {"GPU": 1}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,0", ["GPU-c", "GPU-a"]),
        ("GPU-d", ["GPU-d"]),
        ("", []),
        (None, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]),
    ],
)
def test_the_hosts_own_choice_of_gpus_is_kept(visible: Any, expected: Any) -> None:
    assert [device.uuid for device in devices({**GPUS, "cuda_visible_devices": visible})] == expected


def test_numa_nodes_bind_workers_where_no_core_is_lost() -> None:
    facts = {"cores": 16, "memory": 64 * GIB, "numa": NUMA}
    assert [one.cpus for one in layout(facts, n_workers=4)] == [LEFT] * 2 + [RIGHT] * 2
    assert layout(facts, n_workers=1)[0].cpus == ()
    assert layout(facts, n_workers=3)[0].cpus == ()
    allowed = {**facts, "affinity": [0, 1, 8, 9]}
    assert [one.cpus for one in layout(allowed, n_workers=2)] == [(0, 1), (8, 9)]


def test_gpu_workers_stay_on_the_cores_that_they_were_given() -> None:
    given = {**GPUS, "affinity": [2, 3, 10, 11], "cores": 4}
    assert [one.cpus for one in layout(given)] == [(2, 3)] * 2 + [(10, 11)] * 2
    # none beside the last two GPUs, too few beside the first two, and but one node: nowhere better to be
    assert [one.cpus for one in layout({**given, "affinity": [2, 3]})] == [()] * 4
    assert [one.cpus for one in layout({**given, "affinity": [2, 8, 9, 10]})] == [()] * 2 + [(8, 9, 10)] * 2
    assert [one.cpus for one in layout(given, threads_per_worker=2)] == [()] * 4


def nic(name: str, address: str, network: str, numa: int | None = None, **more: Any) -> dict[str, Any]:
    about = {"name": name, "addresses": [address], "network": network, "numa": numa}
    return {**about, "up": True, "loopback": False, "speed": None, **more}


FABRIC = "10.1.0.0/255.255.0.0"
RAILS = [nic("ib0", "10.1.0.1", FABRIC, 0), nic("ib1", "10.1.0.2", FABRIC, 1)]


@pytest.mark.parametrize(
    ("nics", "scheduler", "expected"),
    [
        (RAILS, "10.1.9.9", ["ib0", "ib0", "ib1", "ib1"]),
        (RAILS, "", [None] * 4),
        (RAILS, "10.2.9.9", [None] * 4),  # by way of a router: which of them reaches it, nobody knows
        (RAILS, "10.1.0.1", [None] * 4),  # it is here
        (RAILS, "head", [None] * 4),
        (RAILS[:1], "10.1.9.9", [None] * 4),
        ([*RAILS, nic("ib2", "10.1.0.3", FABRIC, 1)], "10.1.9.9", ["ib0", "ib0", None, None]),
        ([RAILS[0], nic("eth0", "10.1.0.5", FABRIC)], "10.1.9.9", ["ib0", "ib0", None, None]),
        ([RAILS[0], nic("ib1", "10.3.0.2", "10.3.0.0/255.255.0.0", 1)], "10.1.9.9", [None] * 4),
        ([RAILS[0], nic("ib1", "10.1.0.2", FABRIC, 1, up=False)], "10.1.9.9", [None] * 4),
    ],
)
def test_the_interface_beside_the_gpu_where_that_is_certain(nics: Any, scheduler: str, expected: Any) -> None:
    specs = layout({**GPUS, "nics": nics}, scheduler=scheduler)
    assert [one.interface for one in specs] == expected


def test_half_a_core_is_a_core() -> None:
    assert [one.nthreads for one in layout({"cores": 0.5, "memory": GIB})] == [1]


def test_user_resources_come_on_top() -> None:
    assert layout(GPUS, resources={"disk": 2})[0].resources == {"GPU": 1, "disk": 2}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("auto", 4 * GIB),
        (None, 0),
        (0, 0),
        (0.5, 8 * GIB),
        ("1GiB", GIB),
        (12345, 12345),
        ("64GiB", 16 * GIB),
    ],
)
def test_memory_limits(limit: Any, expected: Any) -> None:
    assert memory_bytes(limit, 16 * GIB, 4) == expected


def test_spread_is_even() -> None:
    assert spread(7, 3) == [3, 2, 2]
    assert spread(1, 3) == [1, 0, 0]


@pytest.mark.parametrize("bad", [{"n_workers": -1}, {"threads_per_worker": 0}])
def test_senseless_numbers_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        layout(PLAIN, **bad)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"n_workers": 1},
        {"n_workers": 3},
        {"threads_per_worker": 1},
        {"n_workers": 2, "threads_per_worker": 3},
    ],
)
async def test_the_local_layout_is_localclusters_own(asked: Any) -> None:
    # threads, not processes, only so that nothing has to be started: the arithmetic is looked at
    specs, later = local_layout(**asked, cores=dask.system.CPU_COUNT, memory=10 * GIB)
    cluster = LocalCluster(**asked, asynchronous=True, dashboard_address=None)
    try:
        assert len(specs) == len(cluster.worker_spec)
        assert later.nthreads == cluster.new_spec["options"]["nthreads"]
    finally:
        await cluster.close()
