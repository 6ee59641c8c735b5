"""What packages need of CUDA, and what drivers give.

CUDA comes with packages: as a build of the same version, told by its local part (``2.5.1+cu124``, PEP 440),
or as libraries of their own (``nvidia-cuda-runtime-cu12``, ``cupy-cuda12x``, ``jax-cuda12-plugin``). The
driver is the node's. A driver runs every CUDA that is older, and newer ones of its own major version (minor
version compatibility); the numbers are in `envsync.cuda_drivers`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envsync.cuda_drivers import LEAST, MADE_FOR
from envsync.target import version_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envsync.target import Target

__all__ = [
    "CPU",
    "Need",
    "another_build",
    "build_of",
    "builds_for",
    "concerned",
    "driver_of",
    "is_library",
    "least_driver",
    "needs",
    "runs",
    "too_old",
    "unmet",
]

CPU = "cpu"
Cuda = tuple[int, int]

# PyTorch's own: of these the index of PyTorch has a build for each CUDA, whatever their version is called.
TORCH = ("torch", "torchvision", "torchaudio")

_BUILD = re.compile(r"(?P<before>|.*[.\d])(?P<build>cpu|cu\d{2,3})\Z")
_LABEL = re.compile(r"(?:^|[^a-z])cu(\d{2,3})(?!\d)")
_RUNTIME = re.compile(r"nvidia-cuda-runtime(?:-cu\d\d)?\Z")
_NAMED = re.compile(r"-(?:cu|cuda)(\d{2,3})x?(?:-[a-z]+)?\Z")
_LIBRARY = re.compile(r"(?:nvidia-.+|pytorch-triton|triton|cuda-(?:toolkit|bindings|pathfinder))\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A package that brings CUDA.

    Attributes
    ----------
    name, version : str
        The package.
    cuda : (int, int)
        The CUDA that it was built with, or that it is; of some only the major version is known.
    """

    name: str
    version: str
    cuda: tuple[int, int]


def driver_of(target: Target) -> str:
    """Return the version of a target's NVIDIA driver, "" if it has none."""
    found = [one.partition(" ")[2] for one in target.accelerators if one.startswith("nvidia ")]
    return min(found, key=version_numbers, default="")


def build_of(version: str) -> str:
    """Return which build a version is: ``"cpu"``, ``"cu124"``, or "" where it does not say."""
    match = _BUILD.match(version.partition("+")[2].lower())
    return match["build"] if match else ""


def another_build(version: str, build: str) -> str:
    """Return the version of another build: ``2.5.1+cu124`` of ``2.5.1+cpu``, the public one for ""."""
    public, _, local = version.partition("+")
    match = _BUILD.match(local.lower())
    local = f"{match['before'] if match else ''}{build}" if build else ""
    return f"{public}+{local}" if local else public


def cuda_of(build: str) -> Cuda:
    """Return the CUDA of a build: ``(12, 4)`` of ``"cu124"``."""
    digits = build.removeprefix("cu")
    return int(digits[:-1]), int(digits[-1])


def is_library(name: str) -> bool:
    """Whether a package is a part of CUDA, or comes with CUDA builds only: not what anybody asked for."""
    return _LIBRARY.match(name) is not None


def needs(packages: Iterable[tuple[str, str]]) -> tuple[Need, ...]:
    """Return the packages that bring CUDA.

    Parameters
    ----------
    packages : iterable of (str, str)
        Normalised names and versions.
    """
    found = []
    for name, version in packages:
        label, named = _LABEL.search(version.partition("+")[2].lower()), _NAMED.search(name)
        if label is not None:
            cuda = cuda_of(f"cu{label[1]}")
        elif _RUNTIME.match(name):
            numbers = version_numbers(version)
            cuda = (numbers[0], numbers[1])
        elif named is not None:
            digits = named[1]
            cuda = (int(digits[:2]), int(digits[2:] or 0))
        else:
            continue
        found.append(Need(name=name, version=version, cuda=cuda))
    return tuple(sorted(found, key=lambda one: (one.cuda, one.name)))


def least_driver(cuda: Cuda) -> str:
    """Return the oldest driver that runs a CUDA; "" where nothing is known of such an old one."""
    for major, driver in LEAST:
        if cuda[0] >= major:
            return driver
    return next((driver for known, driver in MADE_FOR if cuda >= known), "")


def runs(driver: str, cuda: Cuda) -> bool:
    """Whether a driver runs a CUDA."""
    if cuda[0] > LEAST[0][0]:  # a major version that we do not know yet: nobody can tell
        return True
    return version_numbers(driver) >= version_numbers(least_driver(cuda))


def unmet(driver: str, packages: Iterable[tuple[str, str]]) -> tuple[Need, ...]:
    """Return what of the packages a driver is too old for, the most demanding last."""
    return tuple(need for need in needs(packages) if not runs(driver, need.cuda))


def too_old(driver: str, need: Need) -> str:
    """Say for a person that a driver does not run what a package brings."""
    cuda = f"CUDA {need.cuda[0]}.{need.cuda[1]}" if need.cuda[1] else f"CUDA {need.cuda[0]}"
    return (
        f"NVIDIA driver {driver} is too old for {need.name} {need.version}, which brings {cuda}: that takes"
        f" {least_driver(need.cuda)} or newer"
    )


def builds_for(driver: str) -> tuple[str, ...]:
    """Return the builds that a driver runs, the best first.

    The best are those of the CUDA that the driver was made for, then older ones of that major version; then
    newer ones of it, which work by minor version compatibility, the nearest first; then older major versions.
    """
    known = [cuda for cuda, _ in MADE_FOR if runs(driver, cuda)]
    numbers = version_numbers(driver)
    made_for = next((cuda for cuda, least in MADE_FOR if numbers >= version_numbers(least)), (0, 0))
    own = [cuda for cuda in known if cuda[0] == made_for[0]]
    newer = sorted(cuda for cuda in known if cuda > made_for)
    order = [*(cuda for cuda in own if cuda <= made_for), *newer, *known]
    return tuple(f"cu{major}{minor}" for major, minor in dict.fromkeys(order))


def concerned(packages: Iterable[tuple[str, str]], driver: str) -> tuple[str, ...]:
    """Return the packages of which a machine with a driver gets another build.

    Those for the CPU alone, those whose CUDA the driver does not run; and, where the libraries that PyTorch
    brings are too new for it, PyTorch itself. No others: what does not bring CUDA is left alone.
    """
    packages = tuple(packages)
    found = []
    for name, version in packages:
        build = build_of(version)
        if build == CPU or (build and not runs(driver, cuda_of(build))):
            found.append(name)
    too_new = {need.name for need in unmet(driver, packages)}
    if any(is_library(name) for name in too_new):
        plain = {name for name, version in packages if name in TORCH and not build_of(version)}
        found += sorted(plain if "torch" in plain else ())
    return tuple(sorted(found))
