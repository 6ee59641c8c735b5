"""What is known to go wrong with Dask's own means of making environments equal, and what happens here.

Runs as a program in an environment with envsync, the client of clusters of another one: see
`test_todays_failures.py`. It reads which case to run against which scheduler, and writes how that went. Each
case says in its first line what happens without envsync, and shows it where that takes no time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from distributed import Client
from distributed.diagnostics.plugin import Environ, PipInstall, UploadDirectory, UploadFile

from envsync import SyncEnvironment, verify
from envsync.errors import MismatchError
from envsync.uv import find_uv

CASES: dict[str, tuple[str, Callable[[Bench], None]]] = {}


class Bench:
    """A client of a cluster, in a folder of its own, which is where its code is."""

    def __init__(self, scheduler: str, folder: Path, others: dict[str, str]) -> None:
        self.scheduler = scheduler
        self.folder = folder
        self.others = others
        self.client = Client(scheduler_file=scheduler)
        self.heard = Heard()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def install(self, requirement: str) -> None:
        """Install something into this environment, as one does in a second terminal."""
        subprocess.run([find_uv(), "pip", "install", "-q", "-p", sys.executable, requirement], check=True)

    @contextlib.contextmanager
    def synced(self, **options: Any) -> Iterator[SyncEnvironment]:
        plugin = SyncEnvironment(**options)
        self.client.register_plugin(plugin)
        try:
            yield plugin
        finally:
            plugin.unregister()

    @contextlib.contextmanager
    def worker(
        self, *options: str, environment: str = "other", **variables: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker of another environment, named late."""
        command = [self.others[environment], "worker", "--scheduler-file", self.scheduler, "--name", "late"]
        command += ["--nthreads", "2", "--host", "127.0.0.1", "--no-dashboard", *options]
        process = subprocess.Popen(command, env={**os.environ, **variables})
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.until(lambda: "late" not in self.workers())

    def workers(self) -> list[str]:
        """Return the names of those that have registered."""
        names: list[str] = self.client.run_on_scheduler(
            lambda dask_scheduler: [str(one) for one in dask_scheduler.aliases]
        )
        return names

    def everywhere(self, function: Callable[[], Any]) -> set[Any]:
        """Run it in every worker and in the scheduler."""
        return {*self.client.run(function).values(), self.client.run_on_scheduler(function)}

    def on(self, worker: str, function: Callable[[], Any]) -> Any:
        return self.client.submit(function, workers=[worker], pure=False).result(60)

    def until(self, condition: Callable[[], Any], seconds: float = 90) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {seconds:g} s"
            time.sleep(0.05)
        return found

    @contextlib.contextmanager
    def raises(self, kind: type[Exception], *words: str) -> Iterator[None]:
        text = ""
        try:
            yield
        except kind as error:
            text = str(error)
        assert text, f"no {kind.__name__}"
        assert all(word in text for word in words), text


class Heard(logging.Handler):
    """What a user is told, and when."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[float, str]] = []
        logging.getLogger("envsync").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((time.time(), record.getMessage()))

    def end(self) -> None:
        logging.getLogger("envsync").removeHandler(self)

    def of_the_late_worker(self) -> tuple[float, str] | None:
        return next((one for one in self.said if "worker late" in one[1]), None)


def case(name: str, cluster: str = "two workers") -> Callable[[Callable[[Bench], None]], None]:
    """Name a case, and say which cluster it is for."""

    def keep(function: Callable[[Bench], None]) -> None:
        CASES[name] = cluster, function

    return keep


def versions_of(*names: str) -> Callable[[], Any]:
    """Return what tells the versions of packages, as imported and as metadata has them."""

    def tell() -> Any:
        found = []
        for name in names:
            try:
                imported = __import__(name.replace("-", "_")).__version__
            except ImportError:
                imported = ""
            try:
                found.append((imported, version(name)))
            except PackageNotFoundError:
                found.append((imported, ""))
        return tuple(found)

    return tell


def value_of(module: str) -> Callable[[], Any]:
    """Return what imports a module of the client's and tells its value."""

    def tell() -> Any:
        try:
            return importlib.import_module(module).VALUE
        except ImportError as error:
            return f"{type(error).__name__}"

    return tell


