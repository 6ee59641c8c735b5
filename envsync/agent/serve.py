"""The agent's conversation with its client: JSON lines in, JSON lines out, and the end of everything.

Most starts find all as it should be and are over in a blink, so what only other requests need is imported by
those.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from .family import adopt, descendants, end_all, reap
from .layout import Cache, Emit, Problem, checked_name, disk_problem, fresh, remove, taken_back
from .probe import probe, version
from .pythons import find, unpack_python
from .realise import realise
from .running import Runner

if TYPE_CHECKING:
    from .allotting import Allotment
    from .credentials import Endpoint
    from .lease import Lease
    from .notices import Notices
    from .supervise import Child

__all__ = ["serve"]

_WAITING = 2000  # log events that may wait for a slow client
_TIDY = 5.0  # seconds between two looks for what adopted processes left
_CALM = 5.0  # seconds after which nobody is kept waiting by tidying up: a first start takes three
_TOUCH = 600.0  # seconds between two signs of life for agents elsewhere that share the file system
_GRACE = 5.0  # seconds that processes have to end by themselves when the agent ends

Answer = Callable[..., Any]


def _go_on(*_: object) -> None:
    """Ignore a signal, but in what is started from here."""


def serve(root: str, grace: float, hints: list[str]) -> None:
    """Serve one client on standard input and output, until it is gone.

    Parameters
    ----------
    root : str
        The cache folder.
    grace : float
        Seconds without a line from the client after which it counts as gone.
    hints : list of str
        Interpreters that the client knows of.
    """
    _Server(Cache(Path(root)), grace, hints).run()


class _Server:
    def __init__(self, cache: Cache, grace: float, hints: list[str]) -> None:
        self.cache = cache
        self.grace = grace
        self.hints = hints
        self.out = _Out(sys.stdout.fileno())
        self.runner = Runner()
        self.children: dict[str, Child] = {}
        self.allotment: Allotment | None = None
        self.adopting = adopt()
        self.wake, self.woken = os.pipe()
        self.leaving = False
        self.ending = threading.Event()
        self.lease: Lease | None = None
        self.notices: Notices | None = None
        self.endpoints: dict[str, Endpoint] = {}
        self.workers: list[threading.Thread] = []
        self.slow: dict[str, Answer] = {
            "probe": lambda _: probe(self.cache, find(self.cache, self.hints)),
            "lacking": self.lacking,
            "fetch": self.fetch,
            "realise": self.realise,
            "unpack_python": lambda request: unpack_python(self.cache, request["version"], request["digest"]),
            "place_trees": self.place_trees,
            "have_image": self.have_image,
            "allot_gpus": self.allot_gpus,
            "heed": self.heed,
            "hand": self.hand,
            "stop": self.stop,
        }

    def run(self) -> None:
        """Answer until the client is gone, then end what it started."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        patient = os.environ.get("ENVSYNC_PATIENT")  # supervise.PATIENT
        signal.signal(signal.SIGTERM, _go_on if patient else self._terminated)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) if patient else ():
            signal.signal(number, _go_on)
        self.out.emit(
            {
                "event": "hello",
                "cache": str(self.cache.root),
                "agent": sys.argv[0],
                "python": sys.executable,
                "version": version(),
                "pid": os.getpid(),
            }
        )
        self._begin({"id": 0, "do": "probe"})  # everyone asks for it first
        tidying = threading.Thread(target=self._tidy, daemon=True)
        tidying.start()
        try:
            self._listen()
        finally:
            self._end(tidying)

    def _terminated(self, *_: object) -> None:
        self.leaving = True
        with contextlib.suppress(OSError):
            os.write(self.woken, b"x")

    def _listen(self) -> None:
        buffer = bytearray()
        heard = tidied = time.monotonic()
        suspects: set[int] = set()
        while not self.leaving and not self.out.broken:
            left = heard + self.grace - time.monotonic()
            ready, _, _ = select.select([0, self.wake], [], [], max(0.0, min(left, _TIDY, 1.0)))
            if left <= 0 and 0 not in ready:  # it may be we who did not listen: a disk hung, or all was busy
                return
            if 0 in ready:
                data = os.read(0, 1 << 20)
                if not data:
                    return
                heard = time.monotonic()
                if self.lease is not None:
                    self.lease.renew(heard)
                searched = len(buffer)
                buffer += data
                if b"\n" in memoryview(buffer)[searched:].tobytes():
                    *lines, rest = bytes(buffer).split(b"\n")
                    buffer = bytearray(rest)
                    for line in lines:
                        self._take(line)
            if self.adopting and time.monotonic() - tidied > _TIDY:
                tidied = time.monotonic()
                spare = {child.pid for child in self.children.values()} | self.runner.pids()
                suspects = reap(spare, suspects)

    def _take(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            verb = request["do"]
        except (ValueError, KeyError, TypeError):
            return
        if verb == "ping":
            self.out.emit({"event": "pong"})
        elif verb == "quit":
            self.leaving = True
            self._stop_all()
            self.out.emit({"id": request.get("id"), "ok": None})
        elif verb == "lease":  # in this thread, which renews it
            self._answer(self.hold, request)
        elif verb == "credentials":  # in this thread: those that come later count
            self._answer(self.lend, request)
        elif verb == "spawn":  # in this thread: a child dies with the thread that started it
            self._answer(self.spawn, request)
        else:
            self._begin(request)

    def _begin(self, request: dict[str, Any]) -> None:
        work = self.slow.get(request["do"], _unknown)
        worker = threading.Thread(target=self._answer, args=(work, request), daemon=True)
        self.workers = [other for other in self.workers if other.is_alive()] + [worker]
        worker.start()

    def _answer(self, work: Answer, request: dict[str, Any]) -> None:
        number = request.get("id")
        try:
            answer: dict[str, Any] = {"id": number, "ok": work(request)}
        except Problem as problem:
            answer = {"id": number, "error": problem.to_dict()}
        except OSError as error:
            answer = {"id": number, "error": disk_problem(error, f"{request['do']} failed").to_dict()}
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            import traceback

            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            hint = "This is a defect of envsync: please report it."
            answer = {"id": number, "error": Problem("defect", f"{request['do']}: {what}", hint).to_dict()}
        self.out.emit(answer)

    def hold(self, request: Mapping[str, Any]) -> None:
        """Renew this machine's lease from now on, whenever the client is heard."""
        from .lease import Lease

        self.lease = Lease(request["path"], float(request["seconds"]))

    def heed(self, request: Mapping[str, Any]) -> bool:
        """Look from now on whether the cloud takes this machine back; False: nobody knows how it says so."""
        from .notices import SERVICES, Notices

        if request["cloud"] not in SERVICES:
            return False
        self.notices = self.notices or Notices(request["cloud"], self.out.emit)
        return True

    def lend(self, request: Mapping[str, Any]) -> dict[str, int]:
        """Have a cloud's credentials for the processes here, in place of those before; say at which port."""
        from .credentials import Endpoint, service_of

        endpoint = self.endpoints.get(request["cloud"])
        if endpoint is None:
            endpoint = self.endpoints[request["cloud"]] = Endpoint(service_of(request))
        endpoint.put(request["values"])
        return {"port": endpoint.port}

    def spawn(self, request: Mapping[str, Any]) -> dict[str, int]:
        """Start a process."""
        key = f"{checked_name(request['cluster'])}/{checked_name(request['name'])}"
        before = self.children.get(key)
        if before is not None and not before.ended.is_set():
            raise Problem("process", f"a process {key} runs already", "Stop it first.")
        from .supervise import spawn

        child = self.children[key] = spawn(self.cache, self._pass_on, request)
        return {"pid": child.pid}

    def hand(self, request: Mapping[str, Any]) -> None:
        """Give a process what it waits for."""
        self._child(request).hand(request["files"], str(request["line"]))

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Send what a process does; when it says that its cluster has ended, no client keeps the machine."""
        end = event["data"].get("ended") if event["event"] == "said" else None
        if isinstance(end, dict) and self.lease is not None:
            self.lease.end(float(end.get("within", 0)))
        self.out.emit(event)

    def stop(self, request: Mapping[str, Any]) -> None:
        """End a process."""
        self._child(request).stop(float(request["grace"]))

    def realise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make an environment."""
        return realise(self.cache, self.runner, self._about(request), {**request, "hints": self.hints})

    def lacking(self, request: Mapping[str, Any]) -> list[str]:
        """Return the blobs that are not here."""
        from .blobs import lacking

        return lacking(self.cache, request["digests"])

    def fetch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take blobs from a store."""
        from .fetching import fetch

        return fetch(self.cache, self._about(request), request)

    def place_trees(self, request: Mapping[str, Any]) -> list[str]:
        """Make source trees exist."""
        from .placing import place_trees

        return place_trees(self.cache, self._about(request), request["trees"])

    def have_image(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have a container image, and say what is in it."""
        from .containers import have_image

        return have_image(self.cache, self.runner, self._about(request), request)

    def allot_gpus(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take GPUs of this node for as long as the agent lives: what it started ends before it."""
        from .allotting import Allotment

        self.allotment = self.allotment or Allotment()
        return self.allotment.take(int(request["count"]), str(request["name"]))

    def _about(self, request: Mapping[str, Any]) -> Emit:
        """Return what sends events that belong to a request."""
        return lambda event: self.out.emit({**event, "id": request["id"]})

    def _child(self, request: Mapping[str, Any]) -> Child:
        try:
            return self.children[request["key"]]
        except KeyError:
            raise Problem("process", f"there is no process {request['key']}") from None

    def _tidy(self) -> None:
        """Tidy up once the first questions are answered, or when the agent ends, whatever comes first."""
        self.ending.wait(_CALM)
        _unpack_agent(self.cache)
        from .leftovers import sweep, touch_runs

        with contextlib.suppress(OSError):
            sweep(self.cache)
        while not self.ending.wait(_TOUCH):
            running = [key for key, child in list(self.children.items()) if not child.ended.is_set()]
            touch_runs(self.cache, running)

    def _stop_all(self) -> None:
        stopping = [threading.Thread(target=c.stop, args=(_GRACE,)) for c in self.children.values()]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    def _end(self, tidying: threading.Thread) -> None:
        self.ending.set()
        self.runner.close()
        self._stop_all()
        until = time.monotonic() + 2
        for worker in (*self.workers, tidying):  # they take back what they had begun
            worker.join(max(0.0, until - time.monotonic()))
        if self.adopting:
            end_all(descendants([os.getpid()]), grace=1.0)
        self.out.close()
        os._exit(0)


class _Out:
    """Standard output, written by its own thread, so that a client that does not read stops nobody here."""

    def __init__(self, handle: int) -> None:
        self.broken = False
        self._handle = handle
        self._waiting: collections.deque[dict[str, Any]] = collections.deque()
        self._logs = 0
        self._lost: dict[str, int] = {}
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def emit(self, message: dict[str, Any]) -> None:
        """Send a message; log lines that a slow client has no room for are counted instead."""
        with self._change:
            if message.get("event") == "log":
                if self._logs >= _WAITING:
                    key = message["key"]
                    self._lost[key] = self._lost.get(key, 0) + len(message["lines"])
                    return
                self._logs += 1
            self._waiting.append(message)
            self._change.notify()

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, and no more."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(patience)

    def _write(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    if self._closing:
                        return
                    self._change.wait()
                message = self._waiting.popleft()
                if message.get("event") == "log":
                    self._logs -= 1
                    lost = self._lost.pop(message["key"], 0)
                    if lost:
                        message["lines"].append(f"[{lost} lines left out here; the log file has them]")
            data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            try:
                while data:
                    data = data[os.write(self._handle, data) :]
            except OSError:
                self.broken = True
                return


def _unpack_agent(cache: Cache) -> None:
    """Unpack the agent beside its archive: the next one finds itself compiled, and its interpreter."""
    import zipfile

    archive = Path(sys.argv[0])
    folder = archive.with_suffix("")
    part = fresh(cache.bin, ".unpacking-")
    try:
        with taken_back(part), zipfile.ZipFile(archive) as packed:
            missing = [name for name in packed.namelist() if not (folder / name).is_file()]
            if missing:
                packed.extractall(part)
                try:
                    part.rename(folder)
                except OSError:  # another agent was quicker, or who cleans up old files has been there
                    for name in missing:  # one by one: who starts from it now finds each at any time
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (part / name).replace(folder / name)
                    remove(part)
        python = folder / "python"
        if not python.is_file() or python.read_text(encoding="utf-8") != f"{sys.executable}\n":
            with taken_back(part):
                part.write_text(f"{sys.executable}\n", encoding="utf-8")
                part.replace(python)
    except (OSError, zipfile.BadZipFile):
        remove(part)


def _unknown(request: Mapping[str, Any]) -> None:
    raise Problem("usage", f"this agent does not know how to {request['do']}")
