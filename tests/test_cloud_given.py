"""What a user says of machines and makes no sense is refused when the backend is made: no cloud is asked."""

from __future__ import annotations

from typing import Any

import pytest

from envsync.runner import EC2, GCE, Azure, Hetzner, OpenStack
from envsync.runner.amounts import seconds
from envsync.runner.limits import Limits
from envsync.runner.options import Options

CLOUDS: tuple[Any, ...] = (EC2, GCE, Azure, Hetzner, OpenStack)


def each(key: str, said: str, *wrong: Any) -> list[tuple[dict[str, Any], str]]:
    return [({key: one}, said) for one in wrong]


WRONG = [
    *each("type", "type", None, "", 5, [], "m7i.large\n", "\x1b[2J"),
    *each("disk", "write 100 GB", "", 0, 100, -1, "-1 GB", "nan", float("inf"), "1e30 GB", True, "lots", []),
    *each("workers_per_machine", "workers_per_machine", 0, -1, 1.5, None, "2", True),
    *each("client_timeout", "at least 5 s", "1 ms", 1e-9, 4),
    *(
        wrong
        for key in ("client_timeout", "max_lifetime", "boot_timeout")
        for wrong in each(key, key, "", "forever", "0 s", "-1 h", "1e99 h", float("nan"), [], True)
    ),
    *each("commands", "shell commands", None, 5, [1], [None], ["a\0b"]),
    *each("private", "True or False", None, "no", 1),
    *each("tags", "tags", 5, "a=b", [1], {"": "x"}, {None: "x"}, {"a": None}, {"a": "b\nc"}),
    *each("tags", "envsync's own", {"Name": "x"}, {"envsync:cluster": "x"}, {"envsync-owner": "x"}),
    *each("cache", "cache", 5, [], "/a\nb"),
    *each("reached_from", "reached_from", None, "", [], 5.5, ["here"], ["10.0.0.1/99"], [""]),
    *each("image", "image", 5, [], "a\x00b"),
]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_makes_no_sense_is_refused_with_the_keywords_name(cloud: Any) -> None:
    for wrong, said in [*WRONG, *each(cloud.where, cloud.where, 5.5, [None], ["a", ""], {"a"})]:
        with pytest.raises(ValueError, match=said):
            cloud(**{"type": "small", **wrong})


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_is_not_given_is_left_out(cloud: Any) -> None:
    """As `os.environ.get` says it."""
    usual, nothing = cloud("small"), cloud("small", **{cloud.where: None, "image": None, "tags": None})
    assert vars(nothing) == vars(usual)
    assert vars(cloud("small", **{cloud.where: "here"})) == vars(cloud("small", **{cloud.where: ["here"]}))


def test_one_command_is_one_command_and_an_address_is_a_network() -> None:
    one = EC2("small", commands="apt-get update", reached_from="203.0.113.7", disk="100 GB", tags={"n": 5})
    assert (one.commands, one.disk, one.tags) == (("apt-get update",), 94, {"n": "5"})
    assert one._options["reached_from"] == ("203.0.113.7/32",)


def test_zones_may_be_numbers() -> None:
    zones: Any = [1, "westeurope-3"]
    assert Azure("small", zones=zones)._options["zones"] == ("1", "westeurope-3")


def test_a_clusters_own_timeout_is_as_long_at_least() -> None:
    with pytest.raises(ValueError, match="at least 5 s"):
        EC2("small").limited(Limits.of(client_timeout="1 s"))


def test_a_time_is_one_that_ends() -> None:
    assert seconds("3650 d") == 3650 * 86400
    for never in ("4000 d", 1e10, float("inf"), "9" * 5000 + ":00"):
        with pytest.raises(ValueError, match=r"is no time|longer than ten years"):
            seconds(never)


@pytest.mark.parametrize("wrong", [1.5, "3", True, float("nan")])
def test_workers_are_whole(wrong: Any) -> None:
    for name in ("n_workers", "threads_per_worker"):
        with pytest.raises(TypeError, match=f"{name} has to be a whole number"):
            Options(local=False, **{name: wrong})