def told_by_distributed(action: Callable[[], Any]) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        action()
    return "\n".join(str(one.message) for one in told)


def connect(bench: Bench) -> None:
    Client(scheduler_file=bench.scheduler, set_as_default=False).close()


# distributed's version check


@case("a different sklearn, xarray or pyarrow raises no warning")
def sklearn(bench: Bench) -> None:
    """The check on connecting looks at a dozen packages, of which these are none."""
    names = ("scikit-learn", "xarray", "pyarrow")
    told = told_by_distributed(lambda: connect(bench))
    told += told_by_distributed(lambda: bench.client.get_versions(check=True))
    assert not any(name in told for name in names), told
    with bench.raises(MismatchError, *names):
        verify(bench.client)
    with bench.synced():
        assert verify(bench.client).ok
        assert bench.everywhere(versions_of(*names)) == {(("2.0", "2.0"),) * 3}


@case("a late worker with another dask gets tasks", "no workers")
def another_dask(bench: Bench) -> None:
    """A worker says its versions when it registers, and is taken whatever they are."""
    with bench.worker("--no-nanny", environment="other dask"):
        assert bench.on("late", os.getpid)
    with bench.synced():
        futures = bench.client.map(lambda _: os.getpid(), range(10), pure=False)
        with bench.worker("--no-nanny", environment="other dask"):
            told, text = bench.until(bench.heard.of_the_late_worker)
            assert f"not {version('dask')}" in text
            assert "was refused" in text
            *_, (_, event) = bench.client.get_events("envsync")
            assert told - event["time"] < 60
            assert not any(one.done() for one in futures)
        with bench.worker("--no-nanny"):
            assert len(bench.client.gather(futures)) == 10


@case("a client that connects before its workers is never warned", "no workers")
def connected_before(bench: Bench) -> None:
    """Versions are compared once, when a client connects, with the workers of that moment."""

    def wait() -> None:
        bench.client.wait_for_workers(1, timeout=150)
        assert bench.on("late", os.getpid)

    with bench.worker("--no-nanny"):
        assert "pandas" not in told_by_distributed(wait)
        assert "pandas" in told_by_distributed(lambda: connect(bench)), "who comes later is warned"
    with bench.synced():
        futures = bench.client.map(lambda _: versions_of("pandas")(), range(10), pure=False)
        with bench.worker("--no-nanny"):
            assert set(bench.client.gather(futures)) == {(("2.0", "2.0"),)}
    with bench.synced(on_mismatch="warn"), bench.worker("--no-nanny", environment="other dask"):
        _, text = bench.until(bench.heard.of_the_late_worker)
        assert "was let in although it differs" in text
        assert "dask" in text


@case("a scheduler without numpy fails with a deserialisation error")
def deserialisation(bench: Bench) -> None:
    """A graph that holds an object of a package can be unpickled only where that package is."""
    arrays = importlib.import_module("arrays")  # it stands for numpy, which is large

    def size(array: Any) -> Any:
        return array.size

    with bench.raises(RuntimeError, "deserialization"):
        bench.client.submit(size, arrays.Array(3), pure=False).result(60)
    with bench.synced():
        assert bench.client.submit(size, arrays.Array(3), pure=False).result(60) == 3
        assert bench.client.run_on_scheduler(lambda: "arrays" in sys.modules)


# PipInstall


