"""What a machine has: cores, memory, NUMA nodes, network interfaces, disk, libc.

Every function takes the root of the file system it reads, so that it can be tried on a recorded one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Iterator

from ..plugins.scan import libc
from .gpus import gpus
from .layout import Cache

__all__ = ["affinity", "cores", "interfaces", "memory", "numa", "probe", "version"]

_ADDRESS = 0x8915  # SIOCGIFADDR
_MASK = 0x891B  # SIOCGIFNETMASK
_FLAGS = 0x8913  # SIOCGIFFLAGS
_UP, _LOOPBACK = 0x1, 0x8
_HUGE = 1 << 60  # what cgroup v1 says for "no limit" is a little less than 2**63


def probe(cache: Cache, pythons: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts of this machine.

    Parameters
    ----------
    cache : Cache
        On whose disk there has to be room.
    pythons : list of dict
        The interpreters that were found.

    Returns
    -------
    dict
        JSON types: ``hostname user uid pid home system machine kernel libc python pythons cores cores_total
        affinity memory memory_total numa gpus gpus_missing cuda_visible_devices nics addresses disk``. Sizes
        are bytes; ``cores`` (a float where a limit is a fraction), ``affinity`` and ``memory`` are what
        processes here may use, limits of cgroups included.
    """
    total = _meminfo(Path("/"))
    found, missing = gpus()
    allowed = affinity()
    nics = interfaces()
    disk = os.statvfs(cache.root)
    machine = os.uname()
    return {
        "hostname": machine.nodename,
        "user": _user(),
        "uid": os.getuid(),
        "pid": os.getpid(),
        "home": os.environ.get("HOME", ""),
        "system": sys.platform,
        "machine": machine.machine,
        "kernel": machine.release,
        "libc": libc(),
        "python": {"version": version(), "executable": sys.executable},
        "pythons": pythons,
        "cores": cores(affinity=len(allowed)),
        "cores_total": os.cpu_count() or 1,
        "affinity": allowed,
        "memory": memory(),
        "memory_total": total,
        "numa": numa(),
        "gpus": found,
        "gpus_missing": missing,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "nics": nics,
        "addresses": [a for nic in nics if nic["up"] and not nic["loopback"] for a in nic["addresses"]],
        "disk": {
            "path": str(cache.root),
            "free": disk.f_bavail * disk.f_frsize,
            "total": disk.f_blocks * disk.f_frsize,
        },
    }


def version() -> str:
    """Return this interpreter's version as PEP 440 has it, such as ``"3.13.0rc1"``."""
    major, minor, micro, level, serial = sys.version_info
    kind = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(level)
    return f"{major}.{minor}.{micro}" + (f"{kind}{serial}" if kind else "")


def affinity(root: Path = Path("/"), given: set[int] | None = None) -> list[int]:
    """Return the cores that processes may run on: those of the affinity that are in the cgroup's cpuset."""
    usable = set(os.sched_getaffinity(0)) if given is None else given
    for folder in _cgroups(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            with contextlib.suppress(OSError, ValueError):
                usable = usable & set(_list((folder / name).read_text(encoding="ascii"))) or usable
    return sorted(usable)


def cores(root: Path = Path("/"), affinity: int | None = None) -> float:
    """Return how many cores may be used: those of the affinity, less where a cgroup allows less."""
    usable = float(affinity or len(os.sched_getaffinity(0)))
    for folder in _cgroups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            usable = min(usable, int(quota) / int(period))  # ValueError: "max"
        with contextlib.suppress(OSError, ValueError):
            old = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            if old > 0:
                usable = min(usable, old / int((folder / "cpu.cfs_period_us").read_text(encoding="ascii")))
    return int(usable) if usable == int(usable) else round(usable, 3)


def memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory may be used: the machine's, less where a cgroup allows less."""
    usable = _meminfo(root)
    for folder in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / name).read_text(encoding="ascii"))  # ValueError: "max"
                if 0 < limit < _HUGE:
                    usable = min(usable, limit)
    return usable


def numa(root: Path = Path("/")) -> list[dict[str, Any]]:
    """Return the NUMA nodes that the kernel names: ``{"node", "cores": list, "memory": bytes}``."""
    found = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            size = (folder / "meminfo").read_text(encoding="ascii").split("MemTotal:")[1].split()[0]
            found.append(
                {
                    "node": int(folder.name[4:]),
                    "cores": _list((folder / "cpulist").read_text(encoding="ascii")),
                    "memory": int(size) * 1024,
                }
            )
    return sorted(found, key=lambda node: int(str(node["node"])))


def interfaces() -> list[dict[str, Any]]:
    """Return the network interfaces.

    Each is ``{"name", "addresses", "network", "up", "loopback", "speed", "numa"}``: its network as
    ``10.1.0.0/255.255.0.0`` (IPv4; empty if it has none), Mbit/s, and the NUMA node that its card hangs on.
    """
    six = dict(_six())
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            addresses: list[str] = []
            flags, network = 0, ""
            with contextlib.suppress(OSError):
                flags = struct.unpack("H", fcntl.ioctl(asking, _FLAGS, request)[16:18])[0]
            with contextlib.suppress(OSError):  # it has no address
                own = fcntl.ioctl(asking, _ADDRESS, request)[20:24]
                addresses.append(socket.inet_ntoa(own))
                mask = fcntl.ioctl(asking, _MASK, request)[20:24]
                base = bytes(part & kept for part, kept in zip(own, mask))
                network = f"{socket.inet_ntoa(base)}/{socket.inet_ntoa(mask)}"
            found.append(
                {
                    "name": name,
                    "addresses": addresses + six.get(name, []),
                    "network": network,
                    "up": bool(flags & _UP),
                    "loopback": bool(flags & _LOOPBACK),
                    "speed": _number_in(f"/sys/class/net/{name}/speed", least=1),
                    "numa": _number_in(f"/sys/class/net/{name}/device/numa_node", least=0),
                }
            )
    return found


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and those above it, version 2 and version 1."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            tree = base
        elif controller in names.split(","):
            tree = base / controller
        else:
            continue
        folder = tree / path.lstrip("/")
        while (
            True
        ):  # in a container the path may be the host's, which is not there: its parents end at the top
            yield folder
            if folder == tree or tree not in folder.parents:
                break
            folder = folder.parent


def _meminfo(root: Path) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = (root / "proc/meminfo").read_text(encoding="ascii")
        return int(text.split("MemTotal:")[1].split()[0]) * 1024
    return 0


def _list(text: str) -> list[int]:
    """Return the numbers of the kernel's ``0-3,8``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _six() -> Iterator[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            digits, _, _, scope, _, name = line.split()
            if scope != "20":  # link-local addresses need a zone, and mean nothing elsewhere
                found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return iter(found.items())


def _number_in(path: str, least: int) -> int | None:
    """Return the number in a file; None where it has none, or a smaller one."""
    with contextlib.suppress(OSError, ValueError):
        number = int(Path(path).read_text(encoding="ascii"))
        return number if number >= least else None
    return None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
