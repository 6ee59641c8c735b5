"""NVIDIA's GPUs, through the driver's own library (NVML), which is where the driver is and nowhere else."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["gpus"]

_OK = 0
_TEXT = 96


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


def gpus(library: str = "libnvidia-ml.so.1") -> list[dict[str, Any]]:
    """Return this host's GPUs, an empty list where there is no driver.

    Each is ``{"index", "name", "uuid", "memory", "free", "driver", "cuda", "pci", "numa", "mig"}``: memory in
    bytes, the driver's version and the newest CUDA that it runs, the NUMA node or None, and the MIG
    instances, each ``{"name", "uuid", "memory"}`` (None where MIG is off).

    Parameters
    ----------
    library : str
        The file or name of the library.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    if _call(nvml, "nvmlInit_v2") != _OK:
        return []
    try:
        driver = _string(nvml, "nvmlSystemGetDriverVersion")
        cuda = _number(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0
        found = []
        for index in range(_number(nvml, "nvmlDeviceGetCount_v2") or 0):
            device = ctypes.c_void_p()
            if (
                _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
                != _OK
            ):
                continue
            pci = _pci(nvml, device)
            found.append(
                {
                    "index": index,
                    **_device(nvml, device),
                    "driver": driver,
                    "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
                    "pci": pci,
                    "numa": _numa(pci),
                    "mig": _instances(nvml, device),
                }
            )
        return found
    finally:
        _call(nvml, "nvmlShutdown")


def _device(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> dict[str, Any]:
    memory = _Memory()
    known = _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory)) == _OK
    return {
        "name": _string(nvml, "nvmlDeviceGetName", device),
        "uuid": _string(nvml, "nvmlDeviceGetUUID", device),
        "memory": memory.total if known else None,
        "free": memory.free if known else None,
    }


def _instances(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> list[dict[str, Any]] | None:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    status = _call(nvml, "nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending))
    if status != _OK or not current.value:
        return None
    found = []
    for index in range(_number(nvml, "nvmlDeviceGetMaxMigDeviceCount", device) or 0):
        part = ctypes.c_void_p()
        asked = ("nvmlDeviceGetMigDeviceHandleByIndex", device, ctypes.c_uint(index), ctypes.byref(part))
        if _call(nvml, *asked) == _OK:
            found.append(_device(nvml, part))
    return found


def _pci(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    pci = _Pci()
    if _call(nvml, "nvmlDeviceGetPciInfo_v3", device, ctypes.byref(pci)) != _OK:
        return ""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def _numa(pci: str) -> int | None:
    try:
        with open(f"/sys/bus/pci/devices/{pci}/numa_node", encoding="ascii") as file:  # noqa: PTH123
            node = int(file.read())
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
        return -1
