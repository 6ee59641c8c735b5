"""Who lives tells the cloud so, on time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud import renewing
from envsync.runner.cloud.plan import Plan
from envsync.runner.cloud.provider import Tags
from envsync.runner.cloud.renewing import Renewing
from tests.cloud_fake import FakeProvider


class Told(FakeProvider):
    renews = 300.0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self.wrong = False

    def renew(self, region: str, ids: Sequence[str], tags: Tags, lease: float) -> None:
        self.calls.append([region, *ids])
        if self.wrong:
            raise CloudError("it is refused", where="fake", hint="Ask again.")


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.texts.append(text)


class Client:
    """A client of machines that are up."""

    def __init__(self, provider: FakeProvider) -> None:
        self.alive = {"north": ["m-1"]}
        self.heard = Heard()
        plan = Plan(type="small", count=1, tags=Tags(cluster="ada-1", owner="ada"))
        self.renewing = Renewing(
            provider, plan, alive=lambda: dict(self.alive), call=self._call, hooks=self.heard
        )

    async def _call(self, call: Any, *words: Any) -> Any:
        return call(*words)

    async def looks(self) -> None:
        self.renewing.look()
        if self.renewing._doing is not None:
            await self.renewing._doing


async def test_it_is_told_every_few_minutes_whatever_becomes_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider, now = Told(), SimpleNamespace(seconds=1e9)
    monkeypatch.setattr(renewing, "time", SimpleNamespace(time=lambda: now.seconds))
    client = Client(provider)
    for seconds, calls in ((0, 1), (299, 1), (1, 2), (5, 2), (-86400, 3), (299, 3), (1, 4), (8 * 3600, 5)):
        now.seconds += seconds
        await client.looks()
        assert len(provider.calls) == calls
    client.alive["north"].append("m-2")
    client.renewing.soon()  # a new machine does not wait
    await client.looks()
    assert provider.calls[5:] == [["north", "m-1", "m-2"]]


async def test_what_is_refused_is_said_once_an_hour_until_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, now = Told(), SimpleNamespace(seconds=1e9)
    monkeypatch.setattr(renewing, "time", SimpleNamespace(time=lambda: now.seconds))
    client = Client(provider)
    said = "it is refused. Ask again."
    for minutes, wrong, told in ((0, True, 1), (55, True, 1), (5, True, 2), (5, False, 2), (5, True, 3)):
        now.seconds += 60 * minutes
        provider.wrong = wrong
        client.renewing.soon()
        await client.looks()
        assert client.heard.texts == [said] * told
        assert client.renewing.trouble == (said if wrong else "")
    provider.wrong = False
    client.renewing.soon()
    await client.looks()

    def ended(*_: Any) -> None:
        client.alive.clear()
        raise CloudError("it is gone")

    monkeypatch.setattr(provider, "renew", ended)
    client.renewing.soon()
    await client.looks()
    assert (len(client.heard.texts), client.renewing.trouble) == (3, ""), (
        "that is no news of machines that have ended"
    )


async def test_a_cloud_that_has_no_such_thing_is_not_asked() -> None:
    client = Client(FakeProvider())
    await client.looks()
    client.renewing.soon()
    assert client.renewing._doing is None
    client = Client(provider := Told())
    await client.looks()
    client.renewing.close()
    client.renewing.soon()
    await client.looks()
    assert len(provider.calls) == 1, "nor one whose cluster is closed"
