"""``python -m tests.lab.install``: what the lab needs from the system, as far as we may install it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROGRAMS = {
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""Program to Debian package."""

SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
"""What only a Slurm of the lab's needs."""

ACCOUNTING = {
    **SLURM,
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}
"""What one with accounting needs."""

TORQUE = {**SLURM, "qsub": "slurm-wlm-torque"}
"""What Slurm in Torque's words needs."""

REGISTRY = {"docker-registry": "docker-registry", "skopeo": "skopeo"}
"""What only registries of container images on loopback need."""

IMAGES = {"mmdebstrap": "mmdebstrap", "skopeo": "skopeo", "umoci": "umoci", "runc": "runc"}
"""What images that are run without an engine need."""

DOCKER = {"dockerd": "docker.io", "docker": "docker.io", **REGISTRY, **IMAGES}
"""What a Docker engine needs, and what its images are looked at with."""

PODMAN = {"podman": "podman", "runc": "runc", "skopeo": "skopeo"}
"""What clusters that run from images need."""

CLOUD = {"systemd-nspawn": "systemd-container"}
"""What clouds need whose machines boot."""

CEPH = {
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "ceph": "ceph-common",
    "monmaptool": "ceph-base",
    "radosgw": "radosgw",
    "radosgw-admin": "radosgw",
}
"""What an S3 needs whose credentials expire: 69 MB to fetch at most."""

ATTEMPTS = 3
_POLICY = Path("/usr/sbin/policy-rc.d")


def say(text: str) -> None:
    """Tell whoever ran this."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def find(program: str) -> str | None:
    """Return where a program is; those of administrators are not on everybody's PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def obstacle() -> str:
    """Return why no lab can stand here; empty if one can, given `missing` is installed."""
    if platform.system() != "Linux":
        return f"the lab is made of Linux namespaces, and this is {platform.system()}"
    if not Path("/etc/debian_version").exists():
        return "the lab's machines are Debian trees, and this is not Debian (or a descendant)"
    if os.geteuid() != 0:
        return "the lab needs root, for network namespaces and overlay file systems"
    return ""


def missing(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Return the Debian packages that are not here."""
    return sorted({package for program, package in programs.items() if not find(program)})


def install(packages: list[str]) -> bool:
    """Install packages, no daemon started; a mirror that hiccups is asked again."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        for attempt in range(1, ATTEMPTS + 1):
            done = all(
                subprocess.run(["apt-get", "-q", *command], env=environment, check=False).returncode == 0
                for command in (["update"], ["install", "-y", "--no-install-recommends", *packages])
            )
            if done:
                return True
            say(f"attempt {attempt} of {ATTEMPTS} failed")
            time.sleep(3 * attempt)
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)
    return False


def main() -> int:
    """Install what is missing and build the root trees; say what cannot be had."""
    why, packages = (
        obstacle(),
        missing(
            PROGRAMS | ACCOUNTING | TORQUE | REGISTRY | IMAGES | DOCKER | PODMAN | CLOUD | CEPH,
        ),
    )
    if why:
        say(f"No lab here: {why}. Its tests will be skipped.")
        if packages:
            say(f"Besides, it would need: {' '.join(packages)}")
        return 0
    if packages:
        say(f"Installing for the lab: {' '.join(packages)}")
        if not install(packages):
            say(f"They could not be installed: {' '.join(packages)}")
            return 1
    from tests.lab.network import LabError
    from tests.lab.nova import environment
    from tests.lab.roots import BUILT_AHEAD, root_tree

    with ThreadPoolExecutor(2) as both:
        for kind, tree in zip(BUILT_AHEAD, both.map(root_tree, BUILT_AHEAD), strict=True):
            say(f"lab: {kind}: {tree}")
    try:
        say(f"lab: nova: {environment()}")
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
