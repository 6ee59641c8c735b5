"""OpenStack's nova, the real one, in a process of its own: see `nova_inside`.

It comes from PyPI, into an environment that is kept beside the lab's trees.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import uv

from tests.lab.install import ATTEMPTS
from tests.lab.network import LabError
from tests.lab.roots import cache
from tests.openstack_api import PROJECT, TOKEN, OpenStackApi

REQUIREMENTS = (
    *("nova==34.0.0", "openstack-placement==16.0.0"),
    "sqlalchemy<2.1",  # whose warnings nova's tests take for errors
    *("ddt", "fixtures", "oslotest", "requests-mock", "testtools", "wsgi-intercept"),  # of its own tests
)
INSTANCES = 2
"""The project's quota of servers."""
_UP = 120.0  # seconds; it takes ten on a machine that does nothing else
_END = 20.0


def environment() -> Path:
    """Return the folder of an environment with nova, made if it is not there: whole or absent."""
    folder, version = cache(), f"{sys.version_info[0]}.{sys.version_info[1]}"
    digest = hashlib.sha256("\n".join((version, *REQUIREMENTS)).encode()).hexdigest()[:12]
    there = folder / f"nova-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "nova.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.is_dir():
            _make(there, version)
    return there


def _make(there: Path, version: str) -> None:
    part = there.with_name(f".{there.name}.part")
    tool = uv.find_uv_bin()
    for _ in range(ATTEMPTS):
        shutil.rmtree(part, ignore_errors=True)
        for command in (
            ["venv", "--quiet", "--python", sys.executable, str(part)],
            ["pip", "install", "--quiet", "--python", str(part / "bin/python"), *REQUIREMENTS],
        ):
            done = subprocess.run([tool, *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                break
        else:
            # its tests look for nova's configuration where it is in nova's repository
            (part / f"lib/python{version}/site-packages/etc").symlink_to("../../../etc")
            part.rename(there)
            return
    shutil.rmtree(part, ignore_errors=True)
    raise LabError(f"nova could not be installed, {ATTEMPTS} times:\n{done.stderr[-2000:]}")


class Nova:
    """A nova, of which `api` is told: what it is asked goes by there. `close` ends it.

    Parameters
    ----------
    api : OpenStackApi
        What stands beside nova.
    """

    def __init__(self, api: OpenStackApi) -> None:
        python, inside = environment() / "bin/python", Path(__file__).with_name("nova_inside.py")

        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with it
        self._process = subprocess.Popen(
            # -I: this folder has a nova, too
            [python, "-I", inside, f"{api.url}/network", TOKEN, str(INSTANCES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true", "OS_LOG_CAPTURE": "1"},
            cwd=python.parent.parent,
            start_new_session=True,
        )
        try:
            said = json.loads(self._first_line())
            assert said["project"] == PROJECT
        except BaseException:
            self.close()
            raise
        api.nova = said["url"]

    def _first_line(self) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(_UP) else b""
        if not line.strip():
            self._log.seek(0)
            raise LabError(f"nova did not come up:\n{self._log.read().decode(errors='replace')[-3000:]}")
        return line

    def close(self) -> list[int]:
        """End it; return the processes of its session that go on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        pids = map(int, filter(str.isdigit, os.listdir("/proc")))
        return [pid for pid in pids if _session(pid) == self._process.pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0
