"""Bad input: a clear error that names the thing, the place and the next step, and nothing lost.

Every line of the list, and the tests that prove it. Those that stand elsewhere are not written twice; those
here and in `test_bad_input_hosts.py` go through the command, as a user meets them.

no such host
    tests/test_ssh_host.py::test_no_such_host
    tests/test_bad_input_hosts.py::test_hosts_that_do_not_let_us_in
    tests/test_bad_input_hosts.py::test_one_bad_host_among_good_ones
wrong key
    tests/test_ssh_host.py::test_a_wrong_key_says_who_and_with_what
    tests/test_bad_input_hosts.py::test_hosts_that_do_not_let_us_in
unknown host key
    tests/test_ssh_host.py::test_an_unknown_host_key
    tests/test_ssh_host.py::test_a_changed_host_key
    tests/test_bad_input_hosts.py::test_hosts_that_do_not_let_us_in
no Python on the host
    tests/test_session_lab.py::test_nothing_there_but_a_shell
    tests/test_cli_hosts.py::test_push_twice_diff_and_run
no Python, and none can be sent
    tests/test_bad_input_hosts.py::test_no_python_and_none_can_be_sent
    tests/test_session_bootstrap.py::test_a_host_without_tar
    tests/test_supply.py::test_an_interpreter_that_cannot_be_had
Python 3.7 only
    tests/test_bad_input_hosts.py::test_only_python_3_7
    tests/test_session_bootstrap.py::test_a_real_python_3_7_is_not_used
libc older than the lock
    tests/test_bad_input_hosts.py::test_a_lock_for_a_newer_libc
    tests/test_provision.py::test_a_lock_for_a_newer_libc_is_refused_before_anything_is_sent
a lock edited: bad hash
    tests/test_lock.py::test_an_edited_hash_names_the_package
    tests/test_bad_input.py::test_a_lock_that_was_edited
a lock edited: schema of the future
    tests/test_lock.py::test_schemas_of_the_future
    tests/test_bad_input.py::test_a_lock_that_was_edited
a lock edited: table missing
    tests/test_lock.py::test_without_our_table
    tests/test_bad_input.py::test_a_lock_that_was_edited
a lock edited: broken TOML
    tests/test_lock.py::test_not_toml
    tests/test_bad_input.py::test_a_lock_that_was_edited
a lock edited: not PEP 751
    tests/test_lock.py::test_what_is_wrong_is_named
    tests/test_bad_input.py::test_a_lock_that_was_edited
a pin without a wheel for the target
    tests/test_resolve.py::test_a_pin_without_a_wheel_for_the_target
    tests/test_resolve.py::test_a_pin_without_a_wheel_on_another_system
    tests/test_bad_input.py::test_a_pin_without_a_wheel_for_the_target
    tests/test_bad_input.py::test_a_pin_without_a_wheel_in_any_version
a platform-only package
    tests/test_resolve.py::test_platform_only_packages_drop_out_and_the_targets_own_come_in
    tests/test_bad_input.py::test_a_platform_only_package
a local project that does not build
    tests/test_wheels.py::test_a_build_that_fails_says_what_its_backend_said
    tests/test_bad_input.py::test_a_local_project_that_does_not_build
two source trees of the same folder name
    tests/test_trees.py::test_two_trees_of_one_name_are_two
    tests/test_bad_input.py::test_two_source_trees_of_one_folder_name
a worker process that dies at start
    tests/test_cluster.py::test_a_worker_that_dies_at_start_shows_its_last_lines
    tests/test_bad_input.py::test_a_worker_that_dies_at_start
    tests/test_bad_input_hosts.py::test_a_worker_that_dies_at_start_on_a_host
a port already taken
    tests/test_cluster.py::test_a_taken_port_is_a_clear_error
    tests/test_gate.py::test_a_taken_port_is_one_clear_line
a scheduler without numpy
    tests/test_bad_input.py::test_a_scheduler_without_numpy
    tests/test_gate.py::test_a_scheduler_without_what_is_wanted_does_not_listen
a worker by hand, another Python
    tests/test_bad_input.py::test_workers_by_hand_from_other_environments
    tests/test_gate.py::test_another_python_is_refused_at_the_door
a worker by hand, another package
    tests/test_bad_input.py::test_workers_by_hand_from_other_environments
    tests/test_gate.py::test_a_different_worker_runs_none_of_the_queued_tasks
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from distributed import Client
from distributed.core import rpc

from envsync.artifacts import Artifact
from envsync.lock import Lock
from envsync.plugins.compare import CORE
from envsync.runner import SyncedCluster
from envsync.target import Target
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel
from tests.small import wait_until_none

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
Done = subprocess.CompletedProcess  # of str


class User:
    """Somebody at a command line, with a home, a cache and a folder for temporary files of their own."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.folder = root / "here"
        self.cache = root / "cache"
        self.temporary = root / "temporary"
        self.environment = environment
        for each in (self.folder, self.temporary):
            each.mkdir(parents=True)

    def run(self, *arguments: object, **environment: str) -> Done[str]:
        """Run ``envsync``."""
        own = {"ENVSYNC_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
        return subprocess.run(
            [BIN / "envsync", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **own, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def fails(self, code: int, kind: str, *arguments: object, **environment: str) -> dict[str, str]:
        """Run a command with ``--json``, which has to fail, and return the error that it tells."""
        done = self.run(arguments[0], "--json", *arguments[1:], **environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        events = [json.loads(line) for line in done.stderr.splitlines()]
        error: dict[str, str]
        (error,) = [event for event in events if event["event"] == "error"]
        assert error["kind"] == kind, error
        assert error["hint"], error
        self.left_nothing()
        return error

    def left_nothing(self) -> None:
        """Nothing that was started from the cache goes on, and no temporary files are left."""
        wait_until_none(self.root, 20)
        # Dask's own folder stays; what a worker that was killed left in it goes with its next start
        assert {path.name for path in self.temporary.iterdir()} <= {"dask-scratch-space"}
        begun = [*self.cache.glob("builds/*"), *self.cache.glob("envs/.*"), *self.cache.glob("**/.*.part")]
        assert begun == []


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, to see that it is still as it was."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the table above


def test_every_test_that_the_table_names_is_there() -> None:
    assert __doc__ is not None
    named = list(dict.fromkeys(re.findall(r"tests/\w+\.py::test_\w+", __doc__)))
    assert len(named) > 30
    texts = {file: (ROOT / file).read_text() for file in {one.partition("::")[0] for one in named}}
    lost = [
        one
        for one in named
        if not re.search(rf"^(async )?def {one.partition('::')[2]}\(", texts[one.partition("::")[0]], re.M)
    ]
    assert lost == []


# -- locks


def write_lock(file: Path) -> Path:
    here = Target.current()
    artifacts = [
        Artifact(
            name=name,
            version="1.0",
            filename=f"{name}-1.0-py3-none-any.whl",
            sha256=digit * 64,
            url=f"https://example.org/files/{name}-1.0-py3-none-any.whl",
            index="https://example.org/simple",
        )
        for name, digit in (("alpha", "a"), ("beta", "b"))
    ]
    return Lock.of(artifacts, here).write(file)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        document = tomllib.loads(text)
        change(document)
        return tomli_w.dumps(document)

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "kind", "says"),
    [
        pytest.param(lambda text: text.replace("b" * 64, "c" * 64), "LockError", "beta", id="bad hash"),
        pytest.param(
            lambda text: text.replace("schema = 1", "schema = 2"), "LockVersionError", "schema 2", id="schema"
        ),
        pytest.param(
            edited(lambda document: document.pop("tool")), "LockError", "[tool.envsync]", id="table missing"
        ),
        pytest.param(lambda text: text + "\nhello = = 1\n", "LockError", "not valid TOML", id="broken TOML"),
        pytest.param(
            edited(lambda document: document["packages"][1].pop("name")),
            "LockError",
            "not valid PEP 751",
            id="not PEP 751",
        ),
        pytest.param(lambda text: "", "LockError", "not valid PEP 751", id="empty"),
    ],
)
def test_a_lock_that_was_edited(user: User, edit: Callable[[str], str], kind: str, says: str) -> None:
    file = write_lock(user.folder / "pylock.edited.toml")
    before = file.read_text()
    assert edit(before) != before
    file.write_text(edit(before))
    there = contents(user.folder)
    for code, arguments in (
        (3, ["push", "--lock", file.name, "ssh://127.0.0.1:1"]),
        (3, ["run", "--lock", file.name, "--", "true"]),
        (2, ["diff", file.name, "."]),
        (2, ["check", "--lock", file.name, "tcp://127.0.0.1:1"]),
    ):
        error = user.fails(code, kind, *arguments)
        assert says in error["message"]
        assert error["where"].endswith(file.name)
        assert "envsync snapshot" in error["hint"]
    assert contents(user.folder) == there
    assert not list(user.cache.glob("runs/*"))


# -- packages


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexServer]:
    """An index with packages for one kind of machine only."""
    wheels = tmp_path / "wheels"
    x86 = "py3-none-manylinux_2_17_x86_64"
    write_wheel(wheels, "alpha", "1.0", requires=["x86only; platform_machine == 'x86_64'"])
    write_wheel(wheels, "x86only", "1.0", tag=x86)
    write_wheel(wheels, "native", "1.5", tag="py3-none-manylinux_2_34_x86_64")
    write_wheel(wheels, "native", "1.6")
    with IndexServer(wheels) as server:
        yield server


@pytest.fixture
def locker(tmp_path: Path, index: IndexServer, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user who installs from that index, and has a lock already."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    settings = {"UV_DEFAULT_INDEX": index.url, "PIP_CONFIG_FILE": os.devnull, "HOME": str(home)}
    user = User(tmp_path, **settings)
    write_lock(user.folder / "pylock.envsync.toml")
    return user


def environment(folder: Path, *requirements: str, **variables: str) -> Path:
    """Make an environment and install into it; return its interpreter."""
    uv = find_uv()
    environ = {**os.environ, **variables}
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, folder], check=True, env=environ)
    subprocess.run([uv, "pip", "install", "-q", "-p", folder, *requirements], check=True, env=environ)
    return folder / "bin" / "python"


