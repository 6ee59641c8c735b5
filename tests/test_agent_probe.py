"""What the agent finds out about a machine, on recorded file systems."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from envsync.agent.layout import Cache
from envsync.agent.probe import affinity, cores, interfaces, memory, numa, probe
from envsync.agent.pythons import choose, find, look
from envsync.plugins.scan import libc

GIB = 1 << 30


def record(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    root = record(tmp_path, **{"proc/self/cgroup": "0::/\n"})
    assert cores(root, affinity=8) == 8
    assert memory(root) == 16 * GIB


def test_the_tightest_cgroup_on_the_way_up_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice/job"
    root = record(
        tmp_path,
        **{
            "proc/self/cgroup": "0::/user.slice/job\n",
            f"{group}/cpu.max": "max 100000\n",
            f"{group}/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": str(4 * GIB),
        },
    )
    assert cores(root, affinity=8) == 2.5
    assert memory(root) == 4 * GIB


def test_cgroups_of_the_first_version(tmp_path: Path) -> None:
    root = record(
        tmp_path,
        **{
            "proc/self/cgroup": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
            # as seen in a container: the path is the host's, the limits are at the top
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
        },
    )
    assert cores(root, affinity=8) == 3
    assert memory(root) == 2 * GIB


def test_no_limit_in_the_first_version_is_a_huge_number(tmp_path: Path) -> None:
    root = record(
        tmp_path,
        **{
            "proc/self/cgroup": "9:memory:/\n4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cores(root, affinity=4) == 4
    assert memory(root) == 16 * GIB


def test_cores_are_those_of_the_cpuset(tmp_path: Path) -> None:
    new = record(
        tmp_path / "new",
        **{
            "proc/self/cgroup": "0::/job\n",
            "sys/fs/cgroup/job/cpuset.cpus.effective": "2-5\n",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-7\n",
        },
    )
    old = record(
        tmp_path / "old",
        **{
            "proc/self/cgroup": "4:cpuset:/oar/job_7\n",
            "sys/fs/cgroup/cpuset/oar/job_7/cpuset.cpus": "1,3\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
        },
    )
    assert affinity(new, {0, 1, 2, 3}) == [2, 3]
    assert affinity(old, {0, 1, 2, 3}) == [1, 3]
    assert affinity(tmp_path, {0, 1}) == [0, 1]


def test_numa_nodes_with_their_cores(tmp_path: Path) -> None:
    node = "sys/devices/system/node"
    root = record(
        tmp_path,
        **{
            f"{node}/node1/cpulist": "4-6,15\n",
            f"{node}/node1/meminfo": "Node 1 MemTotal:        1024 kB\n",
            f"{node}/node0/cpulist": "0-3\n",
            f"{node}/node0/meminfo": "Node 0 MemTotal:        2048 kB\n",
        },
    )
    assert numa(root) == [
        {"node": 0, "cores": [0, 1, 2, 3], "memory": 2048 * 1024},
        {"node": 1, "cores": [4, 5, 6, 15], "memory": 1024 * 1024},
    ]


def test_interfaces_are_those_of_this_machine() -> None:
    found = {nic["name"]: nic for nic in interfaces()}
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert found["lo"]["loopback"]
    assert "127.0.0.1" in found["lo"]["addresses"]
    assert found["lo"]["network"] == "127.0.0.0/255.0.0.0"


def test_the_whole_probe_is_plain_and_true(tmp_path: Path) -> None:
    facts = probe(Cache(tmp_path), [])
    assert facts["uid"] == os.getuid()
    assert 0 < facts["cores"] <= facts["cores_total"]
    assert 0 < facts["memory"] <= facts["memory_total"]
    assert facts["disk"]["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert facts["libc"] == libc()


def test_interpreters_are_found_once_and_remembered(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    shipped = tmp_path / "pythons" / "9.9.9-abcdef01" / "bin"
    shipped.mkdir(parents=True)
    script = shipped / "python3"
    script.write_text(
        "#!/bin/sh\n"
        f"echo asked >> {tmp_path}/asked\n"
        'echo \'{"implementation": "cpython", "version": "9.9.9", "executable": "/x"}\'\n'
    )
    script.chmod(0o755)
    assert "9.9.9" in [python["version"] for python in find(cache)]
    assert "9.9.9" in [python["version"] for python in find(cache)]
    assert (tmp_path / "asked").read_text() == "asked\n"
    script.write_text("#!/bin/sh\nexit 1\n")  # another file now: asked again
    assert "9.9.9" not in [python["version"] for python in find(cache)]


def test_what_does_not_run_is_no_interpreter(tmp_path: Path) -> None:
    assert look("/bin/false") is None
    assert look(str(tmp_path / "absent")) is None


def test_the_exact_version_is_chosen_before_the_same_minor_one() -> None:
    pythons = [
        {"implementation": "cpython", "version": version}
        for version in ("3.11.2", "3.11.10", "3.11.7", "3.12.1")
    ]
    exact = choose(pythons, "3.11.7", "cpython")
    other = choose(pythons, "3.11.9", "cpython")
    assert exact is not None
    assert other is not None
    assert (exact["version"], other["version"]) == ("3.11.7", "3.11.10")
    assert choose(pythons, "3.13.0", "cpython") is None
    assert choose(pythons, "3.11.7", "pypy") is None
    assert choose([{**pythons[0], "free_threaded": True}], "3.11.2", "cpython") is None
