"""What an ELF file says about itself: who loads it, what it needs, and how new a libc it wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ElfFacts", "read_elf", "read_elf_from"]

MAGIC = b"\x7fELF"
STRINGS = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}
MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_PPC64": "ppc64le", "EM_S390": "s390x"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfFacts:
    """The part of an ELF file that decides where it can run.

    Attributes
    ----------
    machine : str
        As `platform.machine` names it, such as ``"x86_64"``.
    loader : str
        The dynamic loader that it asks for; empty for a library and for a static executable.
    needed : tuple of str
        The libraries that it asks for by name (DT_NEEDED).
    rpath : tuple of str
        Where it wants them looked for (DT_RPATH or DT_RUNPATH).
    glibc : tuple of int
        The newest glibc symbol version that it needs, such as ``(2, 34)``; empty if none.
    """

    machine: str
    loader: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    glibc: tuple[int, ...]

    @property
    def static(self) -> bool:
        """Whether nothing else is loaded to run it."""
        return not self.loader and not self.needed


def read_elf(path: Path) -> ElfFacts | None:
    """Read a file's ELF headers; None if it is not an ELF file."""
    with path.open("rb") as file:
        return read_elf_from(file)


def read_elf_from(file: BinaryIO) -> ElfFacts | None:
    """Read the ELF headers of an open, seekable file; None if it is not an ELF file."""
    if file.read(4) != MAGIC:
        return None
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection
    from elftools.elf.segments import InterpSegment

    file.seek(0)
    loader = ""
    strings: dict[str, list[str]] = {name: [] for name in STRINGS.values()}
    glibc: tuple[int, ...] = ()
    try:
        elf = ELFFile(file)
        machine = elf["e_machine"]
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                loader = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    if name := STRINGS.get(tag.entry.d_tag):
                        strings[name] += getattr(tag, name).split(":")
        for section in elf.iter_sections("SHT_GNU_verneed"):
            if isinstance(section, GNUVerNeedSection):
                for _, wanted in section.iter_versions():
                    glibc = max([glibc, *(_glibc(each.name) for each in wanted)])
    except ELFError:
        return None
    return ElfFacts(
        machine=MACHINES.get(machine, str(machine)),
        loader=loader,
        needed=tuple(strings["needed"]),
        rpath=tuple(filter(None, strings["rpath"] + strings["runpath"])),
        glibc=glibc,
    )


def _glibc(version: str) -> tuple[int, ...]:
    prefix, _, number = version.partition("_")
    parts = number.split(".")
    if prefix != "GLIBC" or not all(part.isdigit() for part in parts):
        return ()
    return tuple(map(int, parts))
