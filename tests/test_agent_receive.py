"""Blobs that arrive: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import json
import zlib
from io import BytesIO
from pathlib import Path

import pytest

from envsync.agent.blobs import lacking, receive
from envsync.agent.layout import Cache, Problem

END = b'{"end": true}\n'


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path)
    cache.blobs.mkdir()
    return cache


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def frame(data: bytes, digest: str | None = None) -> bytes:
    return json.dumps({"digest": digest or digest_of(data), "size": len(data)}).encode() + b"\n" + data


def take(cache: Cache, stream: bytes) -> tuple[int, list[dict[str, object]]]:
    answers = BytesIO()
    status = receive(cache, BytesIO(stream), answers)
    return status, [json.loads(line) for line in answers.getvalue().splitlines()]


def unfinished(cache: Cache) -> list[str]:
    return [path.name for path in cache.blobs.iterdir() if path.name.startswith(".")]


def test_blobs_arrive_and_are_answered(cache: Cache) -> None:
    blobs = [b"", b"one", b"x" * 3_000_000]
    status, answers = take(cache, b"".join(map(frame, blobs)) + END)
    assert status == 0
    assert answers == [{"stored": digest_of(blob)} for blob in blobs]
    assert lacking(cache, map(digest_of, blobs)) == []
    assert [cache.blob(digest_of(blob)).read_bytes() for blob in blobs] == blobs
    assert cache.blob(digest_of(b"one")).stat().st_mode & 0o777 == 0o600


def test_packed_ones_are_checked_as_what_they_are(cache: Cache) -> None:
    source = b"import os\n" * 300_000

    def sent(body: bytes, digest: str) -> bytes:
        head = {"digest": digest, "size": len(source), "packed": len(body)}
        return json.dumps(head).encode() + b"\n" + body

    good, other = zlib.compress(source, 1), zlib.compress(source + b"more", 1)
    damaged = good[:50] + b"\xff" * 50 + good[100:]
    absent = [digest_of(name) for name in (b"other", b"damaged", b"not packed at all")]
    stream = sent(good, digest_of(source)) + sent(other, absent[0]) + sent(damaged, absent[1])
    stream += sent(b"plain", absent[2]) + frame(b"behind") + END
    status, answers = take(cache, stream)
    assert status == 1
    assert [list(answer) for answer in answers] == [["stored"], *[["error", "digest"]] * 3, ["stored"]]
    assert cache.blob(digest_of(source)).read_bytes() == source
    assert lacking(cache, absent) == absent
    assert unfinished(cache) == []


def test_a_wrong_one_is_named_and_the_others_arrive(cache: Cache) -> None:
    wrong = digest_of(b"what was meant")
    status, answers = take(cache, frame(b"before") + frame(b"what came", wrong) + frame(b"behind") + END)
    assert status == 1
    assert answers[1]["digest"] == wrong
    assert wrong in str(answers[1]["error"])
    assert lacking(cache, [digest_of(b"before"), wrong, digest_of(b"behind")]) == [wrong]
    assert unfinished(cache) == []


def test_a_stream_that_breaks_off_keeps_what_was_whole(cache: Cache) -> None:
    stream = frame(b"whole") + frame(b"not so" * 1000)[:-1]
    status, answers = take(cache, stream)
    assert status == 1
    assert answers == [{"stored": digest_of(b"whole")}]
    assert lacking(cache, [digest_of(b"whole"), digest_of(b"not so" * 1000)]) == [digest_of(b"not so" * 1000)]
    assert unfinished(cache) == []


def test_the_end_has_to_be_said(cache: Cache) -> None:
    assert take(cache, frame(b"whole"))[0] == 1


def test_a_digest_that_is_a_path_is_refused(cache: Cache) -> None:
    status, answers = take(cache, frame(b"evil", "../../evil") + END)
    assert status == 1
    assert "error" in answers[0]
    with pytest.raises(Problem):
        lacking(cache, ["../../evil"])


def test_an_empty_file_where_bytes_should_be_is_lacking(cache: Cache) -> None:
    path = cache.blob(digest_of(b"lost in a power cut"))
    path.parent.mkdir()
    path.touch()
    assert lacking(cache, [digest_of(b"lost in a power cut")]) == [digest_of(b"lost in a power cut")]
