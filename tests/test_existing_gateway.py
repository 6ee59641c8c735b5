"""In clusters of a dask-gateway: the client reaches the scheduler through the gateway's TLS proxy alone."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import REQUIREMENTS, Gateway, gateway, make_server
from tests.index_server import write_wheel
from tests.places import BEGIN, Place, make_place

LARGE = 40 << 20  # bytes


def write_large_wheel(folder: Path) -> str:
    """Write a wheel with much in it that nothing compresses; the digest of that."""
    content = os.urandom(LARGE)
    digest = hashlib.sha256(content)
    small = write_wheel(folder / "small", "large", "1.0")
    record = base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(folder / small.name, "w") as archive:
        for one in old.infolist():
            data = old.read(one)
            if one.filename.endswith("/RECORD"):
                data = f"large/content.bin,sha256={record},{LARGE}\n".encode() + data
            archive.writestr(one, data)
        archive.writestr("large/content.bin", content)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("gateway")
    return folder, write_large_wheel(folder / "wheels")


@pytest.fixture(scope="module")
def place(large: tuple[Path, str]) -> Iterator[Place]:
    client = [one for one in REQUIREMENTS if one.startswith("dask-gateway=")]
    with make_place(large[0], ours=[*client, "large==1.0"], other=client) as made:
        yield made


@pytest.fixture(scope="module")
def server(place: Place) -> Path:
    return make_server(place, "vary==1.0", "same==1.0", "proj==1.0")


@pytest.fixture(scope="module")
def local(place: Place, server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose schedulers and workers are processes in the other environment."""
    with gateway(server, tmp_path_factory.mktemp("local"), tools=place.other) as made:
        yield made


def run(place: Place, gate: Gateway, work: Path, script: str, *arguments: str) -> str:
    """Run a script in our environment; the gateway's logs are told if it fails."""
    try:
        return place.run(work, BEGIN + START + script, gate.address, *arguments)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{gate.log()}") from None


START = """
import contextlib, os, time
from dask_gateway import Gateway

@contextlib.contextmanager
def started(gateway, workers):
    with gateway.new_cluster() as cluster:
        cluster.scale(workers)
        with cluster.get_client() as client:
            client.wait_for_workers(workers, timeout=150)
            assert client.scheduler.address.startswith("gateway://"), client.scheduler.address
            yield cluster, client

def ran():
    from distributed import get_worker
    return get_worker().name, __import__("vary").__version__

def mine():
    return __import__("mine").VALUE
"""

REPAIRED = """
with Gateway(sys.argv[1]) as gateway, started(gateway, 2) as (cluster, client):
    # it is told through the proxy how the cluster differs, of the cluster's own object too
    for target in (client, cluster):
        found = verify(target, on_mismatch="ignore")
        assert len(found.processes) == 3, found
        assert {"vary", "extra", "proj", "large"} <= {one.subject for one in found.differences}, found
    before = set(client.run(path).values()), client.run_on_scheduler(path)
    # workers have nannies: what is imported already comes by a restart
    assert all(one["nanny"] for one in client.scheduler_info()["workers"].values())
    first, second = client.run(os.getpid).items()
    assert client.run(vary, workers=[first[0]]) == {first[0]: "1.0"}
    plugin = SyncEnvironment()
    found = client.register_plugin(plugin)
    assert found.ok, found
    client.wait_for_workers(2, timeout=150)
    pids = set(client.run(os.getpid).values())
    assert first[1] not in pids and second[1] in pids, (first, second, pids)
    assert everywhere(client, vary) == {"2.0"}, everywhere(client, vary)
    assert everywhere(client, extra) == {"extra"}
    assert everywhere(client, lambda: __import__("proj").VALUE) == {"mine, edited"}
    assert everywhere(client, mine) == {1}
    # a worker that the gateway starts later runs no task before it has all that
    cluster.scale(3)
    told, end = set(), time.monotonic() + 90
    while len({name for name, _ in told}) < 3:
        assert time.monotonic() < end, told
        told |= set(client.gather([client.submit(ran, pure=False) for _ in range(30)]))
    assert {version for _, version in told} == {"2.0"}, told
    # an edit
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert everywhere(client, mine) == {22}, everywhere(client, mine)
    # and given back
    plugin.unregister()
    client.wait_for_workers(3, timeout=150)
    assert (set(client.run(path).values()), client.run_on_scheduler(path)) == before
    assert everywhere(client, extra) == {"no"}
    assert client.run_on_scheduler(lambda: __import__("vary").__version__) == "1.0"
    print("repaired")
"""


