"""Small environments are made without uv, and are what uv would have made."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envsync.agent.archive import build
from envsync.agent.building import Build
from envsync.agent.layout import Cache
from envsync.agent.realise import realise
from envsync.agent.running import Runner
from envsync.artifacts import Artifact
from envsync.errors import RealiseError, UnfitHostError
from envsync.runner.hosts.local import Local
from envsync.target import Target
from tests.elsewhere import Elsewhere
from tests.index_server import write_wheel
from tests.makes import Makes, litter, says, tiny_disk
from tests.overlays import make_wheel

__all__ = ["tiny_disk"]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _without_uv(makes: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envsync.runner.realising._FEW", 20_000_000)


def artifact_of(makes: Makes, wheel: Path) -> Artifact:
    name, version = wheel.name.split("-")[:2]
    digest = makes.store.put(wheel)
    return Artifact(
        name=name.replace("_", "-"),
        version=version,
        filename=wheel.name,
        sha256=digest,
        path=f"envsync-wheels/{wheel.name}",
    )


async def test_it_is_what_uv_makes(
    makes: Makes, real_wheels: Path, uv_asked_for: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = {wheel.name.partition("-")[0]: wheel for wheel in sorted(real_wheels.glob("*.whl"))}
    lock = makes.lock(*(artifact_of(makes, wheel) for wheel in wheels.values()))
    host = Elsewhere({"UV_CACHE_DIR": None})
    made = await (await makes.session(host)).realise(lock)
    assert made.created
    assert uv_asked_for == []
    assert len([command for command in host.commands if " receive " in command]) == 1
    found = await (await makes.session()).realise(lock)
    assert not found.created
    assert found.report == made.report
    assert litter(makes.cache) == []
    assert {path.name for path in Path(made.prefix).iterdir()} >= {"bin", "lib", "pyvenv.cfg", "envsync.json"}
    assert not (Path(made.prefix) / ".unpacked").exists()
    assert says(made, "import sys; print(sys.prefix)") == made.prefix

    makes.cache = makes.cache.with_name("by-uv")
    monkeypatch.setattr("envsync.runner.realising._FEW", -1)
    by_uv = await (await makes.session()).realise(lock)
    assert len(uv_asked_for) == 1

    def about(report: dict[str, object]) -> str:
        text = json.dumps(report, sort_keys=True)
        return text.replace(made.prefix, "").replace(by_uv.prefix, "").replace('"envsync"', '"uv"')

    assert about(made.report) == about(by_uv.report)


async def test_scripts_run_under_the_name_that_it_gets(makes: Makes, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "many/__init__.py": "def main(): print('ran')\n",
        "many-1.0.dist-info/entry_points.txt": "[console_scripts]\nmany = many:main\n",
        "many-1.0.data/scripts/other": b"#!python\nimport many, sys\nprint(many.__file__, sys.prefix)\n",
    }
    made = await (await makes.session()).realise(
        makes.lock(artifact_of(makes, make_wheel(tmp_path, "many", "1.0", files)))
    )
    binary = Path(made.prefix) / "bin"
    assert subprocess.check_output([binary / "many"], text=True) == "ran\n"
    said = subprocess.check_output([binary / "other"], text=True).split()
    assert said[0].startswith(made.prefix)
    assert said[1] == made.prefix


async def test_the_same_file_of_two_is_the_same_ones_everywhere(makes: Makes, tmp_path: Path) -> None:
    wheels = [
        make_wheel(tmp_path, name, "1.0", {"shared.py": f"WHOSE = {name!r}\n", f"{name}.py": "#" * size})
        for name, size in (("zulu", 9), ("alpha", 90000))  # the smaller is unpacked sooner
    ]
    for order in (wheels, wheels[::-1]):
        makes.cache = makes.cache.with_name(f"{order[0].name}-first")
        made = await (await makes.session()).realise(makes.lock(*(artifact_of(makes, one) for one in order)))
        assert says(made, "import shared; print(shared.WHOSE)") == "alpha"


async def test_uv_that_is_there_is_used(makes: Makes, uv_asked_for: list[Target]) -> None:
    (makes.cache / "bin").mkdir(parents=True)
    (makes.cache / "bin" / "uv-of-another-time").write_bytes(b"")
    await (await makes.session()).realise(makes.lock(makes.artifact("alpha")))
    assert len(uv_asked_for) == 1


async def test_this_machines_own_uv_is_used_here(makes: Makes) -> None:
    made = await (await makes.session(Local())).realise(makes.lock(makes.artifact("alpha")))
    assert {one["installer"] for one in made.report["distributions"]} == {"uv"}


async def test_many_are_left_to_uv(
    makes: Makes, uv_asked_for: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = makes.artifact("alpha")
    with makes.store.open(artifact.sha256) as file:
        size = len(file.read())
    monkeypatch.setattr("envsync.runner.realising._FEW", size - 1)
    await (await makes.session()).realise(makes.lock(artifact))
    assert len(uv_asked_for) == 1


async def test_a_wheel_for_another_machine_is_named(makes: Makes) -> None:
    wheel = write_wheel(makes.wheels, "alien", "1.0", tag="cp311-cp311-win_amd64")
    with pytest.raises(RealiseError, match="alien"):
        await (await makes.session()).realise(makes.lock(artifact_of(makes, wheel)))
    assert litter(makes.cache) == []


@pytest.mark.parametrize("how", ["cut", "lies"])
async def test_a_damaged_wheel_is_named_and_comes_anew(makes: Makes, how: str) -> None:
    artifact = makes.artifact("alpha")
    lock = makes.lock(makes.artifact("beta"), artifact)
    session = await makes.session()
    await session.send([artifact.sha256])
    blob = makes.cache / "blobs" / artifact.sha256[:2] / artifact.sha256
    data = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(data[: len(data) // 2] if how == "cut" else data.replace(b"VALUE", b"VALVE"))
    with pytest.raises(RealiseError, match="alpha") as caught:
        await session.realise(lock)
    assert "Try again" in str(caught.value)
    assert litter(makes.cache) == []
    made = await session.realise(lock)
    assert says(made, "import alpha, beta; print(alpha.VALUE, beta.VALUE)") == "alpha beta"


async def test_a_disk_that_is_full_or_takes_no_programs(
    makes: Makes, tiny_disk: Callable[..., Path], tmp_path: Path
) -> None:
    large: dict[str, str | bytes] = {"large.py": "", "zeros": b"\0" * (8 << 20)}  # packed it is small
    lock = makes.lock(artifact_of(makes, make_wheel(tmp_path, "large", "1.0", large)))
    for options, match in (((4,), "full"), ((60, "noexec"), "noexec")):
        makes.cache = tiny_disk(*options)
        with pytest.raises(UnfitHostError, match=match) as caught:
            await (await makes.session()).realise(lock)
        assert "ENVSYNC_CACHE" in str(caught.value)
        assert not (makes.cache / "envs").exists() or litter(makes.cache) == []


class Lacking(Runner):
    """Runs an interpreter that has no `venv`."""

    def run(self, argv: list[str], *rest: Any, **more: Any) -> subprocess.CompletedProcess[bytes]:
        if "lay" in argv:
            said = b"Traceback (most recent call last):\nModuleNotFoundError: No module named 'venv'\n"
            return subprocess.CompletedProcess(argv, 1, b"", said)
        return super().run(argv, *rest, **more)


def test_a_python_that_cannot_do_it_has_uv_asked_for(
    makes: Makes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.pyz").write_bytes(build()[0])
    monkeypatch.setattr("sys.argv", [str(tmp_path / "agent.pyz")])
    artifact = makes.artifact("alpha")
    cache = Cache(tmp_path / "there")
    told: list[dict[str, Any]] = []
    cache.blob(artifact.sha256).parent.mkdir(parents=True)
    with makes.store.open(artifact.sha256) as file:
        cache.blob(artifact.sha256).write_bytes(file.read())
    request = {
        "digest": "0" * 64,
        "python": platform.python_version(),
        "artifacts": [{key: getattr(artifact, key) for key in ("name", "version", "filename", "sha256")}],
        "few": True,
        "hints": [sys.executable],
    }
    answer = realise(cache, Lacking(), told.append, request)
    assert answer == {"lacking": [], "uv": True, "python": False}
    assert "No module named 'venv'" in told[-1]["text"]
    assert realise(cache, Runner(), told.append, request)["created"]
    # with uv it is not tried
    assert Build(cache, Runner(), told.append, {**request, "uv": {"path": "uv"}}).few is False
