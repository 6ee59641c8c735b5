"""Base images: which one it is for a platform, what is in it, and whether a lock fits it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.errors import CorruptBlobError, ImageError
from envsync.images.base import Base, fit, interpreter_for
from envsync.images.facts import Facts, Python
from envsync.images.layout import Layout
from envsync.images.oci import (
    INDEX,
    MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
)
from envsync.images.plan import plan
from envsync.images.reference import Reference
from envsync.indexes import read_settings
from envsync.interpreter import InterpreterArchive
from envsync.lock import Lock
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target
from tests.images import PLATFORM, base_of_here, documents, files_of_here, here, libc_here, tar_of
from tests.lab.bases import TAG, base_layout, put_image

VERSION = "{}.{}.{}".format(*sys.version_info[:3])
MINOR = VERSION.rpartition(".")[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from other tests."""
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        return base_of_here(folder / "base")


def test_what_is_in_a_base_is_read_from_its_files(base: Base) -> None:
    (python,) = base.facts.pythons
    assert (python.path, python.version, python.libc) == (f"/usr/local/bin/python{MINOR}", VERSION, "glibc")
    assert base.facts.libc == libc_here()
    assert base.facts.libraries == ("libgcc_s.so.1", "libstdc++.so.6")
    assert fit(base, here()) == python


def layers(tmp_path: Path, *files: dict[str, bytes | Path | str]) -> Facts:
    layout = Layout(tmp_path / "layers")
    put_image(layout, [[tar_of(one)] for one in files], platform=PLATFORM)
    return Base.open(layout, TAG, PLATFORM).facts


@pytest.mark.slow
def test_a_layer_hides_what_is_below_it(tmp_path: Path) -> None:
    files = files_of_here()
    hidden: dict[str, bytes | Path | str] = {f"usr/local/bin/.wh.python{MINOR}": b""}
    assert layers(tmp_path / "1", files, hidden).pythons == ()
    opaque: dict[str, bytes | Path | str] = {"usr/local/.wh..wh..opq": b""}
    assert layers(tmp_path / "2", files, opaque).pythons == ()
    # what a layer brings itself is not hidden by its own marks
    assert len(layers(tmp_path / "3", files, {**opaque, **files}).pythons) == 1


def test_a_python_without_its_library_is_none(tmp_path: Path) -> None:
    files = files_of_here()
    del files[f"usr/local/lib/python{MINOR}/asyncio/__init__.py"]
    assert layers(tmp_path, files).pythons == ()


def test_a_python_that_a_link_leads_to(tmp_path: Path) -> None:
    files = {path.replace("usr/local/", "opt/else/where/"): what for path, what in files_of_here().items()}
    files[f"usr/local/bin/python{MINOR}"] = f"/opt/else/where/bin/python{MINOR}"
    (python,) = layers(tmp_path, files).pythons
    assert python.path == f"/opt/else/where/bin/python{MINOR}"


def test_what_a_digest_stands_for_is_read_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    base = base_of_here(layout.folder)
    for layer in base.manifest.layers:
        (layout.folder / "blobs/sha256" / layer.digest[7:]).unlink()
    assert Base.open(layout, TAG, PLATFORM) == base
    nowhere = Layout(tmp_path / "nowhere")
    assert Base.open(nowhere, base.digest, PLATFORM).facts == base.facts


