"""An image in a registry: pushed by envsync, and built and pushed by a Docker engine from a uv Dockerfile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import distributions, folder, prefix
from benchmarks.timing import Action, Row, Table, command, compare

if TYPE_CHECKING:
    from tests.lab.docker import DockerEngine
    from tests.lab.registry import DockerRegistry

_ROUNDS = 2  # of what writes all of it: Docker takes most of a minute
_MEMORY = 300  # MB, the most that a push may take
_MINOR = (3, 11)  # of the lab's base image

# What somebody writes who knows uv and BuildKit: nothing is copied in vain, uv's cache is kept from build to
# build, and local code comes last. Nothing is verified.
_DOCKERFILE = """\
FROM {base} AS build
RUN --mount=type=bind,source=install,target=/install --mount=type=cache,target=/root/.cache/uv \\
    export UV_LINK_MODE=copy UV_OFFLINE=1 UV_NO_PROGRESS=1 && cd /install && \\
    ./uv venv --quiet --python /usr/bin/python3 /opt/env && \\
    ./uv pip sync --quiet --preview-features pylock --no-build --python /opt/env/bin/python pylock.toml
FROM {base}
COPY --from=build /opt/env /opt/env
COPY code/ /code/
ENV PATH=/opt/env/bin:$PATH PYTHONPATH=/code
CMD ["python"]
"""

_AGAIN = """
import asyncio, json, sys, time
from pathlib import Path
from envsync.images.places import ImagePlace
from envsync.indexes import read_settings
from envsync.runner.imaging import ImageOptions, push_image
from envsync.snapshot import capture
base, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
times = []
for _ in range(rounds + 1):
    began = time.perf_counter()
    snapshot = capture(cwd=str(Path.cwd()))
    place = ImagePlace.parse(name)
    found = asyncio.run(push_image(place, snapshot, ImageOptions(base=base), settings=read_settings()))
    times.append(time.perf_counter() - began)
    assert not found.sent, found.sent