x86_only = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the index has wheels for x86_64 only")


@pytest.mark.slow
@x86_only
@pytest.mark.parametrize("target", ["aarch64-manylinux_2_36", "x86_64-manylinux_2_28"])
def test_a_pin_without_a_wheel_for_the_target(locker: User, tmp_path: Path, target: str) -> None:
    python = environment(tmp_path / "venv", "native==1.5", **locker.environment)
    there = contents(locker.folder)
    arguments = ["snapshot", "--python", python, "--for", target]
    error = locker.fails(3, "NoWheelError", *arguments)
    assert "native 1.5 has no wheel for" in error["message"]
    for part in re.split(r"-manylinux_|_(?=\d+$)", target):
        assert part in error["message"]
    assert "manylinux_2_34_x86_64" in error["hint"]
    assert "1.6" in error["hint"]
    assert contents(locker.folder) == there
    # the next step, as it says
    done = locker.run(*arguments, "--allow-substitutes")
    assert done.returncode == 0, done.stderr
    (lock,) = Lock.read(locker.folder / "pylock.envsync.toml").artifacts()
    assert (lock.name, lock.version) == ("native", "1.6")


@x86_only
def test_a_pin_without_a_wheel_in_any_version(locker: User, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "x86only", **locker.environment)
    error = locker.fails(
        3,
        "NoWheelError",
        "snapshot",
        "--python",
        python,
        "--for",
        "aarch64-manylinux_2_36",
        "-o",
        "pylock.toml",
    )
    assert "x86only 1.0 has no wheel for" in error["message"]
    assert "aarch64" in error["message"]
    assert "publish one to your own index" in error["hint"]
    assert "--allow-substitutes" not in error["hint"]
    assert not (locker.folder / "pylock.toml").exists()


