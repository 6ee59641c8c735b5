"""What machines run first, and what they say of themselves."""

from __future__ import annotations

import json

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