HOLDER = """
import sys, time
from pathlib import Path
from envsync.plugins.overlay import Overlays
overlays = Overlays(Path(sys.argv[1]))
with overlays.lock():
    adding = overlays.add(sys.argv[2])
    adding.write(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@case("two installs on one host race when a lease expires")
def race(bench: Bench) -> None:
    """A semaphore of the scheduler keeps two pips apart; while pip runs nobody renews its lease of 30 s."""
    bench.install("raced==1.0")
    overlays = Path(bench.client.run_on_scheduler(lambda: os.environ["ENVSYNC_OVERLAYS"]))

    def raced() -> list[Path]:
        return list(overlays.glob("overlays/*/lib/python*/site-packages/raced"))

    command = [sys.executable, "-c", HOLDER, str(overlays), "0" * 64]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    plugin = SyncEnvironment()
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as threads:
            registered = threads.submit(bench.client.register_plugin, plugin)
            bench.until(lambda: bench.client.run_on_scheduler(wants_something))
            time.sleep(1)
            assert not registered.done(), "one is in there, and no clock takes that away"
            assert not raced()
            holder.kill()  # in the middle of it, with half a file written
            assert registered.result(60).ok
        assert bench.everywhere(versions_of("raced")) == {(("1.0", "1.0"),)}
        assert len(raced()) == 1, "made once, for the workers and the scheduler"
    finally:
        holder.kill()
        holder.communicate()
        if plugin.client:
            plugin.unregister()


def wants_something(dask_scheduler: Any) -> bool:
    return bool(getattr(dask_scheduler.plugins.get("envsync"), "wanted", None))


@case("PipInstall of 2.0 after 1.0 imports 1.0 while metadata says 2.0")
def two_after_one(bench: Bench) -> None:
    """Pip exchanges files below a process that has imported the old ones, and that goes on."""
    bench.install("step==1.0")
    step = versions_of("step")
    with bench.synced(on_mismatch="warn") as plugin:
        assert bench.everywhere(step) == {(("1.0", "1.0"),)}
        bench.install("step==2.0")
        found = plugin.sync()
        assert bench.on("w0", step) == (("2.0", "2.0"),), "its nanny started it anew"
        # the others cannot be started anew: whoever holds on to the old one, it is said
        troubled = {one.process: one.trouble for one in found.processes if one.trouble}
        assert set(troubled) == {"worker w1"}
        assert "it has imported step" in troubled["worker w1"], troubled
        (scheduler,) = (one for one in found.processes if one.kind == "scheduler")
        warned = {one.subject: one.severity for one in scheduler.differences}
        assert warned.get("step") == "warning", "it runs no tasks"
        assert bench.everywhere(step) == {(("2.0", "2.0"),)}


@case("PipInstall with a restart replays 1.0")
def replays(bench: Bench) -> None:
    """Each plugin is another one by its name, so a worker that starts installs them all, in some order."""
    assert PipInstall(["step==1.0"]).name != PipInstall(["step==1.0"]).name
    step = versions_of("step")
    bench.install("step==1.0")
    with bench.synced(on_mismatch="warn") as plugin:
        assert bench.on("w0", step) == (("1.0", "1.0"),)
        bench.install("step==2.0")
        plugin.sync()
        [address] = [
            address
            for address, one in bench.client.scheduler_info(n_workers=-1)["workers"].items()
            if one["name"] == "w0"
        ]
        bench.client.restart_workers([address], timeout=60)
        assert bench.on("w0", step) == (("2.0", "2.0"),)
        with bench.worker():
            bench.until(lambda: "late" in bench.workers())
            assert bench.on("late", step) == (("2.0", "2.0"),)


@case("the same plugin twice runs twice")
def twice(bench: Bench) -> None:
    """The name that would tell that it is there is a random one."""
    assert PipInstall(["extra"]).name != PipInstall(["extra"]).name
    with bench.synced() as plugin:
        pids = bench.client.run(os.getpid)
        bench.client.run_on_scheduler(count_fetched)
        bench.client.register_plugin(plugin)
        bench.client.register_plugin(again := SyncEnvironment())
        assert bench.client.run(os.getpid) == pids
        assert bench.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.fetched) == []
        names = bench.client.run_on_scheduler(
            lambda dask_scheduler: [*dask_scheduler.worker_plugins, *dask_scheduler.nanny_plugins]
        )
        assert names.count("envsync") == 2, "one for workers, one for nannies"
        again.unregister()
        assert bench.everywhere(value_of("extra")) == {"ModuleNotFoundError"}


def count_fetched(dask_scheduler: Any) -> None:
    dask_scheduler.fetched = []
    get = dask_scheduler.handlers["envsync_get"]

    def counting(comm: Any, sha256: str, offset: int) -> Any:
        dask_scheduler.fetched.append(sha256)
        return get(comm, sha256, offset)

    dask_scheduler.handlers["envsync_get"] = counting


def path() -> Any:
    """All that decides what is imported, but for a worker's own folder."""
    own = [one for one in sys.path if "dask-scratch-space" not in one]
    return (*own, os.environ.get("PYTHONPATH"), os.environ["PATH"])


