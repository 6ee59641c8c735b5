"""An EC2 whose instances boot: each is a machine of the lab in which systemd and cloud-init really run.

The instances are those of `EC2Api`; where moto would make up addresses, which are somebody else's, theirs are
of the lab's network. The image is Debian's, as a cloud has it: cloud-init looks for its metadata service,
makes host keys, runs the user-data, and a machine that shuts itself down is terminated or stopped as was
asked for.
"""

from __future__ import annotations

import contextlib
import queue
import shlex
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from tests.lab.ec2_api import EC2Api
from tests.lab.machines import Lab, LabError, Machine
from tests.lab.metadata import ADDRESS, Metadata
from tests.lab.processes import Process, namespace, processes_in
from tests.lab.roots import root_tree

_FIRST = 10  # the last part of the first machine's address
_INIT = """set -eu
mount --make-rprivate /
mount -t proc proc /proc; mount -t tmpfs run /run
layers() {{ mount -t overlay lab -o lowerdir={lower},upperdir=$1/upper,workdir=$1/work {folder}/root; }}
layers {folder} 2>/dev/null || {{
  mount -t tmpfs lab {folder}/upper; mkdir {folder}/upper/upper {folder}/upper/work; layers {folder}/upper; }}
read -r go
exec < /dev/null
test ! -d {folder}/more || cp -r {folder}/more/. {folder}/root/
exec systemd-nspawn --quiet --boot --register=no --keep-unit --console=read-only \
  --resolv-conf=off --timezone=off --link-journal=no --capability=CAP_NET_ADMIN --machine={name} \
  --directory={folder}/root
"""


SHORTER = """
import asyncio
from envsync.runner.cloud.userdata import LEASE

def shorter(cluster, seconds):
    session = cluster.prepared[0].session
    asked = session.request("lease", path=LEASE, seconds=seconds)
    asyncio.run_coroutine_threadsafe(asked, cluster.loop.asyncio_loop).result()
"""
"""For a client's program: gives its first machine a shorter lease. A start may take longer than that."""


class VM(Machine):
    """An instance that was booted.

    Attributes
    ----------
    instance : object
        moto's.
    metadata : Metadata
        What it asks about itself.
    """

    instance: Any = None
    metadata: Metadata
    _guest = 0
    _guests = ""

    def guest(self) -> int:
        """Return the process that is its systemd."""
        if not self._guest:
            for process in processes_below(self.pid):
                if namespace(process, "pid") not in ("", self._namespace):
                    self._guest, self._guests = process, namespace(process, "pid")
                    break
            else:
                raise LabError(f"{self.name} has not begun to boot")
        return self._guest

    def exec(self, *command: str, stdin: bytes = b"", check: bool = True) -> bytes:
        """Run a program on it, not over the network, and return what it printed."""
        outer = self.pid
        self.pid = self.guest()
        try:
            return super().exec(*command, stdin=stdin, check=check)
        finally:
            self.pid = outer

    def processes(self, containing: str = "") -> list[Process]:
        """Return the processes in it whose command line has this text."""
        self.guest()
        return [one for one in processes_in(self._guests) if containing in " ".join(one.arguments)]

    def survivors(self) -> list[Process]:
        """Return whatever still runs of it."""
        with contextlib.suppress(LabError):
            self.guest()
        return [*super().survivors(), *(processes_in(self._guests) if self._guests else ())]

    def console(self) -> str:
        """Return what it has written to its console."""
        return (self.lab.folder / f"{self.name}.console").read_text(errors="replace")


