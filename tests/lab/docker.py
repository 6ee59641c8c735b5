"""Debian's Docker engine on a unix socket of its own, without bridge and iptables."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab.install import find
from tests.lab.network import SYSTEM, LabError

_OPTIONS = (
    "--storage-driver=overlay2",
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--exec-opt=native.cgroupdriver=cgroupfs",
)
_COMMAND = "/usr/bin/docker"  # Debian's: others that come first on a PATH may be another program


class DockerEngine:
    """A running ``dockerd`` with its own containerd; `close` ends both.

    Parameters
    ----------
    folder : Path
        Where it logs. What is in its images lies in a folder of its own, with a short name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="esdocker-"))  # a socket's path has to be short
        self.host = f"unix://{self.folder}/docker.sock"
        self.environment = {
            **SYSTEM,
            "PATH": f"/usr/sbin:/usr/bin:{SYSTEM['PATH']}",
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(self.folder / "config"),
        }
        self._log = folder / "dockerd.log"
        program = find("dockerd")
        assert program, "dockerd is not installed"
        command = [
            program,
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/docker.pid",
            f"--host={self.host}",
            *_OPTIONS,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.docker("version", check=False).returncode == 0:
                return
            time.sleep(0.1)
        self.close()
        raise LabError(f"dockerd did not start: {self._log.read_text()[-3000:]}")

    def docker(
        self, *arguments: object, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Debian's ``docker`` command with this engine."""
        done = subprocess.run(
            [_COMMAND, *map(str, arguments)],
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        if check and done.returncode:
            raise LabError(f"docker {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return done

    def load(self, layout: Path, tag: str, name: str) -> None:
        """Put an image of an OCI layout into the engine."""
        command = ["skopeo", "copy", "-q", f"oci:{layout}:{tag}", f"docker-daemon:{name}"]
        done = subprocess.run(
            [*command, "--dest-daemon-host", self.host],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"skopeo: {done.stderr}")

    def run(self, image: str, *command: object, options: tuple[object, ...] = ()) -> str:
        """Run a command in a container without network, and return what it wrote."""
        arguments = ["run", "--rm", "--network=none", *options, image, *command]
        return self.docker(*arguments).stdout

    def close(self) -> tuple[list[int], list[str]]:
        """End it; return what survived and what is still mounted, which are defects of the lab."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        deadline = time.monotonic() + 60
        while (survivors := self._survivors()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in survivors:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for place in reversed(self._mounts()):
            subprocess.run(["umount", place], capture_output=True, check=False)
        mounts = self._mounts()
        if not mounts:
            shutil.rmtree(self.folder, ignore_errors=True)
        return survivors, mounts

    def _survivors(self) -> list[int]:
        """Return the processes that have the engine's folder among their arguments."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if f"{self.folder}/".encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return found

    def _mounts(self) -> list[str]:
        lines = Path("/proc/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if line.split()[1].startswith(f"{self.folder}/")]
