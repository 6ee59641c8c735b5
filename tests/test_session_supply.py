"""Where a host's wheels come from: the index, the client, or what is there already."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from envsync.errors import CorruptBlobError, RealiseError, StoreError
from envsync.runner.hosts.local import Local
from tests.index_server import IndexServer, write_wheel
from tests.makes import Makes, litter, says

pytestmark = pytest.mark.slow


async def test_wheels_come_from_the_index_where_the_host_reaches_it(makes: Makes) -> None:
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        made = await (await makes.session()).realise(makes.lock(artifact))
        assert any(path.startswith("/files/alpha") for path, _ in index.requests)
    assert made.created
    assert not makes.store.has([artifact.sha256])
    assert says(made, "import alpha; print(alpha.VALUE)") == "alpha"


async def test_wheels_come_from_the_client_where_it_does_not(makes: Makes) -> None:
    artifact = makes.artifact("alpha", url="http://127.0.0.1:9", keep=False)
    asked: list[set[str]] = []

    async def fetch(digests: object) -> None:
        asked.append(set(digests))  # type: ignore[call-overload]
        makes.store.put(makes.wheels / artifact.filename)

    made = await (await makes.session()).realise(makes.lock(artifact), fetch=fetch)
    assert made.created
    assert asked == [{artifact.sha256}]


class Asked:
    """Puts wheels into the store when it is asked for them, and keeps what it was asked for."""

    def __init__(self, makes: Makes) -> None:
        self.names: list[list[str]] = []
        self._makes = makes

    async def __call__(self, digests: Collection[str]) -> None:
        names = []
        for wheel in sorted(self._makes.wheels.glob("*.whl")):
            if hashlib.sha256(wheel.read_bytes()).hexdigest() in digests:
                self._makes.store.put(wheel)
                names.append(wheel.name.partition("-")[0])
        self.names.append(names)


@pytest.fixture
def partial(tmp_path: Path) -> Callable[..., IndexServer]:
    """Make an index that has some of the wheels."""

    def make(*names: str, **settings: str) -> IndexServer:
        folder = tmp_path / "-".join(["index", *names])
        for name in names:
            write_wheel(folder, name, "1.0", body=f"VALUE = {name!r}\n")
        return IndexServer(folder, **settings)

    return make


async def test_a_local_wheel_alone_comes_from_the_client(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    with partial("alpha", "beta") as index:
        url = f"http://{index.host}"
        lock = makes.lock(
            makes.artifact("alpha", url=url, keep=False),
            makes.artifact("beta", url=url, keep=False),
            makes.artifact("local", keep=False),
        )
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
        assert asked.names == [["local"]]
        assert {path for path, _ in index.requests} == {
            f"/files/{name}-1.0-py3-none-any.whl" for name in ("alpha", "beta")
        }
    assert says(made, "import alpha, local; print(alpha.VALUE, local.VALUE)") == "alpha local"


async def test_a_server_that_is_not_reached_is_no_reason_to_ask_for_anothers_wheels(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    with partial("alpha") as index:
        lock = makes.lock(
            makes.artifact("alpha", url=f"http://{index.host}", keep=False),
            makes.artifact("beta", url="http://127.0.0.1:9", keep=False),
        )
        asked = Asked(makes)
        await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta"]]


async def test_a_file_that_the_index_lost_is_asked_for_alone(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    names = ("alpha", "beta", "gamma")
    with partial("alpha", "gamma") as index:
        lock = makes.lock(*(makes.artifact(n, url=f"http://{index.host}", keep=False) for n in names))
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta"]]
    assert made.created
    assert "1 of 3" in " ".join(makes.hooks.notes)


async def test_an_index_that_wants_a_password_gives_nothing_and_the_others_all(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    """A host is given no password."""
    with partial("alpha") as public, partial("beta", "gamma", username="me", password="sesame") as private:
        lock = makes.lock(
            makes.artifact("alpha", url=f"http://{public.host}", keep=False),
            makes.artifact("beta", url=f"http://{private.host}", keep=False),
            makes.artifact("gamma", url=f"http://{private.host}", keep=False),
        )
        asked = Asked(makes)
        await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta", "gamma"]]


async def test_an_index_that_loses_file_after_file_is_given_up(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    names = [f"package{i}" for i in range(6)]
    with partial("alpha") as index:
        lock = makes.lock(*(makes.artifact(n, url=f"http://{index.host}", keep=False) for n in names))
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
    assert [len(some) for some in asked.names] == [1, 1, 4]
    assert made.created


async def test_an_index_that_answers_and_fails_is_no_dead_end(makes: Makes) -> None:
    with IndexServer(makes.folder / "nothing") as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}")
        made = await (await makes.session()).realise(makes.lock(artifact))
        assert index.requests
    assert made.created


async def test_a_wheel_that_nobody_has(makes: Makes) -> None:
    artifact = makes.artifact("alpha", keep=False)
    with pytest.raises(StoreError):
        await (await makes.session()).realise(makes.lock(artifact))
    assert not (makes.cache / "envs").exists() or litter(makes.cache) == []


async def test_a_store_with_other_bytes(makes: Makes) -> None:
    artifact = makes.artifact("alpha")
    blob = makes.store.path(artifact.sha256)
    assert blob is not None
    blob.write_bytes(b"damaged")
    with pytest.raises(CorruptBlobError, match=artifact.sha256):
        await (await makes.session()).realise(makes.lock(artifact))


async def test_a_blob_that_was_damaged_on_the_host_is_named_and_fetched_anew(makes: Makes) -> None:
    artifact, lock = makes.artifact("alpha"), makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    await session.send([artifact.sha256])
    blob = makes.cache / "blobs" / artifact.sha256[:2] / artifact.sha256
    other = write_wheel(makes.folder / "other", "alpha", "1.0", body="VALUE = 'evil'\n")
    blob.write_bytes(other.read_bytes())
    with pytest.raises(RealiseError, match="wheel of alpha is not the one that was locked"):
        await session.realise(lock)
    assert litter(makes.cache) == []
    made = await session.realise(lock)
    assert says(made, "import alpha; print(alpha.VALUE)") == "alpha"


async def test_here_what_uv_unpacked_before_is_enough(makes: Makes) -> None:
    """On the client's machine a warm uv cache does without the store and without the index."""
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        first = await (await makes.session(Local())).realise(makes.lock(artifact))
        assert first.created
        asked = len(index.requests)
    subprocess.run(["rm", "-rf", first.prefix], check=True)
    second = await (await makes.session(Local())).realise(makes.lock(artifact))
    assert second.created
    assert len(index.requests) == asked
    assert not makes.store.has([artifact.sha256])
