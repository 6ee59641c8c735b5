"""Clusters whose processes run from an image of ours, in containers that podman runs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync.errors import (
    ClusterError,
    ImageError,
    MismatchError,
    RegistryLoginError,
    UnfitHostError,
)
from envsync.hooks import Hooks
from envsync.images.layout import Layout
from envsync.images.oci import Platform
from envsync.images.places import ImagePlace
from envsync.indexes import read_settings
from envsync.lock import Lock
from envsync.plugins import scan
from envsync.plugins.compare import NOTE, compare
from envsync.runner import SSH, Backend, Cloud, SyncedCluster
from envsync.runner.cloud.provider import Machine as Rented
from envsync.runner.cloud.provider import Provider
from envsync.runner.containers import Container, contained, image_of
from envsync.runner.hosts import SSHOptions, parse_host
from envsync.runner.hosts.base import Host
from envsync.runner.imaging import ImageOptions, push_image
from envsync.runner.session import Session
from envsync.snapshot import capture
from envsync.store import default_store
from envsync.supply import Supply
from envsync.trees import pack
from tests.cloud_fake import FakeProvider
from tests.elsewhere import Elsewhere
from tests.forwarded import ASK_GOOGLE, GOOGLE_TOKEN, asking, lend, lend_both, lend_google
from tests.images import tar_of
from tests.lab.bases import TAG, base_layout, put_image
from tests.lab.docker import DockerEngine
from tests.lab.fixtures import demand
from tests.lab.install import PODMAN
from tests.lab.machines import HERE, Lab, Machine
from tests.lab.podman import Podman
from tests.lab.registry import DockerRegistry
from tests.small import equal_but_for_the_client, processes_in, wait_until_none

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
SCAN = Path(scan.__file__).resolve()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
SAID = f"-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@a\n-----END SSH HOST KEY KEYS-----\n"


@dataclass
class Made:
    """An image of the small lock and of a folder with code."""

    code: Path
    layout: Path
    name: str
    digest: str
    lock: Lock

    @property
    def env(self) -> str:
        return f"image:{self.name}@{self.digest}"


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """podman for this process and its children, with storage of this module's own."""
    demand(PODMAN)
    one = Podman()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in one.environment.items():
            patch.setenv(name, value)
        yield one
    one.close()


