"""What goes from a store, and what stays whatever happens beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from envsync.errors import CorruptBlobError, StoreError
from envsync.hooks import Hooks
from envsync.store import blob_name
from envsync.stores import Entry, open_store, records
from envsync.stores.folder import SharedFolder
from envsync.stores.keeping import Swept, gc, pushes, verify
from envsync.stores.pulling import pull
from envsync.stores.pushing import Pushed, push
from tests.pushed import Made, sha
from tests.s3 import S3, Between

DAY = 24 * 3600.0
ROOT = Path(__file__).parent.parent


class Heard(Hooks):
    steps = 0

    def step(self, where: str, what: str) -> None:
        self.steps += 1


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedFolder:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    return SharedFolder(tmp_path / "shared")


def pushed(store: SharedFolder, source: Path, name: str, **wheels: bytes) -> Pushed:
    made = Made(source, wheels, code=name.encode())
    return push(made.lock, made.manifests, made.store, store, name=name)


def age(store: SharedFolder, days: float) -> None:
    """Let everything in a store be older by so many days."""
    for path in [path for path in store.root.rglob("*") if path.is_file()]:
        when = path.stat().st_mtime - days * DAY
        os.utime(path, (when, when))
        name = path.relative_to(store.root).as_posix()
        stamp = records.time_of(name)
        if name.startswith("pushes/") and stamp is not None:
            moved = datetime.fromtimestamp(stamp - days * DAY, timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
            path.rename(path.with_name(f"{moved}-{path.name.partition('-')[2]}"))


def test_old_pushes_go_but_for_the_last_of_each_name(store: SharedFolder, tmp_path: Path) -> None:
    for number in range(4):
        pushed(store, tmp_path / "source", "a", shared=b"shared", own=b"%d" % number)
        age(store, 10)
    pushed(store, tmp_path / "source", "b", shared=b"shared", other=b"b")
    age(store, 30)
    plan = gc(store, keep=2, older=35 * DAY, dry_run=True)
    assert (plan.pushes, plan.environments, plan.trees, plan.blobs, plan.size) == (2, 2, 0, 2, 2)
    assert len(pushes(store)) == 5
    assert gc(store, keep=2, older=35 * DAY) == plan
    assert [(one.name) for one in pushes(store)] == ["a", "a", "b"]
    assert verify(store) == []
    held = {sha(b"%d" % number) for number in range(4)}
    assert store.has(held) == {sha(b"2"), sha(b"3")}
    assert pull(store, "a").lock.artifacts()[0].sha256 == sha(b"3")
    assert gc(store, keep=1, older=0.0).pushes == 1
    assert gc(store, keep=1, older=0.0).blobs == 0
    assert len(store.entries("trees")) == 2


def test_the_young_stay(store: SharedFolder, tmp_path: Path) -> None:
    pushed(store, tmp_path / "source", "a", one=b"1")
    age(store, 40)
    pushed(store, tmp_path / "source", "a", one=b"2")
    store.put(b"of a push without a record yet")
    swept = gc(store, keep=1, older=30 * DAY)
    assert (swept.pushes, swept.environments, swept.blobs) == (1, 1, 1)
    assert store.has([sha(b"of a push without a record yet")])
    age(store, 2)
    assert gc(store, keep=1).blobs == 1


def test_what_a_push_relies_on_that_is_under_way_stays(store: SharedFolder, tmp_path: Path) -> None:
    first = pushed(store, tmp_path / "source", "a", one=b"1")
    age(store, 40)
    pushed(store, tmp_path / "source", "a", one=b"2")
    mark = records.begin(store, first.record.documents, [sha(b"1")])
    swept = gc(store, keep=1)
    assert (swept.pushes, swept.environments, swept.blobs) == (1, 0, 0)
    store.remove(mark)
    assert gc(store, keep=1).blobs == 1


def test_a_push_that_began_long_ago_and_never_ended_keeps_nothing(
    store: SharedFolder, tmp_path: Path
) -> None:
    pushed(store, tmp_path / "source", "a", one=b"1")
    store.put(b"left")
    records.begin(store, [], [sha(b"left")])
    age(store, 2)
    (store.root / "blobs" / ".unfinished" / "half").write_bytes(b"half of a")
    os.utime(store.root / "blobs" / ".unfinished" / "half", (time.time() - 2 * DAY,) * 2)
    swept = gc(store)
    assert (swept.blobs, swept.uploads) == (1, 1)
    assert store.entries("pushing") == []


def test_nothing_goes_while_a_push_cannot_be_read(store: SharedFolder, tmp_path: Path) -> None:
    pushed(store, tmp_path / "source", "a", one=b"1")
    age(store, 40)
    kept = pushed(store, tmp_path / "source", "b", one=b"2")
    store.put(b"nobody's")
    age(store, 3)
    (kept,) = (one for one in pushes(store) if one.name == "b")  # type: ignore[assignment]
    for name in sorted(kept.documents):  # type: ignore[attr-defined]
        data = store.read(name)
        store.remove(name)
        with pytest.raises(StoreError, match="there is no"):
            gc(store, keep=1, older=0.0)
        store.write(name, data)
    assert store.has([sha(b"nobody's"), sha(b"1")]) == {sha(b"nobody's"), sha(b"1")}
    assert gc(store, keep=1, older=0.0).blobs == 1


PUSHER = """
import os, sys
from pathlib import Path
from tests.pushed import Made
from envsync.stores import open_store
from envsync.stores.pushing import push
store = open_store(sys.argv[2])
for turn in range(8):
    made = Made(Path(sys.argv[1]), {f"p{n}": b"%d %d" % (turn, n) for n in range(150)})
    for digest in made.blobs:  # as if all had lain there for years, and nobody needed it
        store.put(made.store.path(digest), digest)
        os.utime(store.path(digest) or ".", (1e9, 1e9))
    push(made.lock, made.manifests, made.store, store, name=f"turn{turn}")
    gone = made.blobs - store.has(made.blobs)
    assert not gone, f"turn {turn}: {len(gone)} are gone"
