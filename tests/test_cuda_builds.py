"""Locks for machines with a driver of NVIDIA: the builds that it runs, and what comes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from envsync import cuda
from envsync.cli.snapshot import find_target, target_for
from envsync.cuda_builds import _NO_INDEX, choose_builds
from envsync.errors import NoWheelError, ResolveError, ToolError, UnfitHostError
from envsync.indexes import Index, IndexSettings
from envsync.lock import Lock
from envsync.plugins.compare import compare
from envsync.runner.locking import demand_driver, target_of
from envsync.runner.probing import nodes_of
from envsync.runner.session import Session
from envsync.snapshot import Snapshot
from envsync.target import Target
from envsync.uv_compile import Found, Question
from tests.index_server import IndexServer, write_wheel
from tests.test_resolve import MAC, Bench, local_index, plain_settings, uv, versions

LINUX = "py3-none-manylinux_2_17_x86_64"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    return Bench(tmp_path, plain_settings(tmp_path))


def with_driver(target: Target, driver: str) -> Target:
    return replace(target, accelerators=(f"nvidia {driver}",))


@pytest.mark.parametrize(
    ("name", "version", "needed"),
    [
        ("torch", "2.5.1+cu124", (12, 4)),
        ("torch", "2.5.1+cpu", None),
        ("torch", "2.5.1+rocm6.2", None),
        ("torch-scatter", "2.1.2+pt25cu118", (11, 8)),
        ("flash-attn", "2.7.0+cu124torch2.5", (12, 4)),
        ("nvidia-cuda-runtime-cu12", "12.4.127", (12, 4)),
        ("nvidia-cuda-runtime", "13.0.48", (13, 0)),
        ("nvidia-cudnn-cu12", "9.1.0.70", (12, 0)),
        ("cupy-cuda12x", "13.3.0", (12, 0)),
        ("cupy-cuda111", "9.0.0", (11, 1)),
        ("jax-cuda12-plugin", "0.4.30", (12, 0)),
        ("jax-cuda12-pjrt", "0.4.30", (12, 0)),
        ("cudf-cu12", "24.10.1", (12, 0)),
        ("numpy", "2.1.0", None),
    ],
)
def test_what_packages_need_of_cuda(name: str, version: str, needed: tuple[int, int] | None) -> None:
    assert [need.cuda for need in cuda.needs([(name, version)])] == ([] if needed is None else [needed])


@pytest.mark.parametrize(
    ("driver", "first", "last", "not_in"),
    [
        ("550.54.14", ["cu124", "cu123", "cu122"], "cu80", "cu130"),
        ("535.104.05", ["cu122", "cu121", "cu120", "cu123"], "cu80", "cu130"),
        ("470.57.02", ["cu114", "cu113"], "cu80", "cu120"),
        ("580.65.06", ["cu130"], "cu80", ""),
    ],
)
def test_which_builds_a_driver_runs(driver: str, first: list[str], last: str, not_in: str) -> None:
    builds = cuda.builds_for(driver)
    assert list(builds[: len(first)]) == first
    assert builds[-1] == last
    assert not_in not in builds
    assert cuda.builds_for("300.1") == ()


def test_the_least_drivers() -> None:
    assert [cuda.least_driver(one) for one in ((13, 1), (12, 9), (11, 8), (10, 2))] == [
        "580",
        "525.60.13",
        "450.80.02",
        "440.33",
    ]
    assert cuda.runs("525.60.13", (12, 8))
    assert not cuda.runs("525.60.11", (12, 0))
    assert cuda.runs("400.0", (99, 0)), "what nobody knows yet is not refused"
    (need,) = cuda.unmet("470.57.02", [("torch", "2.5.1+cu124"), ("torch", "2.5.1+cu118")])
    said = cuda.too_old("470.57.02", need)
    assert "torch 2.5.1+cu124" in said
    assert "525.60.13" in said


def test_builds_that_pytorch_has_an_index_of_are_known_to_uv() -> None:
    text = " ".join(uv("pip", "compile", "--help").split())  # its lines are as long as the terminal
    known = text[text.index("--torch-backend <") :].partition("possible values:")[2].partition("]")[0]
    builds = {word.strip() for word in known.split(",")}
    assert {*cuda.builds_for("999"), "auto"} - set(_NO_INDEX) <= builds
    assert not builds & set(_NO_INDEX)


@dataclass(frozen=True)
class PyTorch(Question):
    """PyTorch's own indexes, which are not reached from here: what uv answers of them."""

    has: frozenset[str] = frozenset()

    def pins(self, requirements: Iterable[str], *, wheels_only: bool = False) -> dict[str, Found]:
        (line,) = requirements
        found = {"auto": "cu126"}.get(self.torch_backend, self.torch_backend)
        if found not in self.has:
            raise ToolError("not there", returncode=1)
        assert "===" not in line or line.endswith(f"+{found}")
        return {"torch": Found(name="torch", version=f"2.6.0+{found}", filename="torch.whl")}

    def closure(self, requirements: Iterable[str], **_: Any) -> dict[str, Found]:
        raise ToolError(f"no index has {list(requirements)}", returncode=1)


