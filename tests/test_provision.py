"""From a live environment to the same one on several hosts, in one go."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from envsync.collect import uv_binary
from envsync.errors import EnvsyncError, HostError, MismatchError, StoreError, UnfitHostError
from envsync.hooks import Hooks
from envsync.indexes import Index, IndexSettings, read_settings
from envsync.runner.hosts import Host, Local, SSHOptions, parse_host
from envsync.runner.locking import lock_for
from envsync.runner.provision import Prepared, prepare
from envsync.snapshot import Snapshot, SourceTree, capture
from envsync.store import FolderStore, default_store, remember
from envsync.target import Target
from envsync.uv import find_uv
from tests.elsewhere import Elsewhere
from tests.index_server import IndexServer, write_wheel
from tests.lab.machines import Lab, Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are Linux machines"),
]


class Told(Hooks):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def failed(self, where: str, why: str) -> None:
        self.steps.append(f"failed: {why}")

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


class Client:
    """A client with an environment of its own, an index, and hosts whose caches are folders beside it."""

    def __init__(self, folder: Path, index: IndexServer, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.index = index
        self.stack = stack
        self.hooks = Told()
        self.settings = IndexSettings(indexes=(Index(url=index.url, default=True),))
        self.prefix = folder / "client"
        self.trees: list[SourceTree] = []

    def install(self, *requirements: str) -> None:
        uv = find_uv()
        if not self.prefix.exists():
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, self.prefix], check=True)
        command = [uv, "pip", "install", "-q", "--python", str(self.prefix / "bin" / "python")]
        subprocess.run([*command, "--default-index", self.index.url, *requirements], check=True)

    def snapshot(self) -> Snapshot:
        found = capture(str(self.prefix / "bin" / "python"))
        return replace(found, source_trees=tuple(self.trees))

    def host(self, name: str, **environment: str | None) -> Host:
        """This machine as if it were another, with a cache folder of its own."""
        cache = {"ENVSYNC_CACHE": str(self.folder / name), "UV_CACHE_DIR": None}
        host = Elsewhere({**cache, **environment})
        host.name = name
        return host

    async def prepare(self, *hosts: Host, **options: Any) -> list[Prepared]:
        options.setdefault("snapshot", self.snapshot())
        prepared = await prepare(hosts, settings=self.settings, hooks=self.hooks, **options)
        for one in prepared:
            self.stack.push_async_callback(one.session.close)
        return prepared


@pytest.fixture(scope="module")
def static_uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static uv, from the index that this machine uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(tmp_path_factory.mktemp("uv")))
        store = default_store()
        path = store.path(asyncio.run(uv_binary(Target.current(), store, read_settings())))
    assert path is not None
    return path


@pytest.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, static_uv: Path) -> AsyncIterator[Client]:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    here = Target.current()
    remember("uv", f"{version('uv')}-{here.system}-{here.machine}", default_store().put(static_uv))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    wheels = tmp_path / "wheels"
    write_wheel(wheels, "alpha", "1.0", requires=["beta"], body="import beta\nVALUE = 'alpha'\n")
    write_wheel(wheels, "beta", "2.0")
    with IndexServer(wheels) as index:
        async with AsyncExitStack() as stack:
            yield Client(tmp_path, index, stack)


def says(prepared: Prepared, code: str, **variables: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.check_output(
        [prepared.environment.python, "-c", code], text=True, env={**clean, **variables}
    ).strip()


def tree(client: Client, name: str = "mine") -> SourceTree:
    folder = client.folder / name
    folder.mkdir()
    (folder / "module.py").write_text("ANSWER = 1\n")
    (folder / "data.yaml").write_text("a: 1\n" * 1000)
    return SourceTree(
        name=name,
        root=str(folder),
        members=(("module.py", str(folder / "module.py")), ("data.yaml", str(folder / "data.yaml"))),
        position="front",
        kind="path",
        distribution=None,
    )


def agents(folder: Path) -> list[int]:
    """Processes of this machine that have something in a folder to do."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


async def test_this_environment_on_this_machine(client: Client) -> None:
    client.install("alpha")
    (one,) = await client.prepare(Local(), cache=str(client.folder / "there"))
    assert one.environment.created
    assert one.differences == ()
    assert {artifact.name: artifact.version for artifact in one.lock.artifacts()} == {
        "alpha": "1.0",
        "beta": "2.0",
    }
    assert one.lock.target == client.snapshot().target
    assert says(one, "import alpha; print(alpha.VALUE)") == "alpha"
    assert Path(one.environment.prefix).is_relative_to(client.folder / "there")


