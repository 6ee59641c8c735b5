"""``python -m benchmarks [PART...] [--write]``: ratios from one run. Never fails for being slow."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.batch import batch
from benchmarks.cloud import cloud
from benchmarks.clusters import start
from benchmarks.existing import existing
from benchmarks.imaging import image
from benchmarks.looking import lock, look
from benchmarks.pushing import push
from benchmarks.realising import realise
from benchmarks.storing import store
from benchmarks.timing import ROUNDS, Table

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table -->", "<!-- /table -->"
PARTS: dict[str, Callable[[], list[Table]]] = {
    "look": lambda: [look()],
    "lock": lambda: [lock()],
    "realise": realise,
    "start": lambda: [start()],
    "existing": existing,
    "batch": batch,
    "cloud": cloud,
    "store": store,
    "image": image,
    "push": push,
}


def machine() -> str:
    """Return what this was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("uv", "pip", "distributed", "asyncssh"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, {versions}. "
        f"Medians of {ROUNDS}, in turns, after one warm-up."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {README.name} too")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    # wheels in folders of this machine's would be another job than that of most
    os.environ["PIP_CONFIG_FILE"] = os.devnull
    os.environ.pop("PIP_FIND_LINKS", None)
    tables = []
    for name in options.parts or PARTS:
        for table in PARTS[name]():
            tables.append(table.markdown())
            print(f"\n{tables[-1]}", flush=True)
    print(f"\n{machine()}")
    if options.write:
        before, _, rest = README.read_text().partition(BEGIN)
        known, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{merged(known, tables)}\n{END}{after}")


def merged(known: str, tables: Sequence[str]) -> str:
    """Put tables in the place of those of the same title, or at the end; others stay, from their own runs."""
    _, *old = known.split("\n### ")
    found = {one.splitlines()[0]: one.strip() for one in old}
    found.update({one.splitlines()[0][4:]: one[4:].strip() for one in tables})
    return "\n\n".join([machine(), *(f"### {one}" for one in found.values())])


if __name__ == "__main__":
    main()
