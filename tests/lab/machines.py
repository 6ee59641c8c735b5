"""The lab: a bridge, and machines on it that are real as far as Linux namespaces go.

Each machine has its own network, mount, process, host name and IPC namespaces, a copy-on-write file system,
and sshd as its process 1. All of it dies with the test process, however that dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import asyncssh

from tests.lab.network import SYSTEM, LabError, call, make_bridge
from tests.lab.processes import Process, namespace, processes_in
from tests.lab.roots import RECIPES, root_tree

HERE = "here"
"""The kind of machine that sees this machine's files, copy on write."""

_UNSHARE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "--kill-child"),
)
_SSHD = {
    "PidFile": "none",
    "PermitRootLogin": "yes",
    "PasswordAuthentication": "no",
    "UsePAM": "no",
    "UseDNS": "no",
    "PrintMotd": "no",
}

# Reads one line before sshd starts: by then the network is there.
_INIT = """set -eu
mount --make-rprivate /
layers() {{ mount -t overlay lab -o lowerdir={lower},upperdir=$1/upper,workdir=$1/work {folder}/root; }}
layers {folder} 2>/dev/null || {{
  mount -t tmpfs lab {folder}/upper; mkdir {folder}/upper/upper {folder}/upper/work; layers {folder}/upper; }}
cd {folder}/root
mount -t proc proc proc; mount -t sysfs -o ro sys sys; mount -t tmpfs -o mode=755 dev dev
mkdir -p dev/pts dev/shm run/sshd root tmp
mount -t devpts -o newinstance,ptmxmode=666,mode=620 pts dev/pts; mount -t tmpfs -o mode=1777 shm dev/shm
while read -r name major minor; do mknod -m 666 dev/$name c $major $minor; done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
END
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
{scratch}
hostname {name}; echo {name} > etc/hostname; printf '127.0.0.1 localhost\\n{address} {name}\\n' > etc/hosts
rm -f etc/resolv.conf; : > etc/resolv.conf
rm -rf root/.ssh; mkdir -m 700 root/.ssh; chmod 700 root; chown 0:0 root
cp {folder}/authorized_keys root/.ssh/authorized_keys; chmod 600 root/.ssh/authorized_keys
mkdir -p etc/ssh/lab; cp {folder}/host_key {folder}/sshd_config etc/ssh/lab/; chmod 600 etc/ssh/lab/*
read -r go
mkdir -p .old; pivot_root . .old
exec chroot . /bin/sh -c 'umount -l /.old; rmdir /.old; cd /; exec < /dev/null;
exec /usr/sbin/sshd -D -e -f /etc/ssh/lab/sshd_config'
"""


