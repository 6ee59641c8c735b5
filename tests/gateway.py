"""A dask-gateway server of the tests' own: its API, its proxy, and the clusters that it starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.places import Place, end, here
from tests.ports import free_port

REQUIREMENTS = ("dask-gateway-server[local]==2026.3.0", "dask-gateway==2026.3.0")

_MARK = "ENVSYNC_TESTS_GATEWAY"  # in the environment of all that a gateway starts
_LEAVING = 30.0  # seconds


def make_server(place: Place, *requirements: str) -> Path:
    """Make an environment with the gateway's server, beside those of a place."""
    prefix = place.folder / "gateway"
    pins = [f"{name}=={wanted}" for name, wanted in here().items()]
    place.install(prefix, *pins, *REQUIREMENTS, *requirements)
    return prefix


class Gateway:
    """A gateway's server and its proxy, which are processes of their own.

    Parameters
    ----------
    server : Path
        The environment that the server runs in; see `make_server`.
    work : Path
        A folder for its configuration, its log, and its clusters.
    backend : {"local", "inprocess"}
        Whether schedulers and workers are processes, or live in the server's own.
    tools : Path, optional
        The environment of schedulers and workers, where they are processes.
    """

    def __init__(
        self, server: Path, work: Path, *, backend: str = "local", tools: Path | None = None
    ) -> None:
        self.work = work
        self.api = f"127.0.0.1:{free_port()}"
        self.proxy = f"127.0.0.1:{free_port()}"
        self._mark = uuid.uuid4().hex
        clusters = work / "clusters"
        clusters.mkdir(parents=True)
        kind = {"local": "local.UnsafeLocalBackend", "inprocess": "inprocess.InProcessBackend"}[backend]
        bin_folder = (tools or server) / "bin"
        overlays = {"ENVSYNC_OVERLAYS": str(work / "overlays"), _MARK: self._mark}
        (work / "config.py").write_text(
            f"c.DaskGateway.backend_class = 'dask_gateway_server.backends.{kind}'\n"
            f"c.DaskGateway.address = {self.api!r}\n"
            f"c.Proxy.address = {self.proxy!r}\n"
            f"c.{kind.split('.')[1]}.clusters_directory = {str(clusters)!r}\n"
            f"c.ClusterConfig.scheduler_cmd = {[str(bin_folder / 'dask'), 'scheduler']!r}\n"
            f"c.ClusterConfig.worker_cmd = {[str(bin_folder / 'dask'), 'worker']!r}\n"
            f"c.ClusterConfig.environment = {overlays!r}\n"
        )
        self._log = (work / "gateway.log").open("wb")
        self._process = subprocess.Popen(
            [server / "bin" / "dask-gateway-server", "-f", work / "config.py"],
            cwd=work,
            env={**os.environ, **overlays},
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def address(self) -> str:
        return f"http://{self.proxy}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """Return what the server, its proxy and its clusters have said."""
        logs = [self.work / "gateway.log", *sorted(self.work.glob("clusters/*/logs/*.log"))]
        return "\n".join(f"== {one.name}\n{one.read_text(errors='replace')}" for one in logs)

    def wait(self, seconds: float = 120) -> None:
        """Wait until the server answers through its proxy."""
        deadline = time.monotonic() + seconds
        while True:
            assert self._process.poll() is None, self.log()
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if urllib.request.urlopen(f"{self.address}/api/health", timeout=5).status == 200:
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Return all that it started and that still runs, its proxy, schedulers, nannies and workers too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def close(self) -> None:
        """End the server by its pid; what outlives it is ended too, and is an error."""
        end(self._process)
        self._log.close()
        _, left = psutil.wait_procs(self.processes(), timeout=_LEAVING)
        told = [(one.pid, " ".join(one.cmdline())) for one in left]
        for one in left:
            one.kill()
        assert told == [], f"the gateway left processes behind: {told}\n{self.log()}"


@contextlib.contextmanager
def gateway(
    server: Path, work: Path, *, backend: str = "local", tools: Path | None = None
) -> Iterator[Gateway]:
    """Yield a gateway that runs."""
    made = Gateway(server, work, backend=backend, tools=tools)
    try:
        made.wait()
        yield made
    finally:
        made.close()