async def test_local_code_that_stays_behind_is_told(client: Client) -> None:
    client.install("alpha")
    whole = tree(client)
    (Path(whole.root) / "server.key").write_text("")
    client.trees = [replace(whole, members=(("", whole.root),))]
    (one,) = await client.prepare(client.host("node"))
    assert [path for path, _ in one.trees[0][0].left_out] == ["server.key"]
    assert [text for text in client.hooks.warnings if "1 left out: server.key" in text]


async def test_a_second_start_asks_nobody_for_anything(client: Client) -> None:
    client.install("alpha")
    (first,) = await client.prepare(client.host("node"))
    assert first.environment.created
    assert first.sent > 0
    client.index.requests.clear()
    client.hooks.steps.clear()
    (second,) = await client.prepare(client.host("node"))
    assert not second.environment.created
    assert second.environment.digest == first.environment.digest
    assert (second.sent, second.differences) == (0, ())
    assert client.index.requests == []
    assert [step for step in client.hooks.steps if "locking" in step or "sending" in step] == []


async def test_a_lock_of_yesterday_whose_wheels_are_gone_is_made_again(client: Client) -> None:
    client.install("alpha")
    snapshot = client.snapshot()
    old = lock_for(snapshot, snapshot.target, store=default_store(), settings=client.settings)
    (wheel,) = client.index.folder.glob("alpha*.whl")
    wheel.rename(wheel.with_name(wheel.name.replace("-py3", "-1-py3")))
    (found,) = await client.prepare(client.host("node"))
    assert says(found, "import alpha; print(alpha.VALUE)") == "alpha"
    assert {one.url for one in found.lock.artifacts()} != {one.url for one in old.artifacts()}
    assert not [step for step in client.hooks.steps if step.startswith("failed")]


async def test_an_index_package_that_was_edited_in_place_is_warned_of(client: Client) -> None:
    client.install("alpha")
    (module,) = client.prefix.rglob("alpha/__init__.py")
    module.unlink()  # it is uv's own, by another name
    module.write_text("VALUE = 'mine'\n")
    os.utime(module, (module.stat().st_mtime + 10,) * 2)
    (found,) = await client.prepare(client.host("node"))
    assert says(found, "import alpha; print(alpha.VALUE)") == "alpha"
    (warning,) = [text for text in client.hooks.warnings if "edited" in text]
    assert "alpha 1.0: alpha/__init__.py was edited after it was installed" in warning


async def test_a_change_here_makes_another_environment(client: Client) -> None:
    client.install("alpha")
    (first,) = await client.prepare(client.host("node"))
    write_wheel(client.index.folder, "gamma", "1.0")
    client.install("gamma")
    (second,) = await client.prepare(client.host("node"))
    assert second.environment.created
    assert second.environment.digest != first.environment.digest
    assert says(second, "import alpha, gamma; print('both')") == "both"


async def test_several_hosts_each_get_it_and_the_client_downloads_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.install("alpha")
    hosts = [client.host(f"node{number}") for number in range(3)]
    client.index.requests.clear()
    prepared = await client.prepare(*hosts, limit=2)
    assert [one.session.host for one in prepared] == hosts
    assert len({one.environment.digest for one in prepared}) == 1
    assert len({one.environment.prefix for one in prepared}) == 3
    assert [says(one, "import alpha; print(alpha.VALUE)") for one in prepared] == ["alpha"] * 3
    assert len([step for step in client.hooks.steps if step.startswith("locking")]) == 1


async def test_hosts_that_reach_no_index_are_sent_what_was_downloaded_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.install("alpha")
    # The hosts' own attempts end at a proxy that is not there; the client's go past it.
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    hosts = [client.host(f"node{number}", **proxy, NO_PROXY=None, no_proxy=None) for number in range(3)]
    prepared = await client.prepare(*hosts)
    assert [says(one, "import alpha; print(alpha.VALUE)") for one in prepared] == ["alpha"] * 3
    size = sum(wheel.stat().st_size for wheel in client.index.folder.glob("*.whl"))
    assert all(one.sent >= size for one in prepared)
    held = default_store().has(artifact.sha256 for artifact in prepared[0].lock.artifacts())
    assert len(held) == 2


