"""A driver's library of our own that answers as real ones do: what is on the machine is said by the test."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OK, NOT_SUPPORTED, NO_PERMISSION, LOST, MISMATCH = 0, 3, 4, 15, 18
"""What NVML's functions return."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU, or an instance of one that is cut by MIG.

    Parameters
    ----------
    uuid : str
        Its id.
    name : str
        What it is called.
    status : int
        What asking for it answers.
    bus : int
        Where it is on the PCI bus.
    memory : int
        Its bytes.
    file : str
        The device file that one has to be let open to have it: a cgroup may forbid that, as it does for real
        ones.
    mig : sequence of Card, optional
        Its instances, if it is cut.
    ids : pair of int
        Of an instance: of the GPU instance and of the compute instance.
    processes : sequence of int
        Who computes on it.
    """

    uuid: str
    name: str = "Card"
    status: int = OK
    bus: int = 0xC1
    memory: int = 1000
    file: str = ""
    mig: Sequence[Card] | None = None
    ids: tuple[int, int] = (0, 0)
    processes: Sequence[int] = ()


USUAL = (
    Card(uuid="GPU-1", name="Card A"),
    Card(
        uuid="GPU-2", name="Card B", bus=0xC2, mig=[Card(uuid="MIG-11", name="Card B MIG 1g", memory=11000)]
    ),
    Card(uuid="", status=LOST),
)
"""Two, one of them cut by MIG, and a third that fell off the bus."""

# What the driver does in a device cgroup: it opens each card's file, and leaves out what it may not open.
_SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, a, b; char id[32]; } pci_t;
typedef struct { unsigned pid; unsigned long long memory; unsigned gi, ci; } process_t;
typedef struct {
    const char *uuid, *name, *file; int status; unsigned bus; unsigned long long memory;
    int mig, first, instances; unsigned gi, ci, processes, pids[8];
} card_t;
static card_t cards[] = { CARDS };
static int order[64], shown;
int nvmlInit_v2(void) {
    if (INIT) return INIT;
    shown = 0;
    for (int i = 0; i < TOP; i++) {
        int file = cards[i].file[0] ? open(cards[i].file, O_RDWR) : -1;
        int denied = cards[i].file[0] && file < 0 && (errno == EPERM || errno == EACCES);
        if (file >= 0) close(file);
        if (!denied) order[shown++] = i;
    }
    return 0;
}
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *t, unsigned n) { strncpy(t, DRIVER, n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = CUDA; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = shown; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
    if (i >= (unsigned)shown) return 2;
    *d = &cards[order[i]]; return cards[order[i]].status;
}
int nvmlDeviceGetName(void *d, char *t, unsigned n) { strncpy(t, ((card_t *)d)->name, n); return 0; }
int nvmlDeviceGetUUID(void *d, char *t, unsigned n) { strncpy(t, ((card_t *)d)->uuid, n); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    m->total = ((card_t *)d)->memory; m->free = 500; m->used = m->total - 500; return 0;
}
int nvmlDeviceGetPciInfo_v3(void *d, pci_t *p) {
    p->domain = 0; p->bus = ((card_t *)d)->bus; p->device = 0; return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) {
    if (!((card_t *)d)->mig) return 3;
    *now = *later = 1; return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **m) {
    card_t *c = d;
    if (i >= (unsigned)c->instances) return 6;
    *m = &cards[c->first + i]; return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **d) {
    for (unsigned i = 0; i < sizeof cards / sizeof *cards; i++)
        if (!strcmp(cards[i].uuid, uuid)) { *d = &cards[i]; return 0; }
    return 6;
}
int nvmlDeviceGetUtilizationRates(void *d, unsigned *use) { use[0] = use[1] = 0; return 0; }
int nvmlDeviceIsMigDeviceHandle(void *d, unsigned *is) { *is = (card_t *)d >= cards + TOP; return 0; }
int nvmlDeviceGetCpuAffinity(void *d, unsigned n, unsigned long *set) {
    memset(set, 0xff, n * sizeof *set); return 0;
}
int nvmlDeviceGetGpuInstanceId(void *d, unsigned *n) { *n = ((card_t *)d)->gi; return 0; }
int nvmlDeviceGetComputeInstanceId(void *d, unsigned *n) { *n = ((card_t *)d)->ci; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, process_t *p) {
    card_t *c = d;
    if (*n < c->processes) { *n = c->processes; return 7; }
    for (unsigned i = 0; i < c->processes; i++) p[i].pid = c->pids[i];
    *n = c->processes; return 0;
}
"""


def driver_library(
    folder: Path,
    cards: Sequence[Card] = USUAL,
    *,
    init: int = OK,
    version: str = "550.54.14",
    cuda: int = 12040,
) -> Path:
    """Make the library in a folder, under the name that it has everywhere. Needs gcc.

    Parameters
    ----------
    folder : Path
        Where; a process whose LD_LIBRARY_PATH it is finds it.
    cards : sequence of Card
        What is on the machine, in the order of the bus.
    init : int
        What beginning to ask answers.
    version : str
        The driver's.
    cuda : int
        The newest that it runs, as NVML writes it.
    """
    rows: list[str] = []
    tail: list[str] = []
    for card in cards:
        parts = card.mig or ()
        rows.append(_row(card, card.mig is not None, len(cards) + len(tail), len(parts)))
        tail += [_row(part, False, 0, 0) for part in parts]
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text(_SOURCE)
    given = {
        "CARDS": ",".join(rows + tail),
        "TOP": len(cards),
        "INIT": init,
        "DRIVER": f'"{version}"',
        "CUDA": cuda,
    }
    defined = [f"-D{name}={value}" for name, value in given.items()]
    subprocess.run(["gcc", "-shared", "-fPIC", *defined, "-o", library, source], check=True)
    return library


def _row(card: Card, cut: bool, first: int, instances: int) -> str:
    text = ",".join(json.dumps(part) for part in (card.uuid, card.name, card.file))
    pids = ",".join(str(pid) for pid in card.processes) or "0"
    numbers = (card.status, card.bus, f"{card.memory}ULL", int(cut), first, instances, *card.ids)
    return f"{{{text},{','.join(map(str, numbers))},{len(card.processes)},{{{pids}}}}}"
