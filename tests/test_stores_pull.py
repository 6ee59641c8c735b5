"""From a store alone: an environment on a host that reaches no index, given by a client that has nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from envsync.collect import uv_binary
from envsync.errors import CorruptBlobError
from envsync.hooks import Hooks
from envsync.indexes import Index, IndexSettings, read_settings
from envsync.runner.provision import Prepared, prepare
from envsync.runner.storing import gather
from envsync.snapshot import SourceTree, capture
from envsync.store import default_store, remember
from envsync.stores import SharedStore, open_store
from envsync.stores.pulling import Pulled, pull
from envsync.stores.pushing import push
from envsync.target import Target
from envsync.uv import find_uv
from tests.elsewhere import Elsewhere, tools
from tests.index_server import IndexServer, write_wheel
from tests.s3 import S3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are Linux machines"),
]
NOWHERE = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"
)


class Told(Hooks):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that an environment with local code was pushed to; its index is gone."""
    folder = tmp_path_factory.mktemp("pushed")
    wheels = folder / "wheels"
    write_wheel(wheels, "alpha", "1.0", requires=["beta"], body="import beta\nVALUE = 'alpha'\n")
    write_wheel(wheels, "beta", "2.0")
    prefix = folder / "client"
    (folder / "code").mkdir()
    (folder / "code" / "module.py").write_text("ANSWER = 42\n")
    tree = SourceTree(
        name="mine",
        root=str(folder / "code"),
        members=(("module.py", str(folder / "code" / "module.py")),),
        position="front",
        kind="path",
        distribution=None,
    )
    uv = find_uv()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, prefix], check=True)
    hooks = Told()
    with pytest.MonkeyPatch.context() as patch, IndexServer(wheels) as index:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        command = [uv, "pip", "install", "-q", "--python", str(prefix / "bin" / "python")]
        subprocess.run([*command, "--default-index", index.url, "alpha"], check=True)
        here = Target.current()
        # uv's own wheel is in the index that this machine uses
        static = asyncio.run(uv_binary(here, default_store(), read_settings()))
        remember("uv", f"{version('uv')}-{here.system}-{here.machine}", static)
        snapshot = replace(capture(str(prefix / "bin" / "python")), source_trees=(tree,))
        settings = IndexSettings(indexes=(Index(url=index.url, default=True),))
        gathered = asyncio.run(gather(snapshot, settings=settings, hooks=hooks))
        done = push(
            gathered.lock,
            gathered.manifests,
            gathered.store,
            open_store((folder / "store").as_uri()),
            name="analysis",
            supplies=gathered.supplies,
        )
    assert hooks.warnings == []
    assert done.sent == 5  # two wheels, a file, uv, Python
    return folder / "store"


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def prepared_from(
    pulled: Pulled, folder: Path, stack: AsyncExitStack, hooks: Hooks, **environment: str | None
) -> Prepared:
    """Realise on this machine in the guise of another, which reaches nothing."""
    cache = {"ENVSYNC_CACHE": str(folder / "there"), "UV_CACHE_DIR": None}
    host = Elsewhere({**cache, **NOWHERE, "NO_PROXY": None, "no_proxy": None, **environment})
    nothing = IndexSettings(indexes=(Index(url="http://127.0.0.1:9/simple", default=True),))
    (one,) = await prepare([host], lock=pulled, settings=nothing, hooks=hooks)
    stack.push_async_callback(one.session.close)
    return one


def says(one: Prepared, code: str) -> str:
    paths = os.pathsep.join(folder for _, folder in one.trees)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.check_output(
        [one.environment.python, "-c", code], text=True, env={**clean, "PYTHONPATH": paths}
    ).strip()


async def test_a_host_without_python_gets_all_from_the_store(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: AsyncExitStack
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    hooks = Told()
    bare = tools(tmp_path / "tools")
    pulled = pull(open_store(pushed.as_uri()), "analysis")
    one = await prepared_from(pulled, tmp_path, hosts, hooks, PATH=str(bare))
    assert one.environment.created
    assert one.differences == ()
    assert says(one, "import alpha, module; print(alpha.VALUE, module.ANSWER)") == "alpha 42"
    assert Path(one.environment.python).resolve().is_relative_to(tmp_path / "there" / "pythons")
    assert not [step for step in hooks.steps if "locking" in step or "downloading" in step]
    assert [step for step in hooks.steps if step == f"taking wheels from {pushed.as_uri()}"]


async def test_a_store_in_a_bucket_does_as_well(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: AsyncExitStack, s3: S3
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    folder: SharedStore = open_store(pushed.as_uri())
    bucket = open_store(f"{s3.bucket('pulled')}/x")
    source = pull(folder, "analysis")
    gathered = await gather(capture(), lock=source, settings=IndexSettings())
    copied = await asyncio.to_thread(
        push,
        gathered.lock,
        gathered.manifests,
        gathered.store,
        bucket,
        name="analysis",
        supplies=gathered.supplies,
    )
    assert copied.sent == 5
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache2"))
    pulled = await asyncio.to_thread(pull, bucket, "analysis")
    assert pulled.lock.digest == source.lock.digest
    one = await prepared_from(pulled, tmp_path, hosts, Told())
    assert says(one, "import alpha, module; print(alpha.VALUE, module.ANSWER)") == "alpha 42"


async def test_a_spoilt_wheel_ends_it_and_is_named(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: AsyncExitStack
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    store = open_store(pushed.as_uri())
    pulled = pull(store, "analysis")
    digest = pulled.lock.artifacts()[0].sha256
    file = pushed / "blobs" / digest[:2] / digest
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    try:
        with pytest.raises(CorruptBlobError) as raised:
            await prepared_from(pulled, tmp_path, hosts, Told())
    finally:
        file.write_bytes(good)
    assert digest in raised.value.message
    assert raised.value.where == file.as_uri()


SCRIPT = """
import sys
from envsync import SyncedCluster

if __name__ == "__main__":
    with SyncedCluster(lock=sys.argv[1], n_workers=1, threads_per_worker=1, on_mismatch="warn") as cluster:
        with cluster.get_client() as client:
            print("answer", client.submit(sum, [1, 2]).result())
            print("synced", cluster.sync())
            print("prefixes", *client.run(lambda: __import__("sys").prefix).values())
"""


def test_a_cluster_and_run_from_a_store(small_lock: Path, tmp_path: Path) -> None:
    bin_ = Path(sys.executable).parent
    url = (tmp_path / "store").as_uri()
    (tmp_path / "here").mkdir()

    def call(*arguments: object, **environment: str) -> str:
        done = subprocess.run(
            list(map(str, arguments)),
            cwd=tmp_path / "here",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = call(bin_ / "envsync", "push", "--lock", small_lock, f"{url}#small")
    assert f"{url}#small: " in said
    (tmp_path / "here" / "script.py").write_text(SCRIPT)
    there = {"ENVSYNC_CACHE": str(tmp_path / "cache"), **NOWHERE, "NO_PROXY": "", "no_proxy": ""}
    said = call(sys.executable, "script.py", f"{url}#small", **there)
    assert "answer 3" in said
    assert "synced 0" in said
    assert f"prefixes {tmp_path}/cache/envs/" in said
    code = "from distributed import Client; client = Client(); print(client.submit(sum, [3, 4]).result())"
    options = ["--lock", f"{url}#small", "-n", 1, "--on-mismatch", "warn", "--"]
    assert call(bin_ / "envsync", "run", *options, sys.executable, "-c", code, **there).split() == ["7"]
