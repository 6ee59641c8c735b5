"""Container engines on a host, and images that processes run from: found, pulled, looked into."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Mapping

from .inside import LOCK, PYTHON
from .layout import Cache, Emit, Problem, checked_name, private_folder, remove, token
from .owner import write_owner
from .running import Runner

__all__ = ["have_image"]

_ENGINES = ("podman", "docker")
_PLACES = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_LABEL = "org.envsync.lock"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
_PULLED = re.compile(r"[A-Za-z0-9._:\[\]/-]+@sha256:[0-9a-f]{64}\Z")
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?/")
_CDI = ("/etc/cdi", "/var/run/cdi")  # where it is written how devices get into containers

_SAID = (
    ("login", ("unauthorized", "authentication required", "no basic auth", "the resource is denied")),
    ("platform", ("no matching manifest", "no image found in", "choosing an image from manifest list")),
    ("full", ("no space left", "disk quota exceeded")),
    ("absent", ("manifest unknown", "name unknown", "not found")),
)

Answer = Dict[str, Any]


def have_image(cache: Cache, runner: Runner, emit: Emit, request: Mapping[str, Any]) -> Answer:
    """Have an image on this host, and say what is in it.

    Parameters
    ----------
    cache : Cache
        Where a login lies while it is used.
    runner : Runner
        Runs the engine.
    emit : callable
        Told what is being done.
    request : mapping
        ``image`` (with its digest), ``engine`` (which one; empty for the one that can be used), ``login`` (an
        entry of an engine's ``auths``, or None) and ``run`` (a name that is nobody else's).

    Returns
    -------
    dict
        ``engine`` (its path), ``kind``, ``user`` (that processes have inside), ``pulled``, ``cdi``,
        ``compiled`` (a folder for what is compiled of the image's Python files, which containers share), and
        ``lock``, ``trees`` and ``report`` as `inside.contents` has them.

    Raises
    ------
    Problem
        No engine can be used, the image cannot be had or does not run here, or envsync did not make it.
    """
    image = str(request["image"])
    if not _PULLED.match(image):
        raise Problem("usage", f"{image!r} names no image by its digest")
    engine = _Engine.find(runner, str(request.get("engine") or ""))
    about = engine.inspect(image)
    pulled = about is None
    if about is None:
        emit({"event": "step", "text": f"pulling {image} with {engine.kind}"})
        engine.pull(cache, image, request.get("login"), checked_name(request["run"]))
        about = engine.inspect(image)
        if about is None:
            raise Problem("image", f"{engine.kind} pulled {image}, and does not know it", "Pull it by hand.")
    _demand_ours(image, about)
    emit({"event": "step", "text": f"looking into {image}"})
    compiled = cache.root / "compiled" / image.rpartition(":")[2][:32]
    private_folder(compiled)
    return {
        "engine": engine.path,
        "kind": engine.kind,
        "user": engine.user,
        "pulled": pulled,
        "compiled": str(compiled),
        "cdi": any("nvidia" in path.name for folder in _CDI for path in Path(folder).glob("*")),
        **engine.contents(image),
    }


class _Engine:
    """podman or Docker, as this user can use it."""

    def __init__(self, runner: Runner, path: str, kind: str, user: str) -> None:
        self.runner = runner
        self.path = path
        self.kind = kind
        self.user = user

    @classmethod
    def find(cls, runner: Runner, wanted: str) -> _Engine:
        """Return the engine that is wanted, or the first that can be used: for root Docker, else podman."""
        if wanted and wanted not in _ENGINES:
            raise Problem("usage", f"there is no engine {wanted!r}", f"Choose {' or '.join(_ENGINES)}.")
        names = [wanted] if wanted else sorted(_ENGINES, reverse=os.geteuid() != 0)
        troubles = []
        for name in names:
            path = shutil.which(name) or shutil.which(name, path=_PLACES)
            if path is None:
                troubles.append(f"{name} is not there")
                continue
            format_ = "{{.Host.Security.Rootless}}" if name == "podman" else "{{json .SecurityOptions}}"
            done = runner.run([path, "info", "--format", format_], {}, output=True)
            if done.returncode == 0:
                text = done.stdout.decode(errors="replace").lower()
                inside_root = "true" in text if name == "podman" else "rootless" in text
                user = "0:0" if inside_root else f"{os.geteuid()}:{os.getegid()}"
                return cls(runner, path, name, user)
            troubles.append(f"{name} cannot be used: {_last(done.stderr)}")
        denied = "permission denied" in " ".join(troubles).lower()
        raise Problem(
            "unfit",
            f"no container engine can be used: {'; '.join(troubles)}",
            "Let this user use it (a member of its group may), or install podman, which needs no rights."
            if denied
            else "Install podman or Docker there (rented machines: by commands=, or an image that has it),"
            " or run without an image.",
        )

    def inspect(self, image: str) -> dict[str, Any] | None:
        """Return what the engine knows of an image, None if it does not have it."""
        done = self.runner.run([self.path, "image", "inspect", image], {}, output=True)
        try:
            (about,) = json.loads(done.stdout) if done.returncode == 0 else (None,)
        except ValueError:
            about = None
        return about if isinstance(about, dict) else None

    def pull(self, cache: Cache, image: str, login: Any, run: str) -> None:
        """Pull an image, with a login if one was given: it lies in a file while that lasts."""
        command, environment = [self.path, "pull", "--quiet"], {}
        with ExitStack() as after:
            if login:
                folder = cache.runs / run / f"pull-{token()}"
                for each in (cache.runs, folder.parent, folder):
                    private_folder(each)
                after.callback(remove, folder)
                write_owner(folder, files=["config.json"])
                _write(folder / "config.json", {"auths": {str(login["registry"]): dict(login["entry"])}})
                environment["DOCKER_CONFIG"] = str(folder)
                if self.kind == "podman":
                    command += ["--authfile", str(folder / "config.json")]
            if self.kind == "podman" and _LOOPBACK.match(image):
                command.append("--tls-verify=false")  # Docker does so by itself
            done = self.runner.run([*command, image], environment)
        if done.returncode != 0:
            raise _not_pulled(self.kind, image, done)

    def contents(self, image: str) -> Answer:
        """Return what the image's own Python says of it."""
        agent, folder = sys.argv[0], str(Path(sys.argv[0]).parent)
        command = [self.path, "run", "--rm", "--network", "none", "--pull", "never", "--user", self.user]
        command += ["--log-driver", "none", "--security-opt", "label=disable"]
        command += [
            "--volume",
            f"{folder}:{folder}:ro",
            "--entrypoint",
            PYTHON,
            image,
            "-B",
            agent,
            "contents",
        ]
        done = self.runner.run(command, {}, output=True)
        if done.returncode != 0:
            raise Problem(
                "image",
                f"{image} does not run with {self.kind}: {_last(done.stderr)}",
                f"Try it by hand there: {self.kind} run --rm --entrypoint {PYTHON} {image} --version",
            )
        answer: Answer = json.loads(done.stdout)
        if not answer.get("lock"):
            raise Problem("image", f"{image} has no {LOCK}", "Push it again: envsync push IMAGE.")
        return answer


def _demand_ours(image: str, about: Mapping[str, Any]) -> None:
    """Raise if an image is for another machine, or not one of ours."""
    here = _MACHINES.get(platform.machine(), platform.machine())
    system, machine = about.get("Os", "linux"), about.get("Architecture", here)
    if (system, machine) != ("linux", here):
        raise Problem(
            "unfit",
            f"{image} is for {system}/{machine}, and this host is linux/{here}",
            f"Push one for it: envsync push --platform linux/{here} IMAGE.",
        )
    labels = (about.get("Config") or {}).get("Labels") or about.get("Labels") or {}
    if _LABEL not in labels:
        raise Problem(
            "image",
            f"envsync did not make {image}: it has no label {_LABEL}",
            "Make one: envsync push IMAGE.",
        )


def _not_pulled(kind: str, image: str, done: subprocess.CompletedProcess[bytes]) -> Problem:
    said, last = done.stderr.decode(errors="replace").lower(), _last(done.stderr)
    what = next((what for what, words in _SAID if any(word in said for word in words)), "")
    text = f"{kind} cannot pull {image}: {last}"
    if what == "login":
        return Problem("login", text, f"Log in to its registry, here or there: {kind} login.")
    if what == "platform":
        return Problem("unfit", text, "Push one for this platform: envsync push --platform.")
    if what == "full":
        return Problem("unfit", text, "Make room there.")
    if what == "absent":
        return Problem("image", text, "Look at its name and digest: envsync inspect IMAGE.")
    return Problem("image", text, "Look whether that host reaches the registry, and trusts its certificate.")


def _last(stderr: bytes) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


def _write(path: Path, document: Mapping[str, Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
