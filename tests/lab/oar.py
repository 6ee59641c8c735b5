"""A real OAR: Debian's, 2.5.9, with a PostgreSQL of its own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import ClassVar

from tests.lab.batch import CORES, GPUS, UID, BatchLab
from tests.lab.processes import Process

# The package has made a database cluster, and keys by which heads reach nodes as the user oar.
# What looks for jobs that are out of time would do so every ten seconds, but for what is said here; and a job
# that is deleted while it is launched, and hears nothing of that, would be told again after twenty.
_HEAD = """set -e
sed -i '
  s/^DB_BASE_PASSWD=.*/DB_BASE_PASSWD="oar"/
  s/^DB_BASE_PASSWD_RO=.*/DB_BASE_PASSWD_RO="oar_ro"/
  s/^SERVER_HOSTNAME=.*/SERVER_HOSTNAME="head"/
  s/^LOG_LEVEL=.*/LOG_LEVEL="3"/
  s/^JOB_RESOURCE_MANAGER_PROPERTY_DB_FIELD=/#&/
  s/^SCHEDULER_JOB_SECURITY_TIME=.*/SCHEDULER_JOB_SECURITY_TIME="1"/
  $aSCHEDULER_MIN_TIME_BETWEEN_2_CALLS="0"
  $aJOBDEL_SOFTWALLTIME="5"
' /etc/oar/oar.conf
sed -i 's/^\\(my $\\(read_commands_\\|villains\\)timeout\\) = 10;/\\1 = 2;/' /usr/lib/oar/Almighty
touch /var/log/oar.log; chown oar: /var/log/oar.log
bin=$(echo /usr/lib/postgresql/*/bin) conf=$(echo /etc/postgresql/*/main) sql=/usr/lib/oar/database
cd /var/lib/postgresql
install -d -o postgres /run/postgresql
printf 'host all all 127.0.0.1/32 trust\\nlocal all all trust\\n' > $conf/pg_hba.conf
su postgres < /dev/null > /dev/null \\
  -c "$bin/pg_ctl -w -s -D $conf -l /tmp/postgresql.log -o '-c fsync=off -c ssl=off -c jit=off' start" \\
  || { cat /tmp/postgresql.log >&2; exit 1; }
psql -q -U postgres -c "CREATE USER oar PASSWORD 'oar'" -c "CREATE USER oar_ro PASSWORD 'oar_ro'" \\
  -c 'CREATE DATABASE oar OWNER oar'
psql -q -v ON_ERROR_STOP=1 -U oar oar -f $sql/pg_structure.sql -f $sql/default_data.sql \\
  -f $sql/pg_default_admission_rules.sql -f - > /tmp/postgresql.out 2>&1
"""
_NODE = "mkdir -p /run/sshd; /usr/sbin/sshd -f /etc/oar/sshd_config"


class OAR(BatchLab):
    """An OAR whose resources are cores, each with a ``gpu``; `close` ends it.

    ``-l /nodes=1/core=2`` is two cores, ``-l /nodes=1/gpu=2`` two GPUs with a core each.
    """

    kind: ClassVar[str] = "batch"
    programs: ClassVar[tuple[str, ...]] = (
        *("oarsub", "oarstat", "oardel", "oarnodes", "oarhold", "oarresume", "oarwalltime"),
    )
    logs: ClassVar[tuple[str, ...]] = ("var/log/oar.log", "var/log/lab-daemon.log", "tmp/postgresql.*")

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, a line each: number, state, nodes."""
        found = json.loads(self.call("oarstat", "-J") or "{}")
        return [
            " ".join([number, job["state"], *job.get("assigned_network_address", [])])
            for number, job in sorted(found.items(), key=lambda one: int(one[0]))
        ]

    def _start(self) -> None:
        rows = [
            f"('{node.name}', 'Alive', '{core}', {CORES * place + core + 1}, {GPUS * place + core + 1})"
            for place, node in enumerate(self.nodes)
            for core in range(CORES)
        ]
        sql = f"""
            ALTER TABLE resources ADD core integer NOT NULL DEFAULT 0, ADD gpu integer NOT NULL DEFAULT 0;
            INSERT INTO resources (network_address, state, cpuset, core, gpu) VALUES {", ".join(rows)};
            GRANT SELECT ON ALL TABLES IN SCHEMA public TO oar_ro;
        """
        for node in self.nodes:
            node.exec("sh", "-c", _NODE)
        self.head.exec("sh", "-c", _HEAD, stdin=sql.encode())
        self._background(self.head, "Almighty")

    def _own(self, process: Process) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{process.pid}").stat().st_uid != UID
        return True

    def _up(self) -> str:
        nodes = json.loads(self.call("oarnodes", "-J"))
        return " ".join({each["network_address"] for each in nodes.values() if each["state"] == "Alive"})
