"""Credentials of indexes and keys of clusters, from the user's files to running workers: found nowhere else.

Every way to name a password is in use at once, each with a canary of its own that its index insists on. While
a snapshot, a push and a cluster run, the command lines of all processes and the environments of the host's
are watched; afterwards every file of the host, of the cache and of the user's folder is read. That the watch
and the search would find a canary is tried, too.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest

from envsync.lock import Lock
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel
from tests.lab.machines import Machine
from tests.lab.processes import namespace
from tests.small import processes_in

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
NOT_FILES = {"proc", "sys", "dev"}

SCRIPT = """
import sys, time
from pathlib import Path
from dask.distributed import Client

def look():
    import private_corp, private_extra, private_netrc
    return [one.__version__ for one in (private_corp, private_extra, private_netrc)]

if __name__ == "__main__":
    with Client() as client:
        print(client.scheduler.address.partition(":")[0], *client.submit(look).result(), flush=True)
        Path("up").touch()
        while not Path("go").exists():
            time.sleep(0.05)
"""


def forms(*secrets: str) -> dict[bytes, str]:
    """Every form in which a secret may be written down, and which secret that is."""
    found = {}
    for secret in secrets:
        found[secret.encode()] = secret
        found[base64.b64encode(secret.encode()).rstrip(b"=")] = secret
        found[base64.b64encode(f"ada:{secret}".encode()).rstrip(b"=")] = secret
    return found


@dataclass
class Index:
    """An index behind a password that is a canary."""

    server: IndexServer
    password: str

    @property
    def with_credentials(self) -> str:
        return f"http://ada:{self.password}@{self.server.host}/simple"

    @property
    def let_us_in(self) -> bool:
        return any(status == 200 for _, status in self.server.requests)


@dataclass
class Watch:
    """Looks at processes all the time: command lines of all, environments of those of one machine."""

    machine: Machine
    secrets: dict[bytes, str]
    found: set[str] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)
    environments: int = 0

    def look(self) -> None:
        there = namespace(self.machine.pid, "pid")
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with suppress(OSError):
                    self._look_at(process, inside=namespace(int(process.name), "pid") == there)

    def _look_at(self, process: Path, *, inside: bool) -> None:
        command = (process / "cmdline").read_bytes()
        text = command.replace(b"\0", b" ").decode(errors="replace")
        self.commands.add(text)
        if inside:
            environment = (process / "environ").read_bytes()
            self.environments += 1
            self._search(environment, f"environment of: {text}")
        self._search(command, f"arguments: {text}")

    def _search(self, data: bytes, where: str) -> None:
        self.found.update(f"{name} in {where}" for form, name in self.secrets.items() if form in data)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def go_on() -> None:
            while not stop.wait(0.005):
                self.look()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def files(folder: Path) -> Iterator[Path]:
    """Every plain file below a folder that lies on a disk."""
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in NOT_FILES]
        for name in names:
            path = Path(place, name)
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def spread(folder: Path, secrets: dict[bytes, str]) -> list[str]:
    """Return the files that hold a secret, also in an archive."""
    found = []
    for path in files(folder):
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data += b"\n".join(archive.read(name) for name in archive.namelist())
        elif data.startswith(b"\x1f\x8b"):
            with suppress(OSError, EOFError):
                data += gzip.decompress(data)
        found += [f"{name} in {path}" for form, name in secrets.items() if form in data]
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dask and what it needs, and the static uv: from the index that this machine uses."""
    folder = tmp_path_factory.mktemp("wheels")
    download = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), "--only-binary", ":all:"]
    pins = [
        f"{name}=={version(name)}" for name in ("dask", "distributed", "cloudpickle", "msgpack", "tornado")
    ]
    subprocess.run([*download, *pins], check=True)
    machine = f"musllinux_1_1_{os.uname().machine}"
    subprocess.run([*download, "--no-deps", "--platform", machine, f"uv=={version('uv')}"], check=True)
    return folder


@pytest.fixture
def indexes(tmp_path: Path, wheels: Path) -> Iterator[dict[str, Index]]:
    """One index for each way to name a password."""
    with ExitStack() as stack:
        made = {}
        for name in ("pip.conf", "default", "extra", "corp", "netrc"):
            folder = wheels
            if name not in ("pip.conf", "default"):
                folder = tmp_path / "private" / name
                write_wheel(folder, f"private-{name}", "1.0")
            password = f"canary{uuid4().hex}"
            server = IndexServer(folder, username="ada", password=password)
            made[name] = Index(stack.enter_context(server), password)
        yield made


@dataclass
class User:
    """Somebody with passwords in every place that there is for them."""

    root: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / "here"

    @property
    def kept(self) -> list[Path]:
        """Where envsync writes for this user."""
        return [self.folder, self.root / "cache", self.root / "temporary", self.root / "uv-cache"]

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "envsync"), *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **environment: str) -> int:
        process = self.start(*arguments, **environment)
        try:
            self.said += process.communicate(timeout=400)
        finally:
            process.kill()
        return process.returncode

    @contextmanager
    def waiting(self, *arguments: object) -> Iterator[None]:
        """While the script is waiting for ``go``."""
        process = self.start(*arguments)
        try:
            deadline = time.monotonic() + 600
            while not (self.folder / "up").exists() and time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            yield
            (self.folder / "go").touch()
            self.said += process.communicate(timeout=200)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, self.said[-1]


