"""A real Slurm: a controller and nodes on a network of their own, which sees this machine's files.

As in a computing centre: homes are shared by all nodes and whoever submits, ``/tmp`` is each node's own. Each
has its own network, process, mount and host name namespaces, and all of it dies with the test process.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.accounting import SETTINGS, daemons
from tests.lab.install import find
from tests.lab.machines import HERE, Lab, LabError, Machine
from tests.lab.network import SYSTEM
from tests.lab.processes import Process

CORES, MEMORY = 4, 4000
"""What a node says it has, whatever it has: cores, and megabytes."""

_TMP = Path("/tmp")
_INIT = """set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=1777 tmp {folder}/tmp
{shared}
mount --move {folder}/tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm; mount -t proc proc /proc
mount --bind {hosts} /etc/hosts
hostname {name}
{confined}
read -r go
exec < /dev/null
cd /  # a folder below /tmp is not there any more
{daemons}
wait
"""

_CONF = """ClusterName=lab
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.sock
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{task}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=short Nodes=ALL MaxTime=1 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""

# Slurm's own tree of cgroups for each node: they would meet in one, as they are on one machine.
_CONFINED = """mkdir -p {own}; mount --bind {own} {all}"""
_CGROUP_CONF = """CgroupPlugin=cgroup/v1
CgroupAutomount=no
"""
_CGROUPS = Path("/sys/fs/cgroup")
_CONSTRAIN = {"devices": "ConstrainDevices=yes\n", "memory": "ConstrainRAMSpace=yes\n"}


