"""podman with storage of its own, here or on a machine of the lab that sees this one's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.machines import Machine

_CONTAINERS = """[containers]
netns = "host"
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{folder}/tmp"
"""
_STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/root"
runroot = "{folder}/run"
"""
_CGROUPS = """set -e
mount -o remount,rw /sys; mount -t tmpfs cgroups /sys/fs/cgroup
if grep -q '^[0-9]*:pids:' /proc/self/cgroup; then
  cd /sys/fs/cgroup; for one in pids devices freezer; do mkdir $one; mount -t cgroup -o $one cgroup $one; done
else umount /sys/fs/cgroup; mount -t cgroup2 cgroup /sys/fs/cgroup; fi
"""


class Podman:
    """podman, with its settings and all that it keeps in one folder.

    Attributes
    ----------
    environment : dict of str to str
        What has podman use that folder.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine
        if machine is None:
            self.folder = Path(tempfile.mkdtemp(prefix="envsync-podman-"))
            settings = self.folder
        else:  # an overlay cannot be the upper part of another one
            self.folder, settings = Path("/mnt/podman"), Path("/etc/containers")
            machine.exec(
                "sh", "-c", "mkdir -p $1 $2; mount -t tmpfs podman $1", "sh", str(self.folder), str(settings)
            )
            machine.exec("sh", "-c", _CGROUPS)
        for name, text in (("containers.conf", _CONTAINERS), ("storage.conf", _STORAGE)):
            data = text.format(folder=self.folder).encode()
            if machine is None:
                (settings / name).write_bytes(data)
            else:
                machine.exec("sh", "-c", f"cat > {settings}/{name}", stdin=data)
        self.environment = {
            "CONTAINERS_CONF": str(settings / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(settings / "storage.conf"),
        }

    def __call__(self, *arguments: str) -> str:
        """Run it, and return what it printed."""
        if self.machine is not None:
            return self.machine.exec("podman", *arguments).decode()
        done = subprocess.run(
            ["podman", *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self) -> list[str]:
        """Return the names of all containers, also of those that have ended."""
        listed = json.loads(self("ps", "--all", "--format", "json") or "[]")
        return [name for one in listed for name in one["Names"]]

    def wait_until_none(self, seconds: float) -> None:
        """Wait until no container is left."""
        self.wait(lambda names: not names, seconds)

    def wait(self, fits: Callable[[list[str]], bool], seconds: float) -> list[str]:
        """Wait until the containers are as they should be."""
        deadline = time.monotonic() + seconds
        while not fits(names := self.containers()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert fits(names), f"after {seconds} s: {names}"
        return names

    def close(self) -> None:
        """Remove what it keeps; on a machine that goes with the machine."""
        if self.machine is None:
            self("rm", "--all", "--force")
            subprocess.run(["umount", "-l", self.folder / "root/overlay"], check=False, capture_output=True)
            shutil.rmtree(self.folder, ignore_errors=True)
