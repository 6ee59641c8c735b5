"""One resolution: what is wanted, what is asked of uv for it, and what it finds along the way."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from envsync import cuda, wheels
from envsync.errors import NoWheelError
from envsync.plan import project_folder
from envsync.roots import only_for, parse_requirements
from envsync.uv_compile import Question, scope_of, uv_platform

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from envsync.artifacts import Artifact, Excluded, Substitution
    from envsync.cuda_builds import Builds
    from envsync.hooks import Hooks
    from envsync.indexes import IndexSettings
    from envsync.plan import Plan
    from envsync.snapshot import Distribution, Snapshot
    from envsync.store import Store
    from envsync.target import Target

__all__ = ["Job"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be locked, and for what.

    Attributes
    ----------
    snapshot, target, store, settings, hooks, allow_substitutes
        As for `envsync.resolve.resolve`.
    plan : Plan
        The snapshot's distributions, sorted by where they come from.
    builds : Builds or None
        What the target's driver wants in place of what is installed.
    excluded, substitutions : list
        What was found to go, and to be replaced.
    """

    snapshot: Snapshot
    target: Target
    store: Store
    settings: IndexSettings
    plan: Plan
    hooks: Hooks
    allow_substitutes: bool
    builds: Builds | None = None
    excluded: list[Excluded] = field(default_factory=list)
    substitutions: list[Substitution] = field(default_factory=list)

    def question(self) -> Question:
        """What uv is asked about this target."""
        here, there = self.snapshot.target, self.target
        executable = self.snapshot.interpreter.executable
        found = Path(executable).exists()
        # What runs on the older of both C libraries runs on both, and is what is installed here.
        platform = here if there.covers(here) else there
        return Question(
            settings=self.settings,
            python=executable if found else sys.executable,
            version=there.python,
            platform="" if found and platform is here else uv_platform(platform),
            target=platform,
            installed={name: one.tags for name, one in self.plan.pins.items()},
        )

    @property
    def driver(self) -> str:
        """The target's driver; "" if it is this machine's, where what is installed is what is meant."""
        driver = cuda.driver_of(self.target)
        return "" if driver == cuda.driver_of(self.snapshot.target) else driver

    def requires(self) -> dict[str, tuple[Requirement, ...]]:
        """What each installed distribution requires."""
        installed = {**self.plan.pins, **self.plan.local, **self.plan.trees}
        return {name: parse_requirements(one.requires) for name, one in installed.items()}

    def replaced(self) -> dict[str, str]:
        """The packages of which another build is locked, and its version."""
        return {} if self.builds is None else dict(self.builds.pins)

    def loose(self) -> set[str]:
        """What only such packages require of CUDA: it is not pinned, and goes or comes as they want it."""
        replaced = self.replaced()
        if not replaced:
            return set()
        environment = self.snapshot.target.marker_environment()
        found = only_for(replaced, self.requires(), environment)
        return {name for name in found - replaced.keys() if cuda.is_library(name)}

    def local_wheel(self, distribution: Distribution) -> Artifact:
        """Make a wheel of what is installed (or, for an editable, of its project).

        Raises
        ------
        NoWheelError
            It would not run on the target.
        """
        if distribution.editable:
            artifact = wheels.build(
                project_folder(distribution),
                self.store,
                python=self.snapshot.interpreter.executable,
                installed=distribution,
                env=self.settings.uv_environment(),
                hooks=self.hooks,
            )
        else:
            artifact = wheels.repack(distribution, self.snapshot, self.store, hooks=self.hooks)
        if not self.runs(artifact):
            raise NoWheelError(
                f"{distribution.name} {distribution.version} was built here and holds compiled code for"
                f" {self.snapshot.target.describe()}, which does not run on {self.target.describe()}",
                hint="Publish a wheel for the target to an index that your settings name, or lock for a"
                " machine of this kind.",
            )
        return artifact

    def runs(self, artifact: Artifact) -> bool:
        """Whether a wheel that was made here runs on the target."""
        tags = parse_wheel_filename(artifact.filename)[3]
        if not tags & frozenset(self.target.tags()):
            return False
        built_here = all(tag.platform.startswith("linux_") for tag in tags)
        return not built_here or self.target.covers(self.snapshot.target)

    def no_wheel(self, distribution: Distribution) -> NoWheelError:
        """Describe a pin without a wheel for the target, and what there is instead."""
        name, version = distribution.name, distribution.version
        question = self.question()
        files = question.wheels(name, version)
        newest = question.newest(name)
        known = f"Its wheels are {scope_of(files)}." if files else "The index has no wheel of it at all."
        other = (
            f" {newest} has one; allow substitutes to lock that instead (--allow-substitutes)."
            if newest and newest != version
            else " Install a version that has one, publish one to your own index, or lock for such a machine."
        )
        return NoWheelError(
            f"{name} {version} has no wheel for {self.target.describe()}",
            hint=f"{known}{other}",
        )
