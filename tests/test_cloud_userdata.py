"""What machines run first, and what they say of themselves."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from envsync.errors import CloudError
from envsync.runner.cloud.userdata import host_keys, user_data

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
OTHER = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHk3"


def test_the_switch_is_armed_before_anything_else() -> None:
    text = user_data(KEY, first=600, life=3600)
    head, _, body = text.partition("\n")
    assert head == "#cloud-config"
    config = json.loads(body)
    assert next(iter(config)) == "bootcmd"
    [[_, _, script]] = config["bootcmd"]
    assert "+ 600)" in script
    assert "+ 3600)" in script
    assert "/run/envsync/life\n" not in user_data(KEY, first=600).replace("-r /run/envsync/life", "")
    assert config["users"][1]["ssh_authorized_keys"] == [KEY]


class Boot:
    """What a machine runs first, run here: its folders lie elsewhere, and its systemd only takes notes.

    Parameters
    ----------
    folder : Path
        Where.
    fails : str
        The words with which systemd does nothing but fail.
    """

    def __init__(self, folder: Path, *, fails: str = "-") -> None:
        self.lease = folder / "run/envsync/lease"
        self._folder, self._calls = folder, folder / "calls"
        systemctl = folder / "bin/systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(f'#!/bin/sh\ntest "$*" != "{fails}" && echo "$*" >> {self._calls}\n')
        systemctl.chmod(0o755)
        [[_, _, script]] = json.loads(user_data(KEY, first=600, life=3600).partition("\n")[2])["bootcmd"]
        script = script.replace("/run/", f"{folder}/run/").replace("/dev/console", f"{folder}/console")
        self.armed = self._sh("-c", script) == 0

    def _sh(self, *arguments: str) -> int:
        path = f"{self._folder}/bin:{os.environ['PATH']}"
        return subprocess.run(["sh", *arguments], env={"PATH": path}, check=False).returncode

    def check(self) -> list[str]:
        """Look whether the lease is over, as the timer does; return what systemd was told."""
        self._calls.write_text("")
        assert self._sh(str(self._folder / "run/envsync/check")) == 0
        return self._calls.read_text().splitlines()


def test_the_switch_ends_a_machine_when_its_lease_or_its_life_is_over_and_not_before(tmp_path: Path) -> None:
    machine = Boot(tmp_path)
    assert machine.armed
    up = int(float(Path("/proc/uptime").read_text().split()[0]))
    assert up + 590 < int(machine.lease.read_text()) <= up + 600
    assert machine.check() == []
    machine.lease.write_text(f"{up - 1}\n")
    assert machine.check() == ["--no-block poweroff"]
    assert "nobody has renewed" in (tmp_path / "console").read_text()
    machine.lease.write_text(f"{up - 61}\n")  # no unit keeps it any longer
    assert machine.check() == ["--force --force poweroff", "--no-block poweroff"]
    for broken in ("", "soon", "-7"):
        machine.lease.write_text(broken)
        assert "--no-block poweroff" in machine.check()
    machine.lease.write_text(f"{up + 9999}\n")
    assert machine.check() == []
    machine.lease.with_name("life").write_text(f"{up - 1}\n")  # whatever is renewed
    assert machine.check() == ["--no-block poweroff"]


def test_a_lease_can_be_renewed_only_where_a_switch_looks_at_it(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    assert Boot(tmp_path / "good").lease.stat().st_mode & 0o777 == 0o666
    (tmp_path / "bad").mkdir()
    machine = Boot(tmp_path / "bad", fails="start envsync-lease.timer")
    assert not machine.armed
    assert machine.lease.stat().st_mode & 0o777 == 0o644  # the agent is not root: it says so, see its tests


def test_what_no_cloud_takes_is_refused_here() -> None:
    with pytest.raises(CloudError, match="16384"):
        user_data(KEY, first=600, more=["echo " + "x" * 16000])


def block(*lines: str) -> str:
    return "\n".join(["-----BEGIN SSH HOST KEY KEYS-----", *lines, "-----END SSH HOST KEY KEYS-----", ""])


@pytest.mark.parametrize(
    ("console", "found"),
    [
        ("", ()),
        ("[  OK  ] Started\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n" + KEY, ()),
        (block(f"{KEY} root@ip-10-0-0-1"), (KEY,)),
        (block(f"{OTHER} root@a\r", f"{KEY} root@a\r"), (OTHER, KEY)),
        (block(f"{OTHER} root@old") + "Rebooting\n" + block(f"{KEY} root@new"), (KEY,)),
        ("login: " + block(f"\x1b[0m{KEY}\x1b[0m", "[  OK  ] Reached target"), (KEY,)),
        (block("ssh-ed25519 AAAA short"), ()),
        (block(f"{KEY} root@a") + "-----BEGIN SSH HOST KEY KEYS-----\n" + OTHER[:60], (KEY,)),
    ],
)
def test_host_keys_are_read_from_what_consoles_look_like(console: str, found: tuple[str, ...]) -> None:
    assert host_keys(console) == found