print(json.dumps(times[1:]))
"""

FIRST = "An image of {} packages into a registry on this machine, wheels at hand"
ELSEWHERE = "The same after an edit to one local file, to a registry that has only the base image"
EDITED = "The same after an edit to one local file, to the registry that has the rest"
UNCHANGED = "The same with nothing changed"


def push() -> list[Table]:
    """Return the tables: all of it, after an edit (to where nothing is, and where the rest is), unchanged."""
    from tests.lab.install import DOCKER, missing, obstacle

    why = obstacle() or ("the lab lacks " + " ".join(missing(DOCKER)) if missing(DOCKER) else "")
    if sys.version_info[:2] != _MINOR:
        why = why or "the lab's base image has Python {}.{}".format(*_MINOR)
    if why:
        titles = (FIRST.format(distributions()), ELSEWHERE, EDITED, UNCHANGED)
        return [Table(title, "", [Row("envsync", trouble=why)]) for title in titles]
    with _pushing() as one:
        one.prepare()
        return [one.first(), one.elsewhere(), one.edited(), one.unchanged()]


@contextlib.contextmanager
def _pushing() -> Iterator[_Pushing]:
    """Start a registry and an engine, which end with the block, and all that they wrote with them."""
    from tests.lab.docker import DockerEngine
    from tests.lab.registry import DockerRegistry

    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(dir="/var/tmp", prefix="envsync-bench-")
        place = Path(stack.enter_context(temporary))
        registries = [stack.enter_context(DockerRegistry(place / name)) for name in ("registry", "other")]
        engine = DockerEngine(place)
        stack.callback(engine.close)
        yield _Pushing(place, registries, engine)


class _Pushing:
    """A project whose environment is pushed both ways, to the same registry."""

    def __init__(self, place: Path, registries: list[DockerRegistry], engine: DockerEngine) -> None:
        self.place = place
        self.registries = registries
        self.registry = registries[0]
        self.engine = engine
        self.context = place / "context"
        self.project = self.context / "code"
        self.cache = folder() / "pushing"
        self.environment = {"ENVSYNC_CACHE": str(self.cache)}
        self.memory: list[float] = []
        self.sent: dict[str, list[int]] = {}
        self._count = 0

    @property
    def base(self) -> str:
        return f"{self.registry.host}/bases/python:3.11-slim"

    def prepare(self) -> None:
        """Have wheels, local code, the base in registries and engine, and uv's cache in the engine warm."""
        from tests.lab.bases import TAG, base_layout

        for number in range(50):
            file = self.project / f"package{number % 5}" / f"module{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"NUMBER = {number}\n" * 200)
        source = f"oci:{base_layout('python')}:{TAG}"
        for registry in reversed(self.registries):
            self.registry = registry
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", source, f"docker://{self.base}"]
            subprocess.run(copy, check=True, stdout=subprocess.DEVNULL)
            self.engine.docker("pull", "-q", self.base)
        # the wheels, as a folder and a lock for uv: what `envsync build` writes has them
        built = self.place / "built"
        command(
            [prefix() / "bin" / "envsync", "-q", "build", "--base", self.base, built],
            environment=self.environment,
            cwd=self.project,
        )()
        (built / "install").rename(self.context / "install")
        shutil.rmtree(built)
        (self.context / "Dockerfile").write_text(_DOCKERFILE.format(base=self.base))
        self._build("warm", "--no-cache")

    def first(self) -> Table:
        """All of it, to a repository that has nothing, by tools that remember no layer."""
        rows = compare(
            {
                "`envsync push`": self._timed("envsync", self._ours),
                "Docker": self._timed("docker", self._docker),
            },
            rounds=_ROUNDS,
            warm_ups=0,
        )
        rows[1].name = "`docker build --no-cache` and `docker push` of a uv Dockerfile, uv's cache warm"
        return Table(
            FIRST.format(distributions()),
            f"a quarter of Docker's time, and at most {_MEMORY} MB of memory",
            rows,
            [
                f"{self._told(0)} `envsync push` takes {max(self.memory, default=0):.0f} MB of memory.",
                f"The environment has {_size(prefix()) / 1e6:.0f} MB of files. Both have the base image there"
                " already. Docker verifies nothing, and has BuildKit; envsync's time has the capture in it.",
                f"Medians of {_ROUNDS}, in turns.",
            ],
        )

    def elsewhere(self) -> Table:
        """One file edited: Docker has its layer of dependencies, and the registry has not."""
        self.sent.clear()
        self.registry = self.registries[1]
        rows = compare(
            {
                "`envsync push`": self._timed("envsync", self._ours_again, before=self._edit),
                "Docker": self._timed("docker", self._docker_again, before=self._edit),
            },
            rounds=1,
            warm_ups=0,
        )
        self.registry = self.registries[0]
        rows[1].name = "`docker build` and `docker push`, all but the code cached"
        return Table(ELSEWHERE, "half of Docker's time", rows, [self._told()])

    def edited(self) -> Table:
        """One file edited: Docker has its layer of dependencies, here and in the registry."""
        self.sent.clear()
        rows = compare(
            {
                "`envsync push`": self._timed("envsync", self._ours_again, before=self._edit),
                "Docker": self._timed("docker", self._docker_again, before=self._edit),
            }
        )
        rows[1].name = "`docker build` and `docker push`, all but the code cached"
        note = "Docker looks at the folder of code alone; envsync at the whole environment, each time."
        return Table(EDITED, "1 s and 1 MB; half of Docker's time", rows, [self._told(), note])

    def unchanged(self) -> Table:
        """Nothing edited."""
        self.sent.clear()
        rows = compare(
            {
                "`envsync push`": self._timed("envsync", self._ours_again),
                "Docker": self._timed("docker", self._docker_again),
                "`envsync --version`": command([prefix() / "bin" / "envsync", "--version"]),
            }
        )
        rows[1].name = "`docker build` and `docker push`, all cached"
        rows.append(Row("`push_image(...)`, in a process that did it before", self._in_process()))
        return Table(UNCHANGED, "0.3 s", rows, [self._told()])

    def _timed(self, name: str, act: Any, before: Any = None) -> Action:
        """Return an action of which the registry's growth is noted too."""

        def once() -> float:
            if before is not None:
                before()
            there = _size(self.registry.store)
            seconds = act()
            self.sent.setdefault(name, []).append(_size(self.registry.store) - there)
            return float(seconds)

        return once

    def _told(self, round_: int = -1) -> str:
        ours, theirs = (self.sent.get(name, [0])[round_] for name in ("envsync", "docker"))
        return f"The registry grows by {_amount(ours)} with envsync, by {_amount(theirs)} with Docker."

    def _edit(self) -> None:
        file = self.project / "package0" / "module0.py"
        file.write_text(f"{file.read_text()}# {os.urandom(8).hex()}\n")

    def _ours(self) -> float:
        """Push to a new repository, with no layer remembered."""
        shutil.rmtree(self.cache / "memory" / "layers", ignore_errors=True)
        self._count += 1
        return self._ours_again()

    def _ours_again(self) -> float:
        arguments = ["-q", "push", "--base", self.base, f"{self.registry.host}/ours/n{self._count}"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [prefix() / "bin" / "envsync", *arguments],
            cwd=self.project,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise RuntimeError(said.decode(errors="replace").strip())
        self.memory.append(usage.ru_maxrss / 1000)
        return seconds

    def _docker(self) -> float:
        """Build all of it anew, and push it to a new repository."""
        self._count += 1
        return self._docker_again("--no-cache")

    def _docker_again(self, *options: str) -> float:
        name = f"{self.registry.host}/theirs/n{self._count}:x"
        began = time.perf_counter()
        self._build(name, *options)
        self.engine.docker("push", "-q", name)
        return time.perf_counter() - began

    def _build(self, name: str, *options: str) -> None:
        arguments = ("build", "-q", *options, "--network=none", "-t", name, self.context)
        self.engine.docker(*arguments, environment={"DOCKER_BUILDKIT": "1"})

    def _in_process(self) -> list[float]:
        name = f"{self.registry.host}/ours/n{self._count}"
        self._ours_again()
        done = subprocess.run(
            [prefix() / "bin" / "python", "-c", _AGAIN, self.base, name, "5"],
            cwd=self.project,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-1000:])
        return [float(one) for one in json.loads(done.stdout)]


def _size(place: Path) -> int:
    """Return how many bytes the files of a folder have."""
    found = 0
    for where, _, files in os.walk(place):
        for name in files:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(where, name)).st_size
    return found


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