print("done")
"""


@pytest.mark.slow
def test_gc_beside_pushes_takes_nothing_that_they_need(store: SharedFolder, tmp_path: Path) -> None:
    pushed(store, tmp_path / "source", "first", one=b"1")
    arguments = [tmp_path / "source2", store.root.as_uri()]
    process = subprocess.Popen(
        [sys.executable, "-c", PUSHER, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE
    )
    removed = rounds = 0
    while process.poll() is None:
        removed += gc(store, keep=1).blobs
        rounds += 1
    assert process.communicate()[0] == b"done\n"
    assert rounds > 3
    assert removed > 0
    assert verify(store) == []


class Pausing(SharedFolder):
    """A store as a push sees it that is slow: it writes its record once it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.waits, self.may = threading.Event(), threading.Event()

    def write(self, name: str, data: bytes) -> None:
        if name.startswith("pushes/"):
            self.waits.set()
            assert self.may.wait(30)
        super().write(name, data)


class Crossed(SharedFolder):
    """A store as gc sees it: a push begins before it says that it removes, and ends between the next lists.

    Parameters
    ----------
    root : Path
        The folder.
    begin, end : callable
        Called at these two moments, once.
    """

    def __init__(self, root: Path, begin: Callable[[], None], end: Callable[[], None]) -> None:
        super().__init__(root)
        self._begin, self._end = [begin], [end]

    def write(self, name: str, data: bytes) -> None:
        if name.startswith("sweeping/") and self._begin:
            self._begin.pop()()
        super().write(name, data)

    def entries(self, folder: str) -> list[Entry]:
        found = super().entries(folder)
        if folder in ("pushing", "pushes") and not self._begin and self._end:
            self._end.pop()()
        return found


def test_a_push_that_ends_between_two_lists_of_gc_loses_nothing(store: SharedFolder, tmp_path: Path) -> None:
    pushed(store, tmp_path / "source", "first", one=b"1")
    made = Made(tmp_path / "source", {"a": b"there already", "b": b"and this"})
    for digest in made.blobs:
        store.put(made.store.path(digest) or b"", digest)
    age(store, 2)  # nobody has needed them for longer than gc waits
    slow = Pausing(store.root)
    pushing = threading.Thread(target=push, args=(made.lock, made.manifests, made.store, slow), daemon=True)

    def begin() -> None:
        pushing.start()
        assert slow.waits.wait(30)  # all is there, its mark too, but for its record

    def end() -> None:
        slow.may.set()
        pushing.join(30)

    assert gc(Crossed(store.root, begin, end), keep=1).blobs == 0
    assert not pushing.is_alive()
    assert len(pushes(store)) == 2
    assert verify(store) == []