@x86_only
def test_a_platform_only_package(locker: User, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "alpha", **locker.environment)
    arguments = ["snapshot", "--python", python, "-o", "pylock.arm.toml"]
    done = locker.run(*arguments, "--for", "aarch64-manylinux_2_36")
    assert done.returncode == 0, done.stderr
    assert "left out     1" in done.stdout
    assert "x86only 1.0: nothing requires it on " in done.stdout
    lock = Lock.read(locker.folder / "pylock.arm.toml")
    assert [one.name for one in lock.artifacts()] == ["alpha"]
    assert [one.name for one in lock.excluded] == ["x86only"]
    assert locker.run(*arguments).returncode == 0
    lock = Lock.read(locker.folder / "pylock.arm.toml")
    assert [one.name for one in lock.artifacts()] == ["alpha", "x86only"]
    locker.left_nothing()


@pytest.mark.slow
def test_a_local_project_that_does_not_build(user: User, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["meson-python"]\nbuild-backend = "mesonpy"\n'
        '[project]\nname = "mine"\nversion = "1.0"\n'
    )
    meson = (
        "project('mine', version: '1.0')\nimport('python').find_installation().install_sources('mine.py')\n"
    )
    (project / "meson.build").write_text(meson)
    (project / "mine.py").write_text("")
    python = environment(tmp_path / "venv", "--editable", str(project))
    assert user.run("snapshot", "--python", python).returncode == 0
    assert list((user.folder / "envsync-wheels").glob("mine-1.0-*.whl"))
    there = contents(user.folder)
    (project / "meson.build").write_text(f"{meson}error('libfoo was not found')\n")
    error = user.fails(3, "BuildError", "snapshot", "--python", python)
    assert "libfoo was not found" in error["message"]
    assert str(project) in f"{error['where']} {error['message']}"
    assert f"uv build --wheel {project}" in error["hint"]
    assert contents(user.folder) == there