@case("unregister uninstalls nothing")
def unregister(bench: Bench) -> None:
    """What pip installed stays, for everybody who uses that environment."""
    before = sorted(map(str, bench.client.run(path).values())), bench.client.run_on_scheduler(path)
    with bench.synced():
        assert bench.everywhere(value_of("extra")) == {"extra"}
    assert bench.everywhere(value_of("extra")) == {"ModuleNotFoundError"}
    assert bench.everywhere(lambda: version("scikit-learn")) == {"1.0"}
    assert (sorted(map(str, bench.client.run(path).values())), bench.client.run_on_scheduler(path)) == before


@case("a worker without pip joins anyway", "no workers")
def without_pip(bench: Bench) -> None:
    """That a plugin fails on a worker is a line in that worker's log."""
    with bench.synced():
        futures = bench.client.map(lambda _: value_of("extra")(), range(10), pure=False)
        # nowhere to put it
        with bench.worker("--no-nanny", ENVSYNC_OVERLAYS="/dev/null/none"):
            _, text = bench.until(bench.heard.of_the_late_worker)
            assert "was refused" in text
            assert not any(one.done() for one in futures)
        with bench.worker("--no-nanny"):
            assert set(bench.client.gather(futures)) == {"extra"}
            assert bench.everywhere(lambda: find_spec("pip")) == {None}, "nor is it needed"


# UploadDirectory


@case("UploadDirectory is not importable without a restart")
def no_restart(bench: Bench) -> None:
    """It is unpacked into a folder that is on the path of workers that start afterwards."""
    bench.write("uploaded.py", "VALUE = 1\n")
    bench.client.register_plugin(UploadDirectory(bench.folder))
    assert bench.on("w0", value_of("uploaded")) == "ModuleNotFoundError"
    pids = bench.client.run(os.getpid)
    with bench.synced():
        assert bench.on("w0", value_of("uploaded")) == 1
        assert bench.client.run(os.getpid) == pids


@case("UploadDirectory is a silent no-op without a nanny")
def no_nanny(bench: Bench) -> None:
    """Only nannies are told of it."""
    bench.write("unseen.py", "VALUE = 1\n")
    bench.client.register_plugin(UploadDirectory(bench.folder))
    assert bench.on("w1", value_of("unseen")) == "ModuleNotFoundError"
    with bench.synced():
        assert bench.on("w1", value_of("unseen")) == 1
        assert bench.client.run_on_scheduler(value_of("unseen")) == 1


@case("UploadDirectory leaves late joiners with other code than early ones")
def late_code(bench: Bench) -> None:
    """Who starts after a second upload unpacks that one; who runs has imported the first."""
    bench.write("aged.py", "VALUE = 1\n")
    with bench.synced() as plugin:
        assert bench.everywhere(value_of("aged")) == {1}
        bench.write("aged.py", "VALUE = 22\n")
        with bench.worker():
            bench.until(lambda: "late" in bench.workers())
            assert bench.everywhere(value_of("aged")) == {1}, "nobody synced yet"
            plugin.sync()
            assert bench.everywhere(value_of("aged")) == {22}
        with bench.worker("--no-nanny"):
            bench.until(lambda: "late" in bench.workers())
            assert bench.everywhere(value_of("aged")) == {22}


@case("UploadDirectory makes an empty zip for a project under a folder named docs")
def under_docs(bench: Bench) -> None:
    """Words that are passed over are looked for in the whole path."""
    project = bench.folder / "docs" / "project"
    bench.write("docs/project/documented.py", "VALUE = 1\n")
    assert ZipFile(BytesIO(UploadDirectory(project).data)).namelist() == []
    with bench.synced(cwd=str(project)):
        assert bench.everywhere(value_of("documented")) == {1}


