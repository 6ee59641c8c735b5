"""Blobs and manifests to and from a real registry, and what goes wrong on the way."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from envsync.errors import CorruptBlobError, EnvsyncError, ImageError, RegistryError
from envsync.hooks import Hooks
from envsync.images.oci import (
    CONFIG,
    DOCKER_MANIFEST,
    LAYER_GZIP,
    MANIFEST,
    Config,
    Descriptor,
    Images,
    Manifest,
    Platform,
)
from envsync.images.reference import Reference
from envsync.images.registry import Registry
from envsync.images.uploading import PIECE
from tests.lab.registry import (
    DockerRegistry,
    Handler,
    Proxy,
    answers,
    answers_half,
    breaks,
    changes_a_byte,
    loses_the_answer,
)
from tests.ports import free_port

pytestmark = pytest.mark.lab

LARGE = bytes(range(256)) * 4096 * 20  # 20 MB: three pieces
SMALL = b"a layer of few bytes"


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has logged in anywhere, and nobody waits between tries."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with stamina.set_testing(True, attempts=5, cap=True):
        yield


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[Proxy]:
    with Proxy(docker_registry) as one:
        yield one


def repository(host: str, name: str = "", hooks: Hooks | None = None) -> Registry:
    text = f"{host}/{name or 'lab/' + os.urandom(4).hex()}"
    return Registry(Reference.parse(text), hooks=hooks)


@pytest.fixture
def there(proxy: Proxy) -> Iterator[Registry]:
    with repository(proxy.host) as registry:
        yield registry


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Made:
    """A blob that is made while it is read; as often as somebody asks."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self.data, self.step, self.times = data, step, 0

    def __iter__(self) -> Iterator[bytes]:
        self.times += 1
        for start in range(0, len(self.data), self.step):
            yield self.data[start : start + self.step]


def content(registry: Registry, name: str) -> bytes:
    return b"".join(registry.open(name))


def image_of(registry: Images, *layers: bytes) -> bytes:
    """Push a manifest of layers and an empty configuration."""
    config = b"{}"
    registry.put([config])
    for layer in layers:
        registry.put([layer])
    manifest = Manifest(
        config=Descriptor.of(config, CONFIG),
        layers=tuple(Descriptor.of(layer, LAYER_GZIP) for layer in layers),
    )
    return manifest.to_bytes()


def test_a_blob_goes_there_and_comes_back(there: Registry, proxy: Proxy) -> None:
    assert there.size(digest(SMALL)) is None
    assert there.put([SMALL[:5], SMALL[5:]]) == (digest(SMALL), len(SMALL))
    assert there.size(digest(SMALL)) == len(SMALL)
    assert content(there, digest(SMALL)) == SMALL
    assert [one.method for one in proxy.requests] == ["HEAD", "POST", "PUT", "HEAD", "GET"]
    assert there.put([]) == (digest(b""), 0)


def test_a_large_blob_is_sent_in_pieces_while_it_is_made(there: Registry, proxy: Proxy) -> None:
    taken: list[int] = []

    def made() -> Iterator[bytes]:
        for chunk in Made(LARGE):
            taken.append(sum(one.received for one in proxy.asked("PATCH")))
            yield chunk

    assert there.put(made()) == (digest(LARGE), len(LARGE))
    assert [one.received for one in proxy.asked("PATCH")] == [PIECE, PIECE, len(LARGE) - 2 * PIECE]
    assert taken[-1] >= PIECE, "the first piece was sent before the last byte was made"
    assert proxy.asked("PUT")[0].received == 0
    assert content(there, digest(LARGE)) == LARGE


def test_little_of_a_blob_is_held_in_memory(docker_registry: DockerRegistry) -> None:
    block = os.urandom(1 << 20)
    with repository(docker_registry.host) as there:
        tracemalloc.start()
        try:
            name, size = there.put(block[i:] + block[:i] for i in range(100))
            sent = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            assert sum(map(len, there.open(name))) == size == 100 << 20
            received = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sent < 3 * PIECE
    assert received < PIECE


def test_progress_is_told(docker_registry: DockerRegistry) -> None:
    told: list[tuple[str, int, int, str]] = []

    class Told(Hooks):
        def progress(self, where: str, done: int, total: int, unit: str) -> None:
            told.append((where, done, total, unit))

    with repository(docker_registry.host, "lab/told", Told()) as there:
        there.put(Made(LARGE), size=len(LARGE))
        assert there.sent == len(LARGE)
    assert [one[1] for one in told] == [PIECE, 2 * PIECE, len(LARGE)]
    assert {(one[0], one[2], one[3]) for one in told} == {
        (f"{docker_registry.host}/lab/told", len(LARGE), "B"),
    }


