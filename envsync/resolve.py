"""Makes a lock: the exact wheels that give a snapshot's environment on a target.

For a target of the client's own kind (same system, machine, libc family and Python minor version) every
installed version is looked up as it is. For any other kind the roots of the environment are resolved again,
under all installed versions as constraints, so that packages for one platform only drop out and the target's
own come in. uv does both.

For a target with a driver of NVIDIA that is not this machine's, CUDA builds of the same versions stand in for
builds of the CPU, and for those that the driver does not run (`envsync.cuda_builds`); the libraries that they
require come with them.

Only wheels are locked. What no index has as a wheel, or what was not installed from an index (git, archives,
local builds), is made into a wheel again from its installed files, if those can run on the target.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from packaging.utils import canonicalize_name
from packaging.version import Version

from envsync import cuda, wheels
from envsync.artifacts import wheel_tags
from envsync.cuda_builds import Builds, choose_builds
from envsync.errors import NoWheelError, ResolveError, ToolError
from envsync.hooks import Hooks
from envsync.lock import WHEELS_FOLDER, Artifact, Excluded, Lock, Substitution
from envsync.plan import make_plan
from envsync.resolution import Job
from envsync.roots import active_requirements, roots
from envsync.scratch import scratch
from envsync.uv_compile import Found, Question, culprits, refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envsync.indexes import IndexSettings
    from envsync.snapshot import Distribution, Snapshot
    from envsync.store import Store
    from envsync.target import Target
    from envsync.trees import Manifest

__all__ = ["resolve"]


def resolve(
    snapshot: Snapshot,
    target: Target,
    *,
    store: Store,
    settings: IndexSettings,
    manifests: Sequence[Manifest] = (),
    allow_substitutes: bool = False,
    hooks: Hooks | None = None,
) -> Lock:
    """Lock a snapshot for a target.

    Parameters
    ----------
    snapshot : Snapshot
        What is installed here.
    target : Target
        What it is to run on.
    store : Store
        Where wheels go that are made here.
    settings : IndexSettings
        Where packages come from.
    manifests : sequence of Manifest
        The snapshot's source trees, packed; the lock refers to them.
    allow_substitutes : bool
        Whether another version may be locked where the installed one has no wheel for the target. Each
        substitution is written into the lock.
    hooks : Hooks, optional
        Told what is going on, and of whatever is left out.

    Returns
    -------
    Lock
        One wheel per package.

    Raises
    ------
    NoWheelError
        An installed version has no wheel for the target.
    UnsupportedError
        The environment holds conda packages.
    ResolveError
        Something installed cannot be reproduced, or the installed versions do not fit together.
    ToolError
        uv failed for another reason, such as an index that is not reached.
    BuildError
        A local project did not build.
    """
    hooks = hooks or Hooks()
    started = time.monotonic()
    plan = make_plan(snapshot)
    hooks.step("here", f"locking {len(plan.pins) + len(plan.local)} packages for {target.describe()}")
    for note in settings.notes:
        hooks.note("here", note)
    for excluded in plan.excluded:
        hooks.warning("here", f"{excluded.name} {excluded.version} is left out: {excluded.reason}")
    job = Job(snapshot, target, store, settings, plan, hooks, allow_substitutes)
    job = replace(job, builds=_builds(job))
    artifacts = _own_kind(job) if _same_kind(snapshot.target, target) else None
    if artifacts is None:
        artifacts = _other_kind(job)
    locked = {artifact.name: artifact for artifact in artifacts}
    _demand_driver(job, artifacts)
    lock = Lock.of(
        artifacts,
        target,
        snapshot=snapshot.digest,
        records=_records(job, artifacts),
        trees=tuple(manifest.reference() for manifest in manifests),
        excluded=(*plan.excluded, *job.excluded),
        substitutions=tuple(job.substitutions),
    )
    for excluded in job.excluded:
        hooks.note("here", f"{excluded.name} {excluded.version} is left out: {excluded.reason}")
    for one in job.substitutions:
        tell = hooks.note if _same_public(one.locked, one.installed) else hooks.warning
        tell("here", f"{one.name} {one.locked} is locked in place of {one.installed}: {one.reason}")
    hooks.done("here", f"locked {len(locked)} packages", time.monotonic() - started)
    return lock


def _builds(job: Job) -> Builds | None:
    """Return the builds that the target's driver wants in place of those that are installed."""
    driver = job.driver
    installed = {name: one.version for name, one in {**job.plan.pins, **job.plan.local}.items()}
    names = cuda.concerned(installed.items(), driver) if driver else ()
    if not names:
        return None
    return choose_builds(
        {name: installed[name] for name in names},
        driver,
        job.question(),
        allow_substitutes=job.allow_substitutes,
    )


