"""What is never done in silence to a cluster of others: data lost, work half undone, a state pretended."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client

from tests.index_server import write_wheel
from tests.running import Elsewhere, Wish, states, until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _carried() -> Iterator[None]:
    """Functions of this file run where it is not."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    """Two versions of a package."""
    return {number: write_wheel(tmp_path / "wheels", "zz-pack", number) for number in ("2.0", "3.0")}


def wish_of(others: Path, wheel: Path, owner: str = "ada") -> Wish:
    wish = Wish(others, owner)
    wish.ship(wheel)
    return wish


def version() -> str:
    return str(__import__("zz_pack").__version__)


def there() -> bool:
    try:
        version()
    except ImportError:
        return False
    return True


async def one_that_has_to_restart(client: Client, others: Path, wheels: dict[str, Path]) -> Wish:
    """Have 2.0 imported everywhere, and return the wish for 3.0."""
    assert set(states(await wish_of(others, wheels["2.0"]).apply(client)).values()) == {"equal"}
    assert set((await client.run(version)).values()) == {"2.0"}
    return wish_of(others, wheels["3.0"])


async def test_a_worker_with_an_actor_is_not_restarted(
    elsewhere: Elsewhere, others: Path, wheels: dict[str, Path]
) -> None:
    class Counter:
        def __init__(self) -> None:
            self.number = 0

        def count(self) -> int:
            self.number += 1
            return self.number

    elsewhere.worker("w0")
    elsewhere.worker("w1")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(2)
        wish = await one_that_has_to_restart(client, others, wheels)
        counter = await client.submit(Counter, actor=True, workers=["w0"])
        assert await counter.count() == 1
        answer = await wish.apply(client)
        assert states(answer) == {"w0": "restart-needed", "w1": "equal"}
        [said] = [one["trouble"] for one in answer["workers"].values() if one["name"] == "w0"]
        assert "it holds actors, which cannot be moved" in said
        assert await counter.count() == 2
        # it is not taken for equal the next time either, and is restarted once it may be
        assert states(await wish.apply(client)) == {"w0": "restart-needed", "w1": "equal"}
        assert await client.submit(sum, [1, 2], workers=["w0"]) == 3, "it takes tasks"
        del counter
        gc.collect()  # it is in a circle, and tests look for garbage seldom
        await until(lambda: no_actors(client))
        assert states(await wish.apply(client)) == {"w0": "equal", "w1": "equal"}
        assert set((await client.run(version)).values()) == {"3.0"}


async def no_actors(client: Client) -> bool:
    return bool(
        await client.run_on_scheduler(
            lambda dask_scheduler: not any(one.actors for one in dask_scheduler.workers.values())
        )
    )


async def test_the_only_worker_is_not_restarted_while_it_has_what_nobody_can_compute_again(
    elsewhere: Elsewhere, others: Path, wheels: dict[str, Path]
) -> None:
    elsewhere.worker("w0")
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(1)
        wish = await one_that_has_to_restart(client, others, wheels)
        scattered = await client.scatter({"precious": 1})
        answer = await wish.apply(client)
        assert states(answer) == {"w0": "restart-needed"}
        [entry] = answer["workers"].values()
        assert "what it holds (1 results) could not be moved" in entry["trouble"]
        assert await client.gather(scattered) == {"precious": 1}
        assert await client.submit(sum, [1, 2]) == 3, "it takes tasks"
        elsewhere.worker("w1")  # which can take it
        assert states(await wish.apply(client)) == {"w0": "equal", "w1": "equal"}
        assert await client.gather(scattered) == {"precious": 1}


async def test_what_was_said_to_need_a_restart_is_said_again(
    elsewhere: Elsewhere, others: Path, wheels: dict[str, Path]
) -> None:
    elsewhere.worker("w0", nanny=False)
    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(1)
        wish = await one_that_has_to_restart(client, others, wheels)
        await client.run(hold_on)
        for _ in range(2):
            answer = await wish.apply(client)
            assert states(answer) == {"w0": "restart-needed"}
            [entry] = answer["workers"].values()
            assert "it has imported zz-pack" in entry["trouble"]
        assert answer["scheduler"]["state"] == "equal", "it had not imported it"


def hold_on() -> None:
    sys.__dict__["held"] = sys.modules["zz_pack"]


async def test_a_task_that_outlasts_the_giving_back_is_said(
    elsewhere: Elsewhere, others: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    elsewhere.worker("w0", nanny=False)
    elsewhere.worker("w1", nanny=False)
    sign = tmp_path / "sign"

    def waits() -> str:
        while not sign.exists():
            time.sleep(0.05)
        return "whole"

    async with Client(elsewhere.address, asynchronous=True) as client:
        await client.wait_for_workers(2)
        wish = wish_of(others, wheels["2.0"])
        await wish.apply(client)
        future = client.submit(waits, workers=["w0"], pure=False)
        await until(lambda: executing(client))
        names = {
            address: one["name"] for address, one in (await client.scheduler.identity())["workers"].items()
        }
        answer = await client.scheduler.envsync_release(owner="ada", patience=1)
        troubles = {names[address]: one["trouble"] for address, one in answer["workers"].items()}
        assert "tasks still ran after 1 s" in troubles["w0"]
        assert not troubles["w1"]
        sign.touch()
        assert await future == "whole", "it was not cut"
        assert await client.submit(sum, [1, 2], workers=["w0"]) == 3, "it takes tasks"
        addresses = [address for address, name in names.items() if name == "w1"]
        assert list((await client.run(there, workers=addresses)).values()) == [False]


async def executing(client: Client) -> bool:
    return any((await client.run(lambda dask_worker: len(dask_worker.state.executing))).values())


@pytest.mark.parametrize(
    ("user", "gone", "replaced"), [("ada", True, True), ("ada", False, False), ("bob", True, False)]
)
async def test_only_their_own_gone_client_makes_way(
    elsewhere: Elsewhere, others: Path, wheels: dict[str, Path], user: str, gone: bool, replaced: bool
) -> None:
    first, second = wish_of(others, wheels["2.0"], "first"), wish_of(others, wheels["3.0"], "second")
    async with Client(elsewhere.address, asynchronous=True) as client:
        async with Client(elsewhere.address, asynchronous=True) as before:
            first.owner.update(user="ada", client=before.id)
            second.owner.update(user=user, client=client.id)
            await first.apply(before)
            if not gone:
                answer = await second.apply(client)
        if gone:
            answer = await second.apply(client)
        assert ("refused" in answer) is not replaced
        owner: dict[str, Any] = (await client.scheduler.envsync_state())["owner"]
        assert owner["id"] == ("second" if replaced else "first")
        assert await client.run_on_scheduler(version) == ("3.0" if replaced else "2.0")
