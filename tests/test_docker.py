"""Images that a Docker engine builds: from our Dockerfiles, with the environment of the lock in them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from envsync.images.context import TEMPLATES, default_base, dockerfile, template
from envsync.images.docker import Engine
from envsync.images.reference import Reference
from envsync.lock import Lock
from envsync.plugins import scan
from envsync.plugins.compare import NOTE, compare
from envsync.snapshot import capture
from envsync.store import FolderStore
from envsync.target import Target
from envsync.trees import pack
from envsync.wheels import record_of
from tests.command import Run
from tests.images import artifact_of, download, here
from tests.lab.bases import TAG, base_layout
from tests.lab.docker import DockerEngine
from tests.lab.registry import Authority, DockerRegistry
from tests.ports import free_port

BIN = Path(sys.executable).parent
CANARY = "hunter2-canary"
WHEELS = ("markupsafe==3.0.2", "pygments==2.18.0", "six==1.17.0")
SCAN = Path(scan.__file__).resolve()
MINOR = "{}.{}".format(*sys.version_info[:2])


# Dockerfiles as texts


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_mounts_is_the_same_but_for_them(name: str) -> None:
    text = template(name)
    assert text.count("--mount=") == 1
    plain = dockerfile(text, {}, mounts=False)
    assert "--mount=" not in plain.split("\nFROM", 1)[1]
    assert plain.replace("RUN sh", "RUN --mount=type=cache,target=/var/cache/envsync sh") == text
    assert "# syntax=" not in text
    assert "<<" not in text


def test_arguments_are_filled_in_and_others_left_alone() -> None:
    text = "ARG BASE=x\nFROM ${BASE}\nARG TREES=\nARG MINE=1\nRUN echo ARG BASE=\n"
    filled = dockerfile(text, {"BASE": "a.example.org:5000/b:1", "TREES": "aa bb", "LOCK": "cc"})
    assert filled == (
        'ARG BASE=a.example.org:5000/b:1\nFROM ${BASE}\nARG TREES="aa bb"\nARG MINE=1\nRUN echo ARG BASE=\n'
    )
    assert dockerfile(filled, {"TREES": ""}).splitlines()[2] == "ARG TREES="


def test_the_default_base_has_the_locks_python() -> None:
    assert default_base(template("base"), "3.13") == "python:3.13-slim"
    assert default_base("ARG BASE=registry.example.org/x/python:3.11\n", "3.12").endswith("/python:3.12")
    assert default_base(template("gpu"), "3.13").startswith("nvidia/cuda:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build"], "say either --dockerfile or a FOLDER"),
        (["build", "--dockerfile", "folder"], "say either --dockerfile or a FOLDER"),
        (["build", "--template", "nothing", "folder"], "neither a file nor one of base, gpu, dev"),
        (["push", "--builder", "docker", "--compression", "zstd", "localhost/a"], "the engine's own setting"),
        (["push", "--builder", "docker", "oci:folder"], "Docker pushes to registries only"),
        (["push", "--template", "gpu", "localhost/a"], "--builder docker"),
        (["push", "--builder", "podman", "localhost/a"], "'podman' is not"),
    ],
)
def test_what_makes_no_sense_is_refused(forked: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = forked(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


# With an engine


@dataclass(frozen=True)
class Project:
    """A folder with code, a lock beside it, and what a user has in the environment."""

    folder: Path
    lock: Path
    environment: dict[str, str]

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [BIN / "envsync", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def push(self, *arguments: object) -> dict[str, Any]:
        """Push an image that the engine builds, and return what is said of it."""
        done = self.run("push", "--json", "--builder", "docker", "--lock", self.lock, *arguments)
        (image,) = json.loads(done.stdout)["images"]
        return dict(image)

    def having(self, **variables: str) -> Project:
        return replace(self, environment={**self.environment, **variables})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, docker_engine: DockerEngine) -> Iterator[Project]:
    """Code, a lock for it, an engine with two bases; and secrets where users have them."""
    folder = tmp_path_factory.mktemp("project")
    code = folder / "code"
    code.mkdir()
    (code / "analysis.py").write_text("import six\nANSWER = 1\n")
    store = FolderStore(folder / "cache")
    libc = ("glibc", "2.36")  # of the lab's bases
    target = Target(python=here().python, machine=here().machine, libc=libc)
    artifacts = [artifact_of(one, store) for one in download(folder / "wheels", *WHEELS, python=MINOR)]
    (tree,) = [one for one in capture(cwd=str(code)).source_trees if one.root == str(code)]
    lock = Lock.of(
        artifacts,
        target,
        records={one.name: record_of(one, store) for one in artifacts},
        trees=(pack(tree, store).reference(),),
    )
    lock.write(folder / "pylock.small.toml", store)
    (folder / "pip.conf").write_text(f"[global]\nextra-index-url = https://ada:{CANARY}@index.example.org/\n")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DOCKER_"))},
        "PATH": docker_engine.environment["PATH"],
        "DOCKER_HOST": docker_engine.host,
        "DOCKER_BUILDKIT": "0",
        "ENVSYNC_CACHE": str(folder / "cache"),
        "HOME": str(folder / "home"),
        "PIP_CONFIG_FILE": str(folder / "pip.conf"),
        "UV_INDEX": f"https://ada:{CANARY}@index.example.org/simple/",
        "PYTHONPATH": "",
    }
    environment.pop("REGISTRY_AUTH_FILE", None)
    for kind in ("python", "bare"):
        docker_engine.load(base_layout(kind), TAG, f"lab/{kind}:1")
    made = Project(code, folder / "pylock.small.toml", environment)
    warm = made.having(
        UV_INDEX="", PIP_CONFIG_FILE=os.devnull
    )  # uv itself is fetched once, from a real index
    warm.run("build", "--lock", made.lock, folder / "warm")
    shutil.rmtree(folder / "warm")
    yield made
    shutil.rmtree(folder / "cache", ignore_errors=True)


@pytest.fixture
def image(docker_registry: DockerRegistry) -> str:
    """The name of an image that nobody has pushed."""
    return f"{docker_registry.host}/team/{os.urandom(4).hex()}"


def report_of(engine: DockerEngine, image: str, *options: object) -> dict[str, Any]:
    """Look at the environment in an image as hosts are looked at."""
    told = engine.run(image, "python", "-B", "/scan.py", options=("-v", f"{SCAN}:/scan.py:ro", *options))
    return dict(json.loads(told))


def check(engine: DockerEngine, image: str, lock: Lock) -> None:
    """Check that an image's environment is the lock's, for anybody."""
    for user in ("0", "1234"):
        report = report_of(engine, image, "--user", user)
        assert {one["name"]: one["record"] for one in report["distributions"]} == dict(lock.records)
        found = compare(replace(lock, trees=()).report(), report)
        assert [one for one in found if one.severity != NOTE] == []
        assert report["interpreter"]["prefix"] == "/opt/envsync/env"
        assert (report["leftovers"], report["unowned"]) == ([], [])
    code = (
        "import markupsafe._speedups, analysis;"
        "print(markupsafe.escape('<'), analysis.ANSWER, analysis.__file__)"
    )
    escaped, answer, where = engine.run(image, "python", "-B", "-c", code, options=("--user", "1234")).split()
    assert (escaped, answer) == ("&lt;", "1")
    assert where.startswith("/opt/envsync/trees/")
    assert "Pygments version 2.18.0" in engine.run(image, "pygmentize", "-V")
    assert engine.run(image, "cat", "/opt/envsync/pylock.toml").startswith("lock-version")


@pytest.mark.lab
@pytest.mark.slow
def test_an_image_is_built_and_pushed(
    project: Project, docker_engine: DockerEngine, image: str, tmp_path: Path
) -> None:
    """It is there under its tags, and is like one that was made without an engine."""
    lock = Lock.read(project.lock)
    pushed = project.push("--base", "lab/python:1", "--tag", "other", image)
    name = f"{image}:{lock.digest[:12]}"
    assert pushed["reference"] == f"{name}@{pushed['digest']}"
    assert pushed["layers"] >= 3
    assert pushed["tags"] == [lock.digest[:12], "other"]
    check(docker_engine, name, lock)
    seen = json.loads(project.run("inspect", "--json", f"{image}:other").stdout)
    assert (seen["digest"], seen["lock"]) == (pushed["digest"], lock.digest)
    assert seen["base"]["name"] == "lab/python:1"
    assert [one["name"] for one in seen["trees"]] == ["code"]
    project.run("diff", f"{image}:other", project.lock)
    docker_engine.docker("rmi", "-f", name, f"{image}:other")
    docker_engine.docker("pull", "-q", f"{image}@{pushed['digest']}")
    layout = tmp_path / "layout"
    base = f"oci:{base_layout('python')}:{TAG}"
    project.run("push", "--lock", project.lock, "--base", base, f"oci:{layout}:x")
    assert json.loads(project.run("inspect", "--json", f"oci:{layout}:x").stdout)["trees"] == seen["trees"]


@pytest.mark.lab
@pytest.mark.slow
def test_an_edit_sends_the_last_layer_and_builds_no_other(
    project: Project, docker_engine: DockerEngine, image: str
) -> None:
    options = ("--base", "lab/python:1", f"{image}:edited")
    first = project.push(*options)
    again = project.push(*options)
    assert (again["digest"], again["layers_sent"]) == (first["digest"], 0)
    (project.folder / "analysis.py").write_text("import six\nANSWER = 2\n")
    try:
        done = project.run("push", "-v", "--builder", "docker", "--lock", project.lock, *options)
    finally:
        (project.folder / "analysis.py").write_text("import six\nANSWER = 1\n")
    assert f"1 of {first['layers']} layers sent" in done.stdout
    assert done.stderr.count("Using cache") >= 4, done.stderr
    code = "import analysis; print(analysis.ANSWER)"
    assert docker_engine.run(f"{image}:edited", "python", "-c", code) == "2\n"


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "base", "buildkit"),
    [("base", "python", True), ("gpu", "bare", True), ("dev", "python", False)],  # and a test above
)
def test_others_build_it_from_a_folder(
    project: Project, docker_engine: DockerEngine, tmp_path: Path, name: str, base: str, buildkit: bool
) -> None:
    """Every Dockerfile, as in somebody's own CI: the docker command, no network, no envsync."""
    folder, lock = tmp_path / "context", Lock.read(project.lock)
    mine = tmp_path / "Mine"
    mine.write_text(project.run("build", "--dockerfile", "--template", name).stdout)
    options = ["--template", mine, "--base", f"lab/{base}:1", *([] if buildkit else ["--classic"])]
    told = json.loads(project.run("build", "--json", "--lock", project.lock, *options, folder).stdout)
    assert (told["packages"], told["base"]) == (len(WHEELS), f"lab/{base}:1")
    tag = f"built/{name}:{int(buildkit)}"
    command = ["build", "--network=none", "--build-arg", "PACKAGES=", "-t", tag, folder]
    docker_engine.docker(*command, environment={"DOCKER_BUILDKIT": str(int(buildkit))})
    check(docker_engine, tag, lock)
    own = docker_engine.run(tag, "readlink", "-f", "/opt/envsync/env/bin/python").strip()
    brought = base == "bare" or MINOR != "3.11"  # the lab's base with a Python has Debian 12's
    assert own.startswith("/opt/envsync/python/bin/" if brought else "/usr/bin/python")
    (config,) = json.loads(docker_engine.docker("image", "inspect", tag).stdout)
    assert config["Config"]["Labels"]["org.envsync.lock"] == lock.digest
    environment = dict(one.split("=", 1) for one in config["Config"]["Env"])
    assert environment["PATH"].startswith("/opt/envsync/env/bin:/usr/local/sbin:")
    if name == "gpu":
        assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    if name == "dev":
        (tmp_path / "mounted").mkdir()
        (tmp_path / "mounted/analysis.py").write_text("ANSWER = 3\n")
        mounted = ("-v", f"{tmp_path / 'mounted'}:/code")
        code = "import analysis; print(analysis.ANSWER, end=' ')"
        assert docker_engine.run(tag, "python", "-c", code, options=mounted) == "3 "
        assert "markupsafe" in docker_engine.run(tag, "uv", "pip", "list")


