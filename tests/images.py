"""What tests of images share: locks of wheels, bases of this machine's own files, containers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from envsync.artifacts import Artifact
from envsync.images.base import Base
from envsync.images.layout import Layout
from envsync.images.oci import Config, Manifest, Platform, small
from envsync.lock import Lock
from envsync.plugins.scan import libc, normalize
from envsync.store import FolderStore
from envsync.target import Target
from envsync.trees import Manifest as Tree
from envsync.wheels import record_of
from tests.lab.bases import TAG, put_image

PLATFORM = Platform.of("linux", platform.machine())


def here() -> Target:
    """Return what this machine is."""
    return Target.current()


def artifact_of(wheel: Path, store: FolderStore) -> Artifact:
    """Put a wheel into a store, and return what a lock says of it."""
    name, version = wheel.name.split("-")[:2]
    digest = store.put(wheel)
    return Artifact(
        name=normalize(name),
        version=version,
        filename=wheel.name,
        sha256=digest,
        size=wheel.stat().st_size,
        path=f"envsync-wheels/{wheel.name}",
    )


def lock_of(wheels: Iterable[Path], store: FolderStore, target: Target | None = None) -> Lock:
    """Lock exactly these wheels, which go into a store."""
    artifacts = [artifact_of(wheel, store) for wheel in wheels]
    records = {one.name: record_of(one, store) for one in artifacts}
    return Lock.of(artifacts, target or here(), records=records)


def tree_of(name: str, files: Mapping[str, str], store: FolderStore, position: str = "front") -> Tree:
    """Put a source tree's files into a store, and return its manifest."""
    listed = [(path, store.put(text.encode()), 0o644) for path, text in sorted(files.items())]
    return Tree(
        name=name, position=position, kind="path", files=tuple(listed), left_out=((".env", "secret"),)
    )


def download(folder: Path, *requirements: str, python: str = "3.11", machine: str = "x86_64") -> list[Path]:
    """Fetch wheels for a Python and a machine, which need not be this one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{tag}_{machine}"]
    subprocess.run([*command, "--python-version", python, "-d", str(folder), *requirements], check=True)
    return sorted(folder.glob("*.whl"))


def tar_of(files: Mapping[str, bytes | Path | str]) -> bytes:
    """Return an uncompressed layer: contents, files to copy, or (text) where a link leads."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for path, what in files.items():
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            if isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
                tar.addfile(info)
                continue
            data = what.read_bytes() if isinstance(what, Path) else what
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def files_of_here() -> dict[str, bytes | Path | str]:
    """Return what a base needs, of this machine: its C library, and this Python in /usr/local."""
    minor = "{}.{}".format(*sys.version_info[:2])
    found: dict[str, bytes | Path | str] = {
        "usr/lib/libstdc++.so.6": b"",
        "usr/lib/libgcc_s.so.1": b"",
        "lib": "usr/lib",
        f"usr/local/lib/python{minor}/asyncio/__init__.py": b"",
        f"usr/local/bin/python{minor}": Path(os.path.realpath(sys.executable)),
        "usr/local/bin/python3": f"python{minor}",
    }
    with open("/proc/self/maps", encoding="utf-8") as maps:
        loaded = {line.split()[-1] for line in maps if "/" in line}
    (found["usr/lib/libc.so.6"],) = [Path(one) for one in loaded if Path(one).name in ("libc.so.6",)]
    shared = Path(str(sysconfig.get_config_var("LIBDIR")), f"libpython{minor}.so.1.0")
    if shared.is_file():
        found[f"usr/local/lib/{shared.name}"] = shared
    return found


def base_of_here(folder: Path, **run: object) -> Base:
    """Make a base of this machine's files, and look at it."""
    layout = Layout(folder)
    put_image(layout, [[tar_of(files_of_here())]], platform=PLATFORM, run=run)
    return Base.open(layout, TAG, PLATFORM)


def documents(layout: Layout, tag: str) -> tuple[Manifest, Config]:
    """Return manifest and configuration of an image."""
    found = layout.manifest(tag)
    assert found is not None
    manifest = Manifest.from_bytes(found[2])
    return manifest, Config.from_bytes(small(layout, manifest.config, "configuration"))


def contents(layout: Layout, manifest: Manifest) -> dict[str, bytes]:
    """Return the files of all layers, unpacked by the standard library."""
    found = {}
    for layer in manifest.layers:
        data = b"".join(layout.open(layer.digest))
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for member in tar:
                if member.isreg():
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name] = file.read()
                elif member.issym():
                    found[member.name] = member.linkname.encode()
    return found


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def libc_here() -> tuple[str, str]:
    found = libc()
    assert found is not None
    return found[0], found[1]


class Container:
    """An image unpacked by umoci and run by runc, as the OCI runtime specification has it.

    Parameters
    ----------
    layout : Path
        A folder with the image.
    tag : str
        Its tag.
    folder : Path
        Where it is unpacked to.
    """

    def __init__(self, layout: Path, tag: str, folder: Path) -> None:
        self.bundle = folder / "bundle"
        self.state = folder / "state"
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["umoci", "unpack", "--image", f"{layout}:{tag}", str(self.bundle)],
            check=True,
            capture_output=True,
        )
        self._settings: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())

    def run(self, *arguments: str, user: int = 0, mounts: Mapping[str, Path] | None = None) -> str:
        """Run a command in it, and return what it wrote."""
        settings = json.loads(json.dumps(self._settings))
        settings["process"].update(terminal=False, rlimits=[], args=list(arguments))
        settings["process"]["user"] = {"uid": user, "gid": user}
        for place, source in (mounts or {}).items():
            mount = {"destination": place, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
            settings["mounts"].append(mount)
        (self.bundle / "config.json").write_text(json.dumps(settings))
        self._count += 1
        name = f"envsync-{os.getpid()}-{self._count}"
        done = subprocess.run(
            [
                "runc",
                "--root",
                self.state,
                "run",
                "--bundle",
                self.bundle,
                name,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        shutil.rmtree(self.bundle, ignore_errors=True)