def _demand_driver(job: Job, artifacts: Sequence[Artifact]) -> None:
    """Raise if the target's driver is too old for what is locked.

    Raises
    ------
    ResolveError
        With the package that asks for the newest driver.
    """
    driver = job.driver
    missing = cuda.unmet(driver, [(one.name, one.version) for one in artifacts]) if driver else ()
    if missing:
        raise ResolveError(
            cuda.too_old(driver, missing[-1]),
            hint="Update the driver there, or install a version for an older CUDA here.",
        )


def _own_kind(job: Job) -> list[Artifact] | None:
    """Look every installed version up as it is; None if some have to be substituted."""
    plan, question = job.plan, job.question()
    others = job.replaced().keys() | job.loose()
    pins = {name: one for name, one in plan.pins.items() if name not in others}
    artifacts = [job.local_wheel(one) for name, one in plan.local.items() if name not in others]
    wheels_only = True  # uv is quicker where it need not look at source distributions
    while True:
        try:
            found = question.pins((_pin(one) for one in pins.values()), wheels_only=wheels_only)
            break
        except ToolError as error:
            if wheels_only and error.returncode == 1:
                wheels_only = False
                continue
            for name in _culprits(job, error, pins):
                if not _own_files(job, pins.pop(name), artifacts, "no index that is configured has it"):
                    return None
    for name, one in found.items():
        if not one.filename and not _own_files(job, pins[name], artifacts, "the index has no wheel of it"):
            return None
    chosen = [one for one in found.values() if one.filename]
    other = [one for one in chosen if _another_build(job, pins[one.name], one)]
    for one in other:
        distribution = pins[one.name]
        artifacts.append(job.local_wheel(distribution))
        what = (
            f"{distribution.name} {distribution.version}: {one.filename} is another build than is installed"
        )
        job.hooks.note("here", f"{what}; its installed files are used")
    artifacts += _artifacts(job, [one for one in chosen if one not in other], question)
    return artifacts + _other_builds(job) if job.builds is not None else artifacts


def _other_builds(job: Job) -> list[Artifact]:
    """Look up other builds than are installed, and what they require besides all that is installed anyhow."""
    assert job.builds is not None
    others = job.replaced().keys() | job.loose()
    installed = {**job.plan.pins, **job.plan.local, **job.plan.trees}
    stays = sorted(installed.keys() - others)
    with scratch("lock") as folder:
        (folder / "excludes.txt").write_text("".join(f"{name}\n" for name in stays))
        found = job.builds.question.closure(
            job.builds.requirements(), excludes=folder / "excludes.txt" if stays else None
        )
    artifacts = _artifacts(job, list(found.values()), job.builds.question)
    _tell_builds(job, artifacts)
    return artifacts


def _tell_builds(job: Job, artifacts: Sequence[Artifact]) -> None:
    """Write down what stands in for what, and what comes and goes with it."""
    assert job.builds is not None
    installed = {**job.plan.pins, **job.plan.local}
    locked = {one.name: one.version for one in artifacts}
    replaced, loose = job.replaced(), job.loose()
    job.substitutions.extend(
        Substitution(
            name=name,
            installed=installed[name].version,
            locked=locked[name],
            reason=job.builds.reason,
        )
        for name in sorted((replaced.keys() | loose) & locked.keys())
        if not _same_version(locked[name], installed[name].version)
    )
    job.excluded.extend(
        Excluded(name=name, version=installed[name].version, reason="the locked builds do not need it")
        for name in sorted(loose - locked.keys())
    )
    come = sorted(locked.keys() - installed.keys() - job.plan.trees.keys())
    if come:
        more = f" and {len(come) - 3} more" if len(come) > 3 else ""
        job.hooks.note("here", f"{', '.join(come[:3])}{more} come with the CUDA builds")


