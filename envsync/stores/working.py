"""Many blobs at once, in threads: the first failure ends it, and so does whoever waits for it.

Threads are daemons: a connection that hangs must not keep a command from its end.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["begin", "each"]

T = TypeVar("T")

_LOOK = 0.1  # seconds between two looks at whether to stop
_PATIENCE = 5.0  # seconds for what is under way when it has to end: small blobs get whole


def begin(work: Callable[[], T]) -> Future[T]:
    """Do something beside; whoever asks for the result waits for it, until Ctrl-C."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised by who asks
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def each(
    items: Iterable[T],
    work: Callable[[T], object],
    at_once: int,
    *,
    stop: threading.Event | None = None,
) -> None:
    """Do something for all items, a bounded number at the same time.

    Parameters
    ----------
    items : iterable
        In the order in which they are begun.
    work : callable
        Called with each, in a thread.
    at_once : int
        How many threads.
    stop : threading.Event, optional
        Set by another thread: nothing more is begun.

    Raises
    ------
    BaseException
        The first that `work` raised. What was under way has been waited for, a few seconds at most.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    count = 0
    for item in items:
        waiting.put(item)
        count += 1
    ended = threading.Event()
    troubles: list[BaseException] = []

    def run() -> None:
        while not ended.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - it is raised by who waits
                troubles.append(error)
                ended.set()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(at_once, count))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not ended.is_set():
            for thread in threads:
                thread.join(_LOOK / len(threads))
            if stop is not None and stop.is_set():
                ended.set()
    finally:
        ended.set()
        until = time.monotonic() + _PATIENCE
        with contextlib.suppress(KeyboardInterrupt):
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
    if troubles:
        raise troubles[0]
