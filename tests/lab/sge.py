"""A real SGE: Debian's Grid Engine 8.1.9."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

from tests.lab.batch import CORES, GPUS, BatchLab
from tests.lab.processes import Process

# What it shall know goes into its database before it starts: asking it for each takes longer.
_BOTH = """set -e
export SGE_ROOT=/var/lib/gridengine SGE_CELL=default
cd $SGE_ROOT/default/common
sed -i 's/^admin_user .*/admin_user none/; s/^ignore_fqdn .*/ignore_fqdn true/' bootstrap
echo head > act_qmaster
"""
_MASTER = """
sed -i '
  s/^min_uid .*/min_uid 0/
  s/^min_gid .*/min_gid 0/
  s/^shell_start_mode .*/shell_start_mode unix_behavior/
  s/^load_report_time .*/load_report_time 00:00:05/
  s/^max_unheard .*/max_unheard 00:00:30/
  s/^reschedule_unknown .*/reschedule_unknown 00:00:10/
  s/flush_time=00:00:15/flush_time=00:00:01/
' /usr/share/gridengine/default-configuration
mkdir -p /var/spool/gridengine/qmaster/job_scripts
/usr/share/gridengine/scripts/init_cluster $SGE_ROOT default /var/spool/gridengine/spooldb root
cd /tmp/objects
for kind in adminhosts submithosts exechosts pes complexes; do
  /usr/lib/gridengine/spooldefaults $kind $kind
done
exec /usr/lib/gridengine/sge_qmaster
"""
_NODE = """
mkdir -p /var/spool/gridengine/execd
exec /usr/lib/gridengine/sge_execd
"""
_SCHEDULER = """set -e
qconf -ssconf | sed '
  s/^schedule_interval .*/schedule_interval 0:0:1/
  s/^flush_submit_sec .*/flush_submit_sec 1/
  s/^flush_finish_sec .*/flush_finish_sec 1/
' > /tmp/objects/scheduler
qconf -Msconf /tmp/objects/scheduler
qconf -Aq /tmp/objects/queue
"""

_HOST = f"""load_scaling NONE
complex_values gpu={GPUS},slots={CORES}
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
_GPU = """name gpu
shortcut gpu
type INT
relop <=
requestable YES
consumable YES
default 0
urgency 0
"""
_SMP = """pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves TRUE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
_QUEUE = f"""qname all.q
qtype BATCH INTERACTIVE
pe_list smp
slots {CORES}
rerun TRUE
shell /bin/sh
shell_start_mode unix_behavior
tmpdir /tmp
notify 00:00:05
seq_no 0
nsuspend 1
suspend_interval 00:05:00
min_cpu_interval 00:05:00
priority 0
processors UNDEFINED
initial_state default
"""
_NONE = (
    *("load_thresholds", "suspend_thresholds", "ckpt_list", "prolog", "epilog", "starter_method"),
    *("suspend_method", "resume_method", "terminate_method", "owner_list", "user_lists", "xuser_lists"),
    *("subordinate_list", "complex_values", "projects", "xprojects", "calendar"),
)
_LIMITS = ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem")
_REST = "".join(f"{name} NONE\n" for name in _NONE) + "".join(
    f"{kind}_{limit} INFINITY\n" for kind in "sh" for limit in _LIMITS
)


class SGE(BatchLab):
    """An SGE; `close` ends it.

    It has one queue, ``all.q``, a parallel environment ``smp``, which gives cores of one node, and a
    consumable ``gpu``, which is counted for each of these cores. Jobs are root's, as the tests are.
    """

    kind: ClassVar[str] = "batch"
    user: ClassVar[str] = "root"
    programs: ClassVar[tuple[str, ...]] = (
        *("qsub", "qstat", "qdel", "qacct", "qconf", "qhost", "qmod", "qalter", "qhold", "qrls", "qselect"),
    )
    logs: ClassVar[tuple[str, ...]] = (
        "var/spool/gridengine/qmaster/messages",
        "var/spool/gridengine/execd/*/messages",
    )

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, a line each: number (and task), state, nodes."""
        tree = ElementTree.fromstring(self.call("qstat", "-xml", "-u", "*"))
        lines = []
        for job in tree.iter("job_list"):
            number, tasks = job.findtext("JB_job_number"), job.findtext("tasks")
            node = (job.findtext("queue_name") or "").partition("@")[2]
            lines.append(f"{number}{f'.{tasks}' if tasks else ''} {job.findtext('state')} {node}".rstrip())
        return lines

    def _own(self, process: Process) -> bool:
        return Path(process.arguments[0]).name.startswith("sge_")

    def _start(self) -> None:
        nodes = [node.name for node in self.nodes]
        objects = {
            **{f"adminhosts/{name}": f"hostname {name}\n" for name in ["head", *nodes]},
            **{f"submithosts/{name}": f"hostname {name}\n" for name in ["head", *nodes]},
            **{f"exechosts/{name}": f"hostname {name}\n{_HOST}" for name in nodes},
            "pes/smp": _SMP,
            "complexes/gpu": _GPU,
            "queue": f"{_QUEUE}{_REST}hostlist {' '.join(nodes)}\n",
        }
        for name, text in objects.items():
            path = self.head.root / "tmp/objects" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.head.exec("sh", "-c", _BOTH + _MASTER)
        self._until(lambda: self.call("qconf", "-sm"))
        self.head.exec("sh", "-c", _SCHEDULER)
        for machine in self.nodes:
            self._background(machine, f"({_BOTH}{_NODE})")

    def _up(self) -> str:
        lines = [line.split() for line in self.call("qstat", "-f").splitlines() if "@" in line]
        # queue@node, its kinds, its slots, its load, the architecture that it told, and what is wrong with it
        return " ".join(line[0].partition("@")[2] for line in lines if len(line) == 5 and line[3] != "-NA-")