# -- source trees

TREES = """
import json, sys
from envsync import SyncedCluster

def look():
    import first, second
    from pathlib import Path
    names = {one.__name__: Path(one.__file__) for one in (first, second)}
    return {name: [file.parent.name, str(file.parent), (file.parent / "data.txt").read_text()]
            for name, file in names.items()}

if __name__ == "__main__":
    keywords = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with SyncedCluster(lock=sys.argv[1], **keywords) as cluster:
        print(json.dumps(cluster.get_client().submit(look).result()))
"""


@pytest.mark.slow
def test_two_source_trees_of_one_folder_name(small_lock: Path, user: User, tmp_path: Path) -> None:
    python = small_lock.parent / "environment/bin/python"
    folders = [tmp_path / name / "lib" for name in ("one", "two")]
    for folder, module in zip(folders, ("first", "second"), strict=True):
        folder.mkdir(parents=True)
        (folder / f"{module}.py").write_text("")
        (folder / "data.txt").write_text(f"of {module}")
    environ = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "ENVSYNC_CACHE": os.environ["ENVSYNC_CACHE"]}
    done = user.run("snapshot", "--python", python, **environ)
    assert done.returncode == 0, done.stderr
    assert "2 source trees" in done.stdout
    lock = Lock.read(user.folder / "pylock.envsync.toml")
    assert len({tree.name for tree in lock.trees}) == len({tree.digest for tree in lock.trees}) == 2
    script = tmp_path / "script" / "look.py"
    script.parent.mkdir()
    script.write_text(TREES)
    ran = subprocess.run(
        [sys.executable, script, user.folder / "pylock.envsync.toml"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout).values()
    assert (first[2], second[2]) == ("of first", "of second")
    assert first[1] != second[1]
    for name, path, _ in (first, second):
        assert path.startswith(os.environ["ENVSYNC_CACHE"]), name


# -- clusters


@pytest.mark.slow
def test_a_worker_that_dies_at_start(small_lock: Path, user: User) -> None:
    cache = Path(os.environ["ENVSYNC_CACHE"])
    marker = user.folder / "ran"
    options = ["run", "-n", "1", "--threads-per-worker", "1", "--lock", small_lock]
    broken = {"DASK_DISTRIBUTED__WORKER__PRELOAD": "no_such_module_at_all", "ENVSYNC_CACHE": str(cache)}
    done = user.run(*options, "--", "touch", marker, **broken)
    assert done.returncode == 5, done.stderr
    assert "worker 0" in done.stderr
    assert "its last lines:" in done.stderr
    assert "  | ModuleNotFoundError: No module named 'no_such_module_at_all'" in done.stderr
    assert not marker.exists()
    wait_until_none(cache, 50)
    user.left_nothing()
    assert (cache / "envs" / Lock.read(small_lock).digest / "bin/python").exists()


@contextlib.asynccontextmanager
async def running(*command: object, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with both outputs in one pipe, ended at the end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), 30)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_a_scheduler_without_numpy(small_lock: Path, user: User, tmp_path: Path) -> None:
    prefix, numpy = small_lock.parent / "environment", tmp_path / "packages"
    subprocess.run([find_uv(), "pip", "install", "-q", "--target", numpy, "numpy"], check=True)
    command = [prefix / "bin/dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    async with running(*command, PYTHONPATH="") as scheduler:
        assert scheduler.stdout is not None
        address = ""
        while not address:
            line = (await asyncio.wait_for(scheduler.stdout.readline(), 60)).decode()
            assert line, "the scheduler ended"
            found = re.search(r"Scheduler at:\s+(tcp://\S+)", line)
            address = found.group(1) if found else ""
        done = await asyncio.to_thread(user.run, "--json", "check", address, PYTHONPATH=str(numpy))
        text = await asyncio.to_thread(user.run, "check", address, PYTHONPATH=str(numpy))
        assert scheduler.returncode is None
        async with rpc(address) as still:
            assert (await still.identity())["type"] == "Scheduler"
    assert done.returncode == text.returncode == 1, done.stderr
    (process,) = json.loads(done.stdout)["processes"]
    assert process["kind"] == "scheduler"
    (found,) = [one for one in process["differences"] if one["subject"] == "numpy"]
    assert (found["severity"], found["kind"], found["right"]) == ("error", "missing", "")
    assert found["left"]
    assert found["advice"]
    (row,) = [line for line in text.stdout.splitlines() if "numpy" in line]
    assert row.startswith("error")
    assert "in scheduler" in text.stdout


def other_python() -> str | None:
    """Another Python that Dask runs in."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}."
    found = Path("~/.pyenv/versions").expanduser().glob("3.1[0-3].*/bin/python3")
    return next((str(one) for one in sorted(found, reverse=True) if own not in str(one)), None)


def by_hand(folder: Path, python: str, requirements: list[str]) -> Path:
    """An environment of somebody who starts a worker in it; return its ``dask``."""
    uv = find_uv()
    subprocess.run([uv, "venv", "-q", "-p", python, folder], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", folder, *requirements], check=True)
    return folder / "bin" / "dask"


def another_version(name: str) -> str:
    """A requirement that is not met by what is installed here."""
    return f"{name}!={version(name)}"


@pytest.mark.slow
async def test_workers_by_hand_from_other_environments(small_lock: Path, tmp_path: Path) -> None:
    core = [f"{name}=={version(name)}" for name in sorted(CORE)]
    strangers = {"toolz": by_hand(tmp_path / "toolz", sys.executable, [*core, another_version("toolz")])}
    python = other_python()
    if python is not None:
        strangers["python"] = by_hand(
            tmp_path / "python", python, [one for one in core if one.startswith("d")]
        )
    wanted = {"toolz": version("toolz"), "python": Lock.read(small_lock).target.python}
    marks = tmp_path / "marks"
    marks.mkdir()
    keywords: dict[str, Any] = {"lock": small_lock, "n_workers": 0, "dashboard_address": ":0"}
    async with (
        SyncedCluster(**keywords, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        futures = client.map(
            lambda i: (marks / f"{i}-{sys.prefix.replace('/', '_')}").touch(), range(10), pure=False
        )
        for name, dask in strangers.items():
            command = [dask, "worker", cluster.scheduler_address, "--name", f"with-{name}", "--no-dashboard"]
            folder = ["--nthreads", "1", "--local-directory", tmp_path / f"work-{name}"]
            async with running(*command, *folder, PYTHONPATH="") as worker:
                said = (await asyncio.wait_for(worker.communicate(), 120))[0].decode()
            assert f"envsync refused worker with-{name}: {name} is " in said
            refused = (await client.scheduler.envsync_state())["refused"]
            (mine,) = [one for one in refused if one["name"] == f"with-{name}"]
            (found,) = [one for one in mine["differences"] if one["subject"] == name]
            assert found["right"] != found["left"] == wanted[name]
            assert f"{name} is {found['right']} there and {wanted[name]} is wanted" in said
            assert found["process"] == f"worker with-{name}"
            assert found["advice"]
        assert list(marks.iterdir()) == []
        await cluster.scale(1)
        await asyncio.wait_for(client.gather(futures), 120)
        assert len(list(marks.iterdir())) == 10
        assert not [one for one in marks.iterdir() if str(tmp_path).replace("/", "_") in one.name]
    wait_until_none(Path(os.environ["ENVSYNC_CACHE"]), 20)
    if python is None:
        pytest.skip("refused another toolz; no other Python is on this machine (looked in ~/.pyenv/versions)")