@pytest.fixture
def user(indexes: dict[str, Index], tmp_path: Path) -> User:
    home = tmp_path / "home"
    for folder in (home / ".ssh", home / ".config/pip", *(tmp_path / name for name in ("here", "temporary"))):
        folder.mkdir(parents=True, mode=0o700)
    (home / ".config/pip/pip.conf").write_text(
        f"[global]\nindex-url = {indexes['pip.conf'].with_credentials}\n"
    )
    netrc = indexes["netrc"]
    (home / ".netrc").touch(mode=0o600)
    (home / ".netrc").write_text(f"machine localhost login ada password {netrc.password}\n")
    by_name = netrc.server.url.replace("127.0.0.1", "localhost")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(tmp_path / "temporary"),
        "ENVSYNC_CACHE": str(tmp_path / "cache"),
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
        "PIP_EXTRA_INDEX_URL": indexes["extra"].with_credentials,
        "UV_INDEX": f"corp={indexes['corp'].server.url} {by_name}",
        "UV_INDEX_CORP_USERNAME": "ada",
        "UV_INDEX_CORP_PASSWORD": indexes["corp"].password,
    }
    return User(tmp_path, environment)


def make_environment(prefix: Path, wheels: Path, private: Path) -> Path:
    """Install Dask and the private packages, as somebody else did who needed no index for it."""
    uv = find_uv()
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, prefix], check=True)
    links = [
        argument for folder in (wheels, *private.iterdir()) for argument in ("--find-links", str(folder))
    ]
    packages = ["distributed", *(f"private-{folder.name}" for folder in private.iterdir())]
    subprocess.run([uv, "pip", "install", "-q", "-p", prefix, "--no-index", *links, *packages], check=True)
    for info in prefix.glob("lib/python*/site-packages/*.dist-info/direct_url.json"):
        info.unlink()
    return prefix


