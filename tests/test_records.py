"""Records of clusters: written, moved on, closed, and read by others."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.config
import pytest
from click.testing import CliRunner

from envsync.cli import cli
from envsync.errors import StoreError
from envsync.hooks import Hooks
from envsync.runner import records as records_module
from envsync.runner.closing import Closing
from envsync.runner.cloud.costs import Bill, Hired
from envsync.runner.cloud.provider import Price
from envsync.runner.recorded import RecordedCluster
from envsync.runner.recording import Recording
from envsync.runner.records import Record, Records, is_mine, open_records, owner
from envsync.runner.stopping import Clusters
from envsync.stores import open_store
from tests.s3 import S3, Between, s3, s3_server

__all__ = ["s3", "s3_server"]

PRICE = Price(amount=3.6, currency="USD", source="made up", date="2026-11-01")


def record(cluster: str = "ada-1", **more: Any) -> Record:
    hired = Hired(id="m-1", region="north", zone="north-a", type="small", price=PRICE, begun=1000.0)
    usual: dict[str, Any] = {
        "name": cluster.partition("-")[0],
        "owner": "ada@laptop",
        "backend": "fake",
        "account": {"profile": "team"},
        "regions": ("north",),
        "spec": {"type": "small", "n_workers": 2},
        "begun": 1000.0,
        "seen": 1100.0,
        "patience": 300.0,
        "hosts": ("m-1",),
        "workers": 2,
        "bill": Bill((hired,)),
    }
    return Record(cluster=cluster, **{**usual, **more})


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return tmp_path.as_uri()
    server: S3 = request.getfixturevalue("s3")
    return f"{server.bucket('records')}/{tmp_path.name}"


def test_a_record_is_kept_moved_on_and_closed(url: str) -> None:
    records = Records(open_store(url))
    assert (records.alive(), records.ended()) == ([], [])
    records.troubles.clear()  # an empty folder is told: it may be somebody's slip
    records.keep(record())
    records.keep(record("bob-1", begun=900.0, owner="bob@desk"))
    first, second = records.alive()
    assert (first.record.cluster, second.record) == ("bob-1", record())
    assert second.age < 60  # by the store's clock, whatever that of its client says
    assert not second.lost
    assert second.cost() == pytest.approx(0.1, rel=0.7)  # 100 s until it was seen, and what has passed since
    records.wish_end("ada-1", "bob@desk")
    assert [one.stopping for one in records.alive()] == ["", "bob@desk"]
    assert (records.wished_by("ada-1"), records.wished_by("bob-1")) == ("bob@desk", "")
    records.forget_wish("ada-1")
    closed = record(ended=1200.0, how="closed")
    records.keep(closed)
    assert [one.record.cluster for one in records.alive()] == ["bob-1"]
    assert records.ended() == [closed]
    assert records.ended(since=1201.0) == []
    assert records.troubles == []


def test_one_cluster_is_found_without_a_look_at_the_others(tmp_path: Path) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record("ada-1"))
    (tmp_path / "clusters/alive/ada-12.json").write_text("[]")
    assert records.of("ada-1") == record("ada-1")
    records.keep(record("ada-1", ended=1200.0, how="closed"))
    records.keep(record("ada-1-2", ended=1300.0, how="closed"))
    found = records.of("ada-1")
    assert found is not None
    assert (found.cluster, found.ended) == ("ada-1", 1200.0)
    assert records.of("bob-1") is None
    assert records.troubles == []


@pytest.mark.slow
def test_a_look_into_a_bucket_is_one_request_for_each_record_and_imports_little(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3.bucket('looked')}/x"
    records = Records(open_store(url))
    for number in range(5):
        records.keep(record(f"ada-{number}"))
    code = (
        "import sys\n"
        "from envsync.runner.stopping import Clusters\n"
        "print(len(Clusters(sys.argv[1]).alive()), {'s3fs', 'distributed', 'asyncssh'} & set(sys.modules))"
    )
    with Between(s3.url) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert done.stdout == "5 set()\n"
    # each record; what lives, ended, and is to end; and the mark that tells the store's time, with its list
    assert Counter(method for method, _ in between.requests) == {"GET": 5 + 4, "PUT": 1, "DELETE": 1}


def test_ages_are_by_one_clock(tmp_path: Path) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record(seen=time.time() + 86400, patience=300.0))  # its client's clock is a day ahead
    (seen,) = records.alive()
    assert not seen.lost
    file = tmp_path / "clusters/alive/ada-1.json"
    os.utime(file, (time.time() - 400,) * 2)
    (seen,) = records.alive()
    assert seen.lost
    assert 395 < seen.age < 410
    assert seen.cost() == seen.bill.cost(seen.record.seen + 300)  # it falls not, nor does it grow any more


def test_a_look_that_takes_long_makes_nobody_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record(patience=300.0))
    read, remove, took, asked = records._store.read, records._store.remove, [0.0], threading.Event()
    monkeypatch.setattr(records_module, "time", SimpleNamespace(time=lambda: time.time() + took[0]))

    def removed(mark: str) -> None:
        remove(mark)
        asked.set()

    def slowly(name: str) -> bytes:
        assert asked.wait(60)  # the store has said what time it is
        took[0] = 1000.0  # and while we read, its client writes the record again and again
        return read(name)

    monkeypatch.setattr(records._store, "remove", removed)
    monkeypatch.setattr(records._store, "read", slowly)
    (seen,) = records.alive()
    assert not seen.lost
    assert abs(records.ahead) < 60


def test_one_that_ends_while_we_look_is_counted_once(tmp_path: Path) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record(owner=owner(), ended=1100.0, how="closed"))
    (file,) = (tmp_path / "clusters/ended").iterdir()
    os.utime(file, (time.time() - 100,) * 2)
    records.keep(record(owner=owner()))  # as the list says that we have had before it ended
    usual = ["--store", tmp_path.as_uri(), "--json"]
    listed = json.loads(CliRunner().invoke(cli, ["ls", "--all", *usual]).stdout)
    assert [one["state"] for one in listed["clusters"]] == ["alive"]
    (told,) = json.loads(CliRunner().invoke(cli, ["cost", *usual]).stdout)["sums"]
    assert told["machines"] == 1
    assert 0.1 <= told["cost"] < 0.15


def test_what_is_no_record_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record())
    newer = {**record("new-1").to_dict(), "schema": 99}
    (tmp_path / "clusters/alive/new-1.json").write_text(json.dumps(newer))
    (tmp_path / "clusters/alive/bad-1.json").write_text("[]")
    assert [one.record.cluster for one in records.alive()] == ["ada-1"]
    assert any("schema 99" in text for text in records.troubles)
    assert any("bad-1" in text for text in records.troubles)


SPOILT: dict[str, Any] = {
    "is not JSON": b"[" * 100_000,
    "is cut": b'{"schema":1,"cluster":',
    "is no text": b"\xff\xfe\x00",
    "leads elsewhere": {"cluster": "../../elsewhere"},
    "is another's": {"cluster": "ada-1"},
    "has regions as text": {"regions": "north"},
    **{
        f"{key} {said}": {key: said}
        for key in ("begun", "seen", "patience", "idle", "ended")
        for said in (float("nan"), float("inf"), -1e300, 10**400)
    },
    "has a price of less than nothing": {"bill": [{"price": {"amount": -1.0}}]},
    "has a machine of no time": {"bill": [{"begun": float("-inf")}]},
}


def test_a_spoilt_record_hides_no_other_and_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, alive = tmp_path.as_uri(), tmp_path / "clusters" / "alive"
    Records(open_store(url)).keep(record(owner=owner(), seen=time.time()))
    usual = record("bad-1", owner=owner()).to_dict()
    for number, spoilt in enumerate(SPOILT.values()):
        if isinstance(spoilt, dict) and "bill" in spoilt:
            first = usual["bill"][0]
            ((key, said),) = spoilt["bill"][0].items()
            spoilt = {"bill": [{**first, key: {**first[key], **said} if isinstance(said, dict) else said}]}
        whole = {**usual, "cluster": f"bad-{number}"}
        data = json.dumps({**whole, **spoilt}).encode() if isinstance(spoilt, dict) else spoilt
        (alive / f"bad-{number}.json").write_bytes(data)
    (alive / "\x1b[2Jbad.json").write_text("[]")
    os.mkfifo(alive / "pipe-1.json")  # who read it would wait for ever
    for words in (["ls"], ["ls", "--all", "--json"], ["cost"]):
        done = CliRunner().invoke(cli, [*words, "--store", url], color=True)
        assert done.exit_code == 0, done.output
        assert "ada-1" in done.stdout
        assert "bad-" not in done.stdout
        assert done.stderr.count("is not the record of a cluster") == len(SPOILT) + 1
        assert "\x1b" not in done.stderr
    # that somebody may have a record that nobody can read: what has none is left alone
    clusters = Clusters(url)
    clusters.alive()
    assert clusters.unread


def test_what_others_wrote_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    how = "\x1b[8mhidden\x1b]0;title\x07\nada-2  fake"
    lives = record("eve-1", owner="eve\x1b[2J@x\ny", how=how, seen=time.time())
    Records(open_store(tmp_path.as_uri())).keep(lives)
    for words in (["ls", "--everyone"], ["stop", "eve-1"]):
        done = CliRunner().invoke(cli, [*words, "--store", tmp_path.as_uri()], color=True)
        said = done.output.replace("\x1b[1m", "").replace("\x1b[0m", "")  # the head of the table
        assert "\x1b" not in said
        assert "eve\\x1b[2J" in said
        assert "\nada-2" not in said


def test_a_record_that_is_there_and_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record("ada-1"))
    records.keep(record("bob-1"))
    read = records._store.read

    def refuse(name: str) -> bytes:
        if "bob" in name:
            raise StoreError("it may not be read")
        if "ada" in name:
            (tmp_path / name).unlink()  # it ends just now
        return read(name)

    monkeypatch.setattr(records._store, "read", refuse)
    assert records.alive() == []
    assert records.troubles == [
        f"{records.shown}/clusters/alive/bob-1.json cannot be read: it may not be read"
    ]


def test_a_store_that_may_only_be_read_is_enough_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record())

    def refuse(name: str, data: bytes) -> None:
        raise StoreError("it may not be written")

    monkeypatch.setattr(records._store, "write", refuse)
    assert [one.record.cluster for one in records.alive()] == ["ada-1"]
    assert records.troubles == []
    records.drop("ada-1")  # then it may be that the place is not the one that was meant
    assert records.alive() == []
    assert records.troubles == [f"{records.shown} has no records, and takes none: it may not be written"]


def test_records_are_where_the_store_is_and_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    with dask.config.set({"envsync.store": "file:///srv/team"}):
        assert [one.shown for one in open_records()] == [
            "file:///srv/team",
            (tmp_path / "clusters").as_uri(),
        ]
        assert [one.shown for one in open_records("file:///other")] == ["file:///other"]
    assert len(open_records()) == 1


def test_who_is_who() -> None:
    with dask.config.set({"envsync.owner": "ada@laptop"}):
        assert owner() == "ada@laptop"
        assert is_mine("ada@desk")
        assert not is_mine("adam@laptop")
    with dask.config.set({"envsync.owner": "root@laptop"}):  # many people are called so
        assert is_mine("root@laptop")
        assert not is_mine("root@desk")


SETTINGS = """
import json, sys
from envsync.runner.configured import configured, folders
found, asked = configured("envsync.owner"), "dask" in sys.modules
import dask.config
assert found == dask.config.get("envsync.owner", None)
assert set(folders()) == set(filter(None, map(str, dask.config.paths)))
print(json.dumps([found, asked]))
"""


@pytest.mark.slow
def test_dask_is_asked_for_settings_where_there_are_any(tmp_path: Path) -> None:
    file, home = tmp_path / "etc" / "ours.yaml", tmp_path / "home" / ".config" / "dask"
    home.mkdir(parents=True)
    (home / "dask.yaml").write_text("# scheduler: threads\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    usual = {**kept, "HOME": str(tmp_path / "home"), "DASK_CONFIG": str(file.parent)}

    def settings(**more: str) -> Any:
        done = subprocess.run([sys.executable, "-c", SETTINGS], env={**usual, **more}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    assert settings() == [None, False]
    assert settings(DASK_ENVSYNC__OWNER="ada@laptop") == ["ada@laptop", True]
    file.parent.mkdir()
    file.write_text("envsync:\n  owner: eve@desk\n")
    assert settings() == ["eve@desk", True]
    assert settings(DASK_CONFIG=str(file)) == ["eve@desk", True]


# -- while a cluster lives


class Heard(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)


class Broken(Records):
    """A store that does not answer for a while."""

    broken = True

    def keep(self, record: Record) -> None:
        if self.broken:
            raise StoreError("it does not answer")
        super().keep(record)


def recording(place: Records, hooks: Hooks, **more: Any) -> Recording:
    async def stands() -> Mapping[str, Any]:
        return {"workers": 3}

    asked: dict[str, Any] = {"rented": True, "stands": stands, "end": lambda who: None, "hooks": hooks}
    return Recording(record(patience=3.0), lambda: place, **{**asked, **more})


async def until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_record_is_there_before_anything_else_and_moves_on(tmp_path: Path) -> None:
    place, hooks = Records(open_store(tmp_path.as_uri())), Heard()
    wanted: list[str] = []
    one = recording(place, hooks, end=wanted.append)
    await one.begin()
    assert [seen.record.workers for seen in place.alive()] == [2]
    await until(lambda: place.alive()[0].record.workers == 3)
    place.wish_end("ada-1", "bob@desk")
    await until(lambda: wanted)
    assert wanted == ["bob@desk"]
    await one.close("stopped by bob@desk")
    assert place.alive() == []
    (closed,) = place.ended()
    assert (closed.how, closed.workers) == ("stopped by bob@desk", 3)
    assert place.wished_by("ada-1") == ""  # it is fulfilled
    assert hooks.warnings == [f"{wanted[0]} has it ended"]
    await one.close("again")
    assert [one.how for one in place.ended()] == ["stopped by bob@desk"]


async def test_it_moves_on_whatever_goes_wrong_beside(tmp_path: Path) -> None:
    answers: list[Any] = [asyncio.TimeoutError(), ValueError("the scheduler's words")]
    place, hooks = Records(open_store(tmp_path.as_uri())), Heard()

    async def stands() -> Mapping[str, Any]:
        if answers:
            raise answers.pop()
        return {"workers": 3}

    one = recording(place, hooks, stands=stands)
    await one.begin()
    await until(lambda: place.alive()[0].record.workers == 3)
    assert not answers
    await one.close("closed")
    assert [record.how for record in place.ended()] == ["closed"]


async def test_one_whose_begin_is_interrupted_is_closed_all_the_same(tmp_path: Path) -> None:
    place, written = Records(open_store(tmp_path.as_uri())), threading.Event()

    class Slow(Records):
        def keep(self, record: Record) -> None:
            super().keep(record)
            if not written.is_set():
                written.set()
                time.sleep(0.1)

    one = recording(Slow(open_store(tmp_path.as_uri())), Heard())
    beginning = asyncio.ensure_future(one.begin())
    await asyncio.to_thread(written.wait, 60)
    beginning.cancel()
    await asyncio.wait({beginning})
    await one.close("its start was interrupted")
    assert place.alive() == []
    assert [record.how for record in place.ended()] == ["its start was interrupted"]
    await one.close("again")
    assert [record.how for record in place.ended()] == ["its start was interrupted"]


def test_the_first_workers_are_written_when_they_come() -> None:
    cluster = object.__new__(RecordedCluster)
    cluster.scheduler_info = {"workers": {}}
    written: list[int] = []
    place: Any = SimpleNamespace(
        record=SimpleNamespace(workers=0),
        write_soon=lambda: written.append(len(cluster.scheduler_info["workers"])),
    )
    cluster._recording = place
    cluster._update_worker_status("add", {"workers": {"tls://a": {"name": "a"}}})
    place.record.workers = 1
    cluster._update_worker_status("add", {"workers": {"tls://b": {"name": "b"}}})
    assert written == [1]


@pytest.mark.parametrize(
    ("alive", "ended", "lives"),
    [
        (20.0, 100.0, True),  # its client has moved it on since: somebody else wrote that end
        (100.0, 20.0, False),  # the store took the end, and did not remove the other
        (20.0, 22.0, False),  # a write that was on its way
        (400.0, 500.0, False),  # nobody lives
    ],
)
def test_a_cluster_whose_client_lives_after_its_end_has_not_ended(
    tmp_path: Path, alive: float, ended: float, lives: bool
) -> None:
    records = Records(open_store(tmp_path.as_uri()))
    records.keep(record(ended=1200.0, how="closed"))
    records.keep(record())
    for folder, age in (("alive", alive), ("ended", ended)):
        (file,) = (tmp_path / "clusters" / folder).glob("*.json")
        os.utime(file, times=(time.time() - age,) * 2)
    clusters = Clusters(tmp_path.as_uri())
    assert [one.record.cluster for one in clusters.alive()] == (["ada-1"] if lives else [])
    assert clusters.ended_names() == {"ada-1"}


def test_who_only_looks_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other").mkdir()  # it is there, and no store
    typo, other = (tmp_path / "typo").as_uri(), (tmp_path / "other").as_uri()
    commands = ("ls", "ls --all", "cost", "stop --all", "stop ada-1")
    for command in commands:
        for store in ([], ["--store", typo], ["--store", other]):
            done = CliRunner().invoke(cli, [*command.split(), *store])
            assert done.exit_code == (2 if command == "stop ada-1" else 0), done.output
            assert (f"warning: {typo}: there is no such folder" in done.output) == (typo in store)
            assert (f"warning: {other} has nothing of envsync's in it" in done.output) == (other in store)
    for command, said in (
        ("ls", "no such folder"),
        ("verify", "no such folder"),
        ("gc", "nothing is removed"),
    ):
        done = CliRunner().invoke(cli, ["store", command, typo])
        assert (done.exit_code, said in done.output) == (3, True), done.output
    assert [one.name for one in tmp_path.rglob("*")] == ["other"]
    with dask.config.set({"envsync.store": typo}):  # as one that is not mounted: what has no record may have
        clusters = Clusters()
        assert (clusters.alive(), clusters.unread) == ([], True)
        assert clusters.troubles == [f"{typo}: there is no such folder"]


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_no_store(s3: S3) -> None:
    there = open_store(f"{s3.bucket('there')}/nothing/in/it")
    assert there.exists()
    assert not open_store("s3://no-such-bucket/x").exists()
    done = CliRunner().invoke(cli, ["store", "verify", "s3://no-such-bucket/x"])
    assert (done.exit_code, "there is no such bucket" in done.output) == (3, True), done.output


async def test_a_store_that_does_not_answer_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    here = open_records()[0]
    place, hooks = Broken(open_store((tmp_path / "store").as_uri())), Heard()
    one = recording(place, hooks)
    await one.begin()  # at the start: told once, and this machine knows it at least
    assert len(hooks.warnings) == 1
    assert "by its tags" in hooks.warnings[0]
    assert [seen.record.cluster for seen in here.alive()] == ["ada-1"]
    place.broken = False
    await until(lambda: place.alive())
    await until(lambda: not here.alive())
    (first,) = place.alive()
    await until(
        lambda: place.alive()[0].record.seen > first.record.seen
    )  # that first one is known to be there
    place.broken = True  # at the end
    await one.close("closed")
    assert [record.how for record in here.ended()] == ["closed"]
    assert len(hooks.warnings) == 2
    assert [seen.record.cluster for seen in place.alive()] == ["ada-1"]
    assert replace(here.ended()[0], ended=None, how="").cluster == "ada-1"


class Slow(Records):
    """A store whose second write takes until the cluster has ended there, or for a moment if it cannot."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.writes, self.over = 0, threading.Event()

    def keep(self, record: Record) -> None:
        if record.ended is None:
            self.writes += 1
            if self.writes == 2:
                self.over.wait(0.3)
        super().keep(record)
        if record.ended is not None:
            self.over.set()


async def test_a_write_that_is_on_its_way_at_the_end_brings_nothing_back(tmp_path: Path) -> None:
    place = Slow(open_store(tmp_path.as_uri()))
    one = recording(place, Heard())
    await one.begin()
    one.write_soon()
    await until(lambda: place.writes == 2)
    await one.close("closed")
    await asyncio.get_running_loop().shutdown_default_executor()  # what was on its way has been written
    assert place.alive() == []
    one._write_to(replace(one.record, ended=None))  # and one whose thread had not begun
    assert place.alive() == []
    assert [record.how for record in place.ended()] == ["closed"]


async def test_who_ends_something_second_waits_for_all_of_its_end() -> None:
    """Such as a user, while the cluster ends by itself: its record is written last."""
    ended, go = [], asyncio.Event()

    async def part() -> None:
        ended.append("parted")

    async def end() -> None:
        await go.wait()
        ended.append("recorded")

    closing = Closing(part, end)
    both = [asyncio.ensure_future(closing.wait()) for _ in range(2)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(one.done() for one in both)
    go.set()
    await asyncio.gather(*both)
    assert ended == ["parted", "recorded"]
