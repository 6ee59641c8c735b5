"""In a cluster that distributed's own SSHCluster starts: hosts of their own, another environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index_server import write_wheel
from tests.lab.machines import Lab, Machine
from tests.places import BEGIN, Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SIZE = 20_000_000  # bytes, much more than all else that is said


@pytest.fixture(scope="module")
def place(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two environments; `bulk`, of some megabytes, is in ours only."""
    folder = tmp_path_factory.mktemp("existing")
    write_wheel(folder / "wheels", "bulk", "1.0", payload=os.urandom(SIZE))
    with make_place(folder, ours=["bulk==1.0"]) as made, pytest.MonkeyPatch.context() as patch:
        # distributed leaves ~/.ssh/config to asyncssh, and gives its own configuration to all processes
        patch.setenv("UV_CACHE_DIR", os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache/uv"))
        patch.setenv("HOME", str(lab.home))
        patch.setenv("DASK_TEMPORARY_DIRECTORY", str(folder / "scratch"))
        yield made


@pytest.fixture(scope="module")
def hosts(lab: Lab, place: Place) -> Iterator[list[Machine]]:
    """Machines that see the environments that were made, and write to disks of their own."""
    machines = [lab.host("here", name=name) for name in ("boss", "one", "two", "late")]
    yield machines
    for each in machines:
        each.kill()


STORY = (
    BEGIN
    + """
import os, socket, subprocess, time
from distributed import SSHCluster

python, config, boss, one, two, late = sys.argv[1:]

def mine():
    try:
        return __import__("mine").VALUE
    except ImportError:
        return "no"

def bulk():
    import importlib.resources
    return len((importlib.resources.files("bulk") / "payload.bin").read_bytes())

def where():
    time.sleep(0.05)
    return socket.gethostname(), vary(), mine()

with (
    SSHCluster(
        [boss, one, two], remote_python=python, worker_options={"nthreads": 1, "n_workers": 2},
        scheduler_options={"port": 0, "dashboard_address": ":0"},
    ) as cluster,
    Client(cluster) as client,
):
    client.wait_for_workers(4, timeout=150)
    assert set(client.run(socket.gethostname).values()) == {one, two}
    found = verify(client, on_mismatch="ignore")
    assert {"vary", "extra", "bulk"} <= {each.subject for each in found.differences}, found
    before = client.run(path), client.run_on_scheduler(path)

    plugin = SyncEnvironment()
    assert client.register_plugin(plugin).ok
    assert everywhere(client, vary) == {"2.0"}
    assert everywhere(client, extra) == {"extra"}
    assert everywhere(client, bulk) == {SIZE}
    assert everywhere(client, lambda: __import__("proj").VALUE) == {"mine, edited"}
    assert everywhere(client, mine) == {1}
    assert verify(client, on_mismatch="ignore").ok

    pids = client.run(os.getpid)
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert everywhere(client, mine) == {22}
    assert client.run(os.getpid) == pids

    # one that somebody starts later, on a host where nothing was yet, runs nothing before it is equal
    command = f"{python} -m distributed.cli.dask_worker {client.scheduler.address} --no-nanny --nthreads 1"
    with open("late.log", "wb") as log:
        started = subprocess.Popen(["ssh", "-F", config, late, command], stdin=log, stdout=log, stderr=log)
    try:
        ran = set()
        while late not in {host for host, *_ in ran}:
            assert started.poll() is None
            ran |= set(client.gather(client.map(lambda _: where(), range(20), pure=False)))
        assert {what[1:] for what in ran} == {("2.0", 22)}, ran
        assert verify(client, on_mismatch="ignore").ok

        plugin.unregister()
        assert everywhere(client, vary) == {"1.0"}
        assert everywhere(client, extra) == everywhere(client, mine) == {"no"}
        assert everywhere(client, lambda: __import__("proj").VALUE) == {"released"}
        assert set(before[0].values()) <= set(client.run(path).values())
        assert client.run_on_scheduler(path) == before[1]
        assert not verify(client, on_mismatch="ignore").ok
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:  # how it ends is nothing of ours
            started.kill()
print("repaired")
""".replace("SIZE", str(SIZE))
)


def test_hosts_are_repaired_synced_and_given_back(
    lab: Lab, place: Place, hosts: list[Machine], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    before = [host.stats() for host in hosts]
    names = [host.name for host in hosts]
    said = place.run(work, STORY, str(place.other / "bin" / "python"), str(lab.config), *names)
    assert "repaired" in said
    boss, *workers = [
        {way: host.stats()[way] - count for way, count in was.items()}
        for host, was in zip(hosts, before, strict=True)
    ]
    # the client sends it once, and to each host it goes once, whatever number of workers it has
    assert SIZE < boss["received"] < 1.5 * SIZE
    assert 3 * SIZE < boss["sent"] < 3.5 * SIZE
    for each in workers:
        assert SIZE < each["received"] < 1.5 * SIZE
