"""Finds the CUDA builds of packages that a target's driver runs, where other builds are installed here.

The version stays: only its local part differs (``2.5.1+cpu``, ``2.5.1+cu124``). The indexes that are
configured are looked at first. Where they have none, uv's own choice of PyTorch's indexes decides
(``--torch-backend``), unless the settings put another index in the place of uv's default: such a site has its
reasons, and no other host is asked. The last resort is the plain version, which on many indexes is a CUDA
build too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from envsync import cuda
from envsync.errors import NoWheelError, ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envsync.uv_compile import Found, Question

__all__ = ["Builds", "choose_builds"]

_BUILDS = 40  # of one release, or releases that may be passed over: more than there ever were
_NO_INDEX = ("cu131",)  # uv knows no index of PyTorch's for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    """What is locked in place of builds that are installed.

    Attributes
    ----------
    pins : mapping of str to str
        Names and the versions to lock.
    question : Question
        How uv is asked for them.
    driver : str
        For which driver.
    needed : tuple of Need
        The CUDA that they bring.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    question: Question
    driver: str
    needed: tuple[cuda.Need, ...] = ()

    def requirements(self) -> list[str]:
        """Return them as uv takes them: with that local part, and no other."""
        return [f"{name}==={version}" for name, version in self.pins.items()]

    @property
    def reason(self) -> str:
        """Why they are locked."""
        newest = max((need.cuda for need in self.needed), default=None)
        what = "the build" if newest is None else "the CUDA {}.{} build".format(*newest)
        return f"{what} for NVIDIA driver {self.driver}"


def choose_builds(
    installed: Mapping[str, str], driver: str, question: Question, *, allow_substitutes: bool = False
) -> Builds:
    """Find other builds of packages, all of one CUDA.

    Parameters
    ----------
    installed : mapping of str to str
        The packages, by name, and their installed versions: those that `cuda.concerned` named.
    driver : str
        The version of the target's driver.
    question : Question
        How uv is asked about the target.
    allow_substitutes : bool
        Whether other versions will do, where these have no such build.

    Raises
    ------
    NoWheelError
        There are none.
    ToolError
        An index is not reached.
    """
    # A build's index is one of several that have the name: the first that has just that version is meant.
    strategy = question.settings.strategy or "unsafe-first-match"
    lenient = replace(question, settings=replace(question.settings, strategy=strategy))
    main = "torch" if "torch" in installed else min(installed)
    public = installed[main].partition("+")[0]
    wanted = cuda.builds_for(driver)
    there = set(_builds_there(main, public, lenient)) if wanted else set()
    trouble = ""
    for build in wanted:
        if build in there and (found := _have(installed, build, lenient, driver)):
            return found
    if wanted and _may_ask_pytorch(question):
        try:
            for build in _pytorch(main, public, driver, wanted, lenient):
                if found := _have(installed, build, replace(lenient, torch_backend=build), driver):
                    return found
        except ToolError as error:
            trouble = error.message
    if wanted and (found := _plain(installed, lenient, driver)):
        return found
    if wanted and allow_substitutes and (found := _others(installed, lenient, driver)):
        return found
    raise _no_build(installed, driver, wanted, question, trouble)


def _builds_there(name: str, public: str, question: Question) -> Iterator[str]:
    """Yield the builds of a release that the configured indexes have, the newest first."""
    every = replace(question, settings=replace(question.settings, strategy="unsafe-best-match"))
    lines = [f"{name}=={public}"]
    for _ in range(_BUILDS):
        try:
            found = every.pins(lines, wheels_only=True)[name]
        except ToolError as error:
            if error.returncode != 1:
                raise
            return
        if "+" not in found.version:
            return  # it comes last
        if build := cuda.build_of(found.version):
            yield build
        lines.append(f"{name}!={found.version}")


