"""In a cluster that somebody else started: an edit, missing wheels, nothing to do, the scheduler's memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timing import Row, Table

if TYPE_CHECKING:
    from tests.lab.machines import Lab, Machine
    from tests.places import Place

HOSTS, PER_HOST = 4, 2
WORKERS = HOSTS * PER_HOST
WHEELS, WHEEL = 5, 10_000_000  # how many, and bytes of each
LINK = "100mbit"
HUGE, HUGE_WHEELS = 1_000_000_000, 4
ROUNDS, RESTARTS, COPIES = 5, 3, 3
CLIENT = Path(__file__).with_name("existing_client.py")
OVERLAYS = "/var/tmp/envsync-bench-overlays"  # of each host: the lab's machines have their own disks
PORT = 8786

EDIT = f"One edited file, on {WORKERS} workers of {HOSTS} hosts, from the call until all run it"
RESTART = f"The same with a restart of all {WORKERS} workers"
NOTHING = f"Registering where {WORKERS} workers of {HOSTS} hosts have all of it"
COPY = f"{WHEELS * WHEEL // 10**6} MB of wheels to {HOSTS} hosts, the client behind a link of {LINK}"
MEMORY = f"What the scheduler grows by while {HUGE / 10**9:.0f} GB goes through it"


def existing() -> list[Table]:
    """Measure all of it."""
    from tests.lab.install import missing, obstacle
    from tests.places import make_place

    why = obstacle() or ("the lab lacks " + " ".join(missing()) if missing() else "")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, make_place(Path(folder)) as place:
        tables = (
            [_without_lab(title, why) for title in (EDIT, RESTART, NOTHING, COPY)] if why else _lab(place)
        )
        tables.append(_memory(place))
    return tables


def _without_lab(title: str, why: str) -> Table:
    return Table(title, "", [Row("envsync", trouble=why)])


class Hosts:
    """A scheduler and workers on machines of the lab, in an environment, the client here."""

    def __init__(self, lab: Lab, place: Place) -> None:
        from tests.lab.machines import HERE

        self.lab = lab
        self.place = place
        self.machines: list[Machine] = [lab.host(HERE, name=f"node{number}") for number in range(HOSTS)]
        self.work = place.folder / "work"
        self.work.mkdir()
        self.address = f"tcp://{self.machines[0].address}:{PORT}"

    @contextlib.contextmanager
    def running(self, prefix: Path) -> Iterator[None]:
        """Start the scheduler and the workers; all end."""
        started = []
        try:
            first = self.machines[0]
            started.append(
                self._start(first, prefix, "scheduler", "--host", first.address, "--port", str(PORT))
            )
            for machine in self.machines:
                for _ in range(PER_HOST):
                    options = ("--nthreads", "1", "--host", machine.address, "--no-dashboard")
                    started.append(self._start(machine, prefix, "worker", self.address, *options))
            yield
        finally:
            for machine in reversed(self.machines):
                for found in machine.processes(f"{prefix}/bin/dask"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(found.pid, signal.SIGTERM)
            for process in started:
                process.wait(60)

    def _start(self, machine: Machine, prefix: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.place.folder / "hosts.log").open("ab") as log:
            return subprocess.Popen(
                [*_inside(machine), str(prefix / "bin/dask"), *arguments],
                env={**_plain(), "ENVSYNC_OVERLAYS": OVERLAYS},
                stdout=log,
                stderr=log,
            )

    def ask(self, what: str, rounds: int, **environment: str) -> dict[str, list[float]]:
        """Let the client do something; how long it took, by name."""
        done = subprocess.run(
            _script(self.place, what, self.address, WORKERS, rounds),
            env={**_plain(), **self.place.environment, **environment},
            cwd=self.work,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        return _times(done)

    def forget(self) -> None:
        """Remove what the hosts keep of earlier rounds."""
        for machine in self.machines:
            machine.exec("rm", "-rf", OVERLAYS)

    def copy(self, paths: Sequence[Path]) -> float:
        """Copy files once to the scheduler's host by ssh; how long it took."""
        began = time.perf_counter()
        with subprocess.Popen(["cat", *paths], stdout=subprocess.PIPE) as files:
            subprocess.run(
                ["ssh", "-F", str(self.lab.config), "node0", "cat > /var/tmp/copy"],
                stdin=files.stdout,
                check=True,
            )
        return time.perf_counter() - began


def _inside(machine: Machine) -> list[str]:
    """Return what runs a program on a machine, and stays here to wait for it."""
    inside = ("--uts", "--ipc", "--net", "--pid", "--mount", "--root", "--wd")
    return ["nsenter", f"--target={machine.pid}", *inside]


def _plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _script(place: Place, what: str, address: str, workers: int, rounds: int) -> list[str]:
    return [str(place.ours / "bin/python"), str(CLIENT), what, address, str(workers), str(rounds)]


