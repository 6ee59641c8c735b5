"""What is known to fail with Dask's own means of making environments equal: each against ours.

The cases are in `todays_failures.py`, which runs as a client in an environment with envsync. Two clusters of
another environment stand for all of them, as each gives back what it changed.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import pytest

from envsync.uv import find_uv
from tests import todays_failures
from tests.index_server import write_wheel
from tests.places import Place, end, here, make_place

pytestmark = pytest.mark.slow

CLUSTERS: dict[str, list[list[str]]] = {"two workers": [[], ["--no-nanny"]], "no workers": []}
DIFFERENT = ("scikit-learn", "xarray", "pyarrow")
ARRAYS = """
class Array:
    def __init__(self, size):
        self.size = size
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Small packages of well-known names, other versions of them, and what only the client has."""
    folder = tmp_path_factory.mktemp("failures")
    for name in (*DIFFERENT, "step"):
        for number in ("1.0", "2.0"):
            write_wheel(folder / "wheels", name, number)
    write_wheel(folder / "wheels", "raced", "1.0")
    write_wheel(folder / "wheels", "pandas", "2.0")
    write_wheel(folder / "wheels", "arrays", "1.0", body=ARRAYS)
    ours, other = ([f"{name}=={number}" for name in DIFFERENT] for number in ("2.0", "1.0"))
    with make_place(folder, ours=[*ours, "pandas==2.0", "arrays==1.0"], other=other) as made:
        pins = [f"{name}=={wanted}" for name, wanted in here().items()]
        made.install(folder / "third", *pins, *other, "vary==1.0", "same==1.0", "proj==1.0")
        older = ["--no-deps", f"dask<{version('dask')}"]  # distributed itself would not have it
        subprocess.run([find_uv(), "pip", "install", "-q", "-p", folder / "third", *older], check=True)
        yield made


@pytest.fixture(scope="module")
def cluster(place: Place) -> Iterator[Callable[[str], str]]:
    """Return the scheduler file of a cluster, which is started when it is first asked for."""
    files: dict[str, str] = {}
    with ExitStack() as running:

        def start(name: str) -> str:
            if name not in files:
                work = place.folder / name.replace(" ", "-")
                files[name] = running.enter_context(place.cluster(work, *CLUSTERS[name]))
            return files[name]

        yield start


@pytest.fixture(scope="module")
def run(place: Place) -> Iterator[Callable[[str, str], str]]:
    """Return what runs a case in our environment, one process for all; "" or how it failed."""
    program = place.folder / "client" / "todays_failures.py"
    program.parent.mkdir()
    shutil.copy(todays_failures.__file__, program)
    dask = {"other": str(place.other / "bin/dask"), "other dask": str(place.folder / "third/bin/dask")}
    log = place.folder / "client.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [place.ours / "bin/python", program, place.folder / "work", json.dumps(dask)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=place.environment,
        )

    def ask(name: str, scheduler: str) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([name, scheduler]).encode() + b"\n")
        process.stdin.flush()
        ready: list[Any] = select.select([process.stdout], [], [], 240)[0]
        answer = process.stdout.readline() if ready else b""
        assert answer, f"no answer:\n{log.read_text()[-5000:]}"
        return str(json.loads(answer))

    yield ask
    end(process)


@pytest.mark.parametrize("name", todays_failures.CASES)
def test_what_fails_today(name: str, cluster: Callable[[str], str], run: Callable[[str, str], str]) -> None:
    failure = run(name, cluster(todays_failures.CASES[name][0]))
    assert not failure, failure
