"""What every place of images does: a folder, or a repository of a registry."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from envsync.errors import CorruptBlobError, EnvsyncError, ImageError
from envsync.images.layout import Layout
from envsync.images.oci import CONFIG, LAYER_GZIP, MANIFEST, Descriptor, Images, Manifest
from envsync.images.reference import Reference
from envsync.images.registry import Registry

BLOB = b"what a layer holds " * 1000


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(params=["layout", pytest.param("registry", marks=pytest.mark.lab)])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Images]:
    made: Images
    if request.param == "layout":
        made = Layout(tmp_path / "images")
    else:
        host = request.getfixturevalue("docker_registry").host
        made = Registry(Reference.parse(f"{host}/contract/{os.urandom(6).hex()}"))
    yield made
    made.close()
    made.close()  # what is closed already is left alone


def image_of(images: Images, *layers: bytes) -> bytes:
    for data in (b"{}", *layers):
        images.put([data])
    return Manifest(
        config=Descriptor.of(b"{}", CONFIG),
        layers=tuple(Descriptor.of(data, LAYER_GZIP) for data in layers),
    ).to_bytes()


def test_a_blob_is_there_once_it_was_put(images: Images) -> None:
    name = digest_of(BLOB)
    assert images.size(name) is None
    assert images.put(iter([BLOB[:10], b"", BLOB[10:]])) == (name, len(BLOB))
    assert images.size(name) == len(BLOB)
    assert b"".join(images.open(name)) == BLOB


def test_a_blob_is_put_again(images: Images) -> None:
    assert images.put([BLOB]) == images.put([BLOB], digest=digest_of(BLOB), size=len(BLOB))


def test_an_empty_blob(images: Images) -> None:
    assert images.put([]) == (digest_of(b""), 0)
    assert images.size(digest_of(b"")) == 0
    assert b"".join(images.open(digest_of(b""))) == b""


@pytest.mark.parametrize("wrong", [{"digest": digest_of(b"else")}, {"size": 3}], ids=["digest", "size"])
def test_a_blob_that_is_another_is_not_kept(images: Images, wrong: dict[str, object]) -> None:
    with pytest.raises(CorruptBlobError):
        images.put([BLOB], **wrong)  # type: ignore[arg-type]
    assert images.size(digest_of(BLOB)) is None


def test_a_blob_that_could_not_be_made_is_not_kept(images: Images) -> None:
    def made() -> Iterator[bytes]:
        yield BLOB
        raise ImageError("a wheel has gone")

    with pytest.raises(ImageError, match="a wheel has gone"):
        images.put(made())
    assert images.size(digest_of(BLOB)) is None


def test_a_blob_that_is_not_there_cannot_be_read(images: Images) -> None:
    with pytest.raises(ImageError) as caught:
        b"".join(images.open(digest_of(b"nobody put this")))
    assert caught.value.where == images.name


@pytest.mark.parametrize("text", ["", "sha256:", "../../../etc", "sha256:" + "A" * 64, "md5:" + "0" * 32])
def test_what_is_no_digest_is_refused(images: Images, text: str) -> None:
    with pytest.raises(ImageError, match="not a digest"):
        images.size(text)
    with pytest.raises(ImageError, match="not a digest"):
        b"".join(images.open(text))


def test_a_mount_of_what_is_nowhere_is_none(images: Images) -> None:
    assert images.mount(digest_of(b"nobody put this"), "contract/other") is False


def test_a_manifest_is_found_by_tag_and_digest(images: Images) -> None:
    for reference in ("v1", digest_of(b"nobody put this")):
        assert images.manifest(reference) is None
        assert images.manifest_digest(reference) is None
    data = image_of(images, BLOB)
    name = images.put_manifest(data, MANIFEST, "v1")
    assert name == digest_of(data)
    for reference in ("v1", name):
        assert images.manifest(reference) == (MANIFEST, name, data)
        assert images.manifest_digest(reference) == name
    assert images.manifest("v2") is None


def test_a_tag_moves_and_the_old_manifest_stays(images: Images) -> None:
    old = images.put_manifest(image_of(images, BLOB), MANIFEST, "v1")
    new = images.put_manifest(image_of(images, BLOB, b"more"), MANIFEST, "v1")
    assert old != new
    assert images.manifest_digest("v1") == new
    assert images.manifest_digest(old) == old


def test_a_manifest_without_a_tag(images: Images) -> None:
    name = images.put_manifest(image_of(images, BLOB), MANIFEST)
    assert images.manifest_digest(name) == name


def test_many_put_the_same_and_others_at_once(images: Images) -> None:
    failed: list[EnvsyncError] = []

    def put(data: bytes) -> None:
        try:
            images.put([data])
        except EnvsyncError as error:
            failed.append(error)

    blobs = [bytes([number]) * 100_000 for number in range(4)] * 3
    threads = [threading.Thread(target=put, args=(data,)) for data in blobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [images.size(digest_of(data)) for data in blobs] == [100_000] * len(blobs)
