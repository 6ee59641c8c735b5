"""The lab's network: bridges, each with a subnet of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lab.install import find

SYSTEM = {**os.environ, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""An environment in which the system's own programs are found."""


class LabError(RuntimeError):
    """The lab did not do what it was told."""


def call(*command: str) -> str:
    """Run one of the system's programs."""
    program = find(command[0]) or command[0]
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, env=SYSTEM)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def make_bridge() -> tuple[int, str]:
    """Make the first bridge that nobody has; its number gives the subnet. Dead owners' bridges go first."""
    with _alone():
        for line in call("ip", "-j", "link", "show", "type", "bridge").splitlines():
            for link in json.loads(line or "[]"):
                owner = link.get("ifalias", "")
                if owner.startswith("envsync-lab ") and not Path(f"/proc/{owner.split()[1]}").exists():
                    with contextlib.suppress(LabError):
                        call("ip", "link", "del", link["ifname"])
        links = call("ip", "-br", "link")
        for number in range(256):
            name = f"eslab{number}"
            if f"{name}-" in links:
                continue  # cables of a lab that is on its way out
            with contextlib.suppress(LabError):
                call("ip", "link", "add", name, "type", "bridge")
                call("ip", "link", "set", name, "alias", f"envsync-lab {os.getpid()}")
                return number, name
    raise LabError(f"no bridge could be made: {call('ip', '-br', 'link')}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time sweep and make: what is swept by its name may be another's new one else."""
    with (Path(tempfile.gettempdir()) / "envsync-lab.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