def test_a_layer_that_is_damaged(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    descriptor = put_image(layout, [[tar_of(files_of_here())]], platform=PLATFORM)
    manifest, _ = documents(layout, TAG)
    blob = layout.folder / "blobs/sha256" / manifest.layers[0].digest[7:]
    data = blob.read_bytes()
    for broken in (data[:-20_000], data[:3000] + bytes(100) + data[3100:], b"no layer"):
        blob.write_bytes(broken)
        with pytest.raises((ImageError, CorruptBlobError), match=manifest.layers[0].digest):
            Base.open(layout, descriptor.digest, PLATFORM)


def test_there_is_no_such_image(base: Base, tmp_path: Path) -> None:
    for images, version in ((base.images, "other"), (base.images, "sha256:" + "0" * 64)):
        with pytest.raises(ImageError, match=f"there is no image '{version}'"):
            Base.open(images, version, PLATFORM)
    with pytest.raises(ImageError, match="holds no image, or several"):
        Base.open(Layout(tmp_path / "empty"), "", PLATFORM)
    assert Base.open(base.images, "", PLATFORM) == base


# Several platforms


def several(folder: Path) -> Layout:
    layout = Layout(folder)
    listed = []
    for platform in (Platform(architecture="arm64", variant="v8"), Platform(architecture="amd64")):
        found = put_image(
            layout, [[tar_of({"etc/about": str(platform).encode()})]], platform=platform, tag=None
        )
        listed.append(replace(found, platform=platform))
    about = replace(listed[0], platform=Platform(architecture="unknown", os="unknown"))
    text = Index(manifests=(*listed, about)).to_bytes()
    layout.put_manifest(text, INDEX, "several")
    return layout


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_the_platform_is_chosen_from_a_list(machine: str, tmp_path: Path) -> None:
    layout = several(tmp_path / "layout")
    platform = Platform.of("linux", machine)
    found = Base.open(layout, "several", platform)
    assert found.config.platform.architecture == platform.architecture


def test_a_list_without_the_platform(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"is for linux/amd64, linux/arm64/v8, and linux/s390x is wanted"):
        Base.open(several(tmp_path / "layout"), "several", Platform(architecture="s390x"))


def test_a_manifest_for_another_platform(base: Base) -> None:
    with pytest.raises(ImageError, match=f"is for {PLATFORM}, and linux/s390x is wanted"):
        Base.open(base.images, TAG, Platform(architecture="s390x"))
    with pytest.raises(ImageError, match=f"is for {PLATFORM}, and linux/s390x is wanted"):
        fit(base, replace(here(), machine="s390x"))


def test_variants_of_platforms() -> None:
    arm = Platform(architecture="arm64")
    assert arm.runs(Platform(architecture="arm64", variant="v8"))
    assert not Platform(architecture="arm", variant="v6").runs(Platform(architecture="arm", variant="v7"))
    assert not arm.runs(Platform(architecture="arm64", os="windows"))


# Does it fit?


def facts(base: Base, **values: object) -> Base:
    return replace(base, facts=replace(base.facts, **values))  # type: ignore[arg-type]


def test_another_kind_of_libc(base: Base) -> None:
    with pytest.raises(ImageError, match=r"the base image has musl 1\.2\.3, and the lock is for glibc"):
        fit(facts(base, libc=("musl", "1.2.3")), here())
    with pytest.raises(ImageError, match="the base image has no C library"):
        fit(facts(base, libc=None), here())


def test_an_older_libc(base: Base) -> None:
    target = replace(here(), libc=("glibc", "2.99"))
    with pytest.raises(ImageError, match=rf"has glibc {libc_here()[1]}, older than glibc 2\.99"):
        fit(base, target)


def test_a_lock_for_another_system(base: Base) -> None:
    with pytest.raises(ImageError, match=r"the lock is for Python .*, darwin arm64"):
        fit(base, replace(here(), system="darwin", machine="arm64", libc=None))


def test_the_exact_version_is_preferred_to_a_newer_one(base: Base) -> None:
    pythons = tuple(Python(path=f"/{n}", version=f"3.11.{n}", libc="glibc") for n in (2, 7, 10))
    chosen = facts(base, pythons=(*pythons, Python(path="/musl", version="3.11.99", libc="musl")))
    for wanted, path in (("3.11.7", "/7"), ("3.11.3", "/10")):
        python = fit(chosen, replace(here(), python=wanted))
        assert python is not None
        assert python.path == path
    assert fit(chosen, replace(here(), python="3.12.1")) is None


async def test_no_python_and_none_to_put_on_top(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's, and nowhere to download it from."""
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    bare = facts(base, pythons=())
    machine = "aarch64" if here().machine == "x86_64" else "x86_64"
    other = replace(bare, config=replace(bare.config, platform=Platform.of("linux", machine)))
    supply = Supply(FolderStore(tmp_path), read_settings({}, project=tmp_path))
    with pytest.raises(ImageError, match=rf"no Python {MINOR} \(it has none\), and none can be put on top"):
        await interpreter_for(other, replace(here(), machine=machine), supply)
    assert await interpreter_for(base, here(), supply) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"machine": "s390x"}, "is for s390x"),
        ({"version": "3.9.1"}, r"is 3\.9\.1"),
        ({"libc": ("glibc", "2.99")}, r"needs glibc 2\.99"),
        ({"libc": ("musl", "1.2")}, r"needs musl 1\.2"),
    ],
)
def test_an_interpreter_that_does_not_fit(changed: dict[str, object], why: str, base: Base) -> None:
    bare, lock = facts(base, pythons=()), Lock.of([], here())
    archive = InterpreterArchive(version=VERSION, digest="0" * 64, size=1, machine=here().machine, libc=None)
    archive = replace(archive, **changed)  # type: ignore[arg-type]
    if why:
        with pytest.raises(ImageError, match=why):
            plan(lock, [], bare, interpreter=archive)
    else:
        assert plan(lock, [], bare, interpreter=archive).python == f"/opt/envsync/python/bin/python{MINOR}"
    with pytest.raises(ImageError, match="there is none to put on top"):
        plan(lock, [], bare)


# Real bases


