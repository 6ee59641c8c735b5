"""What the lab's SGE, OAR and HTCondor have in common: a login node and nodes of a Debian tree of their own.

As in a computing centre the user's home is shared by all of them, and ``/tmp`` is each one's own. They are
machines of the lab, so that their sshd answers too: ``user@head`` is a login node.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tests.lab.machines import Lab, LabError, Machine
from tests.lab.network import SYSTEM
from tests.lab.processes import Process

CORES, GPUS = 4, 4
"""What a node says it has, whatever it has."""

USER, UID = "ada", 3001
"""Who submits where root may not."""

# What somebody's shell on the login node would be told; the folder is the same there, or it is the home.
_COMMAND = """#!/bin/sh
exec nsenter --target={pid} --mount --uts --ipc --net --pid --root setpriv {identity} --init-groups \\
  env PATH={path} HOME={home} USER={user} LOGNAME={user} SHELL=/bin/sh LC_ALL=C.UTF-8 \\
  sh -c 'cd "$1" 2>/dev/null || cd; shift; exec "$@"' sh "$PWD" {program} "$@"
"""


class BatchLab(Lab):
    """A batch system; `close` ends it.

    Parameters
    ----------
    nodes : int
        How many there are, ``node1`` and so on.
    shared : sequence of Path
        Folders that nodes and head see too, under the same names. The user's home they see anyhow.

    Attributes
    ----------
    nodes : list of Machine
        Where jobs run.
    head : Machine
        Where the system itself runs, and where one submits.
    environment : dict
        What the system's programs need in their environment here: a PATH to commands that call the head's.
    user : str
        Who submits by these commands: root, or a user where root may not.
    home : Path
        The user's home, which is the same folder here.
    """

    kind: ClassVar[str]
    user: ClassVar[str] = USER
    programs: ClassVar[tuple[str, ...]]
    logs: ClassVar[tuple[str, ...]]

    def __init__(self, nodes: int = 2, *, shared: Sequence[Path] = ()) -> None:
        super().__init__()
        self.environment = {"PATH": f"{self.folder}/bin:{SYSTEM['PATH']}"}
        try:
            self._make_home()
            names = ["head", *(f"node{number}" for number in range(1, nodes + 1))]
            started = [self.host(self.kind, name=name, shared=[self.home, *shared]) for name in names]
            self.head, *self.nodes = started
            hosts = "".join(f"{machine.address} {machine.name}\n" for machine in started)
            for machine in started:
                (machine.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
                self._add_user(machine)
            self._make_commands()
            self._start()
            names = [node.name for node in self.nodes]
            self._until(self._up, lambda said: sorted(said.split()) == names)
        except BaseException:
            self.close()
            raise

    def call(self, *command: str, stdin: str = "", folder: Path | None = None) -> str:
        """Run one of the system's programs on the head, as its user, and return what it printed."""
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder or self.home,
            env={**SYSTEM, **self.environment},
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(command)}: {done.stdout.strip()} {done.stderr.strip()}")
        return done.stdout

    @abstractmethod
    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, a line each: number, state, nodes."""

    def processes(self) -> list[Process]:
        """Return what runs on the nodes, but for the system itself."""
        return [
            process
            for node in self.nodes
            for process in node.processes()
            if process.pid != node.pid and not self._own(process)
        ]

    def log(self) -> str:
        """Return what the system wrote on head and nodes."""
        paths = [
            path
            for machine in self.machines
            for pattern in self.logs
            for path in sorted(machine.root.glob(pattern))
        ]
        return "".join(f"== {path}\n{path.read_text(errors='replace')}" for path in paths)

    # -- for those that it is

    @abstractmethod
    def _start(self) -> None:
        """Start the daemons of head and nodes."""

    @abstractmethod
    def _own(self, process: Process) -> bool:
        """Whether it belongs to the system, and to no job."""

    @abstractmethod
    def _up(self) -> str:
        """Return the names of the nodes that take jobs."""

    def _background(self, machine: Machine, command: str) -> None:
        """Start what goes on when its caller has ended."""
        machine.exec("sh", "-c", f"{command} > /var/log/lab-daemon.log 2>&1 < /dev/null &")

    def _until(self, answer: Callable[[], str], expected: Callable[[str], bool] = bool) -> None:
        """Wait until it answers what is expected of it."""
        deadline = time.monotonic() + 120
        while True:
            try:
                said = answer()
                if expected(said):
                    return
            except LabError as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise LabError(f"{type(self).__name__} did not come up: {said}\n{self.log()}")
            time.sleep(0.2)

    # -- inner

    def _make_home(self) -> None:
        """Who logs in by ssh finds the lab's key here."""
        self.folder.chmod(0o755)
        ssh = self.home / ".ssh"
        (ssh / "authorized_keys").write_text(self.public_key)
        (self.home / ".bashrc").touch()
        if self.user != "root":
            for path in (self.home, ssh, *self.home.iterdir(), ssh / "authorized_keys"):
                os.chown(path, UID, UID)

    def _add_user(self, machine: Machine) -> None:
        etc = machine.root / "etc"
        if self.user == "root":
            lines = (etc / "passwd").read_text()
            (etc / "passwd").write_text(lines.replace(":/root:", f":{self.home}:", 1))
            return
        for name, line in {
            "passwd": f"{USER}:x:{UID}:{UID}::{self.home}:/bin/bash",
            "group": f"{USER}:x:{UID}:",
            "shadow": f"{USER}:*:19000:0:99999:7:::",
        }.items():
            with (etc / name).open("a") as file:
                file.write(f"{line}\n")

    def _make_commands(self) -> None:
        folder = self.folder / "bin"
        folder.mkdir()
        for program in self.programs:
            text = _COMMAND.format(
                pid=self.head.pid,
                identity=f"--reuid={self.user} --regid={self.user}",
                path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                home=shlex.quote(str(self.home)),
                user=self.user,
                program=program,
            )
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
