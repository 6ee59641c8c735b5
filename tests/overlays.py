"""Wheels and blobs for the tests of overlays."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from envsync.plugins.overlay import Overlays


def hash_of(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    wheel_version: str = "1.0",
    record: Mapping[str, str | None] | None = None,
    modes: Mapping[str, int] | None = None,
) -> Path:
    """Write a wheel of any files; `record` replaces or, with None, leaves out lines of its RECORD."""
    info = f"{name}-{version}.dist-info"
    held = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    held.setdefault(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode())
    tag = "Root-Is-Purelib: true\nTag: py3-none-any\n"
    held.setdefault(f"{info}/WHEEL", f"Wheel-Version: {wheel_version}\nGenerator: tests\n{tag}".encode())
    lines: dict[str, str | None] = {
        path: f"{path},{hash_of(data)},{len(data)}" for path, data in held.items() if path != f"{info}/RECORD"
    }
    lines[f"{info}/RECORD"] = f"{info}/RECORD,,"
    lines.update(record or {})
    text = "".join(f"{line}\n" for line in lines.values() if line is not None)
    held.setdefault(f"{info}/RECORD", text.encode())
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in held.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (modes or {}).get(path, 0o100644) << 16
            archive.writestr(entry, data)
    return wheel


def package_of(wheel: Path) -> dict[str, dict[str, Any]]:
    """Return what a state says of a wheel."""
    name, version = wheel.name.split("-")[:2]
    about = {"version": version, "sha256": sha256_of(wheel), "filename": wheel.name}
    return {name.replace("_", "-").lower(): {**about, "size": wheel.stat().st_size}}


def put(overlays: Overlays, *files: Path) -> dict[str, dict[str, Any]]:
    """Put wheels into a host's folder, and return what a state says of them."""
    packages: dict[str, dict[str, Any]] = {}
    for file in files:
        adding = overlays.add(sha256_of(file))
        adding.write(file.read_bytes())
        adding.commit()
        packages.update(package_of(file))
    return packages


def put_tree(
    overlays: Overlays, name: str, files: Mapping[str, str], *, position: str = "front"
) -> dict[str, Any]:
    """Put a source tree's files into a host's folder, and return its manifest."""
    listed = []
    for path, text in sorted(files.items()):
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        adding = overlays.add(sha256)
        adding.write(text.encode())
        adding.commit()
        listed.append([path, sha256, 0o644])
    return {"name": name, "position": position, "kind": "path", "distribution": None, "files": listed}


def run_python(code: str, *arguments: object, **options: Any) -> Any:
    """Run code in a new interpreter, and return what it printed last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def real_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with wheels from the index: pure ones and compiled ones, of several versions."""
    folder = tmp_path_factory.mktemp("real")
    for batch in (
        ["six==1.16.0", "msgpack==1.1.0", "markupsafe==3.0.2", "protobuf==5.29.3", "setuptools==75.8.0"],
        ["six==1.17.0", "msgpack==1.0.8", "markupsafe==2.1.5", "jupyterlab_pygments==0.3.0"],
    ):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", str(folder), *batch], check=True)
    return folder


def real(folder: Path, name: str, version: str) -> Path:
    (found,) = folder.glob(f"{name}-{version}-*.whl")
    return found
