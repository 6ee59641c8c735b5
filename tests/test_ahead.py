"""What is made ready while machines boot, and what is told when they are something else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from envsync import snapshot as snapshots
from envsync.cli import cli
from envsync.errors import CloudError, EnvsyncError, NoWheelError, ToolError, UnfitHostError
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.runner import EC2, SyncedCluster, ahead
from envsync.runner.ahead import facts_of, target_there, while_booting
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.provider import Expected, Provider
from envsync.runner.filling import Filling
from envsync.runner.locking import Locks, demand_driver, target_for, target_of
from envsync.runner.records import local_records
from envsync.runner.session import Session
from envsync.snapshot import Snapshot
from envsync.target import Target
from tests.cloud_fake import FakeProvider
from tests.index_server import IndexServer, write_wheel
from tests.lab.ec2_api import EC2Api
from tests.test_cuda_builds import installed, torch_index
from tests.test_resolve import Bench, local_index, plain_settings, versions

UV = "0" * 64
CODE = "1" * 64


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def api() -> Iterator[EC2Api]:
    with EC2Api() as api, api.used():
        yield api


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine_type", "image", "machine", "libc", "gpus", "driver", "disk"),
    [
        ("m7i.large", "ami-0000000000000de12", "x86_64", "2.36", 0, "", 0),
        ("m7g.large", "ami-0000000000000de1a", "aarch64", "2.36", 0, "", 0),
        ("g5.xlarge", "ami-0000000000000d1a2", "x86_64", "2.35", 1, "595.91.07", 100),
        ("g5.12xlarge", "ami-0000000000000d1a2", "x86_64", "2.35", 4, "595.91.07", 100),
        ("g5g.xlarge", "ami-0000000000000d1a3", "aarch64", "2.35", 1, "580.105.08", 100),
    ],
)
def test_a_type_tells_its_image_and_what_a_machine_will_be(
    api: EC2Api, machine_type: str, image: str, machine: str, libc: str, gpus: int, driver: str, disk: int
) -> None:
    found = EC2Provider(["eu-west-1"]).expected("eu-west-1", machine_type)
    assert (found.image, found.machine, found.libc) == (image, machine, ("glibc", libc))
    assert (found.gpus, found.driver, found.disk) == (gpus, driver, disk)


@pytest.mark.slow
def test_an_image_that_is_named_tells_only_what_its_name_does(api: EC2Api) -> None:
    named = EC2Provider(["eu-west-1"], image="ami-0000000000000ub24").expected("eu-west-1", "g5.xlarge")
    assert (named.libc, named.gpus, named.driver, named.disk) == (("glibc", "2.39"), 1, "", 0)
    assert facts_of(named) is None, "which driver it has is not known"
    with pytest.raises(CloudError, match="there is no image"):
        EC2Provider(["eu-west-1"], image="nothing-*").expected("eu-west-1", "m7i.large")


@pytest.mark.slow
async def test_a_target_of_machines_that_are_not_there_yet(api: EC2Api) -> None:
    found = await target_there("ec2://g5.xlarge?region=eu-west-1", python="3.11.7", implementation="cpython")
    assert found == Target(
        python="3.11.7", machine="x86_64", libc=("glibc", "2.35"), accelerators=("nvidia 595.91.07",)
    )
    assert api.left() == {}
    url = "ec2://g5.xlarge?region=eu-west-1&image=ami-0000000000000ub24"
    with pytest.raises(CloudError, match="does not tell") as told:
        await target_there(url, python="3.11.7", implementation="cpython")
    assert "+nvidia-" in told.value.hint


@pytest.mark.parametrize("wrong", ["ec2://", "ec2://g5.xlarge?zone=a", "ec2://g5.xlarge/x"])
def test_what_names_no_machines_is_refused(wrong: str) -> None:
    done = CliRunner().invoke(cli, ["snapshot", "--for", wrong])
    assert done.exit_code == 2
    assert "ec2://g5.xlarge?region=eu-west-1" in done.output


class Promised(EC2):
    """Machines of which the cloud tells this much."""

    def __init__(self, told: Expected | None) -> None:
        super().__init__("m7i.large")
        self.told = told

    async def expected(self) -> Expected | None:
        return self.told


DEBIAN = Expected(image="ami-1", name="debian-12", machine="x86_64", libc=("glibc", "2.36"), python="3.11")


@pytest.fixture
def making(small_lock: Path, monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """Have a lock at once for whatever is asked; the targets that were asked for are listed."""
    made: list[Target] = []
    taken = snapshots.capture()

    def lock_for(_: Any, target: Target, **more: Any) -> Lock:
        made.append(target)
        return Lock.read(small_lock)

    async def collect(*_: Any, **more: Any) -> None:
        await asyncio.sleep(0)

    async def uv_binary(*_: Any, **more: Any) -> str:
        return UV

    monkeypatch.setattr(ahead, "lock_for", lock_for)
    monkeypatch.setattr(ahead, "compile_here", lambda store: CODE)
    monkeypatch.setattr("envsync.collect.collect", collect)
    monkeypatch.setattr("envsync.collect.uv_binary", uv_binary)
    monkeypatch.setattr("envsync.snapshot.capture", lambda *a, **k: taken)
    return made


async def until(true: Callable[[], object]) -> str:
    while not true():
        await asyncio.sleep(0.01)
    return "up"


async def never(target: Target) -> Lock:
    raise EnvsyncError(f"it is made a second time, for {target}")


async def test_the_lock_is_there_when_the_machine_is(making: list[Target]) -> None:
    locks, heard = Locks(), Heard()
    assert await while_booting(until(lambda: making), Promised(DEBIAN), locks) == "up"
    assert locks.snapshot is not None
    facts = {"system": "Linux", "machine": "x86_64", "libc": ["glibc", "2.36"], "gpus": []}
    target = target_for(facts, locks.snapshot)
    locks.confirm(target, "i-1", heard)
    assert await locks.of(target, never)
    assert len(making) == 1
    assert heard.texts == []


async def test_a_machine_that_is_something_else_is_locked_for_anew_and_that_is_said(
    making: list[Target],
) -> None:
    locks, heard = Locks(), Heard()
    await while_booting(until(lambda: making), Promised(DEBIAN), locks)
    assert locks.snapshot is not None
    facts = {"system": "Linux", "machine": "aarch64", "libc": ["glibc", "2.41"], "gpus": []}
    target = target_for(facts, locks.snapshot)
    locks.confirm(target, "i-1", heard)
    locks.confirm(target, "i-2", heard)
    (said,) = heard.texts
    assert "aarch64" in said
    assert "locked anew" in said


@pytest.mark.slow
async def test_a_client_without_gpus_gets_the_builds_of_a_driver_that_is_told_and_then_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def uv_binary(*_: Any, **more: Any) -> str:
        return UV

    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("envsync.collect.uv_binary", uv_binary)
    with IndexServer(torch_index(tmp_path / "index")) as server:
        bench = local_index(Bench(tmp_path, plain_settings(tmp_path)), server)
        taken = installed(bench, server, "torch==2.5.1+cpu", "plain")
        monkeypatch.setattr("envsync.snapshot.capture", lambda *a, **k: taken)
        monkeypatch.setattr("envsync.indexes.read_settings", lambda *a, **k: bench.settings)
        locks, heard = Locks(), Heard()
        told = replace(DEBIAN, gpus=2, driver="550.54.14")
        await while_booting(until(locks.ahead), Promised(told), locks)
        lock = locks.ahead()
        assert lock is not None
        assert versions(lock)["torch"] == "2.5.1+cu124"

        def probed(driver: str, newest: str) -> Session:
            found = {"machine": "x86_64", "system": "linux", "libc": ["glibc", "2.36"]}
            gpus = [{"driver": driver, "cuda": newest}] * 2
            return cast(
                Session, SimpleNamespace(facts={**found, "gpus": gpus}, host=SimpleNamespace(name="i-1"))
            )

        there = probed("550.54.14", "12.4")
        target = target_of(there, taken)
        locks.confirm(target, "i-1", heard)
        assert await locks.of(target, never) is lock
        demand_driver(there, lock)
        assert heard.texts == []

        # the image has an older driver than was told: those builds would not run there
        there = probed("470.57.02", "11.4")
        locks.expected, target = target, target_of(there, taken)
        locks.confirm(target, "i-1", heard)
        assert "470.57.02" in heard.texts[0]
        assert "locked anew" in heard.texts[0]
        with pytest.raises(UnfitHostError, match="torch 2"):
            demand_driver(there, lock)

        async def anew(target: Target) -> Lock:
            return bench.lock(taken, target)

        lock = await locks.of(target, anew)
        assert versions(lock)["torch"] == "2.5.1+cu118"
        demand_driver(there, lock)


async def test_a_cloud_that_tells_nothing_and_a_boot_that_is_faster_are_no_trouble(
    making: list[Target],
) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    locks = Locks()
    await while_booting(asyncio.sleep(0.05), Promised(None), locks)
    await while_booting(asyncio.sleep(0), Promised(DEBIAN), locks)
    with pytest.raises(ZeroDivisionError):
        await while_booting(fails(), Promised(DEBIAN), locks)
    assert making == []


async def test_what_may_go_well_later_is_left_for_later(
    making: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: Any, target: Target, **more: Any) -> Lock:
        making.append(target)
        raise ToolError("the index does not answer", returncode=2)

    monkeypatch.setattr(ahead, "lock_for", unreachable)
    locks = Locks()
    assert await while_booting(until(lambda: making), Promised(DEBIAN), locks) == "up"


class Booting(Promised):
    """Machines of another kind, which go on booting."""

    def __init__(self) -> None:
        super().__init__(replace(DEBIAN, machine="aarch64"))
        self.type = "small"
        self.cloud = FakeProvider()

    def provider(self) -> Provider:
        return self.cloud


@pytest.mark.slow
async def test_an_environment_that_cannot_be_locked_ends_the_start_and_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    wheel = write_wheel(tmp_path / "wheels", "compiled", "1.0", tag="py3-none-linux_x86_64")
    taken = Bench(tmp_path, plain_settings(tmp_path)).environment(str(wheel))
    backend = Booting()

    def capture(*_: Any, **__: Any) -> Snapshot:
        until = time.monotonic() + 60
        while len(backend.cloud.machines) < 2:  # it is found out when there are machines to end
            assert time.monotonic() < until
            time.sleep(0.01)
        return taken

    monkeypatch.setattr("envsync.snapshot.capture", capture)
    with pytest.raises(NoWheelError, match=r"compiled 1\.0.*aarch64") as told:
        await SyncedCluster(backend, n_workers=2, asynchronous=True)
    assert {one.state for one in backend.cloud.machines.values()} == {"ended"}
    assert (len(backend.cloud.machines), backend.cloud.shared, backend.machines) == (2, {}, ())
    (record,) = local_records().ended()
    assert record.how == f"its start failed: {str(told.value).splitlines()[0]}"
    assert all(one.ended is not None for one in record.bill.hired)


class Noted(Filling):
    """Knows what it was asked to put."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.stopped = False

    def put(self, digests: Collection[str]) -> None:
        self.asked |= set(digests)

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
@pytest.mark.parametrize("most", [0, 20_000_000], ids=["many", "few"])
async def test_what_machines_will_lack_is_put_into_the_store_meanwhile(
    making: list[Target], small_lock: Path, given: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envsync.runner.realising._FEW", most)
    filling, lock = Noted(), Lock.read(small_lock)
    wanted = {CODE, *(one.sha256 for one in lock.artifacts()), *(() if most else [UV])}
    # an image that nobody knows is enough where the lock is there
    told = Promised(None if given else replace(DEBIAN, python=lock.target.minor))
    booting = until(lambda: filling.asked >= wanted and not filling.stopped)
    await while_booting(booting, told, Locks(), lock=lock if given else None, filling=filling)
    assert filling.asked == wanted
    assert filling.stopped
    assert len(making) == (not given)