def test_a_manifest_by_tag_and_by_digest(there: Registry, proxy: Proxy) -> None:
    assert there.manifest("v1") is None
    assert there.manifest_digest("v1") is None
    data = image_of(there, SMALL)
    name = there.put_manifest(data, MANIFEST, "v1")
    assert name == there.put_manifest(data, MANIFEST) == digest(data)
    assert there.manifest("v1") == there.manifest(name) == (MANIFEST, name, data)
    asked = len(proxy.requests)
    assert there.manifest_digest("v1") == name
    assert [one.method for one in proxy.requests[asked:]] == ["HEAD"]


def test_a_manifest_whose_blobs_are_not_there_is_refused(there: Registry) -> None:
    data = Manifest(config=Descriptor.of(b"{}", CONFIG), layers=()).to_bytes()
    with pytest.raises(RegistryError, match=r"does not take the manifest .*MANIFEST") as caught:
        there.put_manifest(data, MANIFEST, "v1")
    assert caught.value.where == there.name


def test_a_blob_is_taken_from_another_repository(there: Registry, proxy: Proxy) -> None:
    with repository(proxy.host, "lab/base") as base:
        base.put(Made(LARGE))
    sent = there.sent
    assert there.mount(digest(LARGE), "lab/base")
    assert there.size(digest(LARGE)) == len(LARGE)
    assert there.sent == sent
    assert not there.mount(digest(b"nobody has this"), "lab/base")
    assert proxy.asked("DELETE"), "the upload that was begun instead is given up"


def test_bytes_that_are_not_those_of_the_digest_are_not_kept(there: Registry) -> None:
    for data in (SMALL, LARGE):
        with pytest.raises(CorruptBlobError, match="changed while it was sent"):
            there.put([data], digest=digest(b"else"))
        with pytest.raises(CorruptBlobError, match="changed while it was sent"):
            there.put([data], size=len(data) + 1)
        assert there.size(digest(data)) is None


def test_what_is_raised_while_a_blob_is_made_is_raised(there: Registry, proxy: Proxy) -> None:
    def made() -> Iterator[bytes]:
        yield LARGE
        raise ImageError("the wheel has gone")

    with pytest.raises(ImageError, match="the wheel has gone"):
        there.put(made())
    assert proxy.asked("DELETE")
    assert there.sent == 0


# others' tools


def skopeo(*arguments: str) -> str:
    command = ["skopeo", "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_reads_what_we_push_and_we_what_it_pushes(
    there: Registry, proxy: Proxy, tmp_path: Path
) -> None:
    layer = gzip.compress(_archive({"etc/greeting": b"hello"}), mtime=0)
    config = Config(
        platform=Platform(architecture="amd64"),
        run={"Env": ["A=b"], "Labels": {"org.example.what": "a test"}},
        diff_ids=(digest(gzip.decompress(layer)),),
    ).to_bytes()
    there.put([config])
    there.put([layer])
    manifest = Manifest(config=Descriptor.of(config, CONFIG), layers=(Descriptor.of(layer, LAYER_GZIP),))
    name = there.put_manifest(manifest.to_bytes(), MANIFEST, "v1")

    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{there.name}:v1"))
    assert (seen["Digest"], seen["Labels"]) == (name, {"org.example.what": "a test"})
    skopeo("copy", "--src-tls-verify=false", f"docker://{there.name}:v1", f"oci:{tmp_path / 'copy'}:v1")
    with repository(proxy.host, "lab/docker") as docker:
        skopeo(
            *("copy", "--format", "v2s2", "--dest-tls-verify=false"),
            *(f"oci:{tmp_path / 'copy'}:v1", f"docker://{docker.name}:v1"),
        )
        found = docker.manifest("v1")
        assert found is not None
        assert found[0] == DOCKER_MANIFEST
        assert docker.manifest_digest("v1") == found[1]
        (copied,) = Manifest.from_bytes(found[2]).layers
        assert gzip.decompress(content(docker, copied.digest)) == gzip.decompress(layer)


