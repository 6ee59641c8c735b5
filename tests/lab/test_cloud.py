"""The cloud of the lab itself: its machines boot, ask who they are, run what they were given, and end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest
from botocore.exceptions import ClientError

from tests.lab.cloud import Cloud

pytestmark = [pytest.mark.lab, pytest.mark.slow]
IMAGE = "ami-0000000000000de12"
_ASK = """
import sys, urllib.request as u
base, want = "http://169.254.169.254/latest/", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
token = u.urlopen(u.Request(base + "api/token", method="PUT", headers=want)).read().decode()
print(u.urlopen(u.Request(base + sys.argv[1], headers={"X-aws-ec2-metadata-token": token})).read())
"""


def until(true: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_a_machine_boots_and_ends_as_on_ec2(cloud: Cloud) -> None:
    client = cloud.api.client()
    key = asyncssh.generate_private_key("ssh-ed25519")
    client.import_key_pair(KeyName="k", PublicKeyMaterial=key.export_public_key())
    asked: dict[str, Any] = {
        "ImageId": IMAGE,
        "InstanceType": "m7i.large",
        "KeyName": "k",
        "MinCount": 1,
        "MaxCount": 1,
        "UserData": "#!/bin/sh\necho it has run > /run/ran; id -un >> /run/ran\n",
        "ClientToken": "once",
        "InstanceInitiatedShutdownBehavior": "terminate",
        "InstanceMarketOptions": {"MarketType": "spot"},
        "MetadataOptions": {"HttpTokens": "required"},
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": "whose", "Value": "ours"}]}
            for kind in ("instance", "volume", "network-interface")
        ],
    }
    cloud.api.fail("RunInstances", "VcpuLimitExceeded")
    with pytest.raises(ClientError, match="VcpuLimitExceeded"):
        client.run_instances(**asked)
    cloud.api.fail("RunInstances", "InternalError", after=True)  # boto3 asks again by itself
    (made,) = client.run_instances(**asked)["Instances"]
    (again,) = client.run_instances(**asked)["Instances"]
    assert made["InstanceId"] == again["InstanceId"]
    assert made["State"]["Name"] == "pending"
    with pytest.raises(ClientError, match="16384"):
        client.run_instances(**{**asked, "UserData": "x" * 16385, "ClientToken": "other"})

    vm = cloud.vm(made["InstanceId"])
    assert made["PublicIpAddress"] == made["PrivateIpAddress"] == vm.address
    until(lambda: vm.exec("cat", "/run/ran", check=False) == b"it has run\nroot\n")
    assert key.export_public_key().split()[1] in vm.exec("cat", "/home/debian/.ssh/authorized_keys")
    assert vm.exec("hostname").decode().startswith("ip-10-90-")
    host_key = vm.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[1].decode()
    until(lambda: "-----END SSH HOST KEY KEYS-----" in vm.console())
    told = client.get_console_output(InstanceId=made["InstanceId"], Latest=True)["Output"]
    assert host_key in told
    with pytest.raises(Exception, match="401"):
        vm.exec(
            "python3",
            "-c",
            "import urllib.request as u; u.urlopen('http://169.254.169.254/latest/meta-data/')",
        )
    cloud.interrupt(made["InstanceId"], seconds=600)
    assert b"terminate" in vm.exec("python3", "-c", _ASK, "meta-data/spot/instance-action")
    assert set(cloud.api.left()) == {"instances", "volumes", "interfaces", "keys"}

    vm.exec("systemctl", "poweroff", check=False)

    def state() -> dict[str, Any]:
        found: dict[str, Any] = client.describe_instances()["Reservations"][0]["Instances"][0]
        return found

    until(lambda: state()["State"]["Name"] == "terminated")
    assert state()["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert vm.survivors() == []
    assert cloud.api.left() == {"keys": ["k"]}
    client.delete_key_pair(KeyName="k")


def test_machines_are_made_and_ended_while_others_boot(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an address and a cable of its own; what is ended before it boots, or meanwhile, never runs."""
    client = cloud.api.client()
    made: list[str] = []
    turns: list[str] = []
    connect = Cloud._connect

    def run() -> str:
        asked = {"ImageId": IMAGE, "InstanceType": "m7i.large", "MinCount": 1, "MaxCount": 1}
        (one,) = client.run_instances(**asked)["Instances"]
        made.append(one["InstanceId"])
        return made[-1]

    def meanwhile(lab: Cloud, machine: Any) -> None:
        turns.append(machine.name)
        if len(turns) == 1:
            until(lambda: made)
            run()
        connect(lab, machine)
        if len(turns) == 3:
            until(lambda: len(made) == 3)
            client.terminate_instances(InstanceIds=[run(), machine.name])  # one that waits, and this one
        if len(turns) == 4:
            raise OSError("the lab's own trouble")

    def states() -> list[str]:
        found = client.describe_instances(InstanceIds=made)["Reservations"]
        by_id = {one["InstanceId"]: one["State"]["Name"] for each in found for one in each["Instances"]}
        return [by_id[one] for one in made]

    monkeypatch.setattr(Cloud, "_connect", meanwhile)
    run()
    first, second = cloud.vm(made[0]), until(lambda: len(made) == 2 and cloud.vm(made[1]))
    assert first.address != second.address
    assert first.link != second.link
    run()
    until(lambda: len(made) == 4)
    run()
    until(lambda: states() == ["running", "running", "terminated", "terminated", "terminated"])
    assert turns == [made[0], made[1], made[2], made[4]]
    (told,) = cloud.broken
    assert "the lab's own trouble" in told
    cloud.broken.clear()
    until(lambda: {vm.name for vm in cloud.vms()} == {first.name, second.name})
    client.terminate_instances(InstanceIds=made)
    assert (cloud.vms(), cloud.api.left()) == ([], {})
