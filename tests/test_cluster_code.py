"""Local code in a running cluster: found, changed, shipped and read anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from envsync.plugins.compare import CORE
from envsync.uv import find_uv
from tests.small import processes_in, wait_until_none

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

SCRIPT = """
import pathlib, sys, time
from envsync import SyncedCluster


def on_all(client, function):
    values = list(client.run(function).values()) + [client.run_on_scheduler(function)]
    return set(values)

def code_differs(cluster):
    found = cluster.verify(on_mismatch="ignore")
    bad = [one for one in found.differences if one.severity in ("fatal", "error")]
    return [one for one in bad if one.kind == "source" or one.process != "client"]

if __name__ == "__main__":
    import mine, beside
    with SyncedCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        client = cluster.get_client()
        one = lambda: __import__("mine").VALUE
        two = lambda: __import__("beside").VALUE
        assert on_all(client, one) == {1}, on_all(client, one)
        assert on_all(client, two) == {"a"}
        where = client.submit(lambda: __import__("mine").__file__).result()
        assert "/trees/" in where, where
        assert not code_differs(cluster)
        assert cluster.sync() == 0
        pathlib.Path(mine.__file__).write_text("VALUE = 2\\n")
        pathlib.Path("beside.py").write_text("VALUE = 'b'\\n")
        assert cluster.sync() == 2
        assert on_all(client, one) == {2}, on_all(client, one)
        assert on_all(client, two) == {"b"}
        # workers that come later have it too, and pass the gate with it
        cluster.scale(3)
        client.wait_for_workers(3, timeout=150)
        assert on_all(client, one) == {2}
        assert not code_differs(cluster)
        # nor do workers that are being started just now stay behind
        cluster.scale(4)
        pathlib.Path(mine.__file__).write_text("VALUE = 33\\n")
        assert cluster.sync() == 1
        client.wait_for_workers(4, timeout=150)
        assert on_all(client, one) == {33}, on_all(client, one)
        print("synced")
"""


def test_changed_code_is_shipped_and_read_anew(tmp_path: Path) -> None:
    prefix, uv = tmp_path / "environment", str(find_uv())
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "src/mine.py").write_text("VALUE = 1\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=64"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "mine"\nversion = "1"\n'
        '[tool.setuptools]\npackage-dir = {"" = "src"}\npy-modules = ["mine"]\n'
    )
    ours = tmp_path / "ours"  # of its own: whoever edits this checkout meanwhile changes a source tree
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("envsync", "runner", "plugins", "dockerfiles"):
        shutil.copytree(ROOT / name, ours / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, ours)
    pins = [f"{name}=={version(name)}" for name in sorted(CORE)]
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(prefix)], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "-p", str(prefix), *pins, "-e", str(ours), "-e", str(project)],
        check=True,
    )
    work = tmp_path / "work"
    work.mkdir()
    (work / "beside.py").write_text("VALUE = 'a'\n")
    (work / "script.py").write_text(SCRIPT)
    cache = tmp_path / "cache"
    done = subprocess.run(
        [str(prefix / "bin/python"), "script.py"],
        cwd=work,
        env={**os.environ, "ENVSYNC_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "synced" in done.stdout
    wait_until_none(cache, 50)
    assert not processes_in(cache)
