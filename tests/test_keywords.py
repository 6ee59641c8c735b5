"""What the keywords of a cluster cannot be is said at once, with the keyword's name: nothing is rented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
import pytest

from envsync.errors import ConfigurationError
from envsync.runner import EC2, SyncedCluster
from envsync.runner.cloud.provider import Provider
from envsync.runner.keywords import demand, demand_known
from envsync.runner.profiles import read_profile

NUMBERS: tuple[Any, ...] = (5, 5.5)
LISTS: tuple[Any, ...] = ([], ["a"], {"a": 1})
OTHERS: tuple[Any, ...] = (b"x", True, object())

WRONG: dict[str, tuple[Any, ...]] = {
    "name": (5.5, *LISTS, *OTHERS),
    "store": (*NUMBERS, *LISTS, *OTHERS, Path("/folder")),
    "cwd": (*NUMBERS, *LISTS, *OTHERS, "/no/such/folder", "a\0b"),
    "lock": (*NUMBERS, *LISTS, *OTHERS),
    "hooks": (*NUMBERS, *LISTS, *OTHERS, print),
    "env": (*NUMBERS, ["a"], *OTHERS, ""),
    "credentials": (*NUMBERS, *LISTS, *OTHERS, None, "", [["aws"]]),
    "impersonate": (*NUMBERS, *LISTS, *OTHERS, ""),
    "security": (*NUMBERS, *LISTS, ""),
    "memory_limit": (*LISTS, *OTHERS, "", "lots", "-1 GB", -5, float("nan")),
    "n_workers": (5.5, *LISTS, *OTHERS, "", "5"),
    "host": (*NUMBERS, *LISTS, *OTHERS, "a\0b"),
    "protocol": (*NUMBERS, *LISTS, *OTHERS, "a\nb"),
    "interface": (*NUMBERS, *LISTS, *OTHERS),
    "scheduler_port": (5.5, *LISTS, *OTHERS, "", "8786"),
    "dashboard_address": (5.5, *LISTS, *OTHERS),
    "worker_dashboard_address": (5.5, *LISTS, *OTHERS),
    "blocked_handlers": (*NUMBERS, {"a": 1}, *OTHERS, "a"),
    "service_kwargs": (*NUMBERS, ["a"], *OTHERS, "a"),
    "scheduler_kwargs": (*NUMBERS, ["a"], *OTHERS, "a"),
    "resources": (*NUMBERS, ["GPU"], *OTHERS, "GPU=1"),
    "worker_class": (*NUMBERS, *LISTS, *OTHERS, "", "no.such.Worker"),
    "start_timeout": (*LISTS, *OTHERS, "", "5 min", 0, -1, float("nan")),
    "report_timeout": (*LISTS, *OTHERS, "", 0),
    "silence_logs": (5.5, *LISTS, "a\0b"),
    "scheduler_sync_interval": (*LISTS, True, "", "soon"),
    "max_cost": (*LISTS, *OTHERS, "", "lots"),
    "client_timeout": (*LISTS, True, "", "soon"),
}


@pytest.fixture
def nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def provider(self: EC2) -> Provider:
        raise AssertionError("the cloud is asked")

    monkeypatch.setattr(EC2, "provider", provider)


@pytest.mark.usefixtures("nothing_is_asked")
@pytest.mark.parametrize("keyword", WRONG)
def test_it_is_refused_with_the_keywords_name(keyword: str) -> None:
    for wrong in WRONG[keyword]:
        keywords: dict[str, Any] = {keyword: wrong}
        with pytest.raises((TypeError, ValueError), match=rf"\b{keyword}\b"):
            SyncedCluster(EC2("small"), **keywords)
    with pytest.raises(ValueError, match="engine must be"):
        SyncedCluster(EC2("small"), env="image:registry.example.org/x", engine="rocket")


@pytest.mark.usefixtures("nothing_is_asked")
@pytest.mark.parametrize(
    ("keyword", "said"),
    [("n_worker", "did you mean n_workers="), ("stroe", "did you mean store="), ("xyz", "nor has a worker")],
)
def test_a_keyword_that_is_misspelt_is_no_option_of_workers(keyword: str, said: str) -> None:
    keywords: dict[str, Any] = {keyword: 1}
    with pytest.raises(TypeError, match=f"no keyword {keyword}=: {said}"):
        SyncedCluster(EC2("small"), **keywords)


def test_what_workers_have_is_passed_on() -> None:
    demand_known(["resources", "lifetime", "local_directory", "preload", "nanny", "death_timeout"], [])


def test_what_makes_sense_is_let_pass(tmp_path: Path) -> None:
    """What LocalCluster takes, too; None is as if it was not given."""
    kinds: tuple[Callable[[str], Any], ...] = (str, Path)
    for kind in kinds:
        demand(cwd=kind(str(tmp_path)), lock=kind("pylock.toml"))
    demand(name=5, store="", scheduler_port=8786, dashboard_address=8787, start_timeout=float("inf"))
    for limit in ("auto", "4GB", 0, 0.5, 4e9):
        demand(memory_limit=limit)
    for level in ("error", 30, False):
        demand(silence_logs=level)
    demand(**dict.fromkeys(WRONG))


@pytest.mark.parametrize(
    ("key", "wrong"), [("store", 5), ("start-timeout", "5 min"), ("memory-limit", "lots")]
)
def test_a_profile_that_says_so_is_an_error_of_the_configuration(key: str, wrong: Any) -> None:
    profiles = {"night": {"backend": "ec2", "type": "small", key: wrong}}
    with (
        dask.config.set({"envsync.profiles": profiles}),
        pytest.raises(ConfigurationError, match=key.replace("-", "_")) as told,
    ):
        read_profile("night")
    assert told.value.where == "envsync.profiles.night"
