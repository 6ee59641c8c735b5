"""A cloud or a bucket that never answers is given up soon; one that has answered is asked with patience."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from botocore.exceptions import (
    BotoCoreError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as Unreachable
from click.testing import CliRunner

from envsync.cli import cli
from envsync.errors import CloudError, StoreError
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.patience import Patience
from envsync.stores import open_store
from envsync.stores.answering import FIRST, give_up_soon
from envsync.stores.buckets import Bucket

AT = {"endpoint_url": "https://cloud.example.org"}
NOBODY = EndpointConnectionError(**AT)


class Client:
    """A client of botocore, as far as who judges its tries is concerned."""

    def __init__(self) -> None:
        self.meta = SimpleNamespace(events=self)
        give_up_soon(self, Unreachable)

    def register(self, event: str, judge: Any) -> None:
        assert event == "needs-retry"
        self.judge = judge

    def tries(self, error: BotoCoreError | None) -> int:
        """Return after how many it is given up; 8, as many as EC2 is asked, if that is botocore's to say."""
        number = 0
        with contextlib.suppress(BotoCoreError):
            for number in range(1, 8):
                self.judge(attempts=number, caught_exception=error, response=None)
            return 8
        return number


@pytest.mark.parametrize("error", [NOBODY, ConnectTimeoutError(**AT)])
def test_botocore_gives_up_soon_who_has_never_answered(error: BotoCoreError) -> None:
    client = Client()
    assert client.tries(error) == FIRST
    assert client.tries(error) == FIRST, "nor has anybody since"
    assert client.tries(None) == 8  # an answer, as that it is too busy
    assert client.tries(error) == 8, "the network is gone for a moment"


def test_who_is_slow_has_answered() -> None:
    client = Client()
    assert client.tries(ReadTimeoutError(**AT)) == 8
    assert client.tries(NOBODY) == 8


def test_other_clouds_too() -> None:
    caller = stamina.RetryingCaller(attempts=8, timeout=None, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0)

    def patience() -> Patience:
        return Patience(
            caller,
            worth=lambda error: isinstance(error, OSError),
            unreachable=lambda error: isinstance(error, ConnectionError),
        )

    def tries(asked: Patience, error: Exception | None) -> int:
        made: list[None] = []

        def call(word: str) -> str:
            made.append(None)
            if error is not None:
                raise error
            return word

        with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
            assert asked.call(call, "so") == "so"
        return len(made)

    never = patience()
    assert [tries(never, ConnectionError()) for _ in range(2)] == [FIRST, FIRST]
    assert tries(never, None) == 1
    assert tries(never, ConnectionError()) == 8
    busy = patience()
    assert tries(busy, TimeoutError()) == 8, "who is busy is there"
    assert tries(busy, ConnectionError()) == 8
    assert tries(patience(), ValueError()) == 1


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """An address where nobody listens; how long botocore would have waited before each try but the first."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))  # and nobody can
    port = taken.getsockname()[1]
    waited: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=waited.append))
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "made-up"),
        ("AWS_SECRET_ACCESS_KEY", "made-up"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(name, value)
    with taken:
        yield waited


def test_where_there_is_no_network_it_is_said_soon(nobody: list[float]) -> None:
    with pytest.raises(CloudError, match="could not be asked: Could not connect") as told:
        EC2Provider(("eu-west-1",)).zones("eu-west-1", "m7i.large")
    assert len(nobody) == FIRST - 1
    assert told.value.hint == "Is there a network, and is the region's name right?"
    nobody.clear()
    store = open_store("s3://bucket/x")
    assert isinstance(store, Bucket)
    with pytest.raises(StoreError, match="Could not connect"):
        store.entries("clusters")
    assert len(nobody) == FIRST - 1


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("run --on ec2 --instance-type m7i.large --dry-run -- true", "ec2: asking for m7i.large"),
        ("reap --on ec2", "ec2: asking for the account's regions"),
        ("stop x --on ec2", "ec2: asking for the account's regions"),
    ],
)
def test_what_is_waited_for_is_said_before(
    command: str, asked: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 5, done.output
    assert 0 <= done.output.index(asked) < done.output.index("EC2 could not be asked")


def test_without_records_it_is_ec2_that_is_asked_and_others_are_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    done = CliRunner().invoke(cli, ["reap"])
    assert done.exit_code == 5, done.output
    assert "--region eu-west-1" in done.output
    assert "--on names another cloud" in done.output