def test_of_pytorchs_own_indexes_the_best_for_the_driver_is_taken() -> None:
    asked: dict[str, Any] = {"python": "", "version": "3.11", "target": MAC}
    for has, expected in ((["cu118", "cu124", "cu126"], "cu124"), (["cu118", "cu126"], "cu126")):
        question = PyTorch(settings=IndexSettings(), has=frozenset(has), **asked)
        builds = choose_builds({"torch": "2.6.0+cpu"}, "550.54.14", question)
        assert dict(builds.pins) == {"torch": f"2.6.0+{expected}"}
        assert builds.question.torch_backend == expected
    for settings in (
        IndexSettings(no_index=True),
        IndexSettings(indexes=(Index(url="https://mirror.example.org/simple", default=True),)),
    ):
        with pytest.raises(NoWheelError):  # nobody is asked but whom the settings name
            choose_builds({"torch": "2.6.0+cpu"}, "550.54.14", replace(question, settings=settings))


def torch_index(folder: Path) -> Path:
    """Write builds as PyTorch's indexes have them: with the libraries of CUDA, in several versions."""
    runtime = {"cu118": "", "cu121": "12.1.105", "cu124": "12.4.127", "cu128": "12.8.57"}
    for build in ("cpu", *runtime):
        version = runtime.get(build, "")
        needs = [f"nvidia-cuda-runtime-cu12=={version}"] if version else []
        more = ["triton==3.1.0"] if build != "cpu" else []
        write_wheel(folder, "torch", f"2.5.1+{build}", tag=LINUX, requires=["sympy>=1.13", *needs, *more])
        if build != "cu128":
            write_wheel(folder, "torchvision", f"0.20.1+{build}", tag=LINUX, requires=["torch==2.5.1"])
        if version:
            write_wheel(folder, "nvidia-cuda-runtime-cu12", version, tag=LINUX)
    write_wheel(folder, "torch", "2.5.1+rocm6.2", tag=LINUX)  # as the index has that holds all
    write_wheel(folder, "triton", "3.1.0", tag=LINUX)
    write_wheel(folder, "sympy", "1.13.0")
    write_wheel(folder, "sympy", "1.13.1")
    write_wheel(folder, "plain", "1.0")
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return torch_index(tmp_path / "index")


@pytest.fixture
def server(wheels: Path) -> Iterator[IndexServer]:
    with IndexServer(wheels) as running:
        yield running


def installed(bench: Bench, server: IndexServer, *requirements: str, name: str = "venv") -> Snapshot:
    return bench.environment("--default-index", server.url, *requirements, name=name)


def swapped(lock: Lock) -> dict[str, tuple[str, str]]:
    return {one.name: (one.installed, one.locked) for one in lock.substitutions}


CPU = ("torch==2.5.1+cpu", "torchvision==0.20.1+cpu", "sympy==1.13.0", "plain")


@pytest.mark.slow
def test_a_cpu_client_gets_the_builds_of_the_nodes_driver(bench: Bench, server: IndexServer) -> None:
    snapshot, here = installed(bench, server, *CPU), local_index(bench, server)
    before = here.lock(snapshot)
    assert before.substitutions == ()
    lock = here.lock(snapshot, with_driver(snapshot.target, "550.54.14"))
    assert versions(lock) == {
        "torch": "2.5.1+cu124",
        "torchvision": "0.20.1+cu124",
        "nvidia-cuda-runtime-cu12": "12.4.127",
        "triton": "3.1.0",
        "sympy": "1.13.0",
        "plain": "1.0",
    }
    assert swapped(lock) == {
        "torch": ("2.5.1+cpu", "2.5.1+cu124"),
        "torchvision": ("0.20.1+cpu", "0.20.1+cu124"),
    }
    assert {one.reason for one in lock.substitutions} == {"the CUDA 12.4 build for NVIDIA driver 550.54.14"}
    assert any("torch 2.5.1+cu124 is locked in place of 2.5.1+cpu" in note for note in here.hooks.notes)
    assert any("nvidia-cuda-runtime-cu12, triton come with" in note for note in here.hooks.notes)
    assert here.hooks.warnings == []
    assert all(one.url is not None and one.index == server.url for one in lock.artifacts())
    assert "torch" not in lock.records
    assert "plain" in lock.records
    assert Lock.loads(lock.dumps()) == lock
    # the newest that it was made for; and what all packages have: there is no torchvision for 12.8
    for driver, build in (("535.104.05", "cu121"), ("470.57.02", "cu118"), ("570.26", "cu124")):
        locked = versions(here.lock(snapshot, with_driver(snapshot.target, driver)))
        assert (locked["torch"], locked["torchvision"]) == (f"2.5.1+{build}", f"0.20.1+{build}"), driver
    # on another kind of machine all is resolved again, and that too
    old = replace(with_driver(snapshot.target, "550.54.14"), python="3.12.4")
    again = here.lock(snapshot, old)
    assert versions(again) == versions(lock)
    assert swapped(again) == swapped(lock)


