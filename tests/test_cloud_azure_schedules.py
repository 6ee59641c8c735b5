"""Azure's own dead-man's switch, on an imitation whose clock is told: who lives moves it on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina

from envsync.errors import CapacityError, CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud import azure
from envsync.runner.cloud.azure import AzureProvider
from envsync.runner.cloud.provider import CLUSTER, MachineRequest, Tags
from envsync.runner.cloud.renting import Plan, Rented
from tests.azure_api import AzureApi
from tests.azure_refusal import refusal

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
SAYS = f"-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@a\n-----END SSH HOST KEY KEYS-----\n"
TAGS = Tags(cluster="ada-1", owner="ada@laptop")
REGION, TYPE, HOUR, LEASE = "westeurope", "Standard_D4s_v5", 3600.0, 120.0


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureApi]:
    monkeypatch.setattr(azure, "_LOOK", 0.0)
    with AzureApi(tmp_path) as api, api.used(), stamina.set_testing(True, attempts=8, cap=True):
        api.says = SAYS
        yield api


@pytest.fixture
def provider(api: AzureApi) -> AzureProvider:
    return AzureProvider([REGION])


def made(provider: AzureProvider, number: int = 1, lease: float = LEASE) -> str:
    shared = provider.open(REGION, TYPE, TAGS, KEY)
    asked = MachineRequest(
        shared=shared, type=TYPE, token=f"{number:012d}", tags=TAGS, user_data="#!/bin/sh\n", lease=lease
    )
    return provider.create(asked).id


def powers(api: AzureApi) -> list[str]:
    return [one["power"] for one in api.machines().values()]


def schedules(api: AzureApi) -> list[dict[str, Any]]:
    return [one for one in api.resources.values() if one["type"].endswith("/schedules")]


def test_machines_of_a_client_that_is_gone_cost_nothing_some_hours_later(
    api: AzureApi, provider: AzureProvider
) -> None:
    """Even if it was killed while its machine was being made."""
    one = made(provider)
    (schedule,) = schedules(api)
    assert schedule["tags"][CLUSTER] == TAGS.cluster
    api.machines()[one]["power"] = "stopped"  # its own switch
    api.pass_time(5.9 * HOUR)
    assert powers(api) == ["stopped"]
    api.pass_time(0.2 * HOUR)
    assert powers(api) == ["deallocated"]
    found = {each.kind: each for each in provider.found(REGION)}
    assert set(found) == {"machine", "group"}  # a schedule is nothing of its own
    assert found["machine"].state == "stopped"  # which reap knows as ended
    assert provider.remove(REGION, found["machine"])
    assert provider.remove(REGION, found["group"])
    assert api.left() == []


def test_a_living_client_moves_it_on_for_longer_than_a_day(api: AzureApi, provider: AzureProvider) -> None:
    """By Azure's clock: this machine's own is another."""
    one = made(provider)
    for _ in range(30):
        provider.renew(REGION, [one], TAGS, LEASE)
        api.pass_time(HOUR + 1)
        assert [one.state for one in provider.describe(REGION, TAGS.cluster)] == ["running"]
    assert len([call for call in api.asked if "/schedules/" in call.path]) == 30, "one call an hour"
    api.pass_time(6 * HOUR)
    assert powers(api) == ["deallocated"]


def test_a_client_may_be_away_for_as_long_as_its_timeout_says(api: AzureApi, provider: AzureProvider) -> None:
    away = 12 * HOUR
    one = made(provider, lease=away)
    for _ in range(3):
        api.pass_time(HOUR - 1)  # the longest that it is not moved on
        provider.describe(REGION, TAGS.cluster)  # it hears what time it is
        provider.renew(REGION, [one], TAGS, away)
        api.pass_time(away)
        assert powers(api) == ["running"]
        provider.describe(REGION, TAGS.cluster)
        provider.renew(REGION, [one], TAGS, away)  # it is back, in time for today's
    api.pass_time(away)
    assert powers(api) == ["running"]
    two = made(provider, 2, lease=30 * HOUR)
    with pytest.raises(CloudError, match="client_timeout of 30 h") as told:
        provider.renew(REGION, [two], TAGS, 30 * HOUR)
    assert len(schedules(api)) == 1
    assert "envsync reap" in told.value.hint


def test_one_that_is_refused_is_told_and_keeps_no_other(api: AzureApi, provider: AzureProvider) -> None:
    api.registered.clear()
    machines = [made(provider, number) for number in range(3)]
    assert schedules(api) == []
    api.registered.add("Microsoft.DevTestLab")
    api.fail(f"PUT .*/schedules/.*{machines[0]}$", refusal("AuthorizationFailed", "no authorization", 403))
    with pytest.raises(CloudError, match=f"{machines[0]} could not be made: .*no authorization") as told:
        provider.renew(REGION, [*machines, "not-there"], TAGS, LEASE)
    assert "howto-azure.md" in told.value.hint
    assert "but `envsync reap`" in told.value.hint
    assert len(schedules(api)) == 2
    provider.renew(REGION, machines, TAGS, LEASE)
    assert len(schedules(api)) == 3
    api.pass_time(2 * HOUR)
    provider.describe(REGION, TAGS.cluster)
    api.fail("PUT .*/schedules/", refusal("ExpiredAuthenticationToken", "has expired", 401), times=9)
    with pytest.raises(CloudError, match="could not be moved on") as told:
        provider.renew(REGION, machines, TAGS, LEASE)
    assert "az login" in told.value.hint
    assert "deallocates the machine at 12:00 UTC" in told.value.hint


def test_machines_that_come_and_go_leave_no_schedules(api: AzureApi, provider: AzureProvider) -> None:
    stays = made(provider)
    for number in range(2, 5):
        provider.terminate(REGION, [made(provider, number)])
    api.shortages.append(("AllocationFailed", "no room"))
    with pytest.raises(CapacityError):
        made(provider, 5)
    assert len(schedules(api)) == 5
    api.fail("DELETE .*/schedules/", refusal("TooManyRequests", status=429))
    provider.renew(REGION, [stays], TAGS, LEASE)
    assert [one["name"] for one in schedules(api)] == [f"shutdown-computevm-{stays}"]
    provider.terminate(REGION, [stays])
    assert provider.close(REGION, TAGS.cluster) == ()
    made(provider, 6)
    api.asked.clear()
    provider.renew(REGION, [], TAGS, LEASE)  # what was there is not asked for: it went with its group
    assert api.asked == []


async def test_a_cluster_has_it_for_each_machine_and_says_where_there_is_none(
    api: AzureApi, provider: AzureProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AzureProvider, "renews", 0.0001)
    api.registered.clear()
    heard = Heard()
    rented = Rented(provider, Plan(type=TYPE, count=2, tags=TAGS, poll=0.01, watch=0.01), heard)
    first = await rented.start()
    second = await rented.another()
    assert {first.id, second.id} == set(api.machines())
    await until(lambda: len(heard.texts) > 1)
    assert "az provider register --namespace Microsoft.DevTestLab" in heard.texts[1]
    assert "`envsync reap`" in heard.texts[0]
    assert rented.trouble == heard.texts[1]
    api.registered.add("Microsoft.DevTestLab")
    await until(lambda: len(schedules(api)) == 2)
    api.pass_time(3 * HOUR)
    later = api.clock + 5 * HOUR
    await until(lambda: all(one["due"] > later for one in schedules(api)))
    assert len(heard.texts) == 2  # once, however often it was tried
    assert rented.trouble == ""
    await rented.close()
    assert api.left() == []


async def until(true: Callable[[], bool]) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
