"""NVIDIA's GPUs, through the driver's own library (NVML), which is where the driver is and nowhere else."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

__all__ = ["gpus", "visible"]

_OK, _NO_PERMISSION = 0, 4
_TEXT = 96
_MOST = 256  # processes of one device that are listed

_STATUS = {
    1: "UNINITIALIZED",
    2: "INVALID_ARGUMENT",
    3: "NOT_SUPPORTED",
    4: "NO_PERMISSION",
    5: "ALREADY_INITIALIZED",
    6: "NOT_FOUND",
    7: "INSUFFICIENT_SIZE",
    8: "INSUFFICIENT_POWER",
    9: "DRIVER_NOT_LOADED",
    10: "TIMEOUT",
    11: "IRQ_ISSUE",
    12: "LIBRARY_NOT_FOUND",
    13: "FUNCTION_NOT_FOUND",
    14: "CORRUPTED_INFOROM",
    15: "GPU_IS_LOST",
    16: "RESET_REQUIRED",
    17: "OPERATING_SYSTEM",
    18: "LIB_RM_VERSION_MISMATCH",
    19: "IN_USE",
    20: "MEMORY",
    21: "NO_DATA",
    22: "VGPU_ECC_NOT_SUPPORTED",
    23: "INSUFFICIENT_RESOURCES",
    999: "UNKNOWN",
}
"""NVML's names of what its functions return (nvmlReturn_t), without ``NVML_ERROR_``."""

_MEANS = {
    9: "the driver is not loaded",
    18: "the driver that runs is not of the library's version: reload it, or start the machine again",
}


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Pci(ctypes.Structure):
    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("ids", ctypes.c_uint * 2),
        ("address", ctypes.c_char * 32),
    ]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


def gpus(
    library: str = "libnvidia-ml.so.1", *, processes: bool = False, root: Path = Path("/")
) -> tuple[list[dict[str, Any]], str]:
    """Return the GPUs that may be used here, and why there are not more.

    Each is ``{"index", "name", "uuid", "memory", "free", "driver", "cuda", "pci", "numa", "mig"}``: memory in
    bytes, the driver's version and the newest CUDA that it runs, the NUMA node or None, and the MIG
    instances, each ``{"name", "uuid", "memory", "free", "gi", "ci"}`` (None where MIG is off).

    In a cgroup that does not let us have all devices NVML may still count the others, and say that we have no
    permission. CUDA does not count them, and so ``index`` does not.

    Parameters
    ----------
    library : str
        The file or name of the library.
    processes : bool
        Whether to add ``"processes"`` to each GPU and instance: the ids of those that compute on it.
    root : Path
        The root of the file system.

    Returns
    -------
    list of dict
        The GPUs; empty where there is no driver.
    str
        What NVML could not say, with its own names of what went wrong; empty if it said all.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        return [], f"there is no NVIDIA driver's library: {error}"
    status = _call(nvml, "nvmlInit_v2")
    if status != _OK:
        return [], f"nvmlInit_v2: {_name(status)}"
    try:
        count = ctypes.c_uint()
        status = _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        if status != _OK:
            return [], f"nvmlDeviceGetCount_v2: {_name(status)}"
        driver = _string(nvml, "nvmlSystemGetDriverVersion")
        cuda = _number(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0
        found: list[dict[str, Any]] = []
        failed: dict[int, list[str]] = {}
        index = 0
        for number in range(count.value):
            device = ctypes.c_void_p()
            asked = ("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(device))
            status = _call(nvml, *asked)
            if status == _OK:
                pci = _pci(nvml, device)
                found.append(
                    {
                        "index": index,
                        **_device(nvml, device, processes),
                        "driver": driver,
                        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
                        "pci": pci,
                        "numa": _numa(pci, root),
                        "mig": _instances(nvml, device, processes),
                    }
                )
            else:
                failed.setdefault(status, []).append(str(number))
            index += status != _NO_PERMISSION
        return found, "; ".join(
            f"device {', '.join(numbers)} of {count.value}: {_name(status)}"
            for status, numbers in failed.items()
        )
    finally:
        _call(nvml, "nvmlShutdown")


def visible(found: list[dict[str, Any]], names: str | None) -> list[dict[str, Any]]:
    """Return what CUDA shows to a process: each GPU, or in its place its MIG instances.

    The names are read as CUDA reads them: indexes, the whole or the beginning of a UUID that is one GPU's
    alone, MIG instances by UUID or in the older form ``MIG-GPU-<uuid>/<gi>/<ci>``. What is none of these ends
    the list, so that an empty text, ``-1`` and ``NoDevFiles`` are no devices at all.

    Parameters
    ----------
    found : list of dict
        What `gpus` found.
    names : str or None
        CUDA_VISIBLE_DEVICES; None where it is not set.

    Returns
    -------
    list of dict
        In that order, each once: ``{"uuid", "numa", "mig", "processes"}``, the last if they are known.
    """
    if names is None:
        return [part for gpu in found for part in _parts(gpu)]
    chosen: dict[str, dict[str, Any]] = {}
    for name in names.split(","):
        parts = _named(found, name.strip())
        if not parts:
            break
        chosen.update((part["uuid"], part) for part in parts)
    return list(chosen.values())


def _named(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the devices of one name."""
    if name.isdigit():
        return [part for gpu in found if gpu["index"] == int(name) for part in _parts(gpu)]
    if name.startswith("GPU-"):
        named = [gpu for gpu in found if gpu["uuid"].startswith(name)]
        return _parts(named[0]) if len(named) == 1 else []
    if not name.startswith("MIG-"):
        return []
    instances = [(gpu, part) for gpu in found for part in gpu["mig"] or ()]
    alone = [
        (gpu, part)
        for gpu, part in instances
        if name in (part["uuid"], f"MIG-{gpu['uuid']}/{part.get('gi')}/{part.get('ci')}")
    ] or [(gpu, part) for gpu, part in instances if part["uuid"].startswith(name)]
    return [_part(*alone[0])] if len(alone) == 1 else []