def test_where_nothing_has_a_cuda_build_a_driver_changes_nothing(bench: Bench, server: IndexServer) -> None:
    snapshot, here = installed(bench, server, "sympy", "plain"), local_index(bench, server)
    seen = len(server.requests)
    plain = here.lock(snapshot)
    asked = len(server.requests) - seen
    lock = here.lock(snapshot, with_driver(snapshot.target, "550.54.14"))
    assert lock.digest == plain.digest
    assert lock.substitutions == ()
    assert len(server.requests) - seen <= 2 * asked, "no further question"


def test_a_client_with_cuda_is_kept_where_it_runs(bench: Bench, server: IndexServer) -> None:
    snapshot = installed(bench, server, "torch==2.5.1+cu121", "plain")
    here = local_index(bench, server)
    plain = here.lock(snapshot)
    for target in (snapshot.target, with_driver(snapshot.target, "550.54.14")):
        lock = here.lock(snapshot, target)
        assert lock.digest == plain.digest
        assert lock.substitutions == ()
    # where it does not run, another build does, and its libraries go
    lock = here.lock(snapshot, with_driver(snapshot.target, "470.57.02"))
    assert versions(lock) == {"torch": "2.5.1+cu118", "triton": "3.1.0", "sympy": "1.13.1", "plain": "1.0"}
    assert swapped(lock) == {"torch": ("2.5.1+cu121", "2.5.1+cu118")}
    assert [one.name for one in lock.excluded] == ["nvidia-cuda-runtime-cu12"]


def test_a_driver_that_no_cuda_build_is_for(bench: Bench, server: IndexServer) -> None:
    snapshot, here = installed(bench, server, *CPU), local_index(bench, server)
    with pytest.raises(
        NoWheelError, match=r"no CUDA build of torch 2\.5\.1\+cpu, torchvision .* 390\.46 runs"
    ) as caught:
        here.lock(snapshot, with_driver(snapshot.target, "390.46"))
    assert server.url in caught.value.hint
    assert "PyTorch's own" not in caught.value.hint, "these settings have an index in the place of uv's own"
    assert "--allow-substitutes" in caught.value.hint


@pytest.mark.slow
def test_another_version_if_that_is_allowed(bench: Bench, server: IndexServer, wheels: Path) -> None:
    snapshot, here = installed(bench, server, "torch==2.5.1+cpu"), local_index(bench, server)
    for path in wheels.glob("torch-*+cu*"):
        path.unlink()
    for build in ("cu117", "cu102"):
        write_wheel(wheels, "torch", f"1.13.1+{build}", tag=LINUX)
    target = with_driver(snapshot.target, "470.57.02")
    with pytest.raises(NoWheelError):
        here.lock(snapshot, target)
    lock = here.lock(snapshot, target, allow_substitutes=True)
    assert swapped(lock) == {"torch": ("2.5.1+cpu", "1.13.1+cu117")}
    assert any("1.13.1+cu117 is locked in place" in warning for warning in here.hooks.warnings)