class Slurm(Lab):
    """A Slurm; `close` ends it.

    Its partitions: ``debug`` (the default), ``short`` (no job longer than a minute), ``urgent`` (preempts
    those of the others, which are requeued) and ``closed``.

    Parameters
    ----------
    nodes : int
        How many there are, ``node1`` and so on.
    shared : sequence of Path
        Folders below ``/tmp`` that the nodes see too. What is elsewhere they see anyhow.
    gpus : int
        How many each node says it has, with character devices that no driver answers at.
    settings : mapping, optional
        More of its configuration.
    confined : sequence of str
        What the kernel keeps jobs from where it is not theirs: ``devices``, ``memory`` (cgroups of the first
        version).
    accounting : bool
        Whether slurmdbd keeps accounts, and jobs of unknown ones are refused: root has `ACCOUNT`.

    Attributes
    ----------
    nodes : list of Machine
        Where jobs run. None of them has an sshd.
    head : Machine
        Where the controller runs.
    environment : dict
        What ``sbatch`` and its like need in their environment.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        shared: Sequence[Path] = (),
        gpus: int = 0,
        settings: Mapping[str, str] | None = None,
        confined: Sequence[str] = (),
        accounting: bool = False,
    ) -> None:
        super().__init__()
        self._cgroups = [_CGROUPS / kind / self.folder.name for kind in confined]
        self._shared = [self.folder, *shared]
        self._hosts, conf = self.folder / "hosts", self.folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(conf)}
        names = ["head", *(f"node{number}" for number in range(1, nodes + 1))]
        addresses = [f"{self._net}.{10 + number}" for number in range(1, nodes + 2)]
        both = list(zip(names, addresses, strict=True))
        self._hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{at} {name}\n" for name, at in both))
        size = f"CPUs={CORES} SocketsPerBoard=1 CoresPerSocket={CORES} ThreadsPerCore=1 RealMemory={MEMORY}"
        if gpus:
            size += f" Gres=gpu:fake:{gpus}"
        lines = [f"NodeName={name} NodeAddr={address} {size}\n" for name, address in both[1:]]
        task = "cgroup" if confined else "none"
        text = _CONF.format(folder=self.folder, head=addresses[0], task=task)
        text += SETTINGS.format(folder=self.folder, head=addresses[0]) if accounting else ""
        text += "".join(f"{key}={value}\n" for key, value in (settings or {}).items())
        (self.folder / "cgroup.conf").write_text(
            _CGROUP_CONF + "".join(_CONSTRAIN[kind] for kind in confined)
        )
        conf.write_text(text + ("GresTypes=gpu\n" * bool(gpus)) + "".join(lines))
        if gpus:
            self._make_gpus(gpus)
        (self.folder / "state").mkdir()
        key, munge = self.folder / "munge.key", shlex.quote(str(self.folder / "munge"))
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munged = (
            f"{find('munged')} --foreground --force --socket={munge}.sock --key-file={munge}.key "
            f"--pid-file={munge}.pid --log-file={munge}.log --seed-file={munge}.seed &"
        )
        self.folder.chmod(0o755)  # munged refuses a folder that is closed to those whom it serves
        try:
            awaited = f"while [ ! -S {munge}.sock ]; do sleep 0.05; done"
            books = daemons(self.folder, addresses[0]) if accounting else []
            self.head = self._start(
                "head", addresses[0], munged, awaited, *books, f"{find('slurmctld')} -D &"
            )
            self.nodes = [self._start(*one, f"{find('slurmd')} -D &") for one in both[1:]]
            self._await_nodes()
        except BaseException:
            self.close()
            raise

    def close(self) -> list[Process]:
        """End all of it; return what survived."""
        left = super().close()
        for cgroup in self._cgroups:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                with contextlib.suppress(OSError):  # somebody who survived is still in it
                    os.rmdir(folder)
        return left

    def login(self, name: str = "login") -> Machine:
        """Start a login node: an ssh host with these files, where Slurm's programs work."""
        variables = " ".join(f"{key}={value}" for key, value in self.environment.items())
        return self.host(HERE, name=name, shared=self._shared, sshd={"SetEnv": variables})

    def jump(self, login: Machine) -> Machine:
        """Start a machine that is reached by ssh alone, and reaches nothing but the ssh of a login node."""
        gateway = self.host(name="gateway")
        _wall_in(gateway, login, "-p tcp --dport 22")
        return gateway

    def laptop(self, door: Machine) -> Machine:
        """Start a machine that reaches nothing but the ssh of another, and is reached by nobody."""
        laptop = self.host(name="laptop")
        _wall_in(laptop, door)
        return laptop

    def call(self, *command: str) -> str:
        """Run one of Slurm's programs, as a user does, and return what it printed."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**SYSTEM, **self.environment}
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, a line each: number, state, nodes."""
        return self.call("squeue", "--noheader", "--format=%i %T %N").splitlines()

    def processes(self) -> list[Process]:
        """Return what runs on the nodes, but for Slurm itself."""
        return [
            process
            for node in self.nodes
            for process in node.processes()
            if process.pid != node.pid and Path(process.arguments[0]).name != "slurmd"
        ]

    def log(self) -> str:
        """Return what controller and nodes wrote."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*/log")))

    def _start(self, name: str, address: str, *daemons: str) -> Machine:
        self._started += 1
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        shared = [path for path in self._shared if path.is_relative_to(_TMP)]
        inner = [(shlex.quote(str(path)), shlex.quote(str(path.relative_to(_TMP)))) for path in shared]
        script = _INIT.format(
            folder=shlex.quote(str(folder)),
            hosts=shlex.quote(str(self._hosts)),
            name=name,
            confined="\n".join(_CONFINED.format(own=path / name, all=path.parent) for path in self._cgroups),
            daemons="\n".join(daemons),
            shared="\n".join(
                f"mkdir -p {folder}/tmp/{at}; mount --bind {path} {folder}/tmp/{at}" for path, at in inner
            ),
        )
        environment = {**SYSTEM, **self.environment}
        return self._launch(name, address, script, number=self._started, environment=environment)

    def _make_gpus(self, count: int) -> None:
        """Slurm sets CUDA_VISIBLE_DEVICES where the file is a device, whether or not a driver answers."""
        devices = self.folder / "dev"
        devices.mkdir()
        for number in range(count):
            os.mknod(devices / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(195, number))
        (self.folder / "gres.conf").write_text(f"Name=gpu Type=fake File={devices}/nvidia[0-{count - 1}]\n")

    def _await_nodes(self) -> None:
        deadline = time.monotonic() + 120
        states = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(LabError):
                states = self.call("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T")
                if states.split() == ["idle"] * len(self.nodes):
                    return
            time.sleep(0.05)
        raise LabError(f"Slurm did not come up: {states}\n{self.log()}")


def _wall_in(machine: Machine, door: Machine, *incoming: str) -> None:
    """Let a machine reach nothing but the ssh of another; of what comes in, let in only `incoming`."""
    accepted = (
        "OUTPUT -o lo",
        f"OUTPUT -d {door.address} -p tcp --dport 22",
        "OUTPUT -m conntrack --ctstate ESTABLISHED",
        "INPUT -i lo",
        "INPUT -m conntrack --ctstate ESTABLISHED",
        *(f"INPUT {rule}" for rule in incoming),
    )
    for rule in accepted:
        machine.inside("iptables", "-w", "-A", *rule.split(), "-j", "ACCEPT")
    for chain in ("INPUT", "OUTPUT"):
        machine.inside("iptables", "-w", "-P", chain, "DROP")
