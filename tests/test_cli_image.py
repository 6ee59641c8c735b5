"""``envsync push`` into a registry, ``inspect`` and ``diff`` of what is there: as a user types it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from envsync.cli import cli
from envsync.images.layout import Layout
from envsync.images.places import ImagePlace
from envsync.lock import Lock
from envsync.snapshot import capture
from envsync.store import FolderStore
from envsync.trees import pack
from envsync.uv import find_uv
from tests.images import base_of_here, lock_of
from tests.index_server import IndexServer, write_wheel
from tests.lab.bases import TAG
from tests.lab.registry import Authority, DockerRegistry, Handler, Proxy, answers, breaks
from tests.ports import free_port

pytestmark = pytest.mark.lab

BIN = Path(sys.executable).parent
CANARY = "hunter2-canary"
HEAVY = (
    *("envsync.images.build", "envsync.images.plan", "envsync.lock", "envsync.resolve", "packaging.pylock"),
    *(
        "asyncssh",
        "dask",
        "distributed",
        "pathspec",
        "rich",
        "tarfile",
        "tomli_w",
        "trio",
    ),
)


@dataclass
class Project:
    """A folder with code, a lock beside it, and a base image; and what a user has in the environment."""

    folder: Path
    lock: Path
    base: str
    environment: dict[str, str]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BIN / "envsync", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, out + err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def arguments(self, *more: object) -> list[object]:
        return ["push", "--lock", self.lock, "--base", self.base, *more]

    def push(self, *arguments: object) -> dict[str, Any]:
        """Push an image, and return what is said of it."""
        done = self.run(*self.arguments("--json", *arguments))
        (image,) = json.loads(done.stdout)["images"]
        return dict(image)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    code = folder / "code"
    code.mkdir()
    (code / "analysis.py").write_text("ANSWER = 1\n")
    base_of_here(folder / "base")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DOCKER_"))},
        "ENVSYNC_CACHE": str(folder / "cache"),
        "HOME": str(folder / "home"),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONPATH": "",
    }
    environment.pop("REGISTRY_AUTH_FILE", None)
    store = FolderStore(folder / "cache")
    (tree,) = [one for one in capture(cwd=str(code)).source_trees if one.root == str(code)]
    wheels = [
        write_wheel(folder / "wheels", "alpha", "1.0"),
        write_wheel(folder / "wheels", "beta", "2.0", payload=os.urandom(17 << 20)),
    ]
    lock = lock_of(wheels, store)
    text = Lock.of(
        lock.artifacts(), lock.target, records=lock.records, trees=(pack(tree, store).reference(),)
    )
    text.write(folder / "pylock.small.toml", store)
    return Project(code, folder / "pylock.small.toml", f"oci:{folder / 'base'}:{TAG}", environment)


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    """The project, with a cache in which no layer has been made yet, and nobody logged in."""
    shutil.copytree(made.environment["ENVSYNC_CACHE"], tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache/memory/layers", ignore_errors=True)
    (made.folder / "analysis.py").write_text("ANSWER = 1\n")
    environment = {
        **made.environment,
        "ENVSYNC_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path / "home"),
    }
    return Project(made.folder, made.lock, made.base, environment)


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[Proxy]:
    with Proxy(docker_registry) as one:
        yield one


@pytest.fixture
def image(proxy: Proxy) -> str:
    """The name of an image that nobody has pushed."""
    return f"{proxy.host}/team/{os.urandom(4).hex()}"


def test_an_image_is_pushed_and_pushed_again(
    project: Project, proxy: Proxy, image: str, tmp_path: Path
) -> None:
    lock = Lock.read(project.lock)
    first = project.push(image)
    assert first["reference"] == f"{image}:{lock.digest[:12]}@{first['digest']}"
    assert first["environment"] == lock.digest
    assert first["layers_made"] == first["layers"] == 4
    assert first["sent"] > 17 << 20
    assert [tree["name"] for tree in first["trees"]] == ["code"]

    proxy.requests.clear()
    again = project.push(image)
    assert [(one.method, one.path) for one in proxy.requests] == [
        ("HEAD", f"/v2/{image.partition('/')[2]}/manifests/{lock.digest[:12]}")
    ]
    assert (again["reference"], again["sent"], again["layers_made"]) == (first["reference"], 0, 0)

    (project.folder / "analysis.py").write_text("ANSWER = 2\n")
    edited = project.push(image)
    assert edited["digest"] != first["digest"]
    assert (edited["tags"], edited["layers_made"]) == (first["tags"], 1)
    assert 0 < edited["sent"] < 100_000

    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{image}:{lock.digest[:12]}"))
    assert seen["Digest"] == edited["digest"]
    assert seen["Labels"]["org.envsync.lock"] == lock.digest
    target = tmp_path / "copy"
    skopeo("copy", "--src-tls-verify=false", f"docker://{image}@{edited['digest']}", f"oci:{target}:x")
    assert Layout(target).manifest_digest("x") == edited["digest"]


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_user_reads(project: Project, image: str) -> None:
    done = project.run(*project.arguments("--latest", "--tag", "v1", image))
    digest = Lock.read(project.lock).digest[:12]
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{image}:{digest}@sha256:")
    assert "4 of 4 layers made" in lines[1]
    assert " MB sent" in lines[1]
    assert lines[2:] == [f"  also {image}:v1", f"  also {image}:latest"]
    assert "making 4 of 4 layers" in done.stderr
    for tag in ("v1", "latest", digest):
        assert ImagePlace.parse(f"{image}:{tag}").open().manifest_digest(tag) == lines[0].partition("@")[2]
    again = project.run(*project.arguments("--latest", "--tag", "v1", image))
    assert "was there, nothing sent" in again.stdout


def test_what_is_in_an_image(project: Project, image: str) -> None:
    pushed = project.push(f"{image}:v1")
    assert pushed["tags"] == ["v1"]
    shown = project.run("inspect", f"{image}:v1").stdout
    for text in (pushed["digest"], "alpha 1.0", "beta 2.0", "code: 1 file", "envsync: "):
        assert text in shown
    found = json.loads(project.run("inspect", "--json", pushed["reference"]).stdout)
    assert found["packages"] == [["alpha", "1.0"], ["beta", "2.0"]]
    assert found["lock"] == pushed["environment"]

    equal = project.run("diff", f"{image}:v1", project.lock)
    assert "no difference" in equal.stdout
    (project.folder / "analysis.py").write_text("ANSWER = 3\n")
    other = json.loads(project.run("diff", "--json", pushed["reference"], ".", status=1).stdout)
    missing = {one["subject"] for one in other["differences"] if one["kind"] == "missing"}
    assert {"alpha", "beta"} <= missing
    assert "code" in sources(other)


def test_what_an_image_is_made_of(project: Project, proxy: Proxy, image: str) -> None:
    lock = Lock.read(project.lock)
    bare = project.push(image)
    assert bare["sbom"] is None
    assert (
        "no SBOM is attached"
        in project.run("inspect", "--sbom", image + ":" + lock.digest[:12], status=3).stderr
    )

    pushed = project.push("--sbom", image)
    assert (pushed["digest"], pushed["layers_made"]) == (bare["digest"], 0)
    assert 0 < pushed["sent"] < 10_000
    found = json.loads(project.run("inspect", "--sbom", pushed["reference"]).stdout)
    named = [[one["name"], one["version"]] for one in found["components"] if one["type"] == "library"]
    assert named == [["alpha", "1.0"], ["beta", "2.0"]]
    assert found["metadata"]["component"]["version"] == lock.digest

    proxy.requests.clear()
    assert project.push("--sbom", image)["sent"] == 0
    assert [one.method for one in proxy.requests] == ["HEAD", "GET", "GET"]
    proxy.requests.clear()
    assert project.push(image)["sent"] == 0
    assert [one.method for one in proxy.requests] == ["HEAD"], "who asks for none pays for none"
    (project.folder / "analysis.py").write_text("ANSWER = 4\n")
    assert "with an SBOM" in project.run(*project.arguments("--sbom", image)).stdout


def sources(found: dict[str, Any]) -> set[str]:
    return {one["subject"] for one in found["differences"] if one["kind"] == "source"}


def test_an_image_in_a_folder(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    pushed = project.push(f"oci:{folder}:v1")
    assert pushed["reference"] == f"oci:{folder}:v1@{pushed['digest']}"
    assert project.push(f"oci:{folder}:v1")["layers_made"] == 0
    assert pushed["digest"] in project.run("inspect", f"oci:{folder}").stdout
    assert project.run("diff", f"oci:{folder}:v1", project.lock).returncode == 0


def test_a_lock_gives_the_same_image_on_two_machines(made: Project, tmp_path: Path) -> None:
    """Two that share nothing: caches, homes, folders, umask, time zone and what is in variables."""
    digests = []
    for name, mask in (("ada", 0o022), ("grace", 0o077)):
        machine = tmp_path / name
        shutil.copytree(made.folder, machine / "work/code", copy_function=shutil.copy)
        shutil.copy(made.lock, machine)
        shutil.copytree(made.lock.parent / "envsync-wheels", machine / "envsync-wheels")
        shutil.copytree(made.base.split(":")[1], machine / "base")
        environment = {
            **made.environment,
            "ENVSYNC_CACHE": str(machine / "cache"),
            "HOME": str(machine / "home"),
            "TZ": f"Etc/GMT+{len(name)}",
            "LANG": "C.UTF-8" if name == "ada" else "C",
        }
        one = Project(
            machine / "work/code", machine / made.lock.name, f"oci:{machine / 'base'}:{TAG}", environment
        )
        before = os.umask(mask)
        try:
            digests.append(one.push(f"oci:{machine / 'images'}:x")["digest"])
        finally:
            os.umask(before)
    assert digests[0] == digests[1]


def test_the_base_is_taken_from_a_registry(project: Project, proxy: Proxy, image: str) -> None:
    """Its layers are mounted where it is the same registry: they are not sent at all."""
    base = f"{proxy.host}/bases/here"
    layout, _, tag = project.base.rpartition(":")
    skopeo("copy", "--dest-tls-verify=false", f"{layout}:{tag}", f"docker://{base}:1")
    size = sum(one.received for one in proxy.requests)
    proxy.requests.clear()
    pushed = project.run("push", "--json", "--lock", project.lock, "--base", f"{base}:1", image)
    (found,) = json.loads(pushed.stdout)["images"]
    assert found["base"].startswith(f"{base}:1")
    assert proxy.asked("POST", "*mount=*from=bases%2Fhere")
    assert sum(one.received for one in proxy.requests) < size + (18 << 20)
    environment = {**project.environment, "ENVSYNC_BASE": f"{base}:1"}
    again = Project(project.folder, project.lock, project.base, environment)
    done = again.run("push", "--json", "--lock", project.lock, image)
    assert json.loads(done.stdout)["images"][0]["digest"] == found["digest"]


# what goes wrong


def log_in(project: Project, host: str, password: str) -> None:
    folder = Path(project.environment["HOME"], ".docker")
    folder.mkdir(parents=True, exist_ok=True)
    login = base64.b64encode(f"ada:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))


def test_a_login_is_used_and_not_shown(project: Project, authority: Authority, tmp_path: Path) -> None:
    project.environment["SSL_CERT_FILE"] = str(authority.ca)
    with DockerRegistry(tmp_path / "closed", login=("ada", CANARY), tls=authority) as closed:
        image = f"{closed.host}/team/analysis"
        nobody = project.run(*project.arguments(image), status=4)
        assert "it wants a login" in nobody.stderr
        assert f"docker login {closed.host}" in nobody.stderr
        log_in(project, closed.host, "wrong-" + CANARY)
        wrong = project.run(*project.arguments("-v", image), status=4)
        assert "does not take our user name and password" in wrong.stderr
        log_in(project, closed.host, CANARY)
        process = project.start(*project.arguments("-v", image))
        seen = []
        while process.poll() is None:
            seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes().decode())
            time.sleep(0.05)
        out, err = process.communicate()
        assert process.returncode == 0, err
    assert "HTTP Request: PUT" in err, "requests are logged"
    said = [*seen, out, err, wrong.stderr, nobody.stderr]
    secrets = [CANARY, base64.b64encode(f"ada:{CANARY}".encode()).decode(), "?_state"]
    assert [secret for secret in secrets if any(secret in text for text in said)] == []
    for file in Path(project.environment["ENVSYNC_CACHE"]).rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("registry.invalid/team/analysis", "the name registry.invalid is not known"),
        ("127.0.0.1:{port}/team/analysis", "nothing listens there"),
    ],
)
def test_a_registry_that_is_not_there(project: Project, name: str, said: str) -> None:
    done = project.run(*project.arguments(name.format(port=free_port())), status=4)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["registry.example.org/Team/analysis"], "write it in lower case"),
        (["registry.example.org/team/analysis:no tag"], "is not a tag"),
        (["registry.example.org/team/analysis@sha256:" + "0" * 64], "by its digest"),
        (["oci:"], "names no folder"),
        (["--tag", "a/b", "registry.example.org/team/analysis"], "'a/b' is not a tag"),
        (["--base", "UPPER", "registry.example.org/team/analysis"], "Invalid value for '--base'"),
        (["--platform", "windows/amd64", "registry.example.org/team/analysis"], "linux/amd64 or linux/arm64"),
        (["--latest", "local"], "--latest is for images"),
        (["--compression", "lzma", "registry.example.org/team/analysis"], "'lzma' is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["push", *arguments])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("tag", "said"),
    [("none", "there is no image 'none'"), ("base", "envsync did not make this image")],
)
def test_what_cannot_be_inspected(project: Project, image: str, tag: str, said: str) -> None:
    layout, _, name = project.base.rpartition(":")
    skopeo("copy", "--dest-tls-verify=false", f"{layout}:{name}", f"docker://{image}:base")
    assert said in project.run("inspect", f"{image}:{tag}", status=3).stderr
    assert said in project.run("diff", f"{image}:{tag}", ".", status=2).stderr


def test_a_base_for_another_platform(project: Project, image: str) -> None:
    lock = project.run("push", "--base", project.base, "--platform", "linux/s390x", image, status=3)
    assert "and linux/s390x is wanted" in lock.stderr
    done = project.run(*project.arguments("--platform", "linux/s390x", image), status=3)
    assert "linux/s390x is asked for" in done.stderr


def test_a_base_that_is_not_there(project: Project, proxy: Proxy, image: str) -> None:
    base = f"{proxy.host}/nobody/has:this"
    done = project.run("push", "--lock", project.lock, "--base", base, image, status=3)
    assert "there is no image 'this'" in done.stderr


def test_connections_that_break_do_no_harm(project: Project, proxy: Proxy, image: str) -> None:
    proxy.fault("PATCH", "*", breaks(1 << 20), after=1)
    proxy.fault("PATCH", "*", breaks(1 << 20, passing_on=True), after=3)
    proxy.fault("PUT", "*/manifests/*", answers(502))
    assert project.push(image)["layers_made"] == 4


def test_a_registry_that_fails_leaves_no_half_image(project: Project, proxy: Proxy, image: str) -> None:
    proxy.fault("PATCH", "*", answers(500), times=99)
    done = project.run(*project.arguments(image), status=4)
    assert "answered 500 Internal Server Error" in done.stderr
    assert not proxy.asked("PUT", "*/manifests/*")


def test_a_push_that_is_interrupted_is_taken_up(project: Project, proxy: Proxy, image: str) -> None:
    over = threading.Event()
    layers = Path(project.environment["ENVSYNC_CACHE"]) / "memory/layers"

    def hangs(handler: Handler) -> None:
        over.wait(60)
        handler.hang_up()

    proxy.fault("PATCH", "*", hangs, times=99)
    process = project.start(*project.arguments(image))
    try:
        deadline = time.monotonic() + 60
        # one hangs, and a small one has arrived, and is known to have
        while not (proxy.asked("PATCH") and any(layers.glob("*.json"))):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=50)  # and not when what hangs is over
    finally:
        over.set()
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert not proxy.asked("PUT", "*/manifests/*")
    proxy._faults.clear()
    again = project.push(image)
    assert again["layers_made"] < again["layers"], "what arrived whole is not made again"


def test_two_push_the_same_at_once(project: Project, image: str) -> None:
    both = [project.start(*project.arguments("--json", image)) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    digests = {json.loads(out)["images"][0]["digest"] for out, _ in said}
    assert len(digests) == 1


OLD = 1_600_000_000


@pytest.fixture
def private(tmp_path: Path) -> Iterator[IndexServer]:
    """An index of a company's own, which wants a password."""
    write_wheel(tmp_path / "private", "inhouse", "1.0")
    with IndexServer(tmp_path / "private", username="ada", password=CANARY) as server:
        yield server