@pytest.mark.slow
def test_an_index_of_cuda_builds_beside_others(bench: Bench, tmp_path: Path) -> None:
    """As people configure them: an index for each CUDA, explicit, and a mirror in the place of uv's own."""
    every = torch_index(tmp_path / "every")
    for build in ("cpu", "cu121", "cu124", "rest"):
        (tmp_path / build).mkdir()
    for path in every.iterdir():
        build = path.name.split("+")[1].split("-")[0] if "+" in path.name else "rest"
        if (tmp_path / build).is_dir():
            path.rename(tmp_path / build / path.name)
    with (
        IndexServer(tmp_path / "cpu") as cpu,
        IndexServer(tmp_path / "cu121") as older,
        IndexServer(tmp_path / "cu124") as newer,
        IndexServer(tmp_path / "rest") as rest,
    ):
        snapshot = bench.environment("--default-index", rest.url, "--index", cpu.url, "torch", "plain")
        home = tmp_path / "home"
        home.mkdir()
        (home / "uv.toml").write_text(
            "".join(
                f'[[index]]\nname = "{name}"\nurl = "{one.url}"\n{more}\n'
                for name, one, more in (
                    ("cpu", cpu, "explicit = true"),
                    ("cu121", older, "explicit = true"),
                    ("cu124", newer, "explicit = true"),
                    ("all", rest, "default = true"),
                )
            )
        )
        here = replace(bench, settings=plain_settings(home))
        for driver, index, build in (("550.54.14", newer, "cu124"), ("535.54.03", older, "cu121")):
            lock = here.lock(snapshot, with_driver(snapshot.target, driver))
            found = {one.name: (one.version, one.index) for one in lock.artifacts()}
            assert found["torch"] == (f"2.5.1+{build}", index.url)
            assert found["plain"] == ("1.0", rest.url)


@pytest.mark.slow
def test_the_plain_version_where_it_brings_cuda(bench: Bench, server: IndexServer, wheels: Path) -> None:
    snapshot, here = installed(bench, server, "torch==2.5.1+cpu"), local_index(bench, server)
    for path in wheels.glob("torch-*+cu*"):
        path.unlink()
    needs = ["sympy>=1.13", "nvidia-cuda-runtime-cu12==12.4.127"]
    write_wheel(wheels, "torch", "2.5.1", tag=LINUX, requires=needs)
    lock = here.lock(snapshot, with_driver(snapshot.target, "550.54.14"))
    assert swapped(lock) == {"torch": ("2.5.1+cpu", "2.5.1")}
    with pytest.raises(NoWheelError):
        here.lock(snapshot, with_driver(snapshot.target, "470.57.02"))
    # who has it installed, with libraries that the driver is too old for, gets a build that it runs
    write_wheel(wheels, "torch", "2.5.1+cu118", tag=LINUX)
    snapshot = installed(bench, server, "torch===2.5.1", name="other")
    assert here.lock(snapshot, with_driver(snapshot.target, "550.54.14")).substitutions == ()
    lock = here.lock(snapshot, with_driver(snapshot.target, "470.57.02"))
    assert swapped(lock) == {"torch": ("2.5.1", "2.5.1+cu118")}


def test_a_package_of_cuda_that_has_no_other_build(bench: Bench, server: IndexServer, wheels: Path) -> None:
    write_wheel(wheels, "cupy-cuda12x", "13.3.0")
    snapshot, here = installed(bench, server, "cupy-cuda12x"), local_index(bench, server)
    assert versions(here.lock(snapshot, with_driver(snapshot.target, "525.60.13")))
    with pytest.raises(ResolveError, match=r"470\.57\.02 is too old for cupy-cuda12x 13\.3\.0.*525\.60\.13"):
        here.lock(snapshot, with_driver(snapshot.target, "470.57.02"))


def test_machines_that_have_no_such_driver(bench: Bench, server: IndexServer, wheels: Path) -> None:
    write_wheel(wheels, "torch", "2.5.1+cpu", tag="py3-none-macosx_11_0_arm64", requires=["sympy>=1.13"])
    snapshot, here = installed(bench, server, "torch==2.5.1+cpu", "plain"), local_index(bench, server)
    assert versions(here.lock(snapshot, MAC))["torch"] == "2.5.1+cpu"


@pytest.mark.slow
def test_on_the_clients_own_machine_what_is_installed_is_meant(bench: Bench, server: IndexServer) -> None:
    snapshot, here = installed(bench, server, *CPU), local_index(bench, server)
    driven = replace(snapshot, target=with_driver(snapshot.target, "550.54.14"))
    assert here.lock(driven).substitutions == ()
    assert versions(here.lock(driven, with_driver(snapshot.target, "535.54.03")))["torch"] == "2.5.1+cu121"


def test_a_target_that_is_described_with_its_driver(bench: Bench, server: IndexServer) -> None:
    snapshot = installed(bench, server, "plain")
    described = "x86_64-manylinux_2_28+nvidia-550.54.14"
    target = find_target(
        target_for(None, None, described) or "", snapshot, bench.store, bench.settings, bench.hooks
    )
    assert target.accelerators == ("nvidia 550.54.14",)
    assert (target.libc, target.python) == (("glibc", "2.28"), snapshot.interpreter.version)
    for wrong in (
        "x86_64-manylinux_2_28+amd-6.2",
        "x86_64-manylinux_2_28+nvidia-",
        "x86_64-manylinux_2_28+nvidia",
    ):
        with pytest.raises(click.BadParameter, match="is no target"):
            target_for(None, None, wrong)


