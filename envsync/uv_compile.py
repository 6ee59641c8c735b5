"""Asks uv which files pins are, and reads its answers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from envsync.artifacts import wheel_tags
from envsync.errors import ResolveError, ToolError, UnsupportedError
from envsync.indexes import without_credentials
from envsync.uv import run_uv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.indexes import IndexSettings
    from envsync.target import Target

_Choice = Callable[[str, "Sequence[Mapping[str, Any]]"], "Mapping[str, Any]"]

__all__ = ["Found", "Question", "culprits", "refused", "scope_of", "uv_platform"]

# The platforms that uv can be asked to resolve for: it knows some glibc versions only.
_GLIBC = (17, 28, *range(31, 41))
_MACHINES = ("x86_64", "aarch64")
# Lines of uv's answer that we do not use, and that take half of the time to read.
_UNUSED = re.compile(r"^sdist = \{.*\}$\n?|(?<=, )upload-time = [0-9T:.Z+-]+, ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What uv found for one package.

    Attributes
    ----------
    name, version : str
        The package.
    filename : str
        The wheel's, or "" if there is only a source distribution.
    sha256 : str
        The wheel's.
    size : int or None
        Bytes, where the index said so.
    url : str or None
        Where it is, without credentials.
    file : Path or None
        Instead: the file on this machine.
    """

    name: str
    version: str
    filename: str = ""
    sha256: str = ""
    size: int | None = None
    url: str | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What uv is asked: requirements, and what they are to be resolved for.

    Attributes
    ----------
    settings : IndexSettings
        Where packages come from.
    python : str
        An interpreter of this machine, for uv to look at.
    version : str
        The Python version to resolve for.
    platform : str
        uv's name for the platform to resolve for; "" for this machine.
    target : Target
        What the best of several wheels is judged by.
    installed : mapping of str to tuple of str
        The tags of what is installed, by name: of several wheels, that build is meant.
    torch_backend : str
        The index of PyTorch's own that its packages are taken from: ``"cu124"``, or ``"auto"`` for the newest
        that `driver` runs; "" for the indexes that are configured.
    driver : str
        The version of the target's NVIDIA driver, for ``"auto"``.
    """

    settings: IndexSettings
    python: str
    version: str
    platform: str = ""
    target: Target
    installed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    torch_backend: str = ""
    driver: str = ""

    def pins(self, requirements: Iterable[str], *, wheels_only: bool = False) -> dict[str, Found]:
        """Look up exactly these, without what they require."""
        args = [*self._args("pylock.toml"), "--no-deps"]
        args += ["--only-binary", ":all:"] if wheels_only else []
        return self._read(run_uv([*args, "-"], **self._input(requirements)))

    def closure(
        self, requirements: Iterable[str], *, constraints: Path | None = None, excludes: Path | None = None
    ) -> dict[str, Found]:
        """Resolve these and what they require, wheels only; what the file `excludes` names is left out."""
        args = [*self._args("pylock.toml"), "--only-binary", ":all:"]
        for option, file in (("--constraints", constraints), ("--excludes", excludes)):
            args += [option, str(file)] if file is not None else []
        return self._read(run_uv([*args, "-"], **self._input(requirements)))

    def indexes(self, found: Iterable[Found]) -> dict[str, str]:
        """Return the index that each package was found in.

        uv says so only in its other format. So it is not asked where there is only one that it can be.
        """
        remote = {one.name: one for one in found if one.url is not None}
        searched = [index.url for index in self.settings.searched() if not index.local]
        pages = [link for link in self.settings.find_links if not link.local]
        if not remote or (len(searched) == 1 and not pages and not self.torch_backend):
            return dict.fromkeys(remote, searched[0]) if searched else {}
        args = [*self._args("requirements.txt"), "--no-deps", "--no-annotate", "--emit-index-annotation", "-"]
        pins = [f"{one.name}=={one.version}" for one in remote.values()]
        known = {url.rstrip("/"): url for url in searched}
        indexes: dict[str, str] = {}
        name = ""
        for line in run_uv(args, **self._input(pins)).splitlines():
            if line.startswith("    # from "):
                url = without_credentials(line.removeprefix("    # from ").strip(), query=False)
                if url.rstrip("/") in known or self.torch_backend:
                    indexes[name] = known.get(url.rstrip("/"), url)
            elif "==" in line:
                name = canonicalize_name(line.partition("==")[0])
        return indexes

    def wheels(self, name: str, version: str) -> list[str]:
        """Return the file names of all wheels of a release that run on this Python or a newer one."""
        args = [*self._args("pylock.toml", platform=False), "--universal", "--no-deps", "-"]
        try:
            text = run_uv(args, **self._input([f"{name}=={version}"]))
        except ToolError:
            return []
        return sorted(
            _filename(wheel)
            for package in tomllib.loads(text).get("packages", [])
            for wheel in package.get("wheels", [])
        )

    def newest(self, name: str) -> str:
        """Return the newest version of a package that has a wheel, or ""."""
        args = [*self._args("pylock.toml"), "--no-deps", "--only-binary", ":all:", "-"]
        try:
            found = self._read(run_uv(args, **self._input([name])))
        except ToolError:
            return ""
        return found[name].version if name in found else ""

    def refusal(self, names: Iterable[str]) -> ToolError | None:
        """Ask again for what was not found, and return uv's error if an index wants other credentials.

        uv says so only where it takes packages from the first index that has them.
        """
        if not self.settings.strategy.startswith("unsafe"):
            return None
        question = self._input(names)
        question["env"]["UV_INDEX_STRATEGY"] = "first-index"
        try:
            run_uv([*self._args("pylock.toml"), "--no-deps", "-"], **question)
        except ToolError as error:
            return error if refused(error) else None
        return None

    def _read(self, text: str) -> dict[str, Found]:
        return _read_answer(text, self._choose)

    def _choose(self, name: str, wheels: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Of several wheels that would do, return the installed build, else what installers like best."""
        installed = set(self.installed.get(name, ()))
        ranks = {str(tag): rank for rank, tag in enumerate(self.target.tags())}

        def rank(wheel: Mapping[str, Any]) -> tuple[bool, int]:
            tags = wheel_tags(_filename(wheel))
            return not installed & tags, min(ranks.get(tag, len(ranks)) for tag in tags)

        return min(wheels, key=rank)

    def _args(self, form: str, *, platform: bool = True) -> list[str]:
        args = ["pip", "compile", "--quiet", "--no-header", "--format", form, "--python", self.python]
        args += ["--python-version", self.version, *self.settings.uv_arguments()]
        if self.platform and platform:
            args += ["--python-platform", self.platform]
        if self.torch_backend:
            args += ["--torch-backend", self.torch_backend]
        return args

    def _input(self, requirements: Iterable[str]) -> dict[str, Any]:
        text = "".join(f"{line}\n" for line in sorted(requirements))
        environ = self.settings.uv_environment()
        if self.driver:
            environ["UV_CUDA_DRIVER_VERSION"] = self.driver
        return {"env": environ, "input": text}