@pytest.mark.slow
def test_repaired_kept_so_and_given_back_through_the_proxy(
    place: Place, local: Gateway, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    assert "repaired" in run(place, local, work, REPAIRED)


PASSED = """
def content():
    import hashlib, large
    file = pathlib.Path(large.__file__).with_name("content.bin")
    return hashlib.sha256(file.read_bytes()).hexdigest()

with Gateway(sys.argv[1]) as gateway, started(gateway, 1) as (cluster, client):
    client.register_plugin(SyncEnvironment())
    assert everywhere(client, content) == {sys.argv[2]}
    # another client of this cluster, which wants something else
    pathlib.Path("elsewhere").mkdir()
    pathlib.Path("elsewhere/other.py").write_text("VALUE = 1\\n")
    with cluster.get_client(set_as_default=False) as two:
        try:
            two.register_plugin(SyncEnvironment(cwd="elsewhere"))
        except ClusterError as error:
            assert "is in place in this cluster" in str(error), error
        else:
            raise AssertionError("two environments at once")
        two.register_plugin(SyncEnvironment(cwd="elsewhere", take_over=True))
        assert everywhere(two, lambda: __import__("other").VALUE) == {1}
    print("passed")
"""


@pytest.mark.slow
def test_a_large_wheel_passes_and_a_second_environment_does_not(
    place: Place, local: Gateway, large: tuple[Path, str], tmp_path: Path
) -> None:
    assert "passed" in run(place, local, tmp_path / "work", PASSED, large[1])


LEFT = """
with Gateway(sys.argv[1]) as gateway:
    if len(sys.argv) > 2:
        gateway.stop_cluster(sys.argv[2])
    else:
        with gateway.connect(gateway.submit()) as cluster:
            cluster.scale(1)
            with cluster.get_client() as client:
                client.wait_for_workers(1, timeout=150)
            print(cluster.scheduler_address)
"""


@pytest.mark.slow
def test_from_the_shell_with_the_certificates_that_the_gateway_gives(
    place: Place, local: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    address = run(place, local, work, LEFT).strip()
    try:
        unknown = place.envsync(work, "check", address)
        assert unknown.returncode == 2, unknown.stdout + unknown.stderr
        assert "Set Dask's gateway.address" in unknown.stderr
        monkeypatch.setenv("DASK_GATEWAY__ADDRESS", local.address)
        other = place.envsync(work, "check", f"{address}0")
        assert other.returncode == 2, other.stdout
        assert "did not give the certificates" in other.stderr
        assert place.envsync(work, "check", address).returncode == 1
        done = place.envsync(work, "sync", address)
        assert done.returncode == 0, done.stdout + done.stderr + local.log()
        checked = place.envsync(work, "check", address)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        undone = place.envsync(work, "sync", "--undo", address)
        assert "its own environment again" in undone.stdout, undone.stdout + undone.stderr
    finally:
        run(place, local, work, LEFT, address.rpartition("/")[2])


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("gateway://127.0.0.1:1/one", (), "dask-gateway is not installed here"),
        ("gateway://127.0.0.1:1/one", ("--tls-ca-file", __file__), "a gateway gives the certificates itself"),
    ],
)
def test_what_the_shell_cannot_reach_is_said(
    tmp_path: Path, address: str, options: tuple[str, ...], words: str
) -> None:
    command = [str(Path(sys.executable).parent / "envsync"), "check", *options, address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr


IN_PROCESS = """
def facts():
    import sys
    paths = [os.environ.get(name) for name in ("PATH", "PYTHONPATH", "ENVSYNC_TREES")]
    ours = [one for one in sys.path if "dask-scratch-space" not in one]
    return os.getpid(), ours, paths, "_envsync_fit" in sys.__dict__

def alone(client):
    return client.run_on_scheduler(facts)

with Gateway(sys.argv[1]) as gateway:
    with started(gateway, 2) as (cluster, client):
        before = alone(client)
        assert before[0] == int(sys.argv[2]) and before[3] is False, before
        assert set(client.run(os.getpid).values()) == {before[0]}  # all in the gateway's own process
        assert not any(one["nanny"] for one in client.scheduler_info()["workers"].values())
        assert not verify(client, on_mismatch="ignore").ok
        plugin = SyncEnvironment()
        assert client.register_plugin(plugin).ok
        assert everywhere(client, vary) == {"2.0"}
        assert everywhere(client, extra) == {"extra"}
        # the process has one path: another cluster in it can neither have an environment, nor break this one
        pathlib.Path("other.py").write_text("VALUE = 1\\n")
        with started(gateway, 1) as (_, neighbour):
            for take_over in (False, True):
                try:
                    neighbour.register_plugin(SyncEnvironment(take_over=take_over))
                except ClusterError as error:
                    assert f"in another cluster of the same process (pid {before[0]})" in str(error), error
                else:
                    raise AssertionError("two environments in one process")
        assert everywhere(client, vary) == {"2.0"}
        assert everywhere(client, extra) == {"extra"}
        cluster.scale(3)
        client.wait_for_workers(3, timeout=150)
        assert {client.submit(vary, pure=False).result() for _ in range(12)} == {"2.0"}
        pathlib.Path("mine.py").write_text("VALUE = 22\\n")
        client.sync_environment()
        assert everywhere(client, mine) == {22}
    # the cluster has gone without giving anything back: the gateway is as it was
    with started(gateway, 1) as (cluster, client):
        assert alone(client) == before, (alone(client), before)
        assert everywhere(client, extra) == {"no"}
        assert everywhere(client, vary) == {"1.0"}
        # what the gateway's process has imported cannot be exchanged, and there is no nanny
        try:
            client.register_plugin(SyncEnvironment())
        except MismatchError as error:
            assert "nothing was changed" in str(error) and "it has imported vary" in str(error), error
        else:
            raise AssertionError("what is imported was pretended to be exchanged")
        assert alone(client) == before, (alone(client), before)
    print("as it was")
"""


@pytest.mark.slow
def test_in_the_gateways_own_process_it_is_as_it_was_afterwards(
    place: Place, server: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    with gateway(server, tmp_path / "gateway", backend="inprocess") as gate:
        assert "as it was" in run(place, gate, work, IN_PROCESS, str(gate.pid))
        gate.wait()  # it answers still, from the same process
        told = [line for line in gate.log().splitlines() if "DaskGateway]" in line]
        assert told
        assert not [line for line in told if "Error while" in line or "Exception while" in line], gate.log()
