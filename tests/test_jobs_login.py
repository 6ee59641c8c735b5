"""From a laptop that reaches only a login host's ssh, to workers in jobs of real batch systems."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forwarded import ASK, ASK_GOOGLE, LENDING, READER
from tests.lab.batch import BatchLab
from tests.nvml import Card, driver_library
from tests.places import Place, make_place

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SCRIPT = (
    f"READER = {READER!r}\n"
    + LENDING
    + ASK
    + ASK_GOOGLE
    + """
import os, socket, sys, time
from envsync import SyncedCluster
import envsync.runner as runner

name, user, config, driver = sys.argv[1:]
asked = {"memory": "500 MB"} if name == "HTCondor" else {"scheduler": "login"} if name == "OAR" else {}
if name == "SGE":  # two jobs on one node: nobody there says which GPU is whose
    asked = {"gpus": 1, "constraint": "hostname=node1", "prologue": [f"export LD_LIBRARY_PATH={driver}"]}
backend = getattr(runner, name)(
    time="10:00", cores=1, poll=1, via=runner.SSH([f"{user}@head"], config=(config,)), **asked
)

def where():
    import vary
    return socket.gethostname(), sys.prefix, vary.__version__

def pinned():
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["JOB_ID"] + "." + os.environ["SGE_TASK_ID"]

with SyncedCluster(backend, n_workers=2, credentials=["aws", "google"], impersonate=READER) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(2, timeout=150)
    found = list(client.run(where).values())
    assert {version for *_, version in found} == {"2.0"}
    assert all("/home/.cache/envsync/envs/" in prefix for _, prefix, _ in found), found
    assert cluster.verify(on_mismatch="ignore").ok
    if name == "SGE":
        pins = sorted(client.run(pinned).values())
        assert {node for node, *_ in found} == {"node1"}
        assert [device for device, _ in pins] == ["GPU-0", "GPU-1"], pins
        assert len({job for _, job in pins}) == 2
        assert all(one["resources"] == {"GPU": 1} for one in client.scheduler_info()["workers"].values())
    # each job's own agent gives them out, and in the scheduler's place the one there
    answers = [*client.run(ask).values(), client.run_on_scheduler(ask)]
    answers = [(code, given["Token"], without) for code, given, without in answers]
    assert answers == [(200, "c4n4ry-2", 403)] * 3
    assert {*client.run(ask_google).values(), client.run_on_scheduler(ask_google)} == {"c4n4ry-3"}
    assert sum(client.gather(client.map(abs, range(100)))) == 4950
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")  # through the login host
    end = time.monotonic() + 90
    rows = lambda: [(row.state, row.workers) for row in cluster.jobs if row.name != "scheduler"]
    while rows() != [("running", 1)] * 2:
        assert time.monotonic() < end, cluster.jobs
        time.sleep(0.2)
    assert len(cluster.jobs) == (2 if name == "OAR" else 3)  # the scheduler's, where it has one
    cluster.scale(1)
    end = time.monotonic() + 90
    while [row.state for row in cluster.jobs if row.name != "scheduler"].count("running") > 1:
        assert time.monotonic() < end, cluster.jobs
        time.sleep(0.2)
"""
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with make_place(tmp_path_factory.mktemp("login"), other=None) as made:
        yield made


@pytest.fixture(params=["SGE", "OAR", "HTCondor"])
def site(request: pytest.FixtureRequest) -> tuple[str, BatchLab]:
    fixture = {"HTCondor": "condor"}.get(request.param, request.param.lower())
    return request.param, request.getfixturevalue(fixture)


def test_workers_are_equal_and_all_ends(site: tuple[str, BatchLab], place: Place, tmp_path: Path) -> None:
    name, lab = site
    driver = driver_library(tmp_path / "driver", [Card(uuid=f"GPU-{number}") for number in range(4)]).parent
    place.run(tmp_path, SCRIPT, name, lab.user, str(lab.config), str(driver))
    until = time.monotonic() + 60
    while (lab.jobs() or lab.processes()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not lab.jobs()
    assert not lab.processes()
    for secret in ("key.pem", "aws-token"):
        assert not list((lab.home / ".cache/envsync/runs").glob(f"*/*/{secret}"))
    left = [path for path in (lab.home / ".cache/envsync/runs").glob("**/*") if path.is_file()]
    assert left
    assert not [path for path in left if b"c4n4ry" in path.read_bytes()]
    assert "c4n4ry" not in lab.log()