def test_nodes_are_described_by_the_words_of_their_system() -> None:
    backend, wait = nodes_of(
        "slurm://me@login.example.org?partition=gpu&gres=gpu:1&time=00:05:00&cores=2&wait=1h&extra=--a&extra=--b"
    )
    request = backend.group.request
    assert (request.queue, request.gres, request.walltime, request.cores) == ("gpu", "gpu:1", 300, 2)
    assert (request.extra, wait) == (("--a", "--b"), 3600)
    assert backend.via is not None
    assert backend.hosts()[-1].name == "me@login.example.org"
    assert nodes_of("sge://")[0].via is None
    assert nodes_of("torque://?arrays=false")[0].system.arrays is False  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="arrays='no' is neither true nor false"):
        nodes_of("torque://?arrays=no")
    for wrong, why in (
        ("slurm://?partiton=gpu", r"'partiton' is no keyword of slurm://: known are account, .*partition"),
        ("sge://?partition=gpu", "'partition' is no keyword of sge://"),
        ("slurm://login?scheduler=job", "'scheduler' is no keyword"),
        ("slurm://?cores=two", "no number"),
        ("slurm://?queue=a&queue=b", "given twice"),
        ("slurm://login/gpu", "and nothing else"),
        ("slurm://?time=soon", "soon"),
    ):
        with pytest.raises(ValueError, match=why):
            nodes_of(wrong)
        with pytest.raises(click.BadParameter, match=why):
            target_for(None, None, wrong)


def facts(driver: str = "", cuda: str = "") -> dict[str, Any]:
    gpus = [{"driver": driver, "cuda": cuda}] if driver else []
    return {"machine": "x86_64", "system": "linux", "libc": ["glibc", "2.36"], "gpus": gpus}


def session_of(found: dict[str, Any]) -> Session:
    return cast(Session, SimpleNamespace(facts=found, host=SimpleNamespace(name="node1")))


def test_a_driver_that_is_too_old_for_a_lock_is_an_error(bench: Bench, server: IndexServer) -> None:
    snapshot = installed(bench, server, "torch==2.5.1+cu124")
    lock = local_index(bench, server).lock(snapshot)
    for driver, newest in (("", ""), ("525.60.13", "12.0"), ("550.54.14", "12.4"), ("470.57.02", "12.4")):
        demand_driver(session_of(facts(driver, newest)), lock)  # the last has a compatibility package
    with pytest.raises(UnfitHostError) as caught:
        demand_driver(session_of(facts("470.57.02", "11.4")), lock)
    said = str(caught.value)
    for part in ("node1", "470.57.02", "torch 2.5.1+cu124", "CUDA 12.4", "525.60.13", "+nvidia-470.57.02"):
        assert part in said


def test_a_driver_is_part_of_a_target_where_the_lock_differs(bench: Bench, server: IndexServer) -> None:
    there = session_of(facts("550.54.14"))
    plain = replace(installed(bench, server, "plain"), target=Target(python="3.11.7", libc=("glibc", "2.36")))
    assert target_of(there, plain) is plain.target
    older = replace(plain, target=replace(plain.target, libc=("glibc", "2.40")))
    assert target_of(there, older) == plain.target
    torch = replace(installed(bench, server, "torch==2.5.1+cpu", name="other"), target=plain.target)
    assert target_of(there, torch) == with_driver(plain.target, "550.54.14")
    assert target_of(session_of(facts()), torch) is torch.target
    own = replace(torch, target=with_driver(torch.target, "550.54.14"))
    assert target_of(there, own) is own.target


@pytest.mark.slow
def test_a_client_and_the_builds_of_its_nodes_are_no_mismatch(bench: Bench, server: IndexServer) -> None:
    here = local_index(bench, server)
    for number, (build, driver) in enumerate((("cpu", "550.54.14"), ("cu121", "470.57.02"))):
        snapshot = installed(bench, server, f"torch==2.5.1+{build}", name=f"venv{number}")
        lock = here.lock(snapshot, with_driver(snapshot.target, driver))
        own, wanted = snapshot.report(), lock.report()
        assert {one.severity for one in compare(own, wanted)} == {"note"}
        # a worker that has the client's builds in place of those is one all the same
        assert "torch" in {one.subject for one in compare(wanted, own) if one.severity == "error"}
