"""Images run: the environment in them is the lock's, for everybody, and others' tools take them."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envsync.elf import read_elf_from
from envsync.images.base import Base, interpreter_for
from envsync.images.build import build
from envsync.images.inspecting import inspect
from envsync.images.layout import Layout
from envsync.images.oci import Platform
from envsync.images.plan import plan
from envsync.indexes import read_settings
from envsync.lock import Lock
from envsync.plugins import scan
from envsync.plugins.compare import compare
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target
from envsync.wheels import record_of
from tests.images import Container, artifact_of, contents, documents, download, tree_of
from tests.lab.bases import TAG, base_layout

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WHEELS = ("numpy==2.2.6", "six==1.17.0", "jupyterlab_pygments==0.3.0", "pygments==2.18.0")
SCAN = Path(scan.__file__).resolve()


@dataclass
class Made:
    """An image in a folder, and a container of it."""

    lock: Lock
    layout: Path
    container: Container


def make(folder: Path, kind: str, target: Target, *wheels: str) -> tuple[Lock, Path]:
    """Build an image on one of the lab's bases; return its lock and its layout. It is tagged ``made``."""
    store, minor = FolderStore(folder / "store"), target.minor
    paths = download(folder / "wheels", *wheels, python=minor, machine=target.machine)
    artifacts = [artifact_of(path, store) for path in paths]
    lock = Lock.of(artifacts, target, records={one.name: record_of(one, store) for one in artifacts})
    base = Base.open(Layout(base_layout(kind)), TAG, Platform.of("linux", target.machine))
    supply = Supply(store, read_settings({}, project=folder))
    interpreter = asyncio.run(interpreter_for(base, target, supply))
    trees = [
        tree_of("proj", {"proj.py": "import six\nVALUE = 'local'\n"}, store),
        tree_of(
            "more",
            {"more.py": "VALUE = 'after'\n", "six.py": "raise SystemExit('shadowed')\n"},
            store,
            "back",
        ),
    ]
    planned = plan(lock, trees, base, interpreter=interpreter)
    build(planned, store, Layout(folder / "layout"), tags=["made"])
    return planned.lock, folder / "layout"


@pytest.fixture(scope="module", params=["python", "bare"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, lab_bases: None
) -> Iterator[Made]:
    """On a base with a Python of its own, and on one that gets this machine's."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        python = "3.11.2" if request.param == "python" else "{}.{}.{}".format(*sys.version_info[:3])
        lock, layout = make(folder, request.param, Target(python=python, libc=("glibc", "2.36")), *WHEELS)
    container = Container(layout, "made", folder / "container")
    yield Made(lock, layout, container)
    container.close()


def test_the_environment_inside_is_the_locks(made: Made) -> None:
    """Every distribution's RECORD digest, Python and libc, by the scan that hosts are looked at with."""
    told = made.container.run("python", "/scan.py", mounts={"/scan.py": SCAN})
    report = json.loads(told)
    wanted = made.lock.report()
    assert compare(wanted, report) == []
    records = {one["name"]: one["record"] for one in report["distributions"]}
    assert records == dict(made.lock.records)
    assert {one["installer"] for one in report["distributions"]} == {"envsync"}
    assert report["interpreter"]["prefix"] == "/opt/envsync/env"
    assert (report["leftovers"], report["unowned"]) == ([], [])


def test_every_file_is_as_recorded(made: Made) -> None:
    """RECORD, read inside: each file is there, of that size and hash."""
    code = (
        "import base64, csv, hashlib, importlib.metadata as m, pathlib\n"
        "count = 0\n"
        "for d in m.distributions():\n"
        "    for path, digest, size in csv.reader(d.read_text('RECORD').splitlines()):\n"
        "        data = pathlib.Path(d.locate_file(path)).read_bytes()\n"
        "        if digest:\n"
        "            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')\n"
        "            assert (digest, size) == ('sha256=' + found, str(len(data))), path\n"
        "            count += 1\n"
        "print(count)\n"
    )
    assert int(made.container.run("python", "-B", "-I", "-c", code)) > 1000


@pytest.mark.parametrize("user", [0, 1000])
def test_anybody_can_use_it(made: Made, user: int) -> None:
    """A compiled package, local code before and after installed packages, a console script."""
    code = "import numpy, proj, more; print(numpy.eye(3).sum(), proj.VALUE, more.VALUE, proj.six.__file__)"
    said = made.container.run("python", "-B", "-c", code, user=user).split()
    assert said[:3] == ["3.0", "local", "after"]
    assert said[3].startswith("/opt/envsync/env/lib/python")
    assert "Pygments version 2.18.0" in made.container.run("pygmentize", "-V", user=user)
    assert made.container.run("/opt/envsync/env/bin/pygmentize", "-L", "filters", user=user)


def test_skopeo_inspects_and_copies_it(made: Made, tmp_path: Path) -> None:
    command = ["skopeo", "inspect", f"oci:{made.layout}:made"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["Labels"]["org.envsync.lock"] == made.lock.digest
    assert (found["Architecture"], found["Os"]) == ("amd64", "linux")
    copy = tmp_path / "copy"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{made.layout}:made", f"oci:{copy}:copied"], check=True)
    assert inspect(Layout(copy), "copied").lock == made.lock
    archive = tmp_path / "made.tar"  # a folder in a tar archive is what others call oci-archive
    subprocess.run(["tar", "-cf", archive, "-C", made.layout, "."], check=True)
    command = ["skopeo", "inspect", f"oci-archive:{archive}:made"]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == found


def test_docker_archives_of_it_are_the_same_layers(made: Made, tmp_path: Path) -> None:
    """What engines load: every layer unpacked by somebody else's gzip, and checked against its diff id."""
    archive = tmp_path / "image.tar"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{made.layout}:made", f"docker-archive:{archive}:a/b:c"], check=True
    )
    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout
    _, config = documents(Layout(made.layout), "made")
    assert all(diff_id.removeprefix("sha256:") in listed for diff_id in config.diff_ids)


def test_for_another_machine(tmp_path: Path, lab_bases: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    target = Target(python="3.11.2", machine="aarch64", libc=("glibc", "2.36"))
    lock, folder = make(tmp_path, "arm64", target, "markupsafe==3.0.2", "six==1.17.0")
    layout = Layout(folder)
    manifest, config = documents(layout, "made")
    assert config.platform == Platform(architecture="arm64")
    ours = contents(layout, manifest)
    libraries = [path for path in ours if path.startswith("opt/") and path.endswith(".so")]
    assert libraries
    for path in libraries:
        facts = read_elf_from(io.BytesIO(ours[path]))
        assert facts is not None
        assert facts.machine == "aarch64", path
    assert ours["opt/envsync/env/bin/python"] == b"/usr/bin/python3.11"
    found = inspect(layout, "made", Platform.of("linux", "aarch64"))
    assert found.lock == lock
    assert compare(lock.report(), found.report()) == []
    shown = subprocess.run(
        ["skopeo", "inspect", f"oci:{folder}:made"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)["Architecture"] == "arm64"