def _parts(gpu: dict[str, Any]) -> list[dict[str, Any]]:
    return [_part(gpu, one) for one in ([gpu] if gpu["mig"] is None else gpu["mig"])]


def _part(gpu: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    known = {"processes": one["processes"]} if "processes" in one else {}
    return {"uuid": one["uuid"], "numa": gpu.get("numa"), "mig": one is not gpu, **known}


def _device(nvml: ctypes.CDLL, device: ctypes.c_void_p, processes: bool) -> dict[str, Any]:
    memory = _Memory()
    known = _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory)) == _OK
    return {
        "name": _string(nvml, "nvmlDeviceGetName", device),
        "uuid": _string(nvml, "nvmlDeviceGetUUID", device),
        "memory": memory.total if known else None,
        "free": memory.free if known else None,
        **({"processes": _processes(nvml, device)} if processes else {}),
    }


def _instances(nvml: ctypes.CDLL, device: ctypes.c_void_p, processes: bool) -> list[dict[str, Any]] | None:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    status = _call(nvml, "nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending))
    if status != _OK or not current.value:
        return None
    found = []
    for index in range(_number(nvml, "nvmlDeviceGetMaxMigDeviceCount", device) or 0):
        part = ctypes.c_void_p()
        asked = ("nvmlDeviceGetMigDeviceHandleByIndex", device, ctypes.c_uint(index), ctypes.byref(part))
        if _call(nvml, *asked) == _OK:
            ids = {
                "gi": _number(nvml, "nvmlDeviceGetGpuInstanceId", part),
                "ci": _number(nvml, "nvmlDeviceGetComputeInstanceId", part),
            }
            found.append({**_device(nvml, part, processes), **ids})
    return found


def _processes(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> list[int]:
    """Return who computes on a device; nobody where this driver does not tell."""
    for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
        count, found = ctypes.c_uint(_MOST), (_Process * _MOST)()
        if _call(nvml, function, device, ctypes.byref(count), found) == _OK:
            return [one.pid for one in found[: count.value]]
    return []


def _pci(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    pci = _Pci()
    if _call(nvml, "nvmlDeviceGetPciInfo_v3", device, ctypes.byref(pci)) != _OK:
        return ""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def _numa(pci: str, root: Path) -> int | None:
    try:
        node = int((root / f"sys/bus/pci/devices/{pci}/numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _string(nvml: ctypes.CDLL, function: str, *arguments: Any) -> str:
    text = ctypes.create_string_buffer(_TEXT)
    if _call(nvml, function, *arguments, text, ctypes.c_uint(_TEXT)) != _OK:
        return ""
    return text.value.decode(errors="replace")


def _number(nvml: ctypes.CDLL, function: str, *arguments: Any) -> int | None:
    number = ctypes.c_uint()
    return number.value if _call(nvml, function, *arguments, ctypes.byref(number)) == _OK else None


def _call(nvml: ctypes.CDLL, function: str, *arguments: Any) -> int:
    """Call a function of the library; one that this version of it does not have counts as failed."""
    try:
        return int(getattr(nvml, function)(*arguments))
    except AttributeError:
        return 13


def _name(status: int) -> str:
    means = _MEANS.get(status)
    return f"NVML_ERROR_{_STATUS.get(status, status)}{f' ({means})' if means else ''}"