def _filename(entry: Mapping[str, Any]) -> str:
    named = entry.get("name")
    return str(named) if named else unquote((entry.get("url") or entry["path"]).rsplit("/", 1)[-1])


def _read_answer(text: str, choose: _Choice) -> dict[str, Found]:
    """Read uv's lock. It is not checked against PEP 751 here: ours is, which is made of it."""
    packages = tomllib.loads(_UNUSED.sub("", text)).get("packages", [])
    found = {}
    for package in packages:
        name = str(package["name"])
        if name in found:
            raise ResolveError(f"uv gave more than one {name}, so that nothing says which is meant")
        wheels = package.get("wheels", ())
        entry = choose(name, wheels) if len(wheels) > 1 else next(iter(wheels), package.get("archive"))
        if entry is None:
            found[name] = Found(name=name, version=str(package.get("version", "")))
            continue
        url = entry.get("url", "")
        parts = urlsplit(url)
        local = "path" in entry or parts.scheme == "file"
        sha256 = entry.get("hashes", {}).get("sha256", "")
        if not sha256:
            raise ResolveError(
                f"the index gives no sha256 for {name} {package.get('version', '')}",
                hint="Every wheel in a lock has one: ask for it where the index is run.",
            )
        found[name] = Found(
            name=name,
            version=str(package.get("version", "")),
            filename=_filename(entry),
            sha256=sha256,
            size=entry.get("size"),
            url=None if local else without_credentials(url, query=False),
            file=Path(entry.get("path") or unquote(parts.path)) if local else None,
        )
    return found


def uv_platform(target: Target) -> str:
    """Return the newest of uv's platforms that a target runs.

    Raises
    ------
    UnsupportedError
        uv knows none.
    """
    if target.libc is None or target.libc[0] != "glibc":
        return target.uv_platform
    major, minor = (int(part) for part in (*target.libc[1].split("."), "0")[:2])
    known = [one for one in _GLIBC if one <= minor] if major == 2 and target.machine in _MACHINES else []
    if not known:
        raise UnsupportedError(
            f"nothing can be resolved for {target.describe()}",
            hint=f"Known are glibc 2.{_GLIBC[0]} and newer on {' and '.join(_MACHINES)}, and musl.",
        )
    return f"{target.machine}-manylinux_2_{known[-1]}"


def culprits(error: ToolError, names: Iterable[str]) -> list[str]:
    """Return the packages that cannot be had, of those that were asked for.

    Empty if that is not what uv complains of.
    """
    known = set(names)
    lines = [line for line in error.output.splitlines() if not line.lstrip().startswith(("hint", "warning"))]
    text = " ".join(" ".join(lines).split())
    patterns = (
        r"([A-Za-z0-9][\w.-]*?)(?:\[[^]]*\])?(?:==\S+)? (?:has|have) no (?:usable )?wheels",
        r"([A-Za-z0-9][\w.-]*) was not found in",
        r"there (?:is|are) no versions? of ([A-Za-z0-9][\w.-]*?)(?:\[[^]]*\])?(?:==|[<>=!~\s])",
        r"([A-Za-z0-9][\w.-]*)==\S+ (?:was yanked|has invalid metadata|has an? \w+ wheel)",
    )
    found = [canonicalize_name(match) for pattern in patterns for match in re.findall(pattern, text)]
    return [name for name in dict.fromkeys(found) if name in known]


def refused(error: ToolError) -> bool:
    """Whether uv found less than there may be, because an index wants other credentials."""
    return "(401 Unauthorized)" in error.hint or "(403 Forbidden)" in error.hint


def scope_of(filenames: Sequence[str]) -> str:
    """Say in a few words what wheels are for."""
    platforms: set[str] = set()
    pythons: set[str] = set()
    for filename in filenames:
        try:
            tags = parse_wheel_filename(filename)[3]
        except InvalidWheelFilename:
            continue
        platforms |= {tag.platform for tag in tags}
        pythons |= {tag.interpreter for tag in tags}
    return f"for {', '.join(sorted(platforms))} ({', '.join(sorted(pythons))})" if platforms else ""