@pytest.mark.lab
def test_canaries_are_found_nowhere(
    user: User, indexes: dict[str, Index], wheels: Path, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    node = machine("python")
    (tmp_path / "home/.ssh/config").write_text(f"Include {node.lab.config}\n")
    prefix = make_environment(tmp_path / "client", wheels, tmp_path / "private")
    secrets = forms(*(index.password for index in indexes.values()))
    watch = Watch(node, secrets)
    lock = user.folder / "pylock.envsync.toml"
    (user.folder / "script.py").write_text(SCRIPT)
    cluster = [
        "--on",
        "ssh",
        "--hosts",
        node.name,
        "-n",
        "1",
        "--threads-per-worker",
        "1",
        "--lock",
        lock.name,
    ]
    with watch.running():
        assert user.run("-v", "snapshot", "--python", prefix) == 0, user.said
        first = lock.read_text()
        both = {"UV_DEFAULT_INDEX": indexes["default"].with_credentials}
        assert user.run("-v", "snapshot", "--python", prefix, "-o", "pylock.two.toml", **both) == 0, user.said
        assert user.run("-v", "push", "--lock", lock.name, f"ssh://{node.name}") == 0, user.said
        with user.waiting("-v", "run", *cluster, "--", sys.executable, "script.py"):
            keys = keys_in_use(node, user)
    assert user.said[-2].split() == ["tls", "1.0", "1.0", "1.0"]

    # every password was needed, and the lock says where from
    assert {name: index.let_us_in for name, index in indexes.items()} == dict.fromkeys(indexes, True)
    places = {one.name: one.index for one in Lock.loads(first).artifacts()}
    assert places["private-corp"] == indexes["corp"].server.url
    assert places["distributed"] == indexes["pip.conf"].server.url

    # the watch saw what there was to see
    for text in ("agent", "process scheduler", "process worker", f"pip compile .*{tmp_path}"):
        assert any(re.search(text, command) for command in watch.commands), text
    assert watch.environments > 100
    assert watch.found == set()
    assert not [name for text in user.said for form, name in secrets.items() if form.decode() in text]
    for folder in user.kept:
        assert spread(folder, secrets | keys) == []
    assert spread(node.root, secrets | keys) == []
    assert list(node.root.glob("root/.cache/envsync/runs/*/*/*.pem")) == []
    assert list((tmp_path / "temporary").glob("envsync-*")) == []
    assert would_be_found(node, tmp_path) == {"arguments", "environment", "host's file", "file in an archive"}


def keys_in_use(node: Machine, user: User) -> dict[bytes, str]:
    """Look at the keys of a running cluster: nobody else may; return what is secret in them."""
    paths = list(node.root.glob("root/.cache/envsync/runs/*/*/key.pem"))
    assert len(paths) == 2, "one for the scheduler, one for the worker"
    paths += (user.root / "temporary").glob("envsync-run-*/key.pem")
    assert len(paths) == 3, "and one for the client"
    secrets: dict[bytes, str] = {}
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        text = path.read_text()
        assert "PRIVATE KEY" in text
        (name, *_) = lines = [line for line in text.splitlines() if "-----" not in line]
        # what a certificate of the same kind of key begins with is no secret
        secrets |= {line.encode(): f"key {name[-8:]}" for line in lines[1:] if len(line) > 20}
    assert len(secrets) >= 3
    watch = Watch(node, secrets)
    watch.look()
    assert watch.environments > 3
    assert watch.found == set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            data = (process / "environ").read_bytes()
            assert not [name for form, name in secrets.items() if form in data]
    return secrets


def would_be_found(node: Machine, tmp_path: Path) -> set[str]:
    """Plant a canary wherever was looked, and return where it was found."""
    canary = f"canary{uuid4().hex}"
    secrets = forms(canary)
    watch = Watch(node, secrets)
    enter = ["nsenter", f"--target={node.pid}", "--mount", "--pid", "--root"]
    planted = (
        ["sh", "-c", "sleep 60; true", canary],
        ["sh", "-c", "read -r word; X=$word; export X; exec sleep 60"],
    )
    processes = [subprocess.Popen([*enter, *command], stdin=subprocess.PIPE) for command in planted]
    found: set[str] = set()
    try:
        stdin = processes[1].stdin
        assert stdin is not None
        stdin.write(f"{canary}\n".encode())
        stdin.flush()
        deadline = time.monotonic() + 60
        while len(found) < 2 and time.monotonic() < deadline:
            watch.look()
            found = {text.partition(" in ")[2].split()[0].rstrip(":") for text in watch.found}
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        for left in node.processes("sleep 60"):
            os.kill(left.pid, 9)
    (node.root / "usr/share/planted").write_bytes(b"x" * 5000 + base64.b64encode(f"ada:{canary}".encode()))
    if spread(node.root, secrets):
        found.add("host's file")
    (tmp_path / "planted").mkdir()
    with zipfile.ZipFile(tmp_path / "planted/file.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", canary * 3)
    if spread(tmp_path / "planted", secrets):
        found.add("file in an archive")
    return found


def test_processes_of_a_cluster_here_have_no_passwords(
    user: User, indexes: dict[str, Index], wheels: Path, tmp_path: Path
) -> None:
    prefix = make_environment(tmp_path / "client", wheels, tmp_path / "private")
    secrets = forms(*(index.password for index in indexes.values()))
    assert user.run("snapshot", "--python", prefix) == 0, user.said
    (user.folder / "script.py").write_text(SCRIPT)
    options = ["-n", "1", "--threads-per-worker", "1", "--lock", "pylock.envsync.toml"]
    with user.waiting("run", *options, "--", sys.executable, "script.py"):
        running = processes_in(tmp_path / "cache")
        agents = {pid for pid, command in running.items() if " serve " in command}
        # who started it has them, and so has the agent: it runs uv, whom they are for
        assert len(agents) == 1
        assert any(form in environment_of(*agents) for form in secrets)
        others = {pid: command for pid, command in running.items() if pid not in agents}
        assert {word for command in others.values() for word in ("scheduler", "worker") if word in command}
        assert len(others) >= 3  # a scheduler, a nanny and its worker at least
        told = {command for pid, command in others.items() for one in secrets if one in environment_of(pid)}
        assert told == set()
    assert user.said[-2].split() == ["tcp", "1.0", "1.0", "1.0"]
    for folder in user.kept:
        assert spread(folder, secrets) == []


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_a_password_that_is_refused_is_in_no_message(
    user: User, indexes: dict[str, Index], wheels: Path
) -> None:
    private = user.root / "private"
    prefix = make_environment(user.root / "client", wheels, private)
    refused = f"canary{uuid4().hex}"
    hosts = {name: index.server.host for name, index in indexes.items()}
    wrong = {
        "corp": {"UV_INDEX_CORP_PASSWORD": refused},
        "extra": {"PIP_EXTRA_INDEX_URL": f"http://ada:{refused}@{hosts['extra']}/simple"},
        "default": {"UV_DEFAULT_INDEX": f"http://ada:{refused}@{hosts['default']}/simple"},
    }
    for name, option in (("corp", "-q"), ("extra", "-v"), ("default", "--json")):
        assert user.run(option, "snapshot", "--python", prefix, **wrong[name]) == 3, user.said
        assert "an index does not let us in" in user.said[-1]
        assert hosts[name] in user.said[-1]
    secrets = forms(refused, *(index.password for index in indexes.values()))
    assert not [name for text in user.said for form, name in secrets.items() if form.decode() in text]
    for folder in user.kept:
        assert spread(folder, secrets) == []
    assert not (user.folder / "pylock.envsync.toml").exists()