class Cloud(Lab):
    """An EC2; `close` ends it and all of its machines.

    Attributes
    ----------
    api : EC2Api
        Its interface, and what goes wrong there.
    more : dict of str to Path
        Files that images have besides, by where they lie there: of the machines that are made from now on.
    broken : list of str
        What went wrong here, and not in what is tested; `close` raises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tree = root_tree("cloud")
        self._vms: dict[str, VM] = {}
        self._unplugged: set[str] = set()
        self._changing = threading.RLock()
        self._booting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.broken: list[str] = []
        self.unbootable = 0
        self.more: dict[str, Path] = {}
        self.api = _Api(self)
        # machines end with the thread that started them
        self._booter = threading.Thread(target=self._boot_all, daemon=True)
        self._booter.start()

    def vm(self, identity: str, patience: float = 90) -> VM:
        """Return the machine that an instance is, once it is there."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if identity in self._vms:
                return self._vms[identity]
            time.sleep(0.02)
        raise LabError(f"{identity} was not booted; {self.broken}")

    def vms(self) -> list[VM]:
        """Return the machines that run."""
        return list(self._vms.values())

    def interrupt(self, identity: str, seconds: float = 120) -> None:
        """Take a spot machine back: it is told now, and ended after so many seconds."""
        vm = self.vm(identity)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        vm.metadata.notice = {"action": "terminate", "time": at}
        timer = threading.Timer(seconds, self._take_back, (vm,))
        timer.daemon = True
        timer.start()

    def close(self) -> list[Process]:
        """End all; return what survived, which is a defect of the lab."""
        self._booting.put(None)
        self._booter.join()  # not before: its end is theirs
        for vm in self.vms():
            self.unplug(vm.instance)
        self.api.close()
        survivors = super().close()
        if self.broken:
            raise LabError(f"the lab's own defects: {self.broken}")
        return survivors

    # -- what the interface says

    def plug_in(self, instance: Any) -> None:
        """Give an instance an address of ours, and have it booted."""
        with self._changing:
            self._started += 1
            number = self._started
        if number + _FIRST > 254:
            raise LabError("the network has no more addresses")
        (interface,) = instance.nics.values()
        address = f"{self._net}.{number + _FIRST}"
        interface.private_ip_address = address
        interface.private_ip_addresses = [{"Primary": True, "PrivateIpAddress": address}]
        interface.public_ip = address if interface.public_ip else None
        instance._state.name, instance._state.code = "pending", 0
        self._booting.put((number, instance))

    def unplug(self, instance: Any) -> None:
        """End an instance as if its power was cut; if it is not booted yet, it never is."""
        with self._changing:
            self._unplugged.add(instance.id)
            vm = self._vms.pop(instance.id, None)
        if vm is not None:
            vm.metadata.close()
            vm.kill()

    def text(self, instance: Any) -> str:
        """Return what an instance has written to its console, also when it is gone."""
        file = self.folder / f"{instance.id}.console"
        return file.read_text(errors="replace") if file.exists() else ""

    # -- inner

    def _boot_all(self) -> None:
        while (asked := self._booting.get()) is not None:
            number, instance = asked
            try:
                if instance.id not in self._unplugged:
                    self._boot(number, instance)
            except Exception as error:  # the others are booted all the same
                self.broken.append(f"{instance.id} was not booted: {type(error).__name__}: {error}")
                self._say_ended(instance, "Server.InternalError", "Internal error on launch")

    def _boot(self, number: int, instance: Any) -> None:
        folder = self.folder / instance.id
        for part in ("root", "upper", "work"):
            (folder / part).mkdir(parents=True)
        for place, file in self.more.items():
            (folder / "more" / place).parent.mkdir(parents=True)
            shutil.copy(file, folder / "more" / place)
        (self.folder / f"{instance.id}.console").symlink_to(folder / "log")
        if self.unbootable:
            self.unbootable -= 1
            (folder / "log").write_text("Kernel panic - not syncing: VFS: Unable to mount root fs\n")
            self._say_running(instance)
            return
        script = _INIT.format(lower=self._tree, folder=shlex.quote(str(folder)), name=instance.id)
        self._instance = instance
        vm = self._launch(instance.id, instance.private_ip, script, number=number, kind=VM)
        assert isinstance(vm, VM)
        if not self._say_running(instance, vm):
            vm.metadata.close()
            vm.kill()
            return
        threading.Thread(target=self._await_end, args=(vm,), daemon=True).start()

    def _say_running(self, instance: Any, vm: VM | None = None) -> bool:
        """Let it be seen that an instance runs; return False if it was ended before it did."""
        with self._changing:  # whoever ends it comes before, and says so after, or comes after
            if instance.id in self._unplugged:
                return False
            if vm is not None:
                self._vms[instance.id] = vm
            instance._state.name, instance._state.code = "running", 16
            return True

    def _connect(self, machine: Machine) -> None:
        """Lay the cable, and have somebody answer at its metadata service before it looks."""
        super()._connect(machine)
        assert isinstance(machine, VM)
        machine.inside("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        machine.block(source=self.gateway)  # as its security group says: from outside, sshd and nothing else
        machine.instance = self._instance
        machine.metadata = Metadata(machine.pid, self._instance)

    def _await_end(self, vm: VM) -> None:
        """Do with a machine that shut itself down what was asked for."""
        vm._process.wait()
        instance = vm.instance
        with self._changing:
            if self._vms.pop(instance.id, None) is None:
                return  # it was ended from outside
            self._unplugged.add(instance.id)
        try:
            vm.metadata.close()
            vm.kill()
        except Exception as error:  # the interface says that it ended all the same
            self.broken.append(f"{instance.id} could not be cleared away: {type(error).__name__}: {error}")
        self._say_ended(instance, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")

    def _say_ended(self, instance: Any, code: str, why: str) -> None:
        """Let it be seen that an instance ended by itself, and why."""
        stopping = instance.instance_initiated_shutdown_behavior != "terminate" and code.startswith("Client")
        try:
            instance.stop() if stopping else instance.terminate()
            instance.state_reason.code, instance.state_reason.message = code, f"{code}: {why}"
        except Exception as error:  # nobody waits for this thread
            self.broken.append(f"{instance.id} did not end for moto: {type(error).__name__}: {error}")

    def _take_back(self, vm: VM) -> None:
        if self._vms.get(vm.instance.id) is vm:
            vm.instance.terminate()
            reason = vm.instance.state_reason
            reason.code = "Server.SpotInstanceTermination"
            reason.message = "Server.SpotInstanceTermination: Spot instance termination"


class _Api(EC2Api):
    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        super().__init__()

    def made(self, instance: Any) -> None:
        self._cloud.plug_in(instance)

    def ended(self, instance: Any) -> None:
        self._cloud.unplug(instance)

    def console(self, instance: Any) -> str:
        return self._cloud.text(instance)


def processes_below(pid: int) -> list[int]:
    """Return the children of a process, by their numbers here."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


__all__ = ["SHORTER", "VM", "Cloud"]
