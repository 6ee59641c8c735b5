"""From a lock to an environment on this host: whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any, Mapping

from .blobs import link
from .folderlock import FolderLock
from .installing import Runner, explain, is_network, mismatched, pylock, reachable, uv_settings
from .layout import Cache, Emit, Problem, checked_digest, disk_problem, fresh, remove, taken_back
from .pythons import choose, find, look, supplement

__all__ = ["realise", "report", "unpack_python"]

_SCHEMA = 1
_PTH = (
    "import os, sys; sys.path.extend(filter(None, os.environ.get('ENVSYNC_TREES', '').split(os.pathsep)))\n"
)


def realise(cache: Cache, runner: Runner, emit: Emit, request: Mapping[str, Any]) -> dict[str, Any]:
    """Make an environment, or check the one that is there.

    Parameters
    ----------
    cache : Cache
        Where it goes.
    runner : Runner
        Runs uv.
    emit : callable
        Told the steps.
    request : mapping
        ``digest`` (the lock's), ``python``, ``implementation``, ``artifacts``, ``uv`` (``{"path"}``,
        ``{"digest"}``, or None to be asked for one), ``online``, ``own_uv_cache``, ``environment`` (for uv),
        ``hints`` (interpreters).

    Returns
    -------
    dict
        ``{"prefix", "python", "created", "report", "notes"}``, or what must be sent before it can be made:
        ``{"lacking": [digest], "uv": bool, "python": bool}``.

    Raises
    ------
    Problem
        It could not be made; what was there before is as it was.
    """
    digest = checked_digest(request["digest"])
    prefix = cache.environment(digest)
    there = _existing(prefix)
    if there is not None:
        return there
    try:
        return _Build(cache, runner, emit, request).run()
    except OSError as error:
        raise disk_problem(error, "the environment could not be made") from error


def report(prefix: Path) -> dict[str, Any]:
    """Return what is in an environment now, as a Report's facts.

    Raises
    ------
    Problem
        There is none.
    """
    try:
        state = json.loads((prefix / "envsync.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Problem("realise", f"there is no environment at {prefix}", "Realise it again.") from None
    return _facts(prefix, prefix, state["interpreter"])


def unpack_python(cache: Cache, version: str, digest: str) -> dict[str, Any]:
    """Unpack a shipped interpreter, whose archive is a blob here, and return what it is.

    Raises
    ------
    Problem
        It does not run here, or there is no room for it.
    """
    target = cache.pythons / f"{version}-{checked_digest(digest)[:8]}"
    if "/" in version or not (cache.has(digest) or target.is_dir()):
        raise Problem("usage", f"the archive of Python {version} is not here")
    if not target.is_dir():
        part = fresh(cache.pythons, ".unpacking-")
        try:
            part.mkdir(parents=True)
            with taken_back(part), tarfile.open(cache.blob(digest), "r:gz") as archive:
                for member in archive.getmembers():
                    if member.name.startswith("/") or ".." in member.name.split("/"):
                        raise Problem("corrupt", f"the archive of Python {version} leads out of its folder")
                archive.extractall(part)  # noqa: S202 - the names were looked at
                with contextlib.suppress(FileExistsError):
                    _rename(part, target)
        except OSError as error:
            raise disk_problem(error, f"Python {version} could not be unpacked") from error
        remove(part)
    found = look(str(target / "bin" / "python3"))
    if found is None:
        remove(target)
        raise Problem(
            "unfit",
            f"the Python {version} that was sent does not run there",
            "The host's C library is older, or its machine another: install a Python 3 there.",
        )
    return found


def _existing(prefix: Path) -> dict[str, Any] | None:
    """Return the environment that is there, if it is still what was made."""
    try:
        state = json.loads((prefix / "envsync.json").read_text(encoding="utf-8"))
        interpreter, records = state["interpreter"], state["records"]
        if state["schema"] != _SCHEMA or _stamp(prefix) != state["stamp"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    facts = _facts(prefix, prefix, interpreter)
    if _records(facts) != records:
        return None
    supplement(interpreter["executable"])
    return _answer(prefix, facts, created=False, notes=state.get("notes", []))


class _Build:
    """The making of one environment."""

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
        self.python: dict[str, Any] = {}
        self.notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """Make it, unless something is lacking."""
        uv = self._uv()
        python = choose(
            find(self.cache, self.request.get("hints", ())),
            self.request["python"],
            self.request.get("implementation", "cpython"),
        )
        lacking = [a for a in self.artifacts if not self.cache.has(checked_digest(a["sha256"]))]
        remote = [a for a in lacking if a.get("url")]
        online = bool(lacking) and len(remote) == len(lacking) and self._may_download(remote)
        if uv is None or python is None or (lacking and not online):
            digests = [] if online else [a["sha256"] for a in lacking]
            return {"lacking": digests, "uv": uv is None, "python": python is None}
        self.uv, self.python = uv, python
        if python["version"] != self.request["python"]:
            self.notes.append(
                f"Python {python['version']} ({python['executable']}) stands in for {self.request['python']}"
            )
        self.cache.envs.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.cache.envs / f".lock-{self.digest}", self._waiting):
            there = _existing(self.prefix)  # made meanwhile by whoever had the lock
            if there is not None:
                return there
            for abandoned in self.cache.envs.glob(f".building-{self.digest}-*"):
                remove(abandoned)
            with taken_back(fresh(self.cache.envs, f".building-{self.digest}-")) as building:
                return self._make(building)

    def _make(self, building: Path) -> dict[str, Any]:
        count = len(self.artifacts)
        self.emit({"event": "step", "text": f"installing {count} package{'' if count == 1 else 's'}"})
        supplement(self.python["executable"])
        self._venv(building)
        problem = self._install(building)
        if problem is not None:
            return problem
        (site,) = building.glob("lib/python*/site-packages")
        (site / "envsync.pth").write_text(_PTH, encoding="ascii")
        facts = _facts(building, self.prefix, self.python)
        state = {
            "schema": _SCHEMA,
            "lock": self.digest,
            "interpreter": self.python,
            "stamp": _stamp(building),
            "records": _records(facts),
            "notes": self.notes,
        }
        (building / "envsync.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        self._swap(building)
        return _answer(self.prefix, facts, created=True, notes=self.notes)

    def _venv(self, building: Path) -> None:
        argv = [self.uv, "venv", "--quiet", "--no-config", "--no-project", "--relocatable", "--python"]
        done = self.runner.run([*argv, self.python["executable"], str(building)], self.settings)
        if done.returncode:
            raise explain(done.stderr, "the environment could not be begun", self.cache)

    def _install(self, building: Path) -> dict[str, Any] | None:
        """Install the wheels; returns what is lacking if the index that seemed to be there is not."""
        if not self.artifacts:
            return None
        if self.request.get("own_uv_cache") and any(a.get("url") for a in self.artifacts):
            # uv may have them all unpacked in its cache already, under the index's name.
            here = {a["sha256"]: self._wheel(a) for a in self.artifacts if not a.get("url")}
            if self._sync(building, here, "--offline").returncode == 0:
                return None
        here = {a["sha256"]: self._wheel(a) for a in self.artifacts if self.cache.has(a["sha256"])}
        lacking = [a["sha256"] for a in self.artifacts if a["sha256"] not in here]
        done = self._sync(building, here, *(() if lacking else ("--offline",)))
        if done.returncode == 0:
            return None
        package = mismatched(done.stderr)
        for artifact in self.artifacts:
            if package == artifact["name"]:
                remove(self.cache.blob(artifact["sha256"]))
                remove(self.cache.wheels / artifact["sha256"])
        if lacking and is_network(done.stderr) and package is None:
            self.emit({"event": "note", "text": "the index gave that host nothing: what is lacking is sent"})
            return {"lacking": lacking, "uv": False, "python": False}
        raise explain(done.stderr, f"{len(self.artifacts)} packages could not be installed", self.cache)

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
                part.write_bytes(self.cache.blob(digest).read_bytes())
                part.chmod(0o700)
                part.replace(path)
        return str(path)

    def _may_download(self, artifacts: list[dict[str, Any]]) -> bool:
        if not self.request.get("online"):
            return False
        # On the client's own machine uv's cache may have it all, whether the index can be reached or not.
        return bool(self.request.get("own_uv_cache")) or reachable(a["url"] for a in artifacts)

    def _waiting(self, owner: Mapping[str, str]) -> None:
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        self.emit({"event": "step", "text": f"waiting for {who}, which is making this environment"})

    def _swap(self, building: Path) -> None:
        try:
            building.rename(self.prefix)
        except OSError:
            if not self.prefix.exists():
                raise
            old = fresh(self.cache.envs, ".old-")
            self.prefix.rename(old)
            building.rename(self.prefix)
            remove(old)
            self.notes.append("the environment that was there had been changed: it was made anew")


def _facts(folder: Path, prefix: Path, interpreter: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the environment in a folder, and say it of `prefix`, where it is or will be."""
    from ..plugins.scan import scan

    sites = [str(path) for path in folder.glob("lib/python*/site-packages")]
    facts: dict[str, Any] = scan(sites)
    if folder != prefix:
        for distribution in facts["distributions"]:
            for key in ("location", "shadowed_by"):
                distribution[key] = distribution[key].replace(str(folder), str(prefix), 1)
        facts["paths"] = [path.replace(str(folder), str(prefix), 1) for path in facts["paths"]]
    keys = ("implementation", "version", "base_prefix", "soabi")
    facts["interpreter"] = {
        **{key: interpreter[key] for key in keys},
        "executable": str(prefix / "bin" / "python"),
        "prefix": str(prefix),
    }
    facts["platform"] = {key: interpreter[key] for key in ("system", "machine", "libc")}
    return facts


def _records(facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {d["name"]: [d["version"], d["record"]] for d in facts["distributions"] if not d["shadowed_by"]}


def _stamp(prefix: Path) -> list[Any]:
    """Return what tells whether the interpreter behind an environment is still the same file."""
    real = (prefix / "bin" / "python").resolve()
    status = real.stat()
    return [str(real), status.st_size, int(status.st_mtime)]


def _answer(prefix: Path, facts: dict[str, Any], *, created: bool, notes: list[str]) -> dict[str, Any]:
    return {
        "prefix": str(prefix),
        "python": str(prefix / "bin" / "python"),
        "created": created,
        "report": facts,
        "notes": notes,
    }


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
