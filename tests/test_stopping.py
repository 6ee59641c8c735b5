"""Clusters that somebody ends from elsewhere: twice at once, and with a store that takes nothing."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from envsync.cli import cli
from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.runner import stopping
from envsync.runner.cloud.provider import Found, MachineRequest, Tags
from envsync.runner.records import Record, Records, owner
from envsync.runner.stopping import Clusters, stop
from envsync.stores import open_store
from tests.cloud_fake import FakeProvider


class Heard(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    """A cloud in which the lost cluster ada-1 has two machines."""
    made, tags = FakeProvider(), Tags(cluster="ada-1", owner="ada@laptop")
    shared = made.open("north", "small", tags, "key")
    for token in "ab":
        made.create(
            MachineRequest(shared=shared, type="small", zone="north-a", token=token, tags=tags, user_data="")
        )
    monkeypatch.setattr(stopping, "open_provider", lambda *_: made)
    return made


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with its record."""
    record = Record(
        cluster="ada-1", name="ada", owner="ada@laptop", backend="fake", regions=("north",),
        begun=1000.0, seen=1100.0, patience=1.0,
    )  # fmt: skip
    Records(open_store(tmp_path.as_uri())).keep(record)
    os.utime(tmp_path / "clusters/alive/ada-1.json", (1e9, 1e9))
    return tmp_path.as_uri()


def left(provider: FakeProvider) -> list[Found]:
    return [one for region in provider.regions for one in provider.found(region)]


def test_two_who_stop_it_at_once_both_see_it_end(
    provider: FakeProvider, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, found = threading.Barrier(2), provider.found
    looks = itertools.count()

    def together(region: str) -> tuple[Found, ...]:
        there = found(region)
        if next(looks) < 2:  # each has seen all of it before the other ends anything
            both.wait(30)
        return there

    monkeypatch.setattr(provider, "found", together)

    def one(_: int) -> str:
        (living,) = Clusters(url).alive()
        both.wait(30)  # each takes it for one that has not ended
        return stop(living, Hooks())

    with ThreadPoolExecutor(2) as pool:
        assert all("without its client" in how for how in pool.map(one, range(2)))
    assert left(provider) == []
    assert Clusters(url).alive() == []
    assert [one.cluster for one in Clusters(url).ended()] == ["ada-1"]


def test_a_store_that_takes_nothing_keeps_nobody_from_ending_machines(
    provider: FakeProvider, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (living,) = Clusters(url).alive()

    def refuse(*_: Any) -> None:
        raise StoreError("it may only be read")

    for name in ("wish_end", "keep"):
        monkeypatch.setattr(living.place, name, refuse)
    hooks = Heard()
    assert "without its client" in stop(living, hooks)
    assert left(provider) == []
    assert hooks.warnings == [
        "its client cannot be asked to end it: it may only be read",
        "its record cannot be closed: it may only be read",
    ]


def test_a_variable_that_is_not_set_is_no_cluster(provider: FakeProvider, url: str) -> None:
    nameless = Record(cluster="envsync-1", name="", owner=owner(), backend="ssh", begun=1000.0, seen=1100.0)
    Records(open_store(url)).keep(nameless)
    done = CliRunner().invoke(cli, ["stop", "", "--store", url])
    assert done.exit_code == 2
    assert Clusters(url).places[0].wished_by("envsync-1") == ""