def _own_files(job: Job, distribution: Distribution, artifacts: list[Artifact], why: str) -> bool:
    """Use the installed files of a pin that has no wheel, if they run on the target."""
    try:
        artifacts.append(job.local_wheel(distribution))
    except NoWheelError:
        if job.allow_substitutes:
            return False
        raise job.no_wheel(distribution) from None
    job.hooks.note("here", f"{distribution.name} {distribution.version}: {why}; its installed files are used")
    return True


def _other_kind(job: Job) -> list[Artifact]:
    """Resolve the roots under the installed versions as constraints."""
    plan = job.plan
    question = job.question() if job.builds is None else job.builds.question
    replaced, loose = job.replaced(), job.loose()
    installed = {**plan.pins, **plan.local, **plan.trees}
    requires = job.requires()
    versions = {name: one.version for name, one in installed.items()}
    top = roots(requires, versions, job.snapshot.target.marker_environment())
    asked = {
        name: _asked(name, extras)
        for name, extras in top.items()
        if (name in plan.pins or name in replaced) and name not in loose
    }
    further: set[str] = set()
    for name in plan.trees:  # uv does not see these: what they require is asked for in their place
        extras = top.get(name, ())
        for requirement in active_requirements(requires[name], job.target.marker_environment(), extras):
            child = canonicalize_name(requirement.name)
            requirement.marker = None
            if child in plan.pins:
                further.add(_asked(child, requirement.extras))
            elif child not in installed:
                further.add(str(requirement))
    pins: dict[str, str] = {name: _pin(one) for name, one in plan.pins.items() if name not in loose}
    pins |= {name: f"{name}==={version}" for name, version in replaced.items()}
    made: dict[str, Artifact] = {}
    foreign: set[str] = set()
    for name, one in plan.local.items():
        if name in replaced or name in loose:
            continue
        try:
            made[name] = job.local_wheel(one)
        except NoWheelError:
            if name in top:
                raise
            foreign.add(name)
    with scratch("lock") as folder:
        while True:
            (folder / "constraints.txt").write_text("".join(f"{pin}\n" for pin in sorted(pins.values())))
            files = {name: _wheel_file(artifact, job.store, folder) for name, artifact in made.items()}
            lines = {
                f"{_asked(name, top.get(name, ()))} @ file://{quote(str(path))}"
                for name, path in files.items()
            }
            lines |= {line for name, line in asked.items() if name not in made}
            try:
                found = question.closure(lines | further, constraints=folder / "constraints.txt")
                break
            except ToolError as error:
                _relax(job, error, pins, made)
        wrong = sorted(foreign & found.keys())
        if wrong:
            job.local_wheel(plan.local[wrong[0]])
        chosen = [one for one in found.values() if one.name not in made]
        artifacts = [*made.values(), *_artifacts(job, chosen, question)]
    job.substitutions.extend(
        Substitution(
            name=one.name,
            installed=plan.pins[one.name].version,
            locked=one.version,
            reason=f"no wheel for {job.target.describe()}",
        )
        for one in artifacts
        if one.name in plan.pins
        and one.name not in replaced
        and one.name not in loose
        and not _same_version(one.version, plan.pins[one.name].version)
    )
    if job.builds is not None:
        _tell_builds(job, [one for one in artifacts if one.name in replaced or one.name in loose])
    locked = {artifact.name for artifact in artifacts}
    job.excluded.extend(
        Excluded(name=name, version=one.version, reason=f"nothing requires it on {job.target.describe()}")
        for name, one in installed.items()
        if name not in locked and name not in plan.trees and name not in loose
    )
    return artifacts


