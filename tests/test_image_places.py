"""What a user may mean by a name: an image in a registry, one in a folder, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from envsync.errors import ImageError
from envsync.images.layout import Layout
from envsync.images.places import ImagePlace, is_image
from envsync.images.registry import Registry


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("registry.example.org/team/analysis", True),
        ("registry.example.org/team/analysis:1@sha256:" + "0" * 64, True),
        ("localhost/analysis", True),
        ("host:5000/analysis", True),
        ("oci:images", True),
        ("image:team/analysis", True),
        ("team/analysis", False),  # a path, as far as anybody can tell
        ("./registry.example.org/x", False),
        ("../x.y/z", False),
        ("~/x.y/z", False),
        ("/usr/lib/python3.11/x", False),
        ("there.is/such", False),
        ("ssh://host.example.org/python", False),
        ("tcp://host:8786", False),
        ("pylock.toml", False),
        ("registry.example.org", False),
        (".", False),
    ],
)
def test_images_are_told_from_what_else_can_be_compared(
    text: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.is" / "such").mkdir(parents=True)
    assert is_image(text) is wanted


def test_a_repository_of_a_registry() -> None:
    place = ImagePlace.parse("image:registry.example.org/team/analysis:v1")
    assert (str(place), place.version) == ("registry.example.org/team/analysis:v1", "v1")
    images = place.open()
    assert isinstance(images, Registry)
    assert images.name == "registry.example.org/team/analysis"
    assert ImagePlace.parse("registry.example.org/x").version == "latest"


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = ImagePlace.parse("oci:images:v1")
    assert (str(place), place.version) == (f"oci:{tmp_path / 'images'}:v1", "v1")
    assert isinstance(place.open(), Layout)
    assert ImagePlace.parse("oci:images").version == ""
    with pytest.raises(ImageError, match="names no folder"):
        ImagePlace.parse("oci::v1")


def test_a_folder_and_a_digest(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    for text in (f"oci:{tmp_path}@{digest}", f"oci:{tmp_path}:v1@{digest}", f"oci:{tmp_path}:{digest}"):
        place = ImagePlace.parse(text)
        assert (place.folder, place.version) == (tmp_path, digest)
    assert str(ImagePlace.parse(f"oci:{tmp_path}:v1@{digest}")) == f"oci:{tmp_path}:v1@{digest}"


def test_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text("of somebody")
    layout = Layout(tmp_path)
    assert layout.put([b"x"])[1] == 1
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ImageError, match="is not that of an image layout") as raised:
        layout.manifest("x")
    assert raised.value.where == layout.name


def test_passwords_in_names_are_not_said() -> None:
    with pytest.raises(ImageError) as raised:
        ImagePlace.parse("me:c4n4ry@registry.example.org/x")
    assert "c4n4ry" not in str(raised.value)
    assert "log in" in raised.value.hint


def test_what_is_no_image() -> None:
    for text in (
        "registry.example.org/Team/x",
        "registry.example.org/x:a b",
        "bad host/x",
        "",
        "host:65536/x",
        "oci:x:a b",
    ):
        with pytest.raises(ImageError, match="is not the name of an image"):
            ImagePlace.parse(text)
