"""The agent's file: the same every time, nothing but the standard library, old Pythons too."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

import envsync.agent
import envsync.plugins
from envsync.agent.archive import build

FOLDERS = [Path(next(iter(module.__path__))) for module in (envsync.agent, envsync.plugins)]
NEED_DISTRIBUTED = {
    "calls.py",
    "carried.py",
    "disk.py",
    "drain.py",
    "gate.py",
    "hub.py",
    "limits.py",
    "mend.py",
    "process.py",
}


def test_the_same_sources_give_the_same_bytes() -> None:
    data, digest = build()
    build.cache_clear()
    assert build() == (data, digest)
    assert hashlib.sha256(data).hexdigest() == digest


def test_it_holds_agent_and_plugins_and_not_itself_as_a_builder() -> None:
    names = zipfile.ZipFile(BytesIO(build()[0])).namelist()
    assert "__main__.py" in names
    assert "envsync_agent/agent/serve.py" in names
    assert "envsync_agent/plugins/scan.py" in names
    assert not [name for name in names if name.endswith("archive.py")]


def test_it_has_what_its_modules_import_of_each_other_and_no_plugin_besides() -> None:
    archive = zipfile.ZipFile(BytesIO(build()[0]))
    names = {name for name in archive.namelist() if name.count("/") == 2}
    imported = set()
    for name in names:
        package = name.rpartition("/")[0].split("/")
        for node in ast.walk(ast.parse(archive.read(name))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                base = package[: len(package) - node.level + 1]
                imported.add("/".join([*base, *node.module.split(".")]) + ".py")
    plugins = {name for name in names if "/plugins/" in name}
    assert imported <= names
    assert plugins - imported == {"envsync_agent/plugins/__init__.py"}


def test_agent_imports_nothing_but_the_standard_library() -> None:
    for folder in FOLDERS:
        for path in folder.glob("*.py"):
            if path.name in NEED_DISTRIBUTED | {"archive.py"}:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    tops = [alias.name.partition(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    tops = [str(node.module).partition(".")[0]]
                else:
                    continue
                assert set(tops) <= sys.stdlib_module_names, (path, tops)


@pytest.mark.slow
def test_agent_and_plugins_need_no_newer_python_than_3_8() -> None:
    files = [str(p) for folder in FOLDERS for p in sorted(folder.glob("*.py")) if p.name != "archive.py"]
    command = [
        sys.executable,
        "-c",
        "import vermin; vermin.main()",
        "--target=3.8-",
        "--violations",
        "--no-tips",
    ]
    done = subprocess.run(
        [*command, "--backport", "typing", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_runs_under_python_3_8(tmp_path: Path) -> None:
    python = python_of("3.8")
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(build()[0])
    done = subprocess.run([python, "-I", "-S", agent, "scan"], capture_output=True, check=True)
    assert json.loads(done.stdout)["interpreter"]["version"].startswith("3.8.")
    requests = [{"id": 1, "do": "probe"}, {"id": 2, "do": "lacking", "digests": ["0" * 64]}]
    serving = subprocess.Popen(
        [python, "-I", "-S", agent, "serve", str(tmp_path), "30"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert serving.stdin is not None
    assert serving.stdout is not None
    serving.stdin.writelines(json.dumps(request) + "\n" for request in requests)
    serving.stdin.flush()
    hello = json.loads(serving.stdout.readline())
    assert hello["version"].startswith("3.8.")
    answers = {
        answer["id"]: answer["ok"] for answer in (json.loads(serving.stdout.readline()) for _ in "012")
    }
    assert answers[2] == ["0" * 64]
    assert answers[0].keys() == answers[1].keys()
    assert answers[1]["cores"] >= 0.1
    serving.stdin.close()
    assert serving.wait(60) == 0


def python_of(minor: str) -> str | None:
    """Return an interpreter of a minor version that runs."""
    found = shutil.which(f"python{minor}")
    candidates = [found] if found else []
    candidates += [str(p) for p in Path("~/.pyenv/versions").expanduser().glob(f"{minor}*/bin/python3")]
    for candidate in candidates:
        done = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version)"], capture_output=True, check=False
        )
        if done.stdout.startswith(minor.encode()):
            return candidate
    return None
