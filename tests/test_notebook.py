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


def test_it_shows_verify_repair_and_live_sync(tmp_path: Path) -> None:
    python = tmp_path / "ours" / "bin" / "python"
    uv = find_uv()
    needed = ("ipykernel", "nbclient", "humanize", "more-itertools>=10")
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, tmp_path / "ours"], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "-p", python, wheel_of_envsync(tmp_path), *needed], check=True
    )
    folders = {name: str(tmp_path / name) for name in ("cache", "overlays", "temporary")}
    Path(folders["temporary"]).mkdir()
    done = subprocess.run(
        [python, "-c", EXECUTE, NOTEBOOK, tmp_path / "done.ipynb"],
        cwd=tmp_path,
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
    cells = json.loads((tmp_path / "done.ipynb").read_text())["cells"]
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