@pytest.mark.slow
def test_what_cannot_be_read_is_not_taken_for_damaged(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{s3.bucket('forbidden')}/x"
    made = Made(tmp_path / "source", {"a": b"a", "b": b"b"})
    file = push(made.lock, made.manifests, made.store, open_store(url)).record.file
    for part in (f"/{file}", "/environments/", f"/{blob_name(sha(b'b'))}"):
        with Between(s3.url, lambda _, path, __, part=part: 403 if f"x{part}" in path else None) as between:  # type: ignore[misc]
            monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
            with pytest.raises(StoreError, match="may not be read"):
                verify(open_store(url), remove=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    assert verify(open_store(url)) == []


def test_a_blob_that_was_emptied_is_removed_and_sent_again(store: SharedFolder, tmp_path: Path) -> None:
    pushed(store, tmp_path / "source", "a", one=b"1")
    (store.root / blob_name(sha(b"1"))).write_bytes(b"")
    (damage,) = verify(store, remove=True)
    assert (damage.name, damage.why) == (blob_name(sha(b"1")), "it is empty")
    assert pushed(store, tmp_path / "source", "a", one=b"1").sent == 1
    assert verify(store) == []


@pytest.mark.parametrize("spoilt", [None, b"# not the lock\n"])
def test_a_record_that_is_spoilt_or_gone_is_written_by_the_next_push(
    store: SharedFolder, tmp_path: Path, spoilt: bytes | None
) -> None:
    record = pushed(store, tmp_path / "source", "a", one=b"1").record
    for name in sorted(record.documents):
        store.remove(name) if spoilt is None else store.write(name, spoilt)
        assert [one.name for one in verify(store)] == [name]
        again = pushed(store, tmp_path / "source", "a", one=b"1")
        assert (again.new, again.sent) == (True, 0)
        assert verify(store) == []


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/../b", "%2E", "ü b"])
def test_a_push_is_found_and_kept_whatever_its_name(store: SharedFolder, tmp_path: Path, name: str) -> None:
    pushed(store, tmp_path / "source", name, one=b"1")
    age(store, 3)
    assert gc(store).blobs == 0
    assert [one.name for one in pushes(store)] == [name]
    assert pull(store, name).push.name == name


def test_a_name_that_no_folder_can_have(store: SharedFolder, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="too long for the name of an environment"):
        pushed(store, tmp_path / "source", "ü" * 100, one=b"1")


@pytest.mark.parametrize("key", ["lock", "text", "trees"])
def test_no_record_leads_out_of_the_store(store: SharedFolder, tmp_path: Path, key: str) -> None:
    record = pushed(store, tmp_path / "source", "a", one=b"1").record
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    away = "../../mine"
    store.write(
        record.file, json.dumps({**record.to_dict(), key: [away] if key == "trees" else away}).encode()
    )
    (damage,) = verify(store, remove=True)
    assert damage.name == record.file
    assert mine.is_file()


@pytest.mark.parametrize("data", [b"[]", b'{"size":1e999}', b'{"trees":3}', b'{"supplies":[1]}'])
def test_what_is_no_record_is_named(store: SharedFolder, tmp_path: Path, data: bytes) -> None:
    record = pushed(store, tmp_path / "source", "a", one=b"1").record
    changed = json.loads(data)
    store.write(record.file, json.dumps({**record.to_dict(), **changed} if changed else changed).encode())
    assert [one.name for one in verify(store)] == [record.file]
    store.write(record.file, json.dumps(record.to_dict()).encode())
    store.write("pushing/20260101T000000.000000Z-x.json", b'{"blobs":[["no digest"]],"documents":3}')
    with pytest.raises(CorruptBlobError, match="it is not of a push"):
        gc(store)


def test_it_is_the_stores_clock_that_tells_what_is_young(
    store: SharedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of whoever clears away, which may be weeks ahead: somebody has just begun to push."""
    pushed(store, tmp_path / "source", "a", one=b"1")
    relied, sent, sweeping = store.put(b"relied on"), store.put(b"sent"), "sweeping/x.json"
    mark = records.begin(store, (), [relied])
    store.write(sweeping, b"{}")
    real, said = time.time, Heard()
    monkeypatch.setattr(time, "time", lambda: real() + 40 * DAY)
    assert gc(store, keep=1, older=30 * DAY) == Swept(
        pushes=0, environments=0, trees=0, blobs=0, size=0, uploads=0
    )
    assert store.has([relied, sent]) == {relied, sent}
    monkeypatch.setattr(time, "sleep", lambda seconds: store.remove(sweeping))
    records.wait_for_sweepers(store, mark, said)
    assert said.steps == 1


def test_a_mark_from_the_future_is_not_waited_for_for_ever(
    store: SharedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("sweeping/x.json", b"{}")
    os.utime(store.root / "sweeping" / "x.json", (time.time() + DAY,) * 2)
    monkeypatch.setattr(records, "_KILLED", 0.3)
    assert pushed(store, tmp_path / "source", "a", one=b"1").new