@pytest.fixture(scope="module")
def made(
    small_lock: Path,
    podman: Podman,
    lab_bases: None,
    docker_registry: DockerRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """On a base of Debian, with this machine's Python; in a folder, and in a registry here."""
    folder = tmp_path_factory.mktemp("image")
    settings = read_settings({}, project=folder)
    options = ImageOptions(base=f"oci:{base_layout('bare')}:{TAG}")
    code, small = folder / "analyses", Lock.read(small_lock)
    code.mkdir()
    (code / "analysis.py").write_text("ANSWER = 1\n")
    snapshot = capture(cwd=str(code))
    (tree,) = [one for one in snapshot.source_trees if one.root == str(code)]
    trees = (pack(tree, default_store()).reference(),)
    lock = Lock.of(small.artifacts(), small.target, records=small.records, trees=trees)
    for place in (f"oci:{folder / 'layout'}:made", f"{docker_registry.host}/team/analysis:made"):
        pushed = asyncio.run(
            push_image(ImagePlace.parse(place), snapshot, options, lock=lock, settings=settings)
        )
    return Made(
        code, folder / "layout", f"{docker_registry.host}/team/analysis", pushed.built.digest, pushed.lock
    )


@pytest.fixture
def keywords(made: Made) -> dict[str, Any]:
    return {
        "env": made.env,
        "engine": "podman",
        "n_workers": 1,
        "threads_per_worker": 1,
        "dashboard_address": ":0",
    }


def test_a_cluster_here(
    keywords: dict[str, Any], made: Made, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listening(Hooks):
        def step(self, where: str, what: str) -> None:
            said.append(what)

        def warning(self, where: str, text: str) -> None:
            said.append(text)

    assert podman("images", "--quiet") == ""
    (made.code / "analysis.py").write_text("ANSWER = 2\n")
    keywords |= {
        "env": f"image:{made.name}:made",
        "n_workers": 2,
        "hooks": Listening(),
        "cwd": str(made.code),
        "credentials": "forward",
    }
    lent = lend(monkeypatch)
    with SyncedCluster(**keywords) as cluster, Client(cluster) as client:
        assert [what for what in said if what.startswith("pulling ")] == [
            f"pulling {made.name}@{made.digest} with podman"
        ]
        assert "local code is not as it is in the image: analyses; push an image of it" in said
        assert client.submit(lambda: __import__("analysis").ANSWER).result() == 1
        names = podman.containers()
        assert len(names) == 3
        assert all(name.startswith("envsync-") for name in names)
        where = client.run(lambda: (sys.prefix, os.path.exists("/run/.containerenv")))
        assert set(where.values()) == {("/opt/envsync/env", True)}
        assert client.run_on_scheduler(lambda: sys.prefix) == "/opt/envsync/env"
        assert client.submit(sum, [1, 2]).result() == 3
        assert [*client.run(asking()).values()] == [(200, lent.to_dict(), 403)] * 2
        verification = cluster.verify(on_mismatch="ignore")
        assert equal_but_for_the_client(verification)
        assert verification.summary().startswith("1 scheduler, 2 workers and 1 client")
        assert cluster.prepared[0].lock == made.lock
        assert set(cluster.get_logs()) >= {"Scheduler", *cluster.scheduler_info["workers"]}
        client.run(lambda: sys.stderr.write("a word of the worker\n"))
        until(lambda: any("a word of the worker" in line for line in tails(cluster)))
        with pytest.raises(ClusterError, match="in its image"):
            cluster.sync()
        cluster.scale(1)
        podman.wait(lambda names: len(names) == 2, 15)
    assert podman.containers() == []
    wait_until_none(Path(os.environ["ENVSYNC_CACHE"]), 50)


def test_a_killed_client_leaves_no_container(keywords: dict[str, Any], podman: Podman) -> None:
    with started(keywords) as client:
        podman.wait(lambda names: len(names) == 2, 60)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        podman.wait_until_none(50)
    wait_until_none(Path(os.environ["ENVSYNC_CACHE"]), 50)


def test_a_killed_agent_leaves_no_container(keywords: dict[str, Any], podman: Podman) -> None:
    with started(keywords) as client:
        podman.wait(lambda names: len(names) == 2, 60)
        (agent,) = agents()
        os.kill(agent, signal.SIGKILL)
        podman.wait_until_none(50)
        client.kill()


def test_a_killed_container_is_reported(
    keywords: dict[str, Any], podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SyncedCluster(**keywords, **lend_google(monkeypatch)) as cluster:
        with Client(
            cluster
        ) as client:  # whose the container's connection is the kernel tells the host's agent
            assert [*client.run(asking(ASK_GOOGLE)).values()] == [GOOGLE_TOKEN]
        (worker,) = [name for name in podman.containers() if "worker" in name]
        podman("kill", worker)
        until(lambda: not cluster.workers)
        assert podman.wait(lambda names: len(names) == 1, 10)[0].startswith("envsync-scheduler")
    assert podman.containers() == []


def test_what_differs_does_not_start(
    keywords: dict[str, Any],
    made: Made,
    podman: Podman,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "toolz-0.0.1.dist-info").mkdir()
    (tmp_path / "toolz-0.0.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: toolz\nVersion: 0.0.1\n"
    )
    kept = Container.command

    def command(self: Container, *arguments: Any, read: Any, env: Any, **more: Any) -> list[str]:
        env = {**env, "PYTHONPATH": f"{tmp_path}:/opt/envsync/trees/{made.lock.trees[0].digest}"}
        return kept(self, *arguments, read=(*read, str(tmp_path)), env=env, **more)

    monkeypatch.setattr(Container, "command", command)
    with pytest.raises(MismatchError, match="not the wanted one") as caught:
        SyncedCluster(**keywords)
    [found] = [one for one in caught.value.differences if one.severity == "error"]
    assert (found.subject, found.right) == ("toolz", "0.0.1")
    assert podman.containers() == []


@pytest.fixture(scope="module")
def hosts(made: Made, lab: Lab) -> Iterator[dict[Machine, Podman]]:
    """Two, with the image brought there by other means; the client has no podman's storage in common."""
    machines = [lab.host(HERE) for _ in range(2)]
    try:
        engines = {machine: Podman(machine) for machine in machines}
        for machine in machines:
            machine.exec(
                *("skopeo", "copy", "--quiet", f"oci:{made.layout}:made"),
                "containers-storage:registry.example.org/team/analysis:x",
            )
        yield engines
    finally:
        for machine in machines:
            machine.kill()


class Rent(Cloud):
    """A cloud whose machines are the lab's hosts: they have booted, and have a container engine."""

    def __init__(self, machines: Collection[Machine], lab: Lab) -> None:
        super().__init__("small", cache="/mnt/cache")
        self.fake = FakeProvider()
        self.fake.consoles = {f"m-{number}": SAID for number, _ in enumerate(machines, 1)}
        self.there = {f"m-{number}": one.name for number, one in enumerate(machines, 1)}
        self.ssh = SSHOptions(config=(lab.config,), identities=(lab.key,))
        for machine in machines:
            machine.exec("sh", "-c", "mkdir -p /run/envsync && echo 1000 > /run/envsync/lease")

    def provider(self) -> Provider:
        return self.fake

    def host(self, machine: Rented) -> Host:
        return parse_host(self.there[machine.id], self.ssh)


@pytest.mark.parametrize("rented", [False, True], ids=["ssh", "rented"])
def test_two_hosts(made: Made, lab: Lab, hosts: dict[Machine, Podman], rented: bool) -> None:
    """Over SSH: those that are named, and those that are rented."""
    backend: Backend = Rent(hosts, lab)
    if not rented:
        backend = SSH([one.name for one in hosts], config=lab.config, identities=lab.key, cache="/mnt/cache")
    name = f"registry.example.org/team/analysis@{made.digest}"
    with (
        SyncedCluster(
            backend, env=f"image:{name}", n_workers=2, threads_per_worker=1, hooks=Hooks()
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=150)
        if not rented:
            assert cluster.scheduler_address.startswith(f"tls://{next(iter(hosts)).address}:")
        where = client.run(lambda: (os.uname().nodename, sys.prefix))
        assert set(where.values()) == {(one.name, "/opt/envsync/env") for one in hosts}
        assert sorted(len(engine.containers()) for engine in hosts.values()) == [1, 2]
        assert equal_but_for_the_client(cluster.verify(on_mismatch="ignore"))
        assert sum(client.gather(client.map(lambda x: x + 1, range(10)))) == 55
    for engine in hosts.values():
        assert engine.containers() == []


def test_docker(
    made: Made, docker_engine: DockerEngine, keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with an engine whose containers are a daemon's; and it is found without being named."""

    def containers() -> list[str]:
        return docker_engine.docker("ps", "--all", "--quiet").stdout.split()

    for name in ("PATH", "DOCKER_HOST", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, docker_engine.environment[name])
    keywords.pop("engine")
    lent, both = lend_both(monkeypatch)
    with SyncedCluster(**keywords, **both) as cluster, Client(cluster) as client:
        assert len(containers()) == 2
        assert client.submit(asking()).result() == (200, lent.to_dict(), 403)
        assert client.submit(asking(ASK_GOOGLE)).result() == GOOGLE_TOKEN
        assert "c4n4ry" not in docker_engine.docker("inspect", *containers()).stdout
        assert cluster.prepared[0].container is not None
        assert cluster.prepared[0].container.engine == "/usr/bin/docker"
        assert client.submit(lambda: sys.prefix).result() == "/opt/envsync/env"
        assert equal_but_for_the_client(cluster.verify(on_mismatch="ignore"))
    assert containers() == []
    with started(keywords) as process:
        assert len(containers()) == 2
        process.kill()
        process.wait()
        until(lambda: not containers())
    with started(keywords):
        (agent,) = agents()
        os.kill(agent, signal.SIGKILL)
        until(lambda: not containers())


def test_engines_run_the_environment_of_the_lock(
    made: Made, podman: Podman, docker_engine: DockerEngine
) -> None:
    """As anybody runs it, in Docker and in podman; in runc: test_images_run."""
    image = f"{made.name}@{made.digest}"
    docker_engine.docker("pull", "-q", image)
    podman("pull", "-q", "--tls-verify=false", image)
    for run in (
        docker_engine.run,
        lambda image, *command, options: podman("run", "--rm", *options, image, *command),
    ):
        told = run(image, "python", "-B", "/scan.py", options=("-v", f"{SCAN}:/scan.py:ro"))
        report = json.loads(told)
        assert {one["name"]: one["record"] for one in report["distributions"]} == dict(made.lock.records)
        assert [one for one in compare(made.lock.report(), report) if one.severity != NOTE] == []
        assert report["interpreter"]["prefix"] == "/opt/envsync/env"


def test_envsync_run(made: Made, podman: Podman) -> None:
    code = "from distributed import Client; import sys; print(Client().submit(lambda: sys.prefix).result())"
    options = ["--env", made.env, "--engine", "podman", "-n", "1", "--threads-per-worker", "1"]
    envsync = Path(sys.executable).with_name("envsync")
    done = subprocess.run(
        [envsync, "run", *options, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "/opt/envsync/env\n"
    assert podman.containers() == []
    for more in (["--env", "pylock.toml"], ["--engine", "docker"], [*options, "--lock", "pylock.toml"]):
        refused = subprocess.run([envsync, "run", *more, "true"], capture_output=True, check=False)
        assert refused.returncode == 2


# -- what goes wrong


async def look(environment: dict[str, str | None], env: str, engine: str | None = "podman") -> dict[str, Any]:
    """Have an image on a host that has another environment than this client."""
    supply = Supply(default_store(), read_settings({}, project=Path("/")), capture())
    async with await Session.open(Elsewhere(environment), supply=supply) as session:
        found = await contained(session, image_of(env, engine), Hooks())
        return found.environment.report


def put(registry: DockerRegistry, folder: Path, name: str, platform: Platform, **labels: str) -> str:
    """Put an image into the registry, and return its name with its digest."""
    layer = tar_of({"hello": b"hello"})
    made = put_image(Layout(folder / name), [[layer]], platform=platform, run={"Labels": labels})
    target = f"{registry.host}/{name}"
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--dest-tls-verify=false"),
            *(f"oci:{folder / name}:{TAG}", f"docker://{target}:x"),
        ],
        check=True,
    )
    return f"image:{target}@{made.digest}"


async def test_images_that_are_not_ours(made: Made, docker_registry: DockerRegistry, tmp_path: Path) -> None:
    here = Platform.of("linux", os.uname().machine)
    other = Platform(architecture="riscv64")
    with pytest.raises(ImageError, match=r"has no label org\.envsync\.lock"):
        await look({}, put(docker_registry, tmp_path, "others", here))
    with pytest.raises(UnfitHostError, match="is for linux/riscv64, and this host is linux/"):
        await look({}, put(docker_registry, tmp_path, "foreign", other, **{"org.envsync.lock": "0" * 64}))
    with pytest.raises(ImageError, match="does not run with podman"):
        await look({}, put(docker_registry, tmp_path, "empty", here, **{"org.envsync.lock": "0" * 64}))
    with pytest.raises(ImageError, match=r"podman cannot pull .*: .*manifest unknown"):
        await look({}, f"image:{made.name}@sha256:{'0' * 64}")
    with pytest.raises(ImageError, match=r"there is no image .*:nothing"):
        image_of(f"image:{made.name}:nothing")
    with pytest.raises(ImageError, match="hosts take images from a registry"):
        image_of("image:oci:images:made".removeprefix("image:"))


async def test_engines_that_cannot_be_used(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UnfitHostError, match="no container engine can be used: podman cannot be used: "):
        await look({"CONTAINERS_CONF": "/dev/null/nothing", "HOME": str(tmp_path)}, made.env)
    with pytest.raises(UnfitHostError, match="no container engine can be used: docker "):
        await look({"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}, made.env, "docker")
    with pytest.raises(ValueError, match="'podman' or 'docker', not 'lxc'"):
        image_of(made.env, "lxc")


async def test_a_login_goes_along_where_it_is_needed(
    made: Made,
    docker_registry: DockerRegistry,
    podman: Podman,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    podman("rmi", "--all", "--force")
    password = "hunter2-canary"
    with DockerRegistry(tmp_path / "r", login=("ada", password), store=docker_registry.store) as closed:
        env = f"image:{closed.host}/team/analysis@{made.digest}"
        there = {"REGISTRY_AUTH_FILE": None, "HOME": str(tmp_path), "DOCKER_CONFIG": None}
        with pytest.raises(RegistryLoginError, match="podman cannot pull"):
            await look(there, env)
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        for secret in ("wrong-" + password, password):
            auth = base64.b64encode(f"ada:{secret}".encode()).decode()
            (tmp_path / "auth.json").write_text(json.dumps({"auths": {closed.host: {"auth": auth}}}))
            if secret != password:
                with pytest.raises(RegistryLoginError) as caught:
                    await look(there, env)
                assert password not in str(caught.value)
            else:
                report = await look(there, env)
                assert report["interpreter"]["prefix"] == "/opt/envsync/env"
            runs = Path(os.environ["ENVSYNC_CACHE"], "runs")
            assert not [*runs.glob("*/*/config.json")]


# -- inner


_SCRIPT = """
import json, sys, time
from envsync import SyncedCluster
if __name__ == "__main__":
    cluster = SyncedCluster(**json.loads(sys.argv[1]))
    print("up", flush=True)
    time.sleep(600)
"""


class started:  # noqa: N801 - read as a phrase
    """A cluster in a process of its own."""

    def __init__(self, keywords: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, json.dumps(keywords)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"
        return self.process

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


def agents() -> list[int]:
    found = processes_in(Path(os.environ["ENVSYNC_CACHE"]))
    return [pid for pid, command in found.items() if " serve " in command]


def tails(cluster: SyncedCluster) -> Iterator[str]:
    for worker in cluster.workers.values():
        yield from worker.remote.tail()


def until(fits: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not fits() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert fits()
