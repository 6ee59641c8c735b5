"""A real HTCondor: Debian 13's, 23.9."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.lab.batch import CORES, GPUS, BatchLab
from tests.lab.processes import Process

# Who may talk to whom is no matter here: nobody else is on this network.
_CONFIG = """CONDOR_HOST = head
NETWORK_INTERFACE = {address}
DAEMON_LIST = MASTER, SHARED_PORT, {daemons}
UID_DOMAIN = lab
FILESYSTEM_DOMAIN = lab
TRUST_UID_DOMAIN = True
SOFT_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION = OPTIONAL
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
SEC_DEFAULT_ENCRYPTION = OPTIONAL
SEC_DEFAULT_INTEGRITY = OPTIONAL
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 1
JOB_START_DELAY = 0
JOB_STOP_DELAY = 0
DISCARD_SESSION_KEYRING_ON_STARTUP = False
RUNBENCHMARKS = False
"""
# By default a job has a /tmp of its own, in which nothing shared below /tmp is seen.
_NODE = f"""MOUNT_UNDER_SCRATCH =
STARTER_ALLOW_RUNAS_OWNER = True
NUM_CPUS = {CORES}
MEMORY = 4000
MACHINE_RESOURCE_GPUs = {" ".join(f"GPU-a1b2c3d{number}" for number in range(GPUS))}
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
START = True
SUSPEND = False
WANT_SUSPEND = False
PREEMPT = False
KILL = False
"""
_STATES = {"1": "IDLE", "2": "RUNNING", "3": "REMOVED", "4": "COMPLETED", "5": "HELD", "6": "TRANSFERRING"}


class Condor(BatchLab):
    """An HTCondor whose nodes have a slot each to be parted, and ``request_gpus``; `close` ends it.

    Its home and what else is shared is one file system for head and nodes: jobs need no transfer of files.
    """

    kind: ClassVar[str] = "condor"
    programs: ClassVar[tuple[str, ...]] = (
        *("condor_submit", "condor_q", "condor_rm", "condor_history", "condor_status", "condor_hold"),
        *("condor_release", "condor_vacate_job", "condor_config_val", "condor_version", "condor_wait"),
    )
    logs: ClassVar[tuple[str, ...]] = ("var/log/condor/*Log*", "var/log/lab-daemon.log")

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, a line each: number, state, nodes."""
        lines = []
        for line in self.call("condor_q", "-allusers", "-af:j", "JobStatus", "RemoteHost").splitlines():
            number, state, slot = line.split()
            node = slot.partition("@")[2]
            lines.append(f"{number} {_STATES.get(state, state)} {node}".rstrip())
        return lines

    def _start(self) -> None:
        for machine in [self.head, *self.nodes]:
            on_head = machine is self.head
            text = _CONFIG.format(
                address=machine.address, daemons="COLLECTOR, NEGOTIATOR, SCHEDD" if on_head else "STARTD"
            )
            folder = machine.root / "etc/condor/config.d"
            for path in folder.iterdir():
                path.unlink()
            (folder / "lab").write_text(text + ("" if on_head else _NODE))
            machine.exec("sh", "-c", "install -d -o condor -g condor /run/condor /run/lock/condor")
            self._background(machine, "condor_master")

    def _own(self, process: Process) -> bool:
        return Path(process.arguments[0]).name.startswith("condor_")

    def _up(self) -> str:
        self.call("condor_q")
        return self.call("condor_status", "-af", "Machine")