def _relax(job: Job, error: ToolError, pins: dict[str, str], made: dict[str, Artifact]) -> None:
    """Find a way around pins that have no wheel: their installed files, or, if allowed, other versions."""
    for name in _culprits(job, error, (job.plan.pins.keys() | job.plan.local.keys()) - made.keys()):
        distribution = job.plan.pins.get(name) or job.plan.local[name]
        try:
            made[name] = job.local_wheel(distribution)
            pins.pop(name, None)
            job.hooks.note(
                "here",
                f"{name} {distribution.version}: no index has a wheel of it; its installed files are used",
            )
        except NoWheelError:
            if name in job.plan.local:
                raise
            if not job.allow_substitutes or name not in pins:
                raise job.no_wheel(distribution) from None
            public, plus, _ = distribution.version.partition("+")
            if plus and pins[name] != f"{name}=={public}":
                pins[name] = f"{name}=={public}"
            else:
                del pins[name]


def _culprits(job: Job, error: ToolError, names: Iterable[str]) -> list[str]:
    """Return the packages that cannot be had; any other failure is raised."""
    if error.returncode != 1:
        raise error
    found = [] if refused(error) else culprits(error, names)
    refusal = error if refused(error) else job.question().refusal(found) if found else None
    if refusal is not None:
        raise ResolveError(
            f"an index does not let us in: {refusal.hint}",
            hint="Give the right credentials: in its URL, in UV_INDEX_<NAME>_USERNAME and _PASSWORD, in netrc"
            " or in the keyring.",
        ) from error
    if not found:
        raise ResolveError(
            f"the installed versions do not fit together on {job.target.describe()}:\n  {error.message}",
            hint=error.hint or "Look at what contradicts what: python -m pip check",
        ) from error
    return found


def _artifacts(job: Job, found: Sequence[Found], question: Question) -> list[Artifact]:
    indexes = question.indexes(found)
    artifacts = []
    for one in found:
        path = None
        if one.file is not None:  # on this machine only: it goes with the lock
            job.store.put(one.file, one.sha256)
            path = f"{WHEELS_FOLDER}/{one.filename}"
        artifacts.append(
            Artifact(
                name=one.name,
                version=one.version,
                filename=one.filename,
                sha256=one.sha256,
                size=one.size,
                url=one.url,
                path=path,
                index=indexes.get(one.name),
            )
        )
    return artifacts


def _records(job: Job, artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Return the record digests that an environment made of these will have, where they are known by now."""
    installed = {**job.plan.pins, **job.plan.local}
    records = {}
    for artifact in artifacts:
        distribution = installed.get(artifact.name)
        if artifact.path is not None:
            records[artifact.name] = wheels.record_of(artifact, job.store)
        elif distribution is not None and distribution.record and _same_build(distribution, artifact):
            records[artifact.name] = distribution.record
    return records


def _wheel_file(artifact: Artifact, store: Store, folder: Path) -> Path:
    """Lay a wheel of the store in a folder, under its name."""
    path = folder / artifact.filename
    if not path.exists():
        with store.open(artifact.sha256) as source, path.open("wb") as copy:
            while piece := source.read(1 << 20):
                copy.write(piece)
    return path


def _asked(name: str, extras: Iterable[str]) -> str:
    return f"{name}[{','.join(sorted(extras))}]" if extras else name


def _pin(distribution: Distribution) -> str:
    return f"{distribution.name}=={distribution.version}"


def _another_build(job: Job, distribution: Distribution, found: Found) -> bool:
    """Whether uv chose another file than was installed, although that one runs on the target too.

    So it is where another index comes first, or where a better match was uploaded since.
    """
    runs = job.target.covers(job.snapshot.target) and bool(distribution.tags)
    return runs and not _same_build(distribution, found)


def _same_build(distribution: Distribution, artifact: Artifact | Found) -> bool:
    """Whether the locked wheel is the build that is installed: its files can be compared by their hashes."""
    if not _same_version(artifact.version, distribution.version):
        return False
    return not wheel_tags(artifact.filename).isdisjoint(distribution.tags)


def _same_version(one: str, other: str) -> bool:
    return one == other or Version(one) == Version(other)


def _same_public(one: str, other: str) -> bool:
    return Version(one).public == Version(other).public


def _same_kind(one: Target, other: Target) -> bool:
    def kind(target: Target) -> tuple[object, ...]:
        libc = None if target.libc is None else target.libc[0]
        return target.implementation, target.system, target.machine, target.minor, libc

    return kind(one) == kind(other)
