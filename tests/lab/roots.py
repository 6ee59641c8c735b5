"""The machines' root file systems: Debian trees, built once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.install import ATTEMPTS

BASE = ("openssh-server", "iproute2", "procps")


@dataclass(frozen=True)
class Recipe:
    """What a tree is made of.

    Parameters
    ----------
    suite : str
        Debian's name for the release.
    packages : tuple of str
        What is installed beside `BASE`.
    without : tuple of str
        Paths of these packages that are left out, as patterns: large, and not used.
    hooks : tuple of str
        Shell commands before the packages are installed; ``$1`` is the tree.
    finish : tuple of str
        Shell commands when they are installed.
    """

    suite: str
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(BASE + self.packages)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")),
            *(f"--dpkgopt=path-exclude={path}" for path in self.without),
            *(f"--essential-hook={hook}" for hook in self.hooks),
            *(f"--customize-hook={hook}" for hook in self.finish),
            '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*',
            self.suite,
        ]


_NO_CELL = 'echo gridengine-common shared/gridengineconfig boolean false | chroot "$1" debconf-set-selections'

# As a cloud's Debian image is: cloud-init at the start, no host keys, nobody it knows. It takes what it boots
# on for EC2 by a uuid in a file of /sys that no container has; what a network manager does is done already.
_CLOUD = """set -eu; cd "$1"
rm -f usr/sbin/dhclient sbin/dhclient  # nobody would answer it, and cloud-init would wait for that
rm -f etc/ssh/ssh_host_* etc/machine-id etc/resolv.conf; : > etc/machine-id; : > etc/resolv.conf
: > etc/fstab; echo ec2e1916-a1b2-4000-8000-0123456789ab > etc/ec2-uuid
source=usr/lib/python3/dist-packages/cloudinit/sources/DataSourceEc2.py
sed -i 's#"/sys/hypervisor/uuid"#"/etc/ec2-uuid"#' $source; grep -q /etc/ec2-uuid $source
cat > etc/cloud/cloud.cfg.d/90-lab.cfg <<END
datasource_list: [Ec2]
datasource: {Ec2: {strict_id: false, max_wait: 20, timeout: 5, apply_full_imds_network_config: false}}
network: {config: disabled}
locale: false
END
for unit in systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
  systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
  e2scrub_all.timer e2scrub_reap.service; do ln -sf /dev/null etc/systemd/system/$unit; done
"""

RECIPES = {
    "bare": Recipe("bookworm"),
    "python": Recipe("bookworm", ("python3",)),
    # SGE and OAR: they get on with each other, but not with Slurm's commands in Torque's dialect
    "batch": Recipe(
        "bookworm",
        (
            *("python3", "gridengine-master", "gridengine-exec", "gridengine-client"),
            *("oar-server", "oar-server-pgsql", "oar-user", "oar-user-pgsql", "oar-node"),
            *("postgresql", "libjson-perl"),
        ),
        ("/usr/lib/*/libLLVM*", "/usr/lib/postgresql/*/lib/bitcode/*", "/usr/lib/postgresql/*/lib/llvmjit*"),
        (_NO_CELL,),
    ),
    "condor": Recipe("trixie", ("python3", "condor")),
    "cloud": Recipe("bookworm", ("systemd-sysv", "dbus", "cloud-init", "sudo", "netbase"), finish=(_CLOUD,)),
}
BUILT_AHEAD = ("bare", "python", "batch", "cloud", "condor")

# What mmdebstrap mounts into a tree ends with it, however it ends: nobody may find /proc in there.
_APART = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")


def cache() -> Path:
    """Return the folder that keeps the trees: in the home of the user, whatever a test says HOME is."""
    kept = os.environ.get("ENVSYNC_LAB_CACHE")
    return Path(kept) if kept else Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/envsync-lab"


def root_tree(kind: str) -> Path:
    """Return the tree of a kind, built if it is not there: whole or absent, by one process at a time."""
    folder = cache()
    recipe = RECIPES[kind]
    digest = hashlib.sha256("\n".join(recipe.command).encode()).hexdigest()[:12]
    tree = folder / f"{kind}-{digest}"
    if tree.is_dir():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.is_dir():
            _build(recipe, tree)
    return tree


def _build(recipe: Recipe, tree: Path) -> None:
    part = tree.with_name(f".{tree.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run(
            [*_APART, *recipe.command, str(part)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            part.rename(tree)
            return
        time.sleep(3 * attempt)
    shutil.rmtree(part, ignore_errors=True)
    raise RuntimeError(f"mmdebstrap could not make {tree.name}, {ATTEMPTS} times:\n{done.stderr[-2000:]}")
