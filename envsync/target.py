"""What a lock is made for: a Python, a machine, its C library and its accelerator driver."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from envsync.errors import EnvsyncError
from envsync.plugins.scan import libc as running_libc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from packaging.tags import Tag

__all__ = ["Target"]

# The oldest glibc of each manylinux name that older installers still use (PEP 513, 571, 599).
_LEGACY_MANYLINUX = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_UV_SYSTEM = {"darwin": "apple-darwin", "windows": "pc-windows-msvc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a lock is made for.

    Parameters
    ----------
    python : str
        The full version, such as ``"3.11.7"``.
    implementation : str
        ``sys.implementation.name``.
    system : str
        ``"linux"``, ``"darwin"`` or ``"windows"``.
    machine : str
        As ``platform.machine()`` says: ``"x86_64"``, ``"aarch64"``, ``"arm64"`` ...
    libc : (str, str), optional
        Name (``"glibc"`` or ``"musl"``) and version; None where it plays no part.
    accelerators : tuple of str
        Drivers, such as ``"nvidia 550.54.14"``.
    """

    python: str
    implementation: str = "cpython"
    system: str = "linux"
    machine: str = "x86_64"
    libc: tuple[str, str] | None = None
    accelerators: tuple[str, ...] = ()

    @classmethod
    def current(cls) -> Target:
        """Describe the running interpreter on this machine."""
        found = running_libc()
        return cls(
            python=platform.python_version(),
            implementation=sys.implementation.name,
            system=platform.system().lower(),
            machine=platform.machine(),
            libc=None if found is None else (found[0], found[1]),
            accelerators=drivers(),
        )

    @classmethod
    def from_probe(cls, probe: Mapping[str, Any], *, python: str, implementation: str = "cpython") -> Target:
        """Describe a host from what its agent's probe found.

        Parameters
        ----------
        probe : mapping
            With ``system``, ``machine``, ``libc`` and, where there are any, ``gpus`` with their ``driver``.
        python : str
            The version that is to run there: the client's.
        implementation : str
            Of that Python: the client's too.
        """
        libc = probe.get("libc")
        found = sorted({f"nvidia {gpu['driver']}" for gpu in probe.get("gpus", ()) if gpu.get("driver")})
        return cls(
            python=python,
            implementation=implementation,
            system=str(probe.get("system", "linux")).lower(),
            machine=str(probe["machine"]),
            libc=None if libc is None else (str(libc[0]), str(libc[1])),
            accelerators=tuple(found),
        )

    @property
    def minor(self) -> str:
        """The version without its last part: ``"3.11"``."""
        return ".".join(self.python.split(".")[:2])

    @property
    def uv_platform(self) -> str:
        """What uv's ``--python-platform`` calls it."""
        if self.system == "linux":
            if self.libc is None:
                return f"{self.machine}-unknown-linux-gnu"
            name, version = self.libc
            if name == "musl":
                return f"{self.machine}-unknown-linux-musl"
            major, minor = version_numbers(version)[:2]
            return f"{self.machine}-manylinux_{major}_{minor}"
        machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(self.machine.lower(), self.machine.lower())
        try:
            return f"{machine}-{_UV_SYSTEM[self.system]}"
        except KeyError:
            raise EnvsyncError(
                f"no wheels are known for {self.system} on {self.machine}",
                hint="Lock for Linux, macOS or Windows.",
            ) from None

    def covers(self, other: Target) -> bool:
        """Tell whether what was made for `other` runs here.

        Same implementation, Python minor, system and machine, and a C library of the same kind that is not
        older.
        """
        if (self.implementation, self.minor, self.system, self.machine) != (
            other.implementation,
            other.minor,
            other.system,
            other.machine,
        ):
            return False
        if self.libc is None or other.libc is None:
            return self.libc == other.libc
        return self.libc[0] == other.libc[0] and version_numbers(self.libc[1]) >= version_numbers(
            other.libc[1]
        )

    def tags(self) -> list[Tag]:
        """List the wheel tags that run there, the best first (PEP 425, 600, 656)."""
        return list(_tags(self))

    def marker_environment(self) -> dict[str, str]:
        """Give the values of environment markers there (PEP 508)."""
        names = {
            "linux": ("posix", "linux", "Linux"),
            "darwin": ("posix", "darwin", "Darwin"),
            "windows": ("nt", "win32", "Windows"),
        }
        os_name, sys_platform, platform_system = names.get(
            self.system, ("posix", self.system, self.system.title())
        )
        return {
            "implementation_name": self.implementation,
            "implementation_version": self.python,
            "os_name": os_name,
            "platform_machine": self.machine,
            "platform_python_implementation": {"cpython": "CPython", "pypy": "PyPy"}.get(
                self.implementation, self.implementation
            ),
            "platform_release": "",
            "platform_system": platform_system,
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": self.minor,
            "sys_platform": sys_platform,
        }

    def describe(self) -> str:
        """Say it for a person: ``Python 3.11.7, linux x86_64, glibc 2.36``."""
        parts = [f"Python {self.python}", f"{self.system} {self.machine}"]
        if self.libc is not None:
            parts.append(" ".join(self.libc))
        return ", ".join([*parts, *self.accelerators])

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON types."""
        return {
            "python": self.python,
            "implementation": self.implementation,
            "system": self.system,
            "machine": self.machine,
            "libc": None if self.libc is None else list(self.libc),
            "accelerators": list(self.accelerators),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """Read what `to_dict` gave.

        Raises
        ------
        EnvsyncError
            A key is missing or is not of its type.
        """
        try:
            libc = data.get("libc")
            return cls(
                python=_text(data, "python"),
                implementation=_text(data, "implementation"),
                system=_text(data, "system"),
                machine=_text(data, "machine"),
                libc=None if libc is None else (str(libc[0]), str(libc[1])),
                accelerators=tuple(str(one) for one in data.get("accelerators", ())),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise EnvsyncError(
                f"a target needs python, implementation, system and machine: {error}"
            ) from error


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value:
        raise TypeError(f"{key} is {value!r}")
    return value


def version_numbers(version: str) -> tuple[int, ...]:
    """Read ``"2.36"`` as ``(2, 36)``; at least two numbers, what is no number counts 0."""
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")]
    return tuple([*numbers, 0, 0][: max(2, len(numbers))])


@lru_cache(maxsize=32)
def _tags(target: Target) -> tuple[Tag, ...]:
    from packaging.tags import compatible_tags, cpython_tags, generic_tags, mac_platforms

    if target.system == "linux":
        platforms = list(_linux_platforms(target))
    elif target.system == "darwin":
        platforms = list(mac_platforms((15, 0), target.machine))
    else:
        platforms = ["win_" + target.machine.lower()]
    major, minor = version_numbers(target.python)[:2]
    if target.implementation == "cpython":
        interpreter = f"cp{major}{minor}"
        # Without the abi, packaging takes the running interpreter's: perhaps a debug or free-threaded one.
        first = list(cpython_tags((major, minor), abis=[interpreter], platforms=platforms))
    else:
        interpreter = f"{target.implementation[:2]}{major}{minor}"
        first = list(generic_tags(interpreter, platforms=platforms))
    return tuple(first + list(compatible_tags((major, minor), interpreter, platforms)))


def _linux_platforms(target: Target) -> Iterator[str]:
    machine = target.machine
    if target.libc is not None:
        name, version = target.libc
        major, minor = version_numbers(version)[:2]
        if name == "musl":
            yield from (f"musllinux_{major}_{older}_{machine}" for older in range(minor, -1, -1))
        else:
            oldest = 5 if machine in ("x86_64", "i686") else 17
            for older in range(minor, oldest - 1, -1):
                yield f"manylinux_{major}_{older}_{machine}"
                if (major, older) in _LEGACY_MANYLINUX:
                    yield f"{_LEGACY_MANYLINUX[major, older]}_{machine}"
    yield f"linux_{machine}"


def drivers() -> tuple[str, ...]:
    """Name the accelerator drivers of this machine, without starting a program."""
    try:
        with open("/proc/driver/nvidia/version", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            words = file.readline().split()
    except OSError:
        return ()
    return tuple(f"nvidia {word}" for word in words if word[:1].isdigit() and "." in word)[:1]