@case("UploadDirectory ships a git-ignored .venv")
def ignored(bench: Bench) -> None:
    """Git is not asked."""
    bench.write(".gitignore", ".venv/\n")
    bench.write(".venv/lib/python3/site-packages/heavy.py", "VALUE = 1\n")
    bench.write("light.py", "VALUE = 1\n")
    (bench.folder / ".git").mkdir()
    zipped = ZipFile(BytesIO(UploadDirectory(bench.folder).data)).namelist()
    assert any(name.endswith("heavy.py") for name in zipped)
    with bench.synced() as plugin:
        assert bench.everywhere(value_of("light")) == {1}
        assert plugin.state
        files = [path for tree in plugin.state["trees"] for path, _, _ in tree["files"]]
        assert "light.py" in files
        assert not any("heavy" in path for path in files), files


# UploadFile and Environ


@case("two UploadFile plugins share a name")
def share_a_name(bench: Bench) -> None:
    """The second takes the place of the first, for all workers that join later."""
    bench.write("one.py", "VALUE = 1\n")
    bench.write("two.py", "VALUE = 2\n")
    assert UploadFile(str(bench.folder / "one.py")).name == UploadFile(str(bench.folder / "two.py")).name
    with bench.synced(), bench.worker("--no-nanny"):
        bench.until(lambda: "late" in bench.workers())
        assert bench.everywhere(lambda: (value_of("one")(), value_of("two")())) == {(1, 2)}


@case("a re-uploaded file stays stale")
def stale(bench: Bench) -> None:
    """The module of that name is loaded anew, and those that took something from it keep the old."""
    for name in ("sent", "synced"):
        bench.write(f"{name}.py", "VALUE = 1\n")
        bench.write(f"uses_{name}.py", f"from {name} import VALUE\n")
    bench.client.upload_file(str(bench.folder / "sent.py"))
    bench.client.upload_file(str(bench.folder / "uses_sent.py"))
    bench.write("sent.py", "VALUE = 22\n")
    bench.client.upload_file(str(bench.folder / "sent.py"))
    assert bench.on("w1", value_of("uses_sent")) == 1
    with bench.synced() as plugin:
        importlib.import_module("uses_synced")  # as in a notebook, whose own is not what is sent
        assert bench.everywhere(value_of("uses_synced")) == {1}
        bench.write("synced.py", "VALUE = 22\n")
        plugin.sync()
        assert bench.everywhere(value_of("uses_synced")) == {22}


@case("Environ restarts workers in the middle of tasks")
def cut(bench: Bench) -> None:
    """A nanny plugin restarts at once, and the task begins again elsewhere."""
    log = bench.folder / "log.txt"

    def task(seconds: float) -> int:
        with log.open("a") as file:
            file.write("begin ")
        time.sleep(seconds)
        with log.open("a") as file:
            file.write("end ")
        return os.getpid()

    future = bench.client.submit(task, 1, workers=["w0"], allow_other_workers=True, pure=False)
    bench.until(log.exists)
    bench.client.register_plugin(Environ({"ANY": "thing"}))
    future.result(60)
    assert log.read_text().count("begin") == 2, log.read_text()
    log.unlink()
    assert bench.on("w0", versions_of("vary")) == (("1.0", "1.0"),)  # so a restart alone brings the other
    future = bench.client.submit(task, 2, workers=["w0"], allow_other_workers=True, pure=False)
    bench.until(log.exists)
    with bench.synced():
        assert log.read_text() == "begin end "
        assert bench.on("w0", versions_of("vary")) == (("2.0", "2.0"),)
        assert bench.on("w0", os.getpid) != future.result(60)


def run(name: str, scheduler: str, work: Path, others: dict[str, str]) -> None:
    """Run a case in a folder of its own, which is on the path as a script's is."""
    folder = work / str(list(CASES).index(name))
    folder.mkdir(parents=True)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    modules = set(sys.modules)
    bench = Bench(scheduler, folder, others)
    try:
        with bench.client:
            CASES[name][1](bench)
    finally:
        bench.heard.end()
        sys.path.remove(str(folder))
        os.chdir(work)
        for module in set(sys.modules) - modules:
            if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
                del sys.modules[module]


def main() -> None:
    work, others = Path(sys.argv[1]), json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # workers that are started here may say something too
    for line in sys.stdin:
        name, scheduler = json.loads(line)
        try:
            run(name, scheduler, work, others)
            answer = ""
        except Exception:
            answer = traceback.format_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