async def test_source_trees_go_along_and_an_edit_ships_one_file(client: Client) -> None:
    client.install("alpha")
    client.trees = [tree(client)]
    (first,) = await client.prepare(client.host("node"))
    ((manifest, folder),) = first.trees
    assert [reference.digest for reference in first.lock.trees] == [manifest.digest]
    assert says(first, "import module; print(module.ANSWER)", PYTHONPATH=folder) == "1"
    edited = "ANSWER = 2  # edited\n"
    (client.folder / "mine" / "module.py").write_text(edited)
    (second,) = await client.prepare(client.host("node"))
    ((_, other),) = second.trees
    assert second.environment.digest == first.environment.digest
    assert not second.environment.created
    assert says(second, "import module; print(module.ANSWER)", PYTHONPATH=other) == "2"
    assert len(edited) <= second.sent < 1000  # the file with its header, not the 5000 bytes beside it
    assert says(first, "import module; print(module.ANSWER)", PYTHONPATH=folder) == "1"


async def test_a_host_that_cannot_be_used_is_named_and_the_others_are_closed(client: Client) -> None:
    client.install("alpha")
    blocked = client.folder / "blocked"
    blocked.write_text("a file, where the cache should be")
    homeless = Elsewhere({"ENVSYNC_CACHE": None, "HOME": None})
    homeless.name = "homeless"
    with pytest.raises(UnfitHostError) as error:
        await client.prepare(client.host("node"), client.host("blocked"), homeless)
    assert error.value.where == "blocked"
    assert any("homeless" in note for note in error.value.__notes__)
    assert not list((client.folder / "node").glob("envs/*"))
    assert agents(client.folder / "node") == []


async def test_a_failure_half_way_closes_all_sessions(client: Client) -> None:
    client.install("alpha")
    lock = lock_for(
        client.snapshot(), client.snapshot().target, store=default_store(), settings=client.settings
    )
    for wheel in client.index.folder.glob("beta*"):
        wheel.unlink()
    with pytest.raises(EnvsyncError) as error:
        await client.prepare(client.host("one"), client.host("two"), lock=lock)
    assert "beta 2.0" in str(error.value)
    assert agents(client.folder / "one") == agents(client.folder / "two") == []
    assert not [path for path in client.folder.glob("*/envs/*") if not path.name.startswith(".")]


async def test_a_cancelled_start_leaves_nothing_running(client: Client) -> None:
    client.install("alpha")
    task = asyncio.ensure_future(client.prepare(client.host("one"), client.host("two")))
    deadline = asyncio.get_running_loop().time() + 60
    while not agents(client.folder / "one") and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.005)
    assert agents(client.folder / "one")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert agents(client.folder / "one") == agents(client.folder / "two") == []


async def test_a_lock_for_a_newer_libc_is_refused_before_anything_is_sent(client: Client) -> None:
    client.install("alpha")
    snapshot = client.snapshot()
    lock = lock_for(snapshot, snapshot.target, store=default_store(), settings=client.settings)
    newer = replace(lock, target=replace(lock.target, libc=("glibc", "2.99")))
    with pytest.raises(UnfitHostError) as error:
        await client.prepare(client.host("node"), lock=newer)
    assert error.value.where == "node"
    assert "glibc 2.99" in str(error.value)
    assert "envsync snapshot --for node" in str(error.value)
    assert not any((client.folder / "node" / "blobs").rglob("*"))


async def test_what_is_not_as_locked_is_an_error_or_a_warning(client: Client) -> None:
    client.install("alpha")
    snapshot = client.snapshot()
    lock = lock_for(snapshot, snapshot.target, store=default_store(), settings=client.settings)
    wrong = replace(lock, records={**lock.records, "alpha": hashlib.sha256(b"other files").hexdigest()})
    with pytest.raises(MismatchError) as error:
        await client.prepare(client.host("node"), lock=wrong)
    assert error.value.where == "node"
    assert [difference.subject for difference in error.value.differences] == ["alpha"]
    assert agents(client.folder / "node") == []
    (one,) = await client.prepare(client.host("node"), lock=wrong, on_mismatch="warn")
    assert [difference.subject for difference in one.differences] == ["alpha"]
    assert any("alpha" in text for text in client.hooks.warnings)


async def test_a_lock_and_the_code_of_today(client: Client) -> None:
    client.install("alpha")
    client.trees = [tree(client)]
    (first,) = await client.prepare(client.host("node"))
    (client.folder / "mine" / "module.py").write_text("ANSWER = 3\n")
    (second,) = await client.prepare(client.host("node"), lock=first.lock)
    assert says(second, "import module; print(module.ANSWER)", PYTHONPATH=second.trees[0][1]) == "3"
    assert any("mine was edited since the lock" in text for text in client.hooks.warnings)
    client.trees = []
    with pytest.raises(StoreError, match="source trees are not here: mine"):
        await client.prepare(client.host("node"), lock=first.lock)