class Machine:
    """One machine. Made by `Lab.host`; usable in a ``with`` statement, which ends it.

    Attributes
    ----------
    name : str
        Its host name, and its alias in the lab's ssh configuration.
    address : str
        Its IPv4 address.
    root : Path
        Its root folder, to be looked at from here.
    """

    def __init__(self, lab: Lab, name: str, address: str, process: subprocess.Popen[bytes], pid: int) -> None:
        self.lab = lab
        self.name = name
        self.address = address
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self.via: Machine | None = None
        self.link = ""
        self.host_key = ""
        self._process = process
        self._namespace = namespace(pid, "pid")
        # held open: the kernel gives the number of a namespace that is gone to the next one, of any lab
        self._held = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)

    # -- its cable

    def cut(self) -> None:
        """Pull the cable out: from now on it is silence for everybody."""
        self._outside("link", "set", self.link, "down")

    def heal(self) -> None:
        """Put the cable back in."""
        self._outside("link", "set", self.link, "up")

    def shape(self, rate: str) -> None:
        """Limit the cable both ways, such as to ``"100mbit"``."""
        self._at_router("tc", "qdisc", "replace", "dev", self.link, *_limit(rate))
        self.inside("tc", "qdisc", "replace", "dev", "eth0", *_limit(rate))

    def unshape(self) -> None:
        """Take the limit away."""
        self._at_router("tc", "qdisc", "del", "dev", self.link, "root")
        self.inside("tc", "qdisc", "del", "dev", "eth0", "root")

    def stats(self) -> dict[str, int]:
        """Return the bytes that went over its cable so far: ``{"received": n, "sent": n}``, as it sees it."""
        (link,) = json.loads(self._outside("-j", "-s", "link", "show", self.link))
        counts = link["stats64"]
        return {"received": counts["tx"]["bytes"], "sent": counts["rx"]["bytes"]}

    def block(self, port: int | None = None, *, source: str | None = None) -> None:
        """Drop silently what comes in over the cable.

        Parameters
        ----------
        port : int, optional
            Only for this TCP port; if not given, every new connection but those to sshd.
        source : str, optional
            Only from this address, such as `Lab.gateway`, where the tests run.
        """
        rule = ["-i", "eth0", "-p", "tcp"] + (["-s", source] if source else [])
        if port is None:
            rule += ["!", "--dport", "22", "-m", "conntrack", "--ctstate", "NEW"]
        else:
            rule += ["--dport", str(port)]
        self.inside("iptables", "-w", "-A", "INPUT", *rule, "-j", "DROP")

    def unblock(self) -> None:
        """Let everything in again."""
        self.inside("iptables", "-w", "-F", "INPUT")

    # -- its processes

    def exec(self, *command: str, stdin: bytes = b"", check: bool = True) -> bytes:
        """Run a program on it, not over the network, and return what it printed."""
        inside = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd")
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", *inside, *command],
            input=stdin,
            capture_output=True,
            check=False,
            env={"PATH": SYSTEM["PATH"], "HOME": "/root"},
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(command)}: {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    def processes(self, containing: str = "") -> list[Process]:
        """Return its processes, sshd's own left out.

        Parameters
        ----------
        containing : str
            Only those whose command line has this text.
        """
        return [
            process
            for process in processes_in(self._namespace)
            if process.arguments
            and not Path(process.arguments[0].split(":")[0]).name.startswith("sshd")
            and containing in " ".join(process.arguments)
        ]

    def add_user(self, name: str, shell: str = "/bin/sh") -> None:
        """Make a user with a home folder, who logs in with the lab's key."""
        self.exec("useradd", "--create-home", "--shell", shell, "--password", "*", name)
        script = 'umask 077; mkdir -p "$1/.ssh"; cat > "$1/.ssh/authorized_keys"; chown -R "$2:" "$1/.ssh"'
        self.exec("sh", "-c", script, "sh", f"/home/{name}", name, stdin=self.lab.public_key.encode())

    # -- its end

    def kill(self) -> None:
        """End every process of it at once; peers get resets. The machine is gone after that."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.kill(self.pid, signal.SIGKILL)  # not its parent, who is the one to reap it
        self._process.wait()
        deadline = time.monotonic() + 60
        while self.survivors() and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(LabError):
            if self.via is None or self.via.alive:
                self._outside("link", "del", self.link)  # the kernel would take its time
        self.lab.forget(self)

    def poweroff(self) -> None:
        """End every process of it with the cable out: peers get silence."""
        if self.alive:
            self.cut()
        self.kill()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def survivors(self) -> list[Process]:
        """Return whatever still runs in its process namespace, sshd included."""
        return processes_in(self._namespace)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def __repr__(self) -> str:
        return f"Machine({self.name!r}, {self.address!r})"

    # -- inner

    def inside(self, *command: str) -> str:
        """Run one of this machine's programs in its network."""
        return call("nsenter", f"--net=/proc/{self.pid}/ns/net", *command)

    def _at_router(self, *command: str) -> str:
        """Run a program where the other end of its cable is."""
        return self.via.inside(*command) if self.via else call(*command)

    def _outside(self, *arguments: str) -> str:
        return self._at_router("ip", *arguments)


class Lab:
    """A network of machines, with its own keys and ssh configuration.

    Attributes
    ----------
    home : Path
        A home folder whose ``.ssh`` reaches every machine by its name: give it to commands as ``HOME``.
    config, known_hosts, key : Path
        The files in it.
    gateway : str
        The address of this machine on the lab's network.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="envsync-lab-"))
        self.home = self.folder / "home"
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self.config, self.known_hosts, self.key = ssh / "config", ssh / "known_hosts", ssh / "id_ed25519"
        key = asyncssh.generate_private_key("ssh-ed25519", comment="lab")
        self.key.touch(mode=0o600)
        self.key.write_bytes(key.export_private_key())
        self.public_key = key.export_public_key().decode()
        self.known_hosts.touch()
        self.config.write_text("")
        self.machines: list[Machine] = []
        self._ended: list[Machine] = []
        self._started = 0
        self._inner = 0
        number, self._bridge = make_bridge()
        self._net = f"10.90.{number}"
        self._inner_net = f"10.91.{number}"
        self.gateway = f"{self._net}.1"
        call("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        call("ip", "link", "set", self._bridge, "up")
        # whoever knocks at an inner machine from here gets no answer, and leaves this network by no other way
        call("ip", "route", "add", f"{self._inner_net}.0/24", "dev", self._bridge)

    def host(
        self,
        kind: str = "bare",
        *,
        name: str | None = None,
        behind: Machine | None = None,
        sshd: Mapping[str, str] | None = None,
        shared: Sequence[Path] = (),
    ) -> Machine:
        """Start a machine.

        None of them reaches the internet.

        Parameters
        ----------
        kind : str
            ``"bare"`` (Debian without Python), ``"python"`` (Debian's Python 3), another of `RECIPES`, or
            ``"here"`` (this machine's files, copy on write).
        name : str, optional
            Its host name; the default counts.
        behind : Machine, optional
            The only machine it can be reached from: the lab's ssh configuration jumps over that one.
        sshd : mapping, optional
            More options for its sshd, such as ``{"MaxSessions": "1"}``.
        shared : sequence of Path
            Folders of this machine that it sees, and writes into, under the same names.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LabError("machines end with the thread that started them: start them in the main thread")
        self._started += 1
        name = name or f"{kind}{self._started}"
        address = self._address(behind)
        folder = self.folder / name
        for part in ("root", "upper", "work"):
            (folder / part).mkdir(parents=True)
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        (folder / "host_key").write_bytes(host_key.export_private_key())
        (folder / "authorized_keys").write_text(self.public_key)
        options = {**_SSHD, "HostKey": "/etc/ssh/lab/host_key", **(sshd or {})}
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in options.items()))
        lower = Path("/") if kind == HERE else root_tree(kind)
        mounts = [] if kind == HERE else ["mount -t tmpfs -o mode=1777 tmp tmp"]
        for path in map(str, shared):
            within = shlex.quote(f".{path}")
            mounts.append(f"mkdir -p {within}; mount --bind {shlex.quote(path)} {within}")
        script = _INIT.format(
            folder=folder, lower=lower, name=name, address=address, scratch="\n".join(mounts)
        )

        def ready(machine: Machine, process: subprocess.Popen[bytes]) -> None:
            machine.host_key = host_key.export_public_key().decode()
            self._introduce(machine)
            _await_sshd(machine, process)

        return self._launch(name, address, script, number=self._started, behind=behind, ready=ready)

    def _launch(
        self,
        name: str,
        address: str,
        script: str,
        *,
        number: int,
        environment: Mapping[str, str] = SYSTEM,
        behind: Machine | None = None,
        ready: Callable[[Machine, subprocess.Popen[bytes]], None] = lambda machine, process: None,
        kind: type[Machine] = Machine,
    ) -> Machine:
        """Run a script in namespaces of its own, which reads a line once its cable is there; wait for it.

        The number is its own in this lab: its cable is named by it.
        """
        folder = self.folder / name
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_UNSHARE, "sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        try:
            machine = kind(self, name, address, process, _first_child(process))
            machine.via = behind
            machine.link = f"{self._bridge}-{number}"
            self._connect(machine)
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.close()
            ready(machine, process)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, LabError):
                raise LabError(f"{error}\n{(folder / 'log').read_text()}") from error
            raise
        self.machines.append(machine)
        return machine

    def shape(self, rate: str) -> None:
        """Limit what this machine sends into the lab, such as to ``"100mbit"``; machines talk as before."""
        call("tc", "qdisc", "replace", "dev", self._bridge, *_limit(rate))

    def unshape(self) -> None:
        """Take the limit away."""
        call("tc", "qdisc", "del", "dev", self._bridge, "root")

    def forget(self, machine: Machine) -> None:
        """Strike off a machine that ended, and delete its files."""
        if machine in self.machines:
            self.machines.remove(machine)
            self._ended.append(machine)
        shutil.rmtree(self.folder / machine.name, ignore_errors=True)

    def close(self) -> list[Process]:
        """End all machines and the network; return what survived, which is a defect of the lab."""
        for machine in tuple(self.machines):
            machine.kill()
        left = [process for machine in self._ended for process in machine.survivors()]
        while self._ended:
            os.close(self._ended.pop()._held)
        with contextlib.suppress(LabError):
            call("ip", "link", "del", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _address(self, behind: Machine | None) -> str:
        if behind is None:
            return f"{self._net}.{10 + self._started}"
        self._inner += 1
        return f"{self._inner_net}.{10 + self._inner}"

    def _connect(self, machine: Machine) -> None:
        """Lay the cable: to the bridge, or to an inner bridge on the machine in front of it."""
        pid = str(machine.pid)
        gateway, bridge = self.gateway, self._bridge
        if machine.via is None:
            call("ip", "link", "add", machine.link, "type", "veth", "peer", "name", "eth0", "netns", pid)
        else:
            gateway, bridge = f"{self._inner_net}.1", "inner"
            router = machine.via.inside
            if "inner" not in router("ip", "-br", "link"):
                router("ip", "link", "add", "inner", "type", "bridge")
                router("ip", "addr", "add", f"{gateway}/24", "dev", "inner")
                router("ip", "link", "set", "inner", "up")
            # made in our network, as only from here both ends can be moved by pid
            call("ip", "link", "add", machine.link, "type", "veth", "peer", "name", "eth0", "netns", pid)
            call("ip", "link", "set", machine.link, "netns", str(machine.via.pid))
        machine._outside("link", "set", machine.link, "master", bridge, "up")
        machine.inside("ip", "link", "set", "lo", "up")
        machine.inside("ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
        machine.inside("ip", "link", "set", "eth0", "up")
        machine.inside("ip", "route", "add", "default", "via", gateway)

    def _introduce(self, machine: Machine) -> None:
        """Add it to the ssh configuration and the known hosts."""
        lines = [f"Host {machine.name}", f"  HostName {machine.address}", "  User root"]
        lines += [f"  IdentityFile {self.key}", f"  UserKnownHostsFile {self.known_hosts}"]
        if machine.via:
            lines.append(f"  ProxyJump {machine.via.name}")
        with self.config.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
        key = " ".join(machine.host_key.split()[:2])
        with self.known_hosts.open("a") as file:
            file.write(f"{machine.address} {key}\n")


def _limit(rate: str) -> tuple[str, ...]:
    return ("root", "tbf", "rate", rate, "burst", "256k", "latency", "50ms")


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """Return the process that is number 1 in the new namespace."""
    deadline = time.monotonic() + 60
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline and process.poll() is None:
        for pid in children.read_text().split():
            if namespace(int(pid), "pid") != namespace(os.getpid(), "pid"):
                return int(pid)
        time.sleep(0.005)
    raise LabError("the machine's namespaces did not come up")


def _await_sshd(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if machine.via is not None:
            if ":22 " in machine.inside("ss", "-Hltn"):
                return
        else:
            with contextlib.suppress(OSError), socket.create_connection((machine.address, 22), 1) as wire:
                if wire.recv(4) == b"SSH-":
                    return
        time.sleep(0.01)
    raise LabError(f"{machine.name}: its sshd did not come up")


__all__ = ["HERE", "RECIPES", "Lab", "LabError", "Machine", "Process"]
