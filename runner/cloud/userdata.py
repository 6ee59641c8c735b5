"""What a machine runs first, as text: its dead-man's switch, who may log in, and who it is.

Nothing in it is secret, since everything on the machine can read it. It is a cloud-config, in the part of
YAML that is JSON. Its first entry arms the switch, before packages, users or keys are dealt with: a timer
that looks every few seconds whether the machine's lease has run out. The lease is a number in a file, seconds
since boot, which no clock that is set can change; an agent that hears from its client moves it on.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from envsync.errors import CloudError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LEASE", "USER", "host_keys", "user_data"]

USER = "envsync"
"""Who logs in: made for that, the same on every image."""

LEASE = "/run/envsync/lease"
"""The file that says until when a machine lives."""

_BEGIN, _END = (
    "-----BEGIN SSH HOST KEY KEYS-----",
    "-----END SSH HOST KEY KEYS-----",
)  # cloud-init's own words
_KEY = re.compile(r"\b(?:ssh|ecdsa-sha2)-[a-z0-9-]+ [A-Za-z0-9+/]{40,}={0,3}(?=\s|$)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LARGEST = 16384  # bytes, of EC2; others take more

# /run forgets at every boot, and this runs at every boot. The switch has no default dependencies: it is armed
# while much of the machine is not there yet, and goes on while it shuts down. The lease may be written by
# anybody on the machine (our user is not made yet), but not before the switch is armed: an agent that cannot
# renew it says so, and the machine is not used. A console that hangs keeps no check waiting for long.
_ARM = """set -eu
umask 022
mkdir -p /run/envsync /run/systemd/system
read -r up rest < /proc/uptime
printf '%-20s\\n' $((${{up%.*}} + {first})) > {lease}
{life}
cat > /run/envsync/check <<'END'
read -r up rest < /proc/uptime
up=${{up%.*}}
read -r until rest < {lease} || until=0
case $until in ''|*[!0-9]*) until=0;; esac
if [ -r /run/envsync/life ]; then
  read -r life < /run/envsync/life
  [ "$life" -ge "$until" ] || until=$life
fi
[ "$up" -ge "$until" ] || exit 0
if [ "$up" -ge $((until + {patience})) ]; then systemctl --force --force poweroff; fi
systemctl --no-block poweroff
echo 'envsync: nobody has renewed the lease of this machine, or its time is over: it ends' > /dev/console
END
cat > /run/systemd/system/envsync-lease.service <<'END'
[Unit]
Description=End this machine when its lease is over
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=30
ExecStart=/bin/sh /run/envsync/check
END
cat > /run/systemd/system/envsync-lease.timer <<'END'
[Unit]
Description=Look whether the lease of this machine is over
DefaultDependencies=no
[Timer]
OnActiveSec=1
OnUnitInactiveSec={every}
AccuracySec=1
END
cat > /run/systemd/system/envsync-host-keys.service <<'END'
[Unit]
Description=Say the host keys on the console
After=cloud-init.service cloud-init-network.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec > /dev/console; echo; echo {begin}; cat /etc/ssh/ssh_host_*_key.pub; echo {end}'
END
systemctl daemon-reload
systemctl start envsync-lease.timer
chmod 666 {lease}
systemctl --no-block start envsync-host-keys.service
"""


def user_data(
    public_key: str, *, first: float, life: float | None = None, every: int = 5, more: Sequence[str] = ()
) -> str:
    """Return what a machine is to run first.

    Parameters
    ----------
    public_key : str
        Who may log in as `USER`, as one line of ``authorized_keys``.
    first : float
        Seconds from boot until the lease is over if nobody renews it: for booting, and for an agent to come.
    life : float, optional
        Seconds from boot until the machine ends whatever is renewed.
    every : int
        Seconds between two looks at the lease.
    more : sequence of str
        Shell commands that run at the end of the first boot. Everything on the machine can read them.

    Raises
    ------
    CloudError
        It is too long for a cloud to take.
    """
    arm = _ARM.format(
        first=int(first),
        lease=LEASE,
        life="" if life is None else f"echo $((${{up%.*}} + {int(life)})) > /run/envsync/life",
        every=every,
        patience=60,
        begin=_BEGIN,
        end=_END,
    )
    config = {
        "bootcmd": [["sh", "-c", arm]],
        "users": [
            "default",
            {
                "name": USER,
                "gecos": "envsync",
                "shell": "/bin/sh",
                "lock_passwd": True,
                "groups": ["adm"],  # who reads logs
                "ssh_authorized_keys": [public_key.strip()],
            },
        ],
        "ssh_genkeytypes": ["ed25519"],
        "runcmd": ["set -e", *more] if more else [],  # they are one script: the first that fails ends it
    }
    text = f"#cloud-config\n{json.dumps(config, indent=1)}\n"
    if len(text.encode()) > _LARGEST:
        raise CloudError(
            f"the machine would be given {len(text.encode())} bytes to run first, and takes {_LARGEST}",
            hint="Have the commands fetched by a short one, or prepare an image.",
        )
    return text


def host_keys(console: str) -> tuple[str, ...]:
    """Return the host keys that a machine has said on its console, as ``"ssh-ed25519 AAAA..."``.

    What counts is the last block that is whole: an image may have been booted before, and consoles are cut.
    """
    console = _COLOUR.sub("", console)
    blocks = re.findall(f"{re.escape(_BEGIN)}(.*?){re.escape(_END)}", console, re.DOTALL)
    for block in reversed(blocks):
        keys = _KEY.findall(block)
        if keys:
            return tuple(keys)
    return ()
