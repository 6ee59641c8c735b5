"""A driver's library of our own, with two GPUs, one of them cut by MIG, and a third that does not answer."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, a, b; char id[32]; } pci_t;
static long first = 1, second = 2, part = 11;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *t, unsigned n) { strncpy(t, "550.54.14", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
    if (i == 2) return 15; /* fell off the bus */
    *d = i ? &second : &first; return 0;
}
int nvmlDeviceGetName(void *d, char *t, unsigned n) {
    strncpy(t, *(long *)d == 11 ? "Card B MIG 1g" : *(long *)d == 1 ? "Card A" : "Card B", n); return 0;
}
int nvmlDeviceGetUUID(void *d, char *t, unsigned n) {
    strncpy(t, *(long *)d == 11 ? "MIG-11" : *(long *)d == 1 ? "GPU-1" : "GPU-2", n); return 0;
}
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) { m->total = *(long *)d * 1000; m->free = 500; return 0; }
int nvmlDeviceGetPciInfo_v3(void *d, pci_t *p) {
    p->domain = 0; p->bus = 0xc1; p->device = *(long *)d; return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) {
    if (*(long *)d == 1) return 3; /* not supported */
    *now = *later = 1; return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **m) {
    if (i) return 6; /* no such instance */
    *m = &part; return 0;
}
"""


def driver_library(folder: Path) -> Path:
    """Make the library in a folder, under the name that it has everywhere. Needs gcc."""
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text(_SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library