def _archive(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return data.getvalue()


# what breaks


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_registry_that_has_troubles_is_asked_again(there: Registry, proxy: Proxy, data: bytes) -> None:
    for method in ("HEAD", "POST", "PATCH", "PUT", "GET"):
        proxy.fault(method, "*", answers(503), times=2)
    assert there.size(digest(data)) is None
    assert there.put(Made(data)) == (digest(data), len(data))
    assert content(there, digest(data)) == data


def test_a_registry_that_goes_on_answering_500_is_an_error(there: Registry, proxy: Proxy) -> None:
    proxy.fault("POST", "*", answers(500, body=b"<html>oh no</html>"), times=99)
    with pytest.raises(RegistryError, match=r"answered 500 Internal Server Error .*5 tries") as caught:
        there.put([SMALL])
    assert caught.value.where == proxy.host
    assert "not sent again" in caught.value.hint


def test_a_registry_says_when_to_come_again(there: Registry, proxy: Proxy) -> None:
    waits: list[float] = []
    hooks = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    proxy.fault("HEAD", "*", answers(429, {"Retry-After": "0.25"}))
    try:
        with stamina.set_testing(False):
            there.size(digest(SMALL))
    finally:
        stamina.instrumentation.set_on_retry_hooks(hooks)
    assert waits == [0.25]


def test_a_piece_that_never_arrived_is_sent_again(there: Registry, proxy: Proxy) -> None:
    proxy.fault("PATCH", "*", breaks(PIECE // 2), after=1)
    made = Made(LARGE)
    assert there.put(iter(made)) == (digest(LARGE), len(LARGE))
    assert made.times == 1, "it was not begun anew"
    # the registry was asked how much it has
    assert [one.status for one in proxy.asked("GET", "*/blobs/uploads/*")] == [204]
    assert content(there, digest(LARGE)) == LARGE
    assert there.sent == len(LARGE)


def test_what_arrived_of_a_piece_is_not_sent_again(there: Registry, proxy: Proxy) -> None:
    """A registry that keeps halves of pieces; Debian's forgets the whole upload then."""
    half = PIECE // 2
    kept: dict[str, str] = {}

    def keeps_half(handler: Handler) -> None:
        start = int(handler.headers["Content-Range"].partition("-")[0])
        handler.headers.replace_header("Content-Range", f"{start}-{start + half - 1}")
        kept.update(proxy.forward(handler, handler.body()[:half])[1])
        handler.hang_up()

    def tells(handler: Handler) -> None:
        handler.answer(204, {"Location": kept["Location"], "Range": kept["Range"]})

    proxy.fault("PATCH", "*", keeps_half, after=1)
    proxy.fault("GET", "*/blobs/uploads/*", tells)
    assert there.put(iter(Made(LARGE))) == (digest(LARGE), len(LARGE))
    assert [one.received for one in proxy.asked("PATCH")] == [
        PIECE,
        PIECE,
        PIECE - half,
        len(LARGE) - 2 * PIECE,
    ]
    assert content(there, digest(LARGE)) == LARGE


def test_an_upload_that_the_registry_forgets_begins_anew(there: Registry, proxy: Proxy) -> None:
    proxy.fault("PATCH", "*", breaks(PIECE // 2, passing_on=True), after=1)
    made = Made(LARGE)
    assert there.put(made) == (digest(LARGE), len(LARGE))
    assert made.times == 2
    assert there.sent == len(LARGE), "what has to be sent again does not count twice"
    assert content(there, digest(LARGE)) == LARGE


def test_an_upload_that_is_forgotten_and_cannot_be_made_again_is_an_error(
    there: Registry, proxy: Proxy
) -> None:
    proxy.fault("PATCH", "*", breaks(PIECE // 2, passing_on=True), after=1)
    with pytest.raises(RegistryError, match="could not be taken up again: the registry has lost") as caught:
        there.put(iter(Made(LARGE)))
    assert "Push again" in caught.value.hint
    assert there.size(digest(LARGE)) is None


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_an_answer_that_is_lost_does_no_harm(there: Registry, proxy: Proxy, data: bytes) -> None:
    for method in ("HEAD", "POST", "PATCH", "PUT"):
        proxy.fault(method, "*", loses_the_answer)
    assert there.put(Made(data)) == (digest(data), len(data))
    assert content(there, digest(data)) == data


def test_a_registry_that_takes_no_pieces_gets_a_stream(there: Registry, proxy: Proxy) -> None:
    proxy.fault("PATCH", "*", answers(400, body=b"{}"), after=1)
    assert there.put(Made(LARGE)) == (digest(LARGE), len(LARGE))
    assert [one.received for one in proxy.asked("PATCH")][-1] == len(LARGE)
    assert content(there, digest(LARGE)) == LARGE


def test_a_blob_that_breaks_off_on_its_way_here_is_taken_up_again(there: Registry, proxy: Proxy) -> None:
    there.put(Made(LARGE))
    for after in (3 << 20, 1 << 20):
        proxy.fault("GET", "*", answers_half(after))
    assert content(there, digest(LARGE)) == LARGE
    assert [one.headers.get("range") for one in proxy.asked("GET")] == [
        None,
        f"bytes={3 << 20}-",
        f"bytes={4 << 20}-",
    ]


def test_a_blob_that_changes_on_its_way_here_is_an_error(there: Registry, proxy: Proxy) -> None:
    there.put([SMALL])
    proxy.fault("GET", "*", changes_a_byte)
    with pytest.raises(CorruptBlobError, match=f"the blob {digest(SMALL)} is another"):
        content(there, digest(SMALL))


def test_a_damaged_manifest_is_an_error(there: Registry, proxy: Proxy) -> None:
    name = there.put_manifest(image_of(there, SMALL), MANIFEST, "v1")
    for reference in ("v1", name):
        proxy.fault("GET", "*/manifests/*", changes_a_byte)
        with pytest.raises(CorruptBlobError, match="is another"):
            there.manifest(reference)


def test_a_blob_that_is_not_there_is_an_error(there: Registry) -> None:
    with pytest.raises(ImageError, match="there is no blob") as caught:
        content(there, digest(b"nobody has this"))
    assert caught.value.where == there.name


# what is no registry


def test_a_name_that_nobody_knows() -> None:
    with (
        repository("registry.invalid", "team/analysis") as there,
        pytest.raises(RegistryError, match=r"the name registry\.invalid is not known") as caught,
    ):
        there.size(digest(SMALL))
    assert caught.value.where == "registry.invalid"


def test_a_port_where_nothing_listens() -> None:
    with (
        repository(f"127.0.0.1:{free_port()}", "team/analysis") as there,
        pytest.raises(RegistryError, match="nothing listens there"),
    ):
        there.size(digest(SMALL))


def test_a_server_that_is_no_registry(there: Registry, proxy: Proxy) -> None:
    for method in ("HEAD", "POST"):
        proxy.fault(method, "*", answers(418, body=b"<html>"))
    with pytest.raises(RegistryError, match="418") as caught:
        there.size(digest(SMALL))
    assert "Is it a registry at all?" in caught.value.hint
    with pytest.raises(RegistryError, match="418"):
        there.put([SMALL])


def test_redirections_in_circles_are_an_error(there: Registry, proxy: Proxy) -> None:
    proxy.fault("HEAD", "*", answers(307, {"Location": "/v2/again"}), times=99)
    with pytest.raises(RegistryError, match="in circles"):
        there.size(digest(SMALL))


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999/x", "http://[::bad/x", "http://[bad]/x", "file:///etc/passwd"]
)
def test_addresses_that_are_none_are_errors(there: Registry, proxy: Proxy, address: str) -> None:
    login = {"WWW-Authenticate": f'Bearer realm="{address}",service="x"'}
    for method, answer in (
        ("HEAD", answers(401, login)),
        ("POST", answers(202, {"Location": address})),
        ("GET", answers(401, login)),
    ):
        proxy.fault(method, "*", answer, times=9)
    if "[" not in address:  # httpx refuses these itself
        proxy.fault("HEAD", "*", answers(307, {"Location": address}))
        with pytest.raises(RegistryError):
            there.size(digest(SMALL))
    for ask in (lambda: there.size(digest(SMALL)), lambda: there.put([SMALL]), lambda: there.manifest("x")):
        with pytest.raises(RegistryError) as raised:
            ask()
        assert raised.value.hint


def test_what_is_no_manifest_says_where(there: Registry, proxy: Proxy) -> None:
    proxy.fault("GET", "*", answers(200, {"Content-Type": "text/html"}, b"<html>"))
    with pytest.raises(ImageError, match="no JSON") as raised:
        there.manifest("x")
    assert raised.value.where == there.name


# several at once


def test_many_threads_push_at_once_the_same_too(docker_registry: DockerRegistry) -> None:
    blobs = [bytes([number]) * (3 << 20) for number in range(4)] * 3
    failed: list[EnvsyncError] = []

    def push(data: bytes) -> None:
        try:
            shared.put(Made(data))
        except EnvsyncError as error:
            failed.append(error)

    with repository(docker_registry.host) as shared:
        threads = [threading.Thread(target=push, args=(data,)) for data in blobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert [shared.size(digest(data)) for data in blobs] == [3 << 20] * len(blobs)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_closing_ends_what_others_are_sending(there: Registry, proxy: Proxy, method: str) -> None:
    """Also where the registry never answers."""
    hanging, over = threading.Event(), threading.Event()

    def hangs(handler: Handler) -> None:
        hanging.set()
        over.wait(30)
        handler.hang_up()

    proxy.fault(method, "*", hangs, times=99)
    raised: list[BaseException] = []

    def push() -> None:
        try:
            there.put(Made(LARGE))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    assert hanging.wait(60)
    there.close()
    thread.join(60)
    over.set()
    assert not thread.is_alive()
    assert isinstance(raised[0], RegistryError)
    assert "ended from here" in str(raised[0])