def _times(done: subprocess.CompletedProcess[str]) -> dict[str, list[float]]:
    if done.returncode != 0:
        raise RuntimeError(" / ".join(done.stderr.strip().splitlines()[-3:]))
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _lab(place: Place) -> list[Table]:
    from tests.lab.machines import Lab

    lab = Lab()
    try:
        hosts = Hosts(lab, place)
        with hosts.running(place.other):
            edits = hosts.ask("edit", ROUNDS)
            restarts = hosts.ask("restart", RESTARTS)
        with hosts.running(place.ours):
            nothing = hosts.ask("nothing", ROUNDS)
        copies = _copies(hosts)
    finally:
        lab.close()
    cores = f"All hosts share {os.cpu_count()} cores here, so {WORKERS} processes start in turns."
    return [
        Table(
            EDIT,
            "at most 0.5 s",
            [Row("`plugin.sync()`", edits["ours"]), Row("`Client.upload_file`", edits["upload_file"])],
            [f"Medians of {ROUNDS}, in turns, after a warm-up. `upload_file` sends one file that is named."],
        ),
        Table(
            RESTART,
            "at most 3 s",
            [
                Row("`plugin.sync()`, restart='always'", restarts["ours"]),
                Row("`Client.restart`, `Client.upload_file`", restarts["restart"]),
            ],
            [f"Medians of {RESTARTS}. {cores}"],
        ),
        Table(
            NOTHING,
            "at most 0.3 s",
            [
                Row("`Client.register_plugin(SyncEnvironment())`", nothing["ours"]),
                Row("`Client.get_versions(check=True)`", nothing["get_versions"]),
            ],
            ["Dask's own check compares nine packages."],
        ),
        Table(
            COPY,
            "at most 1.5 of one copy over that link",
            [
                Row("`Client.register_plugin(SyncEnvironment())`", copies["ours"]),
                Row("one copy to one host, by ssh", copies["copy"]),
                Row("`Client.upload_file` of one file", copies["upload_file"]),
            ],
            [f"Medians of {COPIES}, in turns. envsync's has the survey, the lock and the unpacking in it."],
        ),
    ]


def _heavy(place: Place, number: int, size: int) -> list[Path]:
    """Make wheels of noise, and install them where the client is."""
    from tests.index_server import write_wheel

    made = [
        write_wheel(place.folder / "wheels", f"heavy{one}", "1.0", payload=os.urandom(size))
        for one in range(number)
    ]
    pins = [f"heavy{one}==1.0" for one in range(number)]
    from envsync.uv import find_uv

    command = [str(find_uv()), "pip", "install", "-q", "-p", str(place.ours), "--index", place.index.url]
    subprocess.run([*command, "--reinstall", "--refresh", *pins], check=True)
    return made


def _copies(hosts: Hosts) -> dict[str, list[float]]:
    made = _heavy(hosts.place, WHEELS, WHEEL)
    one = hosts.place.folder / "heavy.bin"
    one.write_bytes(os.urandom(WHEELS * WHEEL))
    times: dict[str, list[float]] = {"ours": [], "copy": [], "upload_file": []}
    hosts.lab.shape(LINK)
    with hosts.running(hosts.place.other):
        for turn in range(COPIES + 1):
            hosts.forget()
            found = hosts.ask("wheels", 1)
            found["copy"] = [hosts.copy(made)]
            if turn:  # the first one locks, and fetches the wheels from the index
                for name, values in found.items():
                    times[name] += values
        for _ in range(COPIES):
            times["upload_file"] += hosts.ask("file", 1, BENCH_FILE=str(one))["upload_file"]
    hosts.lab.unshape()
    return times


class Watched:
    """The most memory that a process has, in MiB, and how long it is silent, in seconds, from now on."""

    def __init__(self, pid: int, address: str) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._address = address
        self.before = self._now()
        self.most = self.before
        self.silence = 0.0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._look), threading.Thread(target=self._ping)]

    def _now(self) -> float:
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._now())

    def _ping(self) -> None:
        from distributed import Client

        with Client(self._address, set_as_default=False) as client:
            while not self._done.wait(0.02):
                began = time.perf_counter()
                client.sync(client.scheduler.identity)
                self.silence = max(self.silence, time.perf_counter() - began)

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)


def _memory(place: Place) -> Table:
    _heavy(place, HUGE_WHEELS, HUGE // HUGE_WHEELS)
    one = place.folder / "heavy.bin"
    with one.open("wb") as file:
        for _ in range(HUGE_WHEELS):
            file.write(os.urandom(HUGE // HUGE_WHEELS))
    rows, notes = [], ["MiB, at most, above what it had before. One scheduler, one worker, on this machine."]
    work = place.folder / "memory"
    for name, what in (("`SyncEnvironment`", "wheels"), ("`Client.upload_file` of one file", "file")):
        shutil.rmtree(work, ignore_errors=True)
        with place.cluster(work, []) as scheduler:
            address, pid = _scheduler(Path(scheduler))
            with Watched(pid, address) as watched:
                trouble = _do(place, what, address, {"BENCH_FILE": str(one)})
            grown = watched.most - watched.before
            rows.append(Row(name, [] if trouble else [grown], trouble))
            notes.append(f"{name}: the scheduler was silent for {watched.silence:.2f} s at most.")
    return Table(MEMORY, "at most 64 MiB, and never silent for a second", rows, notes, unit="MiB")


def _scheduler(file: Path) -> tuple[str, int]:
    """Return the address and the pid of a scheduler that is starting."""
    from distributed import Client

    end = time.monotonic() + 60
    while not file.exists():
        if time.monotonic() > end:
            raise RuntimeError("the scheduler did not start")
        time.sleep(0.05)
    with Client(scheduler_file=str(file), set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        return client.scheduler.address, client.run_on_scheduler(os.getpid)


def _do(place: Place, what: str, address: str, environment: Mapping[str, str]) -> str:
    """Let a client do something; what kept it from that."""
    done = subprocess.run(
        _script(place, what, address, 1, 1),
        env={**_plain(), **place.environment, **environment},
        cwd=place.folder / "memory",
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:200]


if __name__ == "__main__":
    for table in existing():
        sys.stdout.write(f"\n{table.markdown()}\n")