def _have(installed: Mapping[str, str], build: str, question: Question, driver: str) -> Builds | None:
    """Return builds if all packages have them."""
    pins = {name: cuda.another_build(version, build) for name, version in installed.items()}
    found = Builds(pins=pins, question=question, driver=driver, needed=cuda.needs(pins.items()))
    return found if _are_there(found) else None


def _are_there(builds: Builds) -> bool:
    try:
        builds.question.pins(builds.requirements(), wheels_only=True)
    except ToolError as error:
        if error.returncode != 1:
            raise
        return False
    return True


def _may_ask_pytorch(question: Question) -> bool:
    settings = question.settings
    return not settings.no_index and not any(index.default for index in settings.indexes)


def _pytorch(
    name: str, public: str, driver: str, wanted: tuple[str, ...], question: Question
) -> tuple[str, ...]:
    """Return the builds that PyTorch's own indexes may have, the best first.

    uv says which is the newest that will do; a better one may be there too.
    """
    auto = replace(question, torch_backend="auto", driver=driver)
    try:
        newest = cuda.build_of(auto.pins([f"{name}=={public}"], wheels_only=True)[name].version)
    except ToolError as error:
        if error.returncode != 1:
            raise
        return ()
    if newest not in wanted:
        return ()
    return tuple(build for build in wanted[: wanted.index(newest) + 1] if build not in _NO_INDEX)


def _plain(installed: Mapping[str, str], question: Question, driver: str) -> Builds | None:
    """Return the public versions, if they bring a CUDA that the driver runs."""
    pins = {name: version.partition("+")[0] for name, version in installed.items()}
    if pins == dict(installed):
        return None
    builds = Builds(pins=pins, question=question, driver=driver)
    try:
        found = question.closure(builds.requirements())
    except ToolError as error:
        if error.returncode != 1:
            raise
        return None
    return _if_they_run(builds, found)


def _others(installed: Mapping[str, str], question: Question, driver: str) -> Builds | None:
    """Return the newest other versions that have a build."""
    every = replace(question, settings=replace(question.settings, strategy="unsafe-best-match"))
    lines = list(installed)
    for _ in range(_BUILDS):
        try:
            found = every.closure(lines)
        except ToolError as error:
            if error.returncode != 1:
                raise
            return None
        pins = {name: found[name].version for name in installed}
        builds = Builds(pins=pins, question=question, driver=driver)
        if done := _if_they_run(builds, found):
            return done
        lines += [
            f"{name}!={version}"
            for name, version in pins.items()
            if cuda.build_of(version) == cuda.CPU or cuda.unmet(driver, [(name, version)])
        ] or [f"{name}!={version}" for name, version in pins.items()]
    return None


def _if_they_run(builds: Builds, found: Mapping[str, Found]) -> Builds | None:
    packages = [(one.name, one.version) for one in found.values()]
    needed = cuda.needs(packages)
    if not needed or cuda.unmet(builds.driver, packages):
        return None
    if any(cuda.build_of(version) == cuda.CPU for version in builds.pins.values()):
        return None
    return replace(builds, needed=needed)


def _no_build(
    installed: Mapping[str, str], driver: str, wanted: tuple[str, ...], question: Question, trouble: str
) -> NoWheelError:
    names = ", ".join(f"{name} {version}" for name, version in sorted(installed.items()))
    searched = [index.url for index in question.settings.searched()]
    places = [*searched, *(link.url for link in question.settings.find_links)]
    if _may_ask_pytorch(question):
        places.append("PyTorch's own indexes" + (f" ({trouble})" if trouble else ""))
    looked = (
        f"Looked for {', '.join(wanted[:4])} and others in {', '.join(places) or 'no index'}."
        if wanted
        else "No CUDA that we know of runs with it."
    )
    return NoWheelError(
        f"there is no CUDA build of {names} that NVIDIA driver {driver} runs",
        hint=f"{looked} Name an index that has one in uv's or pip's configuration, or allow another version"
        " (--allow-substitutes). What is installed here runs there without the GPU: lock it with envsync"
        " snapshot, and name that lock (--lock, lock=).",
    )