@pytest.mark.lab
@pytest.mark.slow
def test_buildkit_is_used_if_it_is_asked_for(
    project: Project, docker_engine: DockerEngine, image: str
) -> None:
    asked = project.having(DOCKER_BUILDKIT="1")
    done = asked.run(
        "push", "--builder", "docker", "--lock", asked.lock, "--base", "lab/python:1", f"{image}:x"
    )
    assert "building, 3 of 3: RUN --mount=type=cache" in done.stderr
    check(docker_engine, f"{image}:x", Lock.read(project.lock))
    broken = project.folder.parent / "Broken"
    broken.write_text(template("base").replace("CMD", "RUN echo a-last-word; exit 7\nCMD"))
    failed = asked.run(
        "push",
        *("--builder", "docker", "--lock", asked.lock, "--base", "lab/python:1"),
        *("--template", broken, f"{image}:y"),
        status=3,
    )
    assert "install.sh" in failed.stderr.split("its last lines:")[1], "the lab's engine has no network"


@pytest.mark.lab
@pytest.mark.slow
def test_a_secret_is_in_no_layer_and_in_no_history(
    project: Project, docker_engine: DockerEngine, image: str, tmp_path: Path
) -> None:
    (project.folder / ".env").write_text(f"TOKEN={CANARY}\n")
    host, _, _ = image.partition("/")
    login = base64.b64encode(f"ada:{CANARY}".encode()).decode()
    config = Path(project.environment["HOME"], ".docker/config.json")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"auths": {host: {"auth": login}}}))
    try:
        done = project.run(
            *("push", "-v", "--builder", "docker", "--lock", project.lock, "--base", "lab/python:1"),
            f"{image}:secret",
        )
        project.run("build", "--lock", project.lock, tmp_path / "context")
    finally:
        config.unlink()
        (project.folder / ".env").unlink()
    docker_engine.docker("save", "-o", tmp_path / "image.tar", f"{image}:secret")
    with tarfile.open(tmp_path / "image.tar") as archive:
        archive.extractall(tmp_path / "saved", filter="data")
    layers = [one for one in (tmp_path / "saved").rglob("*") if one.is_file() and not one.is_symlink()]
    files = [one for one in (tmp_path / "context").rglob("*") if one.is_file()]
    assert len(layers) >= 5
    assert len(files) > 10
    for secret in (CANARY, login):
        assert [one for one in (*layers, *files) if secret.encode() in one.read_bytes()] == []
        assert secret not in docker_engine.docker("history", "--no-trunc", f"{image}:secret").stdout
        assert secret not in done.stdout + done.stderr


