"""Slurm's accounting: slurmdbd and its database, on the machine of the controller."""

from __future__ import annotations

from pathlib import Path

from tests.lab.install import find

ACCOUNT = "lab"
"""The one that root may charge jobs to, and does if nothing is said."""

SETTINGS = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={head}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=associations
"""
"""Lines of slurm.conf."""

_CONF = """AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=head
DbdAddr={head}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StorageLoc=slurm
"""

# In memory, and gone with the machine: made in a second, where a disk that is in use takes eight.
_DATA = "/tmp/accounting"
_BASE = f"--no-defaults --user=root --datadir={_DATA} --innodb-flush-method=nosync --innodb-log-file-size=4M"
# nobody but this machine reaches it, so it need not know who may do what
_OPEN = f"--skip-grant-tables --bind-address=127.0.0.1 --socket={_DATA}.sock"
_ACCOUNT = (
    "until sacctmgr --immediate add cluster lab; do sleep 0.1; done",
    f"sacctmgr --immediate add account {ACCOUNT}",
    f"sacctmgr --immediate add user root account={ACCOUNT}",
)


def daemons(folder: Path, head: str) -> list[str]:
    """Write slurmdbd's configuration, and return the lines of sh that start it once munged is up."""
    conf = folder / "slurmdbd.conf"
    conf.touch(mode=0o600)  # slurmdbd takes no other
    conf.write_text(_CONF.format(folder=folder, head=head))
    return [
        f"mariadb-install-db {_BASE} --skip-test-db",
        f"{find('mariadbd')} {_BASE} {_OPEN} &",
        f"while [ ! -S {_DATA}.sock ]; do sleep 0.05; done",
        f"{find('slurmdbd')} -D &",
        *_ACCOUNT,
    ]
