"""Making an environment: uv installs into a folder that gets its name when all is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Mapping

from .blobs import link
from .compiling import compiling
from .folderlock import FolderLock
from .installing import explain, is_network, mismatched, not_given, pylock, reachable, uv_settings
from .layout import TREES_PTH, Cache, Emit, Problem, checked_digest, exchange, fresh, remove, taken_back
from .pythons import choose, find, supplement
from .realise import SCHEMA, answer, existing, look_at, records, remember, stamp, traces_of
from .running import Runner, not_executable

__all__ = ["Build"]


class Build:
    """The making of one environment.

    uv installs the wheels. Where there is no uv yet and they are few, all come here and are laid out without.
    """

    def __init__(self, cache: Cache, runner: Runner, emit: Emit, request: Mapping[str, Any]) -> None:
        self.cache = cache
        self.runner = runner
        self.emit = emit
        self.request = request
        self.digest: str = request["digest"]
        self.prefix = cache.environment(self.digest)
        self.artifacts: list[dict[str, Any]] = request["artifacts"]
        self.settings = uv_settings(cache, request)
        self.uv = ""
        self.few = bool(request.get("few")) and not request.get("uv") and not any(cache.bin.glob("uv-*"))
        self.python: dict[str, Any] = {}
        self.notes: list[str] = []
        self.laid: set[str] = set()  # files whose compiled code is there

    def run(self) -> dict[str, Any]:
        """Make it, unless something is lacking."""
        uv = "" if self.few else self._uv()
        python = choose(
            find(self.cache, self.request.get("hints", ())),
            self.request["python"],
            self.request.get("implementation", "cpython"),
        )
        lacking = [a for a in self.artifacts if not self.cache.has(checked_digest(a["sha256"]))]
        asked_for = [a["sha256"] for a in lacking] if self.few else self._not_to_be_had(lacking)
        if uv is None or python is None or asked_for:
            return {"lacking": asked_for, "uv": uv is None, "python": python is None}
        self.uv, self.python = uv, python
        if python["version"] != self.request["python"]:
            self.notes.append(
                f"Python {python['version']} ({python['executable']}) stands in for {self.request['python']}"
            )
        self.cache.envs.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.cache.envs / f".lock-{self.digest}", self._waiting):
            there = existing(self.prefix)  # made meanwhile by whoever had the lock
            if there is not None:
                return there
            for abandoned in self.cache.envs.glob(f".building-{self.digest}-*"):
                remove(abandoned)
            try:
                with taken_back(fresh(self.cache.envs, f".building-{self.digest}-")) as building:
                    return self._make(building)
            except (Problem, OSError):
                # A machine that was asleep has lost the lock to another one, which did not wait for it.
                there = existing(self.prefix)
                if there is None:
                    raise
                return there

    def _make(self, building: Path) -> dict[str, Any]:
        count = len(self.artifacts)
        self.emit({"event": "step", "text": f"installing {count} package{'' if count == 1 else 's'}"})
        supplement(self.python["executable"])
        problem = self._lay(building) if self.few else self._install(building)
        if problem is not None:
            return problem
        (site,) = building.glob("lib/python*/site-packages")
        (site / "envsync.pth").write_text(TREES_PTH, encoding="ascii")
        names = [name for name in self.request.get("compile", ()) if name not in self.laid]
        code = None if self.laid else self._code()
        with compiling(self.runner, self.python["executable"], site, names, code):
            facts = self._note(building)
        self._swap(building)
        return answer(self.prefix, facts, created=True, notes=self.notes)

    def _note(self, building: Path) -> dict[str, Any]:
        """Look at what was made, and remember it with it."""
        facts = look_at(building, self.prefix, self.python)
        state = {
            "schema": SCHEMA,
            "lock": self.digest,
            "interpreter": self.python,
            "stamp": stamp(building),
            "records": records(facts),
            "notes": self.notes,
            "facts": facts,
            "traces": traces_of(building, self.prefix),
        }
        remember(building, state)
        return facts

    def _venv(self, building: Path) -> None:
        argv = [self.uv, "venv", "--quiet", "--no-config", "--no-project", "--relocatable", "--python"]
        done = self.runner.run([*argv, self.python["executable"], str(building)], self.settings)
        if done.returncode:
            raise explain(done.stderr, "the environment could not be begun", self.cache)

    def _install(self, building: Path) -> dict[str, Any] | None:
        """Have uv make it; returns what is lacking if an index that seemed to have it does not give it."""
        self._venv(building)
        if not self.artifacts:
            return None
        named = any(a.get("url") for a in self.artifacts)
        if named and self.request.get("here") and self.cache.uv.is_dir() and not self._were_here():
            # uv may have them all unpacked in its cache already, under the index's name.
            here = {a["sha256"]: self._wheel(a) for a in self.artifacts if not a.get("url")}
            if self._sync(building, here, "--offline").returncode == 0:
                return None
        here = {a["sha256"]: self._wheel(a) for a in self.artifacts if self.cache.has(a["sha256"])}
        lacking = [a for a in self.artifacts if a["sha256"] not in here]
        done = self._sync(building, here, *(() if lacking else ("--offline",)))
        if done.returncode == 0:
            return None
        package = mismatched(done.stderr)
        self._forget(package)
        if lacking and is_network(done.stderr) and package is None:
            failed = [a["sha256"] for a in not_given(done.stderr, lacking)]
            text = f"the index did not give that host {len(failed)} of {len(lacking)} packages: they are sent"
            self.emit({"event": "note", "text": text})
            return {"lacking": failed, "uv": False, "python": False, "failed": True}
        raise explain(done.stderr, f"{len(self.artifacts)} packages could not be installed", self.cache)

    def _lay(self, building: Path) -> dict[str, Any] | None:
        """Lay the wheels out without uv; returns that it is lacking if that cannot be done."""
        from .laying import DamagedError, UnlaidError, lay_wheels

        if os.statvfs(self.cache.envs).f_flag & os.ST_NOEXEC:
            raise not_executable(str(self.prefix / "bin" / "python"))
        wheels = {a["name"]: self._wheel(a) for a in self.artifacts}
        try:
            python = self.python["executable"]
            laid = lay_wheels(self.runner, python, building, self.prefix, wheels, self._code())
            self.laid = {*laid}
        except DamagedError as error:
            self._forget(error.name)
            raise Problem(
                "realise",
                f"{len(self.artifacts)} packages could not be installed: {error}",
                "Try again: the file is fetched anew.",
            ) from error
        except UnlaidError as error:
            text = f"{self.python['executable']} could not lay the packages out ({error}): uv is asked for"
            self.emit({"event": "note", "text": text})
            return {"lacking": [], "uv": True, "python": False}
        return None

    def _code(self) -> Path | None:
        """Return where compiled code of the client's is, or will be."""
        digest = self.request.get("code")
        return self.cache.blob(checked_digest(digest)) if digest else None

    def _forget(self, package: str | None) -> None:
        """Remove a wheel that was found to be damaged."""
        for artifact in self.artifacts:
            if package == artifact["name"]:
                remove(self.cache.blob(artifact["sha256"]))
                remove(self.cache.wheels / artifact["sha256"])

    def _were_here(self) -> bool:
        """Return whether uv was given all of these wheels as files before, and knows them by their paths."""
        return all((self.cache.wheels / a["sha256"] / a["filename"]).is_file() for a in self.artifacts)

    def _sync(self, building: Path, here: Mapping[str, Path], *options: str) -> Any:
        file = building / "pylock.toml"
        file.write_text(pylock(self.artifacts, here), encoding="utf-8")
        argv = [
            self.uv,
            "pip",
            "sync",
            "--quiet",
            "--no-config",
            "--preview-features",
            "pylock",
            "--no-build",
        ]
        argv += ["--link-mode", "hardlink", "--python", str(building / "bin" / "python"), *options, str(file)]
        try:
            return self.runner.run(argv, self.settings)
        finally:
            remove(file)

    def _wheel(self, artifact: Mapping[str, Any]) -> Path:
        """Return a wheel under its own name. The path stays the same, so that uv knows it the next time."""
        name = artifact["filename"]
        if "/" in name or name.startswith("."):
            raise Problem("usage", f"{name!r} is not a wheel's name")
        path: Path = self.cache.wheels / checked_digest(artifact["sha256"]) / name
        if not path.is_file():
            link(self.cache.blob(artifact["sha256"]), path)
        return path

    def _uv(self) -> str | None:
        asked = self.request.get("uv")
        if not asked:
            return None
        if "path" in asked:
            return str(asked["path"])
        digest = checked_digest(asked["digest"])
        path = self.cache.bin / f"uv-{digest}"
        if not os.access(path, os.X_OK):
            if not self.cache.has(digest):
                return None
            # A copy: the blob's own mode is not to change.
            part = fresh(self.cache.bin, ".uv-")
            with taken_back(part):
                shutil.copyfile(self.cache.blob(digest), part)
                part.chmod(0o700)
                part.replace(path)
        return str(path)

    def _not_to_be_had(self, lacking: list[dict[str, Any]]) -> list[str]:
        """Return those wheels of which nobody but the client can be asked."""
        if not self.request.get("online"):
            return [a["sha256"] for a in lacking]
        # On the client's own machine uv's cache may have it all, whether the index can be reached or not.
        named = [a for a in lacking if a.get("url")]
        offered = {a["sha256"] for a in (named if self.request.get("here") else reachable(named))}
        return [a["sha256"] for a in lacking if a["sha256"] not in offered]

    def _waiting(self, owner: Mapping[str, str]) -> None:
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        self.emit({"event": "step", "text": f"waiting for {who}, which is making this environment"})

    def _swap(self, building: Path) -> None:
        try:
            building.rename(self.prefix)
        except OSError:
            if not self.prefix.exists():
                raise
            remove(exchange(building, self.prefix))
            self.notes.append("the environment that was there had been changed: it was made anew")