@pytest.mark.slow
def test_a_user_with_an_environment_and_no_lock(
    made: Project, proxy: Proxy, image: str, private: IndexServer, tmp_path: Path
) -> None:
    """And with a password in pip.conf, which opens the index and is in no layer."""
    root = Path(__file__).resolve().parent.parent
    prefix, code = tmp_path / "environment", tmp_path / "mine"
    uv, url = str(find_uv()), f"http://ada:{CANARY}@{private.host}/simple"
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(prefix)], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "-p", str(prefix), str(root), "inhouse"],
        env={**os.environ, "UV_INDEX": url},
        check=True,
    )
    for path in prefix.glob("lib/python*/site-packages/**/*"):
        os.utime(path, (OLD, OLD))  # a lock is not remembered of files that may still be changing
    code.mkdir()
    (code / "mine.py").write_text("ANSWER = 42\n")
    (tmp_path / "pip.conf").write_text(f"[global]\nextra-index-url = {url}\n")
    shutil.copy(tmp_path / "pip.conf", code)  # people keep it there, too
    environment = {
        **made.environment,
        "ENVSYNC_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(one) for one in arguments],
            cwd=code,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def envsync(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(prefix / "bin/envsync", *arguments)

    private.requests.clear()
    done = envsync("push", "--json", "--base", made.base, image)
    (pushed,) = json.loads(done.stdout)["images"]
    assert pushed["tags"] == [pushed["environment"][:12]]
    assert [tree["name"] for tree in pushed["trees"]] == ["mine"]
    shown = envsync("inspect", "-v", pushed["reference"]).stdout
    assert "distributed" in shown
    assert "inhouse 1.0" in shown
    assert any(path.endswith(".whl") and status == 200 for path, status in private.requests)
    envsync("diff", pushed["reference"], ".")
    proxy.requests.clear()
    arguments = ["push", "--json", "--base", made.base, image]
    program = f"import sys; from envsync.cli import cli; cli({arguments!r}, standalone_mode=False)\n"
    program += f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = run(prefix / "bin/python", "-c", program)
    document, _, heavy = done.stdout.strip().rpartition("\n")
    again = json.loads(document)["images"][0]
    assert (again["digest"], again["sent"], len(proxy.requests)) == (pushed["digest"], 0, 1)
    assert again["environment"] == pushed["environment"]
    assert heavy == "[]", "what is only there to make an image"

    (code / "mine.py").write_text("ANSWER = 43\n")
    edited = json.loads(envsync(*arguments).stdout)["images"][0]
    assert (edited["layers_made"], edited["tags"]) == (1, pushed["tags"])
    assert edited["digest"] != pushed["digest"]
    assert 0 < edited["sent"] < 1_000_000
    # the first image is remembered, and its tag is another's meanwhile
    (code / "mine.py").write_text("ANSWER = 42\n")
    back = json.loads(envsync(*arguments).stdout)["images"][0]
    assert (back["digest"], back["layers_made"]) == (pushed["digest"], 0)
    assert back["sent"] > 0

    target = tmp_path / "layout"
    skopeo(
        "copy",
        "--src-tls-verify=false",
        f"docker://{pushed['reference'].partition('@')[0]}",
        f"oci:{target}:x",
    )
    blobs = [one.read_bytes() for one in (target / "blobs/sha256").iterdir()]
    texts = [gzip.decompress(one) if one[:2] == b"\x1f\x8b" else one for one in blobs]
    assert sum(b"inhouse" in text for text in texts) >= 2, "its layer, and the lock's"
    encoded = base64.b64encode(f"ada:{CANARY}".encode())
    assert [text[:80] for text in texts if CANARY.encode() in text or encoded in text] == []
    assert CANARY not in done.stdout + done.stderr