def test_a_lock_is_made_once_and_says_again_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    store = FolderStore(tmp_path / "store")
    write_wheel(tmp_path / "wheels", "alpha", "1.0", requires=["winonly; sys_platform == 'win32'"])
    with IndexServer(tmp_path / "wheels") as index:
        uv = find_uv()
        prefix = tmp_path / "client"
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, prefix], check=True)
        command = [uv, "pip", "install", "-q", "--python", str(prefix / "bin" / "python")]
        subprocess.run([*command, "--default-index", index.url, "alpha"], check=True)
        settings = IndexSettings(indexes=(Index(url=index.url, default=True),))
        snapshot = capture(str(prefix / "bin" / "python"))
        older = replace(snapshot.target, python=_older(snapshot.target.python))
        targets = (snapshot.target, older)
        first = [lock_for(snapshot, each, store=store, settings=settings) for each in targets]
        index.requests.clear()
        again = [lock_for(snapshot, each, store=store, settings=settings) for each in targets]
        assert [lock.dumps() for lock in again] == [lock.dumps() for lock in first]
        assert index.requests == []
        other = replace(settings, strategy="unsafe-best-match")
        same = lock_for(snapshot, snapshot.target, store=store, settings=other)
        assert same.digest == first[0].digest
        assert index.requests != []  # other settings may find other files


def _older(text: str) -> str:
    major, minor, _ = text.split(".")
    return f"{major}.{int(minor) - 1}.0"


def reach(lab: Lab, machine: Machine) -> Host:
    return parse_host(machine.name, SSHOptions(config=(lab.config,)))


async def on(host: Host, *words: str) -> str:
    return (await host.run(shlex.join(words))).stdout.decode().strip()


@pytest.mark.lab
@pytest.mark.slow
async def test_dask_and_numpy_on_hosts_with_another_python_or_none_and_no_internet(
    lab: Lab, machine: Callable[..., Machine], client: Client
) -> None:
    client.settings = read_settings()
    uv = find_uv()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, client.prefix], check=True)
    command = [uv, "pip", "install", "-q", "--python", str(client.prefix / "bin" / "python")]
    subprocess.run([*command, "dask", "distributed", "numpy"], check=True)
    client.trees = [tree(client)]
    machines = [machine("bare"), machine("bare"), machine("python")]
    hosts, again = [reach(lab, each) for each in machines], [reach(lab, each) for each in machines]
    for host in (*hosts, *again):
        client.stack.push_async_callback(host.close)
    first = await client.prepare(*hosts)
    proof = (
        "import bz2, ctypes, distributed, lzma, module, numpy, platform, sqlite3, ssl;"
        "print(numpy.arange(4).sum(), distributed.__version__, module.ANSWER, platform.python_version())"
    )
    ours = client.snapshot()
    wanted = ours.distribution("distributed")
    assert wanted is not None
    for one in first:
        variables = f"PYTHONPATH={one.trees[0][1]}"
        said = await on(one.session.host, "env", variables, one.environment.python, "-c", proof)
        assert said.split()[:3] == ["6", wanted.version, "1"]
        if "bare" in one.session.host.name:
            assert said.split()[3] == ours.interpreter.version
        assert one.environment.created
        assert [each for each in one.differences if each.severity in ("fatal", "error")] == []
    before = [each.stats()["received"] for each in machines]
    second = await client.prepare(*again)
    for one in second:
        assert not one.environment.created
        assert one.sent == 0
    received = [each.stats()["received"] - earlier for each, earlier in zip(machines, before, strict=True)]
    assert max(received) < 100_000  # bytes: keys, questions and answers


@pytest.mark.lab
async def test_one_host_that_is_gone_ends_the_start_on_all(
    lab: Lab, machine: Callable[..., Machine], client: Client
) -> None:
    client.install("alpha")
    there, gone = machine("python"), machine("python")
    gone.kill()
    options = SSHOptions(config=(lab.config,), connect_timeout=3.0, attempts=1)
    hosts = [parse_host(each.name, options) for each in (there, gone)]
    for host in hosts:
        client.stack.push_async_callback(host.close)
    with pytest.raises(HostError) as error:
        await client.prepare(*hosts)
    assert error.value.where == gone.name
    deadline = asyncio.get_running_loop().time() + 60
    while there.processes("agent") and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    assert there.processes("agent") == []
