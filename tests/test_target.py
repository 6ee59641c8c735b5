"""Targets: what runs where."""

from __future__ import annotations

import sys

import packaging.markers
import packaging.tags
import pytest

from envsync.errors import EnvsyncError
from envsync.target import Target

LINUX = Target(python="3.11.7", libc=("glibc", "2.31"))


def test_the_running_interpreter_is_described_as_packaging_sees_it() -> None:
    current = Target.current()
    ours, theirs = current.tags(), list(packaging.tags.sys_tags())
    assert set(theirs) <= set(ours)
    seen = packaging.markers.default_environment()
    made = current.marker_environment()
    for key in ("python_version", "python_full_version", "sys_platform", "platform_machine", "os_name"):
        assert made[key] == seen[key]


def test_tags_go_from_the_newest_libc_to_the_oldest_and_stop_at_the_hosts() -> None:
    platforms = [str(tag.platform) for tag in LINUX.tags() if tag.abi == "cp311"]
    assert platforms[0] == "manylinux_2_31_x86_64"
    assert "manylinux2014_x86_64" in platforms
    assert "manylinux_2_32_x86_64" not in platforms
    assert platforms.index("manylinux_2_17_x86_64") < platforms.index("manylinux1_x86_64")


def test_musl_and_macos_and_windows_have_their_own_tags() -> None:
    musl = Target(python="3.12.1", libc=("musl", "1.2"))
    assert any(str(tag.platform) == "musllinux_1_2_x86_64" for tag in musl.tags())
    assert not any("manylinux" in str(tag.platform) for tag in musl.tags())
    mac = Target(python="3.12.1", system="darwin", machine="arm64")
    assert any(str(tag.platform) == "macosx_11_0_arm64" for tag in mac.tags())
    windows = Target(python="3.12.1", system="windows", machine="AMD64")
    assert any(str(tag.platform) == "win_amd64" for tag in windows.tags())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (LINUX, "x86_64-manylinux_2_31"),
        (Target(python="3.12.1", machine="aarch64", libc=("musl", "1.2")), "aarch64-unknown-linux-musl"),
        (Target(python="3.12.1", system="darwin", machine="arm64"), "aarch64-apple-darwin"),
        (Target(python="3.12.1", system="windows", machine="AMD64"), "x86_64-pc-windows-msvc"),
    ],
)
def test_uv_has_a_name_for_each(target: Target, said: str) -> None:
    assert target.uv_platform == said


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(EnvsyncError, match="plan9"):
        _ = Target(python="3.12.1", system="plan9", machine="mips").uv_platform


def test_a_newer_libc_covers_an_older_one_and_not_the_other_way_round() -> None:
    newer = Target(python="3.11.2", libc=("glibc", "2.36"))
    assert newer.covers(LINUX)
    assert not LINUX.covers(newer)
    assert not newer.covers(Target(python="3.12.1", libc=("glibc", "2.31")))
    assert not newer.covers(Target(python="3.11.2", libc=("musl", "1.2")))
    assert not newer.covers(Target(python="3.11.2", machine="aarch64", libc=("glibc", "2.31")))


def test_a_probe_becomes_a_target_with_its_driver() -> None:
    probe = {
        "system": "Linux",
        "machine": "x86_64",
        "libc": ["glibc", "2.28"],
        "gpus": [{"driver": "550.54.14"}, {"driver": "550.54.14"}],
    }
    target = Target.from_probe(probe, python="3.11.7")
    assert target.accelerators == ("nvidia 550.54.14",)
    assert target.system == "linux"
    assert target.describe() == "Python 3.11.7, linux x86_64, glibc 2.28, nvidia 550.54.14"
    assert Target.from_dict(target.to_dict()) == target
    assert target.implementation == "cpython"
    assert Target.from_probe(probe, python="3.11.7", implementation="pypy").implementation == "pypy"


@pytest.mark.parametrize("broken", [{}, {"python": 3}, {"python": "3.11.7", "implementation": ""}])
def test_a_target_that_lacks_a_part_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(EnvsyncError, match="a target needs"):
        Target.from_dict(broken)


def test_this_machine_is_one_that_uv_knows() -> None:
    assert Target.current().python == ".".join(str(part) for part in sys.version_info[:3])
