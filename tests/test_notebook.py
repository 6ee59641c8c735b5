"""The example notebook runs from its first cell to its last, in a kernel of a small environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envsync.uv import find_uv
from tests.places import ROOT, wheel_of_envsync

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "examples" / "running_cluster.ipynb"
EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def test_it_stands_there_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment that has a kernel, and what it needs of folders."""
    place = tmp_path_factory.mktemp("notebook")
    uv, python = find_uv(), place / "ours" / "bin" / "python"
    needed = ("ipykernel", "nbclient", "humanize", "more-itertools>=10")
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, place / "ours"], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", python, wheel_of_envsync(place), *needed], check=True)
    (place / "temporary").mkdir()
    return place


def executed(place: Path, notebook: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook that was run from its first to its last."""
    folders = {name: str(place / name) for name in ("cache", "overlays", "temporary")}
    done = subprocess.run(
        [place / "ours" / "bin" / "python", "-c", EXECUTE, notebook, place / "done.ipynb"],
        cwd=place,
        env={
            **os.environ,
            "ENVSYNC_CACHE": folders["cache"],
            "ENVSYNC_OVERLAYS": folders["overlays"],
            "TMPDIR": folders["temporary"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells: list[dict[str, Any]] = json.loads((place / "done.ipynb").read_text())["cells"]
    return cells


def test_it_shows_verify_repair_and_live_sync(place: Path) -> None:
    cells = executed(place, NOTEBOOK)
    shown = [text for text in map(_shown, cells) if text]
    differs, failed, repaired, worked, later, first, edited, given_back = shown
    assert "<table" in differs
    assert "humanize" in differs
    assert "as feared: No module named 'humanize'" in failed
    assert "all as wanted" in repaired
    assert worked.startswith("3.0 MB")
    assert later.count("tcp://") == 3
    assert first == "[1, 2, 3, 4, 5]"
    assert edited == "[0, 10, 20, 30, 40]"
    assert "humanize" in given_back
    assert "not as wanted" in given_back


def test_a_start_is_shown_while_it_goes_on_and_folds_then(place: Path) -> None:
    source = """
from envsync import SyncedCluster
from envsync.runner import notebooks

notebooks._PATIENCE = 0
with SyncedCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
    print(cluster.get_client().submit(sum, [1, 2]).result())
"""
    cell: dict[str, Any] = {
        "cell_type": "code",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    notebook = place / "start.ipynb"
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}))
    (done,) = executed(place, notebook)
    shown = _shown(done)
    assert shown.startswith("<details><summary>started in ")
    assert "✓</td>" in shown
    assert shown.rstrip().endswith("3")


def _shown(cell: dict[str, Any]) -> str:
    """Return what a cell prints and displays; what libraries log beside it is not the notebook's."""
    parts = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream" and output["name"] == "stdout":
            parts.append("".join(output["text"]))
        elif "data" in output:
            data = output["data"]
            parts.append("".join(data.get("text/html") or data["text/plain"]))
    text = "".join(parts)
    return "" if text.startswith(("Writing", "Overwriting")) else text