# What goes wrong


@pytest.mark.lab
@pytest.mark.slow
def test_a_build_that_fails_is_an_error_with_its_last_lines(
    project: Project, docker_engine: DockerEngine, image: str
) -> None:
    broken = project.folder.parent / "Broken"
    broken.write_text(template("base").replace("CMD", "RUN echo a-last-word; exit 7\nCMD"))
    options = ("--builder", "docker", "--lock", project.lock, "--base", "lab/python:1")
    done = project.run("push", *options, "--template", broken, image, status=3)
    assert "returned a non-zero code: 7" in done.stderr
    assert "a-last-word" in done.stderr.split("its last lines:")[1]
    assert docker_engine.docker("ps", "-aq").stdout == "", "no container is left"
    assert docker_engine.docker("images", "-q", image).stdout == ""


@pytest.mark.lab
@pytest.mark.slow
def test_an_environment_that_is_not_the_locks_is_not_built(
    project: Project, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """Somebody changed what is to be installed: the build sees that, whatever uv says."""
    folder = tmp_path / "context"
    project.run("build", "--classic", "--lock", project.lock, "--base", "lab/python:1", folder)
    wanted = json.loads((folder / "install/wanted.json").read_text())
    wanted["distributions"][0]["record"] = "0" * 64
    (folder / "install/wanted.json").write_text(json.dumps(wanted))
    done = docker_engine.docker("build", "--network=none", folder, check=False)
    assert done.returncode != 0
    assert f"error: {wanted['distributions'][0]['name']}" in done.stdout
    wheel = next((folder / "install/wheels").glob("six-*"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more.py", "")
    done = docker_engine.docker("build", "--network=none", folder, check=False)
    assert done.returncode != 0
    assert "Hash mismatch for `six" in done.stdout


@pytest.mark.lab
@pytest.mark.slow
def test_a_push_that_fails_is_an_error(
    project: Project, docker_engine: DockerEngine, authority: Authority, tmp_path: Path
) -> None:
    options = ("push", "--builder", "docker", "--lock", project.lock, "--base", "lab/python:1")
    done = project.run(*options, f"127.0.0.1:{free_port()}/team/analysis", status=4)
    assert "the engine could not push" in done.stderr
    assert "refused" in done.stderr
    with DockerRegistry(tmp_path / "closed", login=("ada", CANARY)) as closed:
        name = f"{closed.host}/team/analysis"
        done = project.run(*options, name, status=4)
        assert f"docker login {closed.host}" in done.stderr
        config = Path(project.environment["HOME"], ".docker/config.json")
        config.parent.mkdir(parents=True, exist_ok=True)
        login = base64.b64encode(f"ada:{CANARY}".encode()).decode()
        config.write_text(json.dumps({"auths": {closed.host: {"auth": login}}}))
        try:
            done = project.run(*options, "-v", name)
        finally:
            config.unlink()
        assert CANARY not in done.stdout + done.stderr


@pytest.mark.lab
@pytest.mark.slow
def test_a_base_that_cannot_be(project: Project, docker_engine: DockerEngine, image: str) -> None:
    options = ("push", "--builder", "docker", "--lock", project.lock)
    name = f"{image.partition('/')[0]}/nobody/has:this"
    done = project.run(*options, "--base", name, image, status=3)
    assert f"the base image {name} cannot be had" in done.stderr
    docker_engine.load(base_layout("arm64"), TAG, "lab/arm64:1")
    done = project.run(*options, "--base", "lab/arm64:1", image, status=3)
    assert "the image is for linux/arm64, and linux/amd64 is wanted" in done.stderr


@pytest.mark.lab
@pytest.mark.slow
def test_no_engine(project: Project, image: str, tmp_path: Path) -> None:
    nowhere = project.having(DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    done = nowhere.run("push", "--builder", "docker", "--lock", project.lock, image, status=3)
    assert "no Docker engine answers" in done.stderr
    assert "Without --builder docker no engine is needed" in done.stderr


@pytest.mark.lab
@pytest.mark.slow
def test_a_folder_of_somebodys_own_is_left_alone(project: Project, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("mine")
    done = project.run("build", "--lock", project.lock, tmp_path, status=3)
    assert "is not empty, and envsync build did not write it" in done.stderr
    assert (tmp_path / "Dockerfile").read_text() == "mine"
    fresh = tmp_path / "fresh"
    for _ in range(2):
        project.run("build", "--lock", project.lock, fresh)
    assert sorted(one.name for one in fresh.iterdir()) == ["Dockerfile", "image", "install"]


@pytest.mark.lab
@pytest.mark.slow
def test_a_base_says_which_c_library_it_has(
    project: Project, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    with Engine() as engine:
        assert engine.libc(Reference.parse("lab/python:1")) == ("glibc", "2.36")
        assert engine.libc(Reference.parse("lab/nothing:1")) is None
