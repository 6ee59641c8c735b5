"""Local code that hides what Python or Dask needs is refused: no worker would start with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from envsync import SyncEnvironment
from envsync.errors import MismatchError
from envsync.shadowing import HARMLESS, shadowing
from envsync.snapshot import Distribution, Snapshot, SourceTree, capture
from envsync.trees import Manifest


@pytest.fixture(scope="module")
def here() -> Snapshot:
    return capture()


def code(
    root: Path, *files: str, position: str = "front", distribution: str | None = None
) -> tuple[SourceTree, Manifest]:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    tree = SourceTree(
        name=root.name,
        root=str(root),
        members=(("", str(root)),),
        position=position,
        kind="editable" if distribution else "cwd",
        distribution=distribution,
    )
    packed = tuple((file, "0" * 64, 0o644) for file in sorted(files))
    return tree, Manifest(
        name=tree.name, position=position, kind=tree.kind, distribution=distribution, files=packed
    )


@pytest.mark.parametrize(
    ("file", "module", "owner"),
    [
        ("random.py", "random", ""),
        ("json/__init__.py", "json", ""),
        ("queue.cpython-311-x86_64-linux-gnu.so", "queue", ""),
        ("__future__.py", "__future__", ""),
        ("yaml/__init__.py", "yaml", "pyyaml"),  # named otherwise than what it is imported as
        ("tlz/__init__.py", "tlz", "toolz"),  # one of two
        ("msgpack.py", "msgpack", "msgpack"),
        ("distributed/__init__.py", "distributed", "distributed"),
        ("locket.py", "locket", "locket"),  # of partd, of dask
    ],
)
def test_what_every_process_needs_must_not_be_hidden(
    here: Snapshot, tmp_path: Path, file: str, module: str, owner: str
) -> None:
    (found,) = shadowing([code(tmp_path, file, "mine.py")], here.distributions)
    assert (found.module, found.owner, found.file) == (module, owner, str(tmp_path / file))


@pytest.mark.parametrize(
    "file",
    [
        "mine.py",
        "mine/random.py",
        "mine/yaml/__init__.py",
        "random/words.txt",
        "random/draw.py",  # no __init__.py: an import finds the standard library's
        "random.pyi",
        "random.txt",
        "time.py",  # compiled into Python
        "__main__.py",
        "test/__init__.py",
        "tests/__init__.py",
        "code.py",
        "pytest.py",  # installed here, and no need of Dask's
        "setup.py",
    ],
)
def test_what_hides_nothing_or_nothing_needed_is_let_be(here: Snapshot, tmp_path: Path, file: str) -> None:
    assert shadowing([code(tmp_path, file)], here.distributions) == []


def test_what_comes_after_installed_packages_hides_nothing(here: Snapshot, tmp_path: Path) -> None:
    behind = code(tmp_path, "random.py", "yaml/__init__.py", position="back")
    assert shadowing([behind], here.distributions) == []
    tree, manifest = behind
    moved = replace(manifest, position="front")
    assert [one.module for one in shadowing([(tree, moved)], here.distributions)] == ["random", "yaml"]


def test_a_distribution_does_not_hide_itself(here: Snapshot, tmp_path: Path) -> None:
    project = code(tmp_path / "project", "src/yaml/__init__.py", "yaml/__init__.py", distribution="pyyaml")
    assert shadowing([project], here.distributions) == []
    other = code(tmp_path / "other", "yaml/__init__.py", distribution="proj")
    assert [one.module for one in shadowing([other], here.distributions)] == ["yaml"]
    # a folder on PYTHONPATH that an installer filled
    filled = code(tmp_path / "filled", "msgpack/__init__.py", "random.py")
    info = tmp_path / "filled" / "msgpack-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: msgpack\nVersion: 9\n")
    (info / "RECORD").write_text("msgpack/__init__.py,,\nmsgpack-9.dist-info/METADATA,,\n")
    its_own = Distribution(name="msgpack", version="9", location=str(info))
    others = [one for one in here.distributions if one.name != "msgpack"]
    assert [one.module for one in shadowing([filled], [*others, its_own])] == ["random"]


STARTS = """
from distributed import Client, LocalCluster
if __name__ == "__main__":
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", **options) as cluster, Client(cluster) as client:
        print(client.submit(pow, 2, 3).result())
"""


@pytest.mark.slow
def test_workers_start_without_what_is_called_harmless(tmp_path: Path) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in HARMLESS:
        (traps / f"{name}.py").write_text("raise ImportError('a trap')\n")
    (tmp_path / "starts.py").write_text(STARTS)
    environment = {**os.environ, "PYTHONPATH": str(traps)}
    done = subprocess.run(
        [sys.executable, "starts.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout == "8\n", done.stderr


@pytest.mark.slow
async def test_a_cluster_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    code(work, "random.py", "yaml/__init__.py", "mine.py")
    async with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=":0",
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        pids = await client.run(os.getpid)
        for on_mismatch in ("raise", "warn"):
            plugin = SyncEnvironment(on_mismatch=on_mismatch, cwd=str(work))
            with pytest.raises(MismatchError) as caught:
                await client.register_plugin(plugin)
            said = str(caught.value)
            assert f"{work / 'random.py'} hides random of Python's standard library" in said
            assert f"{work / 'yaml' / '__init__.py'} hides yaml of pyyaml" in said
            assert "Rename them" in said
        assert "envsync" not in cluster.scheduler.plugins
        assert "envsync" not in json.dumps([*cluster.scheduler.nanny_plugins, *cluster.scheduler.handlers])
        assert await client.run(os.getpid) == pids
        assert await client.submit(pow, 2, 3) == 8