@pytest.mark.lab
def test_debian_with_and_without_python(lab_bases: None) -> None:
    platform = Platform(architecture="amd64")
    bare = Base.open(Layout(base_layout("bare")), TAG, platform).facts
    assert (bare.libc, bare.pythons) == (("glibc", "2.36"), ())
    (python,) = Base.open(Layout(base_layout("python")), TAG, platform).facts.pythons
    assert python.path == "/usr/bin/python3.11"
    assert python.version.startswith("3.11.")


@pytest.mark.lab
def test_debian_for_another_machine(lab_bases: None) -> None:
    base = Base.open(Layout(base_layout("arm64")), TAG, Platform(architecture="arm64"))
    (python,) = base.facts.pythons
    assert (python.path, python.minor, base.facts.libc) == ("/usr/bin/python3.11", "3.11", ("glibc", "2.36"))
    target = base.target(here(), "aarch64")
    assert (target.machine, target.libc, target.python) == ("aarch64", ("glibc", "2.36"), VERSION)


@pytest.mark.lab
def test_musl(lab_bases: None) -> None:
    base = Base.open(Layout(base_layout("musl")), TAG, Platform(architecture="amd64"))
    assert base.facts.libc is not None
    assert base.facts.libc[0] == "musl"
    assert base.facts.libc[1].startswith("1.2.")
    with pytest.raises(ImageError, match=r"has musl 1\.2"):
        fit(base, Target(python=VERSION, libc=("glibc", "2.36")))


# Names


@pytest.mark.parametrize(
    ("text", "registry", "repository", "version"),
    [
        ("registry.example.org/team/analysis", "registry.example.org", "team/analysis", "latest"),
        ("registry.example.org:5000/a:1.0", "registry.example.org:5000", "a", "1.0"),
        ("localhost/a/b/c", "localhost", "a/b/c", "latest"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", "latest"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        ("python:3.11-slim", "docker.io", "library/python", "3.11-slim"),
        ("team/python", "docker.io", "team/python", "latest"),
        ("example.org/a_b/c--d.e@sha256:" + "0" * 64, "example.org", "a_b/c--d.e", "sha256:" + "0" * 64),
        ("example.org/a:t@sha256:" + "0" * 64, "example.org", "a", "sha256:" + "0" * 64),
    ],
)
def test_names_of_images(text: str, registry: str, repository: str, version: str) -> None:
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.version) == (registry, repository, version)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("example.org/Team/a", "write it in lower case"),
        ("example.org/", "cannot be part"),
        ("example.org/a:", "is not a tag"),
        ("example.org/a:b c", "is not a tag"),
        ("example.org/a@sha256:12", "64 lower-case"),
        ("exa mple.org/a", "is not a host|cannot be part"),
        ("example.org/a/../b", "cannot be part"),
        ("", "cannot be part"),
        ("example.org/" + "a" * 300, "at most 255"),
    ],
)
def test_what_is_no_name(text: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        Reference.parse(text)


# Documents


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"layers": 1}', b'{"layers": [], "config": {}}'])
def test_documents_that_are_none(text: bytes) -> None:
    with pytest.raises(ImageError):
        Manifest.from_bytes(text)
    with pytest.raises(ImageError):
        Index.from_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"config": {"Env": 5}}',
        b'{"config": {"Labels": ["a"]}}',
        b'{"config": {"Labels": "abc"}}',
        b'{"history": ["x"]}',
        b'{"rootfs": [1]}',
    ],
)
def test_configurations_that_are_none(text: bytes) -> None:
    with pytest.raises(ImageError, match="the image's configuration cannot be read"):
        Config.from_bytes(text)


@pytest.mark.parametrize("annotations", [b'"abc"', b"[1, 2]", b"5"])
def test_annotations_that_are_none(base: Base, annotations: bytes) -> None:
    manifest = (
        b'{"annotations": '
        + annotations
        + b","
        + base.manifest.to_bytes().replace(b'"annotations"', b'"_"')[1:]
    )
    with pytest.raises(ImageError, match="annotations cannot be read"):
        Manifest.from_bytes(manifest)
    with pytest.raises(ImageError, match="annotations cannot be read"):
        Index.from_bytes(b'{"manifests": [], "annotations": ' + annotations + b"}")


def test_what_cannot_be_read_says_where_it_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    layout.put_manifest(b'{"layers": 1}', MANIFEST, "x")
    with pytest.raises(ImageError) as raised:
        Base.open(layout, "x", PLATFORM)
    assert raised.value.where == layout.name


def test_documents_are_written_as_they_were_read(base: Base, tmp_path: Path) -> None:
    assert Manifest.from_bytes(base.manifest.to_bytes()) == base.manifest
    assert Config.from_bytes(base.config.to_bytes()) == base.config
    descriptor = Descriptor.of(b"x", MANIFEST)
    assert Descriptor.from_dict(descriptor.to_dict()) == descriptor
