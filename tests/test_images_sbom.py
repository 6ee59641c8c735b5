"""What an image is made of, as a CycloneDX document attached to it: right, the same everywhere, and found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from envsync.errors import ImageError, StoreError
from envsync.images import sbom as module
from envsync.images.base import Base
from envsync.images.build import Built, build
from envsync.images.inspecting import inspect
from envsync.images.layout import Layout
from envsync.images.oci import INDEX, MANIFEST, Images, sha256_of
from envsync.images.plan import Plan, plan
from envsync.images.reference import Reference
from envsync.images.referrers import Attached, referrers, tag_of
from envsync.images.registry import Registry
from envsync.images.sbom import CYCLONEDX, attach_sbom, read_sbom, sbom
from envsync.lock import Lock
from envsync.store import FolderStore
from tests.images import base_of_here, here, lock_of, tree_of
from tests.lab.registry import DockerRegistry, Handler, Proxy
from tests.overlays import make_wheel

CANARY = "hunter2-canary"
ABOUT = {
    "alpha": "License-Expression: MIT OR Apache-2.0\n",
    "beta": "License: BSD-3-Clause\n",
    "gamma": "License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License\n",
    "delta": f"License: {'All of its text. ' * 20}\n",
    "eps": "",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        return base_of_here(folder / "base")


class Bench:
    """A clean place to make images in."""

    def __init__(self, folder: Path, base: Base, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        self.folder = folder
        self.base = base
        self.store = FolderStore(folder / "store")
        self.layout = Layout(folder / "layout")

    def plan(self, code: str = "A = 1\n") -> Plan:
        wheels = []
        for name, lines in ABOUT.items():
            text = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{lines}\n"
            files = {f"{name}.py": "", f"{name}-1.0.dist-info/METADATA": text}
            wheels.append(make_wheel(self.folder / "wheels", name, "1.0", files))
        lock = lock_of(wheels, self.store)
        secret = f"https://ada:{CANARY}@registry.example.org/simple/"
        artifacts = [replace(one, index=secret, path=None, url=secret) for one in lock.artifacts()]
        locked = Lock.of(artifacts, here(), records=lock.records)
        return plan(locked, [tree_of("proj", {"proj.py": code}, self.store)], self.base)

    def push(self, planned: Plan, images: Images, tag: str = "t") -> tuple[Built, Attached]:
        built = build(planned, self.store, images, tags=[tag])
        return built, attach_sbom(planned, self.store, images, built.manifest)


@pytest.fixture
def bench(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, base, monkeypatch)


def components(found: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["components"] if one["type"] == kind}


@pytest.mark.slow
def test_it_says_what_the_image_is_made_of(bench: Bench) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    planned = bench.plan()
    named = replace(bench.base, reference=Reference.parse("registry.example.org/bases/python:3"))
    text = sbom(replace(planned, base=named), bench.store)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    found = json.loads(text)
    packages = components(found, "library")
    assert sorted(packages) == sorted(ABOUT)
    for one in planned.lock.artifacts():
        assert packages[one.name]["purl"] == f"pkg:pypi/{one.name}@1.0"
        assert packages[one.name]["hashes"] == [{"alg": "SHA-256", "content": one.sha256}]
    licences = {name: one.get("licenses") for name, one in packages.items()}
    assert licences == {
        "alpha": [{"expression": "MIT OR Apache-2.0"}],
        "beta": [{"license": {"id": "BSD-3-Clause"}}],
        "gamma": [{"license": {"name": "MIT License"}}],
        "delta": None,
        "eps": None,
    }
    below = components(found, "container")["registry.example.org/bases/python"]
    assert below["version"] == bench.base.digest
    assert below["purl"].startswith("pkg:oci/python@sha256")
    assert components(found, "platform")["python"]["version"] == planned.version
    assert found["metadata"]["component"]["version"] == planned.lock.digest
    whole = {one["ref"]: one.get("dependsOn") for one in found["dependencies"]}
    everything = whole[found["metadata"]["component"]["bom-ref"]]
    assert everything is not None
    assert len(everything) == len(found["components"])


_ELSEWHERE = """
import sys
from pathlib import Path
import pytest
from envsync.images.base import Base
from envsync.images.layout import Layout
from envsync.images.sbom import sbom
from tests.images import PLATFORM
from tests.lab.bases import TAG
from tests.test_images_sbom import Bench
base = Base.open(Layout(sys.argv[1]), TAG, PLATFORM)
bench = Bench(Path(sys.argv[2]), base, pytest.MonkeyPatch())
sys.stdout.buffer.write(sbom(bench.plan("B = 2"), bench.store))
"""


@pytest.mark.slow
def test_the_same_everywhere_and_of_no_machine(bench: Bench, tmp_path: Path) -> None:
    mine = sbom(bench.plan(), bench.store)
    assert isinstance(bench.base.images, Layout)
    other = tmp_path / "other"
    root = Path(__file__).resolve().parent.parent
    its = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, bench.base.images.folder, other],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        check=True,
        capture_output=True,
    ).stdout
    assert its == mine, "another process, folder and time zone; and local code has no part in it"
    assert "timestamp" not in json.loads(mine)["metadata"]
    for text in (CANARY, str(tmp_path), str(bench.base.images.folder), socket.gethostname(), "proj"):
        assert text.encode() not in mine


def test_another_package_is_another_document(bench: Bench) -> None:
    planned = bench.plan()
    fewer = replace(planned, lock=Lock.of(planned.lock.artifacts()[1:], here()))
    one, two = (json.loads(sbom(each, bench.store)) for each in (planned, fewer))
    assert one["serialNumber"] != two["serialNumber"]


def test_attached_in_a_folder(bench: Bench) -> None:
    planned = bench.plan()
    built, attached = bench.push(planned, bench.layout)
    assert attached.sent > 0
    assert bench.push(planned, bench.layout)[1] == replace(attached, sent=0)
    (found,) = referrers(bench.layout, built.digest)
    assert (found.digest, found.artifact_type) == (attached.digest, CYCLONEDX)
    assert found.annotations["org.envsync.lock"] == planned.lock.digest
    assert read_sbom(bench.layout, "t") == json.loads(sbom(planned, bench.store))
    assert bench.layout.tags() == ["t"]
    assert inspect(bench.layout).digest == built.digest, "the folder has one image, as before"

    edited, again = bench.push(bench.plan("A = 2\n"), bench.layout)
    assert edited.digest != built.digest
    assert 0 < again.sent < 3000, "the document itself is there"
    assert read_sbom(bench.layout, edited.digest) == read_sbom(bench.layout, built.digest)


def test_what_is_not_there_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = bench.plan()
    build(planned, bench.store, bench.layout, tags=["t"])
    with pytest.raises(ImageError, match="no SBOM is attached to the image"):
        read_sbom(bench.layout, "t")
    with pytest.raises(ImageError, match="there is no image 'x'"):
        read_sbom(bench.layout, "x")
    with pytest.raises(StoreError):
        sbom(planned, FolderStore(bench.folder / "empty"))
    monkeypatch.setattr(module, "_LIBRARY", "a-library-that-nobody-has")
    with pytest.raises(ImageError, match="is not installed"):
        sbom(planned, bench.store)


def test_a_tag_of_something_else_is_left_alone(bench: Bench) -> None:
    planned = bench.plan()
    built = build(planned, bench.store, bench.layout, tags=["t"])
    found = bench.layout.manifest("t")
    assert found is not None
    bench.layout.put_manifest(found[2], MANIFEST, tag_of(built.digest))
    with pytest.raises(ImageError, match="is of something else"):
        attach_sbom(planned, bench.store, bench.layout, built.manifest)
    assert bench.layout.manifest_digest(tag_of(built.digest)) == built.digest


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[Proxy]:
    with Proxy(docker_registry) as one:
        yield one


def repository(proxy: Proxy) -> Registry:
    return Registry(Reference.parse(f"{proxy.host}/team/{os.urandom(4).hex()}"))


@pytest.mark.lab
def test_a_registry_that_keeps_no_list(bench: Bench, proxy: Proxy, tmp_path: Path) -> None:
    """Debian's: the list is an index under a tag; others' entries stay in it."""
    planned = bench.plan()
    with repository(proxy) as images:
        built = build(planned, bench.store, images, tags=["t"])
        tag = tag_of(built.digest)
        theirs = {"artifactType": "application/x.theirs", **built.manifest.to_dict()}
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [theirs]}
        images.put_manifest(json.dumps(document).encode(), INDEX, tag)
        attached = attach_sbom(planned, bench.store, images, built.manifest)
        assert attach_sbom(planned, bench.store, images, built.manifest) == replace(attached, sent=0)
        assert read_sbom(images, "t") == json.loads(sbom(planned, bench.store))

        place = f"{proxy.upstream.url}/v2/{images.repository}"
        assert httpx.get(f"{place}/referrers/{built.digest}").status_code == 404
        raw = httpx.get(f"{place}/manifests/{tag}", headers={"Accept": INDEX}).json()
        kinds = [one["artifactType"] for one in raw["manifests"]]
        assert kinds == ["application/x.theirs", CYCLONEDX]
        artifact = httpx.get(f"{place}/manifests/{attached.digest}", headers={"Accept": MANIFEST})
        assert sha256_of(artifact.content) == attached.digest == raw["manifests"][1]["digest"]
        assert artifact.json()["subject"] == built.manifest.to_dict()
        (layer,) = artifact.json()["layers"]
        assert httpx.get(f"{place}/blobs/{layer['digest']}").content == sbom(planned, bench.store)

    name = f"docker://{proxy.upstream.host}/{images.repository}"
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"{name}@{attached.digest}"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout)["artifactType"] == CYCLONEDX


class Listing(Proxy):
    """A registry with the list that version 1.1 of the specification describes, one entry a page."""

    def __init__(self, upstream: DockerRegistry) -> None:
        super().__init__(upstream)
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def serve(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        if "/referrers/" in path:
            kept = self.kept.get(path.rpartition("/")[2], [])
            page = int(query.removeprefix("page=") or 0)
            headers = {"Content-Type": INDEX}
            if page + 1 < len(kept):
                headers["Link"] = f'<{path}?page={page + 1}>; rel="next"'
            body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": kept[page : page + 1]}
            return handler.answer(200, headers, json.dumps(body).encode())
        data = handler.body()
        if handler.command == "PUT" and "/manifests/" in path and b'"subject"' in data:
            found = json.loads(data)
            entry = {"mediaType": MANIFEST, "digest": sha256_of(data), "size": len(data)}
            entry |= {"artifactType": found["artifactType"], "annotations": found["annotations"]}
            self.kept.setdefault(found["subject"]["digest"], []).append(entry)
        return handler.answer(*self.forward(handler, data))


@pytest.mark.lab
def test_a_registry_that_keeps_a_list(bench: Bench, docker_registry: DockerRegistry) -> None:
    planned = bench.plan()
    with Listing(docker_registry) as listing, repository(listing) as images:
        built = build(planned, bench.store, images, tags=["t"])
        theirs = {"artifactType": "application/x.theirs", **built.manifest.to_dict()}
        listing.kept[built.digest] = [theirs]
        attached = attach_sbom(planned, bench.store, images, built.manifest)
        assert [one.digest for one in referrers(images, built.digest)] == [built.digest, attached.digest]
        assert read_sbom(images, "t") == json.loads(sbom(planned, bench.store))
        assert images.manifest_digest(tag_of(built.digest)) is None, "no tag that nobody needs"
        listing.requests.clear()
        assert attach_sbom(planned, bench.store, images, built.manifest).sent == 0
        assert {one.method for one in listing.requests} == {"GET"}
        assert len(listing.requests) == 2, "a page each"
