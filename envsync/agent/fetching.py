"""Blobs that this host takes from a store by itself: from addresses that were signed, or from a folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple

from ..plugins.download import FAILED, UNREACHABLE, Downloads, NotGiven, copy
from .layout import Cache, Emit, Problem, checked_digest, disk_problem, fresh, taken_back

__all__ = ["fetch"]

_Lacking = Dict[str, Tuple[str, str]]
_Take = Callable[[str, str, str], int]

_ENOUGH = 3  # blobs whose connections broke again and again, after which it is the server's fault


def fetch(cache: Cache, emit: Emit, request: Mapping[str, Any]) -> dict[str, Any]:
    """Take blobs, several at once.

    Parameters
    ----------
    cache : Cache
        Where they go: each whole and checked, or not at all.
    emit : callable
        Told how many are here.
    request : mapping
        ``blobs``, pairs of digest and address; or ``digests`` and ``folder``, the store's if it is one; or
        ``digests`` and ``base``, the address of another host of the cluster, which is asked past any proxy
        and trusted by ``authority`` alone; ``authority``, certificates to trust; ``at_once``.

    Returns
    -------
    dict
        ``{"lacking": {digest: [kind, why]}, "size": bytes}``; kinds are those of `plugins.download`.

    Raises
    ------
    Problem
        There is no room for them, or they cannot be written.
    """
    if request.get("folder"):
        return _from_folder(cache, emit, request)
    base = str(request.get("base") or "")
    if base:
        blobs = [(checked_digest(digest), f"{base}/{digest}") for digest in request["digests"]]
    else:
        blobs = [(checked_digest(digest), str(url)) for digest, url in request["blobs"]]
    if not blobs:
        return {"lacking": {}, "size": 0}
    try:
        downloads = Downloads(str(request.get("authority") or ""), direct=bool(base))
        downloads.reach(blobs[0][1])
    except NotGiven as given:
        return _none(blobs, given.why)
    except (OSError, ValueError):  # ssl.SSLError is one of both
        return _none(blobs, "the certificates of the store's authority cannot be read")
    taking = _Taking(cache, emit, len(blobs), lambda digest, url, part: downloads.get(url, digest, part))
    taking.run(iter(blobs), int(request.get("at_once") or 1))
    return taking.answer()


def _from_folder(cache: Cache, emit: Emit, request: Mapping[str, Any]) -> dict[str, Any]:
    blobs_there = Path(str(request["folder"])) / "blobs"
    blobs = [(checked_digest(digest), "") for digest in request["digests"]]
    if not blobs_there.is_dir():
        return _none(blobs, "it does not see that folder")

    def taken(digest: str, _: str, part: str) -> int:
        return copy(str(blobs_there / digest[:2] / digest), digest, part)

    taking = _Taking(cache, emit, len(blobs), taken)
    taking.run(iter(blobs), int(request.get("at_once") or 1))
    return taking.answer()


def _none(blobs: list[tuple[str, str]], why: str) -> dict[str, Any]:
    return {"lacking": {digest: [UNREACHABLE, why] for digest, _ in blobs}, "size": 0}


class _Taking:
    """Blobs on their way, in threads that end with the agent."""

    def __init__(self, cache: Cache, emit: Emit, count: int, take: _Take) -> None:
        self.cache = cache
        self.emit = emit
        self.count = count
        self.take = take
        self.done = 0
        self.size = 0
        self.failed = 0
        self.lacking: _Lacking = {}
        self.problem: BaseException | None = None
        self.over = ""  # why nothing more is to be had
        self.guard = threading.Lock()

    def run(self, blobs: Iterator[tuple[str, str]], at_once: int) -> None:
        threads = [
            threading.Thread(target=self._work, args=(blobs,), daemon=True)
            for _ in range(max(1, min(at_once, self.count)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def answer(self) -> dict[str, Any]:
        if self.problem is not None:
            raise self.problem
        return {"lacking": {key: list(value) for key, value in self.lacking.items()}, "size": self.size}

    def _work(self, blobs: Iterator[tuple[str, str]]) -> None:
        while True:
            with self.guard:
                digest, url = next(blobs, ("", ""))
                if not digest or self.problem is not None:
                    return
                if self.over:
                    self.lacking[digest] = (UNREACHABLE, self.over)
                    continue
            try:
                size = self._keep(digest, url)
            except NotGiven as given:
                with self.guard:
                    self.lacking[digest] = (given.kind, given.why)
                    self.failed += given.kind == FAILED
                    if given.kind == UNREACHABLE or self.failed >= (_ENOUGH if self.done else 1):
                        self.over = given.why
            except Problem as problem:
                with self.guard:
                    self.problem = self.problem or problem
            except Exception as error:  # noqa: BLE001 - its words may quote an address
                what = f"fetch: {type(error).__name__}"
                with self.guard:
                    self.problem = Problem("defect", what, "This is a defect of envsync: please report it.")
            else:
                with self.guard:
                    self.done += 1
                    self.size += size
                    done = self.done
                event = {"event": "progress", "done": done, "total": self.count, "unit": "files"}
                self.emit(event)

    def _keep(self, digest: str, url: str) -> int:
        target = self.cache.blob(digest)
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with taken_back(fresh(self.cache.blobs, ".unfinished-")) as part:
                size = int(self.take(digest, url, str(part)))
                part.replace(target)
        except OSError as error:
            raise disk_problem(error, "what the store gave could not be kept") from None
        return size
