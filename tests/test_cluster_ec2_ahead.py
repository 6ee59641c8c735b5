"""A cluster on rented machines of this environment as it is: it is locked for while they boot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from envsync import snapshot as snapshots
from envsync.hooks import Hooks
from envsync.runner import EC2, SyncedCluster, ahead, locking, provision
from tests.lab.cloud import Cloud

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def step(self, where: str, text: str) -> None:
        self.texts.append(text)

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)


async def test_the_lock_is_made_while_the_machine_boots_and_holds(
    cloud: Cloud, small_lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_lock.parent / "environment" / "bin" / "python"
    capture, before, after = snapshots.capture, [], []
    lock_for: Any = locking.lock_for

    def while_it_boots(*rest: Any, **more: Any) -> Any:
        before.append(rest[1])
        return lock_for(*rest, **more)

    def once_it_is_there(*rest: Any, **more: Any) -> Any:
        after.append(rest[1])
        return lock_for(*rest, **more)

    monkeypatch.setattr(snapshots, "capture", lambda *_, **__: capture(str(small)))
    monkeypatch.setattr(ahead, "lock_for", while_it_boots)
    monkeypatch.setattr(provision, "lock_for", once_it_is_there)
    heard = Heard()
    async with (
        SyncedCluster(
            EC2("m7i.large", region="eu-west-1"),
            n_workers=1,
            threads_per_worker=1,
            hooks=heard,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert await client.submit(sum, [1, 2]) == 3
        locked, up = (
            next(number for number, text in enumerate(heard.texts) if said in text)
            for said in ("while it boots", "is up in")
        )
        assert locked < up
        assert len(before) == 1
        assert after == []
        assert not any("locked anew" in text for text in heard.texts)
    assert (cloud.vms(), cloud.api.left()) == ([], {})
