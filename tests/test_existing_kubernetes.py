"""In what dask-kubernetes runs in its pods: their commands and environment, as processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.places import BEGIN, Place, end, make_place

pytestmark = pytest.mark.slow

OPERATOR = "dask-kubernetes==2026.3.0"

# What KubeCluster(worker_command="dask worker") asks for, and what the operator makes of it.
SPECS = """
import json
from dask_kubernetes.operator.controller import controller
from dask_kubernetes.operator.kubecluster.kubecluster import make_cluster_spec

env = {"ENVSYNC_OVERLAYS": "/scratch/envsync"}
spec = make_cluster_spec("mine", worker_command="dask worker", env=env)["spec"]
more = {"cluster_name": "mine", "annotations": {}, "labels": {}}
pods = [controller.build_scheduler_deployment_spec(pod_spec=spec["scheduler"]["spec"], **more)]
more |= {"namespace": "default", "worker_group_name": "mine-default", "pod_spec": spec["worker"]["spec"]}
pods += [controller.build_worker_deployment_spec(uuid=uuid, **more) for uuid in ("one", "two")]
print(json.dumps([pod["spec"]["template"]["spec"]["containers"][0] for pod in pods]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with make_place(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


@pytest.fixture(scope="module")
def containers(place: Place) -> list[dict[str, Any]]:
    """The containers of a scheduler and two workers, made by dask-kubernetes itself."""
    operator = place.folder / "operator"
    place.install(operator, OPERATOR)
    told = subprocess.run(
        [operator / "bin" / "python", "-c", SPECS], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    made: list[dict[str, Any]] = json.loads(told)
    return made


class Pods:
    """Containers that run as processes: each with a scratch volume of its own, as an emptyDir is."""

    def __init__(self, place: Place, work: Path) -> None:
        self.place = place
        self.work = work
        self.scheduler_file = work / "scheduler.json"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, container: dict[str, Any], *here: str) -> None:
        """Start a container as a kubelet does; what follows its arguments keeps it on this machine."""
        scratch = self.work / name
        scratch.mkdir(parents=True, exist_ok=True)
        given = {one["name"]: str(one["value"]).replace("/scratch", str(scratch)) for one in container["env"]}
        given.pop("DASK_SCHEDULER_ADDRESS", None)  # a name that the cluster's DNS knows
        words = [
            word.replace("$(DASK_WORKER_NAME)", given.get("DASK_WORKER_NAME", ""))
            for word in container["args"]
        ]
        words = ["dask", *words[0].split("-")[1:], *words[1:]]  # Dask of 2026 has no dask-scheduler
        local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", *here]
        with (self.work / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [self.place.other / "bin" / words[0], *words[1:], *local],
                cwd=scratch,
                env={**os.environ, **given, "TMPDIR": str(scratch)},
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return "\n".join(f"== {one.name}\n{one.read_text()}" for one in sorted(self.work.glob("*.log")))

    def replace(self, name: str, container: dict[str, Any], *here: str) -> None:
        """End a pod, and start another in its place, with an empty volume."""
        end(self.running.pop(name))
        (self.work / name).rename(self.work / f"{name}-gone")
        self.start(name, container, *here)


REPAIRED = """
def mine():
    return __import__("mine").VALUE

with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(2, timeout=150)
    known = client.scheduler_info()["workers"].values()
    assert {one["name"] for one in known} == {"mine-default-worker-one", "mine-default-worker-two"}, known
    assert all(one["nanny"] for one in known)
    assert not verify(client, on_mismatch="ignore").ok
    plugin = SyncEnvironment()
    assert client.register_plugin(plugin).ok
    assert everywhere(client, vary) == {"2.0"}, everywhere(client, vary)
    assert everywhere(client, extra) == {"extra"}
    # each pod has its own file system
    overlays = client.run(lambda: __import__("vary").__file__.partition("/overlays/")[0])
    assert len(set(overlays.values())) == 2, overlays
    assert all(one.endswith("/envsync") for one in overlays.values()), overlays
    pathlib.Path("mine.py").write_text("VALUE = 22\\n")
    client.sync_environment()
    assert everywhere(client, mine) == {22}
    print("repaired", flush=True)
    sys.stdin.readline()  # a pod is replaced
    client.wait_for_workers(2, timeout=150)
    told = set(client.gather([client.submit(vary, pure=False) for _ in range(40)]))
    assert told == {"2.0"}, told
    assert everywhere(client, mine) == {22}
    plugin.unregister()
    assert everywhere(client, extra) == {"no"}
    print("given back", flush=True)
"""


def test_pods_are_repaired_kept_so_when_replaced_and_given_back(
    place: Place, containers: list[dict[str, Any]], tmp_path: Path
) -> None:
    scheduler, one, two = containers
    pods = Pods(place, tmp_path / "pods")
    found = ("--scheduler-file", str(pods.scheduler_file))
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text("VALUE = 1\n")
    (work / "script.py").write_text(BEGIN + REPAIRED)
    try:
        pods.start("scheduler", scheduler, "--port", "0", *found)
        pods.start("one", one, *found)
        pods.start("two", two, *found)
        client = subprocess.Popen(
            [place.ours / "bin" / "python", "script.py", str(pods.scheduler_file)],
            cwd=work,
            env=place.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stdout.readline() == "repaired\n", pods.log()
            pods.replace("two", two, *found)
            assert client.communicate("go on\n", timeout=150)[0] == "given back\n", pods.log()
        finally:
            client.kill()
            client.wait(60)
    finally:
        for process in reversed(list(pods.running.values())):
            end(process)
